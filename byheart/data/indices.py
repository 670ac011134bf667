"""Lists of records by their places, as NumPy's ``.npy`` files: MemoryLLM's ``indices_squad_3.npy`` is one.

What the places count is not known here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from byheart.errors import InputError
from byheart.files import require_regular


def read_indices(source: str) -> list[int]:
    """The places, from 0, in the file's order. Raises InputError; pickled objects are never loaded."""
    path = Path(source).expanduser()
    try:
        # Mapped, a file cannot promise more than it holds.
        found = np.load(require_regular(path), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"'{source}' cannot be read as a list of places (.npy): {error}.") from error
    if not isinstance(found, np.ndarray) or found.ndim != 1 or found.dtype.kind not in "iu" or not found.size:
        raise InputError(f"'{source}' must hold whole numbers in one dimension, one or more (.npy).")
    places: list[int] = found.tolist()
    if min(places) < 0:
        raise InputError(f"'{source}', number {places.index(min(places)) + 1} is {min(places)}; places are 0 or more.")
    return places
