from pathlib import Path
from typing import Any

import numpy as np
import pytest

from byheart.data.indices import read_indices
from byheart.errors import InputError


def saved(folder: Path, places: Any) -> str:
    np.save(folder / "places.npy", places)
    return str(folder / "places.npy")


def test_places_are_read_in_their_order(tmp_path: Path) -> None:
    assert read_indices(saved(tmp_path, np.array([4, 0, 2]))) == [4, 0, 2]
    assert read_indices(saved(tmp_path, np.array([7], dtype=np.uint8))) == [7]


@pytest.mark.parametrize(
    ("places", "match"),
    [
        (np.array([1.0]), "must hold whole numbers in one dimension"),
        (np.array([[1]]), "must hold whole numbers in one dimension"),
        (np.array([], dtype=np.int64), "one or more"),
        (np.array([3, -2]), r"places\.npy', number 2 is -2; places are 0 or more"),
        (np.array([{}], dtype=object), "cannot be read as a list of places"),
    ],
)
def test_what_is_no_list_of_places_is_refused(places: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=match):
        read_indices(saved(tmp_path, places))


def test_a_file_that_promises_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    file = Path(saved(tmp_path, np.arange(9)))
    file.write_bytes(file.read_bytes()[:-8])
    for path in (file, tmp_path, tmp_path / "absent.npy"):
        with pytest.raises(InputError, match="cannot be read as a list of places"):
            read_indices(str(path))
