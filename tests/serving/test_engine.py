"""What an engine answers is what a session answers, whoever else asks; and what it keeps, it can let go of."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from byheart.errors import BusyError, InputError, MissingError, StateError, UnknownNameError, UsageError
from byheart.generation.decoding import Decoding
from byheart.generation.generate import Generation
from byheart.model.reading import KV
from byheart.model.slices import Slices
from byheart.protocol.state import Header
from byheart.serving.engine import LocalEngine
from byheart.serving.engine.hosted_model import HostedModel
from byheart.serving.jobs import Ask, Finished, MemoryRef, Message, NewText, Piece, Write
from byheart.session.opening import load, open_state
from byheart.session.session import Session
from byheart.text.encoder import ChatEncoder
from tests.conftest import tiny_tokenizer
from tests.samples import OPTIONS, backbone, codec_of

TEXTS = ["The cat is called Muck.", "Six ships sail at dawn, and no more come.", "A dog barks."]
QUESTIONS = ["What is the cat called?", "Ships?", "Who barks in the yard at night?"]
TALK = Decoding(max_tokens=12, temperature=1.5, seed=3)
METHODS = ["compact", "full", "ffn-lora", "retrieval"]


@cache
def encoder() -> ChatEncoder:
    return ChatEncoder(tiny_tokenizer())


def session(method: str, *texts: str) -> Session:
    made = load(backbone(), method=method, encoder=encoder(), **OPTIONS.get(method, {}))
    for text in texts:
        made.write(text)
    return made


class Saved:
    """A memory in a file, and how often it was fetched."""

    def __init__(self, path: Path, made: Session, tenant: str = "t") -> None:
        self.path, self.session, self.fetched = path, made, 0
        made.save(path)
        self.ref = MemoryRef(f"{tenant}:{hashlib.sha256(path.read_bytes()).hexdigest()}", self.fetch)

    def fetch(self) -> Path:
        self.fetched += 1
        return self.path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[Saved]:
    codec_of(backbone())
    folder = tmp_path_factory.mktemp("states")
    return [
        Saved(folder / f"{number}.safetensors", session(method, TEXTS[number % 3]))
        for number, method in enumerate(METHODS)
    ]


def make(**options: Any) -> LocalEngine:
    codec_of(backbone())
    return LocalEngine(
        {"tiny": backbone()}, encoders={"tiny": encoder()}, **{"max_resident": 1 << 30, "prefill_tokens": 8, **options}
    )


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    made = make()
    yield made
    made.close()


def asking(saved: Saved | None, question: str, decoding: Decoding = TALK, **options: Any) -> Ask:
    prompt = [Message("user", question)]
    return Ask("tiny", prompt, saved.ref if saved else None, decoding, **{"tenant": "t", **options})


async def said(engine: LocalEngine, job: Ask) -> tuple[str, Finished]:
    items = [item async for item in engine.ask(job)]
    assert isinstance(items[-1], Finished)
    return "".join(item.text for item in items[:-1] if isinstance(item, Piece)), items[-1]


def together(*calls: Awaitable[Any]) -> list[Any]:
    async def gather() -> list[Any]:
        return list(await asyncio.gather(*calls, return_exceptions=True))

    return asyncio.run(gather())


def expected(saved: Saved, question: str, decoding: Decoding = TALK, **options: Any) -> str:
    return "".join(saved.session.stream(question, decoding, **options))


# ---- answers ----


def test_answers_are_those_of_sessions_alone_and_together(engine: LocalEngine, saved: list[Saved]) -> None:
    decodings = [Decoding(max_tokens=4 + 2 * n, temperature=1.2, seed=n) for n in range(len(saved))]
    jobs = [(one, QUESTIONS[n % 3], decodings[n]) for n, one in enumerate(saved)]
    texts = [expected(*job) for job in jobs]
    assert any(texts)
    alone = [together(said(engine, asking(*job)))[0][0] for job in jobs]
    assert alone == texts
    # More than there are places: some join when others have left.
    rows = together(*(said(engine, asking(*job)) for job in [*jobs, *jobs, *jobs]))
    assert [text for text, _ in rows] == texts * 3
    assert [one.fetched for one in saved] == [1] * len(saved)


def test_greedy_and_contrasted_answers_stop_and_count_as_a_session_s(engine: LocalEngine, saved: list[Saved]) -> None:
    full = saved[1]
    for decoding in (Decoding(max_tokens=9), Decoding(max_tokens=9, context_aware=0.5)):
        [(text, end)] = together(said(engine, asking(full, QUESTIONS[0], decoding)))
        assert text == expected(full, QUESTIONS[0], decoding)
        assert end.cached_tokens == full.session.reading.slots
        assert end.prompt_tokens == end.cached_tokens + len(full.session.prompt(QUESTIONS[0]))
    stop = text[2:4]
    [(cut, end)] = together(said(engine, asking(full, QUESTIONS[0], decoding, stop=(stop,))))
    assert (cut, end.reason) == (text[: text.index(stop)], "stop")
    [(_, end)] = together(said(engine, asking(full, QUESTIONS[0], Decoding(max_tokens=1))))
    assert (end.reason, end.completion_tokens) == ("length", 1)


def test_a_conversation_without_a_memory_is_the_model_s_own(engine: LocalEngine) -> None:
    messages = [Message("system", "Hi."), Message("user", "A?"), Message("assistant", "B."), Message("user", "C?")]
    prompt = encoder().conversation([(message.role, message.content) for message in messages])
    job = Ask("tiny", messages, decoding=Decoding(max_tokens=7))
    [(text, end)] = together(said(engine, job))
    with torch.no_grad():
        made = backbone().model.generate(  # type: ignore[operator]
            prompt[None], max_new_tokens=7, do_sample=False, eos_token_id=[*encoder().stop_tokens], pad_token_id=0
        )
    assert text == encoder().decode(made[0, len(prompt) :])
    assert (end.cached_tokens, end.prompt_tokens) == (0, len(prompt))


def test_tokens_come_with_their_probabilities(engine: LocalEngine, saved: list[Saved]) -> None:
    async def pieces() -> list[Piece]:
        job = asking(saved[1], QUESTIONS[0], Decoding(max_tokens=5), logprobs=2)
        return [item async for item in engine.ask(job) if isinstance(item, Piece)]

    scores = [score for piece in asyncio.run(pieces()) for score in piece.scores]
    assert 0 < len(scores) <= 5
    for score in scores:
        # Greedy: the likeliest is the one that was chosen.
        assert score.likeliest[0] == (score.token, score.logprob)
        assert score.logprob < 0
        assert len(score.likeliest) == 2


# ---- what goes wrong ----


def test_errors_in_one_job_leave_the_others(engine: LocalEngine, saved: list[Saved], tmp_path: Path) -> None:
    def missing() -> Path:
        raise MissingError("There is no memory 'x'.")

    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(saved[0].path.read_bytes()[:-9])
    jobs = [
        asking(saved[1], QUESTIONS[0]),
        asking(saved[1], " "),
        asking(saved[1], "a" * 600),
        Ask("tiny", "x", MemoryRef("t:1", missing)),
        Ask("tiny", "x", MemoryRef("t:2", lambda: broken)),
        Ask("other", "x"),
        asking(saved[1], "x", stop=("",)),
        asking(saved[1], "x", Decoding(contrast=0.5)),
        asking(saved[0], QUESTIONS[1]),
    ]
    found = together(*(said(engine, job) for job in jobs))
    kinds = [InputError, InputError, MissingError, StateError, UnknownNameError, UsageError, UsageError]
    assert [type(error) for error in found[1:2]] == kinds[:1]
    for error, kind in zip(found[1:-1], kinds, strict=True):
        assert isinstance(error, kind)
    assert found[0][0] == expected(saved[1], QUESTIONS[0], TALK)
    assert found[-1][0] == expected(saved[0], QUESTIONS[1], TALK)
    assert engine.load.running == engine.load.waiting == 0


def test_a_fault_of_the_model_ends_its_answers_and_no_more(
    engine: LocalEngine, saved: list[Saved], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Generation, "step", fail)
        [error] = together(said(engine, asking(saved[1], "x")))
        assert "out of memory" in str(error)
    assert together(said(engine, asking(saved[1], "x")))[0][0] == expected(saved[1], "x", TALK)


def test_a_cancelled_answer_leaves_at_the_next_step(engine: LocalEngine, saved: list[Saved]) -> None:
    async def hang_up() -> None:
        async with aclosing(engine.ask(asking(saved[1], "x", Decoding(max_tokens=200, temperature=2.0, seed=1)))) as it:
            await anext(it)
            assert engine.load.running == 1
        await until(lambda: engine.load.running == 0)

    asyncio.run(hang_up())
    assert together(said(engine, asking(saved[1], "x")))[0][0] == expected(saved[1], "x", TALK)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come true")


class Gate:
    """A memory whose fetching waits until it may go on: it keeps a place in the engine."""

    def __init__(self, saved: Saved) -> None:
        self.reached, self.opened, self.saved = threading.Event(), threading.Event(), saved
        self.ref = MemoryRef("t:gate", self.fetch)

    def fetch(self) -> Path:
        self.reached.set()
        self.opened.wait(300)
        return self.saved.path


def test_a_full_queue_refuses_and_no_tenant_starves_another(saved: list[Saved]) -> None:
    engine, gate, ended = make(batch=1, queue=3), Gate(saved[1]), list[str]()

    async def one(name: str, tenant: str, ref: MemoryRef | None = None) -> None:
        await said(engine, Ask("tiny", [Message("user", "x")], ref, Decoding(max_tokens=1), tenant=tenant))
        ended.append(name)

    async def play() -> list[Any]:
        first = asyncio.create_task(one("first", "a", gate.ref))
        await until(lambda: engine.load.running == 1)
        tasks = [asyncio.create_task(one(f"a{n}", "a")) for n in range(4)]
        await until(lambda: engine.load.waiting == 3)
        tasks.append(asyncio.create_task(one("b", "b")))
        await asyncio.sleep(0)
        await until(lambda: engine.load.waiting == 3)
        gate.opened.set()
        return await asyncio.gather(first, *tasks, return_exceptions=True)

    found = asyncio.run(play())
    engine.close()
    assert [isinstance(error, BusyError) for error in found] == [False, False, False, True, True, False]
    # The fewest of b are running, so that it need not wait for all of a's.
    assert ended == ["first", "b", "a0", "a1"] or ended == ["first", "a0", "b", "a1"]


def test_questions_that_wait_for_files_leave_a_place_to_other_tenants(saved: list[Saved]) -> None:
    engine, opened = make(batch=2), threading.Event()

    def slow() -> Path:
        opened.wait(60)
        raise FileNotFoundError

    async def play() -> str:
        waiting = [
            asyncio.create_task(said(engine, Ask("tiny", "Who?", MemoryRef(f"a:{n}", slow), TALK, tenant="a")))
            for n in range(8)
        ]
        while not engine.load.running:
            await asyncio.sleep(0.002)
        text, _ = await said(engine, asking(None, QUESTIONS[0], tenant="b"))
        text += (await said(engine, asking(saved[1], QUESTIONS[0], tenant="b")))[0]
        assert not any(task.done() for task in waiting)
        opened.set()
        await asyncio.gather(*waiting, return_exceptions=True)
        return text

    assert asyncio.run(asyncio.wait_for(play(), 60))
    engine.close()


def test_closing_lets_what_runs_finish(saved: list[Saved]) -> None:
    engine, gate = make(), Gate(saved[1])

    async def play() -> list[Any]:
        some = Decoding(max_tokens=20, temperature=2.0, seed=1)
        jobs = [asking(None, "x", some), Ask("tiny", "x", gate.ref, some), asking(None, "y", some)]
        tasks = [asyncio.create_task(said(engine, job)) for job in jobs]
        await until(lambda: engine.load.running >= 2)
        gate.opened.set()
        await asyncio.to_thread(engine.close, 120.0)
        found = await asyncio.gather(*tasks, return_exceptions=True)
        return [*found, *await asyncio.gather(said(engine, asking(None, "x")), return_exceptions=True)]

    *done, refused = asyncio.run(play())
    assert all(isinstance(end, Finished) for _, end in done)
    assert isinstance(refused, BusyError)
    assert "shutting down" in str(refused)


def test_closing_at_once_says_so_to_who_waits(saved: list[Saved]) -> None:
    engine, gate = make(), Gate(saved[1])

    async def play() -> Any:
        task = asyncio.create_task(said(engine, Ask("tiny", "x", gate.ref)))
        await until(lambda: engine.load.running == 1)
        gate.opened.set()
        engine.close()
        return (await asyncio.gather(task, return_exceptions=True))[0]

    found = asyncio.run(play())
    assert isinstance(found, BusyError) or isinstance(found[1], Finished)


# ---- what is resident ----


def test_the_least_recently_used_make_room_and_are_opened_again(saved: list[Saved]) -> None:
    one, two = saved[0], saved[1]
    # With what is said of the one text of each.
    need = max(own.session.bytes + own.session.reading.bytes for own in (one, two)) + 1024
    engine, before = make(max_resident=need), (one.fetched, two.fetched)
    for own in (one, two, two, one):
        assert together(said(engine, asking(own, "x")))[0][0] == expected(own, "x", TALK)
    assert (one.fetched - before[0], two.fetched - before[1]) == (2, 1)
    assert engine.load.resident_bytes <= need
    # Together they are more than there is room for: one waits for the other.
    rows = together(*(said(engine, asking(own, "x")) for own in (one, two)))
    assert [text for text, _ in rows] == [expected(own, "x", TALK) for own in (one, two)]
    engine.close()


def test_a_file_that_goes_after_it_was_fetched_is_fetched_again(engine: LocalEngine, saved: list[Saved]) -> None:
    """A copy may have had to make room; of a memory that was deleted meanwhile the store says so."""
    own, gone = saved[1], saved[1].path.with_name("gone.safetensors")
    for last in (own.path, MissingError("deleted"), gone):
        given = iter([gone, last, gone])

        def fetch(given: Iterator[Path | MissingError] = given) -> Path:
            found = next(given)
            if isinstance(found, MissingError):
                raise found
            return found

        job = Ask("tiny", [Message("user", "x")], MemoryRef(f"t:{last}", fetch), TALK)
        [answer] = together(said(engine, job))
        if last == own.path:
            assert answer[0] == expected(own, "x")
        else:
            assert isinstance(answer, MissingError if isinstance(last, MissingError) else StateError)


def test_what_is_being_opened_takes_its_room_from_the_start(
    saved: list[Saved], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else those that are opened at once would take more than there is."""
    engine, at_once, seen, openly = make(max_resident=1), list[Path](), list[int](), HostedModel.open

    def watched(self: HostedModel, path: Path, header: Header, **more: Any) -> Slices[Session]:
        at_once.append(path)
        seen.append(len(at_once))
        yield None
        session = yield from openly(self, path, header, **more)
        at_once.remove(path)
        return session

    monkeypatch.setattr(HostedModel, "open", watched)
    rows = together(*(said(engine, asking(own, "x")) for own in saved[:2]))
    engine.close()
    assert [text for text, _ in rows] == [expected(own, "x", TALK) for own in saved[:2]]
    assert seen == [1, 1]


