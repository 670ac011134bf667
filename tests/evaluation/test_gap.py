"""The gap that a memory closes, and the commands that train and measure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from byheart.errors import InputError, UsageError
from byheart.evaluation.gap import closed, gap, score
from byheart.evaluation.method_spec import MethodSpec, choices
from byheart.model.losses import next_token_loss
from byheart.protocol.episode import Batch, Episode, collate
from tests.conftest import Run
from tests.samples import backbone, fresh, tokens

TEXTS = [" ".join(f"{word}{n}" for n in range(60)) for word in ("ape", "bee", "cat")]
SMALL = ["--segments", "1,2", "--segment-tokens", 12, "--target-tokens", 8, "--batch", 2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"task": "lm", "context": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


def batch(*, seed: int = 0) -> Batch:
    return collate([Episode((tokens(9, seed=seed + n)[0],), tokens(6 - n, seed=seed + 5 + n)[0]) for n in (0, 1)])


def said_alone(text: Tensor, target: Tensor) -> Tensor:
    """The summed loss of a target's tokens after its first, behind a text."""
    own = backbone()
    loss = next_token_loss(own, own.hidden(torch.cat([text, target])[None])[:, -len(target) :], target[None])
    return loss.detach() * (len(target) - 1)


# ---- scores ----


def test_scores_are_each_window_s_summed_losses() -> None:
    given = batch()
    found = score(fresh("full", backbone()), [[given], [batch(seed=3)]])[0]
    assert found.tokens.tolist() == [5, 4, 5, 4]
    torch.testing.assert_close(found.losses[1], said_alone(given.segments[1, 0], given.target[1, :5]))
    assert found.bytes > 0
    assert found.text == 9
    assert found.other is None


def test_a_text_is_written_once_for_all_its_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    made, given, other = fresh("full", backbone()), batch(), batch(seed=3)
    written: list[int] = []
    write = made.write
    monkeypatch.setattr(made, "write", lambda state, text: written.append(1) or write(state, text))
    form = replace(other, segments=given.segments)
    found = score(made, [[given, form]])
    assert len(written) == 1
    torch.testing.assert_close(found[1].losses[0], said_alone(given.segments[0, 0], other.target[0]))


def test_the_control_reads_another_window_s_text() -> None:
    given = batch()
    found = score(fresh("full", backbone()), [[given]], control=True)[0]
    assert found.other is not None
    torch.testing.assert_close(found.other[1], said_alone(given.segments[0, 0], given.target[1, :5]))
    torch.testing.assert_close(found.other[0], said_alone(given.segments[1, 0], given.target[0]))
    one = collate([Episode((tokens(9)[0],), tokens(6)[0])])
    with pytest.raises(InputError, match="needs another window; the data have only one"):
        score(fresh("full", backbone()), [[one]], control=True)


def test_turns_are_written_one_by_one() -> None:
    given = collate([Episode((tokens(n)[0], tokens(5, seed=1)[0]), tokens(6)[0]) for n in (3, 8)])
    made = fresh("compressed-kv", backbone())
    apart, joined = (score(made, [[given]], turns=turns)[0] for turns in (True, False))
    # Two compressed segments each, against one.
    assert apart.bytes - 16 == 2 * (joined.bytes - 16)
    assert apart.text == joined.text == 10.5


def test_the_share_is_of_the_summed_difference() -> None:
    floor, ceiling, method = torch.tensor([4.0, 2.0]), torch.tensor([1.0, 1.0]), torch.tensor([2.0, 2.0])
    assert closed(floor, ceiling, method).item() == 0.5


# ---- the gap ----


def test_full_text_closes_the_gap_and_nothing_leaves_it(data: Path, tiny_folder: Path) -> None:
    shape = {"windows": 6, "history": [2], "segment_tokens": 12, "target_tokens": 8, "batch": 4}
    rows = gap(["window", "compressed-kv"], [str(data)], model=str(tiny_folder), dtype="float32", **shape)
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
    assert {(row.task, row.at["segments"], row.at["between"], row.at["tokens"]) for row in rows} == {("gap", 2, 0, 24)}


