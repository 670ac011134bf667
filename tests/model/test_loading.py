"""A model's folder may come from a stranger: none of its code runs, none of its files hangs, each error is one line."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from byheart import load
from byheart.errors import ModelError, UnsupportedModelError
from byheart.model.backbone import Backbone
from byheart.model.folder import examine, name_base
from byheart.model.loading import locate, open_model, open_tokenizer, taking_attention
from byheart.protocol import peft
from tests.conftest import save_tiny

Spoil = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path, tiny_folder: Path) -> Path:
    """A tiny model of one's own, to be spoilt."""
    return shutil.copytree(tiny_folder, tmp_path / "tiny")


def edit(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def configured(**fields: Any) -> Spoil:
    return lambda folder: edit(folder / "config.json", **fields)


def written(name: str, text: str | bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)


def replaced(name: str, make: Callable[[Path], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return spoil


def indexed(weights: object) -> Spoil:
    """The weights in shards that an index names."""

    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "shard.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))

    return spoil


def moved(shard: str) -> Spoil:
    """The weights in one file, where an index names it."""

    def spoil(folder: Path) -> None:
        (folder / "sub").mkdir()
        names = list(load_file(folder / "model.safetensors"))
        (folder / "model.safetensors").rename(folder / shard)
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return spoil


def linked(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return spoil


def adapted(**settings: Any) -> Spoil:
    """An adapter of PEFT in the place of the model, which stands beside it."""

    def spoil(folder: Path) -> None:
        for name, put in {"whole": Path.touch, "piped": os.mkfifo}.items():
            shutil.copytree(folder, folder.parent / name)
            (folder.parent / name / "generation_config.json").unlink()
            put(folder.parent / name / "added_tokens.json")
        (folder / "config.json").unlink()
        (folder / "model.safetensors").unlink()
        linears = {f"layers.{i}.self_attn.q_proj": (torch.ones(2, 32), torch.ones(32, 2)) for i in range(3)}
        peft.write(folder, linears, decoder="model", base=str(folder.parent / "whole"), alpha=4.0)
        edit(folder / "adapter_config.json", **settings)

    return spoil


def lacking(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


class _Touch:
    """A pickle that would make a file."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran-the-pickle",)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Touch()))


SPOILT: dict[str, Spoil] = {
    "a million layers": configured(num_hidden_layers=10**6),
    "a vocabulary of 10**11": configured(vocab_size=10**11),
    "a block of 10**10": configured(intermediate_size=10**10),
    "10**9 heads": configured(num_attention_heads=10**9),
    "a width of 10**12": configured(hidden_size=10**12),
    "no heads": configured(num_attention_heads=0),
    "no layers": configured(num_hidden_layers=0),
    "a negative width": configured(hidden_size=-32),
    "heads of text": configured(num_attention_heads="four"),
    "layers of a list": configured(num_hidden_layers=[3]),
    "an unknown activation": configured(hidden_act="none such"),
    "an unknown type": configured(model_type="none such"),
    "no type": configured(model_type=None, architectures=None),
    "rotary settings of text": configured(rope_parameters="none"),
    "rotary base of zero": configured(rope_parameters={"rope_type": "default", "rope_theta": 0}),
    "an unknown rotary type": configured(rope_parameters={"rope_type": "none such", "rope_theta": 1e4}),
    "a width that heads do not divide": configured(hidden_size=33, head_dim=None),
    "another width": configured(hidden_size=64),
    "more layers than weights": configured(num_hidden_layers=5),
    "weights elsewhere": configured(transformers_weights="../tiny.safetensors"),
    "a million layers and no weights": lambda folder: [
        (folder / "model.safetensors").unlink(),
        configured(num_hidden_layers=10**6)(folder),
    ],
    "a config of nothing": written("config.json", ""),
    "a config of a list": written("config.json", "[]"),
    "a deep config": written("config.json", '{"a":' + "[" * 10**5 + "]" * 10**5 + "}"),
    "a config of bytes": written("config.json", b"\xff\xfe\x00"),
    "a config that is a pipe": replaced("config.json", os.mkfifo),
    "a tokenizer that is a pipe": replaced("tokenizer.json", os.mkfifo),
    "a template that is a pipe": replaced("chat_template.jinja", os.mkfifo),
    "weights that are a pipe": replaced("model.safetensors", os.mkfifo),
    "a config that is a device": replaced("config.json", lambda path: path.symlink_to("/dev/zero")),
    "weights of text": written("model.safetensors", "no weights"),
    "weights cut short": lambda folder: os.truncate(folder / "model.safetensors", 5000),
    "a weight less": lacking,
    "a pickle": pickled,
    "a .bin of text": lambda folder: [
        (folder / "model.safetensors").unlink(),
        written("pytorch_model.bin", "x")(folder),
    ],
    "an index that leaves the folder": indexed({"a": "../shard.safetensors"}),
    "an index of absolute paths": indexed({"a": "/dev/zero"}),
    "an index of nothing": indexed(None),
    "an index of numbers": indexed({"a": 3}),
    "an index of a missing shard": indexed({"a": "none.safetensors"}),
}


REFUSED: dict[str, tuple[Spoil, str]] = {
    "weights in a folder within": (
        moved("sub/part.safetensors"),
        "'sub/part.safetensors', which is no file of weights",
    ),
    "weights of another kind": (moved("part.pt"), "'part.pt', which is no file of weights beside it"),
    "weights that settings name": (
        configured(transformers_weights="sub/a.bin"),
        "'sub/a.bin', which is no file of weigh",
    ),
    "weights behind a link": (linked("model.safetensors"), "lies outside the folder '.*tiny'; put a copy of it there"),
    "a tokenizer behind a link": (linked("tokenizer.json"), "lies outside the folder"),
    "a million layers and empty weights": (
        lambda folder: [os.truncate(folder / "model.safetensors", 0), configured(num_hidden_layers=10**6)(folder)],
        "describes a model of at least",
    ),
    "an adapter of a hub's model": (
        adapted(base_model_name_or_path="attacker/x"),
        "'attacker/x', which you have not op",
    ),
    "an adapter of a folder with a pipe": (adapted(base_model_name_or_path="piped"), "is no regular file"),
    "an adapter of nothing": (adapted(base_model_name_or_path=None), "'None', which you have not opened yet"),
    "an adapter of an alias": (adapted(base_model_name_or_path="smollm2"), "'smollm2', which you have not opened yet"),
    "an adapter of Megatron": (adapted(megatron_config={"a": 1}, megatron_core="this"), "asks for Megatron"),
    "an adapter for an endless pattern": (
        adapted(target_modules="(.*a)*x"),
        r"'target_modules' '\(.*; list the modules",
    ),
    "an adapter for endless patterns": (adapted(rank_pattern={"(.*a)*x": 3}), "'rank_pattern' .*; list the modules"),
}


@pytest.mark.parametrize(("spoil", "message"), REFUSED.values(), ids=REFUSED)
def test_a_folder_is_looked_at_before_anything_in_it_is_opened(
    folder: Path, spoil: Spoil, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spoil(folder)
    with pytest.raises((OSError, ValueError), match=message):
        examine(folder)
    with pytest.raises(ModelError, match=message):
        load(str(folder))


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_folder_that_cannot_be_used_is_refused(
    folder: Path, spoil: Spoil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spoil(folder)
    start = time.monotonic()
    with pytest.raises(ModelError) as refused:
        load(str(folder))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 700
    assert time.monotonic() - start < 20
    assert not (tmp_path / "ran-the-pickle").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "["),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": 3}}'),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", '{"bos_token": 5}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": 3}}'),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_refused(folder: Path, name: str, text: str) -> None:
    written(name, text)(folder)
    with pytest.raises(ModelError, match=r"^No tokenizer could be opened for model ") as refused:
        open_tokenizer(str(folder))
    assert "\n" not in str(refused.value)


def test_no_code_of_a_folder_runs_whatever_stands_on_standard_input(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\nclass Words: pass\n"
    (folder / "evil.py").write_text(code)
    classes = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Words", None]}
    edit(folder / "config.json", model_type="evil", auto_map=classes)
    edit(folder / "tokenizer_config.json", tokenizer_class="Words", auto_map=classes)
    typed = io.StringIO("y\n" * 9)
    monkeypatch.setattr(sys, "stdin", typed)
    for use in (open_model, open_tokenizer):
        with pytest.raises(ModelError, match="contains custom code"):
            use(str(folder))
    assert not (tmp_path / "ran").exists()
    assert typed.tell() == 0
    assert "[y/N]" not in capsys.readouterr().out


def test_links_to_files_elsewhere_are_followed_as_the_cache_of_the_hub_has_them(tmp_path: Path) -> None:
    blobs, snapshot = save_tiny(tmp_path / "blobs"), tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert Backbone.open(str(snapshot)).fingerprint == Backbone.open(str(blobs)).fingerprint
    assert open_tokenizer(str(snapshot)).get_vocab()


def test_an_adapter_opens_over_a_folder_or_a_model_that_was_opened(folder: Path) -> None:
    whole = Backbone.open(str(folder)).fingerprint
    adapted()(folder)
    assert Backbone.open(str(folder)).fingerprint != whole
    edit(folder / "adapter_config.json", base_model_name_or_path="hub/model")
    with pytest.raises(
        ModelError, match=r"belongs to model 'hub/model', which you have not opened yet; open that first"
    ):
        Backbone.open(str(folder))
    name_base("hub/model")
    examine(folder)


def test_shards_that_an_index_names_are_read(folder: Path) -> None:
    whole = Backbone.open(str(folder)).fingerprint
    names = list(load_file(folder / "model.safetensors"))
    indexed(dict.fromkeys(names, "shard.safetensors"))(folder)
    assert Backbone.open(str(folder)).fingerprint == whole


def test_names_that_name_nothing_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("", str(tmp_path / "pipe"), str(tmp_path / "none"), "~no-such-user/x", "a\0b", "x" * 5000):
        with pytest.raises(ModelError):
            open_model(locate(name))


def test_two_gguf_files_that_differ_at_their_end_are_two_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was unpacked from the one must not be read for the other."""
    monkeypatch.setenv("BYHEART_CACHE", str(tmp_path / "cache"))
    models = tmp_path / "cache" / "models"
    file = tmp_path / "tiny.gguf"
    for end in (b"a", b"b"):
        file.write_bytes(b"GGUF" + bytes(1 << 21) + end)
        with pytest.raises(ModelError, match="could not be read as a GGUF model"):
            open_model(str(file))
    assert len({path.name for path in models.glob("*.lock")}) == 2


def test_a_model_of_some_other_precision_is_the_same(folder: Path) -> None:
    wide, narrow = (Backbone.open(str(folder), dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert wide.is_called(narrow.fingerprint)
    assert wide.fingerprint != narrow.fingerprint
    assert wide.dtype == torch.float32


def test_a_model_whose_class_chooses_its_attention_says_what_to_install() -> None:
    # As GPT-J of transformers 5.16 does.
    with pytest.raises(UnsupportedModelError, match="pip install --upgrade transformers"), taking_attention("byheart"):
        {"eager": 1}["byheart"]
    with pytest.raises(KeyError, match="another"), taking_attention("byheart"):
        {"eager": 1}["another"]