def test_what_is_dropped_is_gone_also_while_it_is_opened(engine: LocalEngine, saved: list[Saved]) -> None:
    together(said(engine, asking(saved[0], "x")), said(engine, asking(saved[1], "x")))
    assert engine.load.resident == 2
    assert engine.drop([saved[0].ref.key, "t:unknown"]) == 1
    assert engine.load.resident == 1
    gate = Gate(saved[0])

    async def play() -> str:
        task = asyncio.create_task(said(engine, Ask("tiny", "x", gate.ref, TALK)))
        await until(gate.reached.is_set)
        engine.drop([gate.ref.key])
        gate.opened.set()
        return (await task)[0]

    asyncio.run(play())
    assert engine.load.resident == 1


# ---- writing ----


@pytest.mark.parametrize("method", METHODS)
def test_a_write_is_a_session_s_and_stays_resident(engine: LocalEngine, tmp_path: Path, method: str) -> None:
    done: list[tuple[int, int]] = []
    options = OPTIONS.get(method, {})
    first = Write("tiny", [NewText(TEXTS[0], "a")], tmp_path, method=method, options=options, tenant="t")
    [made] = together(engine.write(first, lambda *counts: done.append(counts)))
    assert hashlib.sha256(made.path.read_bytes()).hexdigest() == made.sha256
    assert made.path.stat().st_size == made.bytes
    assert [entry.source for entry in made.entries] == ["a"]
    assert done[-1][0] == done[-1][1] == made.entries[0].tokens
    more = [NewText(TEXTS[1], "b"), NewText("Hm?", "chat", "No.")]
    ref = MemoryRef(f"t:{made.sha256}", lambda: made.path)
    [again] = together(engine.write(Write("tiny", more, tmp_path, ref, tenant="t")))
    assert [entry.source for entry in again.header.written] == ["a", "b", "chat"]

    def never() -> Path:
        raise AssertionError("it is resident")

    ours = session(method, *TEXTS[:2])
    ours.write_turn("Hm?", "No.")
    job = Ask("tiny", [Message("user", QUESTIONS[0])], MemoryRef(f"t:{again.sha256}", never), TALK, tenant="t")
    [(text, _)] = together(said(engine, job))
    assert text == "".join(ours.stream(QUESTIONS[0], TALK))
    opened = open_state(again.path, model=backbone(), encoder=encoder())
    assert "".join(opened.stream(QUESTIONS[0], TALK)) == text


