"""Segments attended a few at a time, and what that keeps, against all of them attended at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from byheart.model import segment_attention as module
from byheart.model.attention import grouped_attention
from byheart.model.segment_attention import Together, attended, together

TEXTS, SEGMENTS, MARKS, TOKENS = 2, 7, 2, 6
KINDS = [
    {"mean": False, "recurrent": True},
    {"mean": True, "recurrent": True},
    {"mean": False, "recurrent": True, "first": torch.tensor([2, 0])},
    {"mean": True, "recurrent": True, "first": torch.tensor([2, 0])},
    {"mean": False, "recurrent": False, "first": torch.tensor([2, 0])},
]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return grouped_attention(query, key, value, mask, scaling=0.3)


def parts(segments: int = SEGMENTS) -> list[Tensor]:
    """Queries, keys and values of all rows, two query heads for each key head."""
    generator = torch.Generator().manual_seed(0)
    rows = TEXTS * segments
    shapes = [(rows, 4, TOKENS, 8), (rows, 2, TOKENS, 8), (rows, 2, TOKENS, 8)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def padded() -> Tensor:
    """Causal, and of every second row the first token hidden."""
    mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril().expand(TEXTS * SEGMENTS, 1, -1, -1).clone()
    mask[1::2, :, 1:, 0] = False
    return mask


def naive(how: Together, given: list[Tensor], mask: Tensor | None) -> Tensor:
    """Row after row: what it sees of others is put in front of its own, with no mask for it."""
    query, key, value = given
    own = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril().expand(len(key), 1, -1, -1) if mask is None else mask
    out = []
    for row in range(len(key)):
        start = row - row % how.segments
        seen: list[list[Tensor]] = [[], []]
        for columns, part in zip(seen, (key, value), strict=True):
            if row > start and how.first is not None:
                at = int(how.first[row // how.segments])
                columns.append(part[start, :, at : at + 1])
            marks = part[start:row, :, -how.marks :]
            if row > start and how.recurrent:
                columns.extend([marks.mean(0)] if how.mean else marks.unbind(0))
        keys, values = (
            torch.cat([*columns, part[row]], dim=1)[None] for columns, part in zip(seen, (key, value), strict=True)
        )
        shown = torch.ones(1, 1, TOKENS, keys.shape[2] - TOKENS, dtype=torch.bool)
        out.append(attend(query[row : row + 1], keys, values, torch.cat([shown, own[row : row + 1]], dim=3)))
    return torch.cat(out)


@pytest.mark.parametrize("most", [1, 1000, 1 << 20], ids=["one by one", "some", "all at once"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "kind", KINDS, ids=lambda kind: "-".join(f"{name}" for name, on in kind.items() if on is not False)
)
def test_segments_attended_a_few_at_a_time_are_those_of_row_after_row(
    kind: dict[str, object], masked: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_SCORES", most)
    how = Together(SEGMENTS, MARKS, **kind)  # type: ignore[arg-type]
    mask = padded() if masked else None
    ours, theirs = parts(), parts()
    with together(how):
        out = attended(attend, *ours, mask)
    expected = naive(how, theirs, mask)
    # A mean is made in float32.
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6 if kind["mean"] else 1e-12)
    # Gradients are made after the block has ended, when what belongs together is no longer known.
    for one in (out, expected):
        one.sin().sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-5 if kind["mean"] else 1e-12)


def kept_bytes(segments: int) -> int:
    """What a pass over one text keeps for its gradients."""
    kept: dict[int, int] = {}

    def note(part: Tensor) -> Tensor:
        kept[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
        return part

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda part: part),
        together(Together(segments, 4, False, True)),
    ):
        out = attended(attend, *parts(segments // TEXTS * TEXTS), None)
    assert out.requires_grad
    return sum(kept.values())


def test_what_is_kept_for_the_gradients_grows_with_the_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SCORES", 1 << 12)
    assert kept_bytes(64) < 2.05 * kept_bytes(32)
    monkeypatch.setattr(module, "MOST_SCORES", 1 << 40)
    assert kept_bytes(64) > 3 * kept_bytes(32)


def test_without_gradients_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SCORES", 1000)
    with together(Together(SEGMENTS, MARKS, False, True)):
        taught = attended(attend, *parts(), None)
        with torch.no_grad():
            assert torch.equal(attended(attend, *parts(), None), taught)


def test_outside_attention_is_left_alone() -> None:
    given = parts()
    assert torch.equal(attended(attend, *given, None), attend(*given, None))
    with together(Together(SEGMENTS, MARKS, False, False)):
        assert torch.equal(attended(attend, *given, None), attend(*given, None))
