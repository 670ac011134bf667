"""What a user can get wrong ends in one clear line, the right exit code, and the memory byte for byte as it was."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from byheart.cli import texts
from byheart.protocol import state_file as states
from byheart.session.session import Session
from tests.conftest import CAT, Ran, Run

TEXT = CAT.encode()
Fails = Callable[..., str]


@pytest.fixture
def fails(run: Run, home: Path) -> Fails:
    """Run a command that must fail in one line, and leave every memory as it was; gives the line."""

    def failed(*arguments: object, code: int = 1, stdin: bytes = b"") -> str:
        before = _files(home)
        ran: Ran = run(*arguments, stdin=stdin)
        assert _files(home) == before
        assert ran.code == code, ran
        assert ran.out == ""
        assert len(ran.err.splitlines()) == 1, ran.err
        assert ran.err.startswith("byheart: ")
        return ran.err.removeprefix("byheart: ").strip()

    return failed


def _files(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in home.glob("*") if path.suffix != ".lock"}


# ---- text ----


@pytest.mark.parametrize("text", [b"", b" \n\t ", b"\xef\xbb\xbf"])
def test_empty_text(fails: Fails, cat: Path, text: bytes) -> None:
    assert fails("write", "cat", stdin=text) == "Standard input holds no text to write."


def test_text_that_is_not_utf8(fails: Fails, cat: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Łódź".encode("iso-8859-2"))
    line = fails("write", "cat", tmp_path / "latin.txt")
    assert line == f"'{tmp_path / 'latin.txt'}' is not UTF-8 text: byte 0 is 0xa3. Convert it, as with iconv."


def test_nothing_is_written_when_a_later_file_cannot_be_read(fails: Fails, cat: Path, tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_bytes(TEXT)
    assert "cannot be read: No such file" in fails("write", "cat", tmp_path / "good.txt", tmp_path / "none.txt")
    assert "cannot be read: Is a directory" in fails("write", "cat", tmp_path)


def test_what_was_acknowledged_stays_when_a_later_file_does_not_fit(run: Run, cat: Path, tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_bytes(TEXT)
    (tmp_path / "long.txt").write_bytes(TEXT * 30)
    ran = run("write", "cat", tmp_path / "good.txt", tmp_path / "long.txt", "--json")
    assert ran.code == 1
    assert ran.err.startswith("byheart: The text has ")
    assert json.loads(ran.out)["source"] == "good.txt"
    assert run("show", "cat", "--json").json["texts"] == 2


@pytest.mark.parametrize("method", ["full", "last-ffn"])
def test_text_longer_than_the_model_reads(fails: Fails, cat: Path, tiny_folder: Path, method: str) -> None:
    line = fails("write", "long", "--method", method, "--model", tiny_folder, stdin=TEXT * 30)
    assert "but the model reads at most 512" in line


@pytest.mark.parametrize("question", ["", "  \n"])
def test_empty_question(fails: Fails, cat: Path, question: str) -> None:
    assert fails("ask", "cat", question) == "There is nothing to ask: the question is empty."


def test_question_that_is_not_utf8(fails: Fails, cat: Path) -> None:
    assert "half a character" in fails("ask", "cat", "Who \udcff?")


def test_question_too_long_for_an_answer(fails: Fails, cat: Path) -> None:
    assert "leave no room for an answer" in fails("ask", "cat", "Who? " * 100)


def test_chat_that_outgrows_the_model(run: Run, cat: Path) -> None:
    ran = run("chat", "cat", "--max-tokens", 2, stdin=b"Hi\n" + b"x" * 600)
    assert ran.code == 1
    assert "leave no room for an answer" in ran.err.splitlines()[-1]
    assert run("show", "cat", "--json").json["texts"] == 2


def test_chat_that_is_not_utf8(run: Run, cat: Path) -> None:
    before = cat.read_bytes()
    ran = run("chat", "cat", stdin=b"\xff\xfe\n")
    assert (ran.code, ran.err.splitlines()[-1]) == (1, "byheart: What was typed is not UTF-8 text.")
    assert cat.read_bytes() == before


# ---- names ----


@pytest.mark.parametrize("name", ["../cat", "/tmp/cat", "a b", ".cat", "x" * 101])
@pytest.mark.parametrize("command", [["write"], ["ask", "Who?"], ["show"], ["fork", "dog"], ["forget", "--yes"]])
def test_a_path_is_no_name(fails: Fails, cat: Path, command: list[str], name: str) -> None:
    first, *rest = command
    assert "cannot name a memory; a name is" in fails(first, name, *rest, stdin=TEXT)


@pytest.mark.parametrize(
    "command", [["ask", "cart", "Who?"], ["show", "cart"], ["fork", "cart", "x"], ["forget", "cart"]]
)
def test_a_memory_that_is_not_there(fails: Fails, cat: Path, command: list[str]) -> None:
    assert fails(*command) == "There is no memory 'cart'. Did you mean 'cat'? `byheart list` shows all."


def test_a_name_that_is_taken(fails: Fails, cat: Path) -> None:
    assert "There is a memory 'cat' already" in fails("fork", "cat", "cat")


@pytest.mark.parametrize("arguments", [["/dev/zero"], ["-"], ["long.txt"]])
def test_a_text_without_end_is_refused(
    fails: Fails, cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(texts, "LONGEST", 1 << 20)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.txt").write_bytes(b"a" * ((1 << 20) + 1))
    line = fails("write", "cat", *arguments, stdin=b"a" * ((1 << 20) + 1))
    assert line.endswith(" has more than 1 MiB of text; write it in parts.")


def test_forgetting_unasked_takes_a_yes(fails: Fails, cat: Path) -> None:
    assert fails("forget", "cat", code=2) == "To forget 'cat' without being asked, give --yes."


# ---- choices ----


@pytest.mark.parametrize(
    ("choice", "line"),
    [
        (["--method", "window"], "was made with method 'full', not 'window'"),
        (["-o", "chunk_tokens=5"], "was made with chunk_tokens 1024, not 5"),
        (["-o", "rows=5"], "There is no option of full 'rows'. There are: bits, chunk_tokens, opening, receipt."),
        (["-o", "rows"], "--option takes key=value, such as slots=64; it is 'rows'."),
        (["--dtype", "int8"], "dtype 'int8' is not known; give auto, "),
        (["--device", "abacus"], "device 'abacus' is not known"),
    ],
)
def test_choices_that_are_not_how_the_memory_was_made(fails: Fails, cat: Path, choice: list[str], line: str) -> None:
    assert line in fails("write", "cat", *choice, stdin=TEXT, code=2)


@pytest.mark.parametrize(
    ("choice", "line"),
    [
        (["--method", "windw"], "'windw'. Did you mean 'window'? There are: adapter, attention-score, "),
        (["--method", "window", "-o", "recnt=5"], "no option of window 'recnt'. Did you mean 'recent'?"),
        (
            ["--method", "window", "-o", "recent=many"],
            "recent of window must be a whole number, such as 508; it is 'many'.",
        ),
        (
            ["--method", "window", "-o", "recent=true"],
            "recent of window must be a whole number, such as 508; it is True.",
        ),
        (["--method", "window", "-o", "recent=0"], "recent must be above 0; it is 0."),
        (["--method", "last-ffn", "-o", "kl=NaN"], "kl of last-ffn must be a number, such as 0.1; it is 'NaN'."),
        (["--method", "compressed-kv", "-o", "merge=sum"], "merge must be one of concat, mean; it is 'sum'."),
    ],
)
def test_choices_that_no_memory_can_be_made_with(
    fails: Fails, cat: Path, tiny_folder: Path, choice: list[str], line: str
) -> None:
    assert line in fails("write", "new", "--model", tiny_folder, *choice, stdin=TEXT, code=2)


@pytest.mark.parametrize(
    ("choice", "line"),
    [
        (["--max-tokens", "0"], "max_tokens must be 1 or more"),
        (["--temperature", "-1"], "temperature must be 0, or between 1e-06 and 1,000,000; it is -1.0."),
        (["--temperature", "nan"], "temperature must be a finite number; it is nan."),
        (["--top-p", "2"], "top_p must be above 0 and at most 1"),
        (["--top-k", "-1"], "top_k must be 0 or more"),
        (["--contrast", "0.5", "--cad", "0.5"], "Choose one of contrast, context_aware."),
        (["--dola", "middle"], "--dola takes high, low or layers such as 4,6,8; it is 'middle'."),
        (["--dola", "99"], "dola's layers must lie between 0 and 1; they are [99]."),
    ],
)
def test_answers_that_cannot_be_chosen_so(fails: Fails, cat: Path, choice: list[str], line: str) -> None:
    assert line in fails("ask", "cat", "Who?", *choice, code=2)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["wrte", "cat"], "No such command 'wrte'. Did you mean 'write'? `byheart --help` says more."),
        (["ask", "cat"], "Missing argument 'question'. `byheart ask --help` says more."),
        (["list", "--colour"], "No such option: --colour. `byheart list --help` says more."),
        (["list", "--\x1b]0;x\x07"], "`byheart list --help` says more."),
    ],
)
def test_an_unknown_command_or_option(fails: Fails, home: Path, arguments: list[str], line: str) -> None:
    assert fails(*arguments, code=2).endswith(line)


# ---- files ----


def test_another_model(fails: Fails, cat: Path, tiny_folder: Path, other_folder: Path) -> None:
    line = fails("ask", "cat", "Who?", "--model", other_folder)
    assert "was made with another model" in line
    assert str(tiny_folder) in line
    assert str(other_folder) in line


def test_another_precision(fails: Fails, cat: Path, run: Run) -> None:
    dtype = "float32" if run("show", "cat", "--json").json["dtype"] == "bfloat16" else "bfloat16"
    assert f"this session has {dtype}" in fails("write", "cat", "--dtype", dtype, stdin=TEXT)


def _hash(tensors: dict[str, Tensor], text: str) -> str:
    """The hash of a state file, as docs describe it."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _edit(path: Path, **changes: Any) -> None:
    """Change the header of a state file, with a hash that fits."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        header = {**json.loads(file.metadata()["byheart"]), **changes}
    text = json.dumps(header, sort_keys=True)
    save_file(tensors, path, metadata={"byheart": text, "hash": _hash(tensors, text)})


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"format": 99}, "has state format 99; this version of byheart reads formats 1 to "),
        ({"method": "diary"}, "'diary'. There are: adapter, attention-score, "),
        ({"options": {"chunk_tokens": 1024, "pages": 3}}, "There is no option of full 'pages'."),
        ({"tokenizer": "0" * 32}, "was made with another tokenizer"),
        ({"adapter": "0" * 32}, "was made with other trained parts"),
        ({"model": "/no/such", "backbone": "0" * 32}, "was made with model '/no/such', which you have not opened yet"),
        ({"surprise": 1}, "has a header that cannot be read"),
    ],
)
def test_a_memory_of_another_making(fails: Fails, cat: Path, changes: dict[str, Any], line: str) -> None:
    _edit(cat, **changes)
    assert line in fails("ask", "cat", "Who?")


@pytest.mark.parametrize("length", [0, 7, 100, -1])
@pytest.mark.parametrize("command", [["ask", "cat", "Who?"], ["write", "cat"], ["show", "cat"], ["fork", "cat", "dog"]])
def test_a_truncated_file(fails: Fails, cat: Path, length: int, command: list[str]) -> None:
    cat.write_bytes(cat.read_bytes()[:length])
    assert "is not a whole safetensors file" in fails(*command, stdin=TEXT)


@pytest.mark.parametrize("command", [["ask", "cat", "Who?"], ["write", "cat"], ["fork", "cat", "dog"]])
def test_a_changed_file(fails: Fails, cat: Path, command: list[str]) -> None:
    raw = bytearray(cat.read_bytes())
    raw[-1] ^= 1
    cat.write_bytes(raw)
    assert "was changed after it was written (its hash differs)" in fails(*command, stdin=TEXT)


def test_a_safetensors_file_of_something_else(fails: Fails, cat: Path) -> None:
    save_file(load_file(cat), cat)
    assert "is a safetensors file, but not a byheart state" in fails("show", "cat")


# ---- models ----


def test_a_gguf_that_is_none(fails: Fails, cat: Path, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_bytes(b"no model at all")
    assert "is not a GGUF file" in fails("write", "new", "--model", tmp_path / "text.gguf", stdin=TEXT)
    assert "There is no file or folder" in fails("write", "new", "--model", tmp_path / "none.gguf", stdin=TEXT)


def test_a_model_that_is_misspelt(fails: Fails, cat: Path) -> None:
    line = fails("write", "new", "--model", "smolm2", stdin=TEXT)
    assert line == "There is no model 'smolm2'. Did you mean 'smollm2'?"


def test_a_gguf_that_breaks_off(fails: Fails, cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYHEART_CACHE", str(tmp_path / "cache"))
    (tmp_path / "half.gguf").write_bytes(b"GGUF\x03\0\0\0")
    assert "could not be read as a GGUF model" in fails("write", "new", "--model", tmp_path / "half.gguf", stdin=TEXT)
    assert not list((tmp_path / "cache" / "models").glob("*/"))


@pytest.mark.parametrize("spoilt", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("how", ["gone", "broken"])
def test_a_model_folder_with_a_file_spoilt(
    fails: Fails, cat: Path, tiny_folder: Path, tmp_path: Path, spoilt: str, how: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / spoilt).unlink() if how == "gone" else (folder / spoilt).write_text("{")
    assert str(folder) in fails("write", "new", "--model", folder, stdin=TEXT)


def test_a_folder_without_a_trained_memory(fails: Fails, cat: Path, tiny_folder: Path, tmp_path: Path) -> None:
    line = fails("write", "new", "--model", tiny_folder, "--method", tmp_path, stdin=TEXT)
    assert "holds no trained method: method.json cannot be read" in line


# ---- import ----


def test_imports_that_cannot_be(fails: Fails, cat: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "There is no kind of checkpoint 'cmm'. Did you mean 'ccm'?" in fails("import", "cmm", tmp_path, out, code=2)
    assert "ccm cannot be read with these options" in fails("import", "ccm", tmp_path, out, "--merge", "concat", code=2)
    assert "config.json" in fails("import", "memoryllm", tmp_path / "home", out)
    assert "exists already; give a new or an empty folder" in fails("import", "memoryllm", tmp_path, tmp_path, code=2)
    assert not out.exists()


# ---- whatever is typed ----

# What is typed where a name, a number, a path or a text is meant.
_TYPED = {
    "nothing": "",
    "a space": " ",
    "nan": "nan",
    "infinity": "inf",
    "below zero": "-1",
    "nearly zero": "1e-320",
    "too large": "18446744073709551616",
    "endless digits": "9" * 5000,
    "endless": "x" * 5000,
    "deep": "[" * 50_000,
    "json": '{"a": [1, null]}',
    "null": "null",
    "escape": "\x1b]52;c;cm0=\x07",
    "c1": "\x9b2J",
    "turned": "txt.\u202eexe",
    "half": "\udcff",
    "lines": "a\nb",
    "nul": "a\0b",
    "markup": "[/x]{0}%s",
    "away": "../..",
    "a file": "/etc/passwd",
    "a device": "/dev/null",
    "nobody": "~nobody-of-this-name/x",
}
# Where it is typed. None of these opens a model, but for the method's options.
_PLACES: dict[str, list[str]] = {
    "command": ["{}"],
    "list home": ["list", "--home={}"],
    "list option": ["list", "--{}"],
    "show": ["show", "{}"],
    "fork from": ["fork", "{}", "dog"],
    "fork to": ["fork", "cat", "{}"],
    "forget": ["forget", "{}", "--yes"],
    "ask name": ["ask", "{}", "Who?"],
    "ask seed": ["ask", "cat", "Who?", "--seed={}", "--max-tokens=0"],
    "ask temperature": ["ask", "cat", "Who?", "--temperature={}", "--max-tokens=0"],
    "ask top-p": ["ask", "cat", "Who?", "--top-p={}", "--max-tokens=0"],
    "ask dola": ["ask", "cat", "Who?", "--dola={}", "--max-tokens=0"],
    "write file": ["write", "cat", "{}"],
    "write home": ["write", "cat", "nothing-there.txt", "--home={}"],
    "compare": ["compare", "{}", "--out=OUT"],
    "import": ["import", "{}", "nothing-there", "OUT"],
    "train recipe": ["train", "compressed-kv", "--out=OUT", "--recipe={}", "--data=nothing-there.txt"],
    "train segments": ["train", "compressed-kv", "--out=OUT", "--segments={}", "--data=nothing-there.txt"],
    "evaluate task": ["evaluate", "{}", "--method=full", "--data=nothing-there.jsonl"],
    "evaluate option": ["evaluate", "questions", "-o", "{}=1", "--method=full", "--data=nothing-there.jsonl"],
    "score file": ["score", "faithful", "{}", "--data=nothing-there.jsonl"],
    "search metric": ["search", "--data=nothing-there.jsonl", "--metric={}"],
    "search grid": ["search", "--data=nothing-there.jsonl", "--grid={}"],
}


@pytest.mark.parametrize("typed", _TYPED.values(), ids=_TYPED)
@pytest.mark.parametrize("place", _PLACES.values(), ids=_PLACES)
def test_whatever_is_typed_ends_in_one_line_at_most(
    run: Run, cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: list[str], typed: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = cat.read_bytes()
    ran = run(*(part.replace("OUT", str(tmp_path / "out")).replace("{}", typed) for part in place), stdin=b"")
    assert ran.code in (0, 1, 2)
    assert ran.code or not ran.err
    assert len(ran.err.splitlines()) <= 1
    assert all(line.isprintable() for line in (ran.out + ran.err).splitlines())
    assert cat.read_bytes() == before


@pytest.mark.parametrize("value", ["1", "x", "null", "[" * 50_000])
@pytest.mark.parametrize(
    "key",
    [
        "model",
        "memory",
        "new",
        "name",
        "dtype",
        "device",
        "self",
        "backbone",
        "tokenizer",
        "encoder",
        "trained",
        "home",
    ],
)
def test_an_option_is_never_an_argument(fails: Fails, cat: Path, tiny_folder: Path, key: str, value: str) -> None:
    line = fails("write", "dog", "--model", tiny_folder, "-o", f"{key}={value}", stdin=TEXT, code=2)
    assert f"'{key}'" in line


@pytest.mark.parametrize(
    ("choice", "line"),
    [
        (["--seed", str(1 << 64)], "seed must be 0 or more, and below 2**64; it is 18446744073709551616."),
        (["--seed", "-1"], "seed must be 0 or more, and below 2**64; it is -1."),
        (["--temperature", "1e-320"], "temperature must be 0, or between 1e-06 and 1,000,000; it is 1e-320."),
        (["--temperature", "inf"], "temperature must be a finite number; it is inf."),
        (["--top-p", "0"], "top_p must be above 0 and at most 1; it is 0.0."),
        (["--device", "vulkan"], "device 'vulkan' is not on this machine; give auto or cpu."),
        (["--device", "meta"], "device 'meta' is not on this machine; give auto or cpu."),
    ],
)
def test_choices_outside_what_can_be(fails: Fails, cat: Path, choice: list[str], line: str) -> None:
    assert fails("ask", "cat", "Who?", *choice, code=2) == line


def test_a_smallest_set_holds_the_likeliest_token(run: Run, cat: Path) -> None:
    sampled = run("ask", "cat", "Who?", "--max-tokens", 4, "--temperature", 1, "--top-p", "1e-300", "--seed", 0)
    assert (sampled.code, sampled.out) == (0, run("ask", "cat", "Who?", "--max-tokens", 4).out)


def test_a_file_whose_name_is_not_utf8_is_kept_shown_and_holds_up_no_other(run: Run, cat: Path, tmp_path: Path) -> None:
    odd = tmp_path / "\udcff\x1b.txt"
    try:
        odd.write_bytes(TEXT)
    except OSError:
        pytest.skip("names are text on this system")
    (tmp_path / "later.txt").write_bytes(TEXT)
    ran = run("write", "cat", odd, tmp_path / "later.txt")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(r"Wrote \xff\x1b.txt: ")
    assert [entry["source"] for entry in run("show", "cat", "--json").json["written"][1:]] == [
        "\\xff\x1b.txt",
        "later.txt",
    ]
    assert r"\xff\x1b.txt" in run("show", "cat").out


def test_what_a_header_says_steers_no_terminal(run: Run, cat: Path) -> None:
    with safe_open(cat, "pt") as file:
        written = json.loads(file.metadata()["byheart"])["written"]
    source = "\x1b]52;c;cm0=\x07\x9b2J\u202e\udcff[/x]:cat:"
    _edit(cat, model="\x1b[2J", written=[{**written[0], "source": source}])
    for command in (["list"], ["show", "cat"], ["list", "--json"], ["show", "cat", "--json"], ["ask", "cat", "Who?"]):
        ran = run(*command)
        assert all(line.isprintable() for line in (ran.out + ran.err).splitlines()), ran
    assert run("show", "cat", "--json").json["written"][0]["source"] == source
    assert r"\x1b]52;c;cm0=\x07\x9b2J\u202e\udcff[/x]:cat:" in run("show", "cat").out


def test_a_thousand_memories_of_which_some_are_damaged_are_all_listed(run: Run, cat: Path) -> None:
    whole = cat.read_bytes()
    for number in range(999):
        damaged = number % 10 == 0
        cat.with_name(f"m{number}.safetensors").write_bytes(whole[: len(whole) // 2] if damaged else whole)
    listed = run("list", "--json").json
    assert len(listed) == 1000
    assert sum("problem" in entry for entry in listed) == 100


# ---- trouble while it works ----


def test_a_full_disk_leaves_the_earlier_memory(fails: Fails, cat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(states, "serialize", full)
    line = fails("write", "cat", stdin=TEXT)
    assert "could not be written: [Errno 28] No space left on device. The earlier memory is as it was." in line


def test_a_home_that_is_a_file(fails: Fails, cat: Path, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    line = fails("write", "cat", "--home", tmp_path / "file", "--model", tiny_folder, stdin=TEXT)
    assert "Memories cannot be kept in" in line


@pytest.mark.parametrize("command", [["write", "cat"], ["ask", "cat", "Who?"]])
def test_an_interrupt_leaves_the_memory(
    run: Run, cat: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    def interrupted(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    before = cat.read_bytes()
    for name in ("write", "stream"):
        monkeypatch.setattr(Session, name, interrupted)
    assert run(*command, stdin=TEXT).code == 130
    assert cat.read_bytes() == before
