"""Servers whose disk, folder, bucket or database fails for a while: clear errors, nothing lost, and no restart."""

from __future__ import annotations

import ctypes
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from byheart.model.backbone import Backbone
from tests.faults import databases
from tests.faults.attack import Attack, Try
from tests.faults.kills import MEMORIES, WINDOW
from tests.serving.bucket import Bucket, bucket
from tests.serving.processes import Client, Server, forked

_HOLDS_BACK = {429, 503, 507}
_WRITERS = 3
_WITHIN = 30.0
"""Seconds after which a server works again, once the cause is gone."""
_PAUSE = 0.2
"""Seconds that a client waits that was refused, before it goes on."""
_CAPABILITIES_VERSION = 0x20080522


@dataclass
class Scene:
    """Where a server keeps what it has, and how that fails."""

    home: Path
    catalogue: str
    bucket: Bucket | None
    random: Random

    @contextmanager
    def full_disk(self, server: Server) -> Iterator[None]:
        """Inside: no file grows beyond some bytes."""
        _, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
        most = self.random.choice([0, 1, 100, 4096, 20_000])
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (most, hard))
        yield
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (hard, hard))

    @contextmanager
    def read_only(self, server: Server) -> Iterator[None]:
        """Inside: nothing can be added to, or taken from, the folders of the memories."""
        folders = [self.home, *(path for path in self.home.rglob("*") if path.is_dir())]
        for folder in folders:
            folder.chmod(0o500)
        yield
        for folder in folders:
            if folder.exists():
                folder.chmod(0o700)

    @contextmanager
    def failing_bucket(self, server: Server) -> Iterator[None]:
        """Inside: the bucket answers with an error, or not at all."""
        assert self.bucket is not None
        self.bucket.fault = self.random.choice([403, 500, 503, "hang"])
        yield
        self.bucket.fault = 0

    @contextmanager
    def stopped_postgres(self, server: Server) -> Iterator[None]:
        """Inside: the database is down, as after a crash or after an orderly end."""
        database = databases.start_postgres()
        database.stop(self.random.choice(["immediate", "fast"]))
        yield
        database.start()


@dataclass
class Load:
    """Writes and questions from several clients at once, and what came of them."""

    client: Client
    acknowledged: list[tuple[str, str]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    def write(self, name: str, source: str) -> bool:
        """Whether it was acknowledged."""
        answer = self.client.write(name, f"{source} is Muck.", source, once=True)
        if answer.status == 200:
            self.acknowledged.append((name, source))
            return True
        self.refused.append((name, source))
        self._judge(f"the write '{source}'", answer.status, answer.raw)
        return False

    def _judge(self, what: str, status: int, raw: bytes) -> None:
        if status not in {200, *_HOLDS_BACK}:
            self.problems.append(f"{what} was answered with {status} {raw[:150]!a}")

    @contextmanager
    def running(self, random: Random) -> Iterator[None]:
        """Inside: there is load."""

        def work(writer: int, names: list[str]) -> None:
            for number, name in enumerate(names):
                if self.is_over.is_set():
                    return
                if writer < _WRITERS:
                    if not self.write(name, f"{writer}-{number}"):
                        time.sleep(_PAUSE)
                else:
                    answer = self.client.ask(name)
                    self._judge("a question", answer.status, answer.raw)

        choices = [random.choices(MEMORIES, k=1000) for _ in range(_WRITERS + 1)]
        threads = [threading.Thread(target=work, args=each) for each in enumerate(choices)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.is_over.set()
            for thread in threads:
                thread.join()


Fault = Callable[[Scene, Server], AbstractContextManager[None]]


def _failing(
    fault: Fault, catalogues: Callable[[], databases.Catalogues], *, in_bucket: bool = False
) -> Callable[[Path], Try]:
    def attempt(backbone: Backbone, catalogue: str, home: Path, random: Random) -> list[str]:
        with bucket() if in_bucket else nullcontext() as objects:
            return _try(Scene(home, catalogue, objects, random), fault, backbone)

    return databases.tries(catalogues, attempt)


def _try(scene: Scene, fault: Fault, backbone: Backbone) -> list[str]:
    def before() -> None:
        _drop_capabilities()
        os.environ.update(scene.bucket.environment if scene.bucket else {})

    where = scene.bucket.url if scene.bucket else str(scene.home / "objects")
    with forked(backbone, scene.catalogue, where, cache=scene.home / "cache", before=before) as server:
        load = Load(server)
        for name in MEMORIES:
            server.make(name, **WINDOW)
            load.write(name, "first")
        if load.refused:
            return [f"it did not work to begin with: {server.send('GET', '/ready').raw!a}", *load.problems]
        with load.running(scene.random):
            time.sleep(scene.random.uniform(0.0, 0.3))
            with fault(scene, server):
                time.sleep(scene.random.uniform(0.3, 1.5))
            load.problems += _recover(server)
        return load.problems + (_check(server, load) if server.is_alive else ["the server has ended"])


def _recover(server: Server) -> list[str]:
    """Nothing where a write is accepted again in time."""
    deadline, status = time.monotonic() + _WITHIN, 0
    for number in range(1000):
        status = server.write(MEMORIES[0], "It works again.", f"again-{number}").status
        if status == 200:
            return []
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return [f"{_WITHIN:g} s after the cause was gone a write was still answered with {status}"]


def _check(server: Client, load: Load) -> list[str]:
    """What was acknowledged is there once, and so is what was refused, once it is sent again."""
    refused, load.refused = load.refused, []
    for name, source in refused:
        load.write(name, source)
    problems = [f"'{source}' was refused again" for _, source in load.refused]
    for name in MEMORIES:
        found = server.sources(name)
        wanted = {source for memory, source in load.acknowledged if memory == name}
        problems += [f"'{source}' of {name} was lost" for source in wanted.difference(found)]
        problems += [f"'{source}' of {name} is there twice" for source in wanted if found.count(source) > 1]
        if server.ask(name).status != 200:
            problems.append(f"memory {name} cannot be asked any more")
    return problems


def _drop_capabilities() -> None:
    """Root's files obey their modes then, as an ordinary user's do."""
    header, none = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0), (ctypes.c_uint32 * 6)()
    if os.getuid() == 0 and ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


_WHAT = "{} under load: other errors than 429, 503, 507, writes lost, a restart needed"
ATTACKS = (
    Attack(
        "server.full_disk", _WHAT.format("a full disk"), _failing(Scene.full_disk, databases.sqlite), 100, seconds=120
    ),
    Attack(
        "server.read_only",
        _WHAT.format("a folder that turns read-only"),
        _failing(Scene.read_only, databases.sqlite),
        100,
        seconds=120,
    ),
    Attack(
        "server.bucket",
        _WHAT.format("a bucket that fails or hangs"),
        _failing(Scene.failing_bucket, databases.sqlite, in_bucket=True),
        100,
        seconds=200,
    ),
    Attack(
        "server.database",
        _WHAT.format("PostgreSQL stopped and started"),
        _failing(Scene.stopped_postgres, databases.postgres),
        100,
        seconds=400,
    ),
)
