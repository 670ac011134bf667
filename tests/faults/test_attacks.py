"""Every attack fails: a few tries of each at every run of the tests, more of them in the slow ones.

The attacks run in a process of their own, in which no annotation is checked: the library has to hold without.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.attacks import ATTACKS
from tests.samples import ROOT

FAMILIES = sorted({attack.name.partition(".")[0] for attack in ATTACKS})
# Those that start no process and wait for nothing.
QUICK = ("states.tensors", "states.headers", "crash.forgotten", "models.by_file")
# One call of each takes seconds, most of them to open a model.
SERVERS = ("server.kill_sqlite", "server.full_disk")


def _failures(folder: Path, *arguments: str) -> list[str]:
    """What got through, with what makes it happen again."""
    out = folder / "found.json"
    command = [sys.executable, "-m", "tests.faults.report", "--out", str(out), *arguments]
    ran = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert out.exists(), ran.stderr[-2000:]
    rows = json.loads(out.read_text())["now"]["rows"]
    assert rows
    seed = arguments[arguments.index("--seed") + 1]
    return [f"--seed {seed} --only {row['name']} --call {example}" for row in rows for example in row["examples"]]


def test_a_few_tries_of_the_quick_attacks_fail(tmp_path: Path) -> None:
    assert _failures(tmp_path, "--seed", "3", "--share", "0.02", "--only", *QUICK) == []


@pytest.mark.slow
def test_a_server_that_is_killed_or_whose_disk_is_full_loses_nothing(tmp_path: Path) -> None:
    assert _failures(tmp_path, "--seed", "3", "--share", "0", "--only", *SERVERS) == []


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_more_tries_fail(family: str, tmp_path: Path) -> None:
    assert _failures(tmp_path, "--seed", "4", "--share", "0.04", "--only", family) == []


def test_a_name_belongs_to_one_attack() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
