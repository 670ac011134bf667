"""How an endless text shares a fixed number of slots: its first token, compressed segments, and its end as it is.

As CCM streams (Kim et al. 2024, arXiv 2312.03414, section 4.3): where all slots are taken, the oldest segment of the
text is compressed, and where compressed slots have no more room, the oldest are dropped.

    sink | compressed, oldest first | text
      1  |  2  2  2                 | x x x x x x x        full: the oldest segment of the text, 4 of them, ...
      1  |  2  2  2                 | x x x                ... has become two slots, and the oldest two are gone

Nothing here knows how a segment is compressed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from byheart.errors import UsageError
from byheart.model.reading import KV
from byheart.protocol.slot_coding import move_slots


@dataclass(frozen=True)
class SlotStream:
    """What is where among the slots, by how many tokens were read and how many segments compressed.

    Args:
        most: slots in all; so many are held only while a segment is compressed.
        sink: 1 where the first token keeps its slot, else 0.
        compressed: compressed slots, at most.
        segment: tokens of text that are compressed at once.
        marks: slots that stand for them.
    """

    most: int
    sink: int
    compressed: int
    segment: int
    marks: int

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> SlotStream:
        """By the options of a method that compresses segments; a learned first slot takes one of all."""
        return cls(
            most=options["slots"] - options["first_slot"],
            sink=int(options["sink"]),
            compressed=options["tokens"] if options["merge"] == "mean" else options["compressed_slots"],
            segment=options["segment_tokens"],
            marks=options["tokens"],
        )

    def require_room(self) -> None:
        """Raise UsageError unless a segment of text fits beside all compressed slots, and becomes smaller."""
        if self.compressed < self.marks or self.compressed % self.marks:
            raise UsageError(
                f"compressed_slots must be a multiple of tokens, of which a segment has {self.marks}; it is "
                f"{self.compressed}."
            )
        if self.segment <= self.marks:
            raise UsageError(
                f"segment_tokens must be above tokens, {self.marks}, where slots are bounded; it is {self.segment}."
            )
        if (least := self.sink + self.compressed + self.segment) > self.most:
            raise UsageError(
                f"slots must be at least {least} beside a learned first one: {self.compressed} compressed ones and a "
                f"segment of {self.segment} tokens; there are {self.most}."
            )

    def memory(self, segments: int) -> int:
        """Compressed slots after so many segments."""
        return min(self.compressed, segments * self.marks)

    def held(self, tokens: int, segments: int) -> int:
        """Slots in all."""
        return tokens - segments * self.segment + self.memory(segments)

    def segments(self, tokens: int) -> int:
        """How many segments are compressed once so many tokens were read: as few as leave a slot free."""
        segments = 0
        while self.held(tokens, segments) >= self.most:
            segments += 1
        return segments

    def end_of_oldest(self, segments: int) -> int:
        """Slots up to the end of the oldest segment of text, after so many were compressed."""
        return self.sink + self.memory(segments) + self.segment

    def replace_oldest(self, kept: KV, segments: int, merge: Callable[[KV | None], KV]) -> KV:
        """Slots without the oldest segment of text, and with what ``merge`` makes of the compressed ones.

        Args:
            segments: how many were compressed before.
        """
        end = self.end_of_oldest(segments)
        memory = merge(kept.slice(self.sink, end - self.segment) if segments else None)
        parts = [kept.slice(0, self.sink), memory.slice(max(0, memory.slots - self.compressed)), kept.slice(end)]
        # Slots that have codes keep them, whichever part comes first.
        return reduce(lambda before, part: move_slots(KV.append, before, part), [part for part in parts if part.slots])
