"""The scorers of LongBench's English tasks (https://arxiv.org/abs/2308.14508), by which MemoryLLM and M+ are reported.

Each compares a prediction with one of a record's answers; ``score`` takes the data set's own and the best answer. The
table prints them times 100. Nothing here knows prompts or models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from functools import partial
from itertools import chain
from typing import TypeAlias

from byheart.errors import UnknownNameError, UsageError
from byheart.evaluation.metrics.answers import best, normalise_squad, shared_words

Scorer: TypeAlias = Callable[[str, str], float]
_NUMBER = re.compile(r"\d+")
_PARAGRAPH = re.compile(r"Paragraph (\d+)")
_CLASSIFIED = "trec"
_NO_CODE = ("`", "#", "//")
_ONE_LINE = (_CLASSIFIED, "triviaqa", "samsum")
# The rouge package adds it to every denominator.
_ROUGE_EPSILON = 1e-8


def score(dataset: str, prediction: str, answers: Iterable[str], *, classes: Sequence[str] = ()) -> float:
    """A prediction's score by its data set's scorer, against the answer that it fits best.

    Of trec, triviaqa and samsum, which are asked with examples, only the first line that is not empty counts: a model
    continues with examples of its own. Other predictions are scored whole.

    Args:
        classes: the record's ``all_classes``, needed for trec.

    Raises UnknownNameError for a data set that is not an English task, and UsageError.
    """
    scorers: dict[str, Scorer] = {**_SCORERS, _CLASSIFIED: partial(classification, classes=classes)}
    if dataset not in scorers:
        raise UnknownNameError("LongBench data set", dataset, scorers)
    return best(scorers[dataset], first_line(prediction) if dataset in _ONE_LINE else prediction, answers)


def first_line(prediction: str) -> str:
    """What stands before the first line break, those at the very beginning aside."""
    return prediction.lstrip("\n").partition("\n")[0]


def qa_f1(prediction: str, answer: str) -> float:
    """F1 of words after SQuAD's normalisation; 0 where nothing is left of both, unlike ``answers.token_f1``."""
    return shared_words(normalise_squad(prediction).split(), normalise_squad(answer).split())


def classification(prediction: str, answer: str, *, classes: Sequence[str]) -> float:
    """1 over the number of classes named in the prediction, if the answer is among them, case included; otherwise 0.

    A class whose name is part of the answer's does not count as named. The released scorer skips every second such
    class, by removing from the list that it walks through; no class of trec is part of another, so numbers agree.
    Raises UsageError where there are no classes.
    """
    if not classes:
        raise UsageError("Classification needs the names of all classes; there are none. Give the record's own.")
    named = [name for name in classes if name in prediction and (name == answer or name not in answer)]
    return 1 / len(named) if answer in named else 0.0


def count(prediction: str, answer: str) -> float:
    """The share of the numbers in the prediction that are the answer, digit by digit: "07" is not "7"."""
    numbers = _NUMBER.findall(prediction)
    return numbers.count(answer) / len(numbers) if numbers else 0.0


def retrieval(prediction: str, answer: str) -> float:
    """The share of the numbers in the prediction that are the number of the answer, "Paragraph N".

    Raises UsageError for an answer that names no paragraph.
    """
    found = _PARAGRAPH.search(answer)
    if found is None:
        raise UsageError(f"The answer must name a paragraph, such as 'Paragraph 3'; it is '{answer}'.")
    return count(prediction, found[1])


def edit_similarity(prediction: str, answer: str) -> float:
    """How much of two lines of code is the same: twice the characters in common blocks over all, in whole hundredths.

    Of the prediction the first line counts that has no ``#``, ``//`` or backtick in it, whitespace at its ends
    included. As LongBench takes it from fuzzywuzzy without python-Levenshtein, whose blocks differ now and then.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in _NO_CODE)), "")
    return round(100 * SequenceMatcher(None, line, answer).ratio()) / 100 if line and answer else float(line == answer)


def rouge_l(prediction: str, answer: str) -> float:
    """ROUGE-L as LongBench takes it from the rouge package, which is not that of ``summary.rouge``.

    Sentences end at every full stop, words at whitespace, so that case and commas count. Of each pair of sentences one
    longest common subsequence is taken; the score is the F1 of how many *different* words they cover together of the
    different words on either side. Whitespace alone after a full stop is a word of its own. 0 where one side has no
    sentence. The package gives up, and LongBench gives 0, where a sentence is longer than Python's recursion limit.
    """
    predicted, wanted = _sentences(prediction), _sentences(answer)
    if not predicted or not wanted:
        return 0.0
    shared = {word for sentence in wanted for other in predicted for word in _common(sentence, other)}
    precision, recall = (len(shared) / len(set(chain(*sentences))) for sentences in (predicted, wanted))
    return 2 * precision * recall / (precision + recall + _ROUGE_EPSILON)


def _sentences(text: str) -> list[list[str]]:
    return [" ".join(sentence.split()).split(" ") for sentence in text.split(".") if sentence]


def _common(wanted: Sequence[str], predicted: Sequence[str]) -> list[str]:
    """One longest common subsequence, from its end; of equal ones that which drops predicted words first."""
    lengths = [[0] * (len(predicted) + 1)]
    for word in wanted:
        above, row = lengths[-1], [0]
        for place, other in enumerate(predicted):
            row.append(above[place] + 1 if word == other else max(above[place + 1], row[place]))
        lengths.append(row)
    words, left, right = [], len(wanted), len(predicted)
    while left and right:
        if wanted[left - 1] == predicted[right - 1]:
            left, right = left - 1, right - 1
            words.append(wanted[left])
        elif lengths[left - 1][right] > lengths[left][right - 1]:
            left -= 1
        else:
            right -= 1
    return words


_QUESTIONS = ("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique", "triviaqa")
_SCORERS: Mapping[str, Scorer] = {
    **dict.fromkeys(_QUESTIONS, qa_f1),
    **dict.fromkeys(("gov_report", "qmsum", "multi_news", "samsum"), rouge_l),
    "passage_retrieval_en": retrieval,
    "passage_count": count,
    **dict.fromkeys(("lcc", "repobench-p"), edit_similarity),
}
