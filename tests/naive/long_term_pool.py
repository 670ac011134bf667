"""The twin of ``byheart.methods.long_term_pool``: lists of hidden states, read by a full pass that searches as it goes.

Written from M+'s paper and what is known of its released code (arXiv 2502.00592, sections 3.2 and 3.3). Nothing but
hidden states is kept; keys of attention are made again at every pass.

Dimensions: T tokens, D hidden, K renewed slots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.naive.latent_pool import OrderedPool

Project = Callable[[int, Tensor], Tensor]


@dataclass
class Row:
    """A dropped slot of one layer: its hidden state and address, both vectors, when it was written, its lives."""

    hidden: Tensor
    address: Tensor
    born: int
    lives: float


class OrderedLongTermPool:
    """``query`` and ``address`` project hidden states (n, D) at a layer's input; ``recalled`` counts slots here."""

    def __init__(
        self,
        pool: OrderedPool,
        query: Project,
        address: Project,
        *,
        recalled: int,
        merge_every: int,
        lives: float,
        decay: float,
    ) -> None:
        self.pool, self.query, self.address = pool, query, address
        self.recalled, self.merge_every, self.lives, self.decay = recalled, merge_every, lives, decay
        layers = len(pool.first)
        self.born: list[list[int]] = [[] for _ in range(layers)]
        self.cache: list[list[Row]] = [[] for _ in range(layers)]
        self.long: list[list[Row]] = [[] for _ in range(layers)]
        self.writes = 0

    def write(self, tokens: Tensor, survivors: Tensor) -> None:
        """Write into the pool; what does not survive in a layer goes into its cache, and sometimes on from there."""
        before = self.pool.pool
        self.pool.write(tokens, survivors)
        self.writes += 1
        for layer, stay in enumerate(survivors.tolist()):
            for place, hidden in enumerate(before[layer]):
                if place not in stay:
                    address = self.address(layer, hidden[None])[0]
                    self.cache[layer].append(Row(hidden, address, self.born[layer][place], self.lives))
            new = self.pool.pool.shape[1] - len(stay)
            births = [self.writes * self.pool.slots - rank for rank in reversed(range(new))]
            self.born[layer] = [self.born[layer][place] for place in stay] + births
        if self.writes % self.merge_every == 0:
            self.long = [self._merged(layer) for layer in range(len(self.long))]
            self.cache = [[] for _ in self.cache]

    def _merged(self, layer: int) -> list[Row]:
        rows = self.long[layer] + self.cache[layer]
        stay = [row for row in rows if row.lives - self.decay > 0.01]
        if len(stay) <= self.recalled:
            return rows
        return [Row(row.hidden, row.address, row.born, row.lives - self.decay) for row in stay]

    def found(self, layer: int, prompt: Tensor) -> list[Row]:
        """The slots that a prompt's hidden states (T, D) find, the oldest first."""
        queries, rows = self.query(layer, prompt), self.long[layer] + self.cache[layer]

        def score(row: Row) -> float:
            return sum(float(torch.sigmoid(query @ row.address)) for query in queries) / len(queries)

        return sorted(sorted(rows, key=score, reverse=True)[: self.recalled], key=lambda row: row.born)

    @torch.no_grad()
    def read(self, tokens: Tensor) -> Tensor:
        """Logits (T, V) of ``tokens`` (1, T), which search each layer before they enter it."""
        model: Any = self.pool.reader
        waiting = len(self.long[0]) + len(self.cache[0])
        front = 1 + min(self.recalled, waiting) + self.pool.pool.shape[1]
        text = model.get_input_embeddings()(tokens)

        def enter(index: int, hidden: Tensor) -> Tensor:
            rows = [row.hidden for row in self.found(index, hidden[0, front:])]
            return torch.cat(
                [self.pool.first[index], *(row[None] for row in rows), self.pool.pool[index], hidden[0, front:]]
            )[None]

        handles = [
            layer.register_forward_pre_hook(lambda module, args, n=n: (enter(n, args[0]), *args[1:]))
            for n, layer in enumerate(model.get_decoder().layers)
        ]
        try:
            embeds = torch.cat([text.new_zeros(1, front, text.shape[2]), text], dim=1)
            logits: Tensor = model(inputs_embeds=embeds, use_cache=False).logits[0, front:]
        finally:
            for handle in handles:
                handle.remove()
        return logits
