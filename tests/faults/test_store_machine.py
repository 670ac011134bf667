"""Any sequence of uses of a store leaves what a dictionary of lists would hold."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from byheart import load
from byheart.errors import StateError, StoreError
from byheart.session.session import Session
from byheart.store.folder import Store
from tests.conftest import tiny_tokenizer
from tests.samples import backbone

NAMES = st.sampled_from(["a", "b", "c"])
SOURCES = st.sampled_from(["x", "y"])


@cache
def _fresh() -> Session:
    return load(backbone(), method="window", encoder=tiny_tokenizer(), sinks=1, recent=7)


class StoreMachine(RuleBasedStateMachine):
    """Two sessions at a time use memories of three names; files are damaged and swapped behind their backs.

    ``expected`` is what each name holds: the sources in order, or None where its file is damaged.
    """

    sessions: Any = Bundle("sessions")

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.store = Store(self.folder / "home")
        self.expected: dict[str, list[str] | None] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(target=sessions, name=NAMES)
    def open(self, name: str) -> tuple[str, Session]:
        """A session, which may become stale; a damaged or absent memory begins as an empty one, unsaved."""
        session = _fresh().fork()
        if self.expected.get(name):
            session.load(self.store.path(name))
        return name, session

    @rule(opened=sessions, source=SOURCES)
    def write(self, opened: tuple[str, Session], source: str) -> None:
        """A write joins what the file holds; on a damaged file or a forgotten memory it is an error."""
        name, session = opened
        held, had = self.expected.get(name, []), [entry.source for entry in session.header.written]
        try:
            with self.store.updating(name, session):
                session.write("It is.", source=source)
        except StateError:
            assert held is None
        except StoreError:
            assert name not in self.expected
            assert had
        else:
            assert held is not None
            self.expected[name] = [*held, source]
            assert [entry.source for entry in session.header.written] == self.expected[name]

    @rule(opened=consumes(sessions), source=SOURCES)
    def fail(self, opened: tuple[str, Session], source: str) -> None:
        """What ends in an error is not saved."""
        name, session = opened
        with suppress(KeyError, StateError, StoreError), self.store.updating(name, session):
            session.write("It is.", source=source)
            raise KeyError

    @rule(name=NAMES, new=NAMES)
    def fork(self, name: str, new: str) -> None:
        try:
            self.store.fork(name, new)
        except StateError:
            assert self.expected[name] is None
        except StoreError:
            assert name not in self.expected or new in self.expected
        else:
            assert new not in self.expected
            self.expected[new] = self.expected[name]

    @rule(name=NAMES)
    def forget(self, name: str) -> None:
        if name in self.expected:
            self.store.forget(name)
            del self.expected[name]
        else:
            with pytest.raises(StoreError, match="There is no memory"):
                self.store.forget(name)

    @precondition(lambda self: any(self.expected.values()))
    @rule(data=st.data(), cut=st.integers(0, 200))
    def damage(self, data: st.DataObject, cut: int) -> None:
        name = data.draw(st.sampled_from(sorted(name for name, held in self.expected.items() if held)))
        path = self.store.path(name)
        path.write_bytes(path.read_bytes()[:cut])
        self.expected[name] = None

    @rule(name=NAMES)
    def kill(self, name: str) -> None:
        """What a killed writer leaves: part of a file, under the name of a scratch file."""
        self.store.home.mkdir(exist_ok=True)
        (self.store.home / f".{name}.abcdefgh.tmp").write_bytes(b"part of a memory")

    @invariant()
    def what_is_there(self) -> None:
        """Every memory is listed, the damaged ones as damaged; then the folder holds memories and their locks alone."""
        entries = {entry.name: entry for entry in self.store.entries()}
        assert entries.keys() == self.expected.keys()
        for name, held in self.expected.items():
            header = entries[name].header
            assert (header and [entry.source for entry in header.written]) == held
        names = {path.name for path in self.store.home.glob("*")}
        assert names - {f"{name}.safetensors" for name in entries} <= {f".{name}.lock" for name in entries}


class TestStore(StoreMachine.TestCase):
    settings = settings(max_examples=40, stateful_step_count=20)


@pytest.mark.slow
class TestStoreLonger(StoreMachine.TestCase):
    settings = settings(max_examples=150, stateful_step_count=40)
