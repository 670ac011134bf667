"""What a chat template puts around texts takes no slot of a state, and changes no answer where all is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from byheart import load, open_state
from byheart.errors import CorruptStateError, StateMismatchError, UsageError
from byheart.methods import build
from byheart.methods.budget import options_for
from byheart.model.reading import KV, Reading
from byheart.protocol.kv_slots import state_to_kv
from byheart.protocol.method import Method
from byheart.protocol.state import kv_slots, nbytes, unstack
from byheart.protocol.state_file import load as load_file, save
from tests.samples import backbone, logits, same, tokens, written

OPENING, RECEIPT, PROMPT = [5, 6, 7, 8, 9], [10, 11, 12], tokens(6, seed=9)
# Room for all that is written below, and pieces that cut the texts.
ROOMY: dict[str, dict[str, Any]] = {
    "full": {"chunk_tokens": 16},
    "window": {"recent": 200, "chunk_tokens": 7},
    "key-norm": {"slots": 200, "chunk_tokens": 12},
    "attention-score": {"slots": 200, "observed": 4, "chunk_tokens": 12},
}
DROPPING: dict[str, dict[str, Any]] = {
    "window": {"sinks": 2, "recent": 10, "chunk_tokens": 8},
    "key-norm": {"slots": 12, "sinks": 2, "recent": 4, "chunk_tokens": 8},
    "attention-score": {"slots": 12, "observed": 4, "chunk_tokens": 8},
}
EVERY = pytest.mark.parametrize("name", ROOMY)


def made(name: str, family: str = "llama", **options: Any) -> Method:
    return build(name, backbone(family), **{"opening": OPENING, "receipt": RECEIPT, **options})


def turn(text: Tensor, *, first: bool = True, acknowledged: bool = True) -> Tensor:
    before, after = OPENING if first else [], RECEIPT if acknowledged else []
    rows = [torch.tensor([part]).long().expand(len(text), -1) for part in (before, after)]
    return torch.cat([rows[0], text, rows[1]], dim=1)


TEXT, LATER = tokens(30, seed=1), tokens(11, seed=2)
CONVERSATION = [turn(TEXT), turn(LATER, first=False), turn(tokens(9, seed=3), first=False, acknowledged=False)]


# ---- nothing is lost ----


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3"])
@pytest.mark.parametrize("count", [1, 2, 3])
@EVERY
def test_where_all_is_kept_a_conversation_reads_as_its_tokens(name: str, count: int, family: str) -> None:
    method, texts = made(name, family, **ROOMY[name]), CONVERSATION[:count]
    whole = torch.cat(texts, dim=1)
    reading = method.read(written(method, *texts))
    assert reading.slots == whole.shape[1]
    with torch.no_grad():
        expected = Reading(backbone(family).prefill(whole))
    ours, theirs = (logits(backbone(family), each, PROMPT) for each in (reading, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@EVERY
def test_the_template_takes_no_bytes_but_between_two_texts(name: str) -> None:
    method, slot = made(name, **ROOMY[name]), backbone().slot_bytes
    held = [30, 30 + 3 + 11, 30 + 3 + 11 + 3 + 9]
    for count, slots in enumerate(held, start=1):
        state = written(method, *CONVERSATION[:count])
        assert (kv_slots(state), nbytes(state)) == (slots, slots * slot)
        assert method.prefix_slots(state) == sum(text.shape[1] for text in CONVERSATION[:count])
    # The last one is not acknowledged.
    assert (state.keys() & {"opening", "receipt"}) == {"opening"}


@pytest.mark.parametrize("name", DROPPING)
def test_the_template_is_never_dropped(name: str) -> None:
    method, own = made(name, **DROPPING[name]), backbone()
    state = written(method, turn(TEXT))
    assert kv_slots(state) == 12
    prefix, kept = method.read(state).prefix, state_to_kv(state)
    assert prefix is not None
    assert kept is not None
    assert prefix.slots == method.capacity == 5 + 12 + 3
    with torch.no_grad():
        front = own.prefill(torch.tensor([OPENING])).append(own.rotate(kept, torch.arange(5, 17)))
        expected = front.append(own.prefill(torch.tensor([RECEIPT]), front))
    for ours, theirs in zip(prefix.keys + prefix.values, expected.keys + expected.values, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_window_holds_the_last_tokens_of_the_text() -> None:
    """In the first layer, values depend on their tokens alone."""
    method, own = made("window", sinks=0, recent=4, chunk_tokens=8), backbone()
    kept = state_to_kv(written(method, turn(TEXT)))
    assert kept is not None
    values = own.project([own.embed(TEXT)] * len(own.layers)).values[0]
    torch.testing.assert_close(kept.values[0], values[:, :, -4:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", DROPPING)
def test_text_alone_is_chosen_from(name: str) -> None:
    """What is kept of a text does not depend on whether a receipt follows it."""
    method = made(name, **DROPPING[name])
    ended, open_ended = (written(method, turn(TEXT, acknowledged=last)) for last in (True, False))
    same({k: v for k, v in ended.items() if k != "receipt"}, open_ended)


@pytest.mark.parametrize("budget", [12, 91])
@pytest.mark.parametrize("name", ["window", "key-norm", "attention-score"])
def test_a_number_of_bytes_is_all_for_the_text(name: str, budget: int) -> None:
    own, text = backbone(), tokens(150, seed=4)
    options = options_for(name, own, budget * own.slot_bytes, 150)
    assert kv_slots(written(made(name, **options), turn(text))) == budget


@EVERY
def test_bare_text_has_no_template(name: str) -> None:
    method, plain = made(name, **ROOMY[name]), build(name, backbone(), **ROOMY[name])
    same(written(method, TEXT, LATER), written(plain, TEXT, LATER))


# ---- batches ----


@EVERY
def test_texts_written_together_are_as_each_alone(name: str) -> None:
    method, both = made(name, **{**ROOMY[name], **DROPPING.get(name, {})}), torch.cat([TEXT, tokens(30, seed=7)])
    texts = [turn(both), turn(tokens(8, seed=6, batch=2), first=False)]
    together = written(method, *texts)
    reading = method.read(together)
    for row, one in enumerate(unstack(together)):
        alone = written(method, *(text[row : row + 1] for text in texts))
        same(one, alone, within=1e-3)
        ours, theirs = reading.rows()[row], method.read(alone)
        assert ours.slots == theirs.slots
        seen = (logits(backbone(), each, PROMPT) for each in (ours, theirs))
        torch.testing.assert_close(next(seen), next(seen), rtol=0, atol=1e-4)


def test_a_turn_and_bare_text_of_one_length_are_not_one_batch() -> None:
    method = made("window", **ROOMY["window"])
    segments = [turn(TEXT), tokens(38, seed=5), turn(tokens(33, seed=8), acknowledged=False)]
    states = method.write_many([{}, {}, {}], segments)
    for state, segment in zip(states, segments, strict=True):
        same(state, written(method, segment), within=1e-3)


def test_what_was_made_in_inference_mode_can_be_learned_from_later() -> None:
    method = made("full")
    with torch.inference_mode():
        method.write({}, turn(TEXT))
    state = written(method, turn(TEXT))
    reading = method.read(state)
    factor = torch.ones((), requires_grad=True)
    assert isinstance(reading.prefix, KV)
    (reading.prefix.keys[0] * factor).sum().backward()
    assert factor.grad is not None


# ---- files ----


@EVERY
def test_a_state_that_holds_the_template_is_read_as_it_was(name: str) -> None:
    """Those of byheart before: its slots are among the others, and no mark says that it stands around them."""
    old, new = build(name, backbone(), **ROOMY[name]), made(name, **ROOMY[name])
    state = written(old, *CONVERSATION[:2])
    new.require_own(state, written=True)
    assert new.prefix_slots(state) == old.prefix_slots(state)
    assert torch.equal(*(logits(backbone(), method.read(state), PROMPT) for method in (old, new)))
    # What is written from here on has its receipt made again.
    after = written(new, CONVERSATION[1], start=state)
    assert (kv_slots(after), after.keys() & {"opening", "receipt"}) == (kv_slots(state) + 11, {"receipt"})
    ours, theirs = new.read(after), old.read(written(old, CONVERSATION[1], start=state))
    seen = (logits(backbone(), each, PROMPT) for each in (ours, theirs))
    torch.testing.assert_close(next(seen), next(seen), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["full", "window"])
def test_a_memory_of_before_opens_and_goes_on(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    earlier = load(str(tiny_folder), method=name, dtype="float32", opening=[], receipt=[])
    earlier.write("The cat is called Muck.")
    said, file = earlier.ask("Who is it?", max_tokens=5), tmp_path / "old.safetensors"
    stored = {key: value for key, value in earlier.header.options.items() if key not in ("opening", "receipt")}
    save(file, earlier.state, replace(earlier.header, options=stored, slots=earlier.reading.slots))
    session, other = open_state(file, model=earlier.backbone), load(earlier.backbone, method=name)
    other.load(file)
    for opened in (session, other):
        assert opened.header.options["opening"]
        assert opened.ask("Who is it?", max_tokens=5) == said
    held = session.bytes
    session.write("And the dog, Rex.")
    assert session.bytes - held == len("And the dog, Rex.") * session.backbone.slot_bytes
    session.save(file)
    again = open_state(file, model=earlier.backbone)
    assert again.ask("Who is it?", max_tokens=5) == session.ask("Who is it?", max_tokens=5)


def test_a_memory_of_another_template_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    session = load(str(tiny_folder), method="full", opening=[5, 6])
    session.write("The cat.")
    session.save(tmp_path / "cat.safetensors")
    with pytest.raises(StateMismatchError, match="other options"):
        load(session.backbone, method="full").load(tmp_path / "cat.safetensors")


def test_a_session_keeps_the_text_alone_and_answers_as_before(tiny_folder: Path, tmp_path: Path) -> None:
    session = load(str(tiny_folder), method="full", dtype="float32")
    plain = load(session.backbone, method="full", opening=[], receipt=[])
    for one in (session, plain):
        one.write("The cat is called Muck.")
        one.write_turn("And the dog?", "Rex.")
    assert session.ask("Who is it?", max_tokens=8) == plain.ask("Who is it?", max_tokens=8)
    opening = len(session.encoder.template_tokens()["opening"])
    assert plain.bytes - session.bytes == opening * session.backbone.slot_bytes
    session.save(tmp_path / "cat.safetensors")
    state, header = load_file(tmp_path / "cat.safetensors")
    assert header.slots == session.reading.slots == plain.reading.slots
    same(state, session.state)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"receipt": torch.zeros(1, 1, dtype=torch.int32)}, "'receipt' has shape"),
        ({"receipt": torch.zeros(1, 0)}, "'receipt' is torch.float32"),
        ({"middle": torch.zeros(1, 0, dtype=torch.int32)}, "'middle' is none of its"),
    ],
)
def test_marks_that_are_none_are_refused(change: dict[str, Tensor], match: str) -> None:
    method = made("full")
    state = {**written(method, turn(TEXT)), **change}
    with pytest.raises(ValueError, match=match):
        method.require_own(state, written=True)


def test_a_mark_without_a_template_is_refused() -> None:
    state = written(made("full"), turn(TEXT))
    with pytest.raises(ValueError, match="'opening' is none of its"):
        build("full", backbone(), receipt=RECEIPT).require_own(state, written=True)


def test_a_file_that_leaves_the_template_no_position_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    session = load(str(tiny_folder), method="full")
    session.write("a")
    most = session.backbone.positions
    state = {name: part.expand(-1, -1, most, -1) if part.dim() == 4 else part for name, part in session.state.items()}
    save(tmp_path / "long.safetensors", state, replace(session.header, slots=most))
    with pytest.raises(CorruptStateError, match="more slots than the model has positions"):
        session.load(tmp_path / "long.safetensors")


def test_tokens_that_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(UsageError, match="opening holds token 128"):
        made("window", opening=[128])
