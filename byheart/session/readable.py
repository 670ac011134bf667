"""Which states a session can read: its own, and those of an older byheart, whose names were made otherwise."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from byheart.errors import CorruptStateError, StateMismatchError
from byheart.model.reading import Reading
from byheart.model.slices import Slices
from byheart.protocol.method import Method
from byheart.protocol.state import SAMPLED_FORMATS, Header, State
from byheart.protocol.state_file import OpenedState
from byheart.text.encoder import ChatEncoder

log = logging.getLogger(__name__)

_SAMPLED = "%s was made by an older byheart: its model was compared by samples. Save it again to have all compared."
_UNCOMPARED = (
    "%s was made by an older byheart, with parts of its method that are not the ones here: starting values of another "
    "processor, or trained ones. If they were trained, open it with them (method=FOLDER, --method FOLDER) before it is "
    "saved; saved from here, it belongs to the starting values."
)


def require_readable(header: Header, where: str, own: Header, method: Method, encoder: ChatEncoder) -> None:
    """Raise StateMismatchError unless a session whose header is ``own`` can read a state with ``header``."""
    header = replace(header, options=method.known_options(header.options))
    if header.format not in SAMPLED_FORMATS:
        if method.needs_codec and (header.method, header.backbone) == (own.method, own.backbone):
            _require_codec(header, where, own)
        return header.require(own, where)
    sampled = method.sampled_fingerprint
    # Starting values differ in their last digits from one processor to another, and so do their names.
    is_unknown = method.is_untrained and not header.learned and header.adapter != sampled
    is_unknown = is_unknown and bool(method.state_dict())
    log.warning(_UNCOMPARED if is_unknown else _SAMPLED, where)
    header.require(
        replace(
            own,
            backbone=method.backbone.sampled_fingerprint,
            tokenizer=encoder.vocabulary_fingerprint,
            adapter=header.adapter if is_unknown else sampled,
        ),
        where,
    )


def _require_codec(header: Header, where: str, own: Header) -> None:
    if header.adapter != own.adapter:
        raise StateMismatchError(
            f"{where} was made with another codec of this model ({header.adapter}) than this session has "
            f"({own.adapter}). Open it in a session of its own (open_state, or a command). Where that says the same, "
            "the codec is not here: `byheart calibrate MODEL --out FILE` writes it on the machine that has it, and "
            "`byheart calibrate MODEL --use FILE` keeps it here. Or write the text again."
        )


@torch.no_grad()
def read_own(
    method: Method, file: OpenedState, longest: int, reading: Reading | None = None
) -> Slices[tuple[State, Reading]]:
    """The state of a file on the model's device, and what the model sees of it; as ``Session.load_in_slices``.

    Raises CorruptStateError where the method could not have made it.
    """
    state = file.read()
    try:
        method.require_own(state, written=bool(file.header.written))
        state = {name: tensor.to(method.backbone.device) for name, tensor in state.items()}
        if reading is None:
            yield from method.prepare(state, longest=longest)
            reading = method.read(state)
        if reading.slots != file.header.slots:
            raise ValueError(f"it has {reading.slots} slots, and its header says {file.header.slots}")
    except CorruptStateError as error:
        raise CorruptStateError(f"'{file.path}' cannot be read: {error}") from error
    except ValueError as error:
        raise CorruptStateError(
            f"'{file.path}' holds no state of {method.name}: {error}; restore it from a copy."
        ) from error
    return state, reading
