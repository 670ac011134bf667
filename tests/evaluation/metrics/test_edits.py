"""Scores of edits, against the numbers of the paper's table."""

from __future__ import annotations

import pytest

from byheart.evaluation.metrics.edits import editing_score, prefers_new
from byheart.evaluation.task import Answer, Part, Question
from byheart.evaluation.tasks.edit import Edit
from tests.naive.scores import argmax_accuracy, mean_of_means


def test_the_new_object_wins_by_its_loss_per_token() -> None:
    assert prefers_new(1.0, 1.5)
    assert not prefers_new(1.5, 1.0)


def test_success_is_reversed_for_neighbours_and_never_won_by_a_tie() -> None:
    assert not prefers_new(1.0, 2.0, neighbourhood=True)
    assert prefers_new(2.0, 1.0, neighbourhood=True)
    assert not prefers_new(1.0, 1.0)
    assert not prefers_new(1.0, 1.0, neighbourhood=True)


def test_the_task_compares_means_as_published_not_sums() -> None:
    # Means 1 < 1.5, sums 2 > 1.5.
    question = Question("?", about={"metric": "efficacy", "weight": 1.0})
    assert Edit().score(question, Answer(losses=(2.0, 1.5), tokens=(2, 1))) == {"efficacy": Part(1.0, 1.0)}
    neighbour = Question("?", about={"metric": "specificity", "weight": 0.5})
    assert Edit().score(neighbour, Answer(losses=(2.0, 1.5), tokens=(2, 1))) == {"specificity": Part(0.0, 0.5)}


def test_zsre_gives_credit_by_the_token_and_each_edit_counts_once() -> None:
    predicted, target = [[5, 7, 9], [1], [2]], [[5, 8, 9], [1], [3]]
    shares = [argmax_accuracy(*pair) for pair in zip(predicted, target, strict=True)]
    assert shares == pytest.approx([2 / 3, 1, 0])
    # The first edit has one prompt, the second two.
    weights = [1.0, 0.5, 0.5]
    parts = []
    for said, wanted, weight in zip(predicted, target, weights, strict=True):
        right = sum(token == other for token, other in zip(said, wanted, strict=True))
        question = Question("?", about={"metric": "paraphrase", "weight": weight})
        answer = Answer(losses=(1.0,), tokens=(len(wanted),), likeliest=(right,))
        part = Edit().score(question, answer)["paraphrase"]
        assert isinstance(part, Part)
        parts.append(part)
    total = sum(part.total for part in parts) / sum(part.weight for part in parts)
    assert total == pytest.approx(mean_of_means([shares[:1], shares[1:]]))


@pytest.mark.parametrize(
    ("parts", "published"),
    [((55.9, 54.7, 56.3), 55.6), ((99.8, 96.7, 57.1), 79.2), ((98.5, 82.2, 57.0), 75.3), ((82.6, 75.2, 55.8), 69.2)],
)
def test_the_score_of_an_editor_is_that_of_the_papers_table(parts: tuple[float, ...], published: float) -> None:
    assert editing_score(*parts) == pytest.approx(published, abs=0.051)


def test_an_editor_that_destroys_its_neighbours_scores_nothing() -> None:
    assert editing_score(1, 1, 0) == 0
