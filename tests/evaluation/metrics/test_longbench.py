"""LongBench's scorers on cases worked out by hand; the numbers in comments are the working."""

from __future__ import annotations

import pytest

from byheart.errors import UnknownNameError, UsageError
from byheart.evaluation.metrics import longbench


def test_longbench_f1_of_nothing_left_is_zero() -> None:
    assert longbench.qa_f1("The.", "a") == 0
    assert longbench.qa_f1("The red cat", "a cat") == pytest.approx(2 / 3)


def test_each_class_named_beside_the_right_one_lowers_its_score() -> None:
    classes = ["State", "City", "Other location", "location"]
    assert longbench.classification("City or State", "City", classes=classes) == 0.5
    assert longbench.classification("city", "City", classes=classes) == 0
    assert longbench.classification("State", "City", classes=classes) == 0
    assert longbench.classification("Other location", "Other location", classes=classes) == 1
    # Named are both, and neither is part of the answer.
    assert longbench.classification("Other location", "location", classes=classes) == 0.5


def test_every_class_within_the_answers_name_is_left_out() -> None:
    # The released scorer skips "location", which follows one that it removes, and gives 1/2.
    classes = ["Other", "location", "Other location"]
    assert longbench.classification("Other location", "Other location", classes=classes) == 1
    with pytest.raises(UsageError, match="names of all classes"):
        longbench.score("trec", "City", ["City"])


def test_all_numbers_of_a_prediction_count() -> None:
    assert longbench.count("7, or 12, or 7", "7") == pytest.approx(2 / 3)
    assert longbench.count("07", "7") == 0
    assert longbench.count("seven", "7") == 0


def test_retrieval_looks_for_the_number_of_the_paragraph() -> None:
    assert longbench.retrieval("Paragraph 3. Paragraph 5", "Paragraph 3") == 0.5
    assert longbench.retrieval("13", "Paragraph 3") == 0
    with pytest.raises(UsageError, match="such as 'Paragraph 3'; it is '3'"):
        longbench.retrieval("3", "3")


def test_longbench_rouge_counts_different_words_within_sentences() -> None:
    # Words b, c, d of {a, b, c, d} and {b, c, d, e}: 3/4 each way, though b stands twice.
    assert longbench.rouge_l("b b c. d e", "a b c. d") == pytest.approx(3 / 4)
    # In order within a sentence only one of two; with a full stop between, both.
    assert longbench.rouge_l("b a", "a b") == pytest.approx(1 / 2)
    assert longbench.rouge_l("b. a", "a b") == pytest.approx(1)


def test_longbench_rouge_minds_case_commas_and_blank_rests() -> None:
    assert longbench.rouge_l("Cat, dog", "cat dog") == pytest.approx(1 / 2)
    # Both end in a blank sentence: {cat, ""} and {dog, ""} share one of two.
    assert longbench.rouge_l("cat. ", "dog. ") == pytest.approx(1 / 2)
    assert longbench.rouge_l("cat.", "dog.") == 0
    assert longbench.rouge_l("", "cat") == 0
    assert longbench.rouge_l("cat", "...") == 0


def test_longbench_rouge_takes_the_subsequence_that_the_package_takes() -> None:
    # "b a" shares a or b with "a b", and the package takes a; "a" gives a again: 1 of 2. Had it taken b, it would be 1.
    assert longbench.rouge_l("a b", "b a. a") == pytest.approx(1 / 2)


def test_only_tasks_asked_with_examples_are_cut_at_the_first_line() -> None:
    prediction = "\n\nred cat\nQuestion: dog"
    assert longbench.score("triviaqa", prediction, ["dog", "cat"]) == pytest.approx(2 / 3)
    # Precision 1/4 of "red cat question dog".
    assert longbench.score("hotpotqa", prediction, ["dog", "cat"]) == pytest.approx(2 / 5)
    assert longbench.score("trec", "City\nState", ["City"], classes=["State", "City"]) == 1
    assert longbench.score("samsum", "a\nb", ["b"]) == 0
    assert longbench.score("qmsum", "a\nb", ["b"]) == pytest.approx(2 / 3)


def test_a_data_set_has_its_own_scorer() -> None:
    assert longbench.score("passage_count", "7", ["7"]) == 1
    assert longbench.score("passage_retrieval_en", "Paragraph 7", ["Paragraph 7"]) == 1
    with pytest.raises(UnknownNameError, match=r"no LongBench data set 'hotpot'\. Did you mean 'hotpotqa'"):
        longbench.score("hotpot", "7", ["7"])


def test_code_is_its_first_line_that_has_no_comment() -> None:
    answer = "    return muck"
    said = "\n# the next line\n```python\n    return muck // 2\n    return muck\n    return rex"
    assert longbench.score("lcc", said, [answer]) == 1
    # 11 of 15 characters on either side, in whole hundredths; whitespace counts.
    assert longbench.edit_similarity("return muck", answer) == round(100 * 22 / 26) / 100
    assert longbench.score("repobench-p", "return rex", ["if x:", "return rey"]) == 0.9
    assert longbench.edit_similarity("# nothing else", answer) == 0
    assert longbench.edit_similarity("", "") == 1
    assert longbench.edit_similarity("x", "") == 0
