"""Writers that are killed, readers beside writers, full disks, and files that change while they are open."""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import torch

from byheart import load
from byheart.errors import StateError, StoreError
from byheart.model.backbone import Backbone
from byheart.session.session import Session
from byheart.store.folder import Store
from tests.conftest import CAT, save_tiny
from tests.faults.attack import Attack, Try, refused
from tests.samples import ROOT

_WINDOW = {"method": "window", "sinks": 2, "recent": 300}


def _backbone(folder: Path) -> Backbone:
    return Backbone.open(str(save_tiny(folder / "model")), dtype="float32")


def _write(store: Store, name: str, session: Session, source: str, text: str = CAT) -> None:
    with store.updating(name, session):
        session.write(text, source=source)


def _sources(store: Store, name: str) -> Counter[str]:
    header = store.entry(name).header
    return Counter(entry.source for entry in header.written) if header else Counter()


def _left(home: Path) -> list[str]:
    """Files that are no memory and no lock of one."""
    names = {path.name.removesuffix(".safetensors") for path in home.glob("*.safetensors")}
    known = {f"{name}.safetensors" for name in names} | {f".{name}.lock" for name in names}
    return [f"'{path.name}' was left, {path.stat().st_size} bytes" for path in home.iterdir() if path.name not in known]


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[int]:
    """Inside: another process repeats ``work``; gives its id. After: it was killed, if it was not already."""
    child = os.fork()
    if child == 0:
        try:
            while True:
                work()
        finally:
            os._exit(1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            raise ChildProcessError("the process that was to be disturbed ended by itself")


# ---- killed writers ----

_KILLS = 50
_OPENED = "it was accepted"


def kill_writers(folder: Path) -> Try:
    """What was acknowledged is there once, the file is whole, and the next write leaves nothing else."""
    backbone = _backbone(folder)

    def attempt(number: int, random: Random) -> list[str]:
        store = Store(folder / f"home{number}")
        acknowledged, problems = set[str](), list[str]()
        for kill in range(_KILLS):
            acknowledged |= _killed(store, backbone, f"{kill}", random.uniform(0.0, 0.12))
            problems += _check(store, acknowledged)
        session = store.open("m", new=True, model=backbone, **_WINDOW)
        _write(store, "m", session, "last")
        return problems + _check(store, acknowledged | {"last"}) + _left(store.home)

    return attempt


def _killed(store: Store, backbone: Backbone, label: str, seconds: float) -> set[str]:
    """What a writer acknowledged until it was killed."""
    acknowledged, pipe = os.pipe()
    counter = itertools.count()
    session = store.open("m", new=True, model=backbone, **_WINDOW)

    def write() -> None:
        source = f"{label}-{next(counter)}"
        _write(store, "m", session, source)
        os.write(pipe, f"{source}\n".encode())

    with beside(write):
        time.sleep(seconds)
    os.close(pipe)
    with os.fdopen(acknowledged) as lines:
        return set(lines.read().split())


def _check(store: Store, acknowledged: set[str]) -> list[str]:
    if not acknowledged:
        return []
    found = _sources(store, "m")
    lost = [f"'{source}' was lost" for source in acknowledged if source not in found]
    return lost + [f"'{source}' is there {count} times" for source, count in found.items() if count > 1]


def kill_saves(folder: Path) -> Try:
    """The same for saves to a path, where no store waits for other writers: the file is the one state or the other."""
    backbone = _backbone(folder)

    def attempt(number: int, random: Random) -> list[str]:
        path = folder / f"home{number}" / "m.safetensors"
        session = load(backbone, **_WINDOW)
        session.write(CAT * 8, source="0")
        session.save(path)
        longer, problems = session.fork(), list[str]()
        longer.write(CAT, source="1")
        savers = itertools.cycle([session, longer])
        for _ in range(_KILLS):
            with beside(lambda: next(savers).save(path)), beside(lambda: longer.save(path)):
                time.sleep(random.uniform(0.0, 0.03))
            problems += [problem for problem in refused(lambda: session.fork().load(path)) if problem != _OPENED]
        session.save(path)
        left = [f"'{found.name}' was left" for found in path.parent.iterdir() if found != path]
        return problems + left

    return attempt


def kill_commands(folder: Path) -> Try:
    """The same for ``byheart write`` with many files, killed after it has acknowledged some."""
    model = save_tiny(folder / "model")
    texts = [folder / f"{index}.txt" for index in range(40)]
    for path in texts:
        path.write_text(CAT)

    def attempt(number: int, random: Random) -> list[str]:
        home = folder / f"home{number}"
        write = [sys.executable, "-m", "byheart", "write", "m", "--home", str(home), "--model", str(model), "--json"]
        options = ["--method", "window", "-o", "recent=300", "--dtype", "float32"]
        process = subprocess.Popen([*write, *options, *map(str, texts)], stdout=subprocess.PIPE, cwd=ROOT)
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(random.randint(1, 12))]
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        seen += process.stdout.readlines()
        process.wait()
        last = subprocess.run([*write, str(texts[0])], cwd=ROOT, capture_output=True)
        acknowledged = {json.loads(line)["source"] for line in seen if line.endswith(b"\n")}
        problems = [] if last.returncode == 0 else [f"the next write failed: {last.stderr.decode()[-200:]}"]
        lost = acknowledged - _sources(Store(home), "m").keys()
        return problems + [f"'{source}' was lost" for source in lost] + _left(home)

    return attempt


