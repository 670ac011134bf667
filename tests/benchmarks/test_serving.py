"""The measures of a server run from the command line to a file; what they measure is not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.samples import ROOT

SMALL = "--method full --rounds 1 --clients 2 --memory-tokens 100 --answer-tokens 8 --questions 2 --bucket-delay 0.01"
ROWS = [
    *("over_library", "together", "one_memory", "resident", "question", "evicted", "from_disk", "from_bucket", "gap"),
    "same_job",
]


@pytest.mark.slow
def test_a_server_is_measured_and_rows_are_kept(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "serving.json"
    out.write_text(json.dumps({"about": {}, "rows": [{"name": "earlier"}, {"name": "gap"}]}))
    command = [sys.executable, str(ROOT / "benchmarks" / "serving.py"), "--model", str(tiny_folder), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, *SMALL.split(), "--only", *ROWS], check=True, env=environment)
    stored = json.loads(out.read_text())
    # There is no server beside ours here, and the method is not the default.
    found = {row["name"]: row for row in stored["rows"]}
    assert found.keys() == {"earlier", "gap", *(f"{name} full" for name in ROWS)} - {"same_job full"}
    assert all(row["ratio"] > 0 for name, row in found.items() if name.endswith("full"))
    assert stored["about"]["model"] == str(tiny_folder)
