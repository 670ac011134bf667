"""How many bytes the state of a method takes, and which of its options decide that.

A method declares its ``Size``; ``byheart.methods.budget`` chooses from it. Counted are texts that are written one after
another into an empty memory, without what a chat template puts around them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from byheart.model.backbone import Backbone
from byheart.protocol.slot_coding import SlotCoding

_DIGITS = 1000


@dataclass(frozen=True)
class Size:
    """The sizes that a method can have, from the least state to the largest.

    ``nbytes``: (backbone, tokens of each text, all options of the method) -> bytes of the state. ``sizes``: tokens of
    all texts -> what there is to choose from. ``options``: size -> the method's options for it; an empty dict means
    the defaults. Without the last two there is nothing to choose.
    """

    nbytes: Callable[[Backbone, Sequence[int], Mapping[str, Any]], int]
    sizes: Callable[[int], range] = lambda tokens: range(1)
    options: Callable[[int], dict[str, Any]] = lambda size: {}


def fixed_size(nbytes: Callable[[Backbone, int], int]) -> Size:
    """Nothing to choose: the state takes ``nbytes(backbone, tokens)``, whatever the options are."""
    return Size(lambda backbone, texts, options: nbytes(backbone, sum(texts)))


def slot_bytes(backbone: Backbone, options: Mapping[str, Any]) -> int:
    """Bytes of one slot in a state, with the option ``bits`` where a method has it."""
    return SlotCoding(backbone, options.get("bits", 16)).slot_bytes


def slots_size(
    slots: Callable[[Mapping[str, Any]], int],
    options: Callable[[int], dict[str, Any]],
    *,
    least: int = 1,
    within_text: bool = False,
) -> Size:
    """Any number of slots from ``least`` on; no more than the texts have tokens where ``within_text``.

    Args:
        slots: all options -> how many slots that is.
        options: how many slots -> the options that decide them.
    """

    def sizes(tokens: int) -> range:
        return range(least, max(least, tokens) + 1 if within_text else sys.maxsize)

    return Size(lambda backbone, texts, given: slots(given) * slot_bytes(backbone, given), sizes, options)


def every_size(*, most: int) -> Size:
    """One slot for every ``every`` tokens, ``most`` at most, in each chunk of the options ``sinks``, ``chunk_tokens``.

    Numbers of four digits are chosen from, so that one is never more than a thousandth from the next.
    """

    def nbytes(backbone: Backbone, texts: Sequence[int], options: Mapping[str, Any]) -> int:
        longest = options["chunk_tokens"]
        chunks = [min(longest, tokens - start) for tokens in texts for start in range(0, tokens, longest)]
        slots = every_slots(chunks, every=options["every"], sinks=options["sinks"])
        return slots * slot_bytes(backbone, options)

    return Size(nbytes, lambda tokens: range(_place(most), -1, -1), lambda place: {"every": _number(place)})


def _number(place: int) -> float:
    """The number at a place among 1, 1.001, 1.002 and so on to 9.999, 10, 10.01 and so on; whole ones as such."""
    power, digits = divmod(place, 9 * _DIGITS)
    number: float = (_DIGITS + digits) * 10**power / _DIGITS
    return int(number) if number == int(number) else number


def _place(number: int) -> int:
    """Where a number of four digits or fewer stands among them."""
    power = len(str(number)) - 1
    place: int = 9 * _DIGITS * power + number * _DIGITS // 10**power - _DIGITS
    return place


def every_slots(chunks: Sequence[int], *, every: float, sinks: int) -> int:
    """How many slots are left of chunks of so many tokens: the first one's sinks, and the shares of all."""
    first = min(sinks, chunks[0])
    return first + sum(shares(n, every=every, sinks=0 if at else first) for at, n in enumerate(chunks))


def shares(tokens: int, *, every: float, sinks: int) -> int:
    """How many slots stand for what follows the sinks of ``tokens`` tokens: one per ``every`` tokens, at least one."""
    return min(tokens - sinks, max(1, math.ceil(tokens / every) - sinks))
