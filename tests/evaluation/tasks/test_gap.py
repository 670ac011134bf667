"""The gap that a memory closes, as a task and from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from byheart.data.mixture import Mixture, Weighted
from byheart.errors import InputError, UsageError
from byheart.evaluation.evaluate import evaluate
from byheart.evaluation.method_spec import Candidate
from byheart.evaluation.results import Result, load as load_rows
from byheart.evaluation.runner import run as run_task, target_losses
from byheart.evaluation.task import Answer, Item, Part, Question
from byheart.evaluation.tasks import build
from byheart.evaluation.tasks.gap import Gap, closed
from byheart.model import loading
from byheart.model.reading import Reading
from byheart.protocol.episode import Episode, collate
from byheart.session.opening import load
from byheart.session.session import Session
from tests.conftest import Run
from tests.naive.gap import gap_rows, summed_loss

TEXTS = [" ".join(f"{word}{n}" for n in range(60)) for word in ("ape", "bee", "cat")]
SHAPE: dict[str, Any] = {"segment_tokens": 12, "target_tokens": 8}
FLAGS = ["-o", "segment_tokens=12", "-o", "target_tokens=8"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"task": "lm", "context": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    path = tmp_path / "talk.jsonl"
    turns = [[f"turn {n} of {m}" for n in range(6)] for m in range(3)]
    path.write_text("".join(json.dumps({"task": "dialog", "meta": {"turns": each}}) + "\n" for each in turns))
    return path


@pytest.fixture
def opened(tiny_folder: Path) -> Session:
    return load(str(tiny_folder), method="full", dtype="float32")


def items_of(task: Gap, opened: Session, source: Path, seed: int = 0) -> list[Item]:
    records = [json.loads(line) for line in source.read_text().splitlines()]
    return [item for part in task.split(opened.encoder) for item in part.items(records, seed)]


def table(rows: list[Result]) -> dict[tuple[Any, ...], Result]:
    """By segments, tokens between, method and metric."""
    found = {(*row.conditions.values(), row.method, row.metric): row for row in rows}
    assert len(found) == len(rows)
    return found


# ---- items ----


def test_a_window_is_one_text_of_tokens_and_a_target_for_each_number_of_tokens_between(
    opened: Session, data: Path
) -> None:
    task = Gap(windows=3, history=[1, 2], between=[0, 5], **SHAPE)
    items = items_of(task, opened, data)
    assert [[len(text) for text in item.texts] for item in items] == [[12]] * 3 + [[24]] * 3
    for item in items:
        plain, apart = item.questions
        assert (plain.conditions["between"], apart.conditions["between"]) == (0, 5)
        assert plain.conditions["segments"] == len(item.texts[0]) // 12
        # Unrelated text stands ahead of the same target.
        assert (len(apart.target), apart.target_start) == (len(plain.target) + 5, plain.target_start + 5)
        assert apart.target[-8:] == plain.target[-8:]
    assert items == items_of(task, opened, data)
    assert items != items_of(task, opened, data, seed=1)


def test_windows_are_those_of_a_mixture(opened: Session, data: Path) -> None:
    mixture = Mixture(opened.encoder, [Weighted.read(str(data))], batch=1, segments=[2], seed=7, **SHAPE)
    found = items_of(Gap(windows=4, history=[2], **SHAPE), opened, data, seed=7)
    for item, episode in zip(found, mixture.windows(4, 2), strict=True):
        assert item.texts == (tuple(torch.cat(episode.segments).tolist()),)
        assert item.questions[0].target == tuple(episode.target.tolist())
        assert item.questions[0].target_start == episode.answer


def test_a_dialogue_is_written_turn_by_turn(opened: Session, talk: Path) -> None:
    for item in items_of(Gap(history=[3], target_tokens=12), opened, talk):
        assert len(item.texts) == 3
        # The tokenizer has one token per character, and a line break ends each turn.
        assert opened.encoder.decode(torch.tensor(item.texts[1])).startswith("turn ")


def test_only_its_parts_have_items(opened: Session) -> None:
    task = Gap(history=[1, 4, 16])
    parts = task.split(opened.encoder)
    assert [part.options()["history"] for part in parts] == [(1,), (4,), (16,)]
    assert task.history == [1, 4, 16]


@pytest.mark.parametrize(
    ("count", "size", "control", "batches"),
    [
        (5, 2, False, [[0, 1], [2, 3, 4]]),
        (4, 2, True, [[0, 1], [2, 3]]),
        (9, 8, True, [[0, 1, 2, 3, 4, 5, 6, 7, 8]]),
        (1, 8, False, [[0]]),
        (3, 8, False, [[0, 1, 2]]),
    ],
)
def test_no_window_is_left_to_a_batch_of_its_own(
    count: int, size: int, control: bool, batches: list[list[int]]
) -> None:
    items = {n: Item(((n,) * (n + 1),), (Question(target=(1, 2)),)) for n in range(count)}
    assert Gap(control=control).batches(items, size) == batches


@pytest.mark.parametrize(("count", "size"), [(1, 8), (6, 1)])
def test_a_control_needs_another_window(count: int, size: int) -> None:
    items = {n: Item(((1,),), (Question(target=(1, 2)),)) for n in range(count)}
    with pytest.raises(InputError, match=rf"needs another window beside each; here are {count}, in batches of {size}"):
        Gap(control=True).batches(items, size)


# ---- losses ----


def episode(opened: Session, text: str, target: str, start: int = 1) -> Item:
    tokens = [tuple(opened.encoder.continuation(each).tolist()) for each in (text, target)]
    return Item((tokens[0],), (Question(target=tokens[1], target_start=start, conditions={}),))


def test_losses_are_those_of_each_target_after_its_own_text(opened: Session) -> None:
    items = [episode(opened, "The cat is Muck.", "It sat."), episode(opened, "A dog ran", "and ran", start=3)]
    (outcomes,) = run_task(Gap(), items, [Candidate.of("full", opened)])
    for item, outcome in zip(items, outcomes, strict=True):
        (text,), (question,) = item.texts, item.questions
        expected = summed_loss(opened.backbone, text, question.target, question.target_start)
        assert outcome.parts["loss"] == pytest.approx(
            (expected, len(question.target) - question.target_start), rel=1e-4
        )
        assert (outcome.tokens, outcome.control) == (len(text), {})
        assert outcome.bytes > 0


def test_the_control_reads_the_text_of_the_next_window(opened: Session) -> None:
    items = [episode(opened, text, "It sat.") for text in ("The cat is Muck.", "A dog ran", "Birds")]
    (outcomes,) = run_task(Gap(control=True), items, [Candidate.of("full", opened)])
    for n, outcome in enumerate(outcomes):
        (text,) = items[(n + 1) % 3].texts
        (question,) = items[n].questions
        assert outcome.control["loss"][0] == pytest.approx(
            summed_loss(opened.backbone, text, question.target, 1), rel=1e-4
        )


def test_a_text_is_written_once_for_all_its_targets(opened: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = Candidate.of("full", opened)
    method, written, write = candidate.session.method, [], candidate.session.method.write
    monkeypatch.setattr(method, "write", lambda state, text: written.append(1) or write(state, text))
    first = episode(opened, "The cat is Muck.", "It sat.")
    twice = Item(first.texts, (*first.questions, Question(target=(5, 6, 7))))
    (outcomes,) = run_task(Gap(), [twice], [candidate])
    assert (len(written), len(outcomes)) == (1, 2)
    alone = summed_loss(opened.backbone, first.texts[0], (5, 6, 7), 1)
    assert outcomes[1].parts["loss"] == pytest.approx((alone, 2), rel=1e-4)


def test_target_losses_look_at_the_supervised_tokens_alone(opened: Session) -> None:
    target = opened.encoder.continuation("It sat down.")
    batch = collate([Episode((), target, start) for start in (1, 4, len(target) - 1)])
    losses = target_losses(opened.backbone, [Reading()] * 3, batch)
    expected = [summed_loss(opened.backbone, (), tuple(target.tolist()), start) for start in (1, 4, len(target) - 1)]
    assert losses.tolist() == pytest.approx(expected, rel=1e-4)
    assert losses[0] > losses[1] > losses[2]


def test_the_answer_to_a_target_is_its_loss() -> None:
    assert Gap().score(Question(), Answer(losses=(6.0,), tokens=(3,))) == {"loss": Part(6.0, 3)}


# ---- what is compared ----


def test_the_share_is_of_the_summed_difference() -> None:
    floor, ceiling, loss = torch.tensor([6.0, 4.0]), torch.tensor([2.0, 2.0]), torch.tensor([4.0, 2.0])
    assert closed(floor, ceiling, loss).tolist() == [0.5, 1.0]


def test_references_close_no_gap_and_the_floor_has_no_control() -> None:
    totals = {name: {"loss": torch.tensor(loss)} for name, loss in (("nothing", 6.0), ("full", 2.0), ("window", 3.0))}
    control = {"loss": torch.tensor(8.0)}
    assert Gap().compare("nothing", totals, control) == {}
    assert Gap().compare("full", totals, {}) == {}
    assert Gap().compare("full", totals, control) == {"gap_closed_by_other_text": -0.5}
    assert Gap().compare("window", totals, control) == {"gap_closed": 0.75, "gap_closed_by_other_text": -0.5}


# ---- the gap ----


def test_full_text_closes_the_gap_and_nothing_leaves_it(data: Path, opened: Session) -> None:
    task = Gap(windows=6, history=[2], **SHAPE)
    rows = evaluate(task, str(data), ["window", "compressed-kv"], model=opened.backbone, batch=4)
    assert [(row.method, row.metric) for row in rows] == [
        ("nothing", "loss"),
        ("full", "loss"),
        ("window", "loss"),
        ("window", "gap_closed"),
        ("compressed-kv", "loss"),
        ("compressed-kv", "gap_closed"),
    ]
    by = {(row.method, row.metric): row for row in rows}
    # The window holds all of so short a history.
    assert by["window", "gap_closed"].value == pytest.approx(1.0, abs=1e-3)
    assert by["window", "gap_closed"].low <= 1.001
    assert all(row.low <= row.value <= row.high for row in rows if row.metric == "loss")
    assert {row.n for row in rows} == {6}
    assert {(row.task, row.costs["tokens"], *row.conditions.values()) for row in rows} == {("gap", 24, 2, 0)}
    assert {(row.metric, row.higher_is_better) for row in rows} == {("loss", False), ("gap_closed", True)}


@pytest.mark.parametrize("kind", ["lm", "dialog"])
def test_rows_are_those_of_a_naive_twin(kind: str, data: Path, talk: Path, opened: Session) -> None:
    source = data if kind == "lm" else talk
    task = Gap(windows=5, history=[2], between=[0, 6], control=True, segment_tokens=12, target_tokens=10)
    methods = ["window:sinks=1;recent=4", "every-kth:every=3"]
    found = table(evaluate(task, str(source), methods, model=opened.backbone, batch=5, seed=2))
    for between in (0, 6):
        episodes = Mixture(
            opened.encoder,
            [Weighted.read(str(source))],
            batch=1,
            segment_tokens=12,
            target_tokens=10,
            target_distractor_tokens=between,
            seed=2,
        ).windows(5, 2)
        expected = gap_rows(opened, methods, episodes, turns=kind == "dialog")
        assert len(expected) == 2 + 1 + 2 * 3
        for (method, metric), value in expected.items():
            assert found[2, between, method, metric].value == pytest.approx(value, rel=1e-4, abs=1e-5)


def test_several_data_sets_are_also_taken_together(data: Path, opened: Session) -> None:
    task = Gap(windows=2, history=[1], **SHAPE)
    rows = evaluate(task, [str(data), f"{data}:3"], ["window"], model=opened.backbone, batch=2)
    assert [row.dataset for row in rows] == ["data"] * 8 + ["all"] * 4
    assert rows[-1].n == 4
    # Of the same windows, weights make no difference.
    assert [row.value for row in rows[8:]] == pytest.approx([row.value for row in rows[:4]], rel=1e-6)


def test_weights_count_in_the_rows_of_all_data_sets(data: Path, talk: Path, opened: Session) -> None:
    task = Gap(windows=3, history=[2], target_tokens=12)
    rows = evaluate(task, [str(data), f"{talk}:3"], ["window"], model=opened.backbone)
    loss = {row.dataset: row for row in rows if (row.method, row.metric) == ("full", "loss")}
    tokens = {"data": 3 * 11, "talk": sum(len(q.target) - q.target_start for q in questions_of(task, opened, talk))}
    mean = (loss["data"].value * tokens["data"] + 3 * loss["talk"].value * tokens["talk"]) / (
        tokens["data"] + 3 * tokens["talk"]
    )
    assert loss["all"].value == pytest.approx(mean)
    assert loss["all"].bytes == round((loss["data"].bytes + loss["talk"].bytes) / 2)


def questions_of(task: Gap, opened: Session, source: Path) -> list[Question]:
    return [item.questions[0] for item in items_of(task, opened, source)]


def test_several_histories_and_gaps_are_measured_at_once(data: Path, opened: Session) -> None:
    spec = "window:sinks=1;recent=3/11"
    task = Gap(windows=3, history=[1, 3], between=[0, 6], control=True, **SHAPE)
    found = table(evaluate(task, str(data), [spec, "full"], model=opened.backbone, batch=2))
    assert len(found) == 4 * (1 + 2 + 3)
    assert {row.costs["tokens"] for place, row in found.items() if place[0] == 3} == {36}
    # What is kept is of the same text, whatever stands between.
    assert found[1, 0, spec, "loss"].bytes == found[1, 6, spec, "loss"].bytes
    assert found[3, 0, spec, "loss"].bytes == 3 * found[1, 0, spec, "loss"].bytes
    assert 3 * found[3, 0, spec, "loss"].bytes == found[3, 0, "full", "loss"].bytes
    assert found[1, 0, "nothing", "loss"].value != found[1, 6, "nothing", "loss"].value
    assert found[3, 6, "full", "gap_closed_by_other_text"].value != 1.0
    assert found[3, 6, "full", "gap_closed_by_other_text"].higher_is_better is None
    alone = Gap(windows=3, history=[3], control=True, **SHAPE)
    rows = evaluate(alone, str(data), [spec.replace("3/", "")], model=opened.backbone, batch=2)
    assert [row.value for row in rows if row.metric == "loss"] == [
        found[3, 0, method, "loss"].value for method in ("nothing", "full", spec)
    ]


def test_dialogues_are_measured_turn_by_turn_and_once_each(talk: Path, opened: Session) -> None:
    spec = "every-kth:every=100;sinks=0"
    rows = evaluate(Gap(windows=8, history=[2], target_tokens=12), str(talk), [spec], model=opened.backbone)
    by = {row.method: row for row in rows}
    assert by[spec].n == 3
    # A slot for each turn.
    assert by["full"].bytes / by[spec].bytes == pytest.approx(by["full"].costs["tokens"] / 2)


def test_a_memory_is_made_to_fit_its_bytes(data: Path, opened: Session) -> None:
    task = Gap(windows=2, history=[2], **SHAPE)
    rows = evaluate(task, str(data), ["window@4KB"], model=opened.backbone)
    kept = {row.method: row.bytes for row in rows}
    assert 0 < kept["window@4KB"] <= 4096 < kept["full"]


def test_differences_from_another_method_are_taken_on_the_same_windows(data: Path, opened: Session) -> None:
    task = Gap(windows=3, history=[2], **SHAPE)
    rows = evaluate(task, str(data), ["window:recent=3"], against="window:recent=3", model=opened.backbone)
    found = {(row.method, row.metric): row.value for row in rows}
    less = found["full", "loss"] - found["window:recent=3", "loss"]
    assert found["full", "loss_difference"] == pytest.approx(less)


def test_a_run_is_resumed_without_writing_again(data: Path, opened: Session, tmp_path: Path) -> None:
    task = Gap(windows=4, history=[1, 2], between=[0, 4], control=True, **SHAPE)
    where: dict[str, Any] = {"model": opened.backbone, "out": tmp_path / "out", "batch": 2}
    told: list[int] = []
    first = evaluate(task, [str(data), str(data)], ["window:recent=3/5"], **where)
    again = evaluate(
        task, [str(data), str(data)], ["window:recent=3/5"], progress=lambda done, total: told.append(done), **where
    )
    assert again == first
    # Nothing is left to do: each report is of what was there.
    assert told == sorted(told)
    assert len(set(told)) == len(told)
    _, kept = load_rows(tmp_path / "out" / "rows.json")
    assert {row.dataset for row in kept} == {"data", "all"}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"history": [0]}, "history must be numbers of 1 segment or more"),
        ({"history": []}, "history must be numbers of 1 segment or more"),
        ({"between": [-1]}, "between of 0 tokens or more"),
        ({"windows": 0}, "windows must be above 0; it is 0"),
        ({"history": 4}, "task 'gap' does not take these options"),
        ({"segments": 4}, "no option of gap 'segments'"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        build("gap", **options)


def test_what_cannot_be_measured_is_refused(data: Path, opened: Session) -> None:
    where: dict[str, Any] = {"model": opened.backbone}
    with pytest.raises(UsageError, match=r"recent of 'window:recent=1/2' has 2 values for 3 parts of the task"):
        evaluate(Gap(history=[1, 2, 3], **SHAPE), str(data), ["window:recent=1/2"], **where)
    with pytest.raises(UsageError, match=r"gap measures likelihoods: 'full:contrast=0\.5' has no contrast there"):
        evaluate(Gap(**SHAPE), str(data), ["full:contrast=0.5"], **where)
    with pytest.raises(UsageError, match="There are no data to measure on"):
        evaluate(Gap(), [], ["full"], **where)
    with pytest.raises(InputError, match="needs another window beside each; here are 3, in batches of 1"):
        evaluate(Gap(windows=3, control=True, **SHAPE), str(data), ["full"], batch=1, **where)
    alone = data.with_name("alone.jsonl")
    alone.write_text(data.read_text(encoding="utf-8").splitlines()[0], encoding="utf-8")
    with pytest.raises(InputError, match="There are no 9 tokens of other text"):
        evaluate(Gap(between=[9], **SHAPE), str(alone), ["window"], **where)


# ---- commands ----


def test_the_gap_is_listed_and_measured_like_any_task(run: Run, data: Path, tiny_folder: Path, tmp_path: Path) -> None:
    assert "gap" in {task["task"] for task in run("tasks", "--json").json}
    spec = "window:recent=4,every-kth"
    given = ["-o", "history=[1,2]", "-o", "between=[0,4]", "-o", "control=true", *FLAGS]
    command = ["evaluate", "gap", "--method", spec, "--data", data, "--model", tiny_folder, "--limit", 3, *given]
    ran = run(*command, "--out", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    stored = json.loads((tmp_path / "out" / "rows.json").read_text())
    assert sorted(map(json.dumps, stored["rows"])) == sorted(map(json.dumps, ran.json))
    assert {(row["segments"], row["between"], row["n"]) for row in ran.json} == {
        (segments, between, 3) for segments in (1, 2) for between in (0, 4)
    }
    assert {row["metric"] for row in ran.json} == {"loss", "gap_closed", "gap_closed_by_other_text"}
    assert {row["method"] for row in ran.json} == {"nothing", "full", *spec.split(",")}
    for config in stored["about"]["runs"]:
        assert (config["options"]["history"], config["options"]["between"]) == ([1, 2], [0, 4])
        assert (config["options"]["control"], config["limit"]) == (True, 3)
    assert "gap closed" in run(*command).out
    assert run(*command, "-o", "history=1;2").code == 2


def test_the_table_of_the_benchmark_is_made_of_the_result_file(
    data: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import gap as benchmark

    monkeypatch.setattr(loading, "silence", lambda: None)
    out = tmp_path / "gap.json"
    (tmp_path / "novels.jsonl").write_text(data.read_text(encoding="utf-8"), encoding="utf-8")
    where = ["--data", str(tmp_path), "--sets", "novels", "--model", str(tiny_folder), "--out", str(out)]
    shape = ["--windows", "2", "--history", "1,2", "--between", "0,8", "--batch", "2", "--dtype", "float32"]
    benchmark.main(["nothing", *where, *shape])
    benchmark.main(["full", *where, *shape, "--no-free"])
    capsys.readouterr()
    benchmark.main(["--table", *where])
    said = capsys.readouterr().out
    assert "| method | bytes per token | novels |" in said
    assert "| `every-kth` | " in said
    assert "With 1 · 2 segments, 8 unrelated tokens before the target:" in said
    assert said.count("\n| `window` | ") == 5
    rows = {benchmark.key(row): row for row in json.loads(out.read_text())["rows"]}
    own, other = (rows["novels", "window", f"gap_closed{end}", 1, 0]["value"] for end in ("", "_by_other_text"))
    assert said.rsplit("| `window` | ", 1)[1].startswith(f"{round(own - other, 2) + 0:.2f} · ")
    kept = {name: rows["novels", name, "loss", 2, 0]["bytes"] for name in ("window", "every-kth", "mean-pooled")}
    assert len(set(kept.values())) == 1
    with pytest.raises(SystemExit, match="measured with another windows"):
        benchmark.main(["full", *where, *shape, "--windows", "1"])