def test_slots_of_a_version_that_was_dropped_are_not_kept_by_the_one_before(tmp_path: Path) -> None:
    engine, own = make(), Saved(tmp_path / "base.safetensors", session("compact", TEXTS[0]))
    before = own.session.reading.slots
    [made] = together(engine.write(Write("tiny", [NewText(TEXTS[1])], tmp_path, own.ref, tenant="t")))
    sizes = {slots for slots in _slots_in_memory() if slots > before}
    assert made.header.slots in sizes
    assert engine.drop([f"t:{made.sha256}"]) == 1
    assert made.header.slots not in _slots_in_memory()
    assert engine.residents == [own.ref.key]
    engine.close()


def _slots_in_memory() -> set[int]:
    gc.collect()
    return {each.slots for each in gc.get_objects() if type(each) is KV and each.keys}


def test_a_write_that_fails_or_is_cancelled_leaves_nothing(engine: LocalEngine, tmp_path: Path) -> None:
    jobs = [
        Write("tiny", [NewText(TEXTS[0]), NewText(" ")], tmp_path, method="full"),
        Write("tiny", [NewText("a" * 600)], tmp_path, method="full"),
        Write("tiny", [NewText("a")], tmp_path, method="../folder"),
        Write("tiny", [NewText("a")], tmp_path, method="full", options={"device": "cuda"}),
        Write("tiny", [NewText("a")], tmp_path, method="full", options={"chunk_tokens": 0}),
    ]
    found = together(*map(engine.write, jobs))
    assert [type(error) for error in found] == [InputError, InputError, UnknownNameError, UnknownNameError, UsageError]

    async def cancel() -> None:
        task = asyncio.create_task(engine.write(Write("tiny", [NewText("ab " * 80)], tmp_path, method="full")))
        await until(lambda: engine.load.running == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: engine.load.running == 0)

    asyncio.run(cancel())

    async def leave_late() -> None:
        """The state is made in the moment in which nobody waits for it any more."""
        task = asyncio.create_task(engine.write(Write("tiny", [NewText("ab")], tmp_path, method="full")))
        await asyncio.sleep(0)
        while not list(tmp_path.glob("*.safetensors")):
            # The loop is kept busy, so that what was made cannot be delivered before.
            time.sleep(0.001)
        time.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: engine.load.running == 0)
        await asyncio.sleep(0.05)

    asyncio.run(leave_late())
    assert list(tmp_path.iterdir()) == []


