"""The table of all attacks."""

from __future__ import annotations

from tests.faults import crash, states
from tests.faults.attack import Attack

ATTACKS: tuple[Attack, ...] = (*crash.ATTACKS, *states.ATTACKS)
