"""The moments of a model's keys, from texts: those that byheart brings, or the user's own.

What editors of knowledge (rome, memit) need of a model besides its weights, see ``protocol.key_moments``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from byheart.data.records import read
from byheart.errors import InputError, UsageError
from byheart.model.backbone import Backbone
from byheart.model.loading import locate, open_tokenizer
from byheart.protocol import key_moments
from byheart.session.calibration import TEXTS, Progress
from byheart.text.encoder import ChatEncoder

_LONGEST = 512
_ANNOUNCEMENT = (
    "What %d layers of model '%s' are given was not measured yet, so it is measured first: the model reads byheart's "
    "calibration texts, once. byheart calibrate MODEL --layers N,N --data FILE measures it on more text."
)

log = logging.getLogger(__name__)


def measure_layers(
    model: str,
    layers: Sequence[int],
    *,
    data: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress | None = None,
) -> Path:
    """Measure what the feed-forward values of some layers are given, and keep it; gives its folder.

    Args:
        data: a file, a folder or a hub data set of texts; those that byheart brings without it.

    Raises ModelError, UsageError, InputError or CheckpointError.
    """
    backbone = Backbone.open(locate(model), dtype=dtype, device=device)
    depth = len(backbone.layers)
    if not layers or not all(0 <= layer < depth for layer in layers):
        raise UsageError(f"layers must lie between 0 and {depth - 1}; they are {list(layers)}.")
    encoder = ChatEncoder(open_tokenizer(backbone.source), model_stops=backbone.stop_tokens)
    paths = [
        path
        for layer in sorted(set(layers))
        for path, role in backbone.feed_forward_roles(layer).items()
        if role == "values"
    ]
    return _measure(backbone, encoder, paths, data or str(TEXTS), progress)


def ensure_moments(
    backbone: Backbone, encoder: ChatEncoder, paths: Sequence[str], progress: Progress | None = None
) -> None:
    """Measure and keep what was not measured of these linear layers, which is logged before."""
    missing = [path for path in paths if key_moments.find(backbone, path) is None]
    if missing:
        log.warning(_ANNOUNCEMENT, len(missing), backbone.source)
        _measure(backbone, encoder, missing, str(TEXTS), progress)


def _measure(
    backbone: Backbone, encoder: ChatEncoder, paths: Sequence[str], source: str, progress: Progress | None
) -> Path:
    texts = [piece for record in read(source).records for piece in _pieces(encoder, record.text, backbone.positions)]
    if not texts:
        raise InputError(f"'{source}' holds no text to read.")
    moments = key_moments.measure(backbone, paths, texts, progress=progress or (lambda done, total: None))
    return key_moments.keep(backbone, moments)


def _pieces(encoder: ChatEncoder, text: str, positions: int) -> Sequence[Tensor]:
    pieces = torch.split(encoder.encode("", text, first=True), min(_LONGEST, positions))
    return [piece for piece in pieces if len(piece)]
