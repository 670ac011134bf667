"""Scores of answers in words, as published for the methods that byheart is compared with.

Pure functions on strings: nothing here knows models, tokenizers or data sets. Every score is between 0 and 1; papers
print most of them times 100. Where a released evaluation scores otherwise than one would want, ``published=True`` gives
its number, and the docstring says what differs.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from byheart.errors import UsageError

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WHITESPACE = re.compile(r"\s+")
_STATED = re.compile("the answer is:", re.IGNORECASE)
_UNSTATED = "Unknown"


def best(metric: Callable[[str, str], float], prediction: str, golds: Iterable[str]) -> float:
    """The score against the gold answer that the prediction fits best. Raises UsageError where there is none."""
    scores = [float(metric(prediction, gold)) for gold in golds]
    if not scores:
        raise UsageError(f"There is no gold answer to score '{prediction}' against; give at least one.")
    return max(scores)


def normalise_squad(text: str) -> str:
    """What SQuAD compares: lowercase, no ASCII punctuation, then no articles, single spaces.

    As in the evaluation script of SQuAD (https://arxiv.org/abs/1606.05250). "the-cat" is one word, "thecat", because
    punctuation goes first; quotes and signs beyond ASCII stay.
    """
    bare = text.lower().translate(_ASCII_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(prediction: str, gold: str) -> bool:
    """Whether the prediction says what the gold answer says and nothing else, after SQuAD's normalisation."""
    return normalise_squad(prediction) == normalise_squad(gold)


def contains(prediction: str, gold: str) -> bool:
    """Whether the gold answer's words occur in the prediction, side by side, after SQuAD's normalisation.

    Chat models answer in sentences, which never match exactly; long answers match more easily. A gold answer of which
    nothing is left is in none.
    """
    wanted = normalise_squad(gold)
    return bool(wanted) and f" {wanted} " in f" {normalise_squad(prediction)} "


def shared_words(prediction: Sequence[str], gold: Sequence[str]) -> float:
    """F1 of two bags of words, each word counted as often as it occurs in both; 0 where none is shared."""
    shared = (Counter(prediction) & Counter(gold)).total()
    return 2 * shared / (len(prediction) + len(gold)) if shared else 0.0


def token_f1(prediction: str, gold: str) -> float:
    """How much of the gold answer's words the prediction has, and how little else, after SQuAD's normalisation.

    As in SQuAD 2.0 (https://arxiv.org/abs/1806.03822): where nothing is left of one of them, 1 if nothing is left of
    both. LongBench and SQuAD 1.1 give 0 then, see ``longbench.qa_f1``.
    """
    words, wanted = normalise_squad(prediction).split(), normalise_squad(gold).split()
    return shared_words(words, wanted) if words and wanted else float(words == wanted)


def exact_hit(text: str, target: str) -> bool:
    """Whether the target, whitespace around it aside, occurs in the text verbatim, case included.

    The hit of MemoryLLM's knowledge retention (https://arxiv.org/abs/2402.04624). An empty target is no hit, while in
    the released evaluation it would always be one; their data have none.
    """
    wanted = target.strip()
    return bool(wanted) and wanted in text


def stated_answer(text: str) -> str | None:
    """What follows the last "the answer is:", in upper or lower case; None, which is a failure, where it is not said.

    As FastMem asks for and reads answers (https://arxiv.org/abs/2406.16069).
    """
    _, *stated = _STATED.split(text)
    return stated[-1] if stated else None


def normalise_span(text: str, *, published: bool = False) -> str:
    """What FastMem compares: lowercase, no articles, then no punctuation or symbol of any script, single spaces.

    ``published``: whitespace is joined before symbols go, so "bread & butter" keeps two spaces and is not
    "bread butter".
    """
    joined = _WHITESPACE.sub(" ", _ARTICLES.sub("", text.lower()))
    bare = "".join(letter for letter in joined if unicodedata.category(letter)[0] not in "PS")
    return bare.strip() if published else " ".join(bare.split())


def span_hit(answer: str | None, gold: str, *, published: bool = False) -> bool:
    """Whether the gold answer occurs in the stated one, after ``normalise_span``; a failure is no hit.

    FastMem's accuracy: long answers match easily, and words within words count ("art" in "party"). A gold answer of
    which nothing is left, such as "A" or "$", must be the whole answer, case aside. ``published``: it is always a hit,
    and a failure reads as "Unknown", in which "no" and "know" are hits.
    """
    if published:
        stated = _UNSTATED if answer is None else answer
        return normalise_span(gold, published=True) in normalise_span(stated, published=True)
    if answer is None:
        return False
    wanted = normalise_span(gold)
    return wanted in normalise_span(answer) if wanted else answer.strip().lower() == gold.strip().lower()
