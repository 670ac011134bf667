"""The thread that owns the models: between two tokens of all answers, a slice of whatever else there is to do.

    take in what waits -> one slice of work (opening, writing, a prompt) -> one step of every answer -> send it all

So a running answer waits for one slice at the most, however long the text that another client writes. Nothing here
knows what the work is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping

from byheart.errors import BusyError
from byheart.generation.generate import Generation, Request
from byheart.serving.engine.answer import Answer
from byheart.serving.engine.fair_queue import FairQueue
from byheart.serving.engine.hosted_model import HostedModel
from byheart.serving.engine.residents import Residents
from byheart.serving.engine.ticket import Outbox, Ticket, Work

log = logging.getLogger(__name__)
_IDLE = 0.005
# A short write does not wait for a long one, nor a tenant's only one for those of another.
_OTHERS, _OTHERS_IN_ALL = 2, 8
_CLOSED = "The server is shutting down; ask another one, or later."


class Worker:
    """What the engine's thread does, and how others reach it.

    Args:
        queue: how many questions may wait, and how many other jobs.
        batch: how many questions are opened and answered at a time.
        prefill_tokens: how much of prompts is read between two steps.
    """

    def __init__(
        self,
        models: Mapping[str, HostedModel],
        residents: Residents,
        *,
        queue: int,
        batch: int,
        prefill_tokens: int,
    ) -> None:
        self.models, self.residents = models, residents
        self.questions: FairQueue[Ticket] = FairQueue(queue)
        self.others: FairQueue[Ticket] = FairQueue(queue)
        self._batch, self._prefill_tokens = batch, prefill_tokens
        self._outbox = Outbox()
        self._changed = threading.Condition()
        self._has_news = self._is_closing = self._is_stopped = False
        self._work: deque[tuple[Ticket, Work]] = deque()
        self._running: dict[Ticket, bool] = {}
        self._reads_prompt_next = False
        self._thread = threading.Thread(target=self._run, name="byheart-engine", daemon=True)
        self._thread.start()

    # ---- from other threads ----

    @property
    def running(self) -> int:
        """How many jobs are being done."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self.questions) + len(self.others)

    def submit(self, ticket: Ticket, queue: FairQueue[Ticket]) -> None:
        """Let a job wait for its turn. Raises BusyError."""
        if self._is_closing:
            raise BusyError(_CLOSED)
        left = queue.put(ticket.tenant, ticket)
        if left is not None:
            left.items.put_nowait(BusyError("Others wait who have fewer jobs here; try again in a moment."))
        self.wake()

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for a job any more: it costs nothing from the next step on."""
        ticket.is_cancelled = True
        if not any(queue.remove(ticket.tenant, ticket) for queue in (self.questions, self.others)):
            self.wake()

    def wake(self) -> None:
        """There is something new to look at."""
        with self._changed:
            self._has_news = True
            self._changed.notify_all()

    def close(self, timeout: float) -> None:
        """Take no more jobs, and end what still runs after so many seconds."""
        self._is_closing = True
        until = time.monotonic() + timeout
        with self._changed:
            while (self._running or self.waiting) and (left := until - time.monotonic()) > 0:
                self._changed.wait(min(left, 0.1))
        self._is_stopped = True
        self.wake()
        self._thread.join()

    # ---- on the engine's thread ----

    def _run(self) -> None:
        while not self._is_stopped:
            try:
                is_busy = self._turn()
            except Exception as error:
                log.exception("The engine could not go on with its jobs.")
                self._end_all(error)
                is_busy = True
            self._outbox.send()
            if not is_busy:
                self._rest()
        self._end_all(BusyError(_CLOSED))
        self._outbox.send()

    def _rest(self) -> None:
        with self._changed:
            self._changed.notify_all()
            if not self._has_news:
                # What is waited for elsewhere, such as a file, does not say when it is there.
                self._changed.wait(_IDLE if self._running else None)
            self._has_news = False

    def _turn(self) -> bool:
        """One round; gives whether the models had anything to do."""
        self._leave_out_cancelled()
        self._take_in()
        has_unread = [model for model in self.models.values() if model.generation.has_unread]
        self._reads_prompt_next = bool(has_unread) and (not self._work or not self._reads_prompt_next)
        if self._reads_prompt_next:
            self._guarded(has_unread[0], lambda model: model.generation.read(self._prefill_tokens))
            is_busy = True
        else:
            is_busy = self._advance_work()
        for model in self.models.values():
            self._join(model)
            if model.answers:
                is_busy = True
                self._guarded(model, self._step)
        return is_busy

    def _take_in(self) -> None:
        """Start what waits while there is room for it; what needs no slice of the model is ready at once."""
        while self._count(is_question=True) < self._batch and (ticket := self._next_question()):
            self._start(ticket, is_question=True)
        while (running := self._count(is_question=False)) < _OTHERS_IN_ALL:
            tenants = self._tenants(is_question=False)
            ticket = self.others.take(tenants, full=() if running < _OTHERS else tenants)
            if ticket is None:
                return
            self._start(ticket, is_question=False)

    def _next_question(self) -> Ticket | None:
        """A tenant whose memories are still being opened leaves one place to the others."""
        opening = Counter(ticket.tenant for ticket, kind in self._running.items() if kind and ticket.is_opening)
        full = {tenant for tenant, count in opening.items() if count >= max(1, self._batch - 1)}
        return self.questions.take(self._tenants(is_question=True), full=full)

    def _tenants(self, *, is_question: bool) -> Counter[str]:
        return Counter(ticket.tenant for ticket, kind in self._running.items() if kind is is_question)

    def _count(self, *, is_question: bool) -> int:
        return sum(kind is is_question for kind in self._running.values())

    def _start(self, ticket: Ticket, *, is_question: bool) -> None:
        self._running[ticket] = is_question
        try:
            work = ticket.start(ticket)
        except Exception as error:
            self._fail(ticket, error)
            return
        if is_question:
            self._advance(ticket, work)
        else:
            self._work.append((ticket, work))

    def _advance_work(self) -> bool:
        """A slice of the work whose turn it is; gives whether the model had a part in any."""
        return any(self._advance(*self._work.popleft()) for _ in range(len(self._work)))

    def _advance(self, ticket: Ticket, work: Work) -> bool:
        """A slice of a ticket's work, which waits for its next turn unless it was the last."""
        try:
            tokens = next(work)
        except StopIteration as end:
            self._finish(ticket, end.value)
            return True
        except Exception as error:
            self._fail(ticket, error)
            return True
        self._work.append((ticket, work))
        return tokens is not None

    def _finish(self, ticket: Ticket, made: object) -> None:
        """The work of a ticket is done: a question is to be answered now, of others it was all."""
        if self._running[ticket]:
            return
        self._outbox.put(ticket, made)
        self._leave(ticket)

    def _join(self, model: HostedModel) -> None:
        """Add what is ready to the answers that are made, as one group."""
        ready, model.ready = model.ready, []
        fitting: list[tuple[Request, Answer]] = []
        for request, answer in ready:
            try:
                model.generation.room_for(request)
                fitting.append((request, answer))
            except Exception as error:
                self._fail(answer.ticket, error)
        if fitting:
            try:
                sequences = model.generation.add([request for request, _ in fitting], at_once=False)
            except Exception as error:
                for _, answer in fitting:
                    self._fail(answer.ticket, error)
                return
            for sequence, (_, answer) in zip(sequences, fitting, strict=True):
                model.answers[id(sequence)] = sequence, answer

    def _step(self, model: HostedModel) -> None:
        """The next token of every answer."""
        ended = []
        for sequence in model.generation.step():
            _, answer = model.answers[id(sequence)]
            for item in answer.push(sequence):
                self._outbox.put(answer.ticket, item)
            if answer.is_ended:
                ended.append(sequence)
                del model.answers[id(sequence)]
                self._leave(answer.ticket)
        model.generation.remove(ended)

    def _guarded(self, model: HostedModel, act: Callable[[HostedModel], None]) -> None:
        """Do something with all answers of a model; where that fails, they all end, and others can follow."""
        try:
            act(model)
        except Exception as error:
            log.exception("The answers of a model could not be continued.")
            self._end_answers(model, error)

    def _leave_out_cancelled(self) -> None:
        gone = {ticket for ticket in self._running if ticket.is_cancelled}
        if not gone:
            return
        for ticket, work in list(self._work):
            if ticket in gone:
                self._work.remove((ticket, work))
                work.close()
        for model in self.models.values():
            model.ready = [pair for pair in model.ready if pair[1].ticket not in gone]
            left = [key for key, (_, answer) in model.answers.items() if answer.ticket in gone]
            model.generation.remove([model.answers.pop(key)[0] for key in left])
        for ticket in gone:
            self._leave(ticket)

    def _end_answers(self, model: HostedModel, error: Exception) -> None:
        for _, answer in model.answers.values():
            self._fail(answer.ticket, error)
        model.answers.clear()
        model.generation = Generation(model.backbone)

    def _end_all(self, error: Exception) -> None:
        for _, work in self._work:
            work.close()
        self._work.clear()
        for model in self.models.values():
            model.ready.clear()
            self._end_answers(model, error)
        for ticket in list(self._running):
            self._fail(ticket, error)
        for ticket in [*self.questions.clear(), *self.others.clear()]:
            self._outbox.put(ticket, error)

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        self._outbox.put(ticket, error)
        self._leave(ticket)

    def _leave(self, ticket: Ticket) -> None:
        self._running.pop(ticket, None)
        self.residents.leave(ticket)
