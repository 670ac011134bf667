"""Data sets as records, and episodes made of them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from byheart.data.mixture import Mixture, Weighted
from byheart.data.records import read, rows
from byheart.errors import InputError, UsageError
from byheart.evaluation.tasks.questions import Questions
from byheart.evaluation.tasks.retention import Retention
from byheart.session.opening import load
from byheart.session.session import Session
from byheart.testing import tiny_backbone
from byheart.text.encoder import ChatEncoder
from tests.conftest import tiny_tokenizer

TEXT = " ".join(f"word{n}" for n in range(200))
QA = {"task": "qa", "context": "The cat is called Muck. It is old.", "question": "What is it called?"}


@pytest.fixture(scope="module")
def session() -> Session:
    return load(tiny_backbone(), method="compressed-kv", encoder=tiny_tokenizer())


def written(folder: Path, *rows: dict[str, Any], name: str = "data.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def mixture(session: Session, *sources: str, **options: Any) -> Mixture:
    shape = {"batch": 3, "segments": [2], "segment_tokens": 16, "target_tokens": 8, **options}
    return Mixture(session.encoder, [Weighted.read(source) for source in sources], **shape)


def text(session: Session, tokens: Tensor) -> str:
    return str(session.encoder.tokenizer.decode(tokens))


# ---- records ----


SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Cats",
            "paragraphs": [
                {
                    "context": "The cat is Muck.",
                    "qas": [
                        {
                            "id": "a",
                            "question": "Who?",
                            "answers": [{"text": "Muck"}, {"text": "Muck"}, {"text": "M."}],
                        },
                        {
                            "id": "b",
                            "question": "When?",
                            "answers": [],
                            "plausible_answers": [{"text": "Muck"}],
                            "is_impossible": True,
                        },
                    ],
                },
                {"context": "The dog is Rex.", "qas": [{"question": "Who?", "answers": [{"text": "Rex"}]}]},
            ],
        }
    ],
}


def test_squads_own_file_is_a_record_a_question(tmp_path: Path) -> None:
    file = tmp_path / "dev-v2.0.json"
    file.write_text(json.dumps(SQUAD))
    found = rows(str(file))
    assert [(row["context"], row["question"], row["answers"]) for row in found] == [
        ("The cat is Muck.", "Who?", ["Muck", "M."]),
        ("The cat is Muck.", "When?", []),
        ("The dog is Rex.", "Who?", ["Rex"]),
    ]
    assert found[0]["meta"] == {"title": "Cats", "id": "a"}
    # What is not answered is neither learned nor asked.
    assert [record.answer for record in read(str(file)).records] == ["Muck", "Rex"]
    items = {item.texts: item.questions for item in Questions().items(found, 0)}
    assert {texts: [one.answers for one in asked] for texts, asked in items.items()} == {
        ("The cat is Muck.",): [("Muck", "M.")],
        ("The dog is Rex.",): [("Rex",)],
    }
    (item,) = Retention(distractors=1).items(found[1:], 0)
    assert (item.texts[0], len(item.questions)) == ("The dog is Rex.\n", 2)


@pytest.mark.parametrize("broken", [{"question": "Who?"}, {"question": "Who?", "answers": ["Rex"]}, {"answers": []}])
def test_a_file_that_is_not_quite_squads_is_refused(broken: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "dev.json"
    file.write_text(json.dumps([{"paragraphs": [{"context": "The dog is Rex.", "qas": [broken]}]}]))
    with pytest.raises(InputError, match=r"dev\.json' has paragraphs with questions that are not as SQuAD's are"):
        rows(str(file))


def test_files_folders_and_plain_text_are_read(tmp_path: Path) -> None:
    file = written(tmp_path, {**QA, "answers": ["Muck", "muck"]}, {"task": "lm", "context": "A\u2028B"}, {"text": "C"})
    (tmp_path / "more.txt").write_text("Plain.", encoding="utf-8")
    assert [record.task for record in read(file).records] == ["qa", "lm", "lm"]
    assert read(file).records[0].answer == "Muck"
    assert [record.text for record in read(str(tmp_path)).records][1:] == ["A\u2028B", "C", "Plain."]
    assert read(file).digest != read(str(tmp_path)).digest


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "holds no record.*0 read"),
        ('{"task": "qa", "context": "a", "question": "b"}', "1 read, of task qa.*qa needs question and answers"),
        ('{"task": "dialog", "meta": {"turns": ["a"]}}', r"dialog needs meta\.turns"),
        ("{}\n{", "line 2 is not JSON"),
        ("[]", "line 1 is no JSON object"),
    ],
)
def test_data_that_cannot_be_trained_on_say_what_is_missing(tmp_path: Path, content: str, match: str) -> None:
    (tmp_path / "bad.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=match):
        read(str(tmp_path / "bad.jsonl"))


def test_a_missing_file_and_a_missing_package_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no data file or folder './none\.jsonl'"):
        read("./none.jsonl")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'byheart\[hub\]'"):
        read("someone/stories")


def test_a_weight_is_what_stands_after_the_last_colon(tmp_path: Path) -> None:
    file = written(tmp_path, {"text": TEXT})
    assert Weighted.read(f"{file}:2.5").weight == 2.5
    assert Weighted.read(file).weight == 1.0


# ---- episodes ----


def test_a_batch_depends_on_its_number_and_the_seed_alone(session: Session, tmp_path: Path) -> None:
    file = written(tmp_path, {"text": TEXT}, {"text": TEXT[::-1]})
    first, again = (mixture(session, file, segments=[1, 2, 3]) for _ in range(2))
    first(0)
    assert torch.equal(first(5).segments, again(5).segments)
    assert not torch.equal(again(5).target, mixture(session, file, seed=1, segments=[2])(5).target)
    assert {first(number).segments.shape[1] for number in range(12)} == {1, 2, 3}


def test_text_goes_on_where_its_segments_end(session: Session, tmp_path: Path) -> None:
    made = mixture(session, written(tmp_path, {"text": TEXT})).episode(3, 2)
    assert [len(segment) for segment in made.segments] == [16, 16]
    assert text(session, torch.cat([*made.segments, made.target])).removeprefix("<s>") in TEXT
    assert (len(made.target), made.answer) == (8, 1)


def test_a_gap_is_other_text_between(session: Session, tmp_path: Path) -> None:
    file = written(tmp_path, {"text": "a" * 300}, {"text": "b" * 300})
    made = mixture(session, file, distractor_tokens=8).episode(0, 2)
    own, other = ("a", "b") if text(session, made.target) == 8 * "a" else ("b", "a")
    assert text(session, made.segments[-1]) == 8 * own + "\n\n" + 6 * other


def test_other_text_may_stand_between_a_memory_and_its_target(session: Session, tmp_path: Path) -> None:
    file = written(tmp_path, {"text": "a" * 300}, {"text": "b" * 300})
    plain, apart = (mixture(session, file, target_distractor_tokens=between).windows(4, 2) for between in (0, 10))
    for one, other in zip(plain, apart, strict=True):
        assert all(map(torch.equal, one.segments, other.segments))
        assert torch.equal(other.target[10:], one.target)
        assert (one.answer, other.answer) == (1, 11)
        letter = "b" if text(session, one.target) == 8 * "a" else "a"
        assert text(session, other.target[:10]) == "\n\n" + 6 * letter + "\n\n"


def test_other_text_stands_after_what_begins_every_text(session: Session, tmp_path: Path) -> None:
    file = written(tmp_path, {**QA, "answers": ["Muck"]}, {**QA, "context": "x" * 90, "answers": ["x"]})
    # The tokenizer of the other tests puts nothing before a text.
    encoder = ChatEncoder(session.encoder.tokenizer)
    encoder.start, begins = [1], torch.tensor([1])
    shape = {"batch": 3, "segments": [2], "segment_tokens": 16, "target_tokens": 8}
    made = [Mixture(encoder, [Weighted.read(file)], target_distractor_tokens=count, **shape) for count in (0, 10)]
    for one, other in zip(*(each.windows(2, 3) for each in made), strict=True):
        assert one.target[0] == other.target[0] == begins
        assert torch.equal(other.target[11:], one.target[1:])
        assert torch.equal(other.target[other.answer :], one.target[one.answer :])


def test_a_method_with_a_first_token_of_its_own_learns_from_texts_without_one(session: Session, tmp_path: Path) -> None:
    file = written(tmp_path, {"text": "word " * 80})
    encoder = ChatEncoder(session.encoder.tokenizer)
    encoder.start = [1]
    made = [
        Mixture(encoder, [Weighted.read(file)], batch=1, segment_tokens=16, target_tokens=8, own_start=own)
        for own in (False, True)
    ]
    first = [each.episode(0, 1).segments[0].tolist() for each in made]
    assert [1 in tokens for tokens in first] == [True, False]


def test_no_question_and_no_dialogue_is_measured_twice(session: Session, tmp_path: Path) -> None:
    rows = [{**QA, "answers": [f"{n}"], "context": f"There are {n} of them, and no more."} for n in range(5)]
    file = written(tmp_path, *rows, {**QA, "context": "long " * 99, "answers": ["missing"]})
    made = mixture(session, file).windows(9, 2)
    assert len(made) == 5
    assert len({text(session, each.target) for each in made}) == 5
    assert len(mixture(session, file).windows(3, 2)) == 3
    talk = {"task": "dialog", "meta": {"turns": ["a", "b", "c"]}}
    with pytest.raises(InputError, match="long enough for 4 segments"):
        mixture(session, written(tmp_path, talk)).windows(2, 4)


def test_a_short_text_is_filled_with_others(session: Session, tmp_path: Path) -> None:
    file = written(tmp_path, {"text": "the quick brown fox jumps"}, {"text": "A" * 60})
    made = [mixture(session, file).episode(index, 2) for index in range(20)]
    short = [each for each in made if text(session, each.target) == "ox jumps"]
    assert short
    for each in short:
        history = text(session, torch.cat(each.segments)).removeprefix("<s>")
        assert history == "A" * (len(history) - 19) + "\n\nthe quick brown f"
        assert [len(segment) for segment in each.segments] == [16, 16]


def test_a_question_is_asked_as_a_session_asks_it(session: Session, tmp_path: Path) -> None:
    file = written(tmp_path, {**QA, "answers": ["Muck"]}, {**QA, "context": "x" * 90, "answers": ["x"]})
    for index in range(20):
        made = mixture(session, file, target_tokens=16).episode(index, 3)
        asked = session.prompt(QA["question"])
        assert torch.equal(made.target[: made.answer], asked)
        answer = text(session, made.target[made.answer :])
        assert answer in ("Muck<|end|>", "x<|end|>")
        assert answer.removesuffix("<|end|>") in text(session, torch.cat(made.segments))
        assert len(made.segments) == 3
        assert [len(segment) for segment in made.segments[:2]] == [16, 16]


def test_a_reply_follows_its_persona_and_turns(session: Session, tmp_path: Path) -> None:
    turns = [f"turn {n}" for n in range(8)]
    file = written(tmp_path, {"task": "dialog", "meta": {"turns": turns, "persona": ["I sing."]}})
    made = mixture(session, file, target_tokens=16).episode(0, 3)
    reply = text(session, made.target[made.answer :]).removesuffix("<|end|>")
    number = turns.index(reply)
    assert number % 2 == 1
    assert turns[number - 1] in text(session, made.target[: made.answer])
    assert [text(session, row).removeprefix("<s>") for row in made.segments] == [
        "I sing.\n",
        f"{turns[number - 3]}\n",
        f"{turns[number - 2]}\n",
    ]


def test_data_too_short_for_what_is_asked_are_refused(session: Session, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="long enough for 4 segments of 16 tokens"):
        mixture(session, written(tmp_path, {"text": "short"})).episode(0, 4)
    with pytest.raises(UsageError, match="segments of 1 or more"):
        mixture(session, written(tmp_path, {"text": TEXT}), segments=[])


def test_packed_batches_hold_the_same_episodes_by_length(session: Session, tmp_path: Path) -> None:
    turns = [{"task": "dialog", "meta": {"turns": ["a" * n, "Hi.", "Yes."]}} for n in range(1, 12)]
    source = written(tmp_path, *turns)
    loose, packed = (mixture(session, source, segments=[1], packed=each) for each in (1, 4))

    def rows(batches: list[Any]) -> list[list[int]]:
        return sorted(
            row[real].tolist() for each in batches for row, real in zip(each.segments, each.mask, strict=True)
        )

    for group in (0, 1):
        numbers = range(4 * group, 4 * group + 4)
        before, after = [loose(n) for n in numbers], [packed(n) for n in numbers]
        assert rows(before) == rows(after)
        assert sum(each.mask.numel() for each in after) < sum(each.mask.numel() for each in before)
    # What a batch is depends on its number alone.
    again = mixture(session, source, segments=[1], packed=4)
    assert again(6).segments.equal(packed(6).segments)
    assert packed(1).segments.equal(again(1).segments)
