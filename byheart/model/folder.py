"""A model's folder, looked at before anything in it is opened: its files are files, lie inside it, and fit one another.

Links are followed: the hub's cache holds nothing else. It does not know what makes a good model; transformers does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from byheart.files import read_json, require_regular

# No format of weights holds a value in less than a bit.
_VALUES_PER_BYTE = 8
_WIDTH, _LAYERS = ("hidden_size", "n_embd", "d_model"), ("num_hidden_layers", "n_layer", "num_layers")
_LENGTHS = ("vocab_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")


def examine(folder: Path) -> None:
    """Raise OSError or ValueError for a folder that is not safe to open, before much time or memory is spent."""
    for path in (*folder.iterdir(), *folder.glob("additional_chat_templates/*")):
        if path.exists() and not path.is_dir():
            require_regular(path)
    for index in folder.glob("*.index.json"):
        _require_inside(index, _read(index).get("weight_map"))
    if (folder / "config.json").exists():
        config = _read(folder / "config.json")
        text = config.get("text_config")
        _require_filled(folder, text if isinstance(text, dict) else config)


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder that hold weights, by name."""
    return sorted(path for end in ("safetensors", "bin") for path in folder.glob(f"*.{end}"))


def _read(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except ValueError as error:
        raise ValueError(f"'{path}' cannot be read: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"'{path}' holds no JSON object.")
    return value


def _require_inside(index: Path, shards: Any) -> None:
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ValueError(f"'{index}' has no 'weight_map' from tensors to files.")
    for shard in sorted(set(shards.values())):
        if PurePath(shard).is_absolute() or ".." in PurePath(shard).parts:
            raise ValueError(f"'{index}' names '{shard}', which is outside its folder.")
        require_regular(index.parent / shard)


def _require_filled(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise ValueError where the config describes more than the weights can hold, however they are packed."""
    held = _VALUES_PER_BYTE * sum(path.stat().st_size for path in weight_files(folder))
    width, layers = _largest(config, _WIDTH), _largest(config, _LAYERS)
    heads = _largest(config, ("num_attention_heads", "n_head")) * _largest(config, ("head_dim",))
    described = width * max(_largest(config, _LENGTHS), layers * (heads or width))
    if held and described > held:
        raise ValueError(
            f"'{folder / 'config.json'}' describes a model of at least {described:,} values, but the weights beside it "
            f"have {held // _VALUES_PER_BYTE:,} bytes."
        )


def _largest(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """The largest whole number among settings; 0 where there is none."""
    return max((value for name in names if type(value := config.get(name)) is int), default=0)
