"""The catalogue's database: SQLite for one machine, PostgreSQL for several.

What is written is durable when ``writing`` ends. A database that does not answer, or is full, is an UnavailableError;
its connections are tested before they are used, so that one that was restarted serves the next call.
"""

from __future__ import annotations

import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, create_engine, event, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from byheart.errors import ConflictError, StoreError, UnavailableError, UsageError
from byheart.store import schema

Value = TypeVar("Value")
BUSY_SECONDS = 10.0
"""How long a writer of SQLite waits for another, and a call for a connection."""
_POSTGRES: dict[str, Any] = {
    "connect_timeout": 5,
    "tcp_user_timeout": 15_000,
    "options": "-c statement_timeout=60000 -c lock_timeout=10000 -c idle_in_transaction_session_timeout=120000",
}


class Catalogue:
    """A database with the catalogue's tables, made where there are none: a file of SQLite, or at an address.

    Raises UsageError for what is no address of one, UnavailableError, StoreError for tables of a later byheart.
    """

    def __init__(self, address: str | Path) -> None:
        url = URL.create("sqlite", database=str(address)) if isinstance(address, Path) else _parse(address)
        self.is_sqlite = url.get_backend_name() == "sqlite"
        # Numbers of purges that were asked for; the last one that was done covers all before it.
        self._purges, self._purged, self._unpurged = itertools.count(1), 0, ""
        self._purging = threading.Lock()
        with _translating():
            arguments = {"timeout": BUSY_SECONDS} if self.is_sqlite else _POSTGRES
            more: dict[str, Any] = {} if self.is_sqlite else {"pool_pre_ping": True}
            self._engine = create_engine(
                url, connect_args=arguments, hide_parameters=True, pool_timeout=BUSY_SECONDS, max_overflow=20, **more
            )
            if self.is_sqlite:
                event.listen(self._engine, "connect", _set_up_sqlite)
                event.listen(self._engine, "begin", _begin_sqlite)
        try:
            with self.writing() as connection:
                schema.prepare(connection)
        except BaseException:
            self.close()
            raise

    def read(self, query: Callable[[Connection], Value]) -> Value:
        """What a query gives, which changes nothing; a lost connection is made anew once."""
        with _translating():
            try:
                return self._read(query)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                return self._read(query)

    def _read(self, query: Callable[[Connection], Value]) -> Value:
        with self._engine.connect().execution_options(reads=True) as connection:
            return query(connection)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Before: nothing. Inside: a transaction. After: it is durable, or on an error as if it had never been."""
        with _translating(), self._engine.begin() as connection:
            yield connection

    def check(self) -> None:
        """Raise UnavailableError unless the database answers."""
        self.read(lambda connection: connection.scalar(select(schema.about.c.schema)))

    def purge(self) -> None:
        """Leave nothing of deleted rows in SQLite's files. Raises UnavailableError where somebody reads all the time.

        PostgreSQL keeps them in its own pages and log until these are written anew.
        """
        if not self.is_sqlite:
            return
        wanted = next(self._purges)
        with self._purging:
            # All pages are written, and nobody else writes meanwhile: of many who wait, one does it for all.
            if self._purged < wanted:
                self._purged, self._unpurged = next(self._purges), ""
                try:
                    self._purge()
                except UnavailableError as error:
                    self._unpurged = str(error)
            if self._unpurged:
                raise UnavailableError(self._unpurged)

    def _purge(self) -> None:
        with _translating():
            connection = self._engine.raw_connection()
            try:
                # Pages that were split keep what was moved to others: all pages are written anew.
                connection.cursor().execute("VACUUM")
                deadline = time.monotonic() + BUSY_SECONDS
                while connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                    if time.monotonic() > deadline:
                        raise UnavailableError(
                            "All rows are deleted, but the catalogue's journal could not be emptied, because it is "
                            "being read all the time; do the same once more."
                        )
                    time.sleep(0.05)
            except sqlite3.Error as error:
                raise _unavailable(error) from error
            finally:
                connection.close()

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()


def _parse(address: str) -> URL:
    try:
        url = make_url(address)
        driver = url.get_dialect().driver
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise UsageError(_kinds("is no address of a database")) from error
    except ImportError as error:
        raise UsageError('PostgreSQL needs psycopg: pip install "byheart[postgres]".') from error
    if driver not in ("pysqlite", "psycopg") or (driver == "pysqlite" and url.database in (None, "", ":memory:")):
        raise UsageError(_kinds("is none that byheart can use"))
    return url


def _kinds(problem: str) -> str:
    # The address itself may hold a password.
    return f"The catalogue's address {problem}; give sqlite:///PATH or postgresql+psycopg://USER@HOST/DATABASE."


def _set_up_sqlite(connection: Any, _: object) -> None:
    # Transactions are begun by ``_begin_sqlite`` alone.
    connection.isolation_level = None
    for setting in ("synchronous=FULL", "foreign_keys=ON", "secure_delete=ON", "temp_store=MEMORY"):
        connection.execute(f"PRAGMA {setting}")
    for attempt in range(100):
        try:
            # The first one changes the file, and does not wait for another process that is doing the same.
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if attempt == 99 or "locked" not in str(error):
                raise
            time.sleep(0.05)


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later could not wait for another writer.
    reads = connection.get_execution_options().get("reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


@contextmanager
def _translating() -> Iterator[None]:
    """Before and after: nothing. Inside: what the database says becomes an error of byheart, without the statement."""
    try:
        yield
    except IntegrityError as error:
        raise ConflictError("Somebody else changed the same memory, or took the name, just now; try again.") from error
    except DataError as error:
        raise StoreError(f"The catalogue cannot hold this: {error.orig}.") from error
    except SQLAlchemyError as error:
        raise _unavailable(getattr(error, "orig", None) or error) from error


def _unavailable(error: BaseException) -> UnavailableError:
    said = " ".join(str(error).split())
    return UnavailableError(f"The catalogue of memories cannot be used now: {said}; try again.")
