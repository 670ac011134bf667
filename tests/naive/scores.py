"""Published scores of whole data sets, computed at once from all answers; the tasks sum them up answer by answer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple


def mean_of_means(groups: Iterable[Iterable[float]]) -> float:
    """The mean over groups of the mean in each: a record with many prompts counts once."""
    return fmean(fmean(group) for group in groups)


class Choice(NamedTuple):
    """A question with options: the log-probabilities of each option's tokens, and the place of the right one."""

    options: Sequence[Sequence[float]]
    gold: int


def likeliest(choice: Choice, *, per_token: bool = False) -> int:
    """The place of the likeliest option, the first of equal ones: by the sum of log-probabilities or by their mean."""
    scores = [fmean(option) if per_token else math.fsum(option) for option in choice.options]
    return scores.index(max(scores))


def choice_accuracy(choices: Iterable[Choice], *, per_token: bool = False) -> float:
    return fmean(likeliest(choice, per_token=per_token) == choice.gold for choice in choices)


def metaicl_accuracy(tasks: Mapping[str, Sequence[Choice]]) -> float:
    """The mean over tasks of their accuracy per token, glue-mrpc left out."""
    kept = (choices for task, choices in tasks.items() if not task.startswith("glue-mrpc"))
    return fmean(choice_accuracy(choices, per_token=True) for choices in kept)


def perplexity(losses: Sequence[float], tokens: Sequence[int]) -> float:
    """exp of all losses over all tokens, so that long texts count more."""
    return math.exp(math.fsum(losses) / sum(tokens))


class LabelScores(NamedTuple):
    accuracy: float
    macro_f1: float


def label_scores(predicted: Sequence[str], golds: Sequence[str]) -> LabelScores:
    """Every string that occurs is a label, so that a stray one lowers macro F1 as a label of its own."""
    pairs = list(zip(predicted, golds, strict=True))
    hits, said, wanted = Counter(gold for label, gold in pairs if label == gold), Counter(predicted), Counter(golds)
    labels: Collection[str] = {*predicted, *golds}
    shares = (2 * hits[label] / (said[label] + wanted[label]) for label in labels)
    return LabelScores(fmean(label == gold for label, gold in pairs), fmean(shares))


def argmax_accuracy(predicted: Sequence[int], target: Sequence[int]) -> float:
    """The share of a target's tokens that the model holds for likeliest, each after the right ones before it."""
    return fmean(token == wanted for token, wanted in zip(predicted, target, strict=True))
