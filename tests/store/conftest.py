from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.store.postgres import Postgres, started


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server with no database; every test makes one of its own."""
    yield from started()
