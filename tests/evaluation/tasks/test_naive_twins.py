"""Tasks sum up a published score answer by answer; a naive twin computes it from all answers at once."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest

from byheart.evaluation.results import Result
from byheart.evaluation.rows import make_rows
from byheart.evaluation.run_folder import Outcome
from byheart.evaluation.runner import parts_of
from byheart.evaluation.task import Answer, Question, Task
from byheart.evaluation.tasks.dialogue import Dialogue
from byheart.evaluation.tasks.edit import Edit
from byheart.evaluation.tasks.icl import ICL
from byheart.evaluation.tasks.multitask import Multitask
from byheart.evaluation.tasks.profile import Profile
from byheart.evaluation.tasks.stream import Stream
from tests.naive.scores import Choice, choice_accuracy, label_scores, likeliest, metaicl_accuracy, perplexity


def measured(task: Task, pairs: Sequence[tuple[Question, Answer]]) -> list[Result]:
    """The rows of a task whose questions were answered so, each question an item of its own."""
    outcomes = [
        Outcome(n, "", 0, question.conditions, answer.text, parts_of(task, question, answer), 0, 0, 0.0, 0.0)
        for n, (question, answer) in enumerate(pairs)
    ]
    rows = make_rows(task, "data", "full", {"full": outcomes})
    return rows + task.summary(rows)


def random_choices(seed: int, count: int, options: int = 3) -> list[Choice]:
    """Choices whose options have one token to five."""
    draw = random.Random(seed)
    return [
        Choice(
            [[-draw.uniform(0.1, 4) for _ in range(draw.randint(1, 5))] for _ in range(options)],
            draw.randrange(options),
        )
        for _ in range(count)
    ]


def answered(choice: Choice) -> Answer:
    """The same as a runner answers it: losses are summed, and positive."""
    losses = tuple(-math.fsum(option) for option in choice.options)
    return Answer(losses=losses, tokens=tuple(map(len, choice.options)))


@pytest.mark.parametrize("per_token", [False, True])
def test_the_best_choice_is_the_likeliest(per_token: bool) -> None:
    choices = random_choices(0, 50)
    assert [answered(choice).best(each_token=per_token) for choice in choices] == [
        likeliest(choice, per_token=per_token) for choice in choices
    ]
    # Sums favour short options, so the two differ.
    assert any(likeliest(choice) != likeliest(choice, per_token=True) for choice in choices)


def test_of_equal_choices_the_first_is_best() -> None:
    assert likeliest(Choice([[-1.0], [-1.0]], 0)) == Answer(losses=(1.0, 1.0), tokens=(1, 1)).best() == 0


def test_the_accuracy_of_a_profile_is_the_share_of_likeliest_options() -> None:
    choices, names = random_choices(1, 40), ("food", "sport", "travel")
    pairs = [
        (Question("?", (names[choice.gold],), names, about={"kind": "category"}), answered(choice))
        for choice in choices
    ]
    found = {row.metric: row.value for row in measured(Profile(), pairs)}
    assert found["accuracy"] == pytest.approx(choice_accuracy(choices))
    predicted = [names[likeliest(choice)] for choice in choices]
    assert found["macro_f1"] == pytest.approx(label_scores(predicted, [names[each.gold] for each in choices]).macro_f1)


@pytest.mark.parametrize("each_token", [False, True])
def test_the_labels_of_multitask_are_scored_as_published(each_token: bool) -> None:
    choices, labels = random_choices(2, 60), ("yes", "no", "maybe")
    pairs = [
        (Question("?", (labels[choice.gold],), tuple(f" {label}" for label in labels)), answered(choice))
        for choice in choices
    ]
    rows = {row.metric: row.value for row in measured(Multitask(each_token=each_token), pairs)}
    predicted = [labels[likeliest(choice, per_token=each_token)] for choice in choices]
    expected = label_scores(predicted, [labels[choice.gold] for choice in choices])
    assert (rows["accuracy"], rows["macro_f1"]) == pytest.approx((expected.accuracy, expected.macro_f1))


def test_a_stray_word_is_a_label_of_its_own_as_published() -> None:
    # "yes ": F1 0. yes: precision 1, recall 1/2, F1 2/3. no: F1 1. Macro (0 + 2/3 + 1) / 3.
    predicted, golds = ["yes", "yes ", "no"], ["yes", "yes", "no"]
    pairs = [(Question("?", (gold,)), Answer(word)) for word, gold in zip(predicted, golds, strict=True)]
    rows = {row.metric: row.value for row in measured(Multitask(published=True), pairs)}
    assert rows["macro_f1"] == pytest.approx(5 / 9) == label_scores(predicted, golds).macro_f1
    assert rows["accuracy"] == pytest.approx(2 / 3) == label_scores(predicted, golds).accuracy


@pytest.mark.parametrize("task", [Dialogue(), Stream()], ids=lambda task: task.name)
def test_perplexity_weighs_texts_by_their_tokens(task: Task) -> None:
    # exp((3 ln 2 + ln 16) / 4) = exp(7/4 ln 2); the mean of each text's own would be (2 + 16) / 2.
    losses, tokens = [3 * math.log(2), math.log(16)], [3, 1]
    pairs = [(Question("?"), Answer(losses=(loss,), tokens=(n,))) for loss, n in zip(losses, tokens, strict=True)]
    rows = {row.metric: row for row in measured(task, pairs)}
    assert rows["perplexity"].value == pytest.approx(2**1.75) == perplexity(losses, tokens)
    assert rows["perplexity"].low <= rows["perplexity"].value <= rows["perplexity"].high
    assert rows["perplexity"].higher_is_better is False


def test_icl_is_the_mean_over_data_sets_of_their_accuracy_per_token() -> None:
    tasks = {name: random_choices(seed, 10 + seed) for seed, name in enumerate(("glue-mrpc", "poem", "hate"), start=3)}
    labels = ("a", "b", "c")
    pairs = [
        (Question("?", (labels[choice.gold],), labels, conditions={"demonstrations": 4, "set": name}), answered(choice))
        for name, choices in tasks.items()
        for choice in choices
    ]
    (mean,) = [row for row in measured(ICL(), pairs) if row.metric == "mean_accuracy"]
    assert mean.value == pytest.approx(metaicl_accuracy(tasks))
    assert dict(mean.conditions) == {"demonstrations": 4}


def test_the_score_of_edits_is_made_of_the_three_averages() -> None:
    pairs = []
    for metric, wins in (("efficacy", (1, 1)), ("paraphrase", (1, 0)), ("specificity", (0, 1))):
        for win in wins:
            # Of a neighbour the true object has to win.
            new_wins = win != (metric == "specificity")
            question = Question("?", choices=(" new", " true"), about={"metric": metric, "weight": 1.0})
            pairs.append((question, Answer(losses=(1.0, 2.0) if new_wins else (2.0, 1.0), tokens=(1, 1))))
    rows = {row.metric: row for row in measured(Edit(), pairs)}
    assert [rows[name].value for name in ("efficacy", "paraphrase", "specificity")] == [1.0, 0.5, 0.5]
    assert rows["score"].value == pytest.approx(3 / (1 + 2 + 2))
    assert rows["score"].n == 6
