"""How `make` runs the tests: as many processes as may run, whose threads wait as the user says."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests import conftest
from tests.samples import ROOT

AUTO = "PYTEST_XDIST_AUTO_NUM_WORKERS"


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ({}, "1000,"),
        ({"GOMP_SPINCOUNT": "7"}, "7,"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ",ACTIVE"),
        ({"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "7"}, "7,ACTIVE"),
    ],
)
def test_make_leaves_alone_how_the_user_lets_threads_wait(user: dict[str, str], expected: str) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MAKE"))}
    rule = 'show:\n\t@echo "$$GOMP_SPINCOUNT,$$OMP_WAIT_POLICY"\n'
    command = ["make", "--no-print-directory", "-f", "Makefile", "-f", "-", "show"]
    ran = subprocess.run(
        command, cwd=ROOT, env={**environ, **user}, input=rule, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == expected


def test_auto_starts_a_process_for_each_processor_that_may_be_used(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xdist")
    monkeypatch.delenv(AUTO, raising=False)
    monkeypatch.setattr(conftest, "count_cpus", lambda: 1234)
    assert pytestconfig.hook.pytest_xdist_auto_num_workers(config=pytestconfig) == 1234
    monkeypatch.setenv(AUTO, "3")
    assert pytestconfig.hook.pytest_xdist_auto_num_workers(config=pytestconfig) == 3
