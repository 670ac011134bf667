"""Learned parts on disk: what is saved is loaded, and what does not belong there is refused by name."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from byheart.errors import CheckpointError, StateMismatchError, UsageError
from byheart.methods import build
from byheart.protocol.checkpoint import CARD, WEIGHTS, is_learned, load_pretrained, read_card, save_pretrained
from byheart.protocol.method import Method
from byheart.testing import tiny_backbone
from tests.samples import backbone, fresh, same, tokens, written


@pytest.fixture
def trained() -> Method:
    """A method with learned parts that are not where they start."""
    return fresh("latent-pool lora", backbone())


@pytest.fixture
def folder(trained: Method, tmp_path: Path) -> Path:
    save_pretrained(trained, tmp_path / "new" / "trained")
    return tmp_path / "new" / "trained"


def untrained(method: Method) -> Method:
    return build(method.name, method.backbone, **method.options())


def opened(folder: Path) -> Method:
    """The method that a folder names, with its options and learned parts."""
    card = read_card(folder)
    made = build(card["method"], backbone(), **card["options"])
    load_pretrained(made, folder)
    return made


def rewrite(folder: Path, **changes: Tensor | None) -> None:
    """Change tensors of the weights, or drop those that are None."""
    stored = {**load_file(folder / WEIGHTS), **changes}
    save_file({name: tensor for name, tensor in stored.items() if tensor is not None}, folder / WEIGHTS)


# ---- there and back ----


def test_a_folder_holds_a_card_and_the_weights(trained: Method, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {CARD, WEIGHTS}
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    assert card == {"method": "latent-pool", "options": trained.options(), "backbone": trained.backbone.fingerprint}
    assert read_card(folder) == card
    assert load_file(folder / WEIGHTS).keys() == trained.state_dict().keys()


def test_learned_parts_come_back(trained: Method, folder: Path) -> None:
    again = untrained(trained)
    assert again.fingerprint != trained.fingerprint
    load_pretrained(again, folder)
    assert again.fingerprint == trained.fingerprint
    same(written(again, tokens(40)), written(trained, tokens(40)))


def test_a_part_that_only_some_have_comes_back(trained: Method, tmp_path: Path) -> None:
    """A pool that was filled is a buffer that an empty one does not have."""
    pool = torch.randn(3, 24, 32, generator=torch.Generator().manual_seed(0))
    again = untrained(trained)
    trained.fill(pool)
    save_pretrained(trained, tmp_path)
    load_pretrained(again, tmp_path)
    assert torch.equal(again.get_buffer("initial"), pool)
    same(again.init(), trained.init())


def test_what_is_saved_is_detached_from_training(trained: Method, folder: Path) -> None:
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    save_pretrained(trained.train(), folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_saving_again_replaces_what_was_there(trained: Method, folder: Path) -> None:
    other = build("adapter", backbone(), rank=2)
    save_pretrained(other, folder)
    assert read_card(folder)["method"] == "adapter"
    with pytest.raises(StateMismatchError, match="holds learned parts of adapter for"):
        load_pretrained(untrained(trained), folder)


# ---- which names are folders ----


def test_names_of_methods_are_told_from_folders(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_learned("latent-pool")
    assert is_learned(str(folder))
    # A path is one even where nothing is there yet: the error then names the folder.
    assert is_learned(str(tmp_path / "missing"))
    monkeypatch.chdir(folder.parent)
    assert is_learned("trained")
    (folder / CARD).unlink()
    assert not is_learned("trained")
    (folder / "memory.json").write_text("{}")
    assert is_learned("trained")


# ---- what is refused ----


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "null",
        "{}",
        '{"method": "window"}',
        '{"method": "window", "options": {}}',
        '{"backbone": ""}',
        "[" * 100_000,
        '{"method": ' * 100_000,
        '{"method": ' + "9" * 5000 + "}",
        "\0",
    ],
)
def test_a_card_that_makes_no_sense_is_refused(folder: Path, text: str) -> None:
    (folder / CARD).write_text(text)
    with pytest.raises(CheckpointError, match=rf"trained' holds no trained method: {CARD} cannot be read"):
        read_card(folder)


@pytest.mark.parametrize("card", [CARD, "memory.json"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            ("method", value)
            for value in (5, None, True, [], ["window"], {}, "", "a b", "../x", "a\n", "\x1b[0m", "x" * 101)
        ),
        *(("backbone", value) for value in (5, None, True, [], {}, "", "a b", "\x1b[0m", "x" * 201)),
        *(("options", value) for value in (5, None, True, [], [["rank", 2]], "x", {"a b": 1}, {"": 1}, {"x" * 101: 1})),
        *(("options", {"rank": value}) for value in (10**4000, 1 << 63, float("inf"), float("nan"), [1 << 63])),
        ("options", {"rank": [float("inf")]}),
    ],
)
def test_a_card_of_other_types_is_refused_in_one_line(folder: Path, card: str, field: str, value: Any) -> None:
    stored = {**json.loads((folder / CARD).read_text()), field: value}
    (folder / CARD).unlink()
    (folder / card).write_text(
        json.dumps({"mechanism" if card != CARD and n == "method" else n: v for n, v in stored.items()})
    )
    with pytest.raises(CheckpointError, match=rf"trained' holds no trained method: {card} cannot be read") as caught:
        read_card(folder)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("rank", value) for value in ("x", -1, 1.5, True, [], None, 33 * 10**6, (1 << 63) - 1)),
        *(("slots", value) for value in ("x", 0, -1, 1.5)),
        *(
            (name, 1)
            for name in ("self", "backbone", "name", "kind", "model", "method", "device", "dtype", "__class__")
        ),
        *(("targets", value) for value in (5, None, [5], [[]], "x")),
        *(("forget", value) for value in (5, "x", None)),
    ],
)
def test_options_that_a_method_does_not_have_are_refused(folder: Path, option: str, value: Any) -> None:
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, "options": {**card["options"], option: value}}))
    with pytest.raises((UsageError, CheckpointError)):
        opened(folder)


def test_more_compression_tokens_than_the_model_has_tokens_are_refused_before_they_are_made() -> None:
    with pytest.raises(UsageError, match=r"tokens must be at most \d+, the model's vocabulary; it is 1000000000000"):
        build("compressed-kv", backbone(), tokens=10**12)


def test_a_rank_above_a_layers_width_is_refused_before_it_is_made() -> None:
    with pytest.raises(UsageError, match=r"rank must be 1 to 32, the width of 'layers.0.self_attn.q_proj'; it is 100"):
        build("compressed-kv", backbone(), rank=10**12)


@pytest.mark.parametrize("file", [CARD, WEIGHTS])
@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_refused_unopened(trained: Method, folder: Path, file: str, put: Any) -> None:
    (folder / file).unlink()
    put(folder / file)
    with pytest.raises(CheckpointError, match=f"{file} cannot be read"):
        load_pretrained(untrained(trained), folder)


@pytest.mark.parametrize("file", [CARD, WEIGHTS])
def test_a_file_outside_the_folder_is_refused(trained: Method, folder: Path, file: str) -> None:
    (folder / file).rename(folder.parent / file)
    (folder / file).symlink_to(folder.parent / file)
    with pytest.raises(CheckpointError, match=f"{file} cannot be read .*lies outside the folder"):
        load_pretrained(untrained(trained), folder)


def test_a_folder_without_a_card_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match="holds no trained method"):
            read_card(place)


def test_parts_of_another_method_or_model_are_refused_with_both_sides(trained: Method, folder: Path) -> None:
    own = trained.backbone.fingerprint
    with pytest.raises(
        StateMismatchError, match=f"holds learned parts of latent-pool for backbone {own}; this is window on"
    ):
        load_pretrained(build("window", backbone()), folder)
    other = tiny_backbone(seed=1)
    elsewhere = build("latent-pool", other, **trained.options())
    with pytest.raises(
        StateMismatchError, match=f"backbone {own}; this is latent-pool on backbone {other.fingerprint}"
    ):
        load_pretrained(elsewhere, folder)


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(b"no tensors")])
def test_weights_that_cannot_be_read_are_refused(trained: Method, folder: Path, spoil: Any) -> None:
    spoil(folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=rf"trained': {WEIGHTS} cannot be read"):
        load_pretrained(untrained(trained), folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mark": None}, r"missing \['mark'\], unexpected \[\], of another shape \[\]"),
        ({"more": torch.zeros(1)}, r"missing \[\], unexpected \['more'\], of another shape \[\]"),
        ({"mark": torch.zeros(5)}, r"missing \[\], unexpected \[\], of another shape \['mark'\]"),
        ({"mark": None, "more": torch.zeros(1)}, r"missing \['mark'\], unexpected \['more'\]"),
        ({"mark": None, "initial": torch.zeros(3, 24, 32)}, r"missing \['mark'\], unexpected \[\]"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(
    trained: Method, folder: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    rewrite(folder, **changes)
    method = untrained(trained)
    before = method.fingerprint
    with pytest.raises(CheckpointError, match=rf"trained' does not fit: {message}"):
        load_pretrained(method, folder)
    assert method.fingerprint == before


NOT_NUMBERS = {
    "NaN": lambda tensor: torch.full_like(tensor, float("nan")),
    "infinite": lambda tensor: torch.full_like(tensor, float("inf")),
    "too large": lambda tensor: torch.full_like(tensor, 1e300, dtype=torch.float64),
    **{str(kind): partial(torch.ones_like, dtype=kind) for kind in (torch.int8, torch.bool, torch.int64)},
    "complex": partial(torch.ones_like, dtype=torch.complex64),
    "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("kind", NOT_NUMBERS)
@pytest.mark.parametrize("name", ["mark", "reading.down.0", "initial"])
def test_numbers_that_were_not_learned_are_refused_and_nothing_is_loaded(
    trained: Method, folder: Path, name: str, kind: str
) -> None:
    trained.fill(torch.zeros(3, 24, 32))
    save_pretrained(trained, folder)
    rewrite(folder, **{name: NOT_NUMBERS[kind](load_file(folder / WEIGHTS)[name])})
    method = untrained(trained)
    before = method.fingerprint
    with pytest.raises(
        CheckpointError, match=rf"cannot be used: \['{name}'\] holds NaN, infinite numbers, or others than"
    ):
        load_pretrained(method, folder)
    assert method.fingerprint == before


@pytest.mark.parametrize(
    "shape", [(), (1,), (3, 24), (2, 24, 32), (3, 25, 32), (3, 24, 31), (3, 24, 0), (1, 3, 24, 32)]
)
def test_a_pool_of_another_shape_is_refused(trained: Method, folder: Path, shape: tuple[int, ...]) -> None:
    rewrite(folder, initial=torch.zeros(shape))
    with pytest.raises(CheckpointError, match=r"of another shape \['initial'\]"):
        load_pretrained(untrained(trained), folder)


@pytest.mark.parametrize("name", ["backbone", "training", "forward", "reading", "a.b", "mark.x", "", "\x1b[0m"])
def test_a_tensor_by_the_name_of_something_else_is_refused(trained: Method, folder: Path, name: str) -> None:
    rewrite(folder, **{name: torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"missing \[\], unexpected \['") as caught:
        load_pretrained(untrained(trained), folder)
    assert str(caught.value).isprintable()


def test_a_folder_whose_file_changes_under_a_method_that_read_it_changes_nothing(trained: Method, folder: Path) -> None:
    trained.fill(torch.ones(3, 24, 32))
    save_pretrained(trained, folder)
    method = untrained(trained)
    load_pretrained(method, folder)
    with (folder / WEIGHTS).open("r+b") as file:
        file.write(b"\xff" * (folder / WEIGHTS).stat().st_size)
    assert torch.equal(method.get_buffer("initial"), torch.ones(3, 24, 32))
    assert method.fingerprint == trained.fingerprint


# ---- saving ----


def test_a_save_that_fails_leaves_what_was_there(trained: Method, folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    trained.options = lambda: {"targets": {1, 2}}
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_pretrained(trained, folder)
    assert (folder / CARD).read_bytes() == before[CARD]
    assert {path.name for path in folder.iterdir()} == set(before)


def test_what_a_killed_save_left_is_removed_by_the_next(trained: Method, folder: Path) -> None:
    (folder / ".method.abcd1234.tmp").write_bytes(b"half")
    save_pretrained(trained, folder)
    assert {path.name for path in folder.iterdir()} == {CARD, WEIGHTS}