# ---- others at the same time ----

_LOADS = 100


def read_beside_a_writer(folder: Path) -> Try:
    """A file that is replaced meanwhile is never called damaged."""
    backbone = _backbone(folder)

    def attempt(number: int, random: Random) -> list[str]:
        store = Store(folder / f"home{number}")
        writer = load(backbone, **_WINDOW)
        _write(store, "m", writer, "first")
        reader = writer.fork()
        uses: list[Callable[[], object]] = [
            *[lambda: reader.load(store.path("m"))] * 7,
            *[lambda: store.entry("m"), lambda: _fork_and_forget(store), lambda: store.open("m", model=backbone)],
        ]
        with beside(lambda: _write(store, "m", writer, "more")):
            found = [refused(random.choice(uses)) for _ in range(_LOADS)]
        return [problem for problems in found for problem in problems if problem != _OPENED]

    return attempt


def _fork_and_forget(store: Store) -> None:
    store.fork("m", "copy")
    store.forget("copy")


def rewrite_what_was_forgotten(folder: Path) -> Try:
    """A session whose memory another has forgotten and written anew takes the new text, or is told."""
    backbone = _backbone(folder)

    def attempt(number: int, random: Random) -> list[str]:
        store = Store(folder / f"home{number}")
        options = random.choice([_WINDOW, {"method": "full"}, {"method": "every-kth"}])
        stale, other = load(backbone, **options), load(backbone, **options)
        _write(store, "m", stale, "text", "The cat is called Muck.")
        store.forget("m")
        _write(store, "m", other, "text", "The cat is called Tom .")
        expected = other.fork()
        try:
            _write(store, "m", stale, "more")
        except StoreError:
            return [] if store.exists("m") else ["the new memory is gone"]
        expected.write(CAT, source="more")
        found = store.open("m", model=backbone).state
        same = all(torch.equal(found[name], tensor) for name, tensor in expected.state.items())
        return [] if same else [f"{options['method']}: the text of the other writer was lost"]

    return attempt


_LISTS = 30


def list_beside_forget(folder: Path) -> Try:
    """A memory that is forgotten meanwhile is listed or not; the others always are."""
    backbone = _backbone(folder)

    def attempt(number: int, random: Random) -> list[str]:
        store = Store(folder / f"home{number}")
        _write(store, "kept", load(backbone, **_WINDOW), "text")
        whole = store.path("kept").read_bytes()

        def come_and_go() -> None:
            names = [f"m{index}" for index in range(20)]
            for name in names:
                store.path(name).write_bytes(whole)
            for name in names:
                store.forget(name)

        problems = []
        with beside(come_and_go):
            for _ in range(_LISTS):
                try:
                    kept = [entry for entry in store.entries() if entry.name == "kept"]
                    problems += [] if kept and kept[0].header else ["what nobody forgot was not listed"]
                except Exception as error:
                    problems.append(f"{type(error).__name__}: {error}"[:200])
        return problems

    return attempt


