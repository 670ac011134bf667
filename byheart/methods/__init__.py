"""The table of methods: name -> class. A new method is one file beside this one and one line here.

Other packages add theirs by an entry point in the group ``byheart.methods``.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any, get_type_hints

from byheart.errors import UnknownNameError, UsageError
from byheart.methods.adapter import Adapter
from byheart.methods.attention_score import AttentionScore
from byheart.methods.cartridge import Cartridge
from byheart.methods.compact import Compact
from byheart.methods.compressed_kv import CompressedKV
from byheart.methods.every_kth import EveryKth
from byheart.methods.ffn_edit import FFNEdit
from byheart.methods.ffn_lora import FFNLoRA
from byheart.methods.full import Full
from byheart.methods.ike import IKE
from byheart.methods.key_norm import KeyNorm
from byheart.methods.last_ffn import LastFFN
from byheart.methods.latent_pool import LatentPool
from byheart.methods.long_term_pool import LongTermPool
from byheart.methods.mean_pooled import MeanPooled
from byheart.methods.memit import MEMIT
from byheart.methods.nothing import Nothing
from byheart.methods.repeat_score import RepeatScore
from byheart.methods.retrieval import Retrieval
from byheart.methods.rome import ROME
from byheart.methods.window import Window
from byheart.model.backbone import Backbone
from byheart.protocol.method import Method, defaults as defaults
from byheart.protocol.schema import fits

BUILT_IN: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Compact,
        LatentPool,
        LongTermPool,
        CompressedKV,
        LastFFN,
        FFNLoRA,
        FFNEdit,
        ROME,
        MEMIT,
        IKE,
        Adapter,
        Cartridge,
        Nothing,
        Full,
        Window,
        EveryKth,
        MeanPooled,
        KeyNorm,
        AttentionScore,
        RepeatScore,
        Retrieval,
    )
}
_GROUP, _OLD_GROUP = "byheart.methods", "byheart.memories"
_LARGEST = 1 << 53
_NOUNS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


def names() -> list[str]:
    """All methods: byheart's own, then those of other packages."""
    return list(dict.fromkeys([*BUILT_IN, *(point.name for point in entry_points(group=_GROUP))]))


def find(name: str) -> type[Method]:
    """The class of a method. Raises UnknownNameError with the nearest name and the list, or UsageError."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    plug_ins = {point.name: point for point in entry_points(group=_GROUP)}
    if name in plug_ins:
        found = plug_ins[name].load()
        if not (isinstance(found, type) and issubclass(found, Method)):
            raise UsageError(f"The entry point '{name}' gives {found!r}, which is not a Method.")
        return found
    if any(point.name == name for point in entry_points(group=_OLD_GROUP)):
        raise UsageError(
            f"The package of method '{name}' registers it in the entry-point group '{_OLD_GROUP}', as for byheart 0.1; "
            f"rename the group to '{_GROUP}' in that package's pyproject.toml and install it again."
        )
    raise UnknownNameError("method", name, [*BUILT_IN, *plug_ins])


def build(name: str, backbone: Backbone, /, **options: Any) -> Method:
    """A method by name with its options. Raises UnknownNameError or UsageError."""
    kind = find(name)
    known, annotations = defaults(kind), get_type_hints(kind.__init__)
    for option, value in options.items():
        if option not in known:
            raise UnknownNameError(f"option of {name}", option, known)
        if not _fits(value, annotations.get(option, Any)):
            default = known[option]
            noun = _NOUNS.get(annotations.get(option), "a list of such values as its default has")
            raise UsageError(f"{option} of {name} must be {noun}, such as {default!r}; it is {repr(value)[:100]}.")
    try:
        method = kind(backbone, **options)
    except (TypeError, ValueError, RuntimeError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"method '{name}' does not take these options: {reason}.") from error
    if (method.capacity or 0) > _LARGEST:
        raise UsageError(f"method '{name}' would hold up to {method.capacity:,} slots; take a smaller memory.")
    method.mark_untrained()
    return method


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value is of an option's type, and each number in it one that a method can use."""
    items = value if isinstance(value, list | tuple) else [value]
    return fits(annotation, value) and all(abs(item) <= _LARGEST for item in items if isinstance(item, int | float))
