"""Many clients that ask and write many memories for long: each answer is compared with the library's own.

python -m tests.faults.soak --memories 100 --clients 50 --seconds 3600 --out benchmarks/results/soak.json

The n-th version of a memory always holds the same texts, each with a secret that no other memory has, so the library
knows what a model over it answers. Answers are sampled from a tiny model, so that two memories' differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from byheart import load
from byheart.model.backbone import Backbone
from byheart.session.session import Session
from tests.faults import databases
from tests.faults.attack import Attack, Try
from tests.serving.processes import Answer, Client, Server, forked, open_tiny

_VERSIONS = 5
_QUESTIONS = ("Who?", "What is the secret?")
_SAMPLED: dict[str, Any] = {"max_tokens": 8, "temperature": 2.0}
_METHODS = ("full", "retrieval", "compact")
_RESIDENT = 1 << 18
"""Bytes: less than the memories take, so that they are evicted and come back all the time."""
_FLAT = 1.02
"""What the memory of a server may grow to in an hour."""
_LONG = 600
"""Seconds from which on that can be told."""


def text_of(memory: int, version: int) -> str:
    """What this version has more than the one before."""
    return f"It is {hashlib.sha256(f'{memory}/{version}'.encode()).hexdigest()[:8]}."


class Library:
    """What sessions answer over the same texts, worked out once each."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._sessions: dict[tuple[int, int], Session] = {}
        self._answers: dict[tuple[int, int, int], str] = {}
        self._lock = threading.Lock()

    def answer(self, memory: int, version: int, question: int) -> str:
        """To one of the questions."""
        with self._lock:
            wanted = (memory, version, question)
            if wanted not in self._answers:
                session = self._session(memory, version)
                self._answers[wanted] = session.ask(_QUESTIONS[question], seed=question, **_SAMPLED)
            return self._answers[wanted]

    def _session(self, memory: int, version: int) -> Session:
        if (memory, version) not in self._sessions:
            session = (
                self._session(memory, version - 1).fork()
                if version > 1
                else load(self._backbone, method=_METHODS[memory % len(_METHODS)])
            )
            session.write(text_of(memory, version))
            self._sessions[memory, version] = session
        return self._sessions[memory, version]

    def whose(self, answer: str) -> str:
        """Which memory gives such an answer."""
        with self._lock:
            found = [f"of memory {memory}" for (memory, _, _), known in self._answers.items() if known == answer]
        return found[0] if found else "of no memory that was asked"


@dataclass
class Shared:
    """What the clients know of a memory: its newest version, and how often it was begun anew."""

    version: int = 0
    lives: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Soak:
    """Clients, and what they have found."""

    client: Client
    library: Library
    memories: list[Shared]
    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[float, int]] = field(default_factory=list)
    """Seconds since the start, and bytes that the server takes."""
    most_decoded: int = 0
    """Files of evicted memories at a time."""

    def begin(self, memory: int) -> None:
        """Make a memory, with its first text."""
        self.client.make(f"m{memory}", method=_METHODS[memory % len(_METHODS)])
        self._write(memory, 0)

    def run(self, clients: int, seconds: float, seed: int) -> None:
        """Let all clients ask and write for so long."""
        end = time.monotonic() + seconds
        threads = [threading.Thread(target=self._work, args=(Random(f"{seed}/{n}"), end)) for n in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @contextmanager
    def sampling(self, server: Server, decoded: Path, every: float) -> Iterator[None]:
        """Inside: what the server takes of the machine's memory, and how many files of evicted memories, is noted."""
        start, is_over = time.monotonic(), threading.Event()

        def work() -> None:
            while not is_over.wait(every):
                pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1])
                self.samples.append((round(time.monotonic() - start, 1), pages * resource.getpagesize()))
                self.most_decoded = max(self.most_decoded, len(list(decoded.iterdir())))

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _work(self, random: Random, end: float) -> None:
        while time.monotonic() < end:
            memory = random.randrange(len(self.memories))
            try:
                if random.random() < 0.8:
                    self._ask(memory, random)
                else:
                    self._change(memory)
            except Exception as error:
                self.problems.append(f"{type(error).__name__}: {error}"[:200])
                return

    def _ask(self, memory: int, random: Random) -> None:
        shared, question = self.memories[memory], random.randrange(len(_QUESTIONS))
        lives, version = shared.lives, shared.version
        if not version:
            return
        pinned = random.random() < 0.5
        body = {"memory": {"id": f"m{memory}", "version": random.randint(1, version)}} if pinned else {}
        answer = self.client.ask(f"m{memory}", _QUESTIONS[question], seed=question, **_SAMPLED, **body)
        is_anew = shared.lives != lives
        if not self._is_answered("ask", answer, is_anew):
            return
        # What was written meanwhile may have been read or not.
        versions = range(version, (_VERSIONS if is_anew else shared.version) + 1)
        possible = [body["memory"]["version"]] if pinned else range(1, _VERSIONS + 1) if is_anew else versions
        # A session's answer has no white space around it.
        text = answer.text.strip()
        if all(self.library.answer(memory, each, question) != text for each in possible):
            whose = self.library.whose(text)
            self.problems.append(f"memory {memory}, versions {[*possible]}: {text!a} is an answer {whose}")

    def _change(self, memory: int) -> None:
        """Write into a memory, or begin it anew; one client at a time does that to one memory."""
        shared = self.memories[memory]
        if not shared.lock.acquire(blocking=False):
            return
        try:
            if shared.version < _VERSIONS:
                return self._write(memory, shared.version)
            shared.lives, shared.version = shared.lives + 1, 0
            if self._is_answered("delete", self.client.send("DELETE", f"/v1/memories/m{memory}"), False):
                self.begin(memory)
            shared.lives += 1
        finally:
            shared.lock.release()

    def _write(self, memory: int, version: int) -> None:
        body = {"text": text_of(memory, version + 1), "if_version": version}
        answer = self.client.send("POST", f"/v1/memories/m{memory}/writes", body)
        if self._is_answered("write", answer, False):
            self.memories[memory].version = version + 1

    def _is_answered(self, what: str, answer: Answer, is_anew: bool) -> bool:
        """Whether it was done; what may not be is noted. Where all wait, nobody is wrong."""
        self.counts[f"{what} {answer.status}"] += 1
        if answer.status not in (200, 201, 429) and not (is_anew and answer.status == 404):
            self.problems.append(f"{what}: {answer.status} {answer.raw[:150]!a}")
        return answer.status == 200


