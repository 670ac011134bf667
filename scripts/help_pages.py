"""Write docs/reference/cli.md: the help of every command, from the options themselves.

    python scripts/help_pages.py            write the page
    python scripts/help_pages.py --check    exit with 1 where the page is not what would be written

The text is that of ``--help``. Its layout is not, because that changes with the release of typer and with the terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from byheart.cli import COMMANDS, build_app

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "cli.md"
HEAD = """# The command line

<!-- Written by scripts/help_pages.py: change the help in byheart/cli/ and run it again. -->

`byheart COMMAND --help` shows the same on the terminal. A command exits with 0 when it is done, 1 after an error (one
line on standard error), 2 for an argument that cannot be used, and 130 when it is interrupted."""


def write_page() -> str:
    """The whole page."""
    names = [name for commands in COMMANDS.values() for name in commands]
    group: Any = typer.main.get_command(build_app(names))
    parts = [HEAD]
    for panel, commands in COMMANDS.items():
        parts.append(f"## {panel}")
        for name in commands:
            parts += describe(name, group.commands[name])
    return "\n\n".join(parts) + "\n"


def describe(name: str, command: Any) -> Iterator[str]:
    """The heading, usage, summary and options of one command."""
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    required = [f"{longest(option)} VALUE" for option in command.params if option.required and option not in arguments]
    options = ["[OPTIONS]"] if len(command.params) > len(arguments) else []
    yield f"### byheart {name}"
    yield f"```text\n{' '.join(['byheart', name, *required, *map(placeholder, arguments), *options])}\n```"
    yield command.help
    panels: dict[str, list[Any]] = {}
    for parameter in command.params:
        panels.setdefault(parameter.rich_help_panel or "", []).append(parameter)
    for panel, parameters in panels.items():
        yield table(panel, parameters)


def table(panel: str, parameters: Sequence[Any]) -> str:
    """One panel of options, a row for each."""
    rows = [f"| {panel or 'Arguments and options'} | |", "|---|---|"]
    for parameter in parameters:
        is_argument = parameter.param_type_name == "argument"
        has_default = not is_argument and type(parameter.default) in (int, float, str) and parameter.default != ""
        default = f" Default: {parameter.default}." if has_default else ""
        names = placeholder(parameter) if is_argument else spell(parameter)
        rows.append(f"| `{escape(names)}` | {escape(parameter.help or '')}{default} |")
    return "\n".join(rows)


def spell(option: Any) -> str:
    """An option's names as they are typed."""
    return ", ".join([*option.opts, *option.secondary_opts]) + (f" {option.metavar}" if option.metavar else "")


def longest(option: Any) -> str:
    return str(max(option.opts, key=len))


def placeholder(argument: Any) -> str:
    """An argument as a usage line shows it."""
    name = argument.metavar or f"{argument.name.upper()}{'...' if argument.nargs == -1 else ''}"
    return str(name) if argument.required else f"[{name}]"


def escape(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("|", "\\|")


def main(arguments: Sequence[str]) -> int:
    """Write the page, or say whether it is stale."""
    page = write_page()
    if "--check" not in arguments:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(page, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page:
        return 0
    print(f"{PAGE.relative_to(PAGE.parent.parent.parent)} is stale: run python scripts/help_pages.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
