"""Every command does what it says, in words and in JSON; what goes wrong is in ``test_bad_input.py``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from byheart import Decoding, open_state
from byheart.cli import options
from byheart.methods import BUILT_IN
from byheart.protocol.checkpoint import read_card
from byheart.published.convert import KINDS
from byheart.session.session import Session
from tests.conftest import CAT, Run, save_tiny, tiny_tokenizer
from tests.samples import ROOT

GOLDEN = ROOT / "tests" / "golden"
QUICK = {"last-ffn": ["-o", "steps=1"], "ffn-lora": ["-o", "steps=1"], "latent-pool": ["-o", "slots=4"]}

Made = Callable[..., Path]


# ---- start ----


def test_decoding_has_the_same_options_and_defaults_as_in_the_library() -> None:
    defaults = {name: default for name, (_, default) in options.DECODING.items()}
    assert defaults == {field.name: field.default for field in fields(Decoding)}


# ---- write ----


def test_write_says_what_it_wrote(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cat.txt").write_text(CAT, encoding="utf-8")
    ran = run("write", "cat", tmp_path / "cat.txt", "--model", tiny_folder)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("Wrote cat.txt: 44 tokens in ")
    assert "'cat' now keeps 44 tokens in " in ran.out


def test_write_says_it_in_json(run: Run, cat: Path) -> None:
    written = run("write", "cat", "--json", stdin=b"More.").json
    assert written["name"] == "cat"
    assert written["source"] == "standard input"
    assert written["characters"] == 5
    assert written["total_tokens"] == 44 + written["tokens"]
    assert written["bytes"] == cat.stat().st_size
    assert written["path"] == str(cat)
    assert written["seconds"] >= 0


def test_files_are_written_in_order_each_with_its_own_line(run: Run, cat: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(f"Text {name}.")
    ran = run("write", "cat", tmp_path / "b", tmp_path / "a", "-", "--json", stdin=b"Text c.")
    assert [json.loads(line)["source"] for line in ran.out.splitlines()] == ["b", "a", "standard input"]
    assert run("show", "cat", "--json").json["texts"] == 4


def test_line_ends_and_byte_order_marks_are_no_text(run: Run, cat: Path) -> None:
    assert run("write", "cat", "--json", stdin=b"\xef\xbb\xbfa\r\nb").json["characters"] == 3


def test_a_memory_continues_with_its_own_options(run: Run, tiny_folder: Path) -> None:
    made = ["--model", tiny_folder, "--method", "window", "-o", "recent=8", "-o", "sinks=1"]
    assert run("write", "cat", *made, stdin=b"Some text.").code == 0
    assert run("write", "cat", stdin=b"More text.").code == 0
    assert run("write", "cat", *made, stdin=b"The same choices.").code == 0
    shown = run("show", "cat", "--json").json
    # Nine of the text, and the chat template's: one before it, 19 after it.
    assert (shown["method"], shown["slots"], shown["capacity"], shown["texts"]) == ("window", 29, 29, 3)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_method_is_written_and_asked_from_the_command_line(run: Run, tiny_folder: Path, name: str) -> None:
    made = ["--model", tiny_folder, "--method", name, *QUICK.get(name, [])]
    assert run("write", "cat", *made, stdin=CAT.encode()).code == 0
    assert run("write", "cat", stdin=b"More.").code == 0
    ran = run("ask", "cat", "Who?", "--max-tokens", 4, "--json")
    assert (ran.code, ran.json["method"]) == (0, name)


def test_a_model_folder_is_found_from_another_folder(
    run: Run, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_folder.parent)
    assert run("write", "cat", "--model", tiny_folder.name, stdin=CAT.encode()).code == 0
    monkeypatch.chdir(tmp_path)
    assert run("ask", "cat", "Who?", "--max-tokens", 2).code == 0


# ---- ask ----


def test_ask_streams_what_the_session_answers(run: Run, cat: Path) -> None:
    ran = run("ask", "cat", "Who?", "--max-tokens", 12)
    assert ran.out == open_state(cat).ask("Who?", max_tokens=12) + "\n"
    assert ran.err == ""


def test_ask_in_json_says_how_the_answer_was_chosen(run: Run, cat: Path, tiny_folder: Path) -> None:
    how = ["--temperature", 0.7, "--top-p", 0.9, "--top-k", 5, "--seed", 3, "--stop", "zz", "--stop", "yy"]
    said = run("ask", "cat", "Who?", "--max-tokens", 6, *how, "--json").json
    assert said["answer"] == open_state(cat).ask(
        "Who?", max_tokens=6, temperature=0.7, top_p=0.9, top_k=5, seed=3, stop=["zz", "yy"]
    )
    assert said["decoding"]["seed"] == 3
    assert said["decoding"]["stop"] == ["zz", "yy"]
    assert said["model"] == str(tiny_folder)
    assert said["tokens"] == len(said["answer"])


@pytest.mark.parametrize("way", [["--cad", 0.5], ["--dola", "high"], ["--dola", "0,1"]])
def test_ask_contrasts(run: Run, cat: Path, way: list[object]) -> None:
    assert run("ask", "cat", "Who?", "--max-tokens", 3, *way).code == 0


def test_contrast_of_a_memory_that_changes_no_weight_is_refused(run: Run, cat: Path) -> None:
    refused = run("ask", "cat", "Who?", "--max-tokens", 3, "--contrast", 0.5)
    assert refused.code == 2
    assert "take last-ffn" in refused.err


def test_asking_leaves_the_memory_as_it_was(run: Run, cat: Path) -> None:
    before = cat.read_bytes()
    assert run("ask", "cat", "Who?", "--max-tokens", 3).code == 0
    assert cat.read_bytes() == before


# ---- chat ----


def test_chat_begins_a_memory_and_keeps_every_turn(run: Run, home: Path, tiny_folder: Path) -> None:
    ran = run("chat", "talk", "--model", tiny_folder, "--max-tokens", 3, stdin=b"I am Ada.\n\nWho am I?\n/exit\nno\n")
    assert ran.code == 0
    assert len(ran.out.splitlines()) == 2
    assert (
        len(re.findall(r"\d+ tokens more: \d+ tokens of conversation in .*, \d+ slots; the whole text has ", ran.err))
        == 2
    )
    shown = run("show", "talk", "--json").json
    assert [entry["source"] for entry in shown["written"]] == ["chat", "chat"]
    assert run("chat", "talk", "--max-tokens", 3, stdin=b"Still there?").code == 0
    assert run("show", "talk", "--json").json["texts"] == 3


def test_a_turn_is_framed_as_the_template_does(tiny_folder: Path, run: Run, home: Path) -> None:
    run("chat", "talk", "--model", tiny_folder, "--max-tokens", 1, stdin=b"Hi")
    session = open_state(home / "talk.safetensors")
    words: PreTrainedTokenizerFast = tiny_tokenizer()
    assert session.encoder.template.opening == "<|user|>"
    turn = len(words("<s><|user|>Hi<|end|><|assistant|>", add_special_tokens=False).input_ids)
    assert turn <= session.header.tokens <= turn + 4


def test_an_interrupt_ends_an_answer_and_keeps_the_turn(
    run: Run, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(session: Session, question: str, **how: object) -> Iterator[str]:
        yield "Half an"
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "reply", interrupted)
    ran = run("chat", "talk", "--model", tiny_folder, stdin=b"Hi\nHo")
    assert (ran.code, ran.out) == (0, "Half an\nHalf an\n")
    assert run("show", "talk", "--json").json["characters"] == 2 * len("HiHalf an")


def test_a_chat_continues_from_what_others_wrote_meanwhile(
    run: Run, cat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = Session.reply

    def meanwhile(session: Session, question: str, **how: int) -> Iterator[str]:
        other = open_state(cat)
        other.write("From elsewhere.", source="elsewhere")
        other.save(cat)
        return reply(session, question, **how)

    monkeypatch.setattr(Session, "reply", meanwhile)
    assert run("chat", "cat", "--max-tokens", 2, stdin=b"Hi").code == 0
    sources = [entry["source"] for entry in run("show", "cat", "--json").json["written"]]
    assert sources == ["standard input", "elsewhere", "chat"]


# ---- list, show, fork, forget ----


def test_an_empty_store_says_how_to_begin(run: Run, home: Path) -> None:
    assert run("list").out == f"There are no memories in {home}. `byheart write NAME FILE` makes one.\n"
    assert run("list", "--json").json == []


def test_list_shows_every_memory_and_which_is_damaged(run: Run, cat: Path, home: Path) -> None:
    (home / "bad.safetensors").write_bytes(cat.read_bytes()[:99])
    ran = run("list")
    bad, good = (line.split() for line in ran.out.splitlines()[1:])
    assert bad[:2] == ["bad", "damaged"]
    assert good[:2] == ["cat", "full"]
    said = {entry["name"]: entry for entry in run("list", "--json").json}
    assert "not a whole safetensors file" in said["bad"]["problem"]
    assert (said["cat"]["texts"], said["cat"]["tokens"]) == (1, 44)


def test_show_tells_what_a_memory_is(run: Run, cat: Path, tiny_folder: Path) -> None:
    said = run("show", "cat").out
    for expected in ("full", "chunk_tokens=1024", str(tiny_folder), str(cat), "44", "44 tokens", "standard input"):
        assert expected in said
    shown = run("show", "cat", "--json").json
    header = open_state(cat).header
    assert shown["backbone"] == header.backbone
    assert shown["written"][0]["tokens"] == 44
    assert shown["path"] == str(cat)


def test_show_keeps_a_long_history_short(run: Run, cat: Path) -> None:
    session = open_state(cat)
    for _ in range(11):
        session.write("More.")
    session.save(cat)
    assert "and 2 earlier" in run("show", "cat").out


def test_fork_and_forget(run: Run, cat: Path, home: Path) -> None:
    assert run("fork", "cat", "dog").out.startswith("Copied 'cat' to 'dog' (")
    assert run("fork", "cat", "cow", "--json").json["name"] == "cow"
    assert run("forget", "dog", "--yes").out == "Forgot 'dog'.\n"
    assert run("forget", "cow", "--yes", "--json").json == {"name": "cow", "forgotten": True}
    assert [entry["name"] for entry in run("list", "--json").json] == ["cat"]


def test_forget_says_what_a_link_pointed_to(run: Run, cat: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.safetensors"
    for arguments in ([], ["--json"]):
        target.write_bytes(cat.read_bytes())
        cat.with_name("linked.safetensors").symlink_to(target)
        said = run("forget", "linked", "--yes", *arguments)
        assert not target.exists()
        if arguments:
            assert said.json == {"name": "linked", "forgotten": True, "path": str(target)}
        else:
            assert said.out.split() == f"Forgot 'linked', and the file that it was a link to: {target}.".split()


@pytest.mark.parametrize(("typed", "left"), [(b"y\n", []), (b"n\n", ["cat"])])
def test_forget_asks_on_a_terminal(run: Run, cat: Path, typed: bytes, left: list[str]) -> None:
    assert run("forget", "cat", stdin=typed, terminal=True).code == (1 if left else 0)
    assert [entry["name"] for entry in run("list", "--json").json] == left


def test_a_memory_that_is_about_somebody_is_forgotten_with_all_of_theirs(
    run: Run, cat: Path, tiny_folder: Path
) -> None:
    options = ("--model", tiny_folder, "--dtype", "float32", "--method", "full")
    in_files = run("write", "eva-1", "--about", "eva", *options, stdin=b"One.")
    assert (in_files.code, "`byheart migrate` takes them over" in in_files.err) == (2, True)
    run("migrate")
    for name in ("eva-1", "eva-2"):
        assert run("write", name, "--about", "eva", *options, stdin=b"One.").code == 0
    assert run("write", "eva-1", "--about", "eva", stdin=b"Two.").code == 0
    assert run("write", "eva-1", stdin=b"Three.").code == 0
    other = run("write", "cat", "--about", "eva", stdin=b"Four.")
    assert (other.code, "Memory 'cat' is about nobody, not 'eva'" in other.err) == (2, True)
    before = len(run("show", "cat", "--json").json["written"])
    assert run("forget", "--subject", "eva", "--yes", "--json").json["memories"] == 2
    assert [memory["name"] for memory in run("list", "--json").json] == ["cat"]
    assert len(run("show", "cat", "--json").json["written"]) == before == 1


def test_home_is_an_option_too(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    there = ["--home", tmp_path / "there"]
    assert run("write", "cat", "--model", tiny_folder, *there, stdin=CAT.encode()).code == 0
    assert run("list", "--json").json == []
    assert [entry["name"] for entry in run("list", "--json", *there).json] == ["cat"]


# ---- methods, import ----


def test_methods_come_from_the_table(run: Run) -> None:
    said = run("methods").out
    assert all(name in said for name in BUILT_IN)
    listed = {row["method"]: row["options"] for row in run("methods", "--json").json}
    assert list(listed) == list(BUILT_IN)
    assert listed["latent-pool"]["slots"] == 64


def test_import_brings_a_released_pool_with_its_model(run: Run, tmp_path: Path) -> None:
    released = tmp_path / "released"
    released.mkdir()
    for name in ("config.json", "model.safetensors"):
        (released / name).write_bytes((GOLDEN / "memoryllm_7b_tiny" / name).read_bytes())
    tiny_tokenizer().save_pretrained(released)
    out = tmp_path / "own"
    said = run("import", "memoryllm", released, out, "--dtype", "float32")
    assert said.code == 0
    assert f"--model {out / 'model'} --method {out}" in said.out
    made = ["--model", out / "model", "--method", out, "--dtype", "float32"]
    assert run("write", "pool", *made, stdin=CAT.encode()).code == 0
    assert run("ask", "pool", "Who?", "--max-tokens", 2).code == 0
    header = open_state(run("show", "pool", "--json").json["path"]).header
    released_pool = KINDS["memoryllm"](released, dtype="float32")
    assert header.adapter == released_pool.fingerprint
    assert header.backbone == released_pool.backbone.fingerprint


def test_import_brings_a_released_adapter_for_its_base(run: Run, tmp_path: Path) -> None:
    where = GOLDEN / "ccm_concat_recur_tiny"
    said = run(
        "import",
        "ccm",
        where / "adapter",
        tmp_path / "own",
        "--base",
        where / "base",
        "--merge",
        "concat_recur",
        *("--dataset", "unified"),
        *("--segment-tokens", "32"),
        "--json",
    ).json
    assert said["options"]["segment_tokens"] == 32
    assert read_card(tmp_path / "own")["prompt_format"]["before"] == "\nA: "
    assert (said["method"], said["model"]) == ("compressed-kv", str(where / "base"))
    assert said["options"]["merge"] == "concat"
    assert (tmp_path / "own" / "method.safetensors").exists()
    assert not (tmp_path / "own" / "model").exists()


def test_calibrate_makes_a_codec_and_says_where(run: Run, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny", seed=62)
    text = " ".join(f"the cat number {n} sat on mat {n * 7 % 31} and saw {n % 5} birds" for n in range(120))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    out = tmp_path / "codec.safetensors"
    made = run("calibrate", folder, "--data", tmp_path / "text.txt", "--out", out, "--json").json
    assert made["path"] == str(out)
    assert made["bytes"] == out.stat().st_size
    shown = run("calibrate", folder, "--data", tmp_path / "text.txt", "--dtype", "float32").out
    assert shown.startswith("The codec of")
    kept = run("calibrate", folder, "--use", out, "--dtype", "float32", "--json").json
    assert kept["codec"] == made["codec"]
    assert (
        run("write", "small", "--model", folder, "--method", "compact", "--dtype", "float32", stdin=b"cats").code == 0
    )


# ---- facts ----


def test_calibrate_measures_layers_and_says_where(run: Run, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny", seed=63)
    (tmp_path / "text.txt").write_text("the cat sat on the mat " * 60, encoding="utf-8")
    data = ("--data", tmp_path / "text.txt", "--dtype", "float32")
    made = run("calibrate", folder, "--layers", "0,1", *data, "--json").json
    assert made["layers"] == [0, 1]
    assert len(list(Path(made["path"]).iterdir())) == 2
    assert run("calibrate", folder, "--layers", "2", *data).out.startswith("What layers 2 of")
    refused = run("calibrate", folder, "--layers", "2", "--anew")
    assert (refused.code, "leave out --out, --use and --anew" in refused.err) == (2, True)
    assert run("calibrate", folder, "--layers", "x").code == 2


def test_a_fact_is_written_with_its_marks(run: Run, tiny_folder: Path) -> None:
    options = ("--model", tiny_folder, "--dtype", "float32", "--method", "rome", "-o", "layers=[1]", "-o", "steps=2")
    marks = ("--subject", "Ann", "--target", "Rex")
    said = run("write", "dogs", *options, *marks, "--json", stdin=b"The dog of Ann is Rex.").json
    assert said["tokens"] > 3
    missing = run("write", "dogs", *marks, stdin=b"The dog of Bo is Tom.")
    assert (missing.code, "does not hold 'Rex', which is to be known of it" in missing.err) == (1, True)
