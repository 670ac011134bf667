"""Methods as they are typed: names, options, decoding, bytes, and which of them share what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from byheart.errors import BudgetError, UnknownNameError, UsageError
from byheart.evaluation.method_spec import (
    DECODING_OPTIONS,
    Candidate,
    MethodSpec,
    group_by_state,
    split_budget,
    split_specs,
    with_budget,
    with_controls,
    without_control,
)
from byheart.evaluation.tasks.edit import Edit
from byheart.evaluation.tasks.gap import Gap
from byheart.evaluation.tasks.questions import Questions
from byheart.generation.decoding import Decoding
from byheart.session.opening import load
from byheart.session.session import Session


@pytest.fixture
def opened(tiny_folder: Path) -> Session:
    return load(str(tiny_folder), method="full", dtype="float32")


# ---- reading a spec ----


@pytest.mark.parametrize(
    ("spec", "place", "expected"),
    [
        ("window", 0, ("window", {})),
        ("window:sinks=1;recent=3/15", 0, ("window", {"sinks": 1, "recent": 3})),
        ("window:sinks=1;recent=3/15", 1, ("window", {"sinks": 1, "recent": 15})),
        ("compressed-kv:merge=mean;first-slot=true", 0, ("compressed-kv", {"merge": "mean", "first_slot": True})),
        ("last-ffn:header=[5,6];kl=0.5", 0, ("last-ffn", {"header": [5, 6], "kl": 0.5})),
        ("last-ffn:kl=null", 0, ("last-ffn", {"kl": None})),
        ("C:/trained", 0, ("C:/trained", {})),
    ],
)
def test_a_method_is_named_with_its_options(spec: str, place: int, expected: tuple[str, dict[str, Any]]) -> None:
    assert MethodSpec.of(spec, place, 2) == expected


@pytest.mark.parametrize("spec", ["window:=1", "window:recent=", ":recent=1", "window:recent=1;", "window:a=1;b"])
def test_a_spec_that_is_not_one_is_refused_with_an_example(spec: str) -> None:
    with pytest.raises(UsageError, match=r"NAME or NAME:key=value;key=value, such as .*window:sinks=1;recent=15"):
        MethodSpec.of(spec)


@pytest.mark.parametrize(("values", "places"), [("1/2", 1), ("1/2", 3), ("1/2/3", 2)])
def test_there_must_be_as_many_values_as_parts(values: str, places: int) -> None:
    count = values.count("/") + 1
    with pytest.raises(UsageError, match=rf"recent of 'window:recent={values}' has {count} values for {places} parts"):
        MethodSpec.of(f"window:recent={values}", 0, places)


def test_a_folder_whose_name_looks_like_options_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run:steps=3"
    folder.mkdir()
    assert MethodSpec.of(str(folder)) == (str(folder), {})


def test_specs_are_separated_by_commas_outside_brackets() -> None:
    assert split_specs("window:recent=12, every-kth,last-ffn:header=[5,6];layers=2,") == [
        "window:recent=12",
        "every-kth",
        "last-ffn:header=[5,6];layers=2",
    ]
    assert split_specs("") == []


# ---- bytes ----


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("window", ("window", 0)),
        ("window@64KB", ("window", 65536)),
        ("window:sinks=1@1.5MB", ("window:sinks=1", 1572864)),
        ("full@300", ("full", 300)),
    ],
)
def test_bytes_stand_after_the_name(spec: str, expected: tuple[str, int]) -> None:
    assert split_budget(spec) == expected


def test_an_existing_folder_may_have_an_at_sign(tmp_path: Path) -> None:
    folder = tmp_path / "me@home"
    folder.mkdir()
    assert split_budget(str(folder)) == (str(folder), 0)


@pytest.mark.parametrize("spec", ["window@much", "window@", "window@0", "window@-3"])
def test_what_is_no_number_of_bytes_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="is no number of bytes; write one such as 300, 64KiB"):
        split_budget(spec)


@pytest.mark.parametrize(
    ("spec", "budget", "expected"),
    [
        ("window", None, "window"),
        ("window@2KB", None, "window@2KB"),
        ("window", "64KB", "window@64KB"),
        ("window@2KB", "64KB", "window@2KB"),
        ("full@", "64KB", "full"),
    ],
)
def test_one_budget_is_for_all_that_have_none_of_their_own(spec: str, budget: str | None, expected: str) -> None:
    assert with_budget(spec, budget) == expected


# ---- controls and models ----


def test_each_method_is_followed_by_its_controls() -> None:
    specs = [
        "nothing",
        "full",
        "window:sinks=1",
        "window@2KB",
        "trained/books",
        "nothing:max_tokens=3",
        "full:control=other",
    ]
    assert with_controls(specs, ["nothing", "other"]) == [
        "nothing",
        *("full", "full:control=nothing", "full:control=other"),
        *("window:sinks=1", "window:sinks=1;control=nothing", "window:sinks=1;control=other"),
        *("window@2KB", "window:control=nothing@2KB", "window:control=other@2KB"),
        *("trained/books", "trained/books:control=nothing", "trained/books:control=other"),
        "nothing:max_tokens=3",
    ]
    assert with_controls(specs, []) == specs


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("full", "full"),
        ("full:control=other", "full"),
        ("full:control=other@2KB", "full@2KB"),
        ("window:sinks=1;control=nothing", "window:sinks=1"),
        ("window:control=nothing;sinks=1", "window:sinks=1"),
        ("window:sinks=1;control=nothing;recent=3@2KB", "window:sinks=1;recent=3@2KB"),
    ],
)
def test_a_control_says_whose_it_is(spec: str, expected: str) -> None:
    assert without_control(spec) == expected


def test_a_control_keeps_what_its_method_keeps(opened: Session) -> None:
    specs = ["full", "full:control=nothing", "full:control=other;max_tokens=3"]
    (group,) = group_by_state([Candidate.of(spec, opened) for spec in specs])
    assert [candidate.control for candidate in group] == ["", "nothing", "other"]
    assert [candidate.decoding for candidate in group] == [{}, {}, {"max_tokens": 3}]


def test_the_path_of_a_model_is_not_cut_at_its_slashes() -> None:
    assert MethodSpec.of("full:model=trained/a/b;bits=8/4", 1, 2) == ("full", {"model": "trained/a/b", "bits": 4})


# ---- candidates ----


def test_options_of_decoding_are_told_from_those_of_the_method(opened: Session) -> None:
    assert {"max_tokens", "temperature", "contrast", "seed"} <= DECODING_OPTIONS
    candidate = Candidate.of("window:recent=8;max-tokens=3;temperature=0.5", opened)
    assert candidate.decoding == {"max_tokens": 3, "temperature": 0.5}
    assert candidate.session.header.options["recent"] == 8
    assert candidate.decoding_for(Questions()) == Decoding(max_tokens=3, temperature=0.5)


def test_the_number_of_tokens_is_the_methods_else_the_questions_else_the_tasks(opened: Session) -> None:
    plain, limited = Candidate.of("full", opened), Candidate.of("full:max_tokens=3", opened)
    assert [plain.decoding_for(Questions(), tokens).max_tokens for tokens in (None, 7)] == [32, 7]
    assert [limited.decoding_for(Questions(), tokens).max_tokens for tokens in (None, 7)] == [3, 3]


@pytest.mark.parametrize("task", [Edit(), Gap()], ids=lambda task: task.name)
def test_likelihoods_are_not_decoded(task: Edit | Gap, opened: Session) -> None:
    assert Candidate.of("full", opened).decoding_for(task) == Decoding(max_tokens=32)
    with pytest.raises(UsageError, match=f"{task.name} measures likelihoods: 'full:top_k=2' has no top_k there"):
        Candidate.of("full:top_k=2", opened).decoding_for(task)


def test_options_that_are_given_go_before_those_that_fit_the_bytes(opened: Session) -> None:
    fitted = Candidate.of("window@8KB", opened, tokens=200)
    assert fitted.budget == 8192
    given = Candidate.of("window:sinks=7@8KB", opened, tokens=200)
    assert given.session.header.options["sinks"] == 7
    assert fitted.session.header.options["recent"] == given.session.header.options["recent"] + 3
    with pytest.raises(BudgetError, match="8192 bytes is too small for 'window', which needs at least 153600"):
        Candidate.of("window:recent=400@8KB", opened, tokens=200)
    coded = Candidate.of("window:bits=8@8KB", opened, tokens=200)
    assert coded.session.header.options["recent"] > fitted.session.header.options["recent"]
    # Without a text to fit there is nothing to choose.
    assert (
        Candidate.of("window@8KB", opened).session.header.options
        == load(opened.backbone, method="window", encoder=opened.encoder).header.options
    )


def test_a_method_that_does_not_exist_or_fit_is_refused(opened: Session) -> None:
    with pytest.raises(UnknownNameError, match="windov"):
        Candidate.of("windov", opened)
    with pytest.raises(BudgetError, match="too small for 'window'"):
        Candidate.of("window@3", opened, tokens=100)


def test_each_part_of_a_task_has_its_own_value(opened: Session) -> None:
    spec = "window:sinks=1;recent=3/15"
    found = [Candidate.of(spec, opened, place=place, places=2) for place in (0, 1)]
    assert [candidate.session.header.options["recent"] for candidate in found] == [3, 15]
    assert {candidate.spec for candidate in found} == {spec}


def test_what_differs_in_decoding_alone_shares_its_state(opened: Session) -> None:
    specs = ["full", "window", "full:max_tokens=3", "window:recent=7", "window:temperature=1", "full@8MB"]
    groups = group_by_state([Candidate.of(spec, opened) for spec in specs])
    assert [[candidate.spec for candidate in group] for group in groups] == [
        ["full", "full:max_tokens=3"],
        ["window", "window:temperature=1"],
        ["window:recent=7"],
        ["full@8MB"],
    ]
    assert group_by_state([]) == []
