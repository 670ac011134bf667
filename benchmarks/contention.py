"""How long a write takes beside busy processes, over its fair share of the machine.

    python benchmarks/contention.py            a quarter of an hour; the machine must have nothing else to do

The fair share of a write with as many threads as cores, beside processes of n threads in all, is its idle time
times (cores + n) / cores. PyTorch's threads wait for one another by spinning; where other processes want the cores, a
thread that spins takes them from the one it waits for. Measured are waiting policies of libgomp, set in the environment
of the process that writes; the neighbours have none.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOKENS = 385
# A policy is what the environment of the writing process has.
POLICIES: Mapping[str, Mapping[str, str]] = {
    "none": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin 100": {"GOMP_SPINCOUNT": "100"},
    "spin 1,000": {"GOMP_SPINCOUNT": "1000"},
    "spin 10,000": {"GOMP_SPINCOUNT": "10000"},
}
NEIGHBOURS: Mapping[str, str] = {
    "plain loops": "while True: pass",
    "torch": "import torch\na = torch.randn(768, 768)\nwhile True: a @ a",
}
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Measured:
    """Median seconds of a write beside ``busy`` processes; ``share`` is that over the fair share of the idle time."""

    policy: str
    neighbours: str
    busy: int
    seconds: float
    share: float


def write_repeatedly(model: str, rounds: int) -> None:
    """Print the seconds of each write; the process that is measured."""
    import torch

    from byheart import load

    session = load(model, method="full")
    text = (ROOT / "examples" / "warsaw.txt").read_text(encoding="utf-8")
    text = session.encoder.decode(session.encoder.continuation(text)[:TOKENS])
    with torch.inference_mode():
        for _ in range(rounds + 1):
            start = time.perf_counter()
            session.fork().write(text)
            print(time.perf_counter() - start, flush=True)


def median_write(policy: str, model: str, rounds: int) -> float:
    """Median seconds of a write in a process of its own, whose first write does not count."""
    environment = {name: value for name, value in os.environ.items() if name not in _WAITING}
    command = [sys.executable, __file__, "--model", model, "--rounds", str(rounds), "--write"]
    result = subprocess.run(
        command, check=True, env={**environment, **POLICIES[policy]}, stdout=subprocess.PIPE, encoding="utf-8"
    )
    return statistics.median(map(float, result.stdout.split()[1:]))


@contextmanager
def busy(program: str, count: int) -> Iterator[None]:
    """Inside: so many processes run a program that never ends. After: none."""
    environment = {name: value for name, value in os.environ.items() if name not in _WAITING}
    processes = [subprocess.Popen([sys.executable, "-c", program], env=environment) for _ in range(count)]
    try:
        # PyTorch takes seconds to import.
        time.sleep(8 if count else 0)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(policies: Sequence[str], counts: Sequence[int], model: str, rounds: int, times: int) -> list[Measured]:
    """Every policy beside every number of neighbours of both kinds; policies take turns, ``times`` over."""
    cores = len(os.sched_getaffinity(0))
    idle: dict[str, list[float]] = {policy: [] for policy in policies}
    for _ in range(times):
        for policy in policies:
            idle[policy].append(median_write(policy, model, rounds))
    base = statistics.median(idle[policies[0]])
    found = [
        Measured(policy, "idle", 0, statistics.median(seconds), statistics.median(seconds) / base)
        for policy, seconds in idle.items()
    ]
    for kind, program in NEIGHBOURS.items():
        for count in (count for count in counts if count):
            threads = count if kind == "plain loops" else count * cores
            fair = base * (cores + threads) / cores
            with busy(program, count):
                for policy in policies:
                    seconds = median_write(policy, model, max(2, rounds // 3))
                    found.append(Measured(policy, kind, count, seconds, seconds / fair))
                    print(
                        f"{policy:12} {count} {kind:12} {seconds:7.2f} s  {seconds / fair:5.2f} of its share",
                        flush=True,
                    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=9, help="writes of one process")
    parser.add_argument("--times", type=int, default=3, help="processes of each policy on the idle machine")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2, 4], help="numbers of neighbours")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES), help="the first is the base")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "contention.json")
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        write_repeatedly(given.model, given.rounds)
        return
    from byheart.provenance import versions

    rows = measure(given.policies, given.busy, given.model, given.rounds, given.times)
    about = {**versions(), "cores": len(os.sched_getaffinity(0)), "machine": platform.machine(), "tokens": TOKENS}
    given.out.write_text(json.dumps({"about": about, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    for row in rows:
        print(f"{row.policy:12} {row.busy} {row.neighbours:12} {row.seconds:7.2f} s  {row.share:5.2f}")


if __name__ == "__main__":
    main()
