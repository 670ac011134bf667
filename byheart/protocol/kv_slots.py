"""Rows of a text's own keys and values that a memory keeps: how they are written, read, chosen, placed and counted.

Kept keys are un-rotated, as of position 0, and a row takes the position of its place in the memory: text of any length
is read at positions the model knows, and rounding does not build up over writes. Which rows are chosen may differ in
every layer and head. Nothing here knows why a row is chosen.

Dimensions: B batch, H key-value heads, M rows, K rows that are kept, T tokens, W head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from byheart.errors import BudgetError
from byheart.model.backbone import Backbone
from byheart.model.reading import KV, Reading
from byheart.protocol.state import State


@torch.no_grad()
def write_segments(
    state: State, pieces: Iterable[Int[Tensor, "B T"]], after: Callable[[Tensor, KV | None], KV]
) -> State:
    """The rows once all pieces were read, one behind the other.

    Args:
        after: the rows that are kept once a piece was read behind those that are held.
    """
    held = state_to_kv(state)
    for piece in pieces:
        held = after(piece, held)
    return kv_to_state(held) if held else state


def read_slots(backbone: Backbone, state: State) -> Reading:
    """The rows of a state at positions 0 to M - 1."""
    held = state_to_kv(state)
    return Reading(rotate_to_slots(backbone, held), batch=held.batch) if held else Reading()


def concat(held: KV | None, new: KV) -> KV:
    """The held rows, if any, and new ones behind them."""
    return held.append(new) if held else new


def rotate_to_slots(backbone: Backbone, held: KV) -> KV:
    """Un-rotated rows at positions 0 to M - 1."""
    return backbone.turn(held, torch.arange(held.slots, device=held.keys[0].device))


def prefill_unrotated(backbone: Backbone, piece: Int[Tensor, "B T"], held: KV | None) -> KV:
    """The rows of ``piece``, un-rotated, as the model reads it behind ``held``."""
    new = backbone.prefill(piece, rotate_to_slots(backbone, held) if held else None)
    start = held.slots if held else 0
    return backbone.turn(new, -torch.arange(start, start + new.slots, device=new.keys[0].device))


def top_indices(scores: Float[Tensor, "B H M"], rows: int, *, sinks: int = 0, recent: int = 0) -> Int[Tensor, "B H K"]:
    """The places, in order, of the ``rows`` rows of the highest scores; the first and the last are always among them.

    Args:
        sinks, recent: how many first and last rows are kept whatever their scores.
    """
    scores, length = scores.float(), scores.shape[2]
    place = torch.arange(length, device=scores.device)
    scores = scores.masked_fill((place < sinks) | (place >= length - recent), math.inf)
    return scores.topk(min(rows, length)).indices.sort().values


def gather(held: KV, places: Sequence[Int[Tensor, "B H K"]]) -> KV:
    """The rows of ``held`` at each layer's own places."""

    def taken(part: Tensor, where: Tensor) -> Tensor:
        return part.gather(2, where[..., None].expand(-1, -1, -1, part.shape[3]))

    return KV(tuple(map(taken, held.keys, places)), tuple(map(taken, held.values, places)))


# ---- counting ----


def slots_within(backbone: Backbone, budget: int, *, name: str, least: int = 1) -> int:
    """How many rows of keys and values take ``budget`` bytes at most. Raises BudgetError below ``least`` rows."""
    rows = budget // backbone.slot_bytes
    if rows < least:
        raise BudgetError(name, budget, least * backbone.slot_bytes)
    return rows


def slots_of(tokens: int, *, every: int, sinks: int) -> int:
    """Into how many rows what follows the sinks of ``tokens`` tokens goes: one for every ``every``, at least one."""
    return min(tokens - sinks, max(1, math.ceil(tokens / every) - sinks))


def every_within(backbone: Backbone, budget: int, tokens: int, *, name: str, sinks: int, chunk_tokens: int) -> int:
    """The least ``every`` at which a text of ``tokens`` tokens, read in chunks, leaves ``budget`` bytes of rows.

    Raises BudgetError where even one row a chunk is too much.
    """
    chunks = [min(chunk_tokens, tokens - start) for start in range(0, tokens, chunk_tokens)]

    def rows(every: int) -> int:
        first = min(sinks, chunks[0])
        return first + sum(slots_of(n, every=every, sinks=0 if at else first) for at, n in enumerate(chunks))

    most = slots_within(backbone, budget, name=name, least=rows(chunk_tokens))
    return next(every for every in range(1, chunk_tokens + 1) if rows(every) <= most)


def kv_to_state(kv: KV) -> dict[str, Tensor]:
    """Keys and values as tensors of a state, ``keys.0``, ``values.0`` and so on."""
    return {
        f"{part}.{index}": tensor
        for part, tensors in (("keys", kv.keys), ("values", kv.values))
        for index, tensor in enumerate(tensors)
    }


def state_to_kv(state: State) -> KV | None:
    """The keys and values in a state, or None where it has none."""
    layers = sum(name.startswith("keys.") for name in state)
    if layers == 0:
        return None
    return KV(*(tuple(state[f"{part}.{index}"] for index in range(layers)) for part in ("keys", "values")))
