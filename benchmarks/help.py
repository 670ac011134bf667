"""How long `byheart --help` takes beside what it is made with.

    python benchmarks/help.py                  half a minute; the machine must have nothing else to do

Four processes take turns: one that does nothing, one that imports Typer, one that imports what Typer draws help pages
with too, and `byheart --help`. What byheart itself adds is the last less the one before.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = {
    "python": ("-c", "pass"),
    "typer": ("-c", "import typer.main"),
    "typer and its help": ("-c", "import typer.main, typer.rich_utils"),
    "byheart --help": ("-m", "byheart", "--help"),
}


def seconds(arguments: tuple[str, ...]) -> float:
    """Of one process, from its start to its end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21, help="processes of each kind; a first one does not count")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "help.json")
    given = parser.parse_args()
    from byheart.provenance import versions

    rounds = [{name: seconds(arguments) for name, arguments in PROCESSES.items()} for _ in range(given.rounds + 1)]
    medians = {name: statistics.median(taken[name] for taken in rounds[1:]) for name in PROCESSES}
    about = {**versions(), "machine": platform.machine(), "rounds": given.rounds}
    given.out.write_text(json.dumps({"about": about, "seconds": medians}, indent=1) + "\n")
    for name, median in medians.items():
        print(f"{median:6.3f} s  {name}")


if __name__ == "__main__":
    main()
