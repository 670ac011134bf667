"""Scores of an answer, a choice, a label or an edit, as published for the methods that byheart is compared with.

Pure functions on strings and numbers: nothing here knows models, tokenizers or data sets. Every score is between 0 and
1; papers print most of them times 100. Where a released evaluation scores otherwise than one would want,
``published=True`` gives its number, and the docstring says what differs. LongBench's scorers are in
``longbench_scores.py``, those of summaries in ``summary_scores.py``.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from statistics import fmean, harmonic_mean
from typing import NamedTuple

from byheart.errors import UsageError

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SPACE = re.compile(r"\s+")
_STATED = re.compile("the answer is:", re.IGNORECASE)
_UNSTATED = "Unknown"
_OVER_PRIOR, _LEFT_OUT = "poem_sentiment", "glue-mrpc"


def mean(scores: Iterable[float]) -> float:
    """The mean score; of hits, it is the accuracy. Raises UsageError where there is none."""
    found = list(scores)
    if not found:
        raise UsageError("A mean needs at least one score; there is none. Check that the data set is not empty.")
    return fmean(found)


def mean_of_means(groups: Iterable[Iterable[float]]) -> float:
    """The mean over groups of the mean in each: a record with many prompts, or a task with many examples, counts once.

    So are CounterFact and zsRE averaged in ROME and MEMIT, and tasks in MetaICL. Raises UsageError.
    """
    return mean(mean(group) for group in groups)


def best(metric: Callable[[str, str], float], prediction: str, golds: Iterable[str]) -> float:
    """The score against the gold answer that the prediction fits best. Raises UsageError where there is none."""
    scores = [float(metric(prediction, gold)) for gold in golds]
    if not scores:
        raise UsageError(f"There is no gold answer to score '{prediction}' against; give at least one.")
    return max(scores)


def _need_as_many(what: str, first: Collection[object], second: Collection[object]) -> None:
    if len(first) != len(second):
        raise UsageError(f"{what} must be as many; they are {len(first)} and {len(second)}.")


# ---- answers ----


def normalise_squad(text: str) -> str:
    """What SQuAD compares: small letters, no ASCII punctuation, then no articles, single spaces.

    As in the evaluation script of SQuAD (https://arxiv.org/abs/1606.05250). "the-cat" is one word, "thecat", because
    punctuation goes first; quotes and signs beyond ASCII stay.
    """
    bare = text.lower().translate(_ASCII_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(prediction: str, gold: str) -> bool:
    """Whether the prediction says what the gold answer says and nothing else, after SQuAD's normalisation."""
    return normalise_squad(prediction) == normalise_squad(gold)


def contains(prediction: str, gold: str) -> bool:
    """Whether the gold answer's words stand in the prediction, side by side, after SQuAD's normalisation.

    Chat models answer in sentences, which are no exact match; long answers have it easier. A gold answer of which
    nothing is left is in none.
    """
    wanted = normalise_squad(gold)
    return bool(wanted) and f" {wanted} " in f" {normalise_squad(prediction)} "


def shared_words(prediction: Sequence[str], gold: Sequence[str]) -> float:
    """F1 of two bags of words, each word as often as it stands in both; 0 where none is shared."""
    shared = (Counter(prediction) & Counter(gold)).total()
    return 2 * shared / (len(prediction) + len(gold)) if shared else 0.0


def token_f1(prediction: str, gold: str) -> float:
    """How much of the gold answer's words the prediction has, and how little else, after SQuAD's normalisation.

    As in SQuAD 2.0 (https://arxiv.org/abs/1806.03822): where nothing is left of one of them, 1 if nothing is left of
    both. LongBench and SQuAD 1.1 give 0 then, see ``longbench_scores.qa_f1``.
    """
    said, wanted = normalise_squad(prediction).split(), normalise_squad(gold).split()
    return shared_words(said, wanted) if said and wanted else float(said == wanted)


def exact_hit(text: str, target: str) -> bool:
    """Whether the target, blanks around it aside, stands in the text letter by letter, case included.

    The hit of MemoryLLM's knowledge retention (https://arxiv.org/abs/2402.04624). An empty target is no hit, while in
    the released evaluation it would always be one; their data have none.
    """
    wanted = target.strip()
    return bool(wanted) and wanted in text


def stated_answer(text: str) -> str | None:
    """What follows the last "the answer is:", in any case; None where the model did not say so, which is a failure.

    As FastMem asks for and reads answers (https://arxiv.org/abs/2406.16069).
    """
    _, *stated = _STATED.split(text)
    return stated[-1] if stated else None


def failure_rate(answers: Iterable[str | None]) -> float:
    """The share of outputs in which ``stated_answer`` found nothing. Raises UsageError where there is none."""
    return mean(answer is None for answer in answers)


def normalise_span(text: str, *, published: bool = False) -> str:
    """What FastMem compares: small letters, no articles, then no punctuation or symbol of any script, single spaces.

    ``published``: blanks are joined before symbols go, so "bread & butter" keeps two blanks and does not match "bread
    butter".
    """
    joined = _SPACE.sub(" ", _ARTICLES.sub("", text.lower()))
    bare = "".join(letter for letter in joined if unicodedata.category(letter)[0] not in "PS")
    return bare.strip() if published else " ".join(bare.split())


def span_hit(answer: str | None, gold: str, *, published: bool = False) -> bool:
    """Whether the gold answer stands in the stated one, after ``normalise_span``; a failure is no hit.

    FastMem's accuracy: long answers have it easy, and words within words count ("art" in "party"). A gold answer of
    which nothing is left, such as "A" or "$", must be the whole answer, case aside. ``published``: it is always a hit,
    and a failure reads as "Unknown", in which "no" and "know" are hits.
    """
    if published:
        said = _UNSTATED if answer is None else answer
        return normalise_span(gold, published=True) in normalise_span(said, published=True)
    if answer is None:
        return False
    wanted = normalise_span(gold)
    return wanted in normalise_span(answer) if wanted else answer.strip().lower() == gold.strip().lower()


# ---- likelihoods ----


class Choice(NamedTuple):
    """A question with options: the log-probabilities of each option's tokens, and the place of the right one.

    The end-of-text token is left out. ``priors`` are those of the options behind an empty input ("Output:").
    """

    options: Sequence[Sequence[float]]
    gold: int
    priors: Sequence[Sequence[float]] | None = None


def likeliest(choice: Choice, *, per_token: bool = False, over_prior: bool = False) -> int:
    """The place of the option that the model holds for likeliest, the first of equal ones.

    By the sum of log-probabilities (LaMP in CCM, https://arxiv.org/abs/2312.03414), which favours short options; by
    their mean with ``per_token``; by how much the input raised the sum with ``over_prior``. Raises UsageError.
    """
    if not choice.options or not all(choice.options):
        raise UsageError(f"A choice needs options of one token or more; they have {[len(o) for o in choice.options]}.")
    if per_token and over_prior:
        raise UsageError("per_token and over_prior are two ways to score an option; give one of them.")
    scores = [fmean(option) if per_token else math.fsum(option) for option in choice.options]
    if over_prior:
        priors = choice.priors or ()
        _need_as_many("Options and their priors", scores, priors)
        scores = [score - math.fsum(prior) for score, prior in zip(scores, priors, strict=True)]
    return scores.index(max(scores))


def choice_accuracy(choices: Iterable[Choice], *, per_token: bool = False, over_prior: bool = False) -> float:
    """The share of questions whose right option is the likeliest, see ``likeliest``. Raises UsageError."""
    return mean(likeliest(one, per_token=per_token, over_prior=over_prior) == one.gold for one in choices)


def metaicl_accuracy(tasks: Mapping[str, Sequence[Choice]], *, published: bool = False) -> float:
    """The mean over tasks of their accuracy, as CCM reports MetaICL (https://arxiv.org/abs/2312.03414).

    Options are scored per token, those of poem_sentiment over their prior; glue-mrpc is left out, because it varies too
    much. ``published``: each task's last example is lost, as in the released evaluation. Raises UsageError.
    """
    accuracies = []
    for task, choices in tasks.items():
        if task.startswith(_LEFT_OUT):
            continue
        kept = choices[:-1] if published else choices
        prior = task.startswith(_OVER_PRIOR)
        accuracies.append(choice_accuracy(kept, per_token=not prior, over_prior=prior))
    return mean(accuracies)


def perplexity(losses: Sequence[float], tokens: Sequence[int]) -> float:
    """How many tokens the model hesitates between: exp of all losses over all tokens, so that long texts count more.

    Args:
        losses: the summed loss of each text, in nats.
        tokens: how many of its tokens were predicted.

    CCM's dialogue measure; the mean of each text's own perplexity is another number. Raises UsageError.
    """
    _need_as_many("Losses and token counts", losses, tokens)
    if sum(tokens) < 1:
        raise UsageError("A perplexity needs at least one predicted token; there is none.")
    return math.exp(math.fsum(losses) / sum(tokens))


# ---- labels ----


class LabelScores(NamedTuple):
    """How well labels were told; ``precision`` and ``recall`` are those over all labels together (micro)."""

    accuracy: float
    precision: float
    recall: float
    micro_f1: float
    macro_f1: float


def label_scores(
    predicted: Sequence[str], golds: Sequence[str], *, labels: Collection[str] | None = None
) -> LabelScores:
    """Scores of labels that must be said letter by letter: a blank or a token more is another label.

    As published for tuning keys or values (https://arxiv.org/abs/2402.12233), every string that occurs is a label, so
    that micro F1, precision, recall and accuracy are one number, and a stray string lowers macro F1 as a label of its
    own. With ``labels``, as in LaMP, those alone are averaged, and a stray string is only a miss. Raises UsageError.
    """
    _need_as_many("Predicted and gold labels", predicted, golds)
    kept = set(labels) if labels is not None else {*predicted, *golds}
    hits = Counter(gold for said, gold in zip(predicted, golds, strict=True) if said == gold)
    said, wanted = Counter(predicted), Counter(golds)
    right, told, there = (sum(count[label] for label in kept) for count in (hits, said, wanted))
    return LabelScores(
        accuracy=mean(said == gold for said, gold in zip(predicted, golds, strict=True)),
        precision=right / told if told else 0.0,
        recall=right / there if there else 0.0,
        micro_f1=_f1(right, told, there),
        macro_f1=mean(_f1(hits[label], said[label], wanted[label]) for label in kept),
    )


def _f1(right: int, told: int, there: int) -> float:
    return 2 * right / (told + there) if right else 0.0


# ---- edits ----


def argmax_accuracy(predicted: Sequence[int], target: Sequence[int]) -> float:
    """The share of a target's tokens that the model holds for likeliest, each behind the right ones before it.

    zsRE's measure in ROME and MEMIT (https://arxiv.org/abs/2210.07229): a target half known is half right, though it
    would not be generated. Average over records with ``mean_of_means``. Raises UsageError.
    """
    _need_as_many("Predicted and target tokens", predicted, target)
    return mean(said == wanted for said, wanted in zip(predicted, target, strict=True))


def counterfact_success(
    new: Sequence[float], true: Sequence[float], *, neighbourhood: bool = False, per_token: bool = True
) -> bool:
    """Whether an edited model prefers the new object to the true one; behind a neighbour's prompt, the other way round.

    Args:
        new: the losses of the new object's tokens, in nats.
        true: those of the true object's.
        per_token: compare means, as in the released evaluation of ROME and MEMIT; otherwise sums, which are the
            probabilities that the papers write. They differ where one object has more tokens.

    Equal losses are no success either way. Raises UsageError where an object has no token.
    """
    measure = fmean if per_token else math.fsum
    if not new or not true:
        raise UsageError(f"Both objects need tokens; the new one has {len(new)}, the true one {len(true)}.")
    gained = measure(true) - measure(new)
    return gained < 0 if neighbourhood else gained > 0


def editing_score(efficacy: float, paraphrase: float, specificity: float) -> float:
    """The Score of an editor: the harmonic mean of its three averages, 0 where one of them is 0.

    Of averages over all records, in any one unit; the mean of each record's Score is another number.
    """
    return harmonic_mean([efficacy, paraphrase, specificity])
