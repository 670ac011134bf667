"""The folder of a run: what is kept in it, what is found again, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from byheart.errors import UsageError
from byheart.evaluation.results import Result, load
from byheart.evaluation.run_folder import Outcome, RunFolder, append, digest_of, known
from byheart.evaluation.task import Item, Question

ITEM = Item(("a",), (Question("b"), Question("c")))
FIRST = Outcome(0, "d0", 0, {"turn": 1}, "words", {"f1": (1.0, 1.0)}, 8, 3, 0.5, 0.25)
SECOND = replace(FIRST, question=1, control={"f1": (0.0, 1.0)})


def row(dataset: str = "cats", method: str = "full", value: float = 0.5) -> Result:
    return Result("qa", dataset, method, "f1", value, value, value, 1, 8, 0.5)


def config(**changed: Any) -> dict[str, Any]:
    return {"task": "qa", "dataset": "cats", "method": "full", "limit": 1, **changed}


# ---- outcomes ----


def test_what_is_appended_is_found_again(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "answers.jsonl"
    append(file, [FIRST])
    append(file, [SECOND])
    assert known(file, [ITEM], ["d0"]) == {0: [FIRST, SECOND]}


def test_answers_that_do_not_say_what_reading_cost_are_found(tmp_path: Path) -> None:
    """They are those of an older byheart."""
    file, costs = tmp_path / "answers.jsonl", {"reading_bytes": 5, "reread_tokens": 1.5, "first_token_seconds": 0.1}
    for outcome in (FIRST, replace(SECOND, **costs)):
        told = asdict(outcome)
        with file.open("a") as lines:
            lines.write(json.dumps({name: told[name] for name in told if told[name] is not None}) + "\n")
    assert known(file, [ITEM], ["d0"]) == {0: [FIRST, replace(SECOND, **costs)]}
    assert "reading_bytes" not in file.read_text().splitlines()[0]


def test_an_item_is_known_when_all_its_questions_are(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    append(file, [FIRST])
    assert known(file, [ITEM], ["d0"]) == {}
    assert known(tmp_path / "none.jsonl", [ITEM], ["d0"]) == {}


def test_an_item_that_has_changed_is_not_known(tmp_path: Path) -> None:
    append(tmp_path / "answers.jsonl", [FIRST, SECOND])
    assert known(tmp_path / "answers.jsonl", [ITEM], ["other"]) == {}
    # Nor one that a smaller limit leaves out.
    assert known(tmp_path / "answers.jsonl", [], []) == {}


@pytest.mark.parametrize(
    "torn", ['{"item": 0, "dig', "null", "[]", "{}", '{"item": 0, "parts": {"f1": [1.0]}}', "\u2028"]
)
def test_a_line_that_is_torn_is_left_out_and_does_not_swallow_the_next(torn: str, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(torn, encoding="utf-8")
    append(file, [FIRST, SECOND])
    assert known(file, [ITEM], ["d0"]) == {0: [FIRST, SECOND]}


def test_an_answer_given_twice_counts_as_it_was_given_last(tmp_path: Path) -> None:
    file, later = tmp_path / "answers.jsonl", replace(FIRST, text="again")
    append(file, [FIRST, SECOND])
    append(file, [later])
    assert known(file, [ITEM], ["d0"]) == {0: [later, SECOND]}


# ---- digests ----


@dataclass(frozen=True)
class Later:
    """Values with fields that a later release may have added."""

    name: str
    new: int = 0
    many: tuple[int, ...] = ()


def test_digests_tell_values_apart() -> None:
    values: list[Any] = [
        "a",
        "b",
        ["a"],
        ["a", "b"],
        1,
        1.0,
        ("a",),
        Later("a"),
        Later("a", new=1),
        Later("a", many=(1,)),
    ]
    digests = [digest_of([value]) for value in values]
    assert len(set(digests)) == len(values) - 1
    # A list and a tuple of the same are one.
    assert digests[2] == digests[6]
    assert all(len(digest) == 12 for digest in digests)


def test_digests_do_not_depend_on_fields_at_their_defaults() -> None:
    assert digest_of([Later("a")]) == digest_of([Later("a", 0, ())])


def test_half_a_character_has_a_digest_too() -> None:
    assert digest_of(["\ud800"]) != digest_of(["\ud801"])


def test_long_tokens_are_told_apart() -> None:
    first, second = tuple(range(5000)), (*range(2500), -1, *range(2501, 5000))
    assert digest_of([Item((first,), ())]) != digest_of([Item((second,), ())])


# ---- the folder ----


def test_a_run_is_resumed_with_the_same_settings(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", seed=1, dtype="float32")
    again = RunFolder(tmp_path / "run", seed=1, dtype="float32")
    stored = json.loads((again.path / "run.json").read_text())
    assert (stored["seed"], stored["dtype"], stored["format"]) == (1, "float32", 3)


def test_a_run_of_other_settings_is_refused_by_all_that_differ(tmp_path: Path) -> None:
    RunFolder(tmp_path, seed=1, dtype="float32")
    with pytest.raises(
        UsageError, match=r"seed 1 \(now 2\), dtype float32 \(now auto\)\. Give another --out, or remove"
    ):
        RunFolder(tmp_path, seed=2, dtype="auto")


def test_a_run_of_an_earlier_format_is_refused(tmp_path: Path) -> None:
    RunFolder(tmp_path, seed=1)
    stored = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**stored, "format": 2}))
    with pytest.raises(UsageError, match=r"format 2 \(now 3\)"):
        RunFolder(tmp_path, seed=1)


def test_data_of_one_name_are_told_apart_by_their_folder_then_by_what_they_hold(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    names = [
        folder.named("dev", str(tmp_path / place / "dev.jsonl"), records)
        for place, records in (("squad", "r1"), ("squad", "r1"), ("nq", "r2"), ("nq", "r3"), ("nq", "r2"))
    ]
    assert names == ["dev", "dev", "nq-dev", "dev-r3", "nq-dev"]
    # Also when it is opened again.
    assert RunFolder(tmp_path / "run").named("dev", str(tmp_path / "nq" / "dev.jsonl"), "r2") == "nq-dev"


def test_the_file_of_answers_can_be_read_and_has_all_that_decides_them(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    file = folder.answers("qa", "cats", "window:sinks=1;recent=15@8KB", "a", 1)
    assert file.parent == tmp_path / "answers" / "qa" / "cats"
    assert file.name.startswith("window_sinks=1_recent=15_8KB-")
    others = [folder.answers("qa", "cats", "window:sinks=1;recent=15@8KB", *rest) for rest in (("a", 2), ("b", 1), ())]
    assert len({file, *others}) == 4
    assert folder.answers("qa", "cats", "x" * 500).name.startswith("x" * 60 + "-")


def test_rows_take_the_place_of_those_of_the_same_method(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.keep([row()], config(), seed=0)
    folder.keep([row(method="window")], config(method="window"), seed=0)
    folder.keep([row(value=0.75), row(value=0.25)], config(limit=2), seed=0)
    about, rows = load(tmp_path / "rows.json")
    assert [(each.method, each.value) for each in rows] == [("window", 0.5), ("full", 0.75), ("full", 0.25)]
    assert [(run["method"], run["limit"]) for run in about["runs"]] == [("window", 1), ("full", 2)]
    assert about["seed"] == 0


@pytest.mark.parametrize("other", [{"task": "recall"}, {"dataset": "dogs"}, {"method": "window"}])
def test_rows_of_another_task_data_set_or_method_stay(other: dict[str, str], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.keep([row()], config())
    folder.keep([replace(row(), **other)], config(**other))
    assert len(load(tmp_path / "rows.json")[1]) == 2


def test_options_of_any_kind_are_kept_as_text(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.keep([row()], config(options={"path": Path("a/b"), "turns": (1, 2)}))
    about, _ = load(tmp_path / "rows.json")
    assert about["runs"][0]["options"] == {"path": "a/b", "turns": [1, 2]}
