"""Folders of memories, some of them damaged, that are listed and shown."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from operator import itemgetter
from pathlib import Path
from random import Random

from tests.faults.attack import Attack, Try
from tests.faults.command import command, run
from tests.faults.forgery import Originals, StateFile
from tests.faults.states import forge_header, spoil_bytes
from tests.samples import ROOT


def list_damaged(folder: Path) -> Try:
    """`list` shows every memory and `show` ends in a line, whatever lies in the folder."""
    originals = Originals.make(folder, "full", "window")
    good = originals.files["full"]

    def attempt(number: int, random: Random) -> list[str]:
        home = folder / f"home{number}"
        home.mkdir()
        good.write(home / "good.safetensors")
        names, told = ["good"], []
        for index in range(4):
            names.append(f"m{index}")
            told.append(_damage(home / f"m{index}.safetensors", good, random))
        listed, shown = run(["list", "--json", "--home", str(home)]), run(["list", "--home", str(home)])
        problems = listed.problems() + shown.problems()
        found = {} if listed.code else {entry["name"]: entry for entry in json.loads(listed.out)}
        problems += [f"'{name}' is not listed" for name in names if name not in found]
        problems += ["the good one is called damaged"] if "problem" in found.get("good", {}) else []
        for name in names:
            for more in ([], ["--json"]):
                problems += [
                    f"show {name}: {problem}" for problem in run(["show", name, "--home", str(home), *more]).problems()
                ]
        return [f"{' | '.join(told)} -> {problem}" for problem in dict.fromkeys(problems)]

    return attempt


def _damage(path: Path, good: StateFile, random: Random) -> str:
    kind = random.choice(
        ["header"] * 5 + ["bytes", "escapes", "escapes", "folder", "dangling", "pipe", "socket", "device", "empty"]
    )
    if kind == "header":
        kind, header = forge_header(good.header, random)
        good.with_header(header).write(path)
    elif kind == "bytes":
        raw = bytearray(good.write(path).read_bytes())
        spoil_bytes(raw, random)
        path.write_bytes(raw)
    elif kind == "escapes":
        kind, header = _escapes(good.header, random)
        good.with_header(header).write(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to("no-such-file")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            here = os.getcwd()
            os.chdir(path.parent)
            made.bind(path.name)
            os.chdir(here)
    elif kind == "device":
        path.symlink_to(random.choice(["/dev/zero", "/dev/tty", "/dev/stdin"]))
    else:
        path.touch()
    return kind


_ESCAPES = (
    "\x1b]52;c;ZWNobw==\x07",
    "\x1b[2J\x1b[31m",
    "\x9b31m",
    "a\rb",
    "a\nb",
    "\u202etxt",
    "\x07",
    "\x7f",
    "\x00",
    "\ud800",
    "[red]x",
)


def _escapes(header: str, random: Random) -> tuple[str, str]:
    fields, text = json.loads(header), random.choice(_ESCAPES)
    place = random.choice(["source", "source", "model", "method", "learned", "dtype", "options", "text_format", "at"])
    if place in ("source", "at"):
        fields["written"][0][place] = text
    else:
        fields[place] = {text: text} if place == "options" else text
    return f"{place} {text!a}", json.dumps(fields)


_LISTS = 3


def list_many(folder: Path) -> Try:
    """A thousand memories, a hundred of them damaged, are listed within a second."""
    originals, home = Originals.make(folder, "window"), folder / "home"
    home.mkdir()
    whole = originals.files["window"].write(folder / "m.safetensors").read_bytes()

    def attempt(number: int, random: Random) -> list[str]:
        for index in range(1_000):
            raw = bytearray(whole)
            if index % 10 == 0:
                spoil_bytes(raw, random)
            (home / f"m{index}.safetensors").write_bytes(raw)
        # The quickest of some: other work on the machine counts as little as it can.
        seconds, ended = min((_time(home) for _ in range(_LISTS)), key=itemgetter(0))
        problems = [] if seconds <= 1 else [f"it took {seconds:.2f} s"]
        listed = len(json.loads(ended.stdout)) if ended.returncode == 0 else 0
        return problems + ([] if listed == 1_000 else [f"{listed} of 1,000 were listed: {ended.stderr[-200:]!r}"])

    return attempt


def _time(home: Path) -> tuple[float, subprocess.CompletedProcess[bytes]]:
    """The seconds that `list` takes, as its user waits for it, and how it ended."""
    start = time.monotonic()
    ended = subprocess.run(command("list", "--json", "--home", str(home)), capture_output=True, cwd=ROOT)
    return time.monotonic() - start, ended


ATTACKS = (
    Attack(
        "commands.damaged",
        "damaged memories listed and shown: hidden, traceback, raw control characters",
        list_damaged,
        350,
    ),
    Attack(
        "commands.thousand", "1,000 memories listed, 100 damaged: over 1 s, not all shown", list_many, 1, seconds=200
    ),
)
