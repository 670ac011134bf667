"""The rows whose keys are shortest (Devoto et al. 2024, arXiv 2406.11430), which needs no training and no attention.

A key of small L2 norm tends to get much attention, whatever asks, so in every layer and key-value head the
rows with the shortest keys are kept and the others dropped. The first rows stay too, as attention sinks, and the last
ones, which are the context of what comes next. Turning a key does not change its norm.

State: `keys.l`, `values.l` (B, H, M, W) a layer, keys as of position 0; M <= rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from byheart.backbone import Backbone
from byheart.errors import UsageError
from byheart.kept import best, chosen, joined, placed_reading, read_behind, rows_within, written
from byheart.memory import Memory, cut, positive
from byheart.reading import KV, Reading
from byheart.state import State


class KeyNorm(Memory):
    """Keeps ``rows`` rows a layer and head: the first, the last, and those of the shortest keys between them.

    Args:
        sinks: rows kept from the very beginning.
        recent: rows kept from the end.
        chunk_tokens: how many tokens are read at once behind what is kept; rows are dropped after each.
    """

    name = "key-norm"
    keeps_turns = True

    def __init__(
        self, backbone: Backbone, *, rows: int = 512, sinks: int = 4, recent: int = 32, chunk_tokens: int = 1024
    ) -> None:
        Memory.__init__(self, backbone)
        positive(rows=rows, chunk_tokens=chunk_tokens)
        if min(sinks, recent) < 0 or sinks + recent > rows:
            raise UsageError(f"sinks and recent must be 0 or more and within rows, {rows}; they are {sinks}, {recent}.")
        self.rows, self.sinks, self.recent, self.chunk_tokens = rows, sinks, recent, chunk_tokens
        self.capacity = rows

    @classmethod
    def sized(cls, backbone: Backbone, budget: int, tokens: int) -> dict[str, Any]:
        """As many rows as fit; of few, a quarter each are first and last ones."""
        rows = rows_within(backbone, budget, name=cls.name)
        return {"rows": rows, "sinks": min(4, rows // 4), "recent": min(32, rows // 4)}

    def init(self) -> State:
        """No rows."""
        return {}

    def pieces(self, segment: Tensor) -> Iterator[Tensor]:
        """Parts of at most ``chunk_tokens`` tokens."""
        return cut(segment, longest=self.chunk_tokens)

    def write(self, state: State, segment: Tensor) -> State:
        """Read ``segment`` behind what is held and drop the rows of long keys."""
        return written(state, self.pieces(segment), self._after)

    def read(self, state: State) -> Reading:
        """The rows at positions 0 to M - 1."""
        return placed_reading(self.backbone, state)

    def _after(self, piece: Tensor, held: KV | None) -> KV:
        new = read_behind(self.backbone, piece, held)
        return self._kept(joined(held, new))

    def _kept(self, held: KV) -> KV:
        if held.length <= self.rows:
            return held
        norms = [keys.float().norm(dim=-1) for keys in held.keys]
        return chosen(held, [best(-norm, self.rows, sinks=self.sinks, recent=self.recent) for norm in norms])
