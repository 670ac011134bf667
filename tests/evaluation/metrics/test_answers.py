"""Scores of answers on cases small enough to be worked out by hand; the numbers in comments are the working."""

from __future__ import annotations

import pytest

from byheart.errors import UsageError
from byheart.evaluation.metrics import answers as metrics


def test_the_best_gold_answer_counts() -> None:
    assert metrics.best(metrics.exact_match, "Muck", ["Mack", "muck"]) == 1
    assert metrics.best(metrics.token_f1, "red cat", ["dog", "cat", "cow"]) == pytest.approx(2 / 3)
    with pytest.raises(UsageError, match="no gold answer to score 'Muck' against"):
        metrics.best(metrics.exact_match, "Muck", [])


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
