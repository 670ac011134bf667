"""``byheart calibrate``: what a model's keys and values have in common, measured once for compact memories.

With layers, instead: what these are given, for methods that edit knowledge.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from byheart.cli import options, terminal

Model = Annotated[str, typer.Argument(help="Alias, hub id, folder or .gguf file.", show_default=False)]
_TEXTS = options.group(
    None,
    data=options.option(str | None, None, "Texts to calibrate on: a file, a folder or a hub data set; else byheart's."),
    use=options.option(Path | None, None, "A codec's file, made elsewhere, to keep here; nothing is calibrated."),
    out=options.option(Path | None, None, "Write the codec that there is, or else a new one, to this file."),
    layers=options.option(
        str | None, None, "Instead of a codec: measure what these layers are given, for rome and memit.", metavar="N,N"
    ),
    anew=options.option(bool, False, "Make a new codec even where there is one.", "--anew"),
)


@options.takes(_TEXTS, options.WHERE)
def calibrate(model: Model, as_json: options.AsJSON = False, **choices: Any) -> None:
    """Measure a model once, so that its memories can be compact."""
    start, layers = time.monotonic(), choices.pop("layers")
    if layers is not None:
        return _measure_layers(model, options.parse_numbers("--layers", layers), start, as_json=as_json, **choices)
    with terminal.progressing(f"calibrating {model}", "texts") as progress:
        from byheart.model.loading import silence
        from byheart.session.calibration import calibrate_model

        silence()
        codec, path = calibrate_model(model, progress=progress, **choices)
    size, seconds = path.stat().st_size, round(time.monotonic() - start, 1)
    if as_json:
        made = {"model": model, "codec": codec.fingerprint, "bytes": size, "seconds": seconds, "path": str(path)}
        return terminal.show_json(made)
    terminal.say(f"The codec of {model} is in {path} ({terminal.size(size)}, {seconds:.0f} s).")


def _measure_layers(
    model: str,
    layers: list[int],
    start: float,
    *,
    as_json: bool,
    out: Path | None,
    use: Path | None,
    anew: bool,
    **where: Any,
) -> None:
    from byheart.errors import UsageError

    if out is not None or use is not None or anew:
        raise UsageError("--layers measures layers and makes no codec: leave out --out, --use and --anew.")
    with terminal.progressing(f"reading with {model}", "texts") as progress:
        from byheart.model.loading import silence
        from byheart.session.key_moments import measure_layers

        silence()
        path = measure_layers(model, layers, progress=progress, **where)
    seconds = round(time.monotonic() - start, 1)
    if as_json:
        terminal.show_json({"model": model, "layers": layers, "seconds": seconds, "path": str(path)})
        return
    terminal.say(f"What layers {', '.join(map(str, layers))} of {model} are given is in {path} ({seconds:.0f} s).")
