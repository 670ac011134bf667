"""A checkpoint puts a run back bit by bit, and says what is wrong with one that does not belong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from byheart.errors import CheckpointError, StateMismatchError
from byheart.methods import build
from byheart.protocol.method import Method
from byheart.testing import tiny_backbone
from byheart.training import checkpoints
from byheart.training.checkpoints import Progress, newest, restore, save
from tests.samples import stir

RECIPE = {"steps": 4, "seed": 0, "options": {"tokens": 2, "rank": 4}}
VERSIONS = {"byheart": "0", "torch": "1"}


def method(**options: Any) -> Method:
    return build("compressed-kv", tiny_backbone(), **{"tokens": 2, "rank": 4, **options})


def adam(made: Method) -> torch.optim.AdamW:
    return torch.optim.AdamW(made.parameters(), lr=1e-2)


def take_step(made: Method, optimizer: torch.optim.Optimizer, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def progress(step: int, recipe: dict[str, Any] | None = None) -> Progress:
    return Progress(step, recipe or RECIPE, VERSIONS, [0.5] * step)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    made = method()
    optimizer = adam(made)
    take_step(made, optimizer, seed=1)
    return save(tmp_path, made, optimizer, progress(1))


def test_a_restored_run_takes_the_very_steps_of_an_unbroken_one(tmp_path: Path) -> None:
    made = method()
    stir(made)
    optimizer = adam(made)
    take_step(made, optimizer, seed=1)
    path = save(tmp_path, made, optimizer, progress(1))
    take_step(made, optimizer, seed=2)

    again = method()
    other = adam(again)
    assert restore(path, again, other, RECIPE) == progress(1)
    take_step(again, other, seed=2)
    for (name, ours), theirs in zip(made.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_parameter_without_gradients_yet_has_no_moments(tmp_path: Path) -> None:
    made = method()
    optimizer = adam(made)
    first = next(iter(made.parameters()))
    first.grad = torch.ones_like(first)
    optimizer.step()
    path = save(tmp_path, made, optimizer, progress(1))
    other = adam(again := method())
    restore(path, again, other, RECIPE)
    assert len(other.state) == 1


def test_a_new_checkpoint_takes_the_place_of_the_older_ones(tmp_path: Path) -> None:
    made = method()
    optimizer = adam(made)
    assert newest(tmp_path) is None
    for step in (2, 10):
        path = save(tmp_path, made, optimizer, progress(step))
        assert path == newest(tmp_path) == tmp_path / f"step-{step}"
    assert [found.name for found in tmp_path.iterdir()] == ["step-10"]


def test_the_newest_is_that_of_the_highest_step_not_of_the_last_name(tmp_path: Path) -> None:
    for name in ("step-9", "step-10", "step-2", ".writing-abc"):
        (tmp_path / name).mkdir()
    assert newest(tmp_path) == tmp_path / "step-10"


def test_nothing_is_left_behind_by_a_checkpoint_that_could_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = method()
    before = save(tmp_path, made, adam(made), progress(1))

    def full(*arguments: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, made, adam(made), progress(2))
    assert list(tmp_path.iterdir()) == [before]


# ---- what does not belong ----


def test_another_setting_is_named_with_both_values(saved: Path) -> None:
    with pytest.raises(
        StateMismatchError, match=r"was trained with seed 0; this run has 1\. Train into another folder"
    ):
        restore(saved, made := method(), adam(made), {**RECIPE, "seed": 1})


def test_a_setting_that_one_side_lacks_is_named(saved: Path) -> None:
    made = method()
    with pytest.raises(StateMismatchError, match="with data None; this run has new"):
        restore(saved, made, adam(made), {**RECIPE, "data": "new"})
    with pytest.raises(StateMismatchError, match="with seed 0; this run has None"):
        restore(saved, made, adam(made), {name: value for name, value in RECIPE.items() if name != "seed"})


def test_a_setting_that_one_side_lacks_has_the_value_it_had(saved: Path) -> None:
    made = method()
    recipe = {**RECIPE, "too_long": "refuse"}
    assert restore(saved, made, adam(made), recipe, missing={"too_long": "refuse"}).step == 1
    with pytest.raises(StateMismatchError, match="with too_long cut; this run has refuse"):
        restore(saved, made, adam(made), recipe, missing={"too_long": "cut"})


def test_an_option_of_the_method_is_compared_by_itself(saved: Path) -> None:
    made = method()
    same = {**RECIPE, "options": {"tokens": 2, "rank": 4, "merge": "concat"}}
    assert restore(saved, made, adam(made), same).step == 1
    other = {**RECIPE, "options": {"tokens": 2, "rank": 8}}
    with pytest.raises(StateMismatchError, match=r"with options\.rank 4; this run has 8"):
        restore(saved, made, adam(made), other)


@pytest.mark.parametrize("file", ["trainer.json", "optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["gone", "half", "other"])
def test_a_damaged_file_says_how_to_start_again(saved: Path, file: str, damage: str) -> None:
    path = saved / file
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "half" else b'{"unknown": 1}')
    made = method()
    with pytest.raises(CheckpointError, match=r"step-1' cannot be read \(.*delete it to start again"):
        restore(saved, made, adam(made), RECIPE)


def test_what_is_on_disk_is_what_the_docstring_says(saved: Path) -> None:
    names = {"method.safetensors", "method.json", "optimizer.safetensors", "trainer.json"}
    assert {path.name for path in saved.iterdir()} == names
    assert json.loads((saved / "trainer.json").read_text()) == {
        "step": 1,
        "recipe": RECIPE,
        "versions": VERSIONS,
        "losses": [0.5],
    }