def test_several_data_sets_are_also_taken_together(data: Path, tiny_folder: Path) -> None:
    shape = {"windows": 2, "history": [1], "segment_tokens": 12, "target_tokens": 8, "batch": 2}
    rows = gap(["window"], [str(data), f"{data}:3"], model=str(tiny_folder), **shape)
    assert [row.dataset for row in rows] == ["data"] * 8 + ["all"] * 4
    assert rows[-1].n == 4


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--skip", 2], "--skip"),
        (["--budget", "8KB"], "--budget"),
        (["-o", "turns=2"], "--option"),
        ([], "bytes behind"),
    ],
)
def test_flags_that_mean_nothing_to_the_gap_are_refused(
    flags: list[object], named: str, run: Run, data: Path, tiny_folder: Path
) -> None:
    method = "window" if flags else "window@8KB"
    ran = run("evaluate", "gap", "--method", method, "--data", data, "--model", tiny_folder, *flags)
    assert ran.code == 2
    assert f"gap takes no {named}" in ran.err


def test_several_histories_and_gaps_are_measured_at_once(data: Path, tiny_folder: Path) -> None:
    shape = {"windows": 3, "segment_tokens": 12, "target_tokens": 8, "batch": 2, "control": True}
    which = {"history": [1, 3], "between": [0, 6]}
    said = "window:sinks=1;recent=3/11"
    rows = gap([said, "full"], [str(data)], model=str(tiny_folder), dtype="float32", **which, **shape)
    table = {(row.at["segments"], row.at["between"], row.method, row.metric): row for row in rows}
    assert len(table) == len(rows) == 4 * (1 + 2 + 3)
    assert {row.at["tokens"] for row in rows if row.at["segments"] == 3} == {36}
    # What is kept is of the same text, whatever stands between.
    assert table[1, 0, said, "loss"].bytes == table[1, 6, said, "loss"].bytes
    assert table[3, 0, said, "loss"].bytes == 3 * table[1, 0, said, "loss"].bytes
    assert 3 * table[3, 0, said, "loss"].bytes == table[3, 0, "full", "loss"].bytes
    assert table[1, 0, "nothing", "loss"].value != table[1, 6, "nothing", "loss"].value
    assert table[3, 6, "full", "gap_closed_by_other_text"].value != 1.0
    one = gap([said.replace("3/", "")], [str(data)], model=str(tiny_folder), dtype="float32", history=[3], **shape)
    assert [row.value for row in one if row.metric == "loss"] == [
        table[3, 0, method, "loss"].value for method in ("nothing", "full", said)
    ]


def test_dialogues_are_measured_turn_by_turn_and_once_each(tiny_folder: Path, tmp_path: Path) -> None:
    turns = [[f"turn {n} of {m}" for n in range(6)] for m in range(3)]
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(json.dumps({"task": "dialog", "meta": {"turns": each}}) + "\n" for each in turns))
    said = "every-kth:every=100;sinks=0"
    rows = gap([said], [str(path)], model=str(tiny_folder), windows=8, history=[2], target_tokens=12)
    by = {row.method: row for row in rows}
    assert by[said].n == 3
    # A row for each turn.
    assert by["full"].bytes / by[said].bytes == pytest.approx(by["full"].at["tokens"] / 2)


