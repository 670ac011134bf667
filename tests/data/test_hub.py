"""Names of the hub: what each says, and a folder read in its place, as the package `datasets` reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from byheart.data.hub import CONVERTED, HubName, read_hub, short_name
from byheart.data.mixture import Weighted
from byheart.data.records import rows
from byheart.errors import InputError, UsageError

CARD = """---
configs:
- config_name: boolq
  data_files: [{split: train, path: boolq/train.jsonl}, {split: validation, path: boolq/validation.jsonl}]
- config_name: cb
  data_files: [{split: train, path: cb/train.jsonl}]
---
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder in which ``aps/super_glue`` has two configs."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache" / "datasets"))
    monkeypatch.setattr(pytest.importorskip("datasets").config, "HF_DATASETS_CACHE", tmp_path / "cache" / "datasets")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "aps" / "super_glue"
    for part in ("boolq/train", "boolq/validation"):
        made = [{"question": f"is it {n}", "passage": f"{part} {n}", "label": n % 2} for n in range(4)]
        write(folder / f"{part}.jsonl", made)
    write(folder / "cb" / "train.jsonl", [{"premise": "a", "hypothesis": "b", "label": 2}])
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    return folder


def write(file: Path, made: list[dict[str, object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in made), encoding="utf-8")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("squad", HubName("squad")),
        ("rajpurkar/squad_v2:validation", HubName("rajpurkar/squad_v2", split="validation")),
        ("aps/super_glue/boolq:validation", HubName("aps/super_glue", "boolq", "validation")),
        ("super_glue/boolq", HubName("aps/super_glue", "boolq")),
        ("race/high:test", HubName("ehovy/race", "high", "test")),
        ("glue", HubName("nyu-mll/glue")),
        ("allenai/c4/en:train[:500]", HubName("allenai/c4", "en", "train", 500)),
        ("allenai/c4/en:[:5]", HubName("allenai/c4", "en", "train", 5)),
        ("a/b/c:d@abc123", HubName("a/b", "c", "d", revision="abc123")),
        (f"a/b@{CONVERTED}", HubName("a/b", revision=CONVERTED)),
        ("abisee/cnn_dailymail/3.0.0:test", HubName("abisee/cnn_dailymail", "3.0.0", "test")),
    ],
)
def test_a_name_says_data_set_config_split_number_and_revision(source: str, name: HubName) -> None:
    assert HubName.of(source) == name


@pytest.mark.parametrize("source", ["a b", "a/b/c/d", "a/b:train[5]", "a/b:train[:x]", "a//b", ""])
def test_what_is_no_name_is_said_with_one_that_is(source: str) -> None:
    with pytest.raises(UsageError, match=r"is no file or folder, and no name of the hub, such as aps/super_glue/boolq"):
        list(read_hub(source))


def test_a_revision_is_no_part_of_the_name_of_results() -> None:
    assert short_name("a/b/c:d[:5]@abc/1") == "a/b/c:d[:5]"
    assert short_name("eval/a b.jsonl") == "eval/a b.jsonl"


def test_a_config_and_a_split_are_read(hub: Path) -> None:
    found = rows("super_glue/boolq:validation")
    assert [row["context"] for row in found] == [f"boolq/validation {n}" for n in range(4)]
    assert {row["dataset"] for row in found} == {"aps/super_glue/boolq"}
    assert rows("aps/super_glue/cb")[0]["question"] == "b"


def test_a_weight_may_follow_a_config_and_a_split(hub: Path) -> None:
    found = Weighted.read("aps/super_glue/boolq:validation:2")
    assert (found.weight, len(found.data.records)) == (2.0, 4)


def test_the_first_records_are_streamed(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(*names: str, **options: object) -> object:
        asked.append(options)
        return original(*names, **options)

    original = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", load)
    # What comes after them is not read: it is no JSON.
    file = hub / "boolq" / "train.jsonl"
    assert [row["label"] for row in rows("aps/super_glue/boolq:train[:2]")] == [0, 1]
    assert asked == [{"name": "boolq", "split": "train", "streaming": True}]
    assert len(file.read_text().splitlines()) == 4


def test_a_revision_is_asked_for_and_a_config_of_the_hubs_copies_is_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: asked.append((*names, options)) or [])
    assert [list(read_hub(name)) for name in ("a/b/c:d@123", f"a/b/c:d@{CONVERTED}", "a/b")] == [[], [], []]
    assert asked == [
        ("a/b", {"name": "c", "split": "d", "revision": "123"}),
        ("a/b", {"data_dir": "c", "split": "d", "revision": CONVERTED}),
        ("a/b", {"split": "train"}),
    ]


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("aps/super_glue/none", r"'aps/super_glue/none' could not be read.*'none' not found.*'boolq', 'cb'"),
        ("aps/super_glue/boolq:test", r"Unknown split .test.*train.*validation.*read by their path"),
    ],
)
def test_a_config_and_a_split_that_are_not_there_are_named(hub: Path, source: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        rows(source)


def test_without_a_network_it_says_how_not_to_wait_again(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def fail(*names: str, **options: object) -> None:
        raise ConnectionError("Couldn't reach 'a/b' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError, match=r"Couldn't reach 'a/b' on the Hub\. .*HF_HUB_OFFLINE=1 saves the minute"):
        list(read_hub("a/b"))


def test_data_that_need_a_script_have_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def refuse(*names: str, **options: object) -> None:
        raise RuntimeError("Dataset scripts are no longer supported, but found xsum.py")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(InputError, match=r"found xsum\.py\. Its loading needs a script, .* add @refs/convert/parquet"):
        list(read_hub("a/xsum"))


def test_a_split_that_was_saved_to_disk_is_read_and_several_are_named(hub: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    split = datasets.Dataset.from_list([{"premise": "a", "hypothesis": "b", "label": 1}])
    datasets.DatasetDict({"train": split, "validation": split}).save_to_disk(str(tmp_path / "saved" / "cb"))
    assert rows(str(tmp_path / "saved" / "cb" / "train"))[0]["dataset"] == "cb"
    with pytest.raises(InputError, match="has several splits; give the folder of one: train, validation"):
        rows(str(tmp_path / "saved" / "cb"))
    (tmp_path / "saved" / "cb" / "train" / "state.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read"):
        rows(str(tmp_path / "saved" / "cb" / "train"))
