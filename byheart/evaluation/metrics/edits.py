"""Scores of edited knowledge, as ROME and MEMIT report them (https://arxiv.org/abs/2210.07229)."""

from __future__ import annotations

from statistics import harmonic_mean


def prefers_new(new: float, true: float, *, neighbourhood: bool = False) -> bool:
    """Whether an edited model prefers the new object to the true one; after a neighbour's prompt, the reverse.

    Equal losses are no success either way.

    Args:
        new: the mean loss per token of the new object, in nats, as in the released evaluation; the papers write the
            probabilities of whole objects, which differ where one object has more tokens.
        true: that of the true object.
    """
    return new > true if neighbourhood else new < true


def editing_score(efficacy: float, paraphrase: float, specificity: float) -> float:
    """The Score of an editor: the harmonic mean of its three averages, 0 where one of them is 0.

    Of averages over all records, in any one unit; the mean of each record's Score is another number.
    """
    return harmonic_mean([efficacy, paraphrase, specificity])
