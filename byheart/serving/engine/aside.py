"""Long texts become tokens in threads of their own, so that an engine's answers go on meanwhile."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from byheart.model.slices import Slices, run_aside
from byheart.text.encoder import ChatEncoder

Made = TypeVar("Made")


class Aside:
    """One text after another; a tokenizer serves one thread at a time, so this has a copy."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self._turn = threading.Lock()

    def run(self, encoder: ChatEncoder, work: Callable[[ChatEncoder], Made]) -> Slices[Made]:
        """What ``work`` makes with an encoder as this one is. Raises what it raises."""
        twin = copy.copy(encoder)
        twin.tokenizer = self._tokenizer
        is_left = threading.Event()

        def guarded() -> Made:
            with self._turn:
                # Those who have hung up meanwhile must not keep the others waiting.
                if is_left.is_set():
                    raise CancelledError
                return work(twin)

        try:
            return (yield from run_aside(guarded, look_every=0))
        finally:
            is_left.set()
