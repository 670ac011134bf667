"""Memories that need no loading: opened once, read by many, let go when others need the room.

Opening and reading is for the engine's thread; letting go is for any.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from typing import TypeVar

from byheart.errors import StateError
from byheart.model.slices import Slices
from byheart.protocol.state import Header
from byheart.protocol.state_file import load_header
from byheart.serving.engine.decoded_files import DecodedFiles
from byheart.serving.engine.fair_threads import FairThreads
from byheart.serving.engine.hosted_model import HostedModel
from byheart.serving.engine.ticket import Ticket
from byheart.serving.jobs import MemoryRef
from byheart.session.session import Session

Made = TypeVar("Made")
_RETRIES = 2
# Of what a header says of one text that was written.
_ENTRY_BYTES = 1 << 10


class Residents:
    """Opened memories by key, the least recently used first to go.

    Args:
        most_bytes: what they may take; one that is read stays, and a single one may take more.
        aside: where files are fetched.
        longest: tokens that are read without a pause.
        decoded: where evicted memories are kept, if anywhere.
    """

    def __init__(self, most_bytes: int, aside: FairThreads, longest: int, decoded: DecodedFiles | None = None) -> None:
        self.most_bytes, self._aside, self._longest, self._decoded = most_bytes, aside, longest, decoded
        self._lock = threading.RLock()
        self._sessions: OrderedDict[str, tuple[Session, int]] = OrderedDict()
        self._uses: Counter[str] = Counter()
        # What is being opened, and the bytes that it will take.
        self._opening: dict[str, int] = {}
        self._unwanted: set[str] = set()

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def keys(self) -> list[str]:
        """Those of all that are here, or on disk decoded."""
        with self._lock:
            decoded = [] if self._decoded is None else self._decoded.keys
            return list(dict.fromkeys([*self._sessions, *decoded]))

    @property
    def bytes(self) -> int:
        """What all of them take."""
        with self._lock:
            return sum(size for _, size in self._sessions.values())

    def open(self, ref: MemoryRef, model: HostedModel, ticket: Ticket) -> Slices[Session]:
        """The memory, which stays until the ticket has left. Raises what fetching and opening raise."""
        if (session := self._use(ref.key, ticket)) is not None:
            return session
        ticket.is_opening = True
        try:
            return (yield from self._open(ref, model, ticket))
        finally:
            ticket.is_opening = False

    def _open(self, ref: MemoryRef, model: HostedModel, ticket: Ticket) -> Slices[Session]:
        while ref.key in self._opening:
            # Somebody else is at it.
            yield None
        if (session := self._use(ref.key, ticket)) is not None:
            return session
        with self._lock:
            self._opening[ref.key] = 0
        try:
            opened = yield from self._load(ref, model, ticket.tenant)
            # What was dropped meanwhile is read once more, by this ticket alone.
            return self._use(ref.key, ticket) or opened
        finally:
            with self._lock:
                self._opening.pop(ref.key, None)
                self._unwanted.discard(ref.key)

    def put(self, key: str, session: Session) -> None:
        """Keep an opened memory."""
        size = session.bytes + session.reading.bytes + _ENTRY_BYTES * len(session.header.written)
        with self._lock:
            if key not in self._unwanted:
                self._sessions[key] = session, size
                self._make_room(key)

    def leave(self, ticket: Ticket) -> None:
        """A ticket reads nothing any more."""
        with self._lock:
            self._uses.subtract(ticket.uses)
            self._uses = +self._uses
            ticket.uses.clear()
            self._make_room()

    def drop(self, keys: Sequence[str]) -> int:
        """Let go of memories; gives how many there were. What is being opened now is not kept."""
        with self._lock:
            self._unwanted |= self._opening.keys() & set(keys)
            found = sum(self._sessions.pop(key, None) is not None for key in keys)
        # Outside of the lock, since files take time. No key comes back: only what is resident is evicted.
        if self._decoded is not None:
            self._decoded.drop(keys)
        return found

    def _use(self, key: str, ticket: Ticket) -> Session | None:
        with self._lock:
            if key not in self._sessions:
                return None
            self._sessions.move_to_end(key)
            self._uses[key] += 1
            ticket.uses.append(key)
            return self._sessions[key][0]

    def _load(self, ref: MemoryRef, model: HostedModel, tenant: str) -> Slices[Session]:
        for _ in range(_RETRIES):
            try:
                return (yield from self._load_once(ref, model, tenant))
            except StateError as error:
                # The file went after it was fetched: a copy comes again, and of a deleted memory the store says so.
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
        return (yield from self._load_once(ref, model, tenant))

    def _load_once(self, ref: MemoryRef, model: HostedModel, tenant: str) -> Slices[Session]:
        path, header = yield from self._elsewhere(tenant, partial(_fetch, ref))
        need = header.slots * model.backbone.slot_bytes
        while not self._takes_room(ref.key, need):
            yield None
        reading = None
        if self._decoded is not None:
            reading = yield from self._elsewhere(tenant, partial(self._decoded.read, ref.key))
        session = yield from model.open(path, header, longest=self._longest, reading=reading)
        self.put(ref.key, session)
        return session

    def _elsewhere(self, tenant: str, read: Callable[[], Made]) -> Slices[Made]:
        """What is read from files, in a thread that is there for them."""
        reading = self._aside.submit(tenant, read)
        try:
            while wait([reading], 0).not_done:
                yield None
            return reading.result()
        finally:
            # Nobody waits for what a client has hung up on.
            reading.cancel()

    def _takes_room(self, key: str, need: int) -> bool:
        """Whether a memory may be opened now; its bytes are then taken.

        What is read, and what others are opening, cannot make room. Where there is neither, it may be of any size.
        """
        with self._lock:
            read = sum(size for each, (_, size) in self._sessions.items() if self._uses[each])
            taken = read + sum(size for each, size in self._opening.items() if each != key)
            if taken and taken + need > self.most_bytes:
                return False
            self._opening[key] = need
            return True

    def _make_room(self, newest: str = "") -> None:
        for key in list(self._sessions):
            if self.bytes <= self.most_bytes:
                return
            if not self._uses[key] and key != newest:
                session, _ = self._sessions.pop(key)
                if self._decoded is not None:
                    self._decoded.keep(key, session.reading, session.header, session.bytes)


def _fetch(ref: MemoryRef) -> tuple[Path, Header]:
    """A memory's file and what stands at its head."""
    path = ref.fetch()
    return path, load_header(path)
