"""Where codecs are found: those that come with byheart, those that this user calibrated, and those of this process.

    byheart/protocol/codec/shipped/NAME.safetensors
    CACHE/codecs/FINGERPRINT.safetensors

A file's metadata says for which model it is. Codecs are made by ``byheart calibrate``, or where none is found.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save as serialize

from byheart.errors import CheckpointError, UsageError
from byheart.files import cache_folder, replacing, sweep
from byheart.model.backbone import Backbone
from byheart.model.fingerprint import without_remainder
from byheart.protocol.codec.codec import Codec
from byheart.protocol.tensor_file import open_tensors

SHIPPED = Path(__file__).parent / "shipped"
_MODEL = "backbone"
_SUFFIX = ".safetensors"
KNOWN: dict[str, Codec] = {}


def find(backbone: Backbone) -> Codec | None:
    """The codec of a model, in any precision; None where there is none."""
    name = without_remainder(backbone.fingerprint)
    codec = KNOWN.get(name)
    if codec is None:
        path = next(
            (path for path in (_cached(name), *sorted(SHIPPED.glob(f"*{_SUFFIX}"))) if _is_of(path, name)), None
        )
        codec = open_codec(path, backbone) if path else None
    if codec is not None:
        codec = KNOWN[name] = codec.over(backbone)
    return codec


def require(backbone: Backbone) -> Codec:
    """The codec of a model. Raises UsageError where there is none."""
    codec = find(backbone)
    if codec is None:
        name = backbone.source or "MODEL"
        raise UsageError(
            f"There is no codec for this model yet; make one, once: byheart calibrate {name}. A memory from elsewhere "
            f"needs the codec that it was made with: byheart calibrate {name} --use FILE."
        )
    return codec


def find_obstacle() -> str:
    """Why a codec that is made now could not be kept for later processes; empty where it could."""
    folder = _cached("").parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"codecs cannot be kept in '{folder}' ({error.strerror}; $BYHEART_CACHE names another folder)"


def hold(codec: Codec) -> None:
    """Keep a codec for this process."""
    KNOWN[without_remainder(codec.backbone.fingerprint)] = codec


def keep(codec: Codec) -> Path:
    """Keep a codec for this process and later ones; gives its file. Raises CheckpointError."""
    hold(codec)
    path = _cached(without_remainder(codec.backbone.fingerprint))
    save_codec(codec, path)
    return path


def save_codec(codec: Codec, path: Path) -> None:
    """Write a codec's file, atomically. Raises CheckpointError."""
    name = without_remainder(codec.backbone.fingerprint)
    try:
        with replacing(path) as scratch:
            scratch.write_bytes(serialize(codec.tensors(), metadata={_MODEL: name}))
        sweep(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"The codec could not be written to '{path}': {error}.") from error


def open_codec(path: Path, backbone: Backbone) -> Codec:
    """The codec in a file. Raises CheckpointError where it is damaged, or of another model."""
    try:
        with open_tensors(path) as file:
            if file.metadata.get(_MODEL) != without_remainder(backbone.fingerprint):
                raise ValueError("it was made for another model")
            return Codec.of(backbone, file.read())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"'{path}' holds no codec of this model: {error}; byheart calibrate makes one."
        ) from error


def _cached(name: str) -> Path:
    return cache_folder() / "codecs" / f"{name}{_SUFFIX}"


def _is_of(path: Path, name: str) -> bool:
    """Whether a file says that it is for the model of this name; a damaged one is passed over."""
    try:
        with open_tensors(path) as file:
            return file.metadata.get(_MODEL) == name
    except (OSError, ValueError):
        return False
