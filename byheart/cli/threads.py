"""How many threads compute, and how they wait: chosen for the command line before PyTorch is imported.

PyTorch's threads wait for one another by spinning, which takes the processor from other programs: on a busy machine a
write then takes many times its share. The variables of the environment that say otherwise are read once, when PyTorch
is loaded. The library sets none of them; a program that imports it may call ``prepare`` first.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path, PurePosixPath

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_SHORT, _LONG = "1000", "30000"


def prepare(environ: MutableMapping[str, str], *, serves: bool = False) -> None:
    """Set what the user did not; nothing where PyTorch is loaded already, which would read it too late."""
    if "torch" not in sys.modules:
        environ.update(choose(environ, count_cpus(), serves=serves))


def choose(
    environ: Mapping[str, str], cpus: int, platform: str = sys.platform, *, serves: bool = False
) -> dict[str, str]:
    """The variables to set for a process that may use ``cpus`` processors: the policy, in one place.

    On Linux PyTorch's threads are libgomp's. A thousand rounds of spinning, instead of some hundred thousand, write as
    fast on an idle machine and keep to a fair share of a busy one (``benchmarks/contention.py``). A token of an answer
    is many small steps, and takes a fifth less with more rounds: a server, whose machine is its own, makes more.
    """
    threads = {} if "OMP_NUM_THREADS" in environ else {"OMP_NUM_THREADS": str(cpus)}
    if any(name in environ for name in _WAITING):
        return threads
    if platform != "linux":
        return {**threads, "OMP_WAIT_POLICY": "PASSIVE"}
    return {**threads, "GOMP_SPINCOUNT": _LONG if serves else _SHORT}


def count_cpus(root: Path = Path("/")) -> int:
    """How many processors this process may use: by its affinity and by the quota of its control group, 1 at least.

    Args:
        root: the folder that holds ``proc`` and ``sys``.
    """
    # Not every system has an affinity.
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = (math.ceil(quota) for quota in _read_quotas(root))
    return max(1, min([affinity, *quotas]))


def _read_quotas(root: Path) -> Iterator[float]:
    """The quotas of this process's control groups and of all above them, in processors."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Version 2 has no name of controllers; in a container, the path may be that of the machine outside.
        mount = root / "sys/fs/cgroup" / controllers
        inner = PurePosixPath(path.lstrip("/"))
        for folder in (mount / inner, *(mount / parent for parent in inner.parents)):
            quota = _read_quota(folder)
            if quota is not None:
                yield quota


def _read_quota(folder: Path) -> float | None:
    """The quota of one control group, of version 2 or 1; None without one."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            limit, period = " ".join((folder / name).read_text(encoding="ascii") for name in names).split()
            return int(limit) / int(period) if int(limit) > 0 else None
        except (OSError, ValueError, ZeroDivisionError):
            # No such file, or "max": no limit.
            continue
    return None
