"""Which releases are installed: what a result came from, and whether they are the ones that byheart needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib import metadata

# A requirement of every installation: `name>=1.2.3`, without a marker.
_BOUND = re.compile(r"([\w.-]+)\s*>=\s*([\d.]+)")
_RELEASE = re.compile(r"\d+(\.\d+)*")


def versions(packages: Sequence[str] = ("byheart", "torch", "transformers")) -> dict[str, str]:
    """The installed release of each package."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "run from its source" if package == "byheart" else "absent"
    return found


def find_outdated(
    requires: Callable[[str], list[str] | None] = metadata.requires, version: Callable[[str], str] = metadata.version
) -> str:
    """What is missing or older than byheart declares, and how to install it; empty where nothing is.

    Args:
        requires, version: where to look, as ``importlib.metadata`` does. Both raise PackageNotFoundError.
    """
    try:
        bounds = [bound.groups() for bound in map(_BOUND.fullmatch, requires("byheart") or ()) if bound]
    except metadata.PackageNotFoundError:
        return ""
    problems: dict[str, str] = {}
    for package, least in bounds:
        try:
            installed = version(package)
        except metadata.PackageNotFoundError:
            installed = "none"
        if _release(installed) < _release(least):
            problems[f"'{package}>={least}'"] = f"{package} {least} or newer, but {installed} is installed"
    return f"byheart needs {'; '.join(problems.values())}: pip install {' '.join(problems)}" if problems else ""


def _release(version: str) -> tuple[int, ...]:
    """The numbers at the start of a version, without zeros at their end: 2.13 of ``2.13.0+cpu``, none of ``none``."""
    found = _RELEASE.match(version)
    numbers = found.group().split(".") if found else []
    while numbers and int(numbers[-1]) == 0:
        numbers.pop()
    return tuple(map(int, numbers))
