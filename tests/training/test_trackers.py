"""Trackers are told every step; one that is not installed is refused before anything is opened."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from byheart.errors import UnknownNameError, UsageError
from byheart.training.loop import train
from byheart.training.recipe import Recipe
from byheart.training.trackers import require, tracking
from tests.training.test_loop import batches, method

STUB = """
told = []
class Run:
    def log(self, numbers, step): told.append((step, numbers))
    def finish(self): told.append("finished")
def init(**given):
    if "broken" in given["name"]: raise RuntimeError("no login")
    told.append(given)
    return Run()
"""
Installed = Callable[[str], None]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    """Installs a stand-in for a tracker's package."""
    before = dict(sys.modules)

    def install(name: str) -> None:
        (tmp_path / f"{name}.py").write_text(STUB, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        sys.modules.pop(name, None)

    yield install
    for name in ("trackio", "wandb"):
        sys.modules.pop(name, None)
        sys.modules.update({name: before[name]} if name in before else {})


def told(name: str) -> list[Any]:
    return list(sys.modules[name].told)


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_is_told_the_recipe_and_every_step(name: str, installed: Installed, tmp_path: Path) -> None:
    installed(name)
    result = train(method(), batches, Recipe(steps=3), out=tmp_path / "run", track=name)
    opened, *steps, last = told(name)
    assert opened["project"] == "byheart"
    assert opened["config"]["steps"] == 3
    assert opened["name"].startswith("run")
    assert [step for step, _ in steps] == [1, 2, 3]
    assert [numbers["loss"] for _, numbers in steps] == result.losses
    assert steps[0][1]["tokens_per_second"] > 0
    assert last == "finished"
    again = train(method(), batches, Recipe(steps=3), out=tmp_path / "run", track=name)
    assert again.losses == result.losses
    assert told(name)[-2] == opened


def test_a_tracker_is_closed_when_the_run_stops(installed: Installed, tmp_path: Path) -> None:
    installed("wandb")
    with pytest.raises(KeyboardInterrupt), tracking("wandb", tmp_path / "run", {}):
        raise KeyboardInterrupt
    assert told("wandb")[-1] == "finished"


def test_a_tracker_that_does_not_open_is_an_error_with_its_reason(installed: Installed, tmp_path: Path) -> None:
    installed("wandb")
    with pytest.raises(UsageError, match="'wandb' could not be opened: no login"):
        train(method(), batches, Recipe(steps=1), out=tmp_path / "broken", track="wandb")


def test_a_tracker_that_is_not_known_or_not_installed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnknownNameError, match=r"no tracker 'wandv'\. Did you mean 'wandb'"):
        train(method(), batches, Recipe(steps=1), out=tmp_path, track="wandv")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="'trackio' is not installed: pip install trackio"):
        train(method(), batches, Recipe(steps=1), out=tmp_path, track="trackio")
    require("none")


def test_a_folder_of_that_name_is_no_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed")
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="'wandb' is not installed"):
        require("wandb")


def test_tensorboard_has_a_curve_of_every_number(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(method(), batches, Recipe(steps=3), out=tmp_path, track="tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"loss", "learning_rate", "norm", "tokens_per_second"} <= set(events.Tags()["scalars"])
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(result.losses)
