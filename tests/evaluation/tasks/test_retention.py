"""MemoryLLM's own files and protocol; the files of this module are made up for it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from byheart.data.records import rows
from byheart.errors import InputError, UsageError
from byheart.evaluation.evaluate import evaluate
from byheart.evaluation.task import Fields, Item
from byheart.evaluation.tasks import build
from byheart.evaluation.tasks.retention import Retention
from byheart.session.opening import load
from byheart.text.encoder import ChatEncoder


def squad(folder: Path, name: str, *texts: str) -> str:
    """A file as SQuAD v2's own: two answerable questions about each text, and an impossible one before them."""
    none = {"question": "Who is not?", "answers": [], "is_impossible": True, "id": "n"}
    paragraphs = [
        {
            "context": text,
            "qas": [
                none,
                *(
                    {
                        "question": f"Which {word} is it?",
                        "answers": [{"text": word, "answer_start": text.index(word)}] * 2,
                        "is_impossible": False,
                        "id": word,
                    }
                    for word in text.split()[:2]
                ),
            ],
        }
        for text in texts
    ]
    content = {"version": "v2.0", "data": [{"title": "Cats", "paragraphs": paragraphs}]}
    (folder / name).write_text(json.dumps(content))
    return str(folder / name)


def annotation(long: tuple[int, int], *short: tuple[int, int], yes_no: str = "NONE") -> dict[str, Any]:
    spans = [{"start_token": start, "end_token": end} for start, end in short]
    long_answer = {"start_token": long[0], "end_token": long[1], "candidate_index": 0}
    return {"yes_no_answer": yes_no, "long_answer": long_answer, "short_answers": spans}


def natural(folder: Path, name: str, *annotations: Sequence[dict[str, Any]]) -> str:
    """A file as NaturalQuestions' simplified ones; pages are alike but for a number."""
    lines = []
    for number, found in enumerate(annotations):
        page = f"<H1> Cats </H1> <P> Muck{number} is the cat . </P> <P> Rex{number} . </P>".split(" ")
        tokens = [{"token": token, "html_token": token.startswith("<")} for token in page]
        row = {"question_text": f"who is cat {number}", "document_tokens": tokens, "annotations": list(found)}
        lines.append(json.dumps({**row, "long_answer_candidates": [], "example_id": number, "document_title": "C"}))
    (folder / name).write_text("\n".join(lines))
    return str(folder / name)


def saved(folder: Path, *places: int) -> str:
    np.save(folder / "indices.npy", np.array(places))
    return str(folder / "indices.npy")


@pytest.fixture
def encoder(tiny_folder: Path) -> ChatEncoder:
    return load(str(tiny_folder), method="nothing", dtype="float32").encoder


def items(task: Retention, records: Sequence[Fields], encoder: ChatEncoder, seed: int = 0) -> list[Item]:
    (split,) = task.split(encoder)
    return list(split.items(records, seed))


def test_a_published_list_says_what_is_asked_in_which_order(tmp_path: Path, encoder: ChatEncoder) -> None:
    records = rows(squad(tmp_path, "dev-v2.0.json", "Muck Rex is old.", "Bo Lu is young.", "Tom Tim is grey."))
    # Impossible questions have no place.
    task = Retention(distractors=1, every=1, indices=saved(tmp_path, 3, 0, 0))
    found = items(task, records, encoder)
    assert [item.questions[0].text for item in found] == ["Which Lu is it?", "Which Muck is it?", "Which Muck is it?"]
    assert [item.questions[0].answers for item in found] == [("Lu",), ("Muck",), ("Muck",)]
    assert [item.texts[0] for item in found] == ["Bo Lu is young.\n", "Muck Rex is old.\n", "Muck Rex is old.\n"]
    assert all(len(item.texts) == 2 and len(item.questions) == 2 for item in found)
    wrong = Retention(distractors=1, indices=saved(tmp_path, 0, 6))
    with pytest.raises(InputError, match=r"indices\.npy', number 2 is 6, but the data have 6 records with an answer"):
        items(wrong, records, encoder)


