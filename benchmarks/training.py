"""What a training step of the parallel compressed-kv loss costs beside plain LoRA fine-tuning on the same text.

    python benchmarks/training.py [--rounds 7] [--dtype bfloat16] [--out benchmarks/results/training.json] [--quick]

A step is loss, backward and AdamW on the learned parts. All train the same linear layers at the same rank on
the same tokens in one episode; what is counted is tokens of text, never marks:

    parallel loss   segments and a target of 64 tokens, 4 marks a segment, LoRA at the marks; `every_segment=1.0`
    plain LoRA      the text as one sequence, LoRA at every position, next-token loss at every position
    same targets    plain LoRA, but supervised only where the parallel loss is: it leaves out the first segment and
                    each segment's first token, which nothing in its row predicts
    PEFT LoRA       plain LoRA by PEFT on the stock model with its own loss, where `peft` is installed

Contestants take turns, round by round, in an order that moves on by one; tokens per second are medians over rounds,
a ratio is the median of the rounds' own ratios; long texts have half the rounds. Peak memory is that of a fresh process
while it takes a step, above what it held once the model was loaded and had run once. It knows nothing of how well
anything learns, and no GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from byheart.methods.compressed_kv import CompressedKV
from byheart.model.backbone import Backbone
from byheart.model.loading import DEFAULT, open_model, silence
from byheart.model.lora import LoRA
from byheart.model.losses import next_token_loss, token_losses
from byheart.protocol.episode import Batch, Episode, collate
from byheart.protocol.objective import Objective
from byheart.testing import tiny_backbone, tiny_model

SEGMENT, MARKS, EVERY_SEGMENT = 64, 4, 1.0
OURS, PLAIN, SAME, PEFT = "parallel loss", "plain LoRA", "same targets", "PEFT LoRA"
TINY = "tiny"
RATIOS = {512: ">= 1.0", 4096: ">= 1.2"}
LINEAR = "<= 2.1"
SHORT, LONG = (512, 4096), (512, 1024, 2048, 4096)
MANY = 1024
QUICK = ((128,), (128, 192))


@dataclass(frozen=True)
class Setup:
    """What all contestants have in common."""

    model: str
    dtype: str
    rank: int
    linears: str

    def backbone(self) -> Backbone:
        """A model of its own, so that no contestant sees another's hooks."""
        return tiny_backbone() if self.model == TINY else Backbone.open(self.model, dtype=self.dtype, device="cpu")

    def stock(self) -> Any:
        """The model without byheart's attention."""
        if self.model == TINY:
            return tiny_model()
        return open_model(self.model, dtype=self.dtype, device="cpu").requires_grad_(False)

    def flags(self) -> list[str]:
        """The command line that gives this set-up."""
        return [part for name, value in asdict(self).items() for part in (f"--{name}", str(value))]


@dataclass(frozen=True)
class Row:
    """One line of the results. ``required`` is what the value must keep to; empty where nothing is asked."""

    name: str
    value: float
    unit: str
    required: str = ""


