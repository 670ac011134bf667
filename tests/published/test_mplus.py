"""M+ as its published code computes it on two tiny models: what is written, kept, merged, found and said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from byheart.errors import CheckpointError, UsageError
from byheart.methods.long_term_pool import LongTermPool
from byheart.protocol.checkpoint import load_pretrained, save_pretrained
from byheart.protocol.slot_search import FoundSlots, search_loss, slot_scores
from byheart.protocol.state import State
from byheart.published import memoryllm, mplus
from tests.conftest import Run, tiny_tokenizer
from tests.published.test_golden import FOLDERS, KINDS, logits, of_kind, same

TINY = [folder for folder in FOLDERS if KINDS[folder] == "mplus"]


def memory_of(folder: Path, order: str = "dropped") -> LongTermPool:
    return mplus(folder, dtype="float32", device="cpu", order=order)


def updates(method: LongTermPool, expected: dict[str, Tensor]) -> list[State]:
    """The states before and after each recorded update."""
    states = [method.init()]
    while (text := expected.get(f"written_{len(states)}")) is not None:
        delta = method.pool.dry_run(states[-1], text)
        states.append(method.renew(states[-1], delta, expected[f"kept_indices_{len(states)}"]))
    return states


def same_slots(method: LongTermPool, state: State, name: str, expected: dict[str, Tensor], end: str) -> None:
    """Assert that a state holds what the published code has under other names; a cache that is none is empty."""
    found, theirs = FoundSlots.of(state, name), {"long_": "ltm", "cached_": "cache"}[name]
    if f"{theirs}_{end}" not in expected:
        assert found.stamp.shape[2] == 0
        return
    kv = method.project(expected[f"{theirs}_{end}"])
    for ours, published in zip(found.kv.keys + found.kv.values, kv.keys + kv.values, strict=True):
        same(ours, published)
    same(found.address[0], expected[f"{theirs}_keys_{end}"])
    ages = method.slots * state["writes"] - found.stamp[0]
    assert torch.equal(ages, expected[f"{theirs}_ages_{end}"])


@of_kind("mplus")
@torch.no_grad()
def test_mplus_keeps_what_the_published_code_keeps(folder: Path) -> None:
    method, expected = memory_of(folder), load_file(folder / "expected.safetensors")
    states = updates(method, expected)
    assert len(states) > 4
    for number, state in enumerate(states[1:], start=1):
        same(state["recent"][0], expected[f"memory_after_{number}"][:, -method.slots :])
        for name in ("long_", "cached_"):
            same_slots(method, state, name, expected, f"after_{number}")
        for layer in expected[f"ltm_frequencies_after_{number}"]:
            assert torch.equal(state["long_lives"][0], layer)


@of_kind("mplus")
@torch.no_grad()
def test_mplus_finds_and_says_what_the_published_code_does(folder: Path) -> None:
    method, expected = memory_of(folder), load_file(folder / "expected.safetensors")
    prompt, compared = expected["prompt_ids"], 0
    for number, state in enumerate(updates(method, expected)):
        end = f"after_{number}" if number else "before"
        # With too few slots the published code reads some of them twice, which is not followed.
        if f"scores_{end}" in expected:
            chosen = method.select(state, prompt[0])
            assert torch.equal(chosen["recalled"][0], expected[f"retrieved_{end}"])
            same(logits(method.backbone, prompt, [method.read(chosen)]), expected[f"logits_{end}"])
            compared += 1
    assert compared >= 2


@of_kind("mplus")
@torch.no_grad()
def test_mplus_trains_its_retriever_on_the_published_loss(folder: Path) -> None:
    method, expected = memory_of(folder), load_file(folder / "expected.safetensors")
    own = expected["selector_labels"].bool()
    same(search_loss(expected["retriever_weights"], own), expected["selector_loss"])
    if "scores_before" not in expected:
        # What this folder reads before the first update has too few slots, see above.
        return
    state = method.init()
    queries = method.query(method.search(state, expected["prompt_ids"])[1])
    layers = zip(queries.unbind(1), state["address"].unbind(1), strict=True)
    same(torch.cat([slot_scores(*layer) for layer in layers]), expected["retriever_weights"])


@of_kind("mplus")
@torch.no_grad()
def test_ages_that_grow_in_the_pool_too_order_slots_by_when_they_were_written(folder: Path) -> None:
    method, expected = memory_of(folder, order="written"), load_file(folder / "expected.safetensors")
    state = updates(method, expected)[-1]
    place, stamps = state["place"], torch.cat([state["long_stamp"], state["cached_stamp"]], dim=2)
    assert torch.equal(state["stamp"].argsort(dim=2), place.argsort(dim=2))
    # The file's long-term memory stands before its pool, and what was dropped keeps its age.
    assert bool((method.init()["long_stamp"].amax(2) < method.init()["stamp"].amin(2)).all())
    chosen = method.select(state, expected["prompt_ids"][0])
    assert bool((stamps.gather(2, chosen["recalled"]).diff(dim=2) >= 0).all())


@of_kind("mplus")
@torch.no_grad()
def test_mplus_kept_in_byhearts_own_format_reads_the_same(folder: Path, tmp_path: Path) -> None:
    method, expected = memory_of(folder), load_file(folder / "expected.safetensors")
    save_pretrained(method, tmp_path)
    again = LongTermPool(method.backbone, **method.options())
    load_pretrained(again, tmp_path)
    assert again.fingerprint == method.fingerprint
    prompt = expected["prompt_ids"]
    ours, theirs = (one.read(one.select(one.init(), prompt[0])) for one in (again, method))
    same(logits(method.backbone, prompt, [ours]), logits(method.backbone, prompt, [theirs]))


@pytest.mark.skipif(not TINY, reason="there is no M+ folder")
def test_the_command_converts_it_and_others_take_it(run: Run, tmp_path: Path) -> None:
    released = copied(tmp_path)
    tiny_tokenizer().save_pretrained(released)
    out = tmp_path / "memory"
    result = run("import", "mplus", released, out, "--dtype", "float32", "--json").json
    assert result["method"] == "long-term-pool"
    assert result["options"]["started"] == load_file(released / "model.safetensors")["ltm.0"].shape[0]
    card = json.loads((out / "method.json").read_text())
    assert card["options"]["recalled"] == 2


# ---- what is refused ----


def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY[-1], tmp_path / "released"))


def spoiled(tmp_path: Path, **tensors: Tensor) -> Path:
    """A folder with other tensors; dots in names are written as two underscores."""
    folder = copied(tmp_path)
    others = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({**load_file(folder / "model.safetensors"), **others}, folder / "model.safetensors")
    return folder


@pytest.mark.skipif(not TINY, reason="there is no M+ folder")
def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    held = load_file(TINY[-1] / "model.safetensors")
    cases = {
        r"wrong shape: ltm\.1": {"ltm__1": held["ltm.1"][:-1]},
        r"ltm_ages must be 0 to 2,147,483,647; they are -1\.0": {"ltm_ages__0": held["ltm_ages.0"] * 0 - 1},
        "ltm_recall_frequencies must be alike in all layers": {
            "ltm_recall_frequencies__1": held["ltm_recall_frequencies.1"] + 1
        },
        r"ltm_keys\.2 holds NaN": {"ltm_keys__2": held["ltm_keys.2"] * float("nan")},
        r"unexpected: .*other_proj": {"model__layers__0__self_attn__other_proj__0__weight": torch.zeros(2)},
    }
    for number, (message, tensors) in enumerate(cases.items()):
        with pytest.raises(CheckpointError, match=message):
            memory_of(spoiled(tmp_path / str(number), **tensors))


@pytest.mark.skipif(not TINY, reason="there is no M+ folder")
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_ltm_blocks", None, "lacks num_ltm_blocks"),
        ("num_ltm_blocks", 4, "must be 2 or more above num_ltm_blocks 4"),
        ("num_selector_layers", 1, "num_selector_layers"),
        ("update_ltm_mode", "late", "update_ltm_mode"),
        ("decay_frequency", 0, "decay_frequency"),
    ],
)
def test_settings_that_cannot_be_are_named(name: str, value: object, message: str, tmp_path: Path) -> None:
    folder = copied(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    changed = {**config, name: value} if value is not None else {k: v for k, v in config.items() if k != name}
    (folder / "config.json").write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match=message):
        memory_of(folder)


@pytest.mark.skipif(not TINY, reason="there is no M+ folder")
def test_an_mplus_is_not_read_as_a_memoryllm() -> None:
    with pytest.raises(CheckpointError, match=r"holds an M\+; read it as mplus: byheart import mplus"):
        memoryllm(TINY[0])
    with pytest.raises(UsageError, match="order must be one of written, dropped"):
        memory_of(TINY[0], order="writte")
