"""From a config to a trained method: epochs, prompts, held-out data, and what is recorded of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from byheart.errors import InputError, StateMismatchError, UnknownNameError, UsageError
from byheart.session.opening import load
from byheart.training.config import TrainingConfig
from byheart.training.loop import Step
from byheart.training.run import run

TEXTS = [{"text": f"{word} " * 80} for word in ("one", "two")]
NLI = {"task": "mc", "dataset": "rte", "context": "It rains.", "question": "It is wet."}
PROMPTS = [{**NLI, "label": label} for label in (0, 1, 1)]
SMALL: dict[str, Any] = {"segments": [1, 2], "segment_tokens": 16, "target_tokens": 8, "batch": 2, "steps": 2}


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.fixture
def texts(tmp_path: Path) -> str:
    return write(tmp_path / "texts.jsonl", TEXTS)


def config(folder: Path, source: str, **settings: Any) -> TrainingConfig:
    return TrainingConfig.of(**{**SMALL, "model": str(folder), "data": [source], "dtype": "float32", **settings})


def recorded(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / "recipe.json").read_text())
    return record


def test_a_run_is_recorded_by_flat_names_with_its_data(tiny_folder: Path, texts: str, tmp_path: Path) -> None:
    run(config(tiny_folder, f"{texts}:2.5", teacher=0.5, too_long="cut"), tmp_path / "out")
    record = recorded(tmp_path / "out")
    name, digest, weight = record["data"][0]
    assert (name, weight) == ("texts.jsonl", 2.5)
    assert digest
    expected = {**SMALL, "teacher": 0.5, "too_long": "cut", "gap": 0, "recall": 0.0, "packed": 1, "dtype": "float32"}
    assert {name: record[name] for name in expected} == expected
    assert "objective" not in record


def test_where_data_lie_does_not_matter_but_what_they_hold_does(tiny_folder: Path, texts: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run(config(tiny_folder, texts), out)
    (tmp_path / "moved").mkdir()
    moved = write(tmp_path / "moved" / "texts.jsonl", TEXTS)
    assert run(config(tiny_folder, moved), out).losses == first.losses
    changed = write(tmp_path / "moved" / "texts.jsonl", [*TEXTS, {"text": "three " * 80}])
    with pytest.raises(StateMismatchError, match="was trained with data"):
        run(config(tiny_folder, changed), out)


def test_a_streamed_run_resumes_where_it_stopped(tiny_folder: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "corpus.jsonl", [{"text": f"{chr(97 + n)} " * 80} for n in range(7)])
    settings = config(tiny_folder, source, stream=2, steps=6, save_every=2)
    unbroken = run(settings, tmp_path / "unbroken")

    def stop(step: Step) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "out", progress=stop)
    assert run(settings, tmp_path / "out").losses == unbroken.losses
    assert recorded(tmp_path / "out")["stream"] == 2
    with pytest.raises(StateMismatchError, match=r"of the first 2.*; this run has .* of the first 3"):
        run(config(tiny_folder, source, stream=3, steps=6, save_every=2), tmp_path / "out")


def test_the_same_config_in_another_folder_gives_the_same_losses(tiny_folder: Path, texts: str, tmp_path: Path) -> None:
    first, second = (run(config(tiny_folder, texts, seed=3), tmp_path / name) for name in ("a", "b"))
    assert first.losses == second.losses
    assert run(config(tiny_folder, texts, seed=4), tmp_path / "c").losses != first.losses


def test_held_out_data_are_measured_at_the_end_and_do_not_change_the_run(
    tiny_folder: Path, texts: str, tmp_path: Path
) -> None:
    seen: list[Step] = []
    plain = run(config(tiny_folder, texts), tmp_path / "plain")
    measured = run(config(tiny_folder, texts, held_out=[texts]), tmp_path / "measured", progress=seen.append)
    assert plain.held_out is None
    assert measured.losses == plain.losses
    assert [step.held_out for step in seen] == [None, measured.held_out]


def test_ready_says_how_far_an_earlier_run_came(tiny_folder: Path, texts: str, tmp_path: Path) -> None:
    counts: list[tuple[int, int]] = []
    settings = config(tiny_folder, texts, steps=3, save_every=1)

    def stop(step: Step) -> None:
        if step.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "out", ready=lambda *pair: counts.append(pair), progress=stop)
    run(settings, tmp_path / "out", ready=lambda *pair: counts.append(pair))
    assert counts == [(0, 3), (2, 3)]


# ---- prompts ----


@pytest.mark.parametrize(("settings", "steps"), [({}, 4), ({"accumulate": 2}, 2), ({"batch": 3}, 2), ({"batch": 1}, 6)])
def test_epochs_are_passes_over_the_prompts(
    tiny_folder: Path, tmp_path: Path, settings: dict[str, Any], steps: int
) -> None:
    """Three prompts in batches of two are two batches, and so on; twice through them."""
    prompts = write(tmp_path / "rte.jsonl", PROMPTS)
    made = config(tiny_folder, prompts, method="adapter", prompts="label", epochs=2, **settings)
    result = run(made, tmp_path / "out", ready=lambda done, total: None)
    assert len(result.losses) == recorded(tmp_path / "out")["steps"] == steps


def test_packed_rows_of_the_first_records_are_trained_on_at_a_constant_rate(tiny_folder: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path / "rte.jsonl", PROMPTS)
    settings = {"prompts": "all", "epochs": 1, "batch": 1, "pack_tokens": 16, "most_records": 2}
    made = config(tiny_folder, prompts, method="adapter", schedule="constant", learning_rate=0.01, **settings)
    rates: list[float] = []
    result = run(made, tmp_path / "out", progress=lambda step: rates.append(step.learning_rate))
    assert recorded(tmp_path / "out")["pack_tokens"] == 16
    assert len(result.losses) > 2
    assert set(rates) == {0.01}
    with pytest.raises(UnknownNameError, match=r"no value of schedule 'constent'\. Did you mean 'constant'"):
        run(config(tiny_folder, prompts, method="adapter", schedule="constent", **settings), tmp_path / "other")


def test_a_run_over_prompts_records_them_without_shapes_of_episodes(tiny_folder: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path / "rte.jsonl", PROMPTS)
    run(config(tiny_folder, prompts, method="adapter", prompts="all", steps=1), tmp_path / "out")
    record = recorded(tmp_path / "out")
    assert (record["data"], record["prompts"]) == (["rte.jsonl"], "all")
    assert not {"segments", "segment_tokens", "recall"} & record.keys()


# ---- what cannot be is said before the model is opened ----


def test_labelled_records_are_not_streamed(tmp_path: Path) -> None:
    source = write(tmp_path / "nli.jsonl", PROMPTS)
    with pytest.raises(UsageError, match="stream is for texts: labelled records are held whole"):
        run(config(tmp_path, source, stream=2, prompts="label", method="adapter"), tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"data": []}, UsageError, "nothing to train on: give --data, or data in the recipe"),
        ({"prompts": "lable"}, UnknownNameError, r"no value of prompts 'lable'\. Did you mean 'label'"),
        ({"epochs": 1}, UsageError, r"epochs is for prompts: give prompts \(label or all\) too, or leave it out"),
        ({"most_records": 1}, UsageError, "most_records is for prompts"),
        ({"prompts": "all", "most_records": -1}, UsageError, "most_records must be 0 or more; it is -1"),
        ({"prompts": "label", "pack_tokens": 8}, UsageError, "pack_tokens must be 2 or more, with prompts = 'all'"),
        ({"track": "wandv"}, UnknownNameError, r"no tracker 'wandv'\. Did you mean 'wandb'"),
        ({"data": ["./none.jsonl"]}, InputError, "none.jsonl"),
        ({"held_out": ["./none.jsonl"]}, InputError, "none.jsonl"),
    ],
)
def test_settings_that_cannot_be(
    texts: str, tmp_path: Path, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(config(Path("./no-such-model"), texts, **settings), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"segments": [0, 1]}, "counts of segments of 1 or more"),
        ({"target_tokens": 1}, "target_tokens must be above 0"),
        ({"batch": 0}, "batch must be above 0"),
        ({"packed": 0}, "packed must be above 0"),
        ({"steps": 0}, "steps must be above 0"),
        ({"save_every": 0}, "save_every must be above 0"),
        ({"too_long": "trim"}, r"no value of too_long 'trim'\. There are: cut, refuse"),
        ({"segments": [40]}, r"Episodes of 40 segments of 16 tokens and a target of 8 have 648 tokens"),
    ],
)
def test_settings_that_no_run_can_have(
    tiny_folder: Path, texts: str, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(config(tiny_folder, texts, **settings), tmp_path / "out")
    assert not (tmp_path / "out" / "recipe.json").exists()


def test_a_carried_pool_resumes_where_it_was_and_is_kept(tiny_folder: Path, texts: str, tmp_path: Path) -> None:
    options = {"slots": 4, "blocks": 3, "rank": 2, "longest": 16, "shortest": 2}
    shape = {"batch": 1, "steps": 6, "save_every": 2, "revisit": 0.5, "carried": True, "learning_rate": 0.01}
    made = config(tiny_folder, texts, method="latent-pool", options=options, held_out=[texts], **shape)
    whole = run(made, tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(step: Step) -> None:
        if step.step == 3:
            raise Killed

    with pytest.raises(Killed):
        run(made, tmp_path / "broken", progress=kill)
    again = run(made, tmp_path / "broken")
    assert again.losses == whole.losses
    assert again.held_out == whole.held_out
    kept = load(str(tiny_folder), method=str(tmp_path / "whole"), dtype="float32").method
    assert kept.share_left(before=0, later=1) == pytest.approx(2 / 3)


def test_the_loss_after_other_texts_is_recorded_beside_that_of_held_out_ones(
    tiny_folder: Path, texts: str, tmp_path: Path
) -> None:
    seen: list[Step] = []
    made = config(tiny_folder, texts, held_out=[texts], retention=2, steps=1, segments=[1])
    run(made, tmp_path / "out", progress=seen.append)
    assert seen[-1].held_out is not None
    assert seen[-1].held_out_later is not None
    (line,) = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["held_out_later"] == seen[-1].held_out_later


def test_revisits_need_a_pool_that_is_carried(tiny_folder: Path, texts: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="revisit asks a pool that is carried"):
        run(config(tiny_folder, texts, revisit=0.5), tmp_path / "out")
