"""The table of memories: name -> class. A new mechanism is one file beside this one and one line here.

Other packages add theirs by an entry point in the group ``byheart.memories``.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from byheart.backbone import Backbone
from byheart.errors import UnknownNameError, UsageError
from byheart.memories.compressed_kv import CompressedKV
from byheart.memories.ffn_lora import FFNLoRA
from byheart.memories.full import Full
from byheart.memories.last_ffn import LastFFN
from byheart.memories.latent_pool import LatentPool
from byheart.memories.nothing import Nothing
from byheart.memories.window import Window
from byheart.memory import Memory

BUILT_IN: dict[str, type[Memory]] = {
    memory.name: memory for memory in (LatentPool, CompressedKV, LastFFN, FFNLoRA, Nothing, Full, Window)
}


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


def build(name: str, backbone: Backbone, **options: Any) -> Memory:
    """A memory by name with its options. Raises UnknownNameError or UsageError."""
    kind = find(name)
    try:
        return kind(backbone, **options)
    except TypeError as error:
        raise UsageError(f"memory '{name}' does not take these options: {error}.") from error
