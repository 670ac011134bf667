"""Published scores on cases small enough to be worked out by hand; the numbers in comments are the working."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

from byheart.errors import ModelError, UnknownNameError, UsageError
from byheart.evaluation.metrics import longbench as longbench_scores, scores as metrics, summary as summary_scores
from byheart.evaluation.metrics.scores import Choice
from byheart.evaluation.tasks.summary import Summary
from byheart.model import loading as models
from tests.conftest import tiny_tokenizer

# ---- averages ----


def test_a_mean_of_nothing_is_refused() -> None:
    assert metrics.mean([True, False, False, True]) == 0.5
    with pytest.raises(UsageError, match="at least one score; there is none"):
        metrics.mean([])


def test_a_record_with_many_prompts_counts_once() -> None:
    # (0 + 1) / 2, where the mean of all prompts would be 1/4.
    assert metrics.mean_of_means([[0, 0, 0], [1]]) == 0.5
    with pytest.raises(UsageError, match="there is none"):
        metrics.mean_of_means([[1], []])


def test_the_best_gold_answer_counts() -> None:
    assert metrics.best(metrics.exact_match, "Muck", ["Mack", "muck"]) == 1
    assert metrics.best(metrics.token_f1, "red cat", ["dog", "cat", "cow"]) == pytest.approx(2 / 3)
    with pytest.raises(UsageError, match="no gold answer to score 'Muck' against"):
        metrics.best(metrics.exact_match, "Muck", [])


# ---- answers ----


def test_squad_drops_punctuation_before_articles() -> None:
    assert metrics.normalise_squad("  The  U.S. Army, an army!") == "us army army"
    assert metrics.normalise_squad("the-cat") == "thecat"
    assert metrics.normalise_squad("“the” 5€") == "“ ” 5€"


def test_exact_match_is_after_normalisation_and_of_the_whole() -> None:
    assert metrics.exact_match("The Eiffel Tower.", "eiffel tower")
    assert not metrics.exact_match("the Eiffel Tower in Paris", "Eiffel Tower")


def test_an_answer_is_contained_word_by_word() -> None:
    assert metrics.contains("It is the Eiffel Tower, in Paris.", "an Eiffel tower")
    assert not metrics.contains("They held a party.", "art")
    assert not metrics.contains("The tower of Eiffel.", "Eiffel Tower")
    assert not metrics.contains("A.", "a")


def test_token_f1_counts_each_word_as_often_as_it_stands_in_both() -> None:
    # Shared: cat twice, of 3 words said and 4 wanted. F1 = 2 * 2 / (3 + 4).
    assert metrics.token_f1("cat cat cat", "the cat sat on cat") == pytest.approx(4 / 7)
    assert metrics.token_f1("dog", "cat") == 0


def test_token_f1_of_nothing_left_is_one_only_against_nothing() -> None:
    assert metrics.token_f1("The.", "a") == 1
    assert metrics.token_f1("The cat", "a") == 0
    assert metrics.token_f1("", "cat") == 0


def test_an_exact_hit_minds_case_and_no_blanks_around_the_target() -> None:
    assert metrics.exact_hit("It is called Muck, I think.", " Muck ")
    assert not metrics.exact_hit("It is called muck.", "Muck")
    assert not metrics.exact_hit("New  York", "New York")
    assert not metrics.exact_hit("anything", " ")


def test_the_last_statement_is_the_answer() -> None:
    assert metrics.stated_answer("The answer is: cat. No, THE ANSWER IS: dog") == " dog"
    assert metrics.stated_answer("İİ so the answer is:x") == "x"
    assert metrics.stated_answer("the answer is:") == ""
    assert metrics.stated_answer("The answer is a dog") is None


def test_failures_are_outputs_that_state_no_answer() -> None:
    outputs = ["The answer is: a", "dog", "the answer is:", "I do not know"]
    assert metrics.failure_rate(metrics.stated_answer(output) for output in outputs) == 0.5
    with pytest.raises(UsageError, match="there is none"):
        metrics.failure_rate([])


def test_spans_lose_articles_before_symbols_of_any_script() -> None:
    assert metrics.normalise_span("The-cat") == "cat"  # SQuAD: thecat
    assert metrics.normalise_span("“An  owl”, 5€ + 1,000!") == "owl 5 1000"
    assert metrics.normalise_span("Theatre and Anna") == "theatre and anna"


def test_published_spans_keep_the_blanks_around_a_symbol() -> None:
    assert metrics.normalise_span("bread & butter") == "bread butter"
    assert metrics.normalise_span("bread & butter", published=True) == "bread  butter"
    assert metrics.span_hit("bread & butter", "bread butter")
    assert not metrics.span_hit("bread & butter", "bread butter", published=True)


def test_a_span_hit_is_the_gold_answer_within_the_stated_one() -> None:
    assert metrics.span_hit(" It was the U.S. Army in 1942.", "The US army")
    assert metrics.span_hit("a party", "art")
    assert not metrics.span_hit("army", "US army")


@pytest.mark.parametrize("gold", ["A", "$", "the"])
def test_a_gold_answer_of_which_nothing_is_left_is_no_free_hit(gold: str) -> None:
    assert metrics.normalise_span(gold) == ""
    assert not metrics.span_hit("something else", gold)
    assert metrics.span_hit(f" {gold.upper()} ", gold)
    assert metrics.span_hit("something else", gold, published=True)


def test_a_failure_is_no_hit_but_reads_unknown_where_published() -> None:
    assert not metrics.span_hit(None, "no")
    assert metrics.span_hit(None, "no", published=True)
    assert not metrics.span_hit(None, "yes", published=True)
    assert not metrics.span_hit("", "no", published=True)


# ---- likelihoods ----

# Sums -3, -2.5 and -4; means -1, -2.5 and -2; over the prior +3, +1.5 and +4.
CHOICE = Choice([[-1, -1, -1], [-2.5], [-2, -2]], 0, [[-2, -2, -2], [-4], [-4, -4]])


def test_options_are_scored_by_sum_by_mean_or_over_their_prior() -> None:
    assert metrics.likeliest(CHOICE) == 1  # LaMP
    assert metrics.likeliest(CHOICE, per_token=True) == 0
    assert metrics.likeliest(CHOICE, over_prior=True) == 2
    assert metrics.likeliest(Choice([[-1], [-1]], 1)) == 0


def test_accuracy_of_choices_is_the_share_of_right_ones() -> None:
    choices = [CHOICE, CHOICE._replace(gold=1), CHOICE._replace(gold=1), CHOICE._replace(gold=2)]
    assert metrics.choice_accuracy(choices) == 0.5
    assert metrics.choice_accuracy(choices, per_token=True) == 0.25


def test_choices_that_cannot_be_scored_are_refused() -> None:
    with pytest.raises(UsageError, match=r"one token or more; they have \[1, 0\]"):
        metrics.likeliest(Choice([[-1], []], 0))
    with pytest.raises(UsageError, match=r"they have \[\]"):
        metrics.likeliest(Choice([], 0))
    with pytest.raises(UsageError, match="Options and their priors must be as many; they are 2 and 0"):
        metrics.likeliest(Choice([[-1], [-2]], 0), over_prior=True)
    with pytest.raises(UsageError, match="give one of them"):
        metrics.likeliest(CHOICE, per_token=True, over_prior=True)


def test_metaicl_scores_tasks_each_in_its_own_way_and_leaves_one_out() -> None:
    tasks = {
        "poem_sentiment": [CHOICE._replace(gold=2)],  # right over the prior only
        "glue-mrpc": [CHOICE._replace(gold=1)] * 5,  # left out
        "other": [CHOICE, CHOICE, CHOICE, CHOICE._replace(gold=1)],  # 3/4 per token, 1/4 by sum
    }
    assert metrics.metaicl_accuracy(tasks) == (1 + 3 / 4) / 2


def test_published_metaicl_loses_the_last_example_of_a_task() -> None:
    tasks = {"other": [CHOICE, CHOICE, CHOICE, CHOICE._replace(gold=1)]}
    assert metrics.metaicl_accuracy(tasks) == 0.75
    assert metrics.metaicl_accuracy(tasks, published=True) == 1


def test_perplexity_weighs_texts_by_their_tokens() -> None:
    # exp((3 ln 2 + ln 16) / 4) = exp(7/4 ln 2); the mean of each text's own would be (2 + 16) / 2.
    assert metrics.perplexity([3 * math.log(2), math.log(16)], [3, 1]) == pytest.approx(2**1.75)
    with pytest.raises(UsageError, match="Losses and token counts must be as many; they are 1 and 2"):
        metrics.perplexity([1.0], [1, 1])
    with pytest.raises(UsageError, match="at least one predicted token"):
        metrics.perplexity([], [])


# ---- labels ----


def test_a_stray_label_is_a_class_of_its_own() -> None:
    # "yes ": F1 0. yes: precision 1, recall 1/2, F1 2/3. no: F1 1. Macro (0 + 2/3 + 1) / 3.
    scores = metrics.label_scores(["yes", "yes ", "no"], ["yes", "yes", "no"])
    assert scores.macro_f1 == pytest.approx(5 / 9)
    assert scores[:4] == pytest.approx([2 / 3] * 4)


def test_with_labels_a_stray_one_is_only_a_miss() -> None:
    # Of the 2 labels said 2 are right, of the 3 there are 2 were said. Macro (2/3 + 1) / 2.
    scores = metrics.label_scores(["yes", "yes ", "no"], ["yes", "yes", "no"], labels=["yes", "no"])
    assert scores == pytest.approx((2 / 3, 1, 2 / 3, 4 / 5, 5 / 6))


def test_a_label_that_never_occurs_lowers_macro_f1() -> None:
    assert metrics.label_scores(["a"], ["a"], labels=["a", "b"]).macro_f1 == 0.5
    assert metrics.label_scores(["b"], ["a"], labels=["c"]) == (0, 0, 0, 0, 0)


def test_labels_and_golds_must_pair() -> None:
    with pytest.raises(UsageError, match="Predicted and gold labels must be as many; they are 1 and 2"):
        metrics.label_scores(["a"], ["a", "b"])


# ---- edits ----


def test_zsre_gives_credit_by_the_token() -> None:
    assert metrics.argmax_accuracy([5, 7, 9], [5, 8, 9]) == pytest.approx(2 / 3)
    with pytest.raises(UsageError, match="Predicted and target tokens must be as many; they are 1 and 2"):
        metrics.argmax_accuracy([5], [5, 6])


def test_counterfact_compares_means_as_published_and_sums_as_written() -> None:
    new, true = [1.0, 1.0], [1.5]  # means 1 < 1.5, sums 2 > 1.5
    assert metrics.counterfact_success(new, true)
    assert not metrics.counterfact_success(new, true, per_token=False)


def test_counterfact_is_reversed_for_neighbours_and_never_won_by_a_tie() -> None:
    assert not metrics.counterfact_success([1.0], [2.0], neighbourhood=True)
    assert metrics.counterfact_success([2.0], [1.0], neighbourhood=True)
    assert not metrics.counterfact_success([1.0], [1.0])
    assert not metrics.counterfact_success([1.0], [1.0], neighbourhood=True)
    with pytest.raises(UsageError, match="the new one has 0, the true one 1"):
        metrics.counterfact_success([], [1.0])


@pytest.mark.parametrize(
    ("parts", "published"),
    [((55.9, 54.7, 56.3), 55.6), ((99.8, 96.7, 57.1), 79.2), ((98.5, 82.2, 57.0), 75.3), ((82.6, 75.2, 55.8), 69.2)],
)
def test_the_score_of_an_editor_is_that_of_the_papers_table(parts: tuple[float, ...], published: float) -> None:
    assert metrics.editing_score(*parts) == pytest.approx(published, abs=0.051)


def test_an_editor_that_destroys_its_neighbours_scores_nothing() -> None:
    assert metrics.editing_score(1, 1, 0) == 0


# ---- LongBench ----


def test_longbench_f1_of_nothing_left_is_zero() -> None:
    assert longbench_scores.qa_f1("The.", "a") == 0
    assert longbench_scores.qa_f1("The red cat", "a cat") == pytest.approx(2 / 3)


def test_each_class_named_beside_the_right_one_lowers_its_score() -> None:
    classes = ["State", "City", "Other location", "location"]
    assert longbench_scores.classification("City or State", "City", classes=classes) == 0.5
    assert longbench_scores.classification("city", "City", classes=classes) == 0
    assert longbench_scores.classification("State", "City", classes=classes) == 0
    assert longbench_scores.classification("Other location", "Other location", classes=classes) == 1
    # Named are both, and neither is part of the answer.
    assert longbench_scores.classification("Other location", "location", classes=classes) == 0.5


def test_every_class_within_the_answers_name_is_left_out() -> None:
    # The released scorer skips "location", which follows one that it removes, and gives 1/2.
    classes = ["Other", "location", "Other location"]
    assert longbench_scores.classification("Other location", "Other location", classes=classes) == 1
    with pytest.raises(UsageError, match="names of all classes"):
        longbench_scores.score("trec", "City", ["City"])


def test_all_numbers_of_a_prediction_count() -> None:
    assert longbench_scores.count("7, or 12, or 7", "7") == pytest.approx(2 / 3)
    assert longbench_scores.count("07", "7") == 0
    assert longbench_scores.count("seven", "7") == 0


def test_retrieval_looks_for_the_number_of_the_paragraph() -> None:
    assert longbench_scores.retrieval("Paragraph 3. Paragraph 5", "Paragraph 3") == 0.5
    assert longbench_scores.retrieval("13", "Paragraph 3") == 0
    with pytest.raises(UsageError, match="such as 'Paragraph 3'; it is '3'"):
        longbench_scores.retrieval("3", "3")


def test_longbench_rouge_counts_different_words_within_sentences() -> None:
    # Words b, c, d of {a, b, c, d} and {b, c, d, e}: 3/4 each way, though b stands twice.
    assert longbench_scores.rouge_l("b b c. d e", "a b c. d") == pytest.approx(3 / 4)
    # In order within a sentence only one of two; with a full stop between, both.
    assert longbench_scores.rouge_l("b a", "a b") == pytest.approx(1 / 2)
    assert longbench_scores.rouge_l("b. a", "a b") == pytest.approx(1)


def test_longbench_rouge_minds_case_commas_and_blank_rests() -> None:
    assert longbench_scores.rouge_l("Cat, dog", "cat dog") == pytest.approx(1 / 2)
    # Both end in a blank sentence: {cat, ""} and {dog, ""} share one of two.
    assert longbench_scores.rouge_l("cat. ", "dog. ") == pytest.approx(1 / 2)
    assert longbench_scores.rouge_l("cat.", "dog.") == 0
    assert longbench_scores.rouge_l("", "cat") == 0
    assert longbench_scores.rouge_l("cat", "...") == 0


def test_longbench_rouge_takes_the_subsequence_that_the_package_takes() -> None:
    # "b a" shares a or b with "a b", and the package takes a; "a" gives a again: 1 of 2. Had it taken b, it would be 1.
    assert longbench_scores.rouge_l("a b", "b a. a") == pytest.approx(1 / 2)


def test_only_tasks_asked_with_examples_are_cut_at_the_first_line() -> None:
    prediction = "\n\nred cat\nQuestion: dog"
    assert longbench_scores.score("triviaqa", prediction, ["dog", "cat"]) == pytest.approx(2 / 3)
    # Precision 1/4 of "red cat question dog".
    assert longbench_scores.score("hotpotqa", prediction, ["dog", "cat"]) == pytest.approx(2 / 5)
    assert longbench_scores.score("trec", "City\nState", ["City"], classes=["State", "City"]) == 1
    assert longbench_scores.score("samsum", "a\nb", ["b"]) == 0
    assert longbench_scores.score("qmsum", "a\nb", ["b"]) == pytest.approx(2 / 3)


def test_a_data_set_has_its_own_scorer() -> None:
    assert longbench_scores.score("passage_count", "7", ["7"]) == 1
    assert longbench_scores.score("passage_retrieval_en", "Paragraph 7", ["Paragraph 7"]) == 1
    with pytest.raises(UnknownNameError, match=r"no LongBench data set 'hotpot'\. Did you mean 'hotpotqa'"):
        longbench_scores.score("hotpot", "7", ["7"])


# ---- summaries ----


def test_rouge_is_without_a_stemmer_unless_asked() -> None:
    pytest.importorskip("rouge_score")
    ((_, _, plain, _),) = summary_scores.rouge(["The cats jumped"], ["the cat jumps"])
    ((_, _, stemmed, _),) = summary_scores.rouge(["The cats jumped"], ["the cat jumps"], stemmer=True)
    assert plain == pytest.approx(1 / 3)
    assert stemmed == 1


def test_rouge_is_f1_on_words_without_case_or_signs() -> None:
    pytest.importorskip("rouge_score")
    # Words: 3 shared of 3 and 4, F1 6/7. Pairs: "the cat" of 2 and 3, F1 2/5. In order: the cat, F1 4/7.
    (scores,) = summary_scores.rouge(["The cat, SAT"], ["sat the cat down"])
    assert scores == pytest.approx((6 / 7, 2 / 5, 4 / 7, 4 / 7))


def test_only_line_breaks_cut_a_summary() -> None:
    pytest.importorskip("rouge_score")
    stops, lines = summary_scores.rouge(["b c. a", "b c.\na"], ["a. b c", "a.\nb c"])
    # In order: b c of 3. Line by line: all three.
    assert (stops.rouge_l, stops.rouge_l_sum) == pytest.approx((2 / 3, 2 / 3))
    assert (lines.rouge_l, lines.rouge_l_sum) == pytest.approx((2 / 3, 1))


def test_summaries_and_texts_must_pair() -> None:
    with pytest.raises(UsageError, match="there are 2, 1"):
        summary_scores.rouge(["a", "b"], ["a"])


def test_missing_packages_are_named_with_what_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    monkeypatch.delitem(sys.modules, "rouge_score.rouge_scorer", raising=False)
    monkeypatch.setitem(sys.modules, "bert_score", None)
    with pytest.raises(UsageError, match=r"'rouge_score', which is not installed: pip install rouge-score"):
        summary_scores.rouge(["a"], ["a"])
    with pytest.raises(UsageError, match="'bert_score', which is not installed: pip install bert-score"):
        summary_scores.bert_precision(["a"], ["a"])


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
    summary_scores._bert_scorer.cache_clear()
    summary_scores._classifier.cache_clear()


def test_bert_precision_is_against_the_article_by_one_model_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_open: None
) -> None:
    (tmp_path / "bert_score.py").write_text(BERT_SCORE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bert_score", raising=False)
    try:
        assert summary_scores.bert_precision([], []) == []
        for _ in range(3):
            assert summary_scores.bert_precision(["short"], ["a long article"]) == [0.75]
        assert len(sys.modules["bert_score"].opened) == 1
    finally:
        sys.modules.pop("bert_score", None)


def test_truth_is_the_probability_of_class_one() -> None:
    # Odds of 3 to 1, 1 to 1 and 1 to e^2000.
    assert summary_scores.truth([(0, math.log(3)), (5, 5), (1000, -1000)]) == pytest.approx([0.75, 0.5, 0])
    with pytest.raises(UsageError, match="a pair has 3 logits"):
        summary_scores.truth([(0, 1, 2)])


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
    found = [summary_scores.factkb([first], [second], model=str(folder))[0] for first, second in pairs]
    logits = [model(**words(first, second, return_tensors="pt")).logits[0] for first, second in pairs]
    assert found == pytest.approx([torch.softmax(each, dim=-1)[1].item() for each in logits], abs=1e-6)
    assert abs(found[0] - found[1]) > 1e-3
    # The longer one is cut, here the article.
    cut = summary_scores.factkb(["A cat."] * 2, ["The cat ran away.", "The cat ran away from Rex."], model=str(folder))
    assert cut[0] != found[0]
    assert cut[1] == summary_scores.factkb(["A cat."], ["The cat ran away from us."], model=str(folder))[0]
    assert opened == [(str(folder),)]


def test_a_factkb_that_cannot_be_used_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_open: None
) -> None:
    three = str(factkb_folder(tmp_path / "three", labels=3))
    with pytest.raises(UsageError, match="FactKB has two classes; a pair has 3 logits"):
        summary_scores.factkb(["a"], ["b"], model=three)

    def unreachable(name: str, **how: Any) -> None:
        raise OSError(f"We couldn't connect to the hub to load {name}.\nCheck it.")

    monkeypatch.setattr("byheart.model.loading.AutoTokenizer.from_pretrained", unreachable)
    with pytest.raises(ModelError, match=r"'bunsenfeng/FactKB' could not .* load roberta-base\. Where the hub cannot"):
        summary_scores.factkb([], [])
    with pytest.raises(ModelError, match=r"give the folder of a copy\."):
        list(Summary(dataset="xsum", factkb=True).items([{"article": "a b", "summary": "a"}], 0))


def test_scores_need_no_package_before_they_are_asked_for() -> None:
    code = (
        "import sys; from byheart.evaluation.metrics import longbench, scores, summary\n"
        "sys.exit(any(name in sys.modules for name in ('rouge_score', 'nltk')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