class Contestant:
    """One way to train, with its optimizer."""

    def __init__(self, loss: Callable[[Tensor], Tensor], parameters: Iterable[Tensor], *, backbone: Backbone) -> None:
        self.loss = loss
        self.vocabulary = len(backbone.embedding.weight)
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step(self, tokens: Tensor) -> float:
        """Learn from ``tokens`` (1, T) once; gives the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        value = self.loss(tokens)
        value.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return value.item()

    def seconds(self, tokens: Tensor) -> float:
        """Wall time of a step."""
        start = time.perf_counter()
        self.step(tokens)
        return time.perf_counter() - start


def text(vocabulary: int, tokens: int) -> Tensor:
    """Random token ids (1, tokens), always the same."""
    return torch.randint(3, vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))


def episode(tokens: Tensor) -> Batch:
    """All of ``tokens`` as segments and, the last of them, the target."""
    *segments, target = torch.split(tokens[0], SEGMENT)
    return collate([Episode(tuple(segments), target)])


def supervised(tokens: Tensor) -> Tensor:
    """Indices of the tokens that the parallel loss predicts."""
    return episode(tokens).weights(EVERY_SEGMENT)[0].nonzero().squeeze(1)


def memory_of(setup: Setup, backbone: Backbone) -> CompressedKV:
    """The memory that is trained."""
    options = {"rank": setup.rank, "linears": setup.linears, "segment_tokens": SEGMENT}
    return CompressedKV(backbone, tokens=MARKS, **options)  # type: ignore[arg-type]


def parallel(setup: Setup) -> Contestant:
    """The parallel loss."""
    method = memory_of(setup, setup.backbone()).train()

    def loss(tokens: Tensor) -> Tensor:
        return method.loss(episode(tokens), Objective(every_segment=EVERY_SEGMENT))

    return Contestant(loss, method.parameters(), backbone=method.backbone)


def plain(setup: Setup, *, same_targets: bool = False) -> Contestant:
    """Plain LoRA fine-tuning; with ``same_targets`` supervised where the parallel loss is."""
    backbone = setup.backbone()
    lora = LoRA(backbone, memory_of(setup, backbone).lora.paths, rank=setup.rank, alpha=16.0)

    def loss(tokens: Tensor) -> Tensor:
        with lora.active(backbone):
            hidden = backbone.hidden(tokens)
        if not same_targets:
            return next_token_loss(backbone, hidden, tokens)
        at = supervised(tokens)
        return token_losses(backbone, hidden[0, at - 1], tokens[0, at]).total.mean()

    return Contestant(loss, lora.parameters(), backbone=backbone)


def peft(setup: Setup) -> Contestant:
    """Plain LoRA fine-tuning by PEFT, with the stock model's attention and loss."""
    from peft import LoraConfig, get_peft_model

    stock = setup.stock()
    backbone = Backbone(stock)
    paths = memory_of(setup, backbone).lora.paths
    targets = sorted({path.rpartition(".")[2] for path in paths})
    model: Any = get_peft_model(stock, LoraConfig(r=setup.rank, lora_alpha=16, target_modules=targets)).train()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def loss(tokens: Tensor) -> Tensor:
        value: Tensor = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        return value

    return Contestant(loss, learned, backbone=backbone)


CONTESTANTS: dict[str, Callable[[Setup], Contestant]] = {
    OURS: parallel,
    PLAIN: plain,
    SAME: lambda setup: plain(setup, same_targets=True),
}
if importlib.util.find_spec("peft"):
    CONTESTANTS[PEFT] = peft


# ---- speed ----


