"""The table of memories: name -> class. A new mechanism is one file beside this one and one line here.

Other packages add theirs by an entry point in the group ``byheart.memories``.
"""

from __future__ import annotations

import inspect
from importlib.metadata import entry_points
from typing import Any

from byheart.backbone import Backbone
from byheart.errors import UnknownNameError, UsageError
from byheart.memories.adapter import Adapter
from byheart.memories.attention_score import AttentionScore
from byheart.memories.cartridge import Cartridge
from byheart.memories.compressed_kv import CompressedKV
from byheart.memories.every_kth import EveryKth
from byheart.memories.ffn_edit import FFNEdit
from byheart.memories.ffn_lora import FFNLoRA
from byheart.memories.full import Full
from byheart.memories.key_norm import KeyNorm
from byheart.memories.last_ffn import LastFFN
from byheart.memories.latent_pool import LatentPool
from byheart.memories.mean_pooled import MeanPooled
from byheart.memories.nothing import Nothing
from byheart.memories.retrieval import Retrieval
from byheart.memories.window import Window
from byheart.memory import Memory

BUILT_IN: dict[str, type[Memory]] = {
    memory.name: memory
    for memory in (
        LatentPool,
        CompressedKV,
        LastFFN,
        FFNLoRA,
        FFNEdit,
        Adapter,
        Cartridge,
        Nothing,
        Full,
        Window,
        EveryKth,
        MeanPooled,
        KeyNorm,
        AttentionScore,
        Retrieval,
    )
}
_NOUNS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


def find(name: str) -> type[Memory]:
    """The class of a memory. Raises UnknownNameError with the nearest name and the list."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    others = {point.name: point for point in entry_points(group="byheart.memories")}
    if name not in others:
        raise UnknownNameError("memory", name, [*BUILT_IN, *others])
    found = others[name].load()
    if not (isinstance(found, type) and issubclass(found, Memory)):
        raise UsageError(f"The entry point '{name}' gives {found!r}, which is not a Memory.")
    return found


def defaults(kind: type[Memory]) -> dict[str, Any]:
    """The options of a memory and their defaults."""
    return {p.name: p.default for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY}


def build(name: str, backbone: Backbone, **options: Any) -> Memory:
    """A memory by name with its options. Raises UnknownNameError or UsageError."""
    kind = find(name)
    known = defaults(kind)
    for option, value in options.items():
        if option not in known:
            raise UnknownNameError(f"option of {name}", option, known)
        if not _alike(value, known[option]):
            raise UsageError(
                f"{option} of {name} must be {_NOUNS[type(known[option])]}, such as {known[option]!r}; it is {value!r}."
            )
    try:
        return kind(backbone, **options)
    except TypeError as error:
        raise UsageError(f"memory '{name}' does not take these options: {error}.") from error


def _alike(value: Any, default: Any) -> bool:
    """Whether a value is of its default's type; a whole number is a number, and what has no simple type may be any."""
    if type(default) not in _NOUNS:
        return True
    return type(value) is type(default) or (type(default) is float and type(value) is int)
