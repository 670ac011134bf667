"""Batches among which targets of earlier ones come again, with nothing to write (MemoryLLM, algorithm 1).

What was read a while ago is predicted from the pool as it is now, so that a pool learns to keep it. After an ordinary
batch a coin decides whether the next one is a revisit; a revisit is followed by an ordinary batch, whose target is the
next to come again. All is a function of the seed and the batch's number, so that a run resumes where it was.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from byheart.protocol.episode import Batch


class Revisits:
    """Batches with revisits among them; call it with a batch's number.

    Args:
        chance: of a revisit after an ordinary batch; 0.5 as published.
        processes: how many take turns: each has a pool of its own, and revisits what it wrote itself.
    """

    def __init__(self, batches: Callable[[int], Batch], chance: float, seed: int, *, processes: int = 1) -> None:
        self.batches, self.chance, self.seed, self.processes = batches, chance, seed, processes
        # Of each process, for each of its batches: which one's target comes again there; None where it is ordinary.
        self._plans: list[list[int | None]] = [[] for _ in range(processes)]
        self._cached = [0] * processes

    def __call__(self, number: int) -> Batch:
        """The batch of a number, or the target of an earlier one without segments."""
        earlier = self.earlier(number)
        if earlier is None:
            return self.batches(number)
        batch = self.batches(earlier)
        return replace(batch, segments=batch.segments[:, :0], mask=batch.mask[:, :0])

    def earlier(self, number: int) -> int | None:
        """The batch whose target comes again; None for an ordinary one."""
        turn, process = divmod(number, self.processes)
        plan = self._plans[process]
        while len(plan) <= turn:
            n = len(plan) * self.processes + process
            is_first, after_revisit = not plan, bool(plan) and plan[-1] is not None
            is_ordinary = is_first or after_revisit or random.Random(f"{self.seed} revisit {n}").random() >= self.chance
            if is_first or after_revisit:
                self._cached[process] = n
            plan.append(None if is_ordinary else self._cached[process])
        return plan[turn]