def take_turns(contestants: Mapping[str, Contestant], tokens: Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant's steps, one a round, after one step that does not count."""
    names = list(contestants)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for contestant in contestants.values():
        contestant.step(tokens)
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            taken[name].append(contestants[name].seconds(tokens))
    return taken


def speed_rows(taken: Mapping[str, Sequence[float]], tokens: int) -> list[Row]:
    """Tokens per second of each contestant, and ours against each other."""
    rows = [
        Row(f"{name}, {tokens} tokens", tokens / statistics.median(each), "tokens/s") for name, each in taken.items()
    ]
    for name, each in taken.items():
        if name != OURS:
            ratio = statistics.median(theirs / ours for ours, theirs in zip(taken[OURS], each, strict=True))
            required = RATIOS.get(tokens, "") if name == PLAIN else ""
            rows.append(Row(f"{OURS} / {name}, {tokens} tokens", ratio, "times the speed", required))
    return rows


def measure_speed(setup: Setup, lengths: Sequence[int], rounds: int) -> list[Row]:
    """All contestants at each length."""
    contestants = {name: make(setup) for name, make in CONTESTANTS.items()}
    rows = []
    for length in lengths:
        tokens = text(contestants[OURS].vocabulary, length)
        few = length > MANY
        # In a long text the targets are nearly the same, and a step of plain LoRA takes minutes.
        chosen = {name: each for name, each in contestants.items() if not (few and name == SAME)}
        rows += say(speed_rows(take_turns(chosen, tokens, max(2, rounds // 2) if few else rounds), length))
        rows += say([Row(f"supervised by the {OURS}, {length} tokens", len(supervised(tokens)), "tokens")])
    return rows


# ---- memory ----


def peak_bytes(setup: Setup, name: str, length: int) -> int:
    """Most memory during a step, above what was held before; right only in a process that did nothing else."""
    torch.manual_seed(0)
    contestant = CONTESTANTS[name](setup)
    tokens = text(contestant.vocabulary, length)
    with torch.no_grad():
        # Weights that lie in a mapped file are read in now.
        contestant.loss(tokens[:, : 2 * SEGMENT])
    before = _held()
    contestant.step(tokens)
    return _most() - before


def _held() -> int:
    """Bytes held now, with the most ever held set to that where the system can; else the most ever held."""
    # What the warm-up freed would else count as held, and the step have it for nothing.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _most()


def _most() -> int:
    """The most bytes this process has held."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    # A process that was forked from a large one starts with the other's peak here, so this is the second choice.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def fresh_peak(setup: Setup, name: str, length: int) -> int:
    """``peak_bytes`` in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--peak", name, str(length), *setup.flags()]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def memory_rows(name: str, peaks: Mapping[int, int]) -> list[Row]:
    """Peaks by length, what a token adds by a straight line through them, and how each doubling went."""
    slope, at_zero = statistics.linear_regression(list(peaks), list(peaks.values()))
    off = max(abs(at_zero + slope * length - peak) / peak for length, peak in peaks.items())
    rows = [Row(f"peak, {name}, {length} tokens", peak / 2**20, "MiB") for length, peak in peaks.items()]
    rows.append(Row(f"peak, {name}, straight line: a token", slope, "bytes"))
    rows.append(Row(f"peak, {name}, straight line: without a token", at_zero / 2**20, "MiB"))
    rows.append(Row(f"peak, {name}, straight line: largest miss", 100 * off, "%"))
    for less, more in pairwise(peaks):
        required = LINEAR if name == OURS and more == 2 * less else ""
        rows.append(Row(f"peak, {name}, {more} / {less} tokens", peaks[more] / peaks[less], "times", required))
    return rows


def measure_memory(setup: Setup, names: Sequence[str], lengths: Sequence[int]) -> list[Row]:
    """The contestants ``names`` at each length."""
    rows = []
    for name in names:
        rows += say(memory_rows(name, {length: fresh_peak(setup, name, length) for length in lengths}))
    return rows


# ---- results ----


def say(rows: list[Row]) -> list[Row]:
    """Print rows as they come."""
    for row in rows:
        print(f"{row.name:55s} {row.value:12.3f} {row.unit:16s} {row.required}", flush=True)
    return rows


def about(setup: Setup, rounds: int) -> dict[str, Any]:
    """All that decided the results."""
    counted = "tokens of text, target included; marks are not"
    fixed = {"segment": SEGMENT, "marks": MARKS, "every_segment": EVERY_SEGMENT, "counted": counted}
    made = {"threads": torch.get_num_threads(), "machine": platform.machine(), "rounds": rounds}
    return {"versions": _versions(), **made, **asdict(setup), **fixed}


def _versions() -> dict[str, str]:
    found = {}
    for package in ("byheart", "torch", "transformers", "peft"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "run from its source" if package == "byheart" else "absent"
    return found


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=DEFAULT)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--linears", default="attention", choices=("attention", "all"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-memory", action="store_true", help="measure speed only")
    parser.add_argument("--quick", action="store_true", help="a tiny model and short texts: does it run?")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "training.json")
    parser.add_argument("--peak", nargs=2, metavar=("NAME", "TOKENS"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write the JSON."""
    given = parsed(argv)
    silence()
    setup = Setup(TINY if given.quick else given.model, given.dtype, given.rank, given.linears)
    if given.peak:
        print(peak_bytes(setup, given.peak[0], int(given.peak[1])))
        return
    speeds, peaks = QUICK if given.quick else (SHORT, LONG)
    # Memory first: a large process's children may begin with its peak.
    rows = [] if given.no_memory else measure_memory(setup, (OURS,) if given.quick else (OURS, PLAIN), peaks)
    rows += measure_speed(setup, speeds, 2 if given.quick else given.rounds)
    if given.no_memory:
        return
    results = {"about": about(setup, given.rounds), "rows": [asdict(row) for row in rows]}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
