"""Many segments of one text in one forward pass, each a row of the batch, as if they had been read one by one.

A recurrence over compressed segments has no dependency inside a layer: a segment sees what earlier segments left in
the *same* layer (CCM, arXiv 2312.03414, section 3.3). So all segments can run side by side, and only attention must
know of it: a row sees its own tokens, and the marked last columns of the rows before it. No mask over the whole text
is ever built; the cost is that of the segments alone plus their memories.

What a row sees, three segments of three tokens with one mark each (M), after `concat`:

    row | marks of rows before | own tokens
     0  |  0 0 0               | causal
     1  |  1 0 0               | causal
     2  |  1 1 0               | causal

Dimensions: B texts, S segments, H key-value heads, T tokens a row, N marks a row, W head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Together:
    """How the rows of a batch belong together: B texts of ``segments`` rows each, text by text.

    ``marks``: so many last columns of a row are its memory. ``mean``: a row sees the average of the marks before it
    instead of all of them. ``recurrent``: rows see marks at all. ``first`` (B,): the column of each text's first token
    in its first row, seen by all its rows; none is not shown.
    """

    segments: int
    marks: int
    mean: bool
    recurrent: bool
    first: Tensor | None = None


_active: ContextVar[Together | None] = ContextVar("together", default=None)


@contextmanager
def together(rows: Together) -> Iterator[None]:
    """Inside: attention lets rows see one another's marks. After: as before."""
    token = _active.set(rows)
    try:
        yield
    finally:
        _active.reset(token)


def active() -> Together | None:
    """What is in force, if anything."""
    return _active.get()


def with_memory(key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys and values (B * S, H, T, W) with what each row sees of the others before them, and the mask for both."""
    how = _active.get()
    if how is None:
        return key, value, mask
    columns = [part for part in (_shown_first(key, value, how), _shown_marks(key, value, how)) if part is not None]
    if not columns:
        return key, value, mask
    if mask is None:
        tokens = key.shape[2]
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=key.device).tril()[None, None]
    own = mask.expand(key.shape[0], -1, -1, -1)
    seen = [shown[:, None, None, :].expand(-1, *own.shape[1:3], -1) for _, _, shown in columns]
    return (
        torch.cat([*(k for k, _, _ in columns), key], dim=2),
        torch.cat([*(v for _, v, _ in columns), value], dim=2),
        torch.cat([*seen, own], dim=3),
    )


def _shown_marks(key: Tensor, value: Tensor, how: Together) -> tuple[Tensor, Tensor, Tensor] | None:
    if not how.recurrent:
        return None
    keys, values = (_marks(part, how) for part in (key, value))
    row = torch.arange(how.segments, device=key.device)
    if how.mean:
        keys, values = (_means_before(part) for part in (keys, values))
        shown = (row > 0)[:, None].expand(-1, how.marks)
    else:
        keys, values = (_all_for_each(part) for part in (keys, values))
        shown = (row[:, None] > row[None, :]).repeat_interleave(how.marks, dim=1)
    texts = key.shape[0] // how.segments
    return keys, values, shown.repeat(texts, 1)


def _marks(part: Tensor, how: Together) -> Tensor:
    """(B, S, H, N, W)."""
    marks = part[:, :, -how.marks :]
    return marks.reshape(-1, how.segments, *marks.shape[1:])


def _means_before(marks: Tensor) -> Tensor:
    """For each row the mean over the rows before it, (B * S, H, N, W); the first row's is not shown."""
    counts = torch.arange(1, marks.shape[1] + 1, device=marks.device)[:, None, None, None]
    means = (marks.float().cumsum(1) / counts).to(marks.dtype)
    return torch.cat([means[:, :1], means[:, :-1]], dim=1).flatten(0, 1)


def _all_for_each(marks: Tensor) -> Tensor:
    """For each row the marks of all rows of its text, (B * S, H, S * N, W)."""
    texts, segments, heads, each, width = marks.shape
    joined = marks.transpose(1, 2).reshape(texts, 1, heads, segments * each, width)
    return joined.expand(-1, segments, -1, -1, -1).flatten(0, 1)


def _shown_first(key: Tensor, value: Tensor, how: Together) -> tuple[Tensor, Tensor, Tensor] | None:
    if how.first is None:
        return None
    texts = key.shape[0] // how.segments
    rows = torch.arange(texts, device=key.device) * how.segments
    keys, values = (
        part[rows, :, how.first][:, None, :, None].expand(-1, how.segments, -1, -1, -1) for part in (key, value)
    )
    shown = (torch.arange(how.segments, device=key.device) > 0)[:, None].repeat(texts, 1)
    return keys.flatten(0, 1), values.flatten(0, 1), shown
