"""Evicted memories, decoded, as files: they are ready again without the model.

What is read of a small state has many times its bytes, and takes the model's time to make. The files belong to this
process alone, in a folder that is deleted when it ends.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from byheart.model.reading import KV, Reading
from byheart.protocol import state_file
from byheart.protocol.kv_slots import kv_to_state
from byheart.protocol.state import Header, State

log = logging.getLogger(__name__)

# A state that is larger than this share of its reading is opened about as quickly itself.
_SHARE = 0.5
# A cache must not take the last room of the memories themselves.
_LEFT_FREE = 1 << 30
# What is being written is still in memory, from which it was evicted.
_MOST_COMING = 1 << 29


@dataclass(frozen=True)
class _File:
    path: Path
    bytes: int


class DecodedFiles:
    """The readings of evicted memories by key; the least recently used are deleted first. Any thread may call it.

    No error leaves it: a memory that cannot be written or read here is decoded again.

    Args:
        folder: where the files are.
        most_bytes: what they may take together; 0 keeps none.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most_bytes = folder, most_bytes
        self._lock = threading.Lock()
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._coming: dict[str, _File] = {}
        self._writers: set[threading.Thread] = set()
        self._left: set[Path] = set()

    @property
    def keys(self) -> list[str]:
        """The keys of what is kept or being written."""
        with self._lock:
            return [*self._files, *self._coming]

    @property
    def bytes(self) -> int:
        """What all of them take."""
        with self._lock:
            return _bytes(self._files.values())

    def keep(self, key: str, reading: Reading, header: Header, state_bytes: int) -> None:
        """Begin to write the reading of a memory, where that saves time and there is room.

        Args:
            header, state_bytes: the memory's, and its size.
        """
        if reading.prefix is None or reading.deltas or not state_bytes < _SHARE * reading.bytes:
            return
        file = _File(self._folder / f"decoded-{uuid4().hex}.safetensors", reading.bytes)
        # A thread that ends, and PyTorch's threads of it; see ``service.open_engine``.
        writer = threading.Thread(target=self._write, args=(key, file, reading.prefix, header), name="byheart-decoded")
        with self._lock:
            if key in self._files or key in self._coming or not self._has_room(file.bytes):
                return
            try:
                writer.start()
            except RuntimeError as error:
                log.warning("A decoded memory was not kept on disk: %s", error)
                return
            self._coming[key] = file
            self._writers.add(writer)

    def read(self, key: str) -> Reading | None:
        """The reading, on the CPU; None where there is none, or its file is damaged."""
        with self._lock:
            if key not in self._files:
                return None
            self._files.move_to_end(key)
            path = self._files[key].path
        try:
            state, _ = state_file.load(path)
            return Reading(_to_kv(state))
        except Exception as error:  # also of PyTorch, where memory is short
            log.warning("A decoded memory could not be read, and is decoded again (%s)", type(error).__name__)
            self.drop([key])
            return None

    def drop(self, keys: Sequence[str]) -> None:
        """Delete what is kept; a file that is being written is deleted as soon as it is complete."""
        with self._lock:
            for key in keys:
                self._coming.pop(key, None)
            found = [self._files.pop(key) for key in keys if key in self._files]
        self._delete(file.path for file in found)

    def close(self) -> None:
        """Delete all files, and keep none from now on."""
        self._most_bytes = 0
        self.drop(self.keys)
        with self._lock:
            writers = [*self._writers]
        for writer in writers:
            writer.join()

    def _write(self, key: str, file: _File, prefix: KV, header: Header) -> None:
        size = 0
        try:
            size, _ = state_file.save(file.path, _to_state(prefix), header)
        except Exception as error:  # also of PyTorch, where memory is short
            log.warning("A decoded memory was not kept on disk (%s)", type(error).__name__)
        with self._lock:
            is_wanted = self._coming.get(key) is file
            if is_wanted:
                del self._coming[key]
            doomed = [] if is_wanted and size else [file]
            if not doomed:
                self._files[key] = _File(file.path, size)
            while _bytes(self._files.values()) > self._most_bytes:
                doomed.append(self._files.popitem(last=False)[1])
        self._delete(each.path for each in doomed)
        with self._lock:
            self._writers.discard(threading.current_thread())

    def _has_room(self, size: int) -> bool:
        coming = _bytes(self._coming.values()) + size
        if size > self._most_bytes or (self._coming and coming > _MOST_COMING):
            return False
        try:
            return shutil.disk_usage(self._folder).free - coming >= _LEFT_FREE
        except OSError:
            return False

    def _delete(self, paths: Iterable[Path]) -> None:
        """Delete files, and those that could not be deleted before."""
        with self._lock:
            waiting, self._left = {*paths, *self._left}, set()
        for path in waiting:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("A decoded memory could not be deleted yet: %s", error.strerror)
                with self._lock:
                    self._left.add(path)


def _bytes(files: Iterable[_File]) -> int:
    return sum(file.bytes for file in files)


def _to_state(prefix: KV) -> State:
    masks = {f"masks.{layer}": mask for layer, mask in enumerate(prefix.masks)}
    return {**kv_to_state(prefix), **masks}


def _to_kv(state: State) -> KV:
    names = [[f"{part}.{layer}" for layer in range(len(state))] for part in ("keys", "values", "masks")]
    return KV(*(tuple(state[name] for name in part if name in state) for part in names))
