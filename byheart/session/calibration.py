"""A codec for a model, from texts: those that byheart brings, or the user's own.

A text is what would be written into a memory; what follows it in its source is predicted from it, or the answer to its
question where it has one.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from byheart import data
from byheart.data.records import Record, read
from byheart.errors import ModelError, UsageError
from byheart.model.backbone import Backbone
from byheart.model.loading import locate, open_tokenizer
from byheart.protocol.codec import calibration, shelf
from byheart.protocol.codec.calibration import Example, calibrate
from byheart.protocol.codec.codec import Codec
from byheart.text.encoder import ChatEncoder

TEXTS = Path(data.__file__).parent / "calibration"
"""The texts that come with byheart."""
_TEXT, _FOLLOWING, _SHORTEST = 320, 64, 32
Progress = Callable[[int, int], None]
_ANNOUNCEMENT = (
    "There is no codec for model '%s' yet, so the model is calibrated first: it reads a few hundred texts, once. On a "
    "CPU that takes minutes for a small model, and longer for a large one. Method full needs no codec "
    '(method="full", --method full).'
)

log = logging.getLogger(__name__)


def calibrate_model(
    model: str,
    *,
    data: str | None = None,
    out: Path | None = None,
    use: Path | None = None,
    anew: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress | None = None,
) -> tuple[Codec, Path]:
    """A codec for a model by name, and the file in which it is kept. Raises ModelError, InputError, CheckpointError.

    Args:
        out: a file for the codec, instead of the user's cache; for another machine, for instance.
        data, anew: of a new codec, also where there is one. Memories that the earlier one has coded stay readable.
        use: the file of a codec that was made elsewhere, to be kept here; nothing is calibrated.
    """
    backbone = Backbone.open(locate(model), dtype=dtype, device=device)
    encoder = ChatEncoder(open_tokenizer(backbone.source), model_stops=backbone.stop_tokens)
    if use is not None:
        codec = shelf.open_codec(use, backbone)
    else:
        known = None if anew or data else shelf.find(backbone)
        if known and out is None and (kept := shelf.find_file(backbone)):
            return known, kept
        codec = known or make_codec(backbone, encoder, source=data or "", progress=progress)
    if out is None:
        return codec, shelf.keep(codec)
    shelf.save_codec(codec, out)
    return codec, out


def ensure_codec(backbone: Backbone, encoder: ChatEncoder, progress: Progress | None = None) -> Codec:
    """The codec of a model, made and kept where there is none yet, which is logged before.

    Raises UsageError where none can be made or kept, before anything is read.
    """
    found = shelf.find(backbone)
    if found is None:
        obstacle = find_obstacle(backbone)
        if obstacle:
            raise UsageError(
                f"No codec can be made for this model: {obstacle}; use a method that needs none, such as full."
            )
        log.warning(_ANNOUNCEMENT, backbone.source)
        found = make_codec(backbone, encoder, progress=progress)
        shelf.keep(found)
    return found


def find_obstacle(backbone: Backbone) -> str:
    """Why a model can get no codec; empty where it has one, or can get one. Nothing is calibrated to find out."""
    if shelf.find(backbone) is not None:
        return ""
    return calibration.find_obstacle(backbone) or shelf.find_obstacle()


def make_codec(
    backbone: Backbone, encoder: ChatEncoder, *, source: str = "", progress: Progress | None = None
) -> Codec:
    """A codec for a model. Raises InputError for too little text, ModelError for a model that computes no numbers.

    Args:
        source: a file, a folder or a hub data set of texts; those that byheart brings without it.
        progress: called with the texts done and the texts in all.
    """
    records = read(source or str(TEXTS)).records
    examples = [example for record in records for example in _examples(record, encoder)]
    random.Random(0).shuffle(examples)
    try:
        return calibrate(backbone, examples, progress=progress)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"Model '{backbone.source}' could not be calibrated: {reason}. Take a method that needs no codec: "
            'method="full" (--method full).'
        ) from error


def _examples(record: Record, encoder: ChatEncoder) -> Iterator[Example]:
    around = encoder.template_tokens()
    opening, receipt = (torch.tensor(around[name], dtype=torch.long) for name in ("opening", "receipt"))
    text = encoder.encode("", record.text, first=False)
    if record.task == "qa" and record.answer:
        answer = encoder.continuation(record.answer)[:_FOLLOWING]
        asked = torch.cat([receipt, encoder.question(record.question, continues=True)])
        # The last token of the answer predicts nothing that is wanted.
        yield Example(opening, text[:_TEXT], torch.cat([asked, answer[:-1]]), len(asked) - 1)
        return
    for piece in _pieces(text):
        yield Example(opening, piece[:-_FOLLOWING], piece[-_FOLLOWING:], 0)


def _pieces(text: Tensor) -> Iterator[Tensor]:
    """Parts of a text, each with tokens to be predicted at its end."""
    for start in range(0, len(text), _TEXT + _FOLLOWING):
        piece = text[start : start + _TEXT + _FOLLOWING]
        if len(piece) >= _FOLLOWING + _SHORTEST:
            yield piece