def test_the_first_annotator_of_a_natural_question_decides_its_place(tmp_path: Path, encoder: ChatEncoder) -> None:
    none, named = annotation((-1, -1)), annotation((3, 10), (4, 5))
    yes, other = annotation((3, 10), yes_no="YES"), annotation((10, 14), (11, 12))
    file = natural(tmp_path, "v1.0-simplified_nq-dev-all.jsonl", [none, named], [yes], [named, other], [other])
    records = rows(file)
    # What nobody reads of so large a file is not kept.
    assert not any({"document_tokens", "long_answer_candidates"} & record.keys() for record in records)
    task = Retention(distractors=1, every=1, indices=saved(tmp_path, 1, 0))
    found = items(task, records, encoder)
    assert [(item.texts[0], item.questions[0].text, item.questions[0].answers[0]) for item in found] == [
        ("Rex3 .\n", "who is cat 3", "Rex3"),
        ("Muck2 is the cat .\n", "who is cat 2", "Muck2"),
    ]


def test_the_published_form_has_its_words_and_no_special_tokens(tmp_path: Path, encoder: ChatEncoder) -> None:
    dev = natural(tmp_path, "dev.jsonl", [annotation((3, 10), (4, 5))])
    # A page without a marked paragraph is no distractor.
    paragraphs = [annotation((-1, -1)), *[annotation((3, 10))] * 400]
    train = natural(tmp_path, "train.jsonl", *([each] for each in paragraphs))
    task = Retention(distractors=2, every=1, other=train, published=True, indices=saved(tmp_path, 0))
    (item,) = items(task, rows(dev), encoder)
    plain = {"add_special_tokens": False}
    joined = " ".join(f"Muck{n} is the cat ." for n in range(1, 401))
    texts = [encoder.decode(text) for text in item.texts if not isinstance(text, str)]
    assert list(item.texts[0]) == encoder.tokenizer("Context: Muck0 is the cat .", **plain).input_ids
    assert len(item.texts[1]) == len(item.texts[2]) == 512
    assert joined.startswith(texts[1])
    assert texts[2] in joined
    assert not item.use_chat_template
    question = item.questions[0]
    assert question.text == "Questions: who is cat 0? Answer:"
    assert list(question.tokens) == encoder.tokenizer(question.text, **plain).input_ids
    assert (question.use_chat_template, question.max_tokens) == (False, 10)
    records = rows(squad(tmp_path, "dev.json", "Muck Rex is old."))
    (item,) = items(task, records, encoder)
    assert item.questions[0].text == "Questions: Which Muck is it? Answer:"


def test_squads_distractors_are_joined_up_to_768_tokens(tmp_path: Path, encoder: ChatEncoder) -> None:
    texts = [f"Cat{n} Dog{n} sat." for n in range(400)]
    train = squad(tmp_path, "train-v2.0.json", *texts)
    task = Retention(distractors=2, every=1, other=train, published=True)
    found = items(task, rows(squad(tmp_path, "dev-v2.0.json", "Muck Rex is old.")), encoder)
    lengths = [len(encoder.continuation(" ".join(texts[:n]))) for n in range(1, 401)]
    first = next(n for n, length in enumerate(lengths, start=1) if length >= 768)
    second = found[0].texts[2]
    assert not isinstance(second, str)
    assert encoder.decode(second).startswith(texts[first])


def test_distractors_may_come_from_other_data_in_their_order(tmp_path: Path, encoder: ChatEncoder) -> None:
    records = rows(squad(tmp_path, "dev.json", "Muck Rex is old.", "Bo Lu is young."))
    other = squad(tmp_path, "train.json", "A b c.", "Muck Rex is old.", "D e f.", "G h i.")
    found = items(Retention(distractors=2, every=2, words=2, other=other), records, encoder)
    assert {item.texts for item in found} == {
        ("Muck Rex is old.\n", "A b\n", "D e\n"),
        ("Bo Lu is young.\n", "A b\n", "Muck Rex\n"),
    }
    with pytest.raises(InputError, match="4 different texts give no 5 distractors; ask for fewer"):
        items(Retention(distractors=5, other=other), records, encoder)


