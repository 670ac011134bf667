"""The plug-in of the examples keeps the promises of a method, found by the entry point that its package registers."""

from __future__ import annotations

import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from torch import Tensor

from byheart import methods
from byheart.errors import BudgetError, InputError, StateMismatchError
from byheart.methods.budget import options_for
from byheart.model.backbone import Backbone
from byheart.model.reading import Reading
from byheart.protocol.method import Method
from byheart.protocol.state import nbytes, stack, unstack
from byheart.session import Session, ask_many, load, open_state
from tests.samples import ALL_FAMILIES, ROOT, backbone, hooks, logits, same, tokens, weights_hash, written

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = ROOT / "examples" / "plug_in"
TEXTS, PROMPT = [tokens(20, seed=1), tokens(5, seed=2), tokens(37, seed=3)], tokens(7, seed=4)


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package of the example were installed."""
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = [
        EntryPoint(name, value, group)
        for group, found in project["entry-points"].items()
        for name, value in found.items()
    ]
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(methods, "entry_points", lambda *, group: [point for point in points if point.group == group])


@pytest.fixture
def session(tiny_folder: Path) -> Session:
    session = load(str(tiny_folder), method="half", dtype="float32")
    session.write("The cat is called Muck. It sleeps in a shoe box.")
    return session


def half(family: str = "llama", **options: int) -> Method:
    return methods.build("half", backbone(family), **options)


def keys_of(own: Backbone, text: Tensor) -> Tensor:
    """The first layer's values, which depend on each token alone: they say which tokens were kept."""
    return own.project([own.embed(text)] * len(own.layers)).values[0]


# ---- what it keeps ----


@torch.no_grad()
def test_every_second_slot_is_kept() -> None:
    method, text = half(), torch.arange(3, 24)[None]
    kept = written(method, text)["values.0"]
    torch.testing.assert_close(kept, keys_of(method.backbone, text)[:, :, ::2], rtol=0, atol=1e-5)


def test_it_takes_half_the_bytes_of_a_full_memory() -> None:
    text = tokens(40)
    whole = nbytes(written(methods.build("full", backbone()), text))
    assert nbytes(written(half(), text)) == whole // 2
    assert options_for("half", backbone(), whole // 2, 40) == {}
    with pytest.raises(BudgetError, match=f"too small for 'half', which needs at least {whole // 2}"):
        options_for("half", backbone(), whole // 2 - 1, 40)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 33])
def test_its_size_is_counted_as_it_is_kept(length: int) -> None:
    method = half(chunk_tokens=16)
    assert method.size is not None
    assert nbytes(written(method, tokens(length))) == method.size.nbytes(method.backbone, [length], {})


# ---- the essentials of the contract ----


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_reading_changes_what_the_model_says_and_leaves_no_trace(family: str) -> None:
    method = half(family)
    weights, plain = weights_hash(method.backbone), logits(method.backbone, Reading(), PROMPT)
    state = written(method, *TEXTS)
    with torch.no_grad():
        changed = logits(method.backbone, method.read(state), PROMPT)
    assert changed.isfinite().all()
    assert (changed - plain).abs().max() > 1e-4
    assert torch.equal(logits(method.backbone, Reading(), PROMPT), plain)
    assert weights_hash(method.backbone) == weights
    assert hooks(method.backbone) == []


def test_writing_leaves_its_argument_alone() -> None:
    method = half()
    state = written(method, TEXTS[0])
    before = {name: tensor.clone() for name, tensor in state.items()}
    written(method, TEXTS[1], start=state)
    same(state, before)


def test_writing_the_pieces_equals_writing_the_whole() -> None:
    method, text = half(chunk_tokens=8), torch.cat(TEXTS, dim=1)
    same(written(method, *method.pieces(text)), written(method, text))


def test_a_batch_equals_its_rows() -> None:
    method, texts = half(), [tokens(20, seed=5), tokens(20, seed=6)]
    both = method.write_many([written(method, TEXTS[1])] * 2, texts)
    for state, text in zip(both, texts, strict=True):
        same(state, written(method, TEXTS[1], text), within=1e-4)
    assert len(unstack(stack(both))) == 2


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to write: the text is empty"):
        half().write({}, TEXTS[0][:, :0])


# ---- through a session ----


def test_a_session_answers_from_it(session: Session, tiny_folder: Path) -> None:
    answer = session.ask("What is the cat called?", max_tokens=8)
    assert answer == session.ask("What is the cat called?", max_tokens=8)
    assert session.header.method == "half"
    assert session.reading.slots == -(-session.header.tokens // 2)
    again = load(session.backbone, method="half", encoder=session.encoder)
    again.write("The cat is called Muck. It sleeps in a shoe box.")
    assert again.ask("What is the cat called?", max_tokens=8) == answer
    assert ask_many([session, again], ["What is the cat called?"] * 2, max_tokens=8) == [answer, answer]


def test_a_saved_memory_opens_and_answers_the_same(session: Session, tmp_path: Path) -> None:
    session.save(tmp_path / "half.state")
    opened = open_state(tmp_path / "half.state")
    question = "What is the cat called?"
    assert opened.ask(question, max_tokens=8) == session.ask(question, max_tokens=8)
    with pytest.raises(StateMismatchError, match="was made with another method: it has half, this session has full"):
        load(session.backbone, method="full", encoder=session.encoder).load(tmp_path / "half.state")


# ---- what is told about it ----


def test_the_guide_for_contributors_shows_this_file() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    assert (FOLDER / "half.py").read_text(encoding="utf-8") in blocks
    assert len((FOLDER / "half.py").read_text(encoding="utf-8").splitlines()) <= 30


def test_the_package_builds_from_this_one_file() -> None:
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"] == ["half.py"]
    assert {path.name for path in FOLDER.iterdir() if path.is_file()} == {"half.py", "pyproject.toml"}
