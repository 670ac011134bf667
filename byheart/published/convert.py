"""From a released checkpoint to byheart's own format, once, so that it opens like any other method.

What is written: `method.json` and `method.safetensors`, as ``save_pretrained`` does; and `model/`, where the
checkpoint holds or changes the language model itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byheart.errors import UnknownNameError, UsageError
from byheart.model.loading import locate, save_model
from byheart.protocol.checkpoint import save_pretrained
from byheart.protocol.method import Method
from byheart.published.ccm import ccm
from byheart.published.memoryllm import memoryllm
from byheart.published.mplus import mplus
from byheart.published.peft import peft

KINDS: dict[str, Callable[..., Method]] = {"memoryllm": memoryllm, "mplus": mplus, "ccm": ccm, "peft": peft}


@dataclass(frozen=True)
class Converted:
    """What came in: the method with its options, learned tensors and bytes, where it and its model are now."""

    kind: str
    method: str
    options: dict[str, Any]
    tensors: int
    bytes: int
    path: str
    model: str


def convert(kind: str, folder: str | Path, out: str | Path, **options: Any) -> Converted:
    """Read a checkpoint of ``kind`` and write it into ``out``, an empty or new folder.

    Args:
        options: of the reader of that kind, ``memoryllm``, ``mplus``, ``ccm`` or ``peft``.

    Raises UnknownNameError, UsageError, CheckpointError or ModelError.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of checkpoint", kind, KINDS)
    target = Path(out).expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"'{out}' exists already; give a new or an empty folder.")
    try:
        method = KINDS[kind](folder, **options)
    except TypeError as error:
        raise UsageError(f"{kind} cannot be read with these options: {error}.") from error
    model = locate(str(options.get("base") or method.backbone.source))
    if "base" not in options or "base_lora" in options:
        save_model(method.backbone.model, target / "model", tokenizer=model)
        model = str(target / "model")
    save_pretrained(method, target)
    tensors = method.state_dict().values()
    return Converted(
        kind=kind,
        method=method.name,
        options=method.options(),
        tensors=len(tensors),
        bytes=sum(tensor.nbytes for tensor in tensors),
        path=str(target),
        model=model,
    )