def test_the_text_may_stand_last_or_anywhere(tmp_path: Path, encoder: ChatEncoder) -> None:
    records = rows(squad(tmp_path, "dev.json", "Muck Rex is old."))
    other = squad(tmp_path, "train.json", *(f"T{n} x y." for n in range(5)))
    own, others = "Muck Rex is old.\n", tuple(f"T{n} x y.\n" for n in range(5))
    last = items(Retention(distractors=3, every=1, before=1, position="end", other=other), records, encoder)
    assert [item.texts for item in last] == [(others[3], *others[:n], own) for n in range(4)]
    assert [item.questions[0].after for item in last] == [2, 3, 4, 5]
    assert last[2].questions[0].conditions == {"distractors": 2, "position": "end"}
    task = Retention(distractors=4, every=4, position="random", other=other)
    places = set()
    for seed in range(12):
        alone, among = items(task, records, encoder, seed)
        assert alone.texts == (own,)
        assert [text for text in among.texts if text != own] == list(others[:4])
        places.add(among.texts.index(own))
    assert len(places) > 2
    assert task.expect([], {"nothing": []}, lambda *, before, later: 1.0) == []


def test_answers_are_counted_in_tokens_where_asked(tmp_path: Path, encoder: ChatEncoder) -> None:
    records = rows(squad(tmp_path, "dev.json", "Muck antidisestablishmentarianism is old.", "Bo Lu is young."))
    every, short = (items(Retention(distractors=1, answer_tokens=most), records, encoder) for most in (0, 3))
    assert sum(len(item.questions) for item in every) == 8
    asked = {question.answers[0] for item in short for question in item.questions}
    assert "antidisestablishmentarianism" not in asked
    assert all(len(encoder.continuation(answer)) <= 3 for answer in asked)
    long = [{"context": "A text.", "question": "Who?", "answers": ["antidisestablishmentarianism"]}]
    with pytest.raises(InputError, match="1 tokens or fewer; give more answer_tokens"):
        items(Retention(distractors=1, answer_tokens=1), long, encoder)


def test_options_that_do_not_fit_are_named(encoder: ChatEncoder) -> None:
    with pytest.raises(UsageError, match="position must be one of begin, end, random; it is 'middle'"):
        build("retention", position="middle")
    with pytest.raises(UsageError, match=r"give other=train-v2\.0\.json"):
        build("retention", published=True).split(encoder)


@pytest.mark.parametrize("position", ["begin", "end"])
def test_a_tiny_model_is_measured_as_published(position: str, tmp_path: Path, tiny_folder: Path) -> None:
    dev = squad(tmp_path, "dev-v2.0.json", "Muck Rex is old.", "Bo Lu is young.")
    train = natural(tmp_path, "train.jsonl", *[[annotation((3, 10))]] * 90)
    options: dict[str, Any] = {"distractors": 1, "every": 1, "other": train, "published": True, "position": position}
    task = build("retention", indices=saved(tmp_path, 2), **options)
    pool = "latent-pool:slots=4;blocks=2;longest=64;shortest=2"
    found = evaluate(task, dev, [pool], model=str(tiny_folder), dtype="float32", limit=2, out=tmp_path / "out")
    assert {row.conditions["distractors"] for row in found} == {0, 1}
    assert {row.metric for row in found} == {"accuracy", "f1", *(["law"] if position == "begin" else [])}
    assert {round(row.costs["tokens"]) for row in found if row.method == pool} >= {
        len(load(str(tiny_folder), method="nothing").encoder.continuation("Context: Bo Lu is young."))
    }
