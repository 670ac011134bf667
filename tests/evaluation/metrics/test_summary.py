"""Scores of summaries: ROUGE, BERTScore by a stand-in for its package, and FactKB by a random classifier."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

from byheart.errors import ModelError, UsageError
from byheart.evaluation.metrics import summary as summary_scores
from byheart.evaluation.tasks.summary import Summary
from byheart.model import loading as models
from tests.conftest import tiny_tokenizer


def test_rouge_is_without_a_stemmer_unless_asked() -> None:
    pytest.importorskip("rouge_score")
    _, _, plain, _ = summary_scores.rouge("The cats jumped", "the cat jumps")
    _, _, stemmed, _ = summary_scores.rouge("The cats jumped", "the cat jumps", stemmer=True)
    assert plain == pytest.approx(1 / 3)
    assert stemmed == 1


def test_rouge_is_f1_on_words_without_case_or_signs() -> None:
    pytest.importorskip("rouge_score")
    # Words: 3 shared of 3 and 4, F1 6/7. Pairs: "the cat" of 2 and 3, F1 2/5. In order: the cat, F1 4/7.
    scores = summary_scores.rouge("The cat, SAT", "sat the cat down")
    assert scores == pytest.approx((6 / 7, 2 / 5, 4 / 7, 4 / 7))


def test_only_line_breaks_cut_a_summary() -> None:
    pytest.importorskip("rouge_score")
    stops, lines = summary_scores.rouge("b c. a", "a. b c"), summary_scores.rouge("b c.\na", "a.\nb c")
    # In order: b c of 3. Line by line: all three.
    assert (stops.rouge_l, stops.rouge_l_sum) == pytest.approx((2 / 3, 2 / 3))
    assert (lines.rouge_l, lines.rouge_l_sum) == pytest.approx((2 / 3, 1))


def test_missing_packages_are_named_with_what_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    monkeypatch.delitem(sys.modules, "rouge_score.rouge_scorer", raising=False)
    monkeypatch.setitem(sys.modules, "bert_score", None)
    with pytest.raises(UsageError, match=r"'rouge_score', which is not installed: pip install rouge-score"):
        summary_scores.rouge("a", "a")
    with pytest.raises(UsageError, match="'bert_score', which is not installed: pip install bert-score"):
        summary_scores.bert_precision("a", "a")


def test_a_score_that_lacks_its_package_says_so_before_anything_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rouge_score")
    monkeypatch.setitem(sys.modules, "bert_score", None)
    with pytest.raises(UsageError, match="pip install bert-score"):
        list(Summary(dataset="xsum", bertscore=True).items([{"article": "a b", "summary": "a"}], 0))


BERT_SCORE = """
opened = []

class BERTScorer:
    def __init__(self, **how):
        assert how == {"lang": "en", "rescale_with_baseline": False}
        opened.append(self)

    def score(self, candidates, references):
        assert (candidates, references) == (["short"], ["a long article"])
        return [0.75], [0.25], [0.375]
"""


@pytest.fixture
def nothing_open() -> Iterator[None]:
    """Models that are open stay so for the whole process."""
    yield
    summary_scores.open_bert_scorer.cache_clear()
    summary_scores.open_factkb.cache_clear()


def test_bert_precision_is_against_the_article_by_one_model_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_open: None
) -> None:
    (tmp_path / "bert_score.py").write_text(BERT_SCORE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bert_score", raising=False)
    try:
        for _ in range(3):
            assert summary_scores.bert_precision("short", "a long article") == 0.75
        assert len(sys.modules["bert_score"].opened) == 1
    finally:
        sys.modules.pop("bert_score", None)


def test_truth_is_the_probability_of_class_one() -> None:
    # Odds of 3 to 1, 1 to 1 and 1 to e^2000.
    pairs = [(0, math.log(3)), (5, 5), (1000, -1000)]
    assert [summary_scores.truth(pair) for pair in pairs] == pytest.approx([0.75, 0.5, 0])
    with pytest.raises(UsageError, match="a pair has 3 logits"):
        summary_scores.truth((0, 1, 2))


def factkb_folder(folder: Path, *, labels: int = 2) -> Path:
    """A random classifier of FactKB's architecture; its tokenizer takes 20 tokens of a pair."""
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    made = RobertaForSequenceClassification(
        RobertaConfig(**tiny, vocab_size=128, max_position_embeddings=22, num_labels=labels, initializer_range=1.0)
    )
    made.save_pretrained(folder)
    words = tiny_tokenizer()
    words.model_max_length = 20
    words.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_factkb_is_a_classifier_of_summary_and_article(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_open: None
) -> None:
    folder = factkb_folder(tmp_path / "factkb")
    model, words = RobertaForSequenceClassification.from_pretrained(folder).eval(), tiny_tokenizer()
    opened, once = [], models.open_classifier
    monkeypatch.setattr(models, "open_classifier", lambda *at, **how: opened.append(at) or once(*at, **how))
    pairs = [("A cat.", "The cat ran."), ("The cat ran.", "A cat.")]
    found = [summary_scores.factkb(first, second, model=str(folder)) for first, second in pairs]
    logits = [model(**words(first, second, return_tensors="pt")).logits[0] for first, second in pairs]
    assert found == pytest.approx([torch.softmax(each, dim=-1)[1].item() for each in logits], abs=1e-6)
    assert abs(found[0] - found[1]) > 1e-3
    # The longer one is cut, here the article.
    articles = ("The cat ran away.", "The cat ran away from Rex.", "The cat ran away from us.")
    cut = [summary_scores.factkb("A cat.", article, model=str(folder)) for article in articles]
    assert cut[0] != found[0]
    assert cut[1] == cut[2]
    assert opened == [(str(folder),)]


def test_a_factkb_that_cannot_be_used_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_open: None
) -> None:
    three = str(factkb_folder(tmp_path / "three", labels=3))
    with pytest.raises(UsageError, match="FactKB has two classes; a pair has 3 logits"):
        summary_scores.factkb("a", "b", model=three)

    def unreachable(name: str, **how: Any) -> None:
        raise OSError(f"We couldn't connect to the hub to load {name}.\nCheck it.")

    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", unreachable)
    with pytest.raises(
        ModelError, match=r"'bunsenfeng/FactKB' could not .* load roberta-base\. Check it\. Where the hub"
    ):
        summary_scores.factkb("a", "b")
    with pytest.raises(ModelError, match=r"give the folder of a copy\."):
        list(Summary(dataset="xsum", factkb=True).items([{"article": "a b", "summary": "a"}], 0))
