"""Many segments of one text in one forward pass, each a row of the batch, as if they had been read one by one.

A recurrence over compressed segments has no dependency inside a layer: a segment sees what earlier segments left in
the *same* layer (CCM, arXiv 2312.03414, section 3.3). So all segments can run side by side, and only attention must
know about it: a row sees its own tokens, and the marked last columns of the rows before it. No mask over the whole text
is ever built; the cost is that of the segments alone plus their memories.

Every row needs its own copy of the marks before it, and over a long text these and their scores outgrow the text. So
where there are many, attention takes a few segments at a time, with the marks before the last of them, and computes
its intermediates again for the gradients: a layer keeps queries, keys and values, and memory grows with the text alone.

What a row sees, three segments of three tokens with one mark each, after `concat`:

    row | marks of rows before | own tokens
     0  |  0 0                 | causal
     1  |  1 0                 | causal
     2  |  1 1                 | causal

Dimensions: B texts, S segments, C segments at a time, H key-value heads, G query heads for each, T tokens per
row, K keys of a row's own, N marks per row, M columns of other rows, W head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from byheart.model.observed_attention import causal_mask

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

# How many are computed at a time, and in a short text kept: 2 MiB in bfloat16.
MOST_SCORES = 1 << 20


@dataclass(frozen=True)
class Together:
    """How the rows of a batch belong together: B texts of ``segments`` rows each, text by text.

    ``marks``: how many last columns of a row are its memory. ``mean``: a row sees the average of the marks before it
    instead of all of them. ``recurrent``: rows see marks at all. ``first`` (B,): the column of each text's first token
    in its first row, seen by all its rows; None shows no such token.
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


def attended(attend: Attend, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """What ``attend`` gives; inside ``together``, with what rows see of one another.

    ``query`` (B * S, H * G, T, W), ``key`` and ``value`` (B * S, H, K, W), ``mask`` (B * S or 1, 1, T, K), True where a
    query sees a key, causal without one there; ``attend`` takes these and gives (B * S, T, H * G, W).
    """
    layout = _active.get()
    if layout is None or not (layout.recurrent or layout.first is not None):
        return attend(query, key, value, mask)
    if mask is None:
        mask = causal_mask(query, key)
    size = _segments_at_once(query, key, layout)
    by_text = [
        part.view(-1, layout.segments, *part.shape[1:])
        for part in (query, key, value, mask.expand(len(key), -1, -1, -1))
    ]
    others = [_of_others(part, layout) for part in by_text[1:3]]
    # Split, not sliced: the gradient of each slice would be as large as the whole tensor.
    parts = [torch.split(part, size, dim=1) for part in by_text]
    parts += [torch.split(part, size, dim=1) if part.shape[1] > 1 else (part,) * len(parts[0]) for part in others]
    chunks = list(zip(*parts, strict=True))
    if len(chunks) == 1:
        # Small enough to keep: computing it again would cost a short text a few percent of its step.
        return _attend_some(attend, layout, 0, *chunks[0]).flatten(0, 1)
    out = [
        checkpoint(_attend_some, attend, layout, number * size, *chunk, use_reentrant=False)
        for number, chunk in enumerate(chunks)
    ]
    return torch.cat(out, dim=1).flatten(0, 1)


def _attend_some(
    attend: Attend,
    layout: Together,
    start: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """Segments ``start`` to ``start`` + C of every text (B, C, ...), ``keys`` and ``values`` those of other rows."""
    segments = key.shape[1]
    front = int(layout.first is not None)
    # The last segment's own marks are seen by none of these rows.
    columns = min(keys.shape[3], front + (start + segments - 1) * layout.marks)
    column, row = (torch.arange(count, device=key.device) for count in (columns, segments))
    made_by = ((column - front) // layout.marks).clamp(min=0)
    shown = (made_by < start + row[:, None])[None, :, None, None, :].expand(*mask.shape[:-1], -1)

    def after_others(part: Tensor, others: Tensor) -> Tensor:
        seen = others[:, :, :, :columns].expand(-1, segments, -1, -1, -1)
        return torch.cat([seen, part], dim=3).flatten(0, 1)

    out = attend(
        query.flatten(0, 1),
        after_others(key, keys),
        after_others(value, values),
        torch.cat([shown, mask], dim=-1).flatten(0, 1),
    )
    return out.reshape(-1, segments, *out.shape[1:])


def _segments_at_once(query: Tensor, key: Tensor, layout: Together) -> int:
    """As many as keep the scores few, spread evenly."""
    columns = key.shape[2] + layout.marks * (1 if layout.mean else layout.segments)
    scores = query[..., 0].numel() // layout.segments * columns
    return math.ceil(layout.segments / math.ceil(layout.segments / max(1, MOST_SCORES // scores)))


def _of_others(part: Tensor, layout: Together) -> Tensor:
    """The columns (B, S, H, K, W) that rows see of others: the first token's, then marks, (B, S or 1, H, M, W).

    Columns of one segment serve all rows of a text, or each row has its own; which are hidden is not decided here.
    """
    columns = []
    if layout.first is not None:
        texts = torch.arange(len(part), device=part.device)
        columns.append(part[texts, 0, :, layout.first][:, None, :, None])
    if layout.recurrent:
        marks = part[:, :, :, -layout.marks :]
        columns.append(_means_before(marks) if layout.mean else marks.transpose(1, 2).flatten(2, 3)[:, None])
    rows = columns[-1].shape[1]
    return torch.cat([column.expand(-1, rows, -1, -1, -1) for column in columns], dim=3)


def _means_before(marks: Tensor) -> Tensor:
    """For each row (B, S, H, N, W) the mean over the rows before it; the first row has none before it."""
    counts = torch.arange(1, marks.shape[1] + 1, device=marks.device)[:, None, None, None]
    means = (marks.float().cumsum(1) / counts).to(marks.dtype)
    return torch.cat([means[:, :1], means[:, :-1]], dim=1)
