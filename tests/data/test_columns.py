"""Declarations of columns: what each notation gives, and what is said of a column that is not there."""

from __future__ import annotations

import re
from typing import Any

import pytest

from byheart.data.columns import content_key, map_columns, pick
from byheart.errors import InputError

ROW = {"a": {"b": ["x", "y"]}, "n": 3, "title": " T ", "turns": [{"said": "hi"}, {"said": "ho"}], "a.dot": "whole"}


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ("a.b.0", "x"),
        ("a.b.-1", "y"),
        ("turns.*.said", ["hi", "ho"]),
        ("a.dot", "whole"),
        ("n", 3),
        ("{a.b.0} of {n}, record {#}", "x of 3, record 6"),
        (["n", "*a.b"], [3, "x", "y"]),
        ({"column": "n", "among": [1, 3]}, 1),
        ({"column": "a.b.1", "among": "a.b"}, 1),
        ({"column": "title", "strip": True}, "T"),
        ({"column": "title", "strip": True, "list": True}, ["T"]),
        ({"column": "a.b", "join": "-"}, "x-y"),
    ],
)
def test_a_notation_gives_its_value(spec: Any, value: Any) -> None:
    assert map_columns(ROW, {"field": spec}, number=6, source="s") == {"field": value}


@pytest.mark.parametrize(
    ("text", "changes", "value"),
    [
        ("[' a.', ' b']", {"as": "python", "strip": True}, ["a.", "b"]),
        ('{"k": 1}', {"as": "json"}, {"k": 1}),
        ([["k", "v"], ["l", "w"]], {"as": "pairs"}, '{"k": "v", "l": "w"}'),
        ("nq question: who", {"without": "nq question: "}, "who"),
        ("Doyle_Lost_1912", {"before": "_"}, "Doyle"),
        ("Doyle_Lost_1912", {"after": "_", "before": "_"}, "Lost"),
        ("{} was born", {"fill": "who"}, "Ada was born"),
        ("0123456789", {"middle": [4, 2]}, "34"),
        ("0123456789", {"middle_start": [4, 2]}, 3),
        ("0123", {"length": True}, 4),
        (3, {"text": True, "list": True}, ["3"]),
        ([["T", ["a", "b"]], ["U", ["c"]]], {"join": ["\n\n", "\n", ""]}, "T\nab\n\nU\nc"),
    ],
)
def test_a_change_gives_its_value(text: Any, changes: dict[str, Any], value: Any) -> None:
    row = {"c": text, "who": "Ada"}
    assert map_columns(row, {"field": {"column": "c", **changes}}, number=0, source="s") == {"field": value}


def test_a_field_may_be_inside_another_and_a_column_may_be_missing() -> None:
    found = map_columns(ROW, {"meta.turns": "turns.*.said", "meta.persona": "persona?"}, number=0, source="s")
    assert found == {"meta": {"turns": ["hi", "ho"]}}


def test_the_choice_of_the_label_answers_where_nothing_else_does() -> None:
    columns = {"choices": "a.b", "label": "l"}
    assert map_columns({**ROW, "l": 1}, columns, number=0, source="s")["answers"] == ["y"]
    assert "answers" not in map_columns({**ROW, "l": -1}, columns, number=0, source="s")
    assert map_columns({**ROW, "l": 1}, {**columns, "answers": ["n"]}, number=0, source="s")["answers"] == [3]


@pytest.mark.parametrize("spec", ["none", "a.c", "a.b.2", "turns.*.heard", "{none}", ["n", "none"], {"column": "none"}])
def test_a_missing_column_is_named_with_the_record_the_field_and_the_columns(spec: Any) -> None:
    named = r".*(none|a\.c|a\.b\.2|heard)"
    match = (
        rf"s, record 7: 'context' should come from column '{named}', .* its columns are a, a\.dot, n, title, turns\."
    )
    with pytest.raises(InputError, match=match):
        map_columns(ROW, {"context": spec}, number=6, source="s")


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ({"column": "n", "among": ["p", "q"]}, "3 is none of p, q"),
        ({"column": "title", "as": "python"}, "' T ' is no value"),
        ({"column": "n", "strip": True}, "strip"),
        ({"column": "title", "as": "json"}, "Expecting value"),
    ],
)
def test_a_column_of_another_kind_is_named_with_what_was_to_be_done(spec: Any, match: str) -> None:
    with pytest.raises(InputError, match=rf"s, record 1: 'label' cannot be made of {re.escape(repr(spec))}: .*{match}"):
        map_columns(ROW, {"label": spec}, number=0, source="s")


def test_a_value_is_picked_by_its_path() -> None:
    assert pick(ROW, "a.b.0") == "x"
    with pytest.raises(LookupError, match=r"there is no 'a\.c'"):
        pick(ROW, "a.c")


def test_a_record_is_named_by_what_it_says() -> None:
    first = {"context": "The cat.", "question": "Who?", "answers": ["Muck", "he"], "id": 1}
    other = {"context": "The  cat.\n", "question": "Who?", "answers": [" Muck"]}
    assert content_key(first) == content_key(other) != content_key({**first, "question": "What?"})
    assert content_key(first) != content_key({**first, "answers": []})
    assert len(content_key({})) == 8
