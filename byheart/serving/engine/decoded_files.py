"""Decoded memories as files, for those that had to make room: read again, they need the model no more.

A small state takes many times its bytes to be read, and the model's time to get there. The files are this process's
own, in a folder that goes with it.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

from byheart.errors import StateError
from byheart.model.reading import KV, Reading
from byheart.protocol import state_file
from byheart.protocol.kv_slots import kv_to_state
from byheart.protocol.state import Header, State

log = logging.getLogger(__name__)

# A state with more than this share of the bytes that are read of it is opened about as quickly itself.
_SHARE = 0.5
# The disk is the memories' first of all.
_LEFT_FREE = 1 << 30


class DecodedFiles:
    """What is read of memories, by their keys; the least recently used go first. Its methods are for any thread.

    Args:
        folder: where the files are, of this process alone.
        most_bytes: what they may take together; 0 keeps none.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most_bytes = folder, most_bytes
        self._lock = threading.Lock()
        self._files: OrderedDict[str, tuple[Path, int]] = OrderedDict()
        self._coming: dict[str, Path] = {}
        self._numbers = count()

    @property
    def keys(self) -> list[str]:
        """Those of what is kept, or about to be."""
        with self._lock:
            return [*self._files, *self._coming]

    @property
    def bytes(self) -> int:
        """What all of them take."""
        with self._lock:
            return self._bytes()

    def keep(self, key: str, reading: Reading, header: Header, state_bytes: int) -> None:
        """Begin to write what is read of a memory, where that is worth it. What goes wrong costs time later, no more.

        Args:
            header, state_bytes: the memory's, and its size.
        """
        is_worth = state_bytes < _SHARE * reading.bytes and reading.bytes <= self._most_bytes
        if reading.prefix is None or reading.deltas or not is_worth or not self._has_room(reading.bytes):
            return
        with self._lock:
            if key in self._files or key in self._coming:
                return
            path = self._coming[key] = self._folder / f"decoded-{next(self._numbers)}.safetensors"
        # A thread that ends, and PyTorch's threads of it; see ``service.open_engine``.
        aside = ThreadPoolExecutor(1, thread_name_prefix="byheart-decoded")
        aside.submit(self._write, key, path, reading.prefix, header)
        aside.shutdown(wait=False)

    def read(self, key: str) -> Reading | None:
        """What was kept, on the CPU; None where there is nothing, or nothing whole."""
        with self._lock:
            if key not in self._files:
                return None
            self._files.move_to_end(key)
            path, _ = self._files[key]
        try:
            state, _ = state_file.load(path)
        except StateError as error:
            log.warning("A decoded memory is decoded once more: %s", error)
            self.drop([key])
            return None
        return Reading(_to_kv(state))

    def drop(self, keys: Sequence[str]) -> None:
        """Delete what was kept; what is being written is deleted once it is."""
        with self._lock:
            for key in keys:
                self._coming.pop(key, None)
                if key in self._files:
                    self._files.pop(key)[0].unlink(missing_ok=True)

    def _write(self, key: str, path: Path, prefix: KV, header: Header) -> None:
        size = 0
        try:
            size, _ = state_file.save(path, _to_state(prefix), header)
        except StateError as error:
            log.warning("A decoded memory was not kept on disk: %s", error)
        with self._lock:
            is_wanted = self._coming.get(key) == path
            if is_wanted:
                del self._coming[key]
            if size == 0 or not is_wanted:
                path.unlink(missing_ok=True)
                return
            self._files[key] = path, size
            while self._bytes() > self._most_bytes:
                self._files.popitem(last=False)[1][0].unlink(missing_ok=True)

    def _has_room(self, size: int) -> bool:
        try:
            return shutil.disk_usage(self._folder).free - size >= _LEFT_FREE
        except OSError:
            return False

    def _bytes(self) -> int:
        return sum(size for _, size in self._files.values())


def _to_state(prefix: KV) -> State:
    masks = {f"masks.{layer}": mask for layer, mask in enumerate(prefix.masks)}
    return {**kv_to_state(prefix), **masks}


def _to_kv(state: State) -> KV:
    names = [[f"{part}.{layer}" for layer in range(len(state))] for part in ("keys", "values", "masks")]
    return KV(*(tuple(state[name] for name in part if name in state) for part in names))
