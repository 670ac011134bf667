"""What a result came from: installed releases."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version


def versions(packages: Sequence[str] = ("byheart", "torch", "transformers")) -> dict[str, str]:
    """The installed release of each package."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "run from its source" if package == "byheart" else "absent"
    return found
