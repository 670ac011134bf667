"""A model that an engine owns: the sessions over it, and the answers that it makes together.

All of it belongs to the engine's thread. Nothing here opens another model, whatever a state or a job names.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from byheart.errors import UnknownNameError
from byheart.generation.generate import Generation, Request, RunningSequence
from byheart.methods import defaults, find
from byheart.model.backbone import Backbone
from byheart.model.reading import Reading
from byheart.model.slices import Slices
from byheart.protocol.state import Header
from byheart.serving.engine.answer import Answer
from byheart.serving.engine.aside import Aside
from byheart.session.default_method import default_method
from byheart.session.opening import blank_for, load
from byheart.session.session import Session
from byheart.text.encoder import ChatEncoder

_MOST_BLANKS = 16


class HostedModel:
    """One model with its tokenizer.

    Args:
        encoder: the model's own without it.
    """

    def __init__(self, backbone: Backbone, encoder: ChatEncoder | None = None) -> None:
        self.backbone = backbone
        # What the default method needs is made now, not when somebody waits for it.
        self.encoder = load(backbone, encoder=encoder).encoder
        self.fingerprint = backbone.fingerprint
        self.ready: list[tuple[Request, Answer]] = []
        self.answers: dict[int, tuple[RunningSequence, Answer]] = {}
        self.generation = Generation(backbone)
        self._blanks: OrderedDict[str, Session] = OrderedDict()

    @cached_property
    def questions_aside(self) -> Aside:
        """For questions; a long text that is written does not keep them waiting."""
        return Aside(self.encoder.tokenizer)

    @cached_property
    def texts_aside(self) -> Aside:
        """For texts that are written."""
        return Aside(self.encoder.tokenizer)

    def start(self, method: str | None, options: Mapping[str, Any]) -> Session:
        """A session with an empty memory. Raises UnknownNameError and UsageError."""
        name = default_method(self.backbone) if method is None else method
        # A folder would be one on this machine, and other names are options of opening a model.
        known = defaults(find(name))
        for option in options:
            if option not in known:
                raise UnknownNameError(f"option of {name}", option, known)
        return load(self.backbone, method=name, encoder=self.encoder, calibrate=False, **options)

    def open(self, path: Path, header: Header, *, longest: int, reading: Reading | None = None) -> Slices[Session]:
        """A session that holds a saved memory, and its reading. Raises StateError.

        A method is built once for all memories that were made alike; what it keeps aside is each memory's own.

        Args:
            header: the file's.
            longest: tokens that are read without a pause.
            reading: what is read of the memory, where it was kept; on any device.
        """
        key = json.dumps([header.method, header.options, header.learned, header.adapter], sort_keys=True)
        if key not in self._blanks:
            self._blanks[key] = blank_for(path, model=self.backbone, encoder=self.encoder)
            if len(self._blanks) > _MOST_BLANKS:
                self._blanks.popitem(last=False)
        self._blanks.move_to_end(key)
        session = self._blanks[key].fork()
        session.method = self._blanks[key].method.apart()
        known = None if reading is None else reading.to(self.backbone.device)
        yield from session.load_in_slices(path, longest=longest, reading=known)
        return session

    @property
    def is_idle(self) -> bool:
        """Whether no answer is made or about to be."""
        return not (self.ready or self.answers)
