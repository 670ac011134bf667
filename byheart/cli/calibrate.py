"""``byheart calibrate``: what a model's keys and values have in common, measured once for compact memories."""

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
    anew=options.option(bool, False, "Make a new codec even where there is one.", "--anew"),
)


@options.takes(_TEXTS, options.WHERE)
def calibrate(model: Model, as_json: options.AsJSON = False, **choices: Any) -> None:
    """Measure a model once, so that its memories can be compact."""
    start = time.monotonic()
    with terminal.progressing(f"calibrating {model}", "texts") as progress:
        from byheart.model.loading import silence
        from byheart.session.calibration import calibrate_model

        silence()
        codec, path = calibrate_model(model, progress=progress, **choices)
    size, seconds = path.stat().st_size, round(time.monotonic() - start, 1)
    if as_json:
        made = {"model": model, "codec": codec.fingerprint, "bytes": size, "seconds": seconds, "path": str(path)}
        terminal.show_json(made)
        return
    terminal.say(f"The codec of {model} is in {path} ({terminal.size(size)}, {seconds:.0f} s).")
