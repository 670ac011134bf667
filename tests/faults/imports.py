"""Changed state files that are imported by a server: refused, unless they say the same; and the server goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from byheart.serving.http.settings import Settings
from tests.faults.attack import Attack, Try
from tests.faults.forgery import Originals, StateFile
from tests.faults.states import TENSORS, could_be, forge_header, says_the_same, spoil_bytes
from tests.serving.processes import Server, fork_server

_BATCH = 100
_REFUSED = {400, 409, 413, 422}


@dataclass(frozen=True)
class Forged:
    """A changed file, and whether it may be taken all the same."""

    what: str
    raw: bytes
    is_harmless: bool = False


def _change_bytes(original: StateFile, path: Path, random: Random) -> Forged:
    raw = bytearray(original.write(path).read_bytes())
    spoil_bytes(raw, random)
    path.write_bytes(raw)
    try:
        is_harmless = says_the_same(path, original)
    except Exception:
        # The reader of safetensors has refused it already.
        is_harmless = False
    return Forged("bytes", bytes(raw), is_harmless)


def _change_tensors(original: StateFile, path: Path, random: Random) -> Forged:
    change = random.choice(TENSORS if original.tensors else TENSORS[2:3])
    tensors = change(original.tensors, random)
    raw = original.with_tensors(tensors).write(path).read_bytes()
    return Forged(change.__name__, raw, could_be(original.tensors, tensors))


def _change_header(original: StateFile, path: Path, random: Random) -> Forged:
    what, header = forge_header(original.header, random)
    raw = original.with_header(header).write(path).read_bytes()
    return Forged(what, raw, header == original.header)


_CHANGES: tuple[Callable[[StateFile, Path, Random], Forged], ...] = (
    *(_change_bytes,) * 6,
    *(_change_tensors,) * 2,
    *(_change_header,) * 2,
)


def import_states(folder: Path) -> Try:
    """Files changed in bytes, tensors or header, sent to a server that has a memory of its own."""
    originals = Originals.make(folder)
    servers: dict[str, Server] = {}

    def attempt(number: int, random: Random) -> list[str]:
        if not servers:
            home = folder / f"home{number}"
            home.mkdir()
            where = (f"sqlite:///{home / 'sqlite3'}", str(home / "objects"))
            allowed = Settings(methods=tuple(originals.files))
            servers["here"] = fork_server(originals.backbone, *where, settings=allowed)
            servers["here"].make("good", method="full")
            servers["here"].write("good", "The cat is called Muck.", "good")
        server = servers["here"]
        before = server.ask("good").text
        problems = [problem for _ in range(_BATCH) for problem in _try(server, originals, folder / "forged", random)]
        after = server.ask("good")
        if after.status != 200 or after.text != before:
            problems.append(f"afterwards a memory is answered with {after.status} {after.raw[:200]!a}")
        if server.send("GET", "/v1/usage").json["memories"] != 1:
            problems.append("memories of refused files were left")
        if not server.is_alive:
            servers.clear()
        return problems

    return attempt


def _try(server: Server, originals: Originals, path: Path, random: Random) -> list[str]:
    method = random.choice(sorted(originals.files))
    forged = random.choice(_CHANGES)(originals.files[method], path, random)
    answer = server.send("PUT", "/v1/memories/forged/content", forged.raw, content_type="application/octet-stream")
    if answer.status in (200, 201):
        server.send("DELETE", "/v1/memories/forged")
    is_right = answer.status in _REFUSED or (answer.status == 201 and forged.is_harmless)
    return [] if is_right else [f"{method}: {forged.what!a:.100} -> {answer.status} {answer.raw[:200]!a}"]


ATTACKS = (
    Attack(
        "server.states",
        "changed state files that are imported: accepted, a mistake of the server, no end, something left",
        import_states,
        20_000,
        batch=_BATCH,
        seconds=300,
    ),
)
