"""How data sets of classification and multiple choice are asked, word for word."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from byheart.data.mixture import pack, prompted, prompts_of
from byheart.data.prompts import FilledPrompt, fill_prompt, prompts
from byheart.errors import InputError, UnknownNameError, UsageError
from byheart.text.encoder import ChatEncoder
from tests.conftest import tiny_tokenizer

PAIR: dict[str, Any] = {"context": "It rains.", "question": "It is wet.", "label": 0}
FOUR = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder(tiny_tokenizer())


# ---- prompts ----


@pytest.mark.parametrize(
    ("dataset", "record", "text", "labels", "right"),
    [
        (
            "rte",
            PAIR,
            "### Premise:It rains. ### Hypothesis:It is wet. ### Relationship "
            "(choose between 'entailment' and 'not entailment'):",
            ("entailment", "not_entailment"),
            "entailment",
        ),
        (
            "wnli",
            PAIR,
            "### Premise:It rains. ### Hypothesis:It is wet. ### Relationship "
            "(choose between 'entailment' and 'not entailment'):",
            ("not_entailment", "entailment"),
            "not_entailment",
        ),
        (
            "mnli",
            {**PAIR, "label": 2},
            "### Premise:It rains. ### Hypothesis:It is wet. ### Relationship (entailment, contradiction or neutral):",
            ("entailment", "neutral", "contradiction"),
            "contradiction",
        ),
        (
            "cb",
            {**PAIR, "label": 1},
            "### Premise:It rains. ### Hypothesis:It is wet. ### Relationship (entailment, contradiction or neutral):",
            ("entailment", "contradiction", "neutral"),
            "contradiction",
        ),
        (
            "boolq",
            {**PAIR, "choices": ["no", "yes"], "label": 1},
            "Read the Passage and answer the Question with true or false "
            "### Question:It is wet. ### Passage: It rains. ### Answer:",
            ("false", "true"),
            "true",
        ),
        (
            "copa",
            {**PAIR, "choices": ["ice", "mud"], "label": 1},
            "### Premise:It rains. ### Choice1:ice ### Choice2:mud ### Question:It is wet. ### Choice:",
            ("Choice1", "Choice2"),
            "Choice2",
        ),
        (
            "race",
            {**PAIR, "choices": FOUR, "label": 3},
            "Read Context and answer question ### Context:It rains. ### Question:It is wet. "
            "### Options:A.a. B.b. C.c. D.d### Choice:",
            ("A", "B", "C", "D"),
            "D",
        ),
        (
            "commonsense_qa",
            {"question": "Why?", "choices": FOUR[:3], "label": 0},
            "According to the Question, select the best choice among the Options. "
            "### Question:Why? ### Options:A.a. B.b. C.c ### Choice:",
            ("A", "B", "C"),
            "A",
        ),
        (
            "swag",
            {"context": "He", "choices": FOUR, "label": 2},
            "Select the correct sentence that best completes the Passage below. "
            "### Passage:He ### Options:A.a. B.b. C.c. D.d### Choice:",
            ("A", "B", "C", "D"),
            "C",
        ),
        (
            "newsgroups20",
            {"context": "Cars.", "choices": ["rec.autos", "sci.med"], "label": 0},
            "### Sentence:Cars. ### Class:",
            ("rec.autos", "sci.med"),
            "rec.autos",
        ),
    ],
)
def test_a_record_is_asked_as_published(
    dataset: str, record: dict[str, Any], text: str, labels: tuple[str, ...], right: str
) -> None:
    assert fill_prompt({**record, "dataset": dataset}, 1) == FilledPrompt(dataset, text, labels, right)


def test_the_name_of_a_data_set_may_be_in_capitals() -> None:
    assert fill_prompt({**PAIR, "dataset": "RTE"}, 1).dataset == "rte"


@pytest.mark.parametrize("names", [("newsgroups20", "20_newsgroups_fixed"), ("race", "race_high"), ("race", "dream")])
def test_data_sets_of_one_kind_share_a_prompt(names: tuple[str, str]) -> None:
    assert prompts()[names[0]] is prompts()[names[1]]


@pytest.mark.parametrize(("words", "passage"), [(0, "a  b\nc"), (3, "a  b\nc"), (2, "a b"), (1, "a")])
def test_a_passage_is_cut_after_so_many_words(words: int, passage: str) -> None:
    record = {**PAIR, "dataset": "rte", "context": "a  b\nc"}
    assert fill_prompt(record, 1, words=words).text.startswith(f"### Premise:{passage} ### Hypothesis")


def test_an_unknown_data_set_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        UnknownNameError, match=r"no prompt of multitask for the data set 'bolq'\. Did you mean 'boolq'"
    ):
        fill_prompt({**PAIR, "dataset": "bolq"}, 1)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"dataset": ""}, "Record 7 has no 'dataset'"),
        ({"context": ""}, "Record 7 has no 'context'"),
        ({"question": None}, "Record 7 has no 'question'"),
        ({"label": None}, "Record 7 has no 'label'"),
        ({"label": 2}, "Record 7 has 2 choices and the label 2; give one of two or more"),
        ({"label": -1}, "Record 7 has 2 choices and the label -1"),
        ({"choices": ["a"], "label": 0}, "Record 7 has 1 choices and the label 0"),
        ({"dataset": "swag"}, "Record 7 has no 'choices'"),
    ],
)
def test_a_record_that_cannot_be_asked_is_named(changed: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        fill_prompt({**PAIR, "dataset": "rte", **changed}, 7)


# ---- episodes ----


@pytest.mark.parametrize("supervised", ["label", "all"])
def test_an_episode_is_the_prompt_its_label_and_an_end(supervised: str, encoder: ChatEncoder) -> None:
    (episode,) = prompted(encoder, [FilledPrompt("rte", "Is it?", ("yes", "no"), "no")], supervised=supervised)
    assert episode.segments == ()
    assert encoder.decode(episode.target[:-1]) == "Is it? no"
    assert int(episode.target[-1]) == min(encoder.stop_tokens)
    assert episode.answer == (len("Is it?") + len(encoder.start) if supervised == "label" else 1)


def test_a_share_of_the_records_is_drawn_by_the_seed(tmp_path: Any) -> None:
    file = tmp_path / "rte.jsonl"
    file.write_text("".join(json.dumps({**PAIR, "dataset": "rte", "context": f"{n}"}) + "\n" for n in range(20)))
    assert len(prompts_of([str(file)])) == 20
    drawn = prompts_of([f"{file}:0.25"])
    assert len({prompt.text for prompt in drawn}) == 5
    assert drawn == prompts_of([f"{file}:0.25"])
    assert drawn != prompts_of([f"{file}:0.25"], seed=1)
    # At least one, however small the share.
    assert len(prompts_of([f"{file}:0.001"])) == 1
    for share in ("0", "1.5", "-1"):
        with pytest.raises(UsageError, match=r"must be above 0 and at most 1; it is"):
            prompts_of([f"{file}:{share}"])


def test_a_file_without_records_is_refused(tmp_path: Any) -> None:
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(InputError, match=r"none\.jsonl' holds no record"):
        prompts_of([str(tmp_path / "none.jsonl")])


# ---- answers in words ----

NEWS: dict[str, Any] = {"dataset": "newsqa", "context": "Ann left.", "question": "Who left?"}


def test_a_question_in_words_has_its_answers_and_no_labels() -> None:
    found = fill_prompt({**NEWS, "answers": ["Ann", "She"], "context": "w " * 999}, 1)
    assert (found.labels, found.right, found.others) == ((), "Ann", ("She",))
    assert len(found.text.split()) > 999
    assert fill_prompt({**NEWS, "answers": {"text": []}}, 1).right == "unanswerable"
    assert fill_prompt({**NEWS, "answers": ["Ann"]}, 1).text == (
        "Read Context and answer question ### Context:Ann left. ### Question:Who left? ### Answer:"
    )


def test_the_first_records_alone_are_asked(tmp_path: Path) -> None:
    file = tmp_path / "rte.jsonl"
    file.write_text("".join(f"{json.dumps({**PAIR, 'dataset': 'rte', 'context': str(n)})}\n" for n in range(20)))
    first = {f"### Premise:{n} " for n in range(4)}
    assert {asked.text[: len("### Premise:0 ")] for asked in prompts_of([str(file)], most=4)} == first
    assert len(prompts_of([f"{file}:0.5"], most=4)) == 2


def test_packed_prompts_are_rows_of_one_length(encoder: ChatEncoder) -> None:
    asked = [FilledPrompt("newsqa", f"Question {n}?", (), "yes") for n in range(5)]
    episodes = prompted(encoder, asked, supervised="all")
    whole = torch.cat([episode.target for episode in episodes])
    rows = pack(episodes, 16)
    assert {len(row.target) for row in rows[:-1]} == {16}
    assert torch.equal(torch.cat([row.target for row in rows]), whole[: sum(len(row.target) for row in rows)])
    assert len(whole) - sum(len(row.target) for row in rows) <= 1
    assert {row.answer for row in rows} == {1}
