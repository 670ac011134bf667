"""What the pages show is run, and their tables name everything that there is."""

from __future__ import annotations

import importlib
import inspect
import os
import re
from pathlib import Path
from typing import cast

import pytest

import byheart
from byheart import Decoding, Session, errors
from byheart.cli import main
from byheart.evaluation import tasks
from byheart.methods import BUILT_IN, find
from byheart.protocol.state import Header, Written
from tests.docs.markdown import blocks, commands
from tests.samples import ROOT

DOCS = ROOT / "docs"
API = DOCS / "reference" / "api"
RUN = [page for page in sorted(DOCS.rglob("*.md")) if blocks(page.read_text(encoding="utf-8"), "python")]
SHOWN = [command for page in sorted(DOCS.rglob("*.md")) for command in commands(page.read_text(encoding="utf-8"))]
FOLDERS = (
    "session",
    "methods",
    "generation",
    "protocol",
    "model",
    "text",
    "training",
    "evaluation",
    "store",
    "published",
    "reports",
)


def text_of(path: str) -> str:
    return (DOCS / path).read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("GOMP_SPINCOUNT", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))


def execute(page: Path) -> dict[str, object]:
    """Run the blocks of a page in their order, as a reader would."""
    names: dict[str, object] = {}
    for code in blocks(page.read_text(encoding="utf-8"), "python"):
        exec(compile(code, str(page), "exec"), names)
    return names


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem == "evaluate" else [])
        for page in RUN
        if page.parent.name != "tutorial"
    ],
)
def test_python_blocks_run(page: Path) -> None:
    assert execute(page)


def test_the_tutorial_does_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    names = execute(DOCS / "tutorial" / "first-memory.md")
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines() if line.split()[:1] and line.split()[0] in BUILT_IN]
    sizes = {name: int(size) for name, size, *_ in lines}
    assert sizes["retrieval"] < sizes["compact"] < sizes["compressed-kv"] < sizes["full"]
    assert printed.count("Muck") >= 3
    assert printed.count("Rex") == 2, "only the memory that was told what the dog is called knows it"
    session, later, other = (cast(Session, names[name]) for name in ("session", "later", "other"))
    assert [len(memory.header.written) for memory in (session, later, other)] == [1, 2, 0]
    assert Path("muck.safetensors").exists()


@pytest.mark.parametrize("command", sorted({words[1] for words in SHOWN if words[0] == "byheart"}))
def test_commands_exist(command: str) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert not end.value.code


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_method_is_in_the_table_and_has_its_options(name: str) -> None:
    page, kind = text_of("reference/methods.md"), find(name)
    assert f"| `{name}` |" in page
    assert f"::: {kind.__module__}.{kind.__name__}\n" in page


def test_the_table_names_no_other_method() -> None:
    assert set(re.findall(r"^\| `([\w-]+)` \|", text_of("reference/methods.md"), re.MULTILINE)) == set(BUILT_IN)


def test_the_tables_name_every_task_and_no_other() -> None:
    named = re.findall(r"^\| `([\w-]+)` \|", text_of("reference/tasks.md"), re.MULTILINE)
    assert sorted(named) == sorted({"gap", *tasks.BUILT_IN})


@pytest.mark.parametrize("name", sorted(set(tasks.BUILT_IN) - {"gap"}))
def test_a_task_has_its_options_in_its_row(name: str) -> None:
    (row,) = re.findall(rf"^\| `{name}` \|.*$", text_of("reference/tasks.md"), re.MULTILINE)
    assert [option for option in tasks.defaults(tasks.find(name)) if f"`{option}=" not in row] == []


@pytest.mark.parametrize("kind", tasks.BUILT_IN.values(), ids=tasks.BUILT_IN)
def test_every_task_is_in_the_api(kind: type[tasks.Task]) -> None:
    assert f"::: {kind.__module__}.{kind.__name__}\n" in text_of("reference/api/tasks.md")


def test_every_public_name_is_in_the_table_of_the_api() -> None:
    page = text_of("reference/api/index.md")
    assert [name for name in byheart.__all__ if f"`{name}`" not in page] == []


@pytest.mark.parametrize("part", [Header, Written])
def test_the_page_on_state_files_names_every_field(part: type) -> None:
    page = text_of("reference/state-file.md")
    assert [name for name in inspect.signature(part).parameters if f"`{name}`" not in page] == []


def test_the_tutorial_names_every_way_to_decode() -> None:
    page = text_of("tutorial/first-memory.md")
    assert [name for name in inspect.signature(Decoding).parameters if f"`{name}`" not in page] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_public_folder_has_a_page(folder: str) -> None:
    """The page takes its names from ``__all__``; a name that is also a module is listed by its full path."""
    page, module = (API / f"{folder}.md").read_text(encoding="utf-8"), importlib.import_module(f"byheart.{folder}")
    shown = set(re.findall(r"^::: ([\w.]+)", page, re.MULTILINE))
    hidden = [name for name in getattr(module, "__all__", []) if (Path(module.__path__[0]) / f"{name}.py").exists()]
    assert all(f"{module.__name__}.{name}.{name}" in shown for name in hidden)
    assert module.__name__ in shown or len(hidden) == len(module.__all__)


def test_every_folder_is_in_the_architecture() -> None:
    page = text_of("explanation/architecture.md")
    folders = [path.parent.name for path in (ROOT / "byheart").glob("*/__init__.py")]
    assert [name for name in folders if f"`{name}/`" not in page] == []


def test_the_tree_of_errors_names_them_all() -> None:
    names = [name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)]
    assert errors.__doc__ is not None
    assert [name for name in names if name not in errors.__doc__] == []
