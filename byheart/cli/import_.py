"""``byheart import``: what a paper's authors or the library PEFT wrote, in byheart's own format."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from byheart.cli import options, terminal

Kind = Annotated[str, typer.Argument(help="memoryllm, mplus, ccm or peft.", show_default=False)]
Folder = Annotated[str, typer.Argument(help="The released folder, or its name on the hub.", show_default=False)]
Out = Annotated[str, typer.Argument(help="A new folder for byheart's own format.", show_default=False)]
_READER = options.group(
    "Of CCM and PEFT",
    base=options.option(str | None, None, "Folder or hub id of the model it was trained on."),
    merge=options.option(
        str | None, None, "Of CCM: concat_recur, merge_recur, concat or merge; else by the folder's name."
    ),
    sink=options.option(
        bool | None, None, "Of CCM: whether the first token is kept; else by the folder's name.", "--sink/--no-sink"
    ),
    base_lora=options.option(str | None, None, "Of CCM: folder of the first training step's LoRA."),
    dataset=options.option(
        str | None, None, "Of CCM: dialog, soda, unified, metaicl, lamp or pretrain; else by the folders above."
    ),
    segment_tokens=options.option(int | None, None, "Of CCM: of a segment, at most; else those of its data set."),
)
_POOL = options.group(
    "Of MemoryLLM and M+",
    rotary=options.option(
        str | None, None, "float16 or bfloat16: rotary positions are rounded as where the published code ran in that."
    ),
)


@options.takes(_POOL, _READER, options.WHERE)
def import_checkpoint(kind: Kind, folder: Folder, out: Out, as_json: options.AsJSON = False, **choices: Any) -> None:
    """Read a released checkpoint and write it in byheart's own format."""
    with terminal.progressing(f"reading {folder}"):
        from byheart.model.loading import silence
        from byheart.published.convert import convert

        silence()
        result = convert(kind, folder, out, **{key: value for key, value in choices.items() if value is not None})
    if as_json:
        terminal.show_json(asdict(result))
        return
    terminal.say(f"Read {kind}: {result.tensors:,} learned tensors, {terminal.size(result.bytes)}.")
    terminal.say(f"Its method is {result.method} with {terminal.said(result.options)}.")
    terminal.say(f"Use it: byheart write NAME FILE --model {result.model} --method {result.path}")