class SlowEncoder(ChatEncoder):
    """As where a text of millions of characters becomes tokens."""

    began, ended = 0.0, 0.0

    def document(self, text: str, *, first: bool, as_turn: bool) -> Any:
        SlowEncoder.began = SlowEncoder.began or time.monotonic()
        time.sleep(0.2)
        SlowEncoder.ended = time.monotonic()
        return super().document(text, first=first, as_turn=as_turn)


def test_a_stream_goes_on_while_a_text_becomes_tokens(tmp_path: Path) -> None:
    engine = LocalEngine({"tiny": backbone()}, max_resident=1 << 20, encoders={"tiny": SlowEncoder(tiny_tokenizer())})
    times: list[float] = []

    async def play() -> None:
        writing = asyncio.create_task(engine.write(Write("tiny", [NewText("ab")], tmp_path, method="full")))
        async for item in engine.ask(asking(None, "x", Decoding(max_tokens=200, temperature=3.0, seed=1))):
            if isinstance(item, Piece):
                times.append(time.monotonic())
        await writing

    asyncio.run(play())
    engine.close()
    assert sum(SlowEncoder.began < at < SlowEncoder.ended for at in times) >= 5


def test_a_tenants_only_write_does_not_wait_for_anothers(tmp_path: Path, saved: list[Saved]) -> None:
    engine, gates = make(), [Gate(saved[1]) for _ in range(2)]

    async def play() -> None:
        long = [
            asyncio.create_task(engine.write(Write("tiny", [NewText("a")], tmp_path, gate.ref, tenant="a")))
            for gate in gates
        ]
        await until(lambda: engine.load.running == 2)
        await asyncio.wait_for(engine.write(Write("tiny", [NewText("b")], tmp_path, method="full", tenant="b")), 60)
        for gate in gates:
            gate.opened.set()
        await asyncio.gather(*long)

    asyncio.run(play())
    engine.close()


