"""Commands with arguments that nobody should give."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from tests.conftest import CAT
from tests.faults.attack import Attack, Try
from tests.faults.command import Ended, run
from tests.faults.forgery import Originals
from tests.samples import METHODS

_NUMBERS = (
    *(
        "-1",
        "0",
        "1",
        "2",
        "-0",
        "1.5",
        "1e9",
        "1e-320",
        "1e400",
        "nan",
        "inf",
        "-inf",
        "",
        " ",
        "x",
        "0x10",
        "1_000",
        "٣",
    ),
    *(
        str(2**31),
        str(2**63),
        str(2**64),
        str(-(2**70)),
        "9" * 400,
        "1e-300",
        "999999999999",
        "1,2,,3",
        "5,4",
        "high,low",
    ),
)
_TEXTS = (
    *(
        "",
        " ",
        "\n",
        "x" * 5000,
        "ß" * 300,
        "\x1b[31mred",
        "\x1b]52;c;ZWNobw==\x07",
        "a\u202eb",
        "\udcff",
        "\udc80.txt",
        "\t",
    ),
    *(
        "\r\nx",
        "\x7f",
        "\x9b31m",
        "-",
        "--",
        "-x",
        "--help",
        "=",
        "a=b=c",
        "%s%n",
        "{}",
        "$HOME",
        "~",
        "~no-such-user",
        "../../x",
    ),
    *(
        "/dev/null",
        "/dev/full",
        "/etc/passwd",
        "/proc",
        ".",
        "..",
        "con",
        "a/b",
        "\\\\x",
        "'",
        '"',
        "NaN",
        "null",
        "[1,",
        "\ufeffx",
    ),
)
_PATHS = (
    "/dev/null/x",
    "/proc/self/mem",
    "/proc/1/x",
    "/proc/\udcff",
    "/proc/" + "x" * 300,
    "file:///x",
    "no/such/place",
)
_JSON = (
    *(
        "null",
        "true",
        "-1",
        "0",
        "1.5",
        "1e400",
        "[]",
        "{}",
        "[[1]]",
        '{"a":1}',
        '"x"',
        "[" * 50_000,
        "[" * 100 + "]" * 100,
    ),
    *(
        "9" * 400,
        "9" * 5000,
        "NaN",
        "Infinity",
        "[1,2",
        "x",
        "",
        "1e3",
        "[-1]",
        "[0,0]",
        "999999999",
        "[99]",
        "\udcff",
        "\x1b[2J",
    ),
)
_KEYS = (
    *(
        "model",
        "memory",
        "method",
        "new",
        "name",
        "dtype",
        "device",
        "self",
        "backbone",
        "tokenizer",
        "encoder",
        "trained",
    ),
    *(
        "options",
        "home",
        "kwargs",
        "cls",
        "args",
        "__class__",
        "__init__",
        "",
        "=",
        "a b",
        "slots",
        "recent",
        "sinks",
        "tokens",
    ),
    *(
        "chunk_tokens",
        "steps",
        "learning_rate",
        "rank",
        "linears",
        "layers",
        "segment_tokens",
        "every",
        "merge",
        "observed",
    ),
    *(
        "blocks",
        "longest",
        "shortest",
        "header",
        "footer",
        "role",
        "bound",
        "forget",
        "feed",
        "adapt",
        "kl",
        "seed",
        "alpha",
    ),
)
_DEVICES = ("mps", "xpu", "vulkan", "cuda", "cuda:99", "cpu:5", "meta", "cpu,cuda", "hip", "tpu", "cuda:x", *_TEXTS[:8])
_DTYPES = ("float8_e4m3fn", "int8", "bool", "complex64", "load", "float64", "4bit", "Tensor", "float32x", *_TEXTS[:8])
_VALUES: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("--max-tokens", "--temperature", "--top-p", "--top-k", "--seed", "--contrast", "--cad"), _NUMBERS),
    "--dola": (*_NUMBERS, *_TEXTS[:8]),
    "--stop": _TEXTS,
    "--dtype": _DTYPES,
    "--device": _DEVICES,
    "--method": (*METHODS, *_TEXTS, *_PATHS),
    "--model": (*_TEXTS, *_PATHS),
    "--home": (*_TEXTS, *_PATHS),
}
_ANSWERING = (
    "--max-tokens",
    "--temperature",
    "--top-p",
    "--top-k",
    "--seed",
    "--contrast",
    "--cad",
    "--dola",
    "--stop",
)
_OPENING = ("--dtype", "--device", "--model", "--home")


class _Grammar:
    """Commands that are right but for some of their values."""

    def __init__(self, originals: Originals, home: Path, texts: Path, random: Random) -> None:
        self.originals, self.home, self.texts, self.random = originals, home, texts, random

    def command(self) -> list[str]:
        kinds = (self.ask, self.ask, self.write, self.write, self.write, self.chat, self.keep, self.rest)
        arguments = self.random.choice(kinds)()
        return [argument.replace("\0", "") for argument in arguments]

    def options(self, names: Sequence[str], **right: str) -> list[str]:
        """Right values for some options, one or two wrong ones, each option once."""
        values = {f"--{name.replace('_', '-')}": value for name, value in right.items()}
        for name in self.random.sample(names, min(len(names), self.random.choice([0, 1, 1, 2]))):
            values[name] = self.random.choice(_VALUES[name])
        return [part for pair in values.items() for part in pair]

    def method_options(self) -> list[str]:
        keys = self.random.sample(_KEYS, self.random.choice([1, 1, 2]))
        return [part for key in keys for part in ("-o", f"{key}={self.random.choice(_JSON)}")]

    def name(self) -> str:
        return self.random.choice(["cat", "cat", "cat", "new", *self.random.sample(_TEXTS, 2)])

    def ask(self) -> list[str]:
        question = self.random.choice(["Who?", "Who?", *_TEXTS, "Who? " * 300])
        options = self.options((*_ANSWERING, *_OPENING), home=str(self.home), max_tokens="3")
        return ["ask", self.name(), question, *options, *self.random.choice([[], ["--json"]])]

    def write(self) -> list[str]:
        files = self.random.choice(
            [[], [], ["-"], [self.random.choice(_TEXTS)], [self.file()], [self.file(), self.file()]]
        )
        options = self.options(("--method", *_OPENING), home=str(self.home), model=str(self.originals.model))
        more = self.method_options() if self.random.random() < 0.6 else []
        return ["write", self.name(), *files, *options, *more, *self.random.choice([[], ["--json"]])]

    def file(self) -> str:
        return str(self.random.choice([path for path in self.texts.iterdir() if path.name != "pipe"]))

    def chat(self) -> list[str]:
        right = {"home": str(self.home), "model": str(self.originals.model), "max_tokens": "3"}
        return ["chat", self.name(), *self.options((*_ANSWERING, "--method", *_OPENING), **right)]

    def keep(self) -> list[str]:
        command = self.random.choice(["list", "show", "fork", "forget"])
        names = {"list": 0, "show": 1, "fork": 2, "forget": 1}[command] + self.random.choice([0, 0, 0, 1])
        more = ["--yes"] if command == "forget" else self.random.choice([[], ["--json"], ["--verbose"]])
        return [command, *(self.name() for _ in range(names)), *more, *self.options(("--home",), home=str(self.home))]

    def rest(self) -> list[str]:
        """Commands that find out early that something is wrong: their first values are."""
        text, other = (self.random.choice((*_TEXTS, *_PATHS, *_NUMBERS)) for _ in range(2))
        out, model = ["--out", str(self.home / "out")], ["--model", str(self.originals.model)]
        return self.random.choice(
            [
                *([text], [text, other], ["methods", text], ["tasks", text], ["compare", text, *out]),
                ["import", self.random.choice(["memoryllm", "ccm", text]), other, str(self.home / "out")],
                ["import", "ccm", text, str(self.home / "out"), "--base", other],
                ["evaluate", text, "--method", "full", "--data", other, *out, *model],
                ["evaluate", "questions", "--method", text, "--data", other, *out, *model],
                ["search", text, "--data", other, *out, *model],
                ["train", "compressed-kv", "--data", text, "--steps", other, *out, *model],
                ["train", text, "--data", "no/such/file", *out, *model],
                ["lm-eval", "cat", "--tasks", text, "--home", str(self.home)],
            ]
        )


def make_texts(folder: Path) -> Path:
    """Files to write: good ones, and some that are none."""
    folder.mkdir()
    files = {
        *(("good.txt", CAT.encode()), ("empty.txt", b""), ("blank.txt", b" \n"), ("binary", bytes(range(256)))),
        *(
            ("utf16.txt", CAT.encode("utf-16")),
            ("nul.txt", b"a\0b"),
            ("half.txt", "é".encode()[:1]),
            ("long.txt", b"x" * 9000),
        ),
        *(
            ("\x1b]0;title\x07.txt", b"text"),
            ("\udcff.txt", b"text"),
            ("a\u202eb.txt", b"text"),
            ("-x", b"text"),
            ("\n.txt", b"a"),
        ),
    }
    for name, raw in files:
        (folder / name).write_bytes(raw)
    (folder / "folder").mkdir()
    return folder


def bad_arguments(folder: Path) -> Try:
    """A command with bad values ends in one line and the right exit code."""
    originals, texts = Originals.make(folder, "full"), make_texts(folder / "texts")

    def attempt(number: int, random: Random) -> list[str]:
        home = folder / f"home{number}"
        home.mkdir()
        originals.files["full"].write(home / "cat.safetensors")
        # Where names without a folder lead to, and "..", and "~".
        here = folder / f"here{number}" / "a" / "b" / "c"
        here.mkdir(parents=True)
        os.chdir(here)
        os.environ["HOME"] = str(here)
        arguments = _Grammar(originals, home, texts, random).command()
        stdin = random.choice([b"", CAT.encode(), b"Hi\n/exit\n", b"\xff\xfe", b"\x1b[2J\n", b"y\n" * 9])
        ended = run(arguments, stdin)
        for left in (home, folder / f"here{number}"):
            shutil.rmtree(left, ignore_errors=True)
        shown = " ".join(ascii(argument)[1:-1][:60] for argument in arguments).replace(str(folder), "")
        return [f"byheart {shown} -> {problem}" for problem in [*ended.problems(), *_lines(ended)]]

    return attempt


def _lines(ended: Ended) -> list[str]:
    """An error of byheart is one line; what typer says of arguments has its frame."""
    errors = [line for line in ended.err.splitlines() if line.startswith("byheart: ")]
    if ended.code == 1 and not ended.crash and len(errors) != 1:
        return [f"{len(errors)} lines begin with 'byheart: ': {ended.err[-200:]!a}"]
    return []


ATTACKS = (
    Attack(
        "commands.arguments",
        "commands with bad values: traceback, hang, raw control characters",
        bad_arguments,
        767,
        seconds=60,
    ),
)