def come_together(folder: Path) -> Try:
    """What several writers of one memory acknowledge is all there, also where they begin it."""
    backbone = _backbone(folder)

    def attempt(number: int, random: Random) -> list[str]:
        store, children = Store(folder / f"home{number}"), []
        writers, writes = random.randint(2, 4), random.randint(1, 10)
        for writer in range(writers):
            child = os.fork()
            if child == 0:
                session = store.open("m", new=True, model=backbone, **_WINDOW)
                for index in range(writes):
                    _write(store, "m", session, f"{writer}-{index}")
                os._exit(0)
            children.append(child)
        ended = [os.waitpid(child, 0)[1] for child in children]
        problems = [f"a writer ended with status {status}" for status in ended if status]
        return problems + _check(store, {f"{writer}-{index}" for writer in range(writers) for index in range(writes)})

    return attempt


# ---- disks and files ----


def fill_the_disk(folder: Path) -> Try:
    """A write that does not fit is an error; the earlier memory stays, and the session continues once there is room."""
    backbone = _backbone(folder)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def attempt(number: int, random: Random) -> list[str]:
        store, session = Store(folder / f"home{number}"), load(backbone, **_WINDOW)
        earlier = random.randint(0, 2)
        for index in range(earlier):
            _write(store, "m", session, f"{index}")
        with _file_size(random.choice([0, 1, 100, 4096, 8000])):
            problems = refused(lambda: _write(store, "m", session, "full"), StateError, StoreError)
            problems += [] if _written(store) == earlier else [f"{earlier} texts became {_written(store)}"]
        _write(store, "m", session, "after")
        found = _sources(store, "m")
        return (
            problems
            + ([] if found["after"] == 1 and found["0"] == (earlier > 0) else [f"afterwards: {found}"])
            + _left(store.home)
        )

    return attempt


def _written(store: Store) -> int:
    return sum(_sources(store, "m").values()) if store.exists("m") else 0


@contextmanager
def _file_size(most: int) -> Iterator[None]:
    """Inside: no file can grow beyond ``most`` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def change_an_open_file(folder: Path) -> Try:
    """Whatever happens to the file of an open memory, its answers stay."""
    backbone = _backbone(folder)

    def attempt(number: int, random: Random) -> list[str]:
        store, session = Store(folder / f"home{number}"), load(backbone, **_WINDOW)
        _write(store, "m", session, "text", CAT * random.randint(1, 8))
        expected = store.open("m", model=backbone).ask("Who?", max_tokens=6)
        opened, path = store.open("m", model=backbone), store.path("m")
        raw = path.read_bytes()
        with path.open("r+b") as file:
            change = random.choice(["truncated", "zeroed", "other"])
            if change == "truncated":
                file.truncate(random.choice([0, 8, len(raw) // 2, len(raw) - 1]))
            else:
                file.write(bytes(len(raw)) if change == "zeroed" else random.randbytes(len(raw)))
        answer = opened.ask("Who?", max_tokens=6)
        return [] if answer == expected else [f"{change}: {answer!r} instead of {expected!r}"]

    return attempt


ATTACKS = (
    Attack("crash.kill", "writers killed, then one write: texts lost, files left", kill_writers, 1_000, _KILLS, 120),
    Attack(
        "crash.saves", "saves to a path killed, then one save: states mixed, files left", kill_saves, 200, _KILLS, 120
    ),
    Attack(
        "crash.commands", "`byheart write` killed, then one write: texts lost, files left", kill_commands, 20, 1, 120
    ),
    Attack("crash.readers", "loads beside a writer: false damage", read_beside_a_writer, 10_000, _LOADS, 120),
    Attack("crash.forgotten", "memories forgotten and written anew: texts lost", rewrite_what_was_forgotten, 100),
    Attack("crash.lists", "lists beside `forget`: errors, memories hidden", list_beside_forget, 3_000, _LISTS, 120),
    Attack("crash.writers", "writers of one memory: texts lost", come_together, 60),
    Attack("crash.full_disk", "writes onto a full disk: memories hurt, sessions unusable", fill_the_disk, 60),
    Attack(
        "crash.changed",
        "open files overwritten or truncated: answers changed, processes killed",
        change_an_open_file,
        60,
    ),
)
