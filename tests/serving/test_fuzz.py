"""A few hundred requests that no client would send; `make attack` sends many more."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.faults.requests import send_requests


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_odd_requests_are_answered_and_reach_nothing_of_another_tenant(tmp_path: Path, seed: int) -> None:
    assert send_requests(tmp_path)(seed, Random(seed)) == []
