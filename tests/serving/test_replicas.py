"""Servers that share a catalogue and objects, and memories that come back from a copy of both."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.serving.processes import Client, Server, commanded
from tests.store.postgres import Postgres

# Both are processes of their own, with a model each.
pytestmark = pytest.mark.slow
_WINDOW = {"method": "window", "options": {"sinks": 2, "recent": 40}}


def _arguments(model: Path, home: Path, *more: str) -> list[str]:
    return ["--model", f"tiny={model}", "--home", str(home), "--dtype", "float32", *more]


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def test_two_servers_on_one_database_and_one_folder_write_one_memory(
    servers: ExitStack, postgres: Postgres, tiny_folder: Path, tmp_path: Path
) -> None:
    keys, shared = tmp_path / "keys.jsonl", str(tmp_path / "objects")
    stores = ("--store", postgres.new_database(), "--objects", shared, "--api-keys", str(keys))
    one = servers.enter_context(commanded(*_arguments(tiny_folder, tmp_path / "a", *stores)))
    two: Server = servers.enter_context(commanded(*_arguments(tiny_folder, tmp_path / "b", *stores)))
    two.key = one.key
    assert one.make("cat", **_WINDOW).status == 201
    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(_write, [one, two] * 6, range(12)))
    # What two wrote at once was written by one after the other, and is there once, whichever server is asked.
    assert [answer.status for answer in written] == [200] * 12
    assert Counter(one.sources("cat")) == Counter(two.sources("cat")) == Counter(map(str, range(12)))
    assert one.ask("cat", seed=1, temperature=2.0).text == two.ask("cat", seed=1, temperature=2.0).text
    conflicts = {
        server.send("POST", "/v1/memories/cat/writes", {"text": "More.", "if_version": 12}).status
        for server in (one, two)
    }
    assert conflicts == {200, 409}
    assert two.send("DELETE", "/v1/memories/cat").status == 200
    assert one.ask("cat").code == "memory_not_found"


def _write(client: Client, number: int) -> object:
    return client.write("cat", f"Cat {number}.", str(number), once=True)


def test_a_copy_of_the_sqlite_catalogue_and_then_of_the_objects_comes_back(
    servers: ExitStack, tiny_folder: Path, tmp_path: Path
) -> None:
    home, copy = tmp_path / "home", tmp_path / "copy"
    server = servers.enter_context(commanded(*_arguments(tiny_folder, home)))
    server.make("cat", **_WINDOW)
    server.write("cat", "The cat is called Muck.", "cat")
    answer = server.ask("cat", seed=1, temperature=2.0).text
    copy.mkdir()
    # As docs/how-to/deploy.md says, while the server runs: first the catalogue, then what it refers to.
    with sqlite3.connect(home / "byheart.sqlite3") as found, sqlite3.connect(copy / "byheart.sqlite3") as kept:
        found.backup(kept)
    server.write("cat", "Written after the catalogue was copied.", "later")
    shutil.copytree(home / "objects", copy / "objects")
    shutil.copy(home / "keys.jsonl", copy)
    with commanded(*_arguments(tiny_folder, copy)) as again:
        again.key = server.key
        assert again.sources("cat") == ["cat"]
        assert again.ask("cat", seed=1, temperature=2.0).text == answer
        assert again.write("cat", "More.", "more").status == 200


def test_a_dump_of_postgres_and_then_a_copy_of_the_objects_comes_back(
    servers: ExitStack, postgres: Postgres, tiny_folder: Path, tmp_path: Path
) -> None:
    address, restored = postgres.new_database(), postgres.new_database()
    stores = ("--store", address, "--objects", str(tmp_path / "objects"))
    server = servers.enter_context(commanded(*_arguments(tiny_folder, tmp_path / "home", *stores)))
    server.make("cat", **_WINDOW)
    server.write("cat", "The cat is called Muck.", "cat")
    answer = server.ask("cat", seed=1, temperature=2.0).text
    _dump_and_restore(address, restored, tmp_path / "catalogue.dump")
    shutil.copytree(tmp_path / "objects", tmp_path / "copy")
    stores = ("--store", restored, "--objects", str(tmp_path / "copy"), "--api-keys", str(tmp_path / "home/keys.jsonl"))
    with commanded(*_arguments(tiny_folder, tmp_path / "other", *stores)) as again:
        again.key = server.key
        assert again.sources("cat") == ["cat"]
        assert again.ask("cat", seed=1, temperature=2.0).text == answer


def _dump_and_restore(address: str, restored: str, file: Path) -> None:
    plain = [url.replace("postgresql+psycopg", "postgresql") for url in (address, restored)]
    subprocess.run(["pg_dump", "--format=custom", f"--file={file}", plain[0]], check=True)
    subprocess.run(["pg_restore", f"--dbname={plain[1]}", str(file)], check=True)
