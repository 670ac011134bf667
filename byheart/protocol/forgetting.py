"""How much of a text is left after later writes where a method drops slots by chance."""

from __future__ import annotations


def share_left(blocks: int, *, before: int, later: int) -> float:
    """The share of a text's slots that is expected in a pool of ``blocks`` writes, each of which drops as many slots.

    MemoryLLM's (1 - K/N)^n (Wang et al. 2024, arXiv 2402.04624, section 3.1.2), where K/N is 1 / ``blocks``. Only a
    write into a full pool drops anything: into an empty one, ``blocks`` writes go without loss.

    Args:
        before: writes that the pool held before the text; from ``blocks`` - 1 on, every later write drops.
        later: writes after it.
    """
    dropping = min(later, max(0, before + 1 + later - blocks))
    return (1 - 1 / blocks) ** dropping
