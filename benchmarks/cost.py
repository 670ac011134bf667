"""What each operation of byheart costs, as a ratio to a floor measured in the same run.

    python benchmarks/cost.py [--rounds 7] [--out benchmarks/results/cost.json] [--only NAME ...]

Ours and the floor take turns, so that a slow moment of the machine hits both; a row is the median over rounds of
each, and their ratio. Peak memory is that of the process while ours ran, above what it held before.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

import byheart
from byheart.methods import build
from byheart.model.backbone import Backbone
from byheart.model.loading import DEFAULT, open_model
from byheart.model.reading import KV, Reading
from byheart.protocol import state_file as states
from byheart.protocol.method import Method
from byheart.provenance import versions

TEXT = Path(__file__).resolve().parent.parent / "examples" / "warsaw.txt"

Timed = Callable[[], Any]
Measured = tuple[float, float, float | None]


@dataclass
class Row:
    """One line of the table. ``ratio`` is ours / floor; ``must`` is what it may be at most (or at least)."""

    name: str
    what: str
    floor: str
    must: str
    ratio: float
    seconds: float
    floor_seconds: float
    peak_mb: float | None
    note: str = ""


def _peak_reset() -> int | None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def seconds(run: Timed) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(ours: Timed, floor: Timed, rounds: int) -> Measured:
    """Median seconds of ours and of the floor, taking turns, and ours' peak memory in MiB."""
    ours(), floor()
    before = _peak_reset()
    ours()
    peak = None if before is None else (_status("VmHWM") - before) / 1024
    pairs = [(seconds(ours), seconds(floor)) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), peak


def seconds_of_a_step(together: Callable[[Sequence[int]], Timed], rows: int, rounds: int) -> float:
    """One decoding step of so many rows: the difference between long answers and short ones."""
    long, short = together([25] * rows), together([9] * rows)
    return statistics.median((seconds(long) - seconds(short)) / 16 for _ in range(rounds))


