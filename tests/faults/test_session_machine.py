"""Any sequence of uses of sessions leaves each with what was written into it, and with nothing else."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, multiple, rule

from byheart import load
from byheart.errors import InputError, StateError
from byheart.session.session import Session
from tests.conftest import tiny_tokenizer
from tests.samples import OPTIONS, backbone, same

METHODS = ("full", "window", "retrieval", "latent-pool", "compressed-kv")
TEXTS = st.sampled_from(["It is red.", "No.", "Tom has a boat, an old one."])
FILES = st.sampled_from(["a", "b"])


@cache
def _after(method: str, texts: tuple[str, ...]) -> Session:
    """A session into which these texts were written one after another; nothing may change it."""
    if not texts:
        return load(backbone(), method=method, encoder=tiny_tokenizer(), **OPTIONS.get(method, {}))
    session = _after(method, texts[:-1]).fork()
    session.write(texts[-1], source=texts[-1])
    return session


@cache
def _answer(method: str, texts: tuple[str, ...]) -> str:
    return _after(method, texts).ask("Who?", max_tokens=3)


class SessionMachine(RuleBasedStateMachine):
    """Sessions of one method, and files; ``texts`` is what each session holds, ``files`` what each file does."""

    sessions: Any = Bundle("sessions")

    @initialize(target=sessions, method=st.sampled_from(METHODS))
    def begin(self, method: str) -> Session:
        self.folder, self.method = Path(tempfile.mkdtemp()), method
        self.files: dict[str, tuple[str, ...] | None] = {}
        self.texts: dict[int, tuple[str, ...]] = {}
        return self._keep(_after(method, ()).fork(), ())

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def _keep(self, session: Session, texts: tuple[str, ...]) -> Session:
        self.texts[id(session)] = texts
        self._check(session)
        return session

    def _check(self, session: Session) -> None:
        """The session is as one that wrote the same texts, whatever else happened to it."""
        texts = self.texts[id(session)]
        assert tuple(entry.source for entry in session.header.written) == texts
        same(session.state, _after(self.method, texts).state)

    @rule(session=sessions, text=TEXTS)
    def write(self, session: Session, text: str) -> None:
        if len(self.texts[id(session)]) < 6:
            session.write(text, source=text)
            self._keep(session, (*self.texts[id(session)], text))

    @rule(session=sessions, text=st.sampled_from(["", "\n", "half \udcff"]))
    def write_none(self, session: Session, text: str) -> None:
        with pytest.raises(InputError):
            session.write(text)
        self._check(session)

    @rule(session=sessions)
    def ask(self, session: Session) -> None:
        texts = self.texts[id(session)]
        if texts:
            assert session.ask("Who?", max_tokens=3) == _answer(self.method, texts)
        else:
            with pytest.raises(InputError, match="Nothing has been written"):
                session.ask("Who?")
        self._check(session)

    @rule(session=sessions)
    def leave_an_answer(self, session: Session) -> None:
        """What is asked for and not read to its end leaves no trace."""
        if self.texts[id(session)]:
            next(iter(session.stream("Who?", max_tokens=3)), None)
        self._check(session)

    @rule(target=sessions, session=sessions)
    def fork(self, session: Session) -> Any:
        return self._keep(session.fork(), self.texts[id(session)]) if len(self.texts) < 5 else multiple()

    @rule(session=sessions)
    def forget(self, session: Session) -> None:
        session.forget()
        self._keep(session, ())

    @rule(session=sessions, file=FILES)
    def save(self, session: Session, file: str) -> None:
        session.save(self.folder / file)
        self.files[file] = self.texts[id(session)]
        self._check(session)

    @rule(session=sessions, file=FILES)
    def load(self, session: Session, file: str) -> None:
        """A file that is absent or damaged is an error, and the session stays as it was."""
        held = self.files.get(file)
        if held is None:
            with pytest.raises(StateError):
                session.load(self.folder / file)
            self._check(session)
        else:
            session.load(self.folder / file)
            self._keep(session, held)

    @rule(file=FILES, place=st.integers(8, 10_000), kind=st.sampled_from(["cut", "flip"]))
    def damage(self, file: str, place: int, kind: str) -> None:
        """In place: sessions that have the file open must not see it."""
        if self.files.get(file) is None:
            return
        raw = bytearray((self.folder / file).read_bytes())
        place %= len(raw)
        raw[place] ^= 1
        (self.folder / file).write_bytes(raw[:place] if kind == "cut" else raw)
        self.files[file] = None

    @rule(session=sessions)
    def look(self, session: Session) -> None:
        self._check(session)


class TestSession(SessionMachine.TestCase):
    settings = settings(max_examples=30, stateful_step_count=15)


@pytest.mark.slow
class TestSessionLonger(SessionMachine.TestCase):
    settings = settings(max_examples=100, stateful_step_count=40)
