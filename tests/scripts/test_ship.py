"""What is shipped is small, opens as it was trained, and its card says what it was trained on and what it reaches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from byheart.methods import build
from byheart.protocol.checkpoint import load_pretrained
from byheart.testing import tiny_backbone
from byheart.training.loop import train
from byheart.training.recipe import Recipe
from scripts import ship
from tests.training.test_loop import batches


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder that training left."""
    method = build("compressed-kv", tiny_backbone(), tokens=2, rank=4)
    made_of = {"data": [["squad.jsonl", "0123", 3.0], ["novels.jsonl", "4567", 0.5]], "dtype": "float32"}
    train(method, batches, Recipe(steps=2, seed=7), out=tmp_path / "run", made_of=made_of)
    return tmp_path / "run"


def row(**changed: Any) -> dict[str, Any]:
    numbers = {"value": 0.9, "low": 0.85, "high": 0.951, "n": 48, "bytes": 3_724_816}
    return {"method": "compressed-kv", "metric": "gap_closed", "dataset": "novels", **numbers, **changed}


def test_what_is_shipped_opens_as_the_run_did_in_half_the_bytes(run: Path, tmp_path: Path) -> None:
    ship.ship(run, tmp_path / "shipped")
    whole, half = (load_file(folder / "method.safetensors") for folder in (run, tmp_path / "shipped"))
    assert whole.keys() == half.keys()
    assert all(torch.equal(half[name], tensor.to(torch.bfloat16)) for name, tensor in whole.items())
    opened = build("compressed-kv", tiny_backbone(), tokens=2, rank=4)
    load_pretrained(opened, tmp_path / "shipped")
    for name, parameter in opened.named_parameters():
        torch.testing.assert_close(parameter.detach(), whole[name], rtol=1e-2, atol=1e-2)


def test_the_recipe_beside_it_says_what_the_run_took(run: Path, tmp_path: Path) -> None:
    ship.ship(run, tmp_path / "shipped")
    recipe = json.loads((tmp_path / "shipped" / "recipe.json").read_text())
    before = json.loads((run / "recipe.json").read_text())
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    taken = recipe.pop("taken")
    assert recipe == before
    assert (taken["steps"], taken["tokens"]) == (2, sum(step["tokens"] for step in steps))
    assert taken["seconds"] == round(sum(step["seconds"] for step in steps))


def test_what_is_too_large_is_not_shipped(run: Path, tmp_path: Path) -> None:
    save_file({"large": torch.zeros(ship.MOST_BYTES // 2 + 1)}, run / "method.safetensors")
    with pytest.raises(SystemExit, match=r"holds 8,000,002 bytes in bfloat16; the package takes 8,000,000 per method"):
        ship.ship(run, tmp_path / "shipped")
    assert not (tmp_path / "shipped" / "method.safetensors").exists()


def test_a_card_says_what_it_was_trained_on_and_what_it_reaches(run: Path, tmp_path: Path) -> None:
    folder, results = tmp_path / "mine", tmp_path / "gap.json"
    rows = [
        row(),
        row(dataset="squad", value=1.08, low=0.77, high=1.62),
        row(method="compressed-kv:merge=mean", dataset="averaged"),
        row(metric="loss", dataset="another number"),
        row(method="latent-pool", dataset="another method"),
    ]
    results.write_text(json.dumps({"rows": rows}))
    ship.ship(run, folder)
    ship.write_card(folder, results)
    card = (folder / "README.md").read_text()
    assert card.startswith("# mine\n\nThe learned parts of a `compressed-kv` memory")
    assert "| SQuAD v2, CC BY-SA 4.0 | 3 |\n| 34 novels, public domain | 0.5 |" in card
    assert "`byheart train --recipe recipes/mine.toml --out trained/mine`" in card
    assert "learning_rate 0.0003, teacher 0.0, every_segment 0.0, seed 7, dtype float32" in card
    assert "| novels | 0.90 | 0.85 to 0.95 | 48 | 3,724,816 |\n| squad | 1.08 | 0.77 to 1.62 | 48 |" in card
    assert not any(word in card for word in ("averaged", "another number", "another method"))


def test_an_averaging_method_has_the_rows_of_its_own_name(tmp_path: Path) -> None:
    results = tmp_path / "gap.json"
    results.write_text(json.dumps({"rows": [row(), row(method="compressed-kv:merge=mean", dataset="averaged")]}))
    lines = ship.tabulate({"method": "compressed-kv", "options": {"merge": "mean"}}, results)
    assert [line.split(" | ")[0] for line in lines[4:]] == ["| averaged"]


def test_without_results_a_card_says_so(run: Path, tmp_path: Path) -> None:
    ship.ship(run, tmp_path / "mine")
    ship.write_card(tmp_path / "mine", tmp_path / "none.json")
    assert "Not measured yet." in (tmp_path / "mine" / "README.md").read_text()


def test_the_package_holds_what_ship_would_write_there() -> None:
    names = {folder.parent.name for folder in ship.PRETRAINED.glob("*/method.json")}
    assert names == {"compressed-kv-concat", "compressed-kv-mean", "latent-pool"}
    for name in names:
        recipe = json.loads((ship.PRETRAINED / name / "recipe.json").read_text())
        assert {source for source, _, _ in recipe["data"]} <= ship.LICENCES.keys()
