"""The benchmark of training runs from its command line to its table; what it measures is not judged here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import tables, training


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
