"""A model's folder, looked at before anything in it is opened: its files are files, lie inside it, and fit one another.

Links are followed within it, and within the hub's cache, which holds nothing else. It does not know what makes a good
model; transformers does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from byheart.files import keep, read_json, recall, require_regular, root

_ENDS = (".safetensors", ".bin")
_OPENED = "models-named"
# PEFT takes what settings of such names hold for regular expressions, which may run for ever; paths of modules do not.
_PATTERNS = ("_modules", "_to_save", "_pattern", "_parameters")
_PATH = re.compile(r"\^?[\w.-]*")
# No format of weights holds a value in less than a bit.
_VALUES_PER_BYTE = 8
_WIDTH, _LAYERS = ("hidden_size", "n_embd", "d_model"), ("num_hidden_layers", "n_layer", "num_layers")
_LENGTHS = ("vocab_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")


def examine(folder: Path) -> None:
    """Raise OSError or ValueError for a folder that is not safe to open, before much time or memory is spent."""
    for path in (*folder.iterdir(), *folder.glob("additional_chat_templates/*")):
        if path.exists() and not path.is_dir():
            require_regular(path, inside=root(folder))
    for index in folder.glob("*.index.json"):
        for shard in sorted(_shards(index)):
            _require_beside(index, shard)
    has_config = (folder / "config.json").exists()
    if has_config:
        config = _read(folder / "config.json")
        if config.get("transformers_weights") is not None:
            _require_beside(folder / "config.json", config["transformers_weights"])
        text = config.get("text_config")
        _require_filled(folder, text if isinstance(text, dict) else config)
    if (folder / "adapter_config.json").exists():
        _require_adapter(folder / "adapter_config.json", has_base=has_config)


def name_base(name: str) -> None:
    """Keep that the user has opened a model by this name: adapters may name it as the one that they belong to."""
    keep(_OPENED, name, name)


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder that hold weights, by name."""
    return sorted(path for end in _ENDS for path in folder.glob(f"*{end}"))


def _read(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except ValueError as error:
        raise ValueError(f"'{path}' cannot be read: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"'{path}' holds no JSON object.")
    return value


def _shards(index: Path) -> set[str]:
    shards = _read(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ValueError(f"'{index}' has no 'weight_map' from tensors to files.")
    return set(shards.values())


def _require_beside(file: Path, shard: object) -> None:
    """Raise OSError or ValueError unless ``file`` names weights beside it: nowhere else are they seen to change."""
    if not isinstance(shard, str) or PurePath(shard).name != shard or not shard.endswith((*_ENDS, ".index.json")):
        raise ValueError(f"'{file}' names {str(shard)[:200]!a}, which is no file of weights beside it.")
    require_regular(file.parent / shard, inside=root(file.parent))


def _require_adapter(file: Path, *, has_base: bool) -> None:
    """Raise OSError or ValueError for an adapter that is not PEFT's usual one, or whose base the user did not choose.

    Args:
        has_base: the model stands beside it, and the base that it names is not opened.
    """
    settings = _read(file)
    # PEFT would import the module that it names.
    if settings.get("megatron_config") is not None:
        raise ValueError(f"'{file}' asks for Megatron, which byheart does not open.")
    for name in (name for name in settings if name.endswith(_PATTERNS)):
        if odd := [text for text in _strings(settings[name]) if not _PATH.fullmatch(text)]:
            raise ValueError(f"'{file}' has {name[:200]!a} {odd[0][:200]!a}; list the modules by their names.")
    base = settings.get("base_model_name_or_path")
    if has_base:
        return
    if isinstance(base, str) and (Path(base) / "config.json").is_file():
        examine(Path(base))
    elif not isinstance(base, str) or recall(_OPENED, base) != base:
        raise ValueError(
            f"'{file}' belongs to model {str(base)[:200]!a}, which you have not opened yet; open that first, or name "
            "its folder there."
        )


def _strings(value: Any) -> Iterator[str]:
    """The text in a setting: itself, or what its list or the names of its object hold."""
    for item in value if isinstance(value, list | dict) else [value]:
        if isinstance(item, str):
            yield item


def _require_filled(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise ValueError where the config describes more than the weights can hold, however they are packed."""
    files = weight_files(folder)
    held = _VALUES_PER_BYTE * sum(path.stat().st_size for path in files)
    width, layers = _largest(config, _WIDTH), _largest(config, _LAYERS)
    heads = _largest(config, ("num_attention_heads", "n_head")) * _largest(config, ("head_dim",))
    described = width * max(_largest(config, _LENGTHS), layers * (heads or width))
    if files and described > held:
        raise ValueError(
            f"'{folder / 'config.json'}' describes a model of at least {described:,} values, but the weights beside it "
            f"have {held // _VALUES_PER_BYTE:,} bytes."
        )


def _largest(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """The largest whole number among settings; 0 where there is none."""
    return max((value for name in names if type(value := config.get(name)) is int), default=0)