def soak(
    folder: Path, *, memories: int, clients: int, seconds: float, seed: int, every: float = 10.0
) -> dict[str, Any]:
    """Run it, and tell what came of it."""
    backbone = open_tiny(folder / "model")
    for memory in range(len(_METHODS)):
        Library(backbone).answer(memory, 1, 0)
    (decoded := folder / "decoded").mkdir()
    engine = {"queue": 4 * clients, "max_resident": _RESIDENT, "decoded": decoded}
    with forked(backbone, databases.sqlite()(folder), str(folder / "objects"), **engine) as server:
        found = Soak(server, Library(backbone), [Shared() for _ in range(memories)])
        for memory in range(memories):
            found.begin(memory)
        with found.sampling(server, decoded, every):
            found.run(clients, seconds, seed)
        if not server.is_alive:
            found.problems.append("the server has ended")
    if found.samples and not found.most_decoded:
        found.problems.append("no memory was evicted to a file")
    growth = _growth(found.samples)
    if seconds >= _LONG and growth > _FLAT:
        found.problems.append(f"the server's memory grew to {growth:.3f} in an hour")
    return {
        "memories": memories,
        "clients": clients,
        "seconds": seconds,
        "requests": dict(sorted(found.counts.items())),
        "growth_in_an_hour": round(growth, 4),
        "most_decoded_files": found.most_decoded,
        "failures": len(found.problems),
        "problems": found.problems[:20],
        "resident_bytes": found.samples,
    }


def _growth(samples: list[tuple[float, int]]) -> float:
    """What the memory in use becomes in an hour, after the first fifth, in which caches fill."""
    settled = samples[len(samples) // 5 :]
    if len(settled) < 2:
        return 1.0
    half = len(settled) // 2
    first, last = (sorted(used for _, used in part)[len(part) // 2] for part in (settled[:half], settled[half:]))
    hours = (settled[-1][0] - settled[0][0]) / 2 / 3600
    return 1 + (last / first - 1) / hours


def soak_briefly(folder: Path) -> Try:
    """A dozen memories and clients for some seconds."""

    def attempt(number: int, random: Random) -> list[str]:
        (folder / str(number)).mkdir()
        seed = random.randrange(1 << 30)
        found = soak(folder / str(number), memories=12, clients=12, seconds=10, seed=seed, every=0.5)
        asked = [] if found["requests"].get("ask 200") else [f"nothing was answered: {found['requests']}"]
        return [*found["problems"], *asked]

    return attempt


ATTACKS = (
    Attack(
        "server.soak",
        "many clients ask and write many memories: errors but 429, an answer of another memory",
        soak_briefly,
        30,
        seconds=200,
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", type=int, default=100)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a JSON file")
    given = parser.parse_args()
    # A forked process cannot use a pool of threads that its parent has started.
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from byheart.model.loading import silence
    from byheart.provenance import versions

    torch.set_num_threads(1)
    silence()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(
            Path(folder), memories=given.memories, clients=given.clients, seconds=given.seconds, seed=given.seed
        )
    if given.out:
        given.out.write_text(json.dumps({"about": versions(), **found}, indent=1) + "\n")
    print(json.dumps({name: value for name, value in found.items() if name != "resident_bytes"}, indent=1))
    return int(found["failures"] > 0)


if __name__ == "__main__":
    sys.exit(main())
