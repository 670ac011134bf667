"""Controls: a method that is asked without the item's text, and how much more the text itself gives."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from byheart.errors import InputError, UnknownNameError, UsageError
from byheart.evaluation.controls import batch_with_others
from byheart.evaluation.evaluate import evaluate
from byheart.evaluation.method_spec import Candidate
from byheart.evaluation.results import Result, load as load_rows
from byheart.evaluation.rows import make_differences
from byheart.evaluation.runner import run as run_task
from byheart.evaluation.task import Item, Question
from byheart.evaluation.tasks.dialogue import Dialogue
from byheart.evaluation.tasks.questions import Questions
from byheart.session.opening import load
from byheart.session.session import Session
from tests.conftest import Run

TEXTS = ("The cat is called Muck.", "A dog.", "The bird is called Lu and sings.")


@pytest.fixture
def opened(tiny_folder: Path) -> Session:
    return load(str(tiny_folder), method="full", dtype="float32")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "pets.jsonl"
    asked = [{"context": text, "question": f"{who}?", "answers": ["Muck"]} for text in TEXTS for who in ("Who", "What")]
    file.write_text("".join(f"{json.dumps(each)}\n" for each in asked))
    return file


def items_of(*texts: str) -> list[Item]:
    return [Item((text,), (Question("Who?", ("Muck",), choices=("Muck",)),)) for text in texts]


def answered(opened: Session, *texts: str) -> str:
    """What a session says that was written these texts."""
    session = opened.fork()
    for text in texts:
        session.write(text)
    return "".join(session.reply("Who?", max_tokens=6, stop="\n")).strip()


def candidates(opened: Session, *specs: str) -> list[Candidate]:
    return [Candidate.of(spec, opened) for spec in specs]


def count_writes(one: Candidate, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each call writes side by side."""
    counts: list[int] = []
    method, write_many = one.session.method, one.session.method.write_many
    monkeypatch.setattr(method, "write_many", lambda s, t: counts.append(len(s)) or write_many(s, t))
    return counts


# ---- whose text stands in ----


def test_the_other_text_is_the_next_of_the_batch_that_differs() -> None:
    items = items_of("aaaa", "bbb", "bbb", "c", "d")
    batches, others = batch_with_others(Questions(), items, 4)
    # The longest come first, and the last is not left alone.
    assert batches == [[0, 1, 2, 3, 4]]
    assert others == {0: 1, 1: 3, 2: 3, 3: 4, 4: 0}
    assert batch_with_others(Questions(), items[:2], 1)[1] == {0: 1, 1: 0}


