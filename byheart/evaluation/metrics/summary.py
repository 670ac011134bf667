"""Scores of summaries, as FastMem reports them (https://arxiv.org/abs/2406.16069): ROUGE, BERTScore and FactKB.

ROUGE and BERTScore come from packages that are imported when they are used. The models of BERTScore and FactKB are
opened once a process, when the first pair is scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from byheart.errors import UsageError

FACTKB = "bunsenfeng/FactKB"
_FACTKB_TOKENIZER = "roberta-base"
_ROUGE = ["rouge1", "rouge2", "rougeL", "rougeLsum"]


class Rouge(NamedTuple):
    """F1 of shared words, of shared pairs of words, of the longest common subsequence, and of that line by line."""

    rouge1: float
    rouge2: float
    rouge_l: float
    rouge_l_sum: float


def rouge(prediction: str, reference: str, *, stemmer: bool = False) -> Rouge:
    """ROUGE of a prediction by the rouge_score package, on lowercase letters and digits (https://aclanthology.org/W04-1013).

    FastMem takes ROUGE-L without a stemmer, CCM (https://arxiv.org/abs/2312.03414) with one. Only line breaks cut a
    text for ``rouge_l_sum``, not full stops: put each sentence on a line of its own, or it equals ``rouge_l``. Hugging
    Face's evaluate, which both used, prints the median of bootstrapped means, so the mean of these differs from theirs
    in the last digits. Raises UsageError.
    """
    package = _import("rouge_score.rouge_scorer", "ROUGE", "rouge-score")
    found = package.RougeScorer(_ROUGE, use_stemmer=stemmer).score(reference, prediction)
    return Rouge(*(float(found[kind].fmeasure) for kind in _ROUGE))


def said_as(text: str, reference: str) -> dict[str, float]:
    """ROUGE-L, by stems, of generated words against the right ones, and their number: CCM's ``--eval_rouge``."""
    return {"rouge_l": rouge(text, reference, stemmer=True).rouge_l, "answer_words": float(len(text.split()))}


def bert_precision(prediction: str, article: str) -> float:
    """How well a summary's tokens are matched by its *article*, not by the gold summary: FastMem's BERT-P.

    BERTScore's precision (https://arxiv.org/abs/1904.09675) by its model for English, roberta-large, not rescaled. What
    of an article exceeds that model's 512 tokens is not read. Raises UsageError.
    """
    precision, _, _ = open_bert_scorer().score([prediction], [article])
    return float(precision[0])


@cache
def open_bert_scorer() -> Any:
    """BERTScore with its model open, once a process: its plain function opens the model at each call."""
    package = _import("bert_score", "BERTScore", "bert-score")
    return package.BERTScorer(lang="en", rescale_with_baseline=False)


def factkb(prediction: str, article: str, *, model: str = FACTKB) -> float:
    """How likely FactKB (https://arxiv.org/abs/2305.08281) holds a summary to be true to its article.

    The pair (summary, article), in this order, by roberta-base's tokenizer, cut at 512 tokens. Raises UsageError, and
    ModelError where the classifier cannot be opened.

    Args:
        model: a hub id, or the folder of a copy, whose own tokenizer is taken where there is one.
    """
    return truth(open_factkb(model)(prediction, article))


@cache
def open_factkb(model: str) -> Callable[[str, str], list[float]]:
    """FactKB's logits of a pair of texts, its model opened once a process."""
    # Scores of words alone must not wait for torch.
    from byheart.model.loading import open_classifier

    return open_classifier(model, tokenizer=_FACTKB_TOKENIZER)


def truth(logits: Sequence[float]) -> float:
    """FactKB's score of a pair by its logits: the softmax probability of class 1.

    Raises UsageError where there are not two.
    """
    if len(logits) != 2:
        raise UsageError(f"FactKB has two classes; a pair has {len(logits)} logits.")
    return (1 + math.tanh((logits[1] - logits[0]) / 2)) / 2


def _import(module: str, what: str, requirement: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        raise UsageError(f"{what} needs '{missing}', which is not installed: pip install {requirement}") from error
