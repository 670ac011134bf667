"""Benchmarks run from their command line to their tables or files; what they measure is not judged here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import byheart
from benchmarks import questions, tables, training
from byheart.evaluation.method_spec import Candidate
from byheart.evaluation.runner import run
from byheart.evaluation.tasks.questions import Questions


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "training.json"
    # Processes of their own take seconds to start; what they would do is tested below.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "fresh_peak", lambda setup, name, length: 1000 + 10 * length)
        training.main(["--quick", "--out", str(out)])
    return out


def rows(results: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(results.read_text())["rows"]}


pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def test_every_contestant_is_timed_and_compared(results: Path) -> None:
    found = rows(results)
    for name in training.CONTESTANTS:
        assert found[f"{name}, 128 tokens"]["value"] > 0
    for name in set(training.CONTESTANTS) - {training.OURS}:
        assert found[f"{training.OURS} / {name}, 128 tokens"]["value"] > 0


def test_memory_is_fitted_by_a_line(results: Path) -> None:
    found = rows(results)
    assert found["peak, parallel loss, straight line: a token"]["value"] == pytest.approx(10)
    assert found["peak, parallel loss, straight line: largest miss"]["value"] == pytest.approx(0, abs=1e-9)


def test_the_table_names_what_was_measured_and_how(results: Path) -> None:
    table = tables.training_table(results)
    assert "| parallel loss / plain LoRA, 128 tokens |" in table
    assert "| parallel loss, 128 tokens |" not in table
    assert "rank 8 on attention, 4 marks for 64 tokens" in table
    assert f"torch {torch.__version__}" in table


def test_what_is_required_stands_beside_the_ratio_to_plain_lora() -> None:
    taken = {training.OURS: [1.0, 2.0, 1.0], training.PLAIN: [2.0, 4.0, 1.0]}
    ratio = {row.name: row for row in training.speed_rows(taken, 512)}["parallel loss / plain LoRA, 512 tokens"]
    assert (ratio.value, ratio.required) == (2.0, ">= 1.0")


def test_all_contestants_see_the_same_tokens_and_learn() -> None:
    setup = training.Setup(training.TINY, "bfloat16", 4, "attention")
    for make in training.CONTESTANTS.values():
        contestant = make(setup)
        tokens = training.text(contestant.vocabulary, 192)
        losses = [contestant.step(tokens) for _ in range(4)]
        assert losses[-1] < losses[0]


def test_the_parallel_loss_leaves_out_what_nothing_predicts() -> None:
    tokens = training.text(128, 256)
    batch = training.episode(tokens)
    assert batch.tokens == 256
    assert torch.cat([batch.segments.flatten(), batch.target.flatten()]).equal(tokens[0])
    assert len(training.supervised(tokens)) == 3 * 63


@pytest.mark.slow
def test_a_fresh_process_measures_its_peak() -> None:
    setup = training.Setup(training.TINY, "bfloat16", 4, "attention")
    assert training.fresh_peak(setup, training.OURS, 256) > 0


def test_questions_are_timed_in_three_ways(tiny_folder: Path, tmp_path: Path) -> None:
    """Of the texts, the first that ten are asked about."""
    asked = [{"context": "The cat is Muck.", "question": f"Who is {n}?", "answers": ["Muck"]} for n in range(12)]
    data, out = tmp_path / "data.jsonl", tmp_path / "questions.json"
    data.write_text("".join(json.dumps(record) + "\n" for record in [{**asked[0], "context": "Few."}, *asked]))
    methods = ["--method", "full,last-ffn:steps=1"]
    questions.main(["--model", str(tiny_folder), *methods, "--data", str(data), "--rounds", "2", "--out", str(out)])
    about, found = json.loads(out.read_text())["about"], rows(out)
    assert (about["questions"], about["text_tokens"], about["answer_tokens"]) == (10, 16, 16)
    for said in ("full", "last-ffn:steps=1"):
        assert found[f"{said}: evaluation / least"]["required"] == "<= 1.3"
        assert found[f"{said}: one by one / evaluation"]["value"] > 0
        assert all(found[f"{said}: {way}"]["unit"] == "seconds" for way in ("evaluation", "least", "one by one"))


def test_all_three_ways_answer_alike(tiny_folder: Path) -> None:
    """Else one would be timed on less."""
    opened = byheart.load(str(tiny_folder), method="full", dtype="float32")
    task, records = Questions(), questions.records(None)
    (item,) = task.items([{**record, "context": "The cat is Muck."} for record in records], 0)
    one = Candidate.of("full:max_tokens=5", opened)
    answers = [outcome.text for outcome in run(task, [item], [one])[0]]
    assert [text.strip() for text in questions.least(one, task, item)] == answers
    assert questions.one_by_one(one, task, item) == answers
    assert len(records[0]["context"].split()) == questions.WORDS


def test_the_table_of_attacks_says_which_sources_were_attacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = {"byheart": "0.2.0", "torch": "2", "transformers": "5", "seed": 1}
    row = {"name": "some.attack", "what": "what is tried", "failures": 1, "tries": 2_000}
    stored = {
        "before": {"about": about, "rows": [row]},
        "now": {"about": {**about, "commit": "abc1234", "date": "2026-11-29"}, "rows": [row]},
    }
    (tmp_path / "attack.json").write_text(json.dumps(stored))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    lines = tables.attack_table(tmp_path / "attack.json").splitlines()
    assert lines[2] == "| `some.attack` | what is tried | 1 of 2,000 | **1 of 2,000** |"
    assert "before: byheart 0.2.0; now: byheart 0.2.0 (abc1234 of 2026-11-29))" in lines[-1]


def test_the_table_of_a_soak_says_what_clients_got(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"memories": 3, "clients": 2, "seconds": 60.0, "growth_in_an_hour": 1.0175, "failures": 0}
    shape["most_decoded_files"] = 7
    found = {"about": {"torch": "2"}, **shape, "requests": {"ask 200": 1_000}}
    (tmp_path / "soak.json").write_text(json.dumps(found))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    lines = tables.soak_table(tmp_path / "soak.json").splitlines()
    assert lines[2:7] == [
        "| clients | 3 memories, 2 clients, 1 minutes |",
        "| requests: ask 200 | 1,000 |",
        "| evicted memories in files, at most at a time | 7 |",
        "| memory of the server, an hour later / before | 1.018 |",
        "| failures: another error, an answer of another memory, memory that grows | **0** |",
    ]
    assert "--memories 3 --clients 2 --seconds 60 --out soak.json" in lines[-1]


def test_the_best_of_the_results_shows_what_reading_costs_where_it_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {
        "task": "questions",
        "dataset": "cats",
        "method": "full",
        "metric": "contains",
        "value": 0.5,
        "low": 0.4,
        "high": 0.6,
    }
    row |= {"n": 4, "bytes": 2000, "seconds": 0.1}
    read = {"method": "compact", "reading_bytes": 3000, "reread_tokens": 38.4, "first_token_seconds": 0.25}
    monkeypatch.setattr(tables, "COLUMNS", (("frontier", "answers", {"metric": "contains"}),))
    monkeypatch.setattr(tables, "SHOWN", ("full", "compact"))
    (tmp_path / "frontier").mkdir()

    def lines(*rows: dict[str, Any]) -> list[str]:
        (tmp_path / "frontier" / "rows.json").write_text(json.dumps({"rows": rows}))
        return tables.tasks_table(tmp_path).splitlines()

    head, _, full, compact, *_ = lines(row, {**row, **read})
    assert head.startswith(
        "| method | keeps of a paragraph | bytes while reading | tokens read again | to the first tok"
    )
    place = "docs/explanation/results.md#frontier-cats"
    assert full == f"| `full` | 2.0 kB | - | - | - | [0.50]({place}-full) |"
    assert compact == f"| `compact` | 2.0 kB | 3.0 kB | 38 | 250 ms | [0.50]({place}-compact) |"
    assert lines(row)[0] == "| method | keeps of a paragraph | answers |"
