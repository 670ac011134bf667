"""Commands whose surroundings fail: interrupted, without stdout, in another locale."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from random import Random

from tests.faults.arguments import make_texts
from tests.faults.attack import Attack, Try
from tests.faults.command import Ended, command
from tests.faults.forgery import Originals
from tests.samples import ROOT


def hostile_surroundings(folder: Path) -> Try:
    """Interrupted at any moment, without stdout, or in another locale: no traceback, and what was saved is told."""
    originals, texts = Originals.make(folder, "full"), make_texts(folder / "texts")
    files = [str(texts / name) for name in ("good.txt", "\udcff.txt", "\x1b]0;title\x07.txt", "a\u202eb.txt")]
    model = ("--model", str(originals.model))
    asking = ("ask", "cat", "Who?", "--max-tokens", "3", *model)

    def attempt(number: int, random: Random) -> list[str]:
        home = folder / f"home{number}"
        home.mkdir()
        originals.files["full"].write(home / "cat.safetensors")
        arguments = random.choice([("write", "cat", random.choice(files), *model), asking, ("list",), ("show", "cat")])
        kind = random.choice(["interrupt", "interrupt", "closed", "full", "reader gone", "ascii", "locale"])
        ended = _run(kind, command(*arguments, "--home", str(home)), random)
        problems = [] if (kind, ended.code) in _SILENT and not ended.err else ended.problems()
        return [f"{kind}: {' '.join(arguments)!a:.100} -> {problem}" for problem in problems]

    return attempt


def _run(kind: str, arguments: list[str], random: Random) -> Ended:
    """Run a command, and do to it what ``kind`` says."""
    if kind == "closed":
        arguments = ["sh", "-c", '"$@" >&-', "sh", *arguments]
    environment = {**os.environ, **_ENVIRONMENTS.get(kind, {})}
    with open("/dev/full", "wb") as full:
        out = full if kind == "full" else subprocess.PIPE
        streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": subprocess.PIPE}
        process = subprocess.Popen(arguments, **streams, cwd=ROOT, env=environment)
    if kind == "reader gone" and process.stdout is not None:
        process.stdout.close()
        process.stdout = None
    if kind == "interrupt":
        time.sleep(random.choice([random.uniform(0.05, 0.4), random.uniform(0.4, 6)]))
        process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=180)
    return Ended(process.returncode, (stdout or b"").decode(errors="replace"), stderr.decode(errors="replace"))


# Python itself ends by the signal before it runs anything; and who no longer reads is told nothing.
_SILENT = (("interrupt", -signal.SIGINT), ("reader gone", 1))
_ENVIRONMENTS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "locale": {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}

ATTACKS = (
    Attack(
        "commands.processes",
        "commands interrupted, without stdout, in other locales: traceback",
        hostile_surroundings,
        60,
        seconds=200,
    ),
)
