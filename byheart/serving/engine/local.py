"""An engine in this process: one thread that owns the models, and calls from the event loop that wait for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from byheart.errors import UnknownNameError, require_positive
from byheart.model.backbone import Backbone
from byheart.model.slices import Slices
from byheart.protocol.state import Header
from byheart.serving.engine.answer import Answer, request_in_slices
from byheart.serving.engine.decoded_files import DecodedFiles
from byheart.serving.engine.fair_threads import FairThreads
from byheart.serving.engine.hosted_model import HostedModel
from byheart.serving.engine.residents import Residents
from byheart.serving.engine.ticket import Ticket
from byheart.serving.engine.worker import Worker
from byheart.serving.engine.writing import Writer
from byheart.serving.jobs import Ask, Finished, Load, NewState, Piece, Progress, Write
from byheart.text.encoder import ChatEncoder

_FETCHES = 4


class LocalEngine:
    """Answers, writes and keeps memories over models in this process; see ``jobs.Engine``.

    Args:
        models: served name -> an opened model. What the default method needs of one is made here, where it is missing.
        max_resident: bytes that opened memories may take.
        queue: how many questions may wait, and how many writes.
        batch: how many answers are made at a time.
        prefill_tokens: how much of a text or a prompt is read between two tokens of the running answers.
        encoders: tokenizers with their chat templates, where they are not the models' own.
        decoded: a folder of this process alone for evicted memories, decoded; they are not kept without it.
        max_decoded: bytes that it may take.
    """

    def __init__(
        self,
        models: Mapping[str, Backbone],
        *,
        max_resident: int,
        queue: int = 64,
        batch: int = 8,
        prefill_tokens: int = 256,
        encoders: Mapping[str, ChatEncoder] | None = None,
        decoded: Path | None = None,
        max_decoded: int = 4 << 30,
    ) -> None:
        require_positive(max_resident=max_resident, queue=queue, batch=batch, prefill_tokens=prefill_tokens)
        known = encoders or {}
        self._models = {name: HostedModel(backbone, known.get(name)) for name, backbone in models.items()}
        self._aside = FairThreads(_FETCHES, name="byheart-files")
        self._decoded = None if decoded is None else DecodedFiles(decoded, max_decoded)
        self._residents = Residents(max_resident, self._aside, prefill_tokens, self._decoded)
        self._writer = Writer(self._residents, prefill_tokens)
        self._worker = Worker(self._models, self._residents, queue=queue, batch=batch, prefill_tokens=prefill_tokens)

    async def ask(self, job: Ask) -> AsyncIterator[Piece | Finished]:
        """The answer piece by piece; ``Finished`` comes last. Raises as ``jobs.Engine`` says."""
        model = self._find(job.model)
        ticket = Ticket(job.tenant, lambda ticket: self._prepare(job, model, ticket))
        self._worker.submit(ticket, self._worker.questions)
        try:
            while True:
                item = await self._next(ticket)
                yield item
                if isinstance(item, Finished):
                    return
        finally:
            self._worker.cancel(ticket)

    async def write(self, job: Write, progress: Progress | None = None) -> NewState:
        """Write texts into a copy of a memory. Raises as ``jobs.Engine`` says."""
        model = self._find(job.model)

        def discard(made: object) -> None:
            if isinstance(made, NewState):
                made.path.unlink(missing_ok=True)
                self.drop([f"{job.tenant}:{made.sha256}"])

        ticket = Ticket(job.tenant, lambda ticket: self._writer.write(job, model, ticket, progress), discard)
        made: NewState = await self._made(ticket)
        return made

    async def examine(self, path: Path, model: str, tenant: str = "") -> Header:
        """The header of a state file that the model can read. Raises StateError."""
        hosted = self._find(model)
        header: Header = await self._made(Ticket(tenant, lambda ticket: self._writer.examine(path, hosted)))
        return header

    def drop(self, keys: Sequence[str]) -> int:
        """Let go of resident memories; gives how many there were. What answers still read goes when they end."""
        return self._residents.drop(keys)

    @property
    def models(self) -> Mapping[str, str]:
        """Served name -> the fingerprint of the model."""
        return {name: model.fingerprint for name, model in self._models.items()}

    @property
    def slot_bytes(self) -> Mapping[str, int]:
        """Served name -> the bytes of one slot as the model makes it."""
        return {name: model.backbone.slot_bytes for name, model in self._models.items()}

    @property
    def residents(self) -> Sequence[str]:
        """The keys of memories that are opened, or decoded on disk."""
        return self._residents.keys

    @property
    def load(self) -> Load:
        """How busy it is now."""
        return Load(self._worker.running, self._worker.waiting, len(self._residents), self._residents.bytes)

    def close(self, timeout: float = 0.0) -> None:
        """Take no more jobs; end those that still run after ``timeout`` seconds with BusyError."""
        self._worker.close(timeout)
        if self._decoded is not None:
            self._decoded.close()
        self._aside.shutdown()

    def _find(self, name: str) -> HostedModel:
        if name not in self._models:
            raise UnknownNameError("model", name, self._models)
        return self._models[name]

    def _prepare(self, job: Ask, model: HostedModel, ticket: Ticket) -> Slices[None]:
        """Open what is asked about; the answer is then ready to be made."""
        session = None
        if job.memory is not None:
            session = yield from self._residents.open(job.memory, model, ticket)
        request = yield from request_in_slices(
            job, model.encoder, session, model.backbone.positions, model.questions_aside
        )
        encoder = model.encoder if session is None else session.encoder
        model.ready.append((request, Answer(ticket, job, encoder, request)))

    async def _made(self, ticket: Ticket) -> Any:
        self._worker.submit(ticket, self._worker.others)
        try:
            return await self._next(ticket)
        finally:
            self._worker.cancel(ticket)
            # It may have been made just before the one who waited left.
            while not ticket.items.empty():
                ticket.discard(ticket.items.get_nowait())

    @staticmethod
    async def _next(ticket: Ticket) -> Any:
        item = await ticket.items.get()
        if isinstance(item, Exception):
            raise item
        return item
