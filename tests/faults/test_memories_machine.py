"""Any sequence of uses of a catalogue leaves what a dictionary would hold, and in its objects nothing else."""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from byheart.errors import ConflictError, MissingError
from byheart.store.memories import Memories
from byheart.store.objects import object_prefix
from tests.store.states import commit, make_state

NAMES = st.sampled_from(["a", "b", "c"])
SUBJECTS = st.sampled_from(["", "ann", "bob"])
NUMBERS = st.integers(1, 4)
FILLS = st.integers(0, 2)
_tenants = itertools.count()


@cache
def _store() -> tuple[Memories, Path]:
    folder = Path(tempfile.mkdtemp())
    return Memories.at(folder), folder


class MemoriesMachine(RuleBasedStateMachine):
    """``expected`` is of each name: its subject, its newest number, and the hash of each version that is there."""

    @initialize()
    def begin(self) -> None:
        self.memories, self.folder = _store()
        self.mine = self.memories.of(f"t{next(_tenants)}")
        self.expected: dict[str, tuple[str, int, dict[int, str]]] = {}

    @rule(name=NAMES, subject=SUBJECTS)
    def create(self, name: str, subject: str) -> None:
        try:
            self.mine.create(name, model="tiny", subject=subject)
        except ConflictError:
            assert name in self.expected
        else:
            assert name not in self.expected
            self.expected[name] = (subject, 0, {})

    @rule(name=NAMES, fill=FILLS, behind=st.integers(0, 1))
    def write(self, name: str, fill: int, behind: int) -> None:
        subject, newest, versions = self.expected.get(name, ("", 0, {}))
        try:
            made = commit(self.mine, name, self.folder, "x", fill=fill, expected=newest - behind)
        except ConflictError:
            assert behind
        except MissingError:
            assert name not in self.expected
        else:
            assert not behind
            assert made.number == newest + 1
            digest = hashlib.sha256(make_state(self.folder, "x", fill=fill).path.read_bytes()).hexdigest()
            self.expected[name] = (subject, made.number, {**versions, made.number: digest})

    @rule(name=NAMES, new=NAMES, number=st.none() | NUMBERS)
    def fork(self, name: str, new: str, number: int | None) -> None:
        subject, newest, versions = self.expected.get(name, ("", 0, {}))
        wanted = newest if number is None else number
        try:
            self.mine.fork(name, new, version=number)
        except ConflictError:
            assert new in self.expected
        except MissingError:
            assert name not in self.expected or wanted not in versions
        else:
            assert new not in self.expected
            self.expected[new] = (subject, 1, {1: versions[wanted]}) if wanted else (subject, 0, {})

    @rule(name=NAMES, number=NUMBERS)
    def restore(self, name: str, number: int) -> None:
        subject, newest, versions = self.expected.get(name, ("", 0, {}))
        try:
            self.mine.restore(name, number)
        except MissingError:
            assert number not in versions
        else:
            self.expected[name] = (subject, newest + 1, {**versions, newest + 1: versions[number]})

    @rule(name=NAMES, number=NUMBERS)
    def delete_version(self, name: str, number: int) -> None:
        subject, newest, versions = self.expected.get(name, ("", 0, {}))
        try:
            self.mine.delete_version(name, number)
        except ConflictError:
            assert number == newest
        except MissingError:
            assert number not in versions
        else:
            self.expected[name] = (subject, newest, {n: held for n, held in versions.items() if n != number})

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        try:
            self.mine.delete(name)
        except MissingError:
            assert name not in self.expected
        else:
            del self.expected[name]

    @rule(subject=st.sampled_from(["ann", "bob"]))
    def erase(self, subject: str) -> None:
        gone = {name for name, (about, _, _) in self.expected.items() if about == subject}
        assert self.mine.erase(subject).memories == len(gone)
        self.expected = {name: held for name, held in self.expected.items() if name not in gone}

    @rule()
    def sweep(self) -> None:
        self.memories.sweep()

    @invariant()
    def what_is_there(self) -> None:
        assert {memory.name: memory.version for memory in self.mine.list().data} == {
            name: newest for name, (_, newest, _) in self.expected.items()
        }
        for name, (_, _, versions) in self.expected.items():
            found = self.mine.versions(name).data
            assert {version.number: version.sha256 for version in found} == versions
            for version in found:
                assert hashlib.sha256(self.mine.fetch(version).read_bytes()).hexdigest() == version.sha256
        held = {digest for _, _, versions in self.expected.values() for digest in versions.values()}
        stored = self.memories.objects.stored(object_prefix(self.mine.tenant))
        assert sum(1 for _ in stored) == len(held)


class TestMemories(MemoriesMachine.TestCase):
    settings = settings(max_examples=12, stateful_step_count=12, deadline=None)


@pytest.mark.slow
class TestMemoriesLonger(MemoriesMachine.TestCase):
    settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
