"""Which states a session can read: its own, and those of an older byheart, whose names were made otherwise."""

from __future__ import annotations

import logging
from dataclasses import replace

from byheart.protocol.method import Method
from byheart.protocol.state import SAMPLED_FORMATS, Header
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