@pytest.mark.parametrize("texts", [("a",), ("a", "a")])
def test_a_control_without_another_text_is_refused_before_anything_is_asked(
    texts: Sequence[str], opened: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = candidates(opened, "full:control=other")
    counts = count_writes(one, monkeypatch)
    with pytest.raises(
        InputError, match=r"Item 1 cannot be asked after another text: its batch .* no other one. Give more"
    ):
        run_task(Questions(), items_of(*texts), [one])
    assert counts == []


# ---- what is asked ----


@pytest.mark.parametrize("spec", ["full", "window:recent=8"])
def test_a_control_is_asked_after_nothing_or_after_another_text(spec: str, opened: Session) -> None:
    named = spec.partition(":")[2]
    specs = [f"{spec}{';' if named else ':'}max_tokens=6{end}" for end in ("", ";control=nothing", ";control=other")]
    asked = candidates(opened, *specs)
    own, nothing, other = run_task(Questions(), items_of(*TEXTS), asked, batch=8)
    session = asked[0].session
    for n, text in enumerate(TEXTS):
        assert own[n].text == answered(session, text)
        assert nothing[n].text == answered(session)
    # The longest comes first, so its neighbour is the first, whose neighbour is the second.
    for n, neighbour in ((2, 0), (0, 1), (1, 2)):
        assert other[n].text == answered(session, TEXTS[neighbour])
        assert other[n].parts["gold_loss"] == pytest.approx(own[neighbour].parts["gold_loss"], rel=1e-4)
        assert (other[n].bytes, other[n].tokens) == (own[neighbour].bytes, own[neighbour].tokens)
        assert (nothing[n].bytes, nothing[n].tokens, nothing[n].write_seconds) == (session.bytes, 0, 0.0)
    assert len({each[0].parts["gold_loss"] for each in (own, nothing, other)}) == 3


def test_texts_are_written_once_for_a_method_and_its_controls(opened: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = candidates(opened, "full", "full:control=nothing", "full:control=other")
    counts = count_writes(asked[0], monkeypatch)
    told: list[int] = []
    run_task(Questions(), items_of(*TEXTS), asked, advance=told.append)
    assert sum(counts) == 3
    assert sum(told) == 3 * sum(item.steps for item in items_of(*TEXTS))


def test_where_nothing_is_asked_of_a_text_it_is_not_written(opened: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = candidates(opened, "full:control=nothing")
    counts = count_writes(one, monkeypatch)
    (outcomes,) = run_task(Questions(), items_of(*TEXTS), [one])
    assert (counts, len(outcomes)) == ([], 3)


def test_an_answer_after_another_text_is_asked_again_where_that_text_is_another(
    opened: Session, tmp_path: Path
) -> None:
    (one,) = candidates(opened, "full:control=other;max_tokens=6")
    file = tmp_path / "answers.jsonl"
    first = run_task(Questions(), items_of("Aaaa.", "Bb."), [one], files=[file])[0]
    assert run_task(Questions(), items_of("Aaaa.", "Bb."), [one], files=[file])[0] == first
    again = run_task(Questions(), items_of("Aaaa.", "Cc."), [one], files=[file])[0]
    assert again[0].text == answered(opened, "Cc.")
    assert again[0].digest != first[0].digest


# ---- the rows ----


def test_a_method_says_how_much_more_its_own_text_gives(opened: Session, data: Path, tmp_path: Path) -> None:
    specs = ["nothing:max_tokens=6", "full:max_tokens=6"]
    where: dict[str, Any] = {"model": opened.backbone, "out": tmp_path / "out"}
    rows = evaluate(Questions(), str(data), specs, control=["nothing", "other"], **where)
    own = f"{specs[1]};control="
    assert list(dict.fromkeys(row.method for row in rows)) == [*specs, f"{own}nothing", f"{own}other"]
    found = {(row.method, row.metric): row for row in rows}
    for metric, better in (("contains", True), ("f1", True), ("gold_loss", False)):
        whole = found[specs[1], metric]
        for control, end in (("nothing", "over_nothing"), ("other", "over_other_text")):
            difference, by_control = found[specs[1], f"{metric}_{end}"], found[f"{own}{control}", metric]
            assert difference.value == pytest.approx(whole.value - by_control.value)
            assert difference.low <= difference.value <= difference.high
            assert (difference.higher_is_better, by_control.higher_is_better) == (better, None)
    assert not [row for row in rows if row.metric.startswith("answer_words_")]
    stored = load_rows(tmp_path / "out" / "rows.json")[1]
    assert {(row.method, row.metric) for row in stored} == set(found)
    # What is typed as a method of its own gives the same.
    assert _plain(evaluate(Questions(), str(data), [specs[1], f"{own}nothing"], **where)) == _plain(
        [row for row in rows if row.method in (specs[1], f"{own}nothing") and "other" not in row.metric]
    )


def _plain(rows: Sequence[Result]) -> list[Mapping[str, Any]]:
    """Rows without what they took."""
    return [replace(row, seconds=0.0, costs={}).flat() for row in rows]


def test_a_control_has_no_better_in_a_difference_either(opened: Session, data: Path) -> None:
    specs = ["nothing:max_tokens=2", "full:control=other;max_tokens=2"]
    rows = evaluate(Questions(), str(data), specs, against=specs[0], model=opened.backbone)
    found = {row.metric: row.higher_is_better for row in rows if row.method == specs[1]}
    assert "f1_difference" in found
    assert set(found.values()) == {None}


def test_intervals_of_the_difference_are_of_the_same_items(opened: Session) -> None:
    items = items_of(*TEXTS)
    own, other = run_task(Questions(), items, candidates(opened, "full", "full:control=other"))
    rows = make_differences(Questions(), "pets", "full", own, other, suffix="_over_other_text")
    loss = next(row for row in rows if row.metric == "gold_loss_over_other_text")
    apart = [
        ours.parts["gold_loss"][0] / ours.parts["gold_loss"][1]
        - other[n].parts["gold_loss"][0] / ours.parts["gold_loss"][1]
        for n, ours in enumerate(own)
    ]
    assert min(apart) <= loss.low <= loss.value <= loss.high <= max(apart)
    # One item's answer is another's control, so all of them together lose nothing.
    assert loss.value == pytest.approx(0.0, abs=1e-6)


def test_replies_have_their_controls_turn_by_turn(opened: Session, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    talks = [["Hi.", "Hello.", "Who?", "Ann."], ["So?", "No.", "Why so?", "Rain.", "Oh."], ["A", "B", "C", "D"]]
    file.write_text("".join(json.dumps({"meta": {"turns": turns}}) + "\n" for turns in talks))
    rows = evaluate(
        Dialogue(turns=[0, 2]), str(file), ["full"], control=["nothing", "other"], model=opened.backbone, batch=4
    )
    found = {(row.method, row.metric, row.conditions["turn"]): row.value for row in rows}
    for turn in (0, 2):
        own = found["full", "loss", turn]
        for control, end in (("nothing", "over_nothing"), ("other", "over_other_text")):
            assert found["full", f"loss_{end}", turn] == pytest.approx(
                own - found[f"full:control={control}", "loss", turn], abs=1e-6
            )
            assert (f"full:control={control}", "perplexity", turn) in found
    # Before the first turn there is no text that could be another's.
    assert found["full", "loss_over_nothing", 0] == pytest.approx(0.0, abs=1e-6)
    assert found["full", "loss_over_nothing", 2] != pytest.approx(0.0, abs=1e-3)


def test_a_method_may_be_measured_on_a_model_of_its_own(
    opened: Session, other_folder: Path, data: Path, tmp_path: Path
) -> None:
    """As CCM compares with a model that was adapted with the full text."""
    adapted = f"full:model={other_folder};max_tokens=6"
    where: dict[str, Any] = {"against": "full:max_tokens=6", "out": tmp_path / "out"}
    rows = evaluate(Questions(), str(data), ["full:max_tokens=6", adapted], model=opened.backbone, **where)
    there = evaluate(Questions(), str(data), ["full:max_tokens=6"], model=str(other_folder), dtype="float32")
    losses = {row.method: row.value for row in rows if row.metric == "gold_loss"}
    assert losses[adapted] == pytest.approx(next(row.value for row in there if row.metric == "gold_loss"))
    assert losses[adapted] != pytest.approx(losses["full:max_tokens=6"], abs=1e-3)
    assert any(row.metric == "gold_loss_difference" and row.method == adapted for row in rows)


def test_controls_from_the_command_line(run: Run, data: Path, tiny_folder: Path) -> None:
    flags = ["--data", data, "--model", tiny_folder, "--method", "nothing,window:recent=8@4KB"]
    ran = run("evaluate", "questions", *flags, "--control", "nothing,other", "--json")
    assert ran.code == 0, ran.err
    assert {row["method"] for row in ran.json} == {
        "nothing",
        "window:recent=8@4KB",
        "window:recent=8;control=nothing@4KB",
        "window:recent=8;control=other@4KB",
    }
    refused = run("evaluate", "questions", *flags, "--control", "nothin")
    assert refused.code == 2
    assert "no control 'nothin'. Did you mean 'nothing'" in refused.err.replace("\n", " ")


def test_a_control_that_is_none_is_refused(opened: Session, data: Path) -> None:
    with pytest.raises(UnknownNameError, match="control 'text'"):
        Candidate.of("full:control=text", opened)
    with pytest.raises(UnknownNameError, match="control 'text'"):
        evaluate(Questions(), str(data), ["full"], control=["text"], model=opened.backbone)


def test_a_folder_whose_name_looks_like_options_has_no_control(
    opened: Session, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run:steps=3").mkdir()
    with pytest.raises(UsageError, match=r"'run:steps=3' can have no control: .* Rename the folder"):
        evaluate(Questions(), str(data), ["run:steps=3"], control=["other"], model=opened.backbone)
