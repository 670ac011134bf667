"""Sentences with marks: where the target stands, what is said of marks that do not fit, and what copies keep."""

from __future__ import annotations

import copy

import pytest

from byheart.errors import InputError
from byheart.text.fact_text import FactText, demonstration

SENTENCE = "Rome is the town of Rome Lee in Rome.\n"


def test_a_marked_sentence_is_its_text_and_the_last_place_is_the_targets() -> None:
    made = FactText(SENTENCE, subject="Rome Lee", target="Rome")
    assert made == SENTENCE
    assert (made.start, made.subject, made.target) == (SENTENCE.rindex("Rome"), "Rome Lee", "Rome")
    assert FactText(SENTENCE, target="Rome").subject == ""


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ({"target": "Bonn"}, r"'Rome is the town of Rome Lee in Rome.' does not hold 'Bonn', which is to be known"),
        ({"target": " "}, "does not hold ' '"),
        ({"subject": "Rome"}, "does not hold ''"),
        ({"subject": "Bo", "target": "Rome"}, "does not hold its subject 'Bo' before 'Rome'"),
        ({"subject": "in Rome.", "target": "Lee"}, "does not hold its subject 'in Rome.' before 'Lee'"),
    ],
)
def test_marks_that_do_not_fit_are_named(marks: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FactText(SENTENCE, **marks)


def test_copies_keep_the_marks() -> None:
    made = FactText(SENTENCE, subject="Rome Lee", target="Rome", demonstrations="x\n")
    for twin in (copy.deepcopy(made), copy.copy(made)):
        assert vars(twin) == vars(made)
        assert twin == made


def test_a_fact_is_shown_after_its_demonstrations() -> None:
    shown = FactText("It is Bo.\n", target="Bo", demonstrations=demonstration("It is Al.", "What is it? Al")).shown
    assert shown == "New Fact: It is Al.\nPrompt:\nWhat is it? Al\n\nNew Fact: It is Bo.\nPrompt:\n"
