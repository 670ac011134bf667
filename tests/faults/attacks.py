"""The table of all attacks."""

from __future__ import annotations

from tests.faults import (
    arguments,
    checkpoints,
    crash,
    described,
    failing,
    imports,
    kills,
    lengths,
    listing,
    malicious,
    pairs,
    processes,
    requests,
    soak,
    states,
    store,
)
from tests.faults.attack import Attack

ATTACKS: tuple[Attack, ...] = (
    *malicious.ATTACKS,
    *crash.ATTACKS,
    *lengths.ATTACKS,
    *states.ATTACKS,
    *pairs.ATTACKS,
    *arguments.ATTACKS,
    *listing.ATTACKS,
    *processes.ATTACKS,
    *checkpoints.ATTACKS,
    *requests.ATTACKS,
    *described.ATTACKS,
    *kills.ATTACKS,
    *failing.ATTACKS,
    *imports.ATTACKS,
    *soak.ATTACKS,
    *store.ATTACKS,
)
