"""Attack byheart, and write what was tried and what failed.

python -m tests.faults.report                                  all of it, half an hour or more
python -m tests.faults.report --only states --share 0.01       some tries of some attacks
python -m tests.faults.report --only states.headers --call 17  one try again
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.faults import hub

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "benchmarks" / "results" / "attack.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="another seed makes other tries")
    parser.add_argument("--share", type=float, default=1.0, help="of the tries of each attack")
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of names of attacks")
    parser.add_argument("--call", type=int, help="the one call to make")
    parser.add_argument("--before", action="store_true", help="keep the numbers as those of an earlier version")
    parser.add_argument("--out", type=Path, help=f"a JSON file; all of it goes into {OUT.relative_to(ROOT)}")
    given = parser.parse_args()
    # A termination ends the tries too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as folder, hub.listening(Path(folder) / "requests") as address:
        # Read when transformers is imported, so before anything else is.
        os.environ |= {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": folder, "HF_TOKEN": "hf_secret"}
        # A forked process cannot use a pool of threads that its parent has started.
        os.environ["OMP_NUM_THREADS"] = "1"
        os.environ |= {
            "BYHEART_CACHE": f"{folder}/cache",
            "BYHEART_HOME": f"{folder}/home",
            hub.REQUESTS: f"{folder}/requests",
        }
        failures = _report(given)
    return int(failures > 0)


def _report(given: argparse.Namespace) -> int:
    import torch

    from byheart.model.loading import silence
    from byheart.provenance import versions
    from tests.faults.attack import run
    from tests.faults.attacks import ATTACKS

    torch.set_num_threads(1)
    silence()
    # What is told of a try is enough.
    warnings.simplefilter("ignore")
    logging.getLogger("byheart").propagate = False
    logging.getLogger("byheart").addHandler(logging.NullHandler())
    about = {**versions(), **_commit(), "seed": given.seed}
    failures = 0
    for attack in (attack for attack in ATTACKS if attack.name.startswith(tuple(given.only))):
        found = run(attack, seed=given.seed, share=given.share, only=given.call)
        failures += found.failures
        print(
            f"{found.failures:5} of {found.tries:6}  {found.name:22} {found.seconds:7.1f} s  {found.what}", flush=True
        )
        for example in found.examples:
            print(f"       --seed {given.seed} --only {found.name} --call {example}", flush=True)
        if given.out:
            # At once: it may be ended before the last.
            _keep(given.out, "before" if given.before else "now", about, asdict(found), [own.name for own in ATTACKS])
    return failures


def _commit() -> dict[str, str]:
    """Which sources were attacked, and of which day; nothing where git does not know."""
    command = ["git", "log", "-1", "--format=%h %cs"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return dict(zip(("commit", "date"), ran.stdout.split(), strict=False))


def _attacked(about: dict[str, Any]) -> dict[str, Any]:
    """What is known of the sources that were attacked."""
    return {name: about[name] for name in ("commit", "date") if name in about}


def _keep(out: Path, when: str, about: dict[str, Any], row: dict[str, Any], names: list[str]) -> None:
    """Write a row into the file, in the place of that of the same attack and the same version."""
    stored = json.loads(out.read_text()) if out.exists() else {}
    before = stored.get(when, {})
    # A row says which sources it is of: a part of the attacks may be made again.
    earlier = [{**_attacked(before["about"]), **row} for row in before.get("rows", [])]
    kept = {each["name"]: each for each in [*earlier, {**_attacked(about), **row}]}
    stored[when] = {"about": about, "rows": [kept[name] for name in names if name in kept]}
    out.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
