"""Servers that are killed while they write: what was acknowledged is there, once, and everything can be read."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from byheart import open_state
from byheart.errors import ByheartError
from byheart.model.backbone import Backbone
from tests.faults import databases
from tests.faults.attack import Attack
from tests.serving.processes import Client, Server, fork_server

WINDOW = {"method": "window", "options": {"sinks": 2, "recent": 40}}
_KILLS = 5
MEMORIES = ("a", "b", "c")
_WRITERS = 3
_AT_ONCE = 5.0
"""Seconds within which a server must be ready after a kill, in the median, for a machine may be busy with others."""


@dataclass
class Written:
    """What was acknowledged, as (memory, source), and what was sent without an answer."""

    acknowledged: set[tuple[str, str]] = field(default_factory=set)
    unanswered: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def write(self, client: Client, name: str, source: str) -> bool:
        """Write, and note what came of it; False where nothing did."""
        answer = client.write(name, f"{source} is Muck.", source, once=True)
        if answer.status == 200:
            self.acknowledged.add((name, source))
        elif answer.status == 0:
            self.unanswered.append((name, source))
        elif answer.status not in (429, 503):
            self.problems.append(f"a write was answered with {answer.status} {answer.code}")
        return answer.status != 0

    def check(self, client: Client) -> list[str]:
        """What is wrong: something lost, something there twice, a memory that cannot be read."""
        problems = []
        for name in MEMORIES:
            found = client.sources(name)
            wanted = {source for memory, source in self.acknowledged if memory == name}
            problems += [f"'{source}' of {name} was lost" for source in wanted.difference(found)]
            problems += [f"'{source}' of {name} is there twice" for source in set(found) if found.count(source) > 1]
            asked = client.ask(name)
            if found and asked.status != 200:
                problems.append(f"memory {name} is answered with {asked.status} {asked.code}")
        return problems


def load_with_writes(server: Server, written: Written, label: str, seconds: float, random: Random) -> None:
    """Write from several clients at once, and kill the server meanwhile."""

    def work(writer: int, names: list[str]) -> None:
        for number, name in enumerate(names):
            if not written.write(server, name, f"{label}-{writer}-{number}"):
                return

    writers = [
        threading.Thread(target=work, args=(writer, random.choices(MEMORIES, k=500))) for writer in range(_WRITERS)
    ]
    for thread in writers:
        thread.start()
    time.sleep(seconds)
    server.kill()
    for thread in writers:
        thread.join()


def _kill_often(backbone: Backbone, catalogue: str, home: Path, random: Random) -> list[str]:
    written, problems, starts = Written(), list[str](), list[float]()

    def start() -> Server:
        server = fork_server(backbone, catalogue, str(home / "objects"))
        starts.append(server.seconds)
        return server

    server = start()
    for name in MEMORIES:
        server.make(name, **WINDOW)
    for kill in range(_KILLS):
        load_with_writes(server, written, str(kill), random.uniform(0.0, 0.4), random)
        server = start()
        # A client that had no answer asks again, and must not write twice.
        again, written.unanswered = written.unanswered, []
        for name, source in again:
            written.write(server, name, source)
        problems += written.check(server)
    problems += _read_all(server, backbone, home)
    server.kill()
    if statistics.median(starts) > _AT_ONCE:
        problems.append(f"half of the starts took more than {statistics.median(starts):.1f} s")
    if not written.acknowledged:
        problems.append("nothing was ever acknowledged")
    return problems + written.problems


def _read_all(client: Client, backbone: Backbone, home: Path) -> list[str]:
    """Versions whose file is no state of the model."""
    problems = []
    for name in MEMORIES:
        for number in range(1, 1 + len(client.sources(name))):
            (home / "state").write_bytes(client.send("GET", f"/v1/memories/{name}/content?version={number}").raw)
            try:
                open_state(home / "state", model=backbone)
            except ByheartError as error:
                problems.append(f"version {number} of {name}: {error}")
    return problems


_WHAT = "servers killed during writes into {}: writes lost or doubled, memories unreadable, not ready at once"
ATTACKS = tuple(
    Attack(f"server.kill_{kind}", _WHAT.format(kind), databases.tries(catalogues, _kill_often), 1_000, _KILLS, 300)
    for kind, catalogues in databases.KINDS.items()
)
