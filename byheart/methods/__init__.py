"""The table of methods: name -> class. A new method is one file beside this one and one line here.

Other packages add theirs by an entry point in the group ``byheart.methods``.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from byheart.errors import UnknownNameError, UsageError
from byheart.model.backbone import Backbone
from byheart.protocol.method import Method

_CLASSES = {
    "latent-pool": "LatentPool",
    "compressed-kv": "CompressedKV",
    "last-ffn": "LastFFN",
    "ffn-lora": "FFNLoRA",
    "ffn-edit": "FFNEdit",
    "adapter": "Adapter",
    "cartridge": "Cartridge",
    "nothing": "Nothing",
    "full": "Full",
    "window": "Window",
    "every-kth": "EveryKth",
    "mean-pooled": "MeanPooled",
    "key-norm": "KeyNorm",
    "attention-score": "AttentionScore",
    "retrieval": "Retrieval",
}
# The file of a method is named as the method is.
BUILT_IN: dict[str, type[Method]] = {
    name: getattr(import_module(f"{__name__}.{name.replace('-', '_')}"), kind) for name, kind in _CLASSES.items()
}
_GROUP, _OLD_GROUP = "byheart.methods", "byheart.memories"
_NOUNS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


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


def defaults(kind: type[Method]) -> dict[str, Any]:
    """The options of a method and their defaults."""
    return {p.name: p.default for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY}


def build(name: str, backbone: Backbone, **options: Any) -> Method:
    """A method by name with its options. Raises UnknownNameError or UsageError."""
    kind = find(name)
    known = defaults(kind)
    for option, value in options.items():
        if option not in known:
            raise UnknownNameError(f"option of {name}", option, known)
        if not _fits_type(value, known[option]):
            raise UsageError(
                f"{option} of {name} must be {_NOUNS[type(known[option])]}, such as {known[option]!r}; it is {value!r}."
            )
    try:
        return kind(backbone, **options)
    except TypeError as error:
        raise UsageError(f"method '{name}' does not take these options: {error}.") from error


def _fits_type(value: Any, default: Any) -> bool:
    """Whether a value is of its default's type; a whole number is a number, and what has no simple type may be any."""
    if type(default) not in _NOUNS:
        return True
    return type(value) is type(default) or (type(default) is float and type(value) is int)
