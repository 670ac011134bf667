"""The arguments and options of the commands, and how their text becomes values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from byheart.errors import UsageError

Name = Annotated[str, typer.Argument(help="Name of the memory.", show_default=False)]
Home = Annotated[
    Path | None,
    typer.Option("--home", help="Folder that holds the memories; else $BYHEART_HOME, else your data folder."),
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of words.")]

_MADE = "How the memory is made"
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Alias, hub id, folder or .gguf file; smollm2 for a new memory. For an old one: where its model is now.",
        rich_help_panel=_MADE,
    ),
]
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="Method, or a folder with a trained one; full for a new memory. `byheart methods` lists them.",
        rich_help_panel=_MADE,
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", metavar="KEY=VALUE", help="Of the method; repeatable.", rich_help_panel=_MADE),
]
DType = Annotated[str, typer.Option("--dtype", help="auto, bfloat16, float16, float32 or 4bit.", rich_help_panel=_MADE)]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", rich_help_panel=_MADE)]

_DECODED = "How the answer is chosen"
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="At most so many tokens.", rich_help_panel=_DECODED)]
Temperature = Annotated[float, typer.Option("--temperature", help="0 is greedy.", rich_help_panel=_DECODED)]
TopP = Annotated[
    float, typer.Option("--top-p", help="Sample from the smallest set this likely.", rich_help_panel=_DECODED)
]
TopK = Annotated[int, typer.Option("--top-k", help="Sample from so many; 0 is all.", rich_help_panel=_DECODED)]
Seed = Annotated[int | None, typer.Option("--seed", help="Of the sampling.", rich_help_panel=_DECODED)]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", help="Text that ends the answer; repeatable.", rich_help_panel=_DECODED)
]
Contrast = Annotated[
    float | None,
    typer.Option("--contrast", help="Against the model before it was tuned (FastMem: 0.5).", rich_help_panel=_DECODED),
]
ContextAware = Annotated[
    float | None,
    typer.Option("--cad", help="Against the model without the memory (CAD: 0.5).", rich_help_panel=_DECODED),
]
DoLa = Annotated[
    str | None,
    typer.Option("--dola", help="Against earlier layers: high, low or 4,6,8.", rich_help_panel=_DECODED),
]


def method_options(given: Sequence[str] | None) -> dict[str, Any]:
    """``key=value`` each, a value read as JSON where it is JSON. Raises UsageError."""
    pairs = [text.partition("=") for text in given or ()]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise UsageError(f"--option takes key=value, such as slots=64; it is '{key}'.")
    return {key.replace("-", "_"): _value(text) for key, _, text in pairs}


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_number)
    except ValueError:
        return text


def _no_number(text: str) -> NoReturn:
    # NaN equals nothing, itself included: a memory made with it could not be opened again.
    raise ValueError(text)


def layers(dola: str | None) -> str | list[int] | None:
    """``high`` and ``low`` as they are, else numbers of layers. Raises UsageError."""
    if dola in (None, "high", "low"):
        return dola
    try:
        return [int(number) for number in str(dola).split(",")]
    except ValueError as error:
        raise UsageError(f"--dola takes high, low or layers such as 4,6,8; it is '{dola}'.") from error