def test_the_table_of_the_readme_is_made_of_the_result_file(
    data: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import gap as benchmark

    monkeypatch.setattr("byheart.model.loading.silence", lambda: None)
    out = tmp_path / "gap.json"
    (tmp_path / "novels.jsonl").write_text(data.read_text(encoding="utf-8"), encoding="utf-8")
    where = ["--data", str(tmp_path), "--sets", "novels", "--model", str(tiny_folder), "--out", str(out)]
    shape = ["--windows", "2", "--history", "1,2", "--between", "0,8", "--batch", "2", "--dtype", "float32"]
    benchmark.main(["nothing", *where, *shape])
    benchmark.main(["full", *where, *shape, "--no-free"])
    capsys.readouterr()
    benchmark.main(["--table", *where])
    said = capsys.readouterr().out
    assert "| method | bytes a token | novels |" in said
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


# ---- what is measured ----


@pytest.mark.parametrize(
    ("said", "place", "expected"),
    [
        ("window", 0, ("window", {})),
        ("window:sinks=1;recent=3/15", 1, ("window", {"sinks": 1, "recent": 15})),
        ("compressed-kv:merge=mean;first-row=true", 0, ("compressed-kv", {"merge": "mean", "first_row": True})),
        ("C:/trained", 0, ("C:/trained", {})),
    ],
)
def test_a_memory_is_named_with_its_options(said: str, place: int, expected: tuple[str, dict[str, Any]]) -> None:
    assert MethodSpec.of(said, place, 2) == expected


def test_memories_are_told_apart_by_commas_outside_brackets() -> None:
    assert choices("window:recent=12, every-kth,last-ffn:header=[5,6];layers=2,") == [
        "window:recent=12",
        "every-kth",
        "last-ffn:header=[5,6];layers=2",
    ]


def test_what_cannot_be_measured_is_refused(data: Path, tiny_folder: Path) -> None:
    where = {"data": [str(data)], "model": str(tiny_folder)}
    with pytest.raises(UsageError, match=r"given as NAME or NAME:key=value;key=value.*it is 'window:=1'"):
        gap(["window:=1"], **where)
    with pytest.raises(UsageError, match=r"recent of 'window:recent=1/2' has 2 values for 3 lengths of history"):
        gap(["window:recent=1/2"], history=[1, 2, 3], **where)
    with pytest.raises(UsageError, match="a history of 1 segment or more"):
        gap(["window"], history=[0], **where)
    with pytest.raises(UsageError, match="control needs 2 windows at once or more; here are 1"):
        gap(["window"], control=True, batch=1, **where)
    with pytest.raises(UsageError, match="windows must be above 0; it is 0"):
        gap(["window"], windows=0, **where)
    alone = data.with_name("alone.jsonl")
    alone.write_text(data.read_text(encoding="utf-8").splitlines()[0], encoding="utf-8")
    with pytest.raises(InputError, match="There are no 9 tokens of other text"):
        gap(["window"], [str(alone)], between=[9], segment_tokens=12, target_tokens=8, model=str(tiny_folder))


# ---- commands ----


def test_a_memory_is_trained_goes_on_and_is_measured(run: Run, data: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'method = "compressed-kv"\nsteps = 2\ndata = ["{data}:2"]\noptions = {{rank = 2}}\n')
    flags = ["--recipe", recipe, "--model", tiny_folder, "--out", out, "-o", "tokens=2", *SMALL]
    ran = run("train", *flags, "--steps", 3, "--teacher", 0.5, "--held-out", data, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["losses"] == 3
    assert ran.json["held_out"] > 0
    settled = json.loads((out / "recipe.json").read_text())
    assert (settled["steps"], settled["teacher"]) == (3, 0.5)
    assert (settled["options"]["rank"], settled["options"]["tokens"]) == (2, 2)
    assert settled["data"][0][::2] == ["data.jsonl", 2.0]
    ran = run("train", *flags, "--steps", 3, "--teacher", 0.5, "--held-out", data)
    assert "Trained 3 steps" in ran.out
    refused = run("train", *flags, "--steps", 4, "--teacher", 0.5)
    assert refused.code == 1
    assert "steps 3; this run has 4" in refused.err
    shape = ["--limit", 3, "--history", 2, "--segment-tokens", 12, "--target-tokens", 8]
    ran = run("evaluate", "gap", "--method", f"{out},window", "--data", data, "--model", tiny_folder, *shape, "--json")
    assert ran.code == 0, ran.err
    assert {row["method"] for row in ran.json} == {"nothing", "full", str(out), "window"}
    assert "gap closed" in run("evaluate", "gap", "--method", out, "--data", data, "-m", tiny_folder, *shape).out


def test_the_measure_is_kept_with_what_it_came_from(run: Run, data: Path, tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "results" / "gap.json"
    shape = ["--limit", 3, "--history", "1,2", "--gap", "0,4", "--segment-tokens", 12, "--target-tokens", 8]
    said = "window:recent=4,every-kth"
    command = ["evaluate", "gap", "--method", said, "--data", data, "--model", tiny_folder, *shape]
    ran = run(*command, "--control", "--out", file, "--json")
    assert ran.code == 0, ran.err
    stored = json.loads(file.read_text())
    assert stored["rows"] == ran.json
    assert {(row["segments"], row["between"]) for row in ran.json} == {(1, 0), (1, 4), (2, 0), (2, 4)}
    assert {row["metric"] for row in ran.json} == {"loss", "gap_closed", "gap_closed_by_other_text"}
    about = stored["about"]
    assert (about["methods"], about["history"], about["between"]) == (said.split(","), [1, 2], [0, 4])
    assert (about["windows"], about["seed"], about["control"]) == (3, 0, True)
    assert set(about["versions"]) == {"byheart", "torch", "transformers"}
    refused = run(*command, "--history", "1;2")
    assert refused.code == 2
    assert "--history takes numbers such as 1,4,16; it is '1;2'" in refused.err
