"""What is shipped is trained again by its recipe and its data: on a tiny model it ends where the shipped one is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from byheart.errors import InputError
from byheart.training.config import TrainingConfig
from byheart.training.settings import flatten
from scripts import reproduce as script
from scripts.reproduce import PRETRAINED, ROOT, Reproduction, configure, main, reproduce, stages

COMMON = """
data = ["train/cats.jsonl:2", "train/dogs.jsonl"]
segments = [1, 2]
segment_tokens = 16
target_tokens = 8
batch = 2
dtype = "float32"
"""
FIRST = f"""method = "compressed-kv"
steps = 2
{COMMON}
[options]
tokens = 2
rank = 2
segment_tokens = 16
"""
LAST = f"""method = "trained/gist-1"
steps = 3
learning_rate = 1e-3
seed = 1
{COMMON}
"""


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    """Two stages: what the second trains is shipped."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "gist-1.toml").write_text(FIRST)
    (folder / "gist.toml").write_text(LAST)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for part in ("train", "eval"):
        (tmp_path / "data" / part).mkdir(parents=True)
        for name in ("cats", "dogs"):
            texts = [{"context": f"{part} {name} {n} run and sleep. " * 8} for n in range(4)]
            file = tmp_path / "data" / part / f"{name}.jsonl"
            file.write_text("".join(json.dumps(text) + "\n" for text in texts))
    return tmp_path / "data"


@pytest.fixture
def shipped(recipes: Path, data: Path, tiny_folder: Path, tmp_path: Path) -> Path:
    """What the recipes gave once."""
    for stage in stages("gist", recipes):
        configure(recipes / f"{stage}.toml", data, tmp_path / "then", model=str(tiny_folder)).run(
            tmp_path / "then" / stage
        )
    shutil.copytree(tmp_path / "then" / "gist", tmp_path / "shipped" / "gist")
    return tmp_path / "shipped"


def again(shipped: Path, recipes: Path, data: Path, tiny_folder: Path, out: Path, **changes: Any) -> Reproduction:
    return reproduce("gist", data=data, out=out, recipes=recipes, shipped=shipped, model=str(tiny_folder), **changes)


def test_the_same_recipe_and_data_end_where_the_shipped_one_is(
    shipped: Path, recipes: Path, data: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    found = again(shipped, recipes, data, tiny_folder, tmp_path / "now")
    assert found.retrained == found.shipped > 0
    assert (found.error, found.other, found.is_within) == (0, [], True)
    assert str(found) == (
        f"gist: held-out loss {found.shipped:.3f}, shipped {found.shipped:.3f}, difference +0.000 "
        "(standard error 0.000), within 0.1"
    )
    # Both stages were trained here, and a second call resumes both.
    assert {path.name for path in (tmp_path / "now").iterdir()} == {"gist-1", "gist"}
    assert again(shipped, recipes, data, tiny_folder, tmp_path / "now") == found


def test_other_settings_and_other_data_are_named(
    shipped: Path, recipes: Path, data: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    (data / "train" / "dogs.jsonl").write_text(json.dumps({"context": "Others. " * 30}) + "\n")
    found = again(shipped, recipes, data, tiny_folder, tmp_path / "now", learning_rate=2e-3)
    assert found.other == ["learning_rate", "dogs.jsonl"]
    assert found.error > 0
    assert str(found).endswith("; not the same: learning_rate, dogs.jsonl")


def test_a_run_that_ends_far_off_is_beyond_the_distance(
    shipped: Path, recipes: Path, data: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = again(shipped, recipes, data, tiny_folder, tmp_path / "now", learning_rate=1.0, steps=1)
    assert found.retrained != found.shipped
    monkeypatch.setattr(script, "DISTANCE", found.retrained - found.shipped - 1e-3)
    assert not found.is_within
    assert "beyond" in str(found)


def test_missing_data_are_named_with_the_command_that_builds_them(recipes: Path, data: Path, tmp_path: Path) -> None:
    (data / "eval" / "dogs.jsonl").unlink()
    with pytest.raises(InputError, match=r"There is no .*eval/dogs\.jsonl\. Build it: byheart data get dogs --to "):
        configure(recipes / "gist.toml", data, tmp_path)


def test_the_command_says_what_it_found_and_fails_beyond_the_distance(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def found(name: str, *, data: Path, out: Path) -> Reproduction:
        if name == "compressed-kv-mean":
            raise InputError("There is no train/squad.jsonl.")
        return Reproduction(name, 1.0, 1.0 if name == "latent-pool" else 1.5, 0.01, [])

    monkeypatch.setattr(script, "reproduce", found)
    assert main(["latent-pool"]) == 0
    assert main(["compressed-kv-concat"]) == 1
    assert main(["compressed-kv-mean"]) == 1
    assert main([]) == 1
    printed = capsys.readouterr()
    assert (
        "latent-pool: held-out loss 1.000, shipped 1.000, difference +0.000 (standard error 0.010), within"
        in printed.out
    )
    assert "compressed-kv-concat: held-out loss 1.500, shipped 1.000, difference +0.500" in printed.out
    assert "compressed-kv-mean: There is no train/squad.jsonl." in printed.err
    with pytest.raises(SystemExit):
        main(["pool"])
    assert "there is no shipped pool; there are compressed-kv-concat" in capsys.readouterr().err


# ---- what is shipped ----


@pytest.mark.parametrize("name", sorted(path.parent.name for path in PRETRAINED.glob("*/recipe.json")))
def test_a_shipped_method_has_the_settings_of_its_recipe(name: str) -> None:
    shipped = json.loads((PRETRAINED / name / "recipe.json").read_text())
    config = TrainingConfig.of(ROOT / "recipes" / f"{name}.toml")
    settings = flatten(config)
    compared = settings.keys() & shipped.keys() - {"data", "options", "method", "dtype"}
    assert len(compared) >= 14
    assert {key: shipped[key] for key in compared} == {key: settings[key] for key in compared}
    assert config.options.items() <= shipped["options"].items()
    names = [f"train/{file}:{weight:g}" for file, _, weight in shipped["data"]]
    assert [source.partition(":")[0] for source in settings["data"]] == [each.partition(":")[0] for each in names]
    assert list(stages(name, ROOT / "recipes"))[-1] == name


def test_stages_are_followed_to_the_first() -> None:
    assert list(stages("compressed-kv-mean", ROOT / "recipes")) == [
        *("compressed-kv-concat-1", "compressed-kv-concat-2"),
        *("compressed-kv-concat", "compressed-kv-mean"),
    ]
