"""Long texts become tokens in threads of their own, so that an engine's answers go on meanwhile."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

from byheart.model.slices import Slices
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

        def guarded() -> Made:
            with self._turn:
                return work(twin)

        thread = ThreadPoolExecutor(1, thread_name_prefix="byheart-tokens")
        doing = thread.submit(guarded)
        thread.shutdown(wait=False)
        while wait([doing], 0).not_done:
            yield None
        return doing.result()
