"""Keys and values turned round in memory: the slots of each number side by side, not the numbers of each slot.

PyTorch's attention on a CPU gives a thread whole heads, so where threads do not divide the heads, some wait. A step's
few queries may as well be two products with long rows, for which MKL divides the slots instead: that needs them turned.
Shapes stay as they were, so everything else takes turned slots as any others.

    as made    slot 0: a b c   slot 1: a b c   slot 2: a b c
    turned     a: 0 1 2        b: 0 1 2        c: 0 1 2

Dimensions: B batch, H key-value heads, T queries, M slots, W head width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from byheart.model.few_rows import is_multiplied_by_mkl
from byheart.model.reading import KV

# More queries are worth turning the slots back for PyTorch's attention.
MOST_QUERIES = 96
# Fewer slots take attention less time than calling two products does.
FEWEST_SLOTS = 1000


@torch.no_grad()
def turn(kv: KV) -> None:
    """Turn slots round in place, where that is faster; whoever else holds these tensors holds no second copy."""
    for part in (*kv.keys, *kv.values):
        if _is_faster_turned(part):
            turned = part.mT.contiguous().mT
            part.set_(turned.untyped_storage(), 0, turned.shape, turned.stride())


def _is_faster_turned(part: Float[Tensor, "B H M W"]) -> bool:
    """Whether it was measured to be: `docs/explanation/log.md`, 1 December 2026."""
    _, heads, slots, _ = part.shape
    is_uneven = heads % torch.get_num_threads() != 0
    may_be = is_multiplied_by_mkl(part) and not (part.requires_grad or is_turned(part))
    return may_be and is_uneven and slots >= FEWEST_SLOTS


def is_turned(part: Float[Tensor, "B H M W"]) -> bool:
    """Whether the slots of a number lie side by side."""
    return part.stride(-2) == 1 and part.stride(-1) != 1


def attend_turned(
    query: Float[Tensor, "B H T W"],
    key: Float[Tensor, "B H M W"],
    value: Float[Tensor, "B H M W"],
    mask: Float[Tensor, "b h t M"] | None,
    *,
    scaling: float,
) -> tuple[Float[Tensor, "B H T W"], Float[Tensor, "B H T"]]:
    """What queries take from keys, and the logarithm of what they give to all of these, unnormalised."""
    scores = torch.matmul(query * scaling, key.mT)
    if mask is not None:
        scores += mask
    shares = torch.softmax(scores, dim=-1)
    weight = scores.amax(-1) - shares.amax(-1).log()
    return torch.matmul(shares, value), weight