def test_a_stream_goes_on_between_the_slices_of_a_write(engine: LocalEngine, tmp_path: Path) -> None:
    order: list[str] = []

    async def stream() -> None:
        async for item in engine.ask(asking(None, "x", Decoding(max_tokens=40, temperature=3.0, seed=1))):
            order.append("token") if isinstance(item, Piece) else None

    async def play() -> None:
        reading = asyncio.create_task(stream())
        await until(lambda: bool(order))
        job = Write("tiny", [NewText("abcd " * 40)], tmp_path, method="full", options={"chunk_tokens": 1024})
        await engine.write(job, lambda done, total: order.append("slice"))
        await reading

    asyncio.run(play())
    first, last = order.index("slice"), len(order) - 1 - order[::-1].index("slice")
    assert order[first:last].count("token") >= 10


def test_a_file_from_elsewhere_is_examined_before_it_is_kept(
    engine: LocalEngine, saved: list[Saved], tmp_path: Path
) -> None:
    assert together(engine.examine(saved[0].path, "tiny"))[0].method == METHODS[0]
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(saved[0].path.read_bytes()[:-1] + b"?")
    assert isinstance(together(engine.examine(broken, "tiny"))[0], StateError)
    assert engine.load.resident == 0
    assert engine.models == {"tiny": backbone().fingerprint}
