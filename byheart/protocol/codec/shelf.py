"""Where codecs are found: those that come with byheart, those that this user calibrated, and those of this process.

    byheart/protocol/codec/shipped/NAME.safetensors
    CACHE/codecs/MODEL.safetensors              what codes new memories
    CACHE/codecs/MODEL-CODEC.safetensors        earlier ones, for the memories that they have coded

MODEL and CODEC are fingerprints. A file's metadata says for which model it is. Codecs are made by ``byheart
calibrate``, or where none is found.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from filelock import FileLock
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
_FINGERPRINT = re.compile(r"[0-9a-f]{1,64}(\.[0-9a-f]{1,64})?")
KNOWN: dict[str, Codec] = {}
_FINGERPRINTS: dict[tuple[Path, int, int], str] = {}


def find(backbone: Backbone) -> Codec | None:
    """The codec of a model, in any precision; None where there is none."""
    name = without_remainder(backbone.fingerprint)
    codec = KNOWN.get(name)
    if codec is None:
        path = find_file(backbone)
        codec = open_codec(path, backbone) if path else None
    if codec is not None:
        codec = KNOWN[name] = codec.over(backbone)
    return codec


def find_file(backbone: Backbone) -> Path | None:
    """Where the codec of a model is kept; None where there is none."""
    name = without_remainder(backbone.fingerprint)
    return next((path for path in (_cached(name), *_shipped()) if _is_of(path, name)), None)


def find_made(backbone: Backbone, made: str) -> Codec | None:
    """The codec with which a memory was made, by the codec's fingerprint; None where it is not here."""
    present, name = find(backbone), without_remainder(backbone.fingerprint)
    if present is not None and present.fingerprint == made:
        return present
    # What a file says is no part of a path unless it is a fingerprint.
    earlier = [_cached(f"{name}-{made}")] if _FINGERPRINT.fullmatch(made) else []
    # Another process may have kept another one since this one has looked.
    for path in (*earlier, _cached(name), *_shipped()):
        if _is_of(path, name) and _fingerprint_of(path, backbone) == made:
            return open_codec(path, backbone)
    return None


def _fingerprint_of(path: Path, backbone: Backbone) -> str:
    """Of the codec in a file, which is read once; empty where it is damaged."""
    found = path.stat()
    key = path, found.st_mtime_ns, found.st_size
    if key not in _FINGERPRINTS:
        try:
            _FINGERPRINTS[key] = open_codec(path, backbone).fingerprint
        except CheckpointError:
            _FINGERPRINTS[key] = ""
    return _FINGERPRINTS[key]


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
    """Keep a codec for this process and later ones; gives its file. Raises CheckpointError.

    One that it takes the place of stays, for the memories that were made with it.
    """
    hold(codec)
    name = without_remainder(codec.backbone.fingerprint)
    path = _cached(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two processes that use a model for the first time may each have made one.
        with FileLock(f"{path}.lock"):
            earlier = _fingerprint_of(path, codec.backbone) if _is_of(path, name) else ""
            if earlier not in ("", codec.fingerprint):
                save_codec(open_codec(path, codec.backbone), _cached(f"{name}-{earlier}"))
            save_codec(codec, path)
    except OSError as error:
        raise CheckpointError(f"The codec could not be written to '{path}': {error}.") from error
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


def _shipped() -> list[Path]:
    return sorted(SHIPPED.glob(f"*{_SUFFIX}"))


def _cached(name: str) -> Path:
    return cache_folder() / "codecs" / f"{name}{_SUFFIX}"


def _is_of(path: Path, name: str) -> bool:
    """Whether a file says that it is for the model of this name; a damaged one is passed over."""
    try:
        with open_tensors(path) as file:
            return file.metadata.get(_MODEL) == name
    except (OSError, ValueError):
        return False
