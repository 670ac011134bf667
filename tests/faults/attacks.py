"""The table of all attacks."""

from __future__ import annotations

from tests.faults import checkpoints, command_line, crash, lengths, malicious, pairs, states
from tests.faults.attack import Attack

ATTACKS: tuple[Attack, ...] = (
    *malicious.ATTACKS,
    *crash.ATTACKS,
    *lengths.ATTACKS,
    *states.ATTACKS,
    *pairs.ATTACKS,
    *command_line.ATTACKS,
    *checkpoints.ATTACKS,
)
