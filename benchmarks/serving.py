"""What an engine costs over the library, and what it saves where many ask: ratios, both sides measured in the same run.

    python benchmarks/serving.py [--model smollm2] [--method compact] [--clients 8] [--memory-tokens 2000]
                                 [--answer-tokens 48] [--rounds 3] [--only NAME ...] [--out FILE]

A row is the median over rounds of each side, and their ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from byheart.generation.decoding import Decoding
from byheart.model.backbone import Backbone
from byheart.model.loading import DEFAULT
from byheart.provenance import versions
from byheart.serving.engine import LocalEngine
from byheart.serving.jobs import Ask, Finished, MemoryRef, Message, NewText, Piece, Write
from byheart.session.opening import load, open_state

TEXT = Path(__file__).resolve().parent.parent / "examples" / "warsaw.txt"
QUESTION = "What was the city like, and who lived there? Tell all of it at length."


@dataclass
class Row:
    """One line of the table: ``ratio`` is ours / floor, and ``must`` what it may be."""

    name: str
    must: str
    ratio: float
    ours: float
    floor: float


@dataclass
class Bench:
    """An engine with a model, and memories of texts of so many tokens."""

    engine: LocalEngine
    backbone: Backbone
    folder: Path
    method: str
    answer_tokens: int

    async def write(self, text: str) -> MemoryRef:
        """A resident memory of a text."""
        made = await self.engine.write(Write("model", [NewText(text)], self.folder, method=self.method))
        return MemoryRef(f":{made.sha256}", lambda: made.path)

    def ask(self, ref: MemoryRef | None, seed: int = 0, prompt: str = QUESTION) -> AsyncIterator[Piece | Finished]:
        """An answer that is sampled, so that it does not end soon."""
        decoding = Decoding(max_tokens=self.answer_tokens, temperature=1.0, seed=seed)
        return self.engine.ask(Ask("model", [Message("user", prompt)], ref, decoding, tenant=str(seed)))

    async def tokens(self, ref: MemoryRef | None, seed: int = 0) -> int:
        """How many tokens an answer had."""
        async for item in self.ask(ref, seed):
            if isinstance(item, Finished):
                return item.completion_tokens
        return 0

    async def first(self, ref: MemoryRef | None, prompt: str = QUESTION) -> float:
        """Seconds until the first text of an answer."""
        start = time.perf_counter()
        async for _ in self.ask(ref, prompt=prompt):
            return time.perf_counter() - start
        return float("nan")


async def _seconds(work: Awaitable[object]) -> float:
    start = time.perf_counter()
    await work
    return time.perf_counter() - start


async def over_library(bench: Bench, refs: list[MemoryRef], texts: list[str], rounds: int) -> Row:
    """Seconds per token of one client, over those of a session."""
    session = open_state(refs[0].fetch(), model=bench.backbone)
    ours, floor = [], []
    for seed in range(rounds + 1):
        decoding = Decoding(max_tokens=bench.answer_tokens, temperature=1.0, seed=seed)
        start = time.perf_counter()
        answer = "".join(session.stream(QUESTION, decoding))
        seconds, count = time.perf_counter() - start, max(1, len(session.encoder.continuation(answer)))
        floor.append(seconds / count)
        ours.append(await _seconds(bench.tokens(refs[0], seed)) / count)
    return _row("one client over the library, per token", "<= 1.05", ours[1:], floor[1:])


async def together(bench: Bench, refs: list[MemoryRef], texts: list[str], rounds: int) -> Row:
    """Tokens per second of all clients at once, over one after another."""
    ours, floor = [], []
    for seed in range(rounds):
        start = time.perf_counter()
        counts = [await bench.tokens(ref, seed + n) for n, ref in enumerate(refs)]
        floor.append(sum(counts) / (time.perf_counter() - start))
        start = time.perf_counter()
        counts = await asyncio.gather(*(bench.tokens(ref, seed + n) for n, ref in enumerate(refs)))
        ours.append(sum(counts) / (time.perf_counter() - start))
    return _row(f"{len(refs)} clients and memories together, tokens per second", ">= 3.5", ours, floor)


async def one_memory(bench: Bench, refs: list[MemoryRef], texts: list[str], rounds: int) -> Row:
    """The same about one memory."""
    return replace(
        await together(bench, refs[:1] * len(refs), texts, rounds), name="clients of one memory together", must=""
    )


async def first_token(bench: Bench, refs: list[MemoryRef], texts: list[str], rounds: int) -> Row:
    """Seconds until the first text about a resident memory, over reading the text again."""
    floor = [await bench.first(None, f"{texts[0]}\n\n{QUESTION}") for _ in range(rounds)]
    ours = [await bench.first(refs[0]) for _ in range(rounds)]
    return _row("first text, resident over re-read", "<= 0.03", ours, floor)


async def from_disk(bench: Bench, refs: list[MemoryRef], texts: list[str], rounds: int) -> Row:
    """Seconds until the first text about a memory in a file, over reading the text again."""
    ours, floor = [], []
    for _ in range(rounds):
        floor.append(await bench.first(None, f"{texts[0]}\n\n{QUESTION}"))
        bench.engine.drop([refs[0].key])
        ours.append(await bench.first(refs[0]))
    return _row("first text, from disk over re-read", "<= 0.06", ours, floor)


async def gap(bench: Bench, refs: list[MemoryRef], texts: list[str], rounds: int) -> Row:
    """The longest gap between tokens of a stream while 4,000 tokens are written, over the median gap."""
    longest, median = [], []
    for _ in range(rounds):
        writing = asyncio.create_task(bench.write(" ".join(texts[:2])))
        gaps: list[float] = []
        seed = 0
        while not writing.done():
            before = None
            async for item in bench.ask(refs[0], seed):
                now = time.perf_counter()
                if before is not None and isinstance(item, Piece) and not writing.done():
                    gaps.append(now - before)
                before = now
            seed += 1
        bench.engine.drop([(await writing).key])
        longest.append(max(gaps))
        median.append(statistics.median(gaps))
    return _row("longest gap over the median gap beside a write", "<= 4", longest, median)


ROWS: dict[str, Callable[[Bench, list[MemoryRef], list[str], int], Awaitable[Row]]] = {
    each.__name__: each for each in (over_library, together, one_memory, first_token, from_disk, gap)
}


def _row(name: str, must: str, ours: list[float], floor: list[float]) -> Row:
    one, other = statistics.median(ours), statistics.median(floor)
    return Row(name, must, one / other, one, other)


async def measure(bench: Bench, arguments: argparse.Namespace) -> list[Row]:
    """All rows, or those that are asked for."""
    encoder = load(bench.backbone, method="full").encoder
    whole = encoder.cut(TEXT.read_text(encoding="utf-8") * 8, arguments.memory_tokens)
    texts = [f"Part {number}. {whole}" for number in range(arguments.clients)]
    refs = [await bench.write(text) for text in texts]
    rows = []
    for name in arguments.only or ROWS:
        rows.append(await ROWS[name](bench, refs, texts, arguments.rounds))
        print(f"{rows[-1].name}: {rows[-1].ratio:.3f} (must be {rows[-1].must or 'reported'})", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=DEFAULT)
    parser.add_argument("--method", default="compact")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--memory-tokens", type=int, default=2000)
    parser.add_argument("--answer-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(ROWS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    backbone = Backbone.open(arguments.model)
    engine = LocalEngine({"model": backbone}, max_resident=4 << 30, batch=arguments.clients)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(engine, backbone, Path(folder), arguments.method, arguments.answer_tokens)
        rows = asyncio.run(measure(bench, arguments))
    engine.close()
    if arguments.out:
        result = {"versions": versions(), "model": arguments.model, "rows": [asdict(row) for row in rows]}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
