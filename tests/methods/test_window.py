"""A window over the text: the first tokens and the last ones, at positions the model knows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from byheart.errors import InputError, UsageError
from byheart.methods.full import Full
from byheart.methods.window import Window
from byheart.model.backbone import Backbone
from byheart.model.reading import KV, Reading
from byheart.protocol.kv_slots import state_to_kv
from byheart.testing import tiny_backbone
from tests.samples import ALL_FAMILIES, backbone, logits, tokens, written

PROMPT = tokens(5, seed=9)


def joined(own: Backbone, text: Tensor, *, sinks: int, recent: int, chunk: int) -> KV:
    """The same window, rotated from absolute positions at every step."""
    kept: KV | None = None
    for start in range(0, text.shape[1], chunk):
        piece = text[:, start : start + chunk]
        held = kept.slots if kept else 0
        front = own.rotate(kept, torch.arange(held)) if kept else None
        new = own.rotate(own.prefill(piece, front), -torch.arange(held, held + piece.shape[1]))
        kept = kept.append(new) if kept else new
        if kept.slots > sinks + recent:
            slots = [*range(sinks), *range(kept.slots - recent, kept.slots)]
            kept = KV(tuple(k[:, :, slots] for k in kept.keys), tuple(v[:, :, slots] for v in kept.values))
    assert kept is not None
    return own.rotate(kept, torch.arange(kept.slots))


@torch.no_grad()
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_text_that_fits_reads_as_the_text(family: str) -> None:
    own, text = backbone(family), tokens(20, seed=1)
    made = Window(own, sinks=2, recent=18, chunk_tokens=7)
    ours = logits(own, made.read(written(made, text)), PROMPT)
    torch.testing.assert_close(ours, own.model(torch.cat([text, PROMPT], dim=1)).logits[:, 20:], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("sinks", "recent", "chunk"), [(2, 10, 4), (0, 8, 8), (4, 6, 3), (1, 5, 20), (3, 1, 1)])
def test_a_long_text_leaves_its_first_and_last_slots(sinks: int, recent: int, chunk: int) -> None:
    own, text = backbone(), tokens(45, seed=2)
    made = Window(own, sinks=sinks, recent=recent, chunk_tokens=chunk)
    seen = made.read(written(made, text)).prefix
    expected = joined(own, text, sinks=sinks, recent=recent, chunk=chunk)
    assert seen is not None
    assert seen.slots == sinks + recent == made.capacity
    torch.testing.assert_close((seen.keys, seen.values), (expected.keys, expected.values), rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_window_holds_these_tokens() -> None:
    """In the first layer, a key depends on its token alone: the window's are those of the first and last tokens."""
    own, text = backbone(), tokens(45, seed=2)
    made = Window(own, sinks=2, recent=6, chunk_tokens=5)
    held = state_to_kv(written(made, text))
    assert held is not None
    layer = own.project([own.embed(text)] * len(own.layers))
    slots = [0, 1, *range(39, 45)]
    torch.testing.assert_close(held.keys[0], layer.keys[0][:, :, slots], rtol=0, atol=1e-5)
    torch.testing.assert_close(held.values[0], layer.values[0][:, :, slots], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_text_longer_than_the_model_reads_is_no_trouble() -> None:
    own = tiny_backbone(max_position_embeddings=64)
    made = Window(own, sinks=2, recent=20, chunk_tokens=16)
    state = written(made, tokens(500, seed=3))
    assert made.read(state).slots == 22
    assert logits(own, made.read(state), PROMPT).isfinite().all()
    with pytest.raises(InputError, match=r"text has 500 tokens in all, but the model reads at most 64; .*fixed size"):
        Full(own).write({}, tokens(500, seed=3))


@torch.no_grad()
def test_many_writes_round_each_slot_once() -> None:
    """A slot stays un-rotated, so it is as exact after sixty writes as after one."""
    small = backbone("llama", torch.bfloat16)
    made = Window(small, sinks=4, recent=4, chunk_tokens=4)
    state = written(made, tokens(4, seed=0))
    first = state_to_kv(state)
    for n in range(60):
        state = made.write(state, tokens(4, seed=n))
    last = state_to_kv(state)
    assert first is not None
    assert last is not None
    assert all(torch.equal(one, other) for one, other in zip(first.keys, last.slice(0, 4).keys, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_how_a_full_text_is_chunked_changes_nothing(chunk: int) -> None:
    own, text = backbone(), tokens(20, seed=4)
    made = Full(own, chunk_tokens=chunk)
    expected = logits(own, Reading(own.prefill(text)), PROMPT)
    torch.testing.assert_close(logits(own, made.read(written(made, text)), PROMPT), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sinks": -1}, "sinks must be 0 or more; it is -1"),
        ({"recent": 0}, "recent must be above 0; it is 0"),
        ({"chunk_tokens": 0}, "chunk_tokens must be above 0; it is 0"),
    ],
)
def test_options_that_make_no_window_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Window(backbone(), **options)


def test_full_needs_a_chunk() -> None:
    with pytest.raises(UsageError, match="chunk_tokens must be above 0; it is -5"):
        Full(backbone(), chunk_tokens=-5)
