"""MetaICL's own files as CCM asks them; the files are made up for this test, in the layout of the official ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from byheart.data.metaicl import UNSEEN
from byheart.data.records import rows
from byheart.errors import InputError
from byheart.evaluation.runner import choose
from byheart.evaluation.task import Answer, Item, Question
from byheart.evaluation.tasks import icl
from byheart.evaluation.tasks.icl import ICL
from byheart.generation.likelihood import likelihoods
from byheart.model.reading import Reading
from byheart.session.opening import load
from byheart.session.session import Session
from tests.conftest import Run


def line(task: str, text: str, n: int, options: Sequence[str] = ("good", "bad")) -> dict[str, Any]:
    return {"task": task, "input": f" {text} {n} ", "output": options[n % len(options)], "options": list(options)}


def written(folder: Path, task: str, *, queries: int = 3, long: int = 0) -> None:
    """Two seeds of 16 demonstrations, of which the first ``long`` of seed 100 are too long; and queries."""
    (folder / task).mkdir(parents=True)
    texts = {
        "16_100_train": [line(task, "w " * (300 if n < long else 1) + "hundred", n) for n in range(16)],
        "16_13_train": [line(task, "thirteen", n) for n in range(16)],
        "16_100_test": [line(task, "asked", n) for n in range(queries)],
        # What is not read: other sizes, parts and seeds of the questions.
        "16384_100_train": [line(task, "many", 1)],
        "16_100_dev": [line(task, "dev", 1)],
        "16_13_test": [line(task, "again", n) for n in range(queries)],
    }
    for name, lines in texts.items():
        file = folder / task / f"{task}_{name}.jsonl"
        file.write_text("".join(f"{json.dumps(each)}\n" for each in lines), encoding="utf-8")


@pytest.fixture(scope="module")
def opened(tiny_folder: Path) -> Session:
    return load(str(tiny_folder), dtype="float32", method="nothing")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for task, long in (("poem_sentiment", 0), ("glue-mrpc", 0), ("sick", 10)):
        written(tmp_path / "data", task, long=long)
    # One that models are trained on.
    written(tmp_path / "data", "paws")
    return tmp_path / "data"


def items(opened: Session, folder: Path, **options: Any) -> dict[str, Item]:
    (task,) = ICL(published=True, **options).split(opened.encoder)
    return {str(item.questions[0].conditions["set"]): item for item in task.items(rows(str(folder)), 0)}


def test_the_unseen_tasks_are_asked_after_the_demonstrations_of_their_seed(opened: Session, folder: Path) -> None:
    found = items(opened, folder, demonstrations=[0, 1, 16])
    assert found.keys() == {"poem_sentiment", "glue-mrpc", "sick"} <= set(UNSEEN)
    assert len(UNSEEN) == len(set(UNSEEN)) == 26
    item = found["poem_sentiment"]
    words = [opened.encoder.decode(list(text)).split() for text in item.texts]
    joined = ["".join(text) for text in words]
    assert joined == [f"Input:whundred{n}Output:{'bad' if n % 2 else 'good'}" for n in range(16)]
    assert [(asked.after, asked.conditions["demonstrations"]) for asked in item.questions] == [
        *[(0, 0)] * 3,
        *[(1, 1)] * 3,
        *[(16, 16)] * 3,
    ]
    asked = item.questions[0]
    assert "".join(opened.encoder.decode(list(asked.tokens)).split()).startswith("Input:asked")
    assert "".join(opened.encoder.decode(list(asked.tokens)).split()).endswith("Output:")
    assert asked.choices == ("good", "bad")
    assert [opened.encoder.decode(list(tokens)).strip() for tokens in asked.choice_tokens] == ["good", "bad"]
    # The mean leaves glue-mrpc out; the labels of poem_sentiment alone have a prior.
    assert {name for name, each in found.items() if each.questions[0].prior} == {"poem_sentiment"}


def test_demonstrations_of_seed_13_stand_in_for_those_that_are_too_long(opened: Session, folder: Path) -> None:
    texts = ["".join(opened.encoder.decode(list(text)).split()) for text in items(opened, folder)["sick"].texts]
    assert ["hundred" in text for text in texts] == [True] * 6 + [False] * 10
    assert "thirteen0" in texts[6]


def test_no_more_demonstrations_are_read_than_fit_before_a_query(
    opened: Session, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = items(opened, folder)["poem_sentiment"]
    asked = item.questions[-1]
    room = sum(map(len, item.texts[:3])) + len(asked.tokens) + max(map(len, asked.choice_tokens))
    monkeypatch.setattr(icl, "MOST_TOKENS", room)
    found = items(opened, folder)["poem_sentiment"].questions
    again = next(each for each in found if each.text == asked.text and each.conditions["demonstrations"] == 16)
    assert (asked.after, again.after) == (16, 3)


def test_a_label_is_chosen_over_its_prior() -> None:
    """log p(y|x) - log p(y|"Output:"): the likelier label of all may not be the one that the text made likelier."""
    asked = Question("?", ("a",), ("a", "b"), prior=(5,))
    found = Answer(losses=(4.0, 3.0), tokens=(2, 2), prior_losses=(6.0, 3.5))
    assert ICL().score(asked, found) == {"accuracy": 1.0}
    assert ICL().score(Question("?", ("a",), ("a", "b")), Answer(losses=(4.0, 3.0), tokens=(2, 2))) == {"accuracy": 0.0}


def test_a_prior_is_measured_on_the_bare_model(opened: Session) -> None:
    session = opened.fork()
    asked = Question("x", ("a",), ("a", "b"), tokens=(9, 8), choice_tokens=((5,), (6, 7)), prior=(4,))
    (told,) = choose([(session, asked)])
    choices = [torch.tensor([5]), torch.tensor([6, 7])]
    (prior,) = likelihoods(opened.backbone, [torch.tensor([4])], [Reading()], [choices])
    (found,) = likelihoods(opened.backbone, [torch.tensor([9, 8])], [Reading()], [choices])
    assert told.answer.prior_losses == pytest.approx([each.loss for each in prior])
    assert told.answer.losses == pytest.approx([each.loss for each in found])


def test_files_that_are_not_there_are_named(opened: Session, folder: Path) -> None:
    (folder / "sick" / "sick_16_100_train.jsonl").unlink()
    with pytest.raises(InputError, match=r"'sick_16_100_train\.jsonl' is not there, which published needs of sick"):
        items(opened, folder)
    with pytest.raises(InputError, match=r"MetaICL's files of its 26 unseen tasks.* 40 records are of paws"):
        items(opened, folder / "paws")


def test_the_command_gives_the_published_mean(run: Run, tiny_folder: Path, folder: Path) -> None:
    command = ["evaluate", "icl", "--method", "nothing,compressed-kv:segment_tokens=0", "--data", str(folder)]
    options = ["-o", "published=true", "-o", "demonstrations=[0,2]", "--model", str(tiny_folder), "--json"]
    result = run(*command, *options)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    means = [row for row in found if row["metric"] == "mean_accuracy"]
    assert len(means) == 4
    for mean in means:
        parts = [
            row["value"]
            for row in found
            if row["metric"] == "accuracy"
            and (row["method"], row["demonstrations"]) == (mean["method"], mean["demonstrations"])
            and row["set"] != "glue-mrpc"
        ]
        assert len(parts) == 2
        assert mean["value"] == pytest.approx(sum(parts) / 2)
