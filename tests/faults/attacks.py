"""The table of all attacks."""

from __future__ import annotations

from tests.faults import checkpoints, command_line, crash, malicious, pairs, states
from tests.faults.attack import Attack

ATTACKS: tuple[Attack, ...] = (
    *malicious.ATTACKS,
    *crash.ATTACKS,
    *states.ATTACKS,
    *pairs.ATTACKS,
    *command_line.ATTACKS,
    *checkpoints.ATTACKS,
)
