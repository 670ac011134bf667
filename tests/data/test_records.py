"""Data sets as records: what is read of a file, what counts as which task, and what is said of a bad one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from byheart.data.mixture import Weighted, split_weight
from byheart.data.records import DataSet, Record, read, required, rows
from byheart.errors import InputError

QA = {"context": "The cat is Muck.", "question": "Who?", "answers": ["Muck", "cat"]}


# ---- records ----


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ({"context": "a"}, Record("lm", "a")),
        ({"text": "a"}, Record("lm", "a")),
        (QA, Record("qa", "The cat is Muck.", "Who?", "Muck")),
        ({**QA, "answers": "Muck"}, Record("qa", "The cat is Muck.", "Who?", "Muck")),
        ({**QA, "answers": {"text": ["Muck"]}}, Record("qa", "The cat is Muck.", "Who?", "Muck")),
        ({"meta": {"turns": ["a", "b"]}}, Record("dialog", "", turns=("a", "b"))),
        (
            {"meta": {"turns": ["a", "b"], "persona": ["I sing.", "I run."]}},
            Record("dialog", "", turns=("a", "b"), persona="I sing.\nI run."),
        ),
        (
            {"meta": {"turns": ["a", "b"], "persona": "I sing."}},
            Record("dialog", "", turns=("a", "b"), persona="I sing."),
        ),
    ],
)
def test_a_row_is_a_record_of_its_task(row: dict[str, Any], record: Record) -> None:
    assert DataSet.of([row]).records == [record]


@pytest.mark.parametrize(
    ("row", "missing"),
    [
        ({}, "context"),
        ({"context": "  "}, "context"),
        ({"context": "a", "question": "b"}, "answers"),
        ({"context": "a", "question": "b", "answers": {"text": []}}, "answers"),
        ({"question": "b", "answers": ["c"]}, "context"),
        ({"task": "dialog", "meta": {"turns": ["a"]}}, "meta.turns"),
        ({"task": "dialog", "meta": "none"}, "meta.turns"),
    ],
)
def test_rows_without_a_record_say_what_they_lack(row: dict[str, Any], missing: str) -> None:
    with pytest.raises(InputError, match=rf"'cats' holds no record to train on: 1 read.* Missing: {missing}\."):
        DataSet.of([row], source="cats")


def test_rows_without_a_record_are_left_out_beside_others() -> None:
    assert len(DataSet.of([{}, QA, {"question": "b"}]).records) == 1


def test_a_digest_names_the_records_not_where_they_lie() -> None:
    first, other = DataSet.of([QA], source="a"), DataSet.of([QA], source="b")
    assert first.digest == other.digest != DataSet.of([QA, QA]).digest
    assert first.digest == DataSet.of([{**QA, "id": 7}]).digest


def test_all_that_there_is_to_read_in_a_record() -> None:
    assert Record("lm", "a").text == "a"
    assert Record("dialog", "", turns=("a", "b"), persona="I sing.").text == "I sing.\na\nb"
    assert Record("dialog", "", turns=("a", "b")).text == "a\nb"


# ---- files ----


def test_a_line_may_hold_any_line_separator(tmp_path: Path) -> None:
    text = "a\u2028b\x85c"
    (tmp_path / "a.jsonl").write_text(json.dumps({"context": text}, ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert rows(str(tmp_path / "a.jsonl")) == [{"context": text}]


def test_a_folder_gives_its_files_in_order_and_leaves_others(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "c.json").write_text(json.dumps([{"context": "third"}]))
    (tmp_path / "d.png").write_bytes(b"\x89PNG")
    assert [row["context"] for row in rows(str(tmp_path))] == ["first", "second", "third"]
    assert len(read(str(tmp_path)).records) == 3


def test_a_list_may_stand_under_data(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"data": [QA]}))
    assert rows(str(tmp_path / "a.json")) == [QA]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.json", b"{", "is not JSON"),
        ("a.json", b'{"data": 3}', "holds no list of JSON objects, nor one under 'data'"),
        ("a.json", b"[1]", "holds no list of JSON objects"),
        ("a.jsonl", b"{}\n[]\n", "line 2 is no JSON object"),
        ("a.jsonl", b"{}\n\n{,}\n", "line 3 is not JSON"),
        ("a.txt", b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name: str, content: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=match):
        rows(str(tmp_path / name))


@pytest.mark.parametrize("source", ["./none", "~/none/none", "none.jsonl", "none.txt"])
def test_a_path_is_no_data_set_of_the_hub(source: str) -> None:
    with pytest.raises(InputError, match="There is no data file or folder"):
        rows(source)


# ---- fields ----


def test_a_field_may_be_inside_another() -> None:
    assert required({"meta": {"turns": ["a"]}}, "meta.turns", 1) == ["a"]
    assert required({"label": 0}, "label", 1) == 0


@pytest.mark.parametrize("record", [{}, {"meta": None}, {"meta": {}}, {"meta": {"turns": []}}, {"meta": {"turns": ""}}])
def test_a_field_that_is_missing_or_empty_is_named_with_those_that_are_there(record: dict[str, Any]) -> None:
    fields = "meta" if record else "none"
    with pytest.raises(InputError, match=rf"Record 4 has no 'meta\.turns'; its fields are {fields}\."):
        required(record, "meta.turns", 4)


# ---- weights ----


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a.jsonl", ("a.jsonl", 1.0)),
        ("a.jsonl:2.5", ("a.jsonl", 2.5)),
        ("C:/a.jsonl:3", ("C:/a.jsonl", 3.0)),
        ("C:/a.jsonl", ("C:/a.jsonl", 1.0)),
        ("rajpurkar/squad_v2:validation", ("rajpurkar/squad_v2:validation", 1.0)),
    ],
)
def test_a_weight_follows_the_last_colon(source: str, expected: tuple[str, float]) -> None:
    assert split_weight(source) == expected


def test_a_weighted_data_set_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    found = Weighted.read(f"{tmp_path / 'a.txt'}:0.5")
    assert (found.weight, found.data.records) == (0.5, [Record("lm", "text")])
