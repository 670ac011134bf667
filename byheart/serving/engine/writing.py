"""Writing into memories, and looking at state files from elsewhere: work of the engine's thread, in slices."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from torch import Tensor

from byheart.files import digest_of_file
from byheart.model.slices import Slices
from byheart.protocol import state_file
from byheart.protocol.header_file import load_header
from byheart.protocol.state import Header, State
from byheart.serving.engine.hosted_model import HostedModel
from byheart.serving.engine.residents import Residents
from byheart.serving.engine.ticket import Ticket
from byheart.serving.jobs import NewState, NewText, Progress, Write
from byheart.session.session import Session
from byheart.session.writing import write_in_slices
from byheart.text.encoder import ChatEncoder

# Seconds between looks at whether a file is written.
_PAUSE = 0.002


class Writer:
    """Writes texts into a copy of a memory, and makes a file of it.

    Args:
        longest: tokens that are read without a pause.
    """

    def __init__(self, residents: Residents, longest: int) -> None:
        self._residents, self._longest = residents, longest

    def write(self, job: Write, model: HostedModel, ticket: Ticket, progress: Progress | None) -> Slices[NewState]:
        """A new state, which stays resident. Raises InputError, StateError, UsageError."""
        base = None
        if job.memory is not None:
            base = yield from self._residents.open(job.memory, model, ticket)
        session = model.start(job.method, job.options) if base is None else base.fork()
        # What the method keeps aside of the new state must not be kept as long as the old one is.
        session.method = session.method.apart()
        known = len(session.header.written)
        yield from self._write_texts(session, job, model, progress)
        yield from session.method.prepare(session.state, longest=self._longest)
        path = job.folder / f"{uuid4().hex}.safetensors"
        saving = _begin_saving(path, session.state, session.header_for(path))
        is_kept = False
        try:
            while wait([saving], _PAUSE).not_done:
                yield None
            size, sha256, session.header = saving.result()
            self._residents.put(f"{job.tenant}:{sha256}", session)
            is_kept = True
        finally:
            if not is_kept:
                # Nothing waits for the disk here: this may be the engine's thread, because a client hung up.
                saving.add_done_callback(lambda _: _remove(path))
        return NewState(path, sha256, size, session.header, tuple(session.header.written[known:]))

    def examine(self, path: Path, model: HostedModel) -> Slices[Header]:
        """The header of a state file that the model can read. Raises StateError."""
        session = yield from model.open(path, load_header(path), longest=self._longest)
        return session.header

    def _write_texts(self, session: Session, job: Write, model: HostedModel, progress: Progress | None) -> Slices[None]:
        tokens: list[Tensor] = []
        for new in job.texts:
            tokens.append((yield from _tokens(session, new, model, follows=bool(tokens))))
        total, done = sum(each.shape[1] for each in tokens), 0
        for new, own in zip(job.texts, tokens, strict=True):
            slices = write_in_slices(
                session, new.text, answer=new.answer, source=new.source, longest=self._longest, tokens=own
            )
            for count in slices:
                done = min(total, done + (count or 0))
                if progress is not None and count:
                    progress(done, total)
                yield count
        if progress is not None:
            progress(total, total)


def _tokens(session: Session, new: NewText, model: HostedModel, *, follows: bool) -> Slices[Tensor]:
    """The tokens (1, T) of a text as it will be written, after others of the same job or none."""

    def work(encoder: ChatEncoder) -> Tensor:
        twin = session.fork()
        twin.encoder = encoder
        return twin.document(new.text, answer=new.answer, follows=follows)

    return (yield from model.texts_aside.run(session.encoder, work))


def _begin_saving(path: Path, state: State, header: Header) -> Future[tuple[int, str, Header]]:
    """Save in a thread that ends afterwards, and PyTorch's threads of it; see ``service.open_engine``."""
    aside = ThreadPoolExecutor(1, thread_name_prefix="byheart-saving")
    saving = aside.submit(_save, path, state, header)
    aside.shutdown(wait=False)
    return saving


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _save(path: Path, state: State, header: Header) -> tuple[int, str, Header]:
    """Write a state file; gives its bytes, their SHA-256, and the header. Raises StateError."""
    size, _ = state_file.save(path, state, header)
    return size, digest_of_file(path), header
