"""The arguments and options of the commands, and how their text becomes values.

Options that several commands share are groups: name of the parameter -> its annotation and default. A command that
``takes`` a group receives its values in ``**choices``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from byheart.errors import UsageError
from byheart.files import parse_json

if TYPE_CHECKING:
    from byheart.training.settings import Setting

Command = TypeVar("Command", bound=Callable[..., None])
Group = Mapping[str, tuple[Any, Any]]
Option = tuple[Any, Any, Sequence[str], Mapping[str, Any]]

Name = Annotated[str, typer.Argument(help="Name of the memory.", show_default=False)]
Home = Annotated[
    Path | None,
    typer.Option("--home", help="Folder that holds the memories; else $BYHEART_HOME, else your data folder."),
]
Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="Server that keeps the memories (`byheart serve`); else $BYHEART_SERVER. Its key is in $BYHEART_API_KEY.",
    ),
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of words.")]


def spell(name: str) -> str:
    """The flag of a parameter."""
    return f"--{name.replace('_', '-')}"


PRECISIONS = "auto, bfloat16, float16, float32 or 4bit (4bit: not run yet)."
DEVICES = "auto, cpu, cuda, cuda:N, or offload where it does not fit (not run on a GPU)."
_MADE, _DECODED = "How the memory is made", "How the answer is chosen"
DType = Annotated[str, typer.Option("--dtype", help=PRECISIONS, rich_help_panel=_MADE)]
Device = Annotated[str, typer.Option("--device", help=DEVICES, rich_help_panel=_MADE)]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", help="Text that ends the answer; repeatable.", rich_help_panel=_DECODED)
]


def option(kind: Any, default: Any, help: str, *flags: str, **more: Any) -> Option:
    """An option of a group; without ``flags`` that of its name, and ``more`` as for ``typer.Option``."""
    return kind, default, flags, {"help": help, **more}


def group(panel: str | None = None, /, **options: Option) -> Group:
    """Options by the names of their parameters, under one heading."""
    return {
        name: (Annotated[kind, typer.Option(*(flags or [spell(name)]), **{"rich_help_panel": panel, **more})], default)
        for name, (kind, default, flags, more) in options.items()
    }


WHERE: Group = {"dtype": (DType, "auto"), "device": (Device, "auto")}
METHOD = group(
    _MADE,
    method=option(
        str | None,
        None,
        "Method, or a folder with a trained one; compact for a new memory, or full where no codec can be made. "
        "`byheart methods` lists them.",
    ),
    option=option(list[str] | None, None, "Of the method; repeatable.", "--option", "-o", metavar="KEY=VALUE"),
)
_MODEL = "Alias, hub id, folder or .gguf file; smollm2 for a new memory. For an old one: where its model is now."
PLACE: Group = {"home": (Home, None), "server": (Server, None)}
"""Where the memories are: a folder here, or a server."""
OPENING: Group = {**group(_MADE, model=option(str | None, None, _MODEL, "--model", "-m")), **WHERE, **PLACE}
DECODING = group(
    _DECODED,
    max_tokens=option(int, 256, "The most tokens of an answer."),
    temperature=option(float, 0.0, "0 is greedy."),
    top_p=option(float, 1.0, "Sample from the smallest set of tokens this likely."),
    top_k=option(int, 0, "Sample from the k likeliest tokens; 0 is all."),
    seed=option(int | None, None, "Of the sampling."),
    contrast=option(float | None, None, "Against the model before it was tuned (FastMem: 0.5)."),
    context_aware=option(float | None, None, "Against the model without the memory (CAD: 0.5).", "--cad"),
    dola=option(str | None, None, "Against earlier layers: high, low or 4,6,8."),
)
"""The options of ``generation.Decoding``."""
ARGUMENTS = frozenset(
    ("self", "name", "new", "model", "backbone", "method", "dtype", "device", "encoder", "trained", "progress")
)
"""What else is given by keyword to those who take the options of a method or task."""


def takes(*groups: Group) -> Callable[[Command], Command]:
    """Give a command the options of some groups in place of its ``**choices``."""

    def replace_choices(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        kept = [part for part in signature.parameters.values() if part.kind is not part.VAR_KEYWORD]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for group in groups
            for name, (annotation, default) in group.items()
        ]
        command.__signature__ = signature.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
        return command

    return replace_choices


def settings_group(settings: Mapping[str, Setting]) -> Group:
    """An option for each setting; None where it is not given, so that a recipe file decides."""
    return group(None, **{name: _setting_option(setting) for name, setting in settings.items()})


def _setting_option(setting: Setting) -> Option:
    flag, numbers = spell(setting.name), setting.type == list[int]
    default = ",".join(map(str, setting.default)) if numbers else setting.default
    end = " Repeatable." if setting.type == list[str] else f" Default: {default}." if default != "" else ""
    flags = [f"{flag}/--no-{flag[2:]}"] if setting.type is bool else [flag, "-m"] if setting.name == "model" else [flag]
    kind = (str if numbers else setting.type) | None
    return option(kind, None, setting.help + end, *flags, metavar=setting.metavar, rich_help_panel=setting.panel)


def take_decoding(choices: dict[str, Any]) -> dict[str, Any]:
    """Move the options of ``DECODING`` out of the choices of a command. Raises UsageError."""
    decoding = {name: choices.pop(name) for name in DECODING}
    return {**decoding, "dola": parse_layers(decoding["dola"])}


def parse_numbers(flag: str, text: str) -> list[int]:
    """Whole numbers between commas. Raises UsageError."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{flag} takes numbers such as 1,2,4,8; it is '{text}'.") from error


def method_options(typed: Sequence[str] | None) -> dict[str, Any]:
    """Options typed as ``key=value``; a value that is JSON is read as JSON. Raises UsageError."""
    pairs = [text.partition("=") for text in typed or ()]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise UsageError(f"--option takes key=value, such as slots=64; it is '{key}'.")
        if key in ARGUMENTS:
            raise UsageError(f"--option cannot give '{key}', which is no option of a method or task; leave it out.")
    return {key.replace("-", "_"): _value(text) for key, _, text in pairs}


def _value(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return text


def parse_layers(dola: str | None) -> str | list[int] | None:
    """``high`` and ``low`` as they are, else numbers of layers. Raises UsageError."""
    if dola in (None, "high", "low"):
        return dola
    try:
        return [int(number) for number in str(dola).split(",")]
    except ValueError as error:
        raise UsageError(f"--dola takes high, low or layers such as 4,6,8; it is '{dola}'.") from error