class Bench:
    """The model in two copies, byheart's and stock, and the rows measured on them."""

    def __init__(self, model: str, rounds: int) -> None:
        self.rounds = rounds
        self.backbone = Backbone.open(model)
        self.stock = open_model(model)
        self.layers = len(self.backbone.layers)
        self.cache_argument = self.backbone.anatomy.cache_argument
        self.rows: list[Row] = []
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(100, self.backbone.embedding.weight.shape[0], (1, 8192), generator=generator)

    def add(self, name: str, what: str, floor: str, must: str, timed: Measured, note: str = "") -> None:
        """Record a row and say it."""
        ours, base, peak = timed
        row = Row(name, what, floor, must, ours / base, ours, base, peak, note)
        self.rows.append(row)
        times = f"{ours * 1e3:9.1f} ms / {base * 1e3:9.1f} ms"
        print(f"{name:22s} {row.ratio:7.3f}  must {must:8s} {times}  peak {peak} {note}")

    def stock_cache(self, kv: KV) -> DynamicCache:
        """transformers' own cache holding the same slots."""
        cache = DynamicCache(config=self.stock.config)
        for index, (keys, values) in enumerate(zip(kv.keys, kv.values, strict=True)):
            cache.update(keys.clone(), values.clone(), index)
        return cache

    def stock_step(self, cache: DynamicCache, tokens: Tensor, *, logits: bool = True) -> None:
        """Run the stock model over a cache and put the cache back."""
        hidden = self.stock.get_decoder()(input_ids=tokens, **{self.cache_argument: cache}).last_hidden_state
        if logits:
            self.stock.lm_head(hidden[:, -1]).float()
        cache.crop(-tokens.shape[1])

    def plain(self, tokens: Tensor) -> None:
        """A plain forward pass, no cache and no logits."""
        self.stock.get_decoder()(input_ids=tokens, use_cache=False)

    # ---- rows ----

    def _pool(self) -> tuple[Any, states.State]:
        method = build("latent-pool", self.backbone, slots=256, blocks=30)
        method.fill(torch.randn(self.layers, 7680, self.backbone.dim).to(self.backbone.dtype))
        return method, method.init()

    def latent_pool_write(self) -> None:
        method, state = self._pool()
        text = self.tokens[:, :512]
        timed = compare(lambda: method.write(state, text), lambda: self.plain(text), self.rounds)
        self.add("latent-pool write", "512 tokens, pool of 30 x 256", "plain forward, no logits", "<= 1.10", timed)

    def latent_pool_question(self) -> None:
        method, state = self._pool()
        question = self.tokens[:, :32]
        stock = self.stock_cache(method.read(state).prefix)

        def ours() -> None:
            with self.backbone.reading([method.read(state)], room=64) as cache:
                self.backbone.logits(self.backbone.hidden(question, cache=cache)[:, -1])

        timed = compare(ours, lambda: self.stock_step(stock, question), self.rounds)
        self.add(
            "latent-pool question",
            "first 32-token question after a write, pool of 30 x 256",
            "stock model over an equally long KV prefix",
            "<= 1.15",
            timed,
        )

    def _prefix(self, slots: int) -> KV:
        shapes = [kv.shape for kv in self.backbone.prefill(self.tokens[:, :2]).keys]
        make = lambda s: torch.randn(1, s[1], slots, s[3]).to(self.backbone.dtype)  # noqa: E731
        return KV(tuple(make(s) for s in shapes), tuple(make(s) for s in shapes))

    def _decoder(self, slots: int) -> Timed:
        with self.backbone.reading([Reading(self._prefix(slots))], room=64) as cache:
            pass
        token = self.tokens[:, :1]

        def ours() -> None:
            self.backbone.logits(self.backbone.hidden(token, cache=cache)[:, -1])
            cache.crop(-1)

        return ours

    def decode_token(self) -> None:
        for slots in (64, 1024, 7680):
            stock = self.stock_cache(self._prefix(slots))
            timed = compare(
                self._decoder(slots), lambda c=stock: self.stock_step(c, self.tokens[:, :1]), self.rounds * 5
            )
            self.add(f"decode over {slots}", "one token, any KV memory", "the stock model", "<= 1.05", timed)

    def decode_bytes(self) -> None:
        slots = 7680
        prefix = self._prefix(slots)
        weights = sum(p.nbytes for p in {id(p): p for p in self.backbone.model.parameters()}.values())
        held = sum(t.nbytes for t in prefix.keys + prefix.values)
        source = torch.empty(1 << 28, dtype=torch.uint8).fill_(1)
        target = torch.empty_like(source)
        ours, copy, peak = compare(self._decoder(slots), lambda: target.copy_(source), self.rounds * 3)
        per_byte = copy / source.nbytes
        speed = f"copies {1e-9 / per_byte:.1f} GB/s"
        note = f"{speed}; counting bytes read and written, the ratio is {ours / ((weights + held) * per_byte / 2):.2f}"
        self.add(
            "decode bandwidth",
            f"one token over {slots} slots",
            "time to copy the bytes of weights and KV",
            "<= 2",
            (ours, (weights + held) * per_byte, peak),
            note,
        )

    def compressed_write(self) -> None:
        method = build("compressed-kv", self.backbone, tokens=4, segment_tokens=0)
        state, text = method.init(), self.tokens[:, :512]
        timed = compare(lambda: method.write(state, text), lambda: self.plain(text), self.rounds)
        self.add("compressed-kv write", "512 tokens to 4", "plain forward, no logits", "<= 1.10", timed)

    def last_ffn(self) -> None:
        method = build("last-ffn", self.backbone, steps=10, keep_text=False)
        state, text = method.init(), self.tokens[:, :256]
        with torch.no_grad():
            prepare = statistics.median(seconds(lambda: method._prepare(text, 1)) for _ in range(self.rounds))
        ours, floor, peak = compare(lambda: method.write(state, text), self._bare_products(255, 10), self.rounds)
        note = f"the whole write, less {prepare * 1e3:.0f} ms for reading the text once"
        self.add(
            "last-ffn tuning",
            "10 steps on 256 tokens",
            "bare products of the block and the head, forward and backward",
            "<= 1.3",
            (ours - prepare, floor, peak),
            note,
        )

    def _bare_products(self, tokens: int, steps: int) -> Timed:
        """The products one step cannot avoid, in the types that the tuning uses: fp32 block, the model's head."""
        head = self.backbone.head.weight
        block = [self.backbone.linear(p).weight.float() for p in self.backbone.feed_forward_roles(self.layers - 1)]
        up, down = block[0], block[-1]
        x = torch.randn(tokens, up.shape[1])
        inner, states_ = torch.randn(tokens, up.shape[0]), torch.randn(tokens, head.shape[1]).to(head.dtype)
        logits = torch.randn(tokens, head.shape[0]).to(head.dtype)

        def run() -> None:
            for _ in range(steps):
                x @ up.T, x @ up.T, inner @ down.T
                states_ @ head.T, logits @ head
                x @ down, x.T @ inner, inner.T @ x, inner.T @ x

        return run

    def contrast(self) -> None:
        method = build("last-ffn", self.backbone, steps=1, keep_text=True)
        reading = method.read(method.write(method.init(), self.tokens[:, :256]))

        def decode(strength: float | None) -> Timed:
            how = byheart.Decoding(max_tokens=33, contrast=strength)
            return lambda: list(byheart.generate(self.backbone, [self.tokens[0, :1]], [reading], decoding=how))

        timed = compare(decode(0.5), decode(None), self.rounds)
        self.add("contrastive decoding", "per token", "plain decoding", "<= 1.15", timed)

    def batch(self) -> None:
        text = self.tokens[:, :512]
        made = [
            build("full", self.backbone),
            build("window", self.backbone, recent=128),
            build("compressed-kv", self.backbone),
            build("latent-pool", self.backbone),
            build("last-ffn", self.backbone, steps=1),
            build("ffn-lora", self.backbone, steps=1),
            build("nothing", self.backbone),
            build("compressed-kv", self.backbone, merge="mean"),
        ]
        with torch.no_grad():
            readings = [m.read(m.write(m.init(), text)) for m in made]
        prompts = [self.tokens[0, 600 + 20 * n : 616 + 20 * n] for n in range(8)]
        how = byheart.Decoding(max_tokens=32)

        def together() -> None:
            list(byheart.generate(self.backbone, prompts, readings, decoding=how))

        def apart() -> None:
            for prompt, reading in zip(prompts, readings, strict=True):
                list(byheart.generate(self.backbone, [prompt], [reading], decoding=how))

        ours, base, peak = compare(together, apart, max(3, self.rounds // 2))
        self.add(
            "8 sessions together",
            "8 different memories in one batch",
            "one after another",
            ">= 5x",
            (ours, base, peak),
            f"{base / ours:.2f} times the tokens per second",
        )

    def ragged(self) -> None:
        """Answers that end after 4, 8 ... 32 tokens, against steps of as many rows as are still running."""
        text = self.tokens[:, :512]
        method = build("full", self.backbone)
        with torch.no_grad():
            reading = method.read(method.write(method.init(), text))
        prompts = [self.tokens[0, 600 + 20 * n : 616 + 20 * n] for n in range(8)]

        def together(lengths: Sequence[int]) -> Timed:
            decodings = [byheart.Decoding(max_tokens=length) for length in lengths]
            chosen = prompts[: len(lengths)], [reading] * len(lengths)
            return lambda: list(byheart.generate(self.backbone, *chosen, decoding=decodings))

        lengths = [4 * (n + 1) for n in range(8)]
        steps = {rows: seconds_of_a_step(together, rows, self.rounds) for rows in range(1, 9)}
        first = statistics.median(seconds(together([1] * 8)) for _ in range(self.rounds))
        live = first + sum(steps[sum(length > step for length in lengths)] for step in range(1, max(lengths)))
        ours = statistics.median(seconds(together(lengths)) for _ in range(self.rounds))
        whole = statistics.median(seconds(together([max(lengths)] * 8)) for _ in range(self.rounds))
        self.add(
            "8 answers of 4 to 32 tokens",
            "one batch, rows leave as they end",
            "the same steps with the rows that are live",
            "<= 1.1",
            (ours, live, None),
            f"all rows to the end take {whole / ours:.2f} times as long",
        )

    def stored(self) -> None:
        timed = self._from_disk(build("full", self.backbone), self.tokens[:, :4000], max(3, self.rounds // 2))
        self.add("stored text", "ask about 4,000 tokens from disk", "prefill the text again", "<= 0.1", timed)

    def compact(self) -> None:
        method = build("compact", self.backbone)
        # Noise has no tokens that a codec knows.
        text = byheart.load(self.backbone, method="full").document(TEXT.read_text(encoding="utf-8"))[:, :2000]
        written = compare(lambda: method.write(method.init(), text), lambda: self.plain(text), self.rounds)
        self.add("compact write", "2,000 tokens, 30 times smaller", "plain forward, no logits", "<= 1.15", written)
        timed = self._from_disk(method, text, self.rounds)
        self.add("compact question", "ask about 2,000 tokens from disk", "prefill the text again", "<= 0.08", timed)

    def _from_disk(self, method: Method, text: Tensor, rounds: int) -> Measured:
        """The first token of an answer from a state file, and from the text read again."""
        question = self.tokens[:, 4100:4132]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "text.safetensors"
            header = states.Header(method.name, method.options(), self.backbone.fingerprint, "", "", DEFAULT)
            states.save(path, method.write(method.init(), text), header)

            def ours() -> None:
                state, _ = states.load(path)
                # A method may remember what it read last.
                fresh = build(method.name, self.backbone)
                with self.backbone.reading([fresh.read(state)], room=64) as cache:
                    self.backbone.logits(self.backbone.hidden(question, cache=cache)[:, -1])

            def floor() -> None:
                whole = torch.cat([text, question], dim=1)
                self.stock.lm_head(self.stock.get_decoder()(input_ids=whole).last_hidden_state[:, -1])

            return compare(ours, floor, rounds)


ALL = (
    "latent_pool_write",
    "latent_pool_question",
    "decode_token",
    "decode_bytes",
    "compressed_write",
    "last_ffn",
    "contrast",
    "batch",
    "ragged",
    "stored",
    "compact",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", choices=ALL, default=list(ALL))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cost.json")
    given = parser.parse_args(argv)
    bench = Bench(given.model, given.rounds)
    with torch.inference_mode():
        for name in given.only:
            if name != "last_ffn":
                getattr(bench, name)()
    if "last_ffn" in given.only:
        bench.last_ffn()
    about = {
        **versions(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "dtype": str(bench.backbone.dtype),
        "model": given.model,
        "rounds": given.rounds,
    }
    if given.only == list(ALL):
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps({"about": about, "rows": [asdict(r) for r in bench.rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
