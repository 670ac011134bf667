"""FastMem's own files, prompts and protocol. All records here are made up for these tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from byheart.cli import terminal
from byheart.data.records import rows
from byheart.errors import InputError, UsageError
from byheart.evaluation.evaluate import evaluate
from byheart.evaluation.task import Item, Question
from byheart.evaluation.tasks.faithful import Faithful
from byheart.evaluation.tasks.summary import Summary
from byheart.text.encoder import ChatEncoder
from tests.conftest import Run, save_tiny, tiny_tokenizer

NQ_SWAP = {
    "input": "who paints the red barn",
    "context": "The red barn was painted by Ann Lee .",
    "answer": "Ann Lee",
    "sub_context": "The red barn was painted by Bo Mur .",
    "sub_answer": "Bo Mur",
}
ON_THE_HUB = {
    "question": "who paints the red barn ?",
    "org_context": NQ_SWAP["context"],
    "org_answer": ["Ann Lee"],
    "sub_context": NQ_SWAP["sub_context"],
    "sub_answer": ["Bo Mur"],
}
MEMOTRAP = {
    "prompt": 'Write a line that ends in "soup": Note: a watched pot never',
    "classes": "[' boils.', ' soup.']",
    "answer_index": 1,
    "round": 2,
    "part": 1,
}
HOTPOT = {
    "id": "1",
    "question": "Which barn is red?",
    "answer": "Ann's barn",
    "context": {"title": ["Barns", "Ann"], "sentences": [["One barn is red.", "It is Ann's."], ["Ann paints."]]},
}
OFFICIAL_HOTPOT = {
    "_id": "1",
    "question": "Which barn is red?",
    "answer": "Ann's barn",
    "context": [["Barns", ["One barn is red.", "It is Ann's."]], ["Ann", ["Ann paints."]]],
}
ARTICLE = {"article": " A barn burned down.\nNobody was hurt. ", "summary": "A barn burned."}


def kept(folder: Path, name: str, records: Sequence[dict[str, Any]]) -> str:
    """A file as it is published: a list in .json, lines in .jsonl."""
    lines = json.dumps(records) if name.endswith(".json") else "".join(f"{json.dumps(row)}\n" for row in records)
    (folder / name).write_text(lines, encoding="utf-8")
    return str(folder / name)


def only(task: Faithful | Summary, path: str) -> tuple[Item, Question]:
    (item,) = task.items(rows(path), 0)
    return item, item.questions[0]


# ---- the files of the question sets ----


@pytest.mark.parametrize(
    ("name", "record", "options", "text", "answers"),
    [
        ("nqswap.json", NQ_SWAP, {}, NQ_SWAP["sub_context"], ("Bo Mur",)),
        ("nqswap.json", NQ_SWAP, {"swapped": False}, NQ_SWAP["context"], ("Ann Lee",)),
        ("NQ-Swap.jsonl", ON_THE_HUB, {}, NQ_SWAP["sub_context"], ("Bo Mur",)),
        ("NQ-Swap.jsonl", ON_THE_HUB, {"swapped": False}, NQ_SWAP["context"], ("Ann Lee",)),
        ("memotrap.json", MEMOTRAP, {}, 'Write a line that ends in "soup".', ("soup",)),
        ("hotpotqa.json", HOTPOT, {}, "One barn is red. It is Ann's.\nAnn paints.", ("Ann's barn",)),
        ("hotpot_dev.json", OFFICIAL_HOTPOT, {}, "One barn is red. It is Ann's.\nAnn paints.", ("Ann's barn",)),
    ],
    ids=["nqswap", "nq", "nq-swap on the hub", "nq on the hub", "memotrap", "hotpotqa", "hotpotqa's own"],
)
def test_files_of_the_question_sets_are_read_as_they_come(
    tmp_path: Path, name: str, record: dict[str, Any], options: dict[str, Any], text: str, answers: tuple[str, ...]
) -> None:
    item, asked = only(Faithful(context=True, **options), kept(tmp_path, name, [record]))
    assert item.texts == (text,)
    assert (asked.answers, asked.record) == (answers, 1)
    assert text.rstrip(".") in asked.text
    assert asked.text.splitlines()[-1] in (
        "Question: who paints the red barn?",
        "Question: Which barn is red?",
        'Candidates: "boils" or "soup"',
    )


@pytest.mark.parametrize("context", [{"title": ["x"]}, [["alone"]], 7])
def test_paragraphs_that_are_not_as_hotpots_are_named(tmp_path: Path, context: Any) -> None:
    with pytest.raises(InputError, match="Record 1 has a 'context' that is neither a text nor HotpotQA's paragraphs"):
        only(Faithful(), kept(tmp_path, "x.json", [{**HOTPOT, "context": context}]))


# ---- the prompts ----


def test_the_published_form_is_how_to_answer_then_the_context_then_the_question(tmp_path: Path) -> None:
    path = kept(tmp_path, "nqswap.json", [NQ_SWAP])
    _, asked = only(Faithful(context=True, instruction="Say it."), path)
    assert asked.text == f"Say it.\nContext: {NQ_SWAP['sub_context']}\nQuestion: who paints the red barn?"
    assert asked.unconditional == "Say it.\nQuestion: who paints the red barn?"
    _, asked = only(Faithful(context=True, instruction="Say it."), kept(tmp_path, "memotrap.json", [MEMOTRAP]))
    assert asked.text == (
        'Say it.\nInstruction: Write a line that ends in "soup"\nSentence: Note: a watched pot never\n'
        'Candidates: "boils" or "soup"'
    )


def test_with_icl_how_to_answer_is_written_too(tmp_path: Path) -> None:
    path = kept(tmp_path, "nqswap.json", [NQ_SWAP])
    item, asked = only(Faithful(icl=True, instruction="Say it."), path)
    assert item.texts == (f"Say it.\nContext: {NQ_SWAP['sub_context']}",)
    assert asked.text == "Question: who paints the red barn?"
    # With the context in the question, the prompt of nqswap_icl is that of nqswap.
    _, repeated = only(Faithful(icl=True, instruction="Say it.", context=True), path)
    _, plain = only(Faithful(instruction="Say it.", context=True), path)
    assert repeated.text == plain.text


def test_one_shot_shows_another_record_with_its_answer(tmp_path: Path) -> None:
    others = [{**NQ_SWAP, "sub_context": f"Barn {n}.", "sub_answer": f"Bo {n}"} for n in range(3)]
    path = kept(tmp_path, "nqswap.json", others)
    items = list(Faithful(shots=1, context=True, instruction="Say it.").items(rows(path), 0))
    for item in items:
        shown, asked = item.questions[0].text.split("\n\n")
        assert asked == f"Say it.\nContext: {item.texts[0]}\nQuestion: who paints the red barn?"
        n = shown.partition("Barn ")[2][0]
        assert shown == f"Say it.\nContext: Barn {n}.\nQuestion: who paints the red barn?\nThe answer is: Bo {n}"
        assert f"Barn {n}" not in asked
    assert len({item.questions[0].text.partition("\n\n")[0] for item in items}) == 3
    bare = next(Faithful(shots=1, instruction="Say it.").items(rows(path), 0)).questions[0].text
    assert bare.split("\n\n")[1] == "Say it.\nQuestion: who paints the red barn?"
    with pytest.raises(InputError, match="3 records give no 3 others to show; give fewer shots"):
        list(Faithful(shots=3).items(rows(path), 0))


def test_only_the_first_records_are_taken_whatever_the_seed(tmp_path: Path) -> None:
    records = [{**NQ_SWAP, "sub_answer": str(n)} for n in range(9)]
    path = kept(tmp_path, "nqswap.json", records)
    for seed in (0, 1):
        items = list(Faithful(first=4).items(rows(path), seed))
        assert {item.questions[0].answers[0] for item in items} == set("0123")
        assert [item.questions[0].record - 1 for item in items] == [int(i.questions[0].answers[0]) for i in items]


@pytest.mark.parametrize("option", ["shots", "first", "doc_tokens"])
def test_numbers_below_zero_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match=f"{option} must be 0 or more"):
        Faithful(**{option: -1})


# ---- a context cut by tokens ----


def test_a_text_is_cut_after_so_many_tokens() -> None:
    encoder = ChatEncoder(tiny_tokenizer())
    # A token of this tokenizer is a character; the name of a special token in a text is only text.
    assert encoder.cut("abcdef", 4) == "abcd"
    assert encoder.cut("abcdef", 6) == encoder.cut("abcdef", 600) == "abcdef"
    assert encoder.cut("ab<|user|>cd", 3) == "ab<"


def test_a_context_is_cut_where_it_is_written_and_where_it_is_repeated(tmp_path: Path) -> None:
    for task, record, text in (
        (Faithful(doc_tokens=7, context=True), NQ_SWAP, "The red"),
        (Summary(doc_tokens=6, context=True, dataset="xsum"), ARTICLE, "A barn"),
    ):
        path = kept(tmp_path, "x.json", [record])
        with pytest.raises(UsageError, match=r"to be cut after . tokens, but there is no model here"):
            only(task, path)
        assert task.split(ChatEncoder(tiny_tokenizer())) == (task,)
        item, asked = only(task, path)
        assert item.texts == (text,)
        assert f": {text}\n" in asked.text


# ---- summaries ----


@pytest.mark.parametrize(
    ("name", "asks"),
    [
        ("cnndm_sample_test_3000.jsonl", "Summarize the above article in 3 sentences."),
        ("xsum_sample_test_3000.jsonl", "Summarize the above article in 1 sentence."),
        (
            "wikihow_sample_train_1000.jsonl",
            "Summarize the above article in few steps using concise verb-object phrases directly.",
        ),
    ],
)
def test_files_of_summaries_say_what_is_asked_in_their_names(tmp_path: Path, name: str, asks: str) -> None:
    pytest.importorskip("rouge_score")
    path = kept(tmp_path, name, [ARTICLE])
    item, asked = only(Summary(context=True), path)
    text = "A barn burned down.\nNobody was hurt."
    assert item.texts == (text,)
    assert asked.text == f"Article: {text}\n{asks}"
    assert (asked.unconditional, asked.answers) == (asks, ("A barn burned.",))
    assert only(Summary(), path)[1].text == asks


def test_a_file_of_summaries_with_another_name_says_which_option_helps(tmp_path: Path) -> None:
    pytest.importorskip("rouge_score")
    path = kept(tmp_path, "mine.jsonl", [ARTICLE])
    with pytest.raises(InputError, match=r"Record 1 is of '.*/mine', which .* give -o dataset=NAME .* cnndm, xsum, wi"):
        only(Summary(), path)
    assert "1 sentence" in only(Summary(dataset="xsum"), path)[1].text
    # XSum as the paper's own converter writes it, and CNN/DailyMail as it is on the hub.
    for record in ({"text": "A barn burned.", "summary": "It burned."}, {"article": "A.", "highlights": "B."}):
        item, asked = only(Summary(dataset="xsum"), kept(tmp_path, "mine.jsonl", [record]))
        assert (item.texts[0], asked.answers[0]) in (("A barn burned.", "It burned."), ("A.", "B."))


# ---- all of it, on a tiny model ----


def test_the_protocol_runs_from_the_command_line(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    path = kept(tmp_path, "nqswap.json", [{**NQ_SWAP, "sub_answer": str(n)} for n in range(3)])
    method = "nothing:max_tokens=1,last-ffn:steps=1;keep_text=false;max_tokens=1"
    options = ["context=true", "icl=true", "shots=1", "first=2", "doc_tokens=9", "instruction=Say it."]
    flags = [flag for option in options for flag in ("-o", option)]
    ran = run("evaluate", "faithful", "--method", method, "--data", path, "-m", tiny_folder, *flags, "--json")
    assert ran.code == 0, ran.err
    assert {(row["metric"], row["n"]) for row in ran.json} == {("accuracy", 2), ("failures", 2)}


def test_accuracy_and_failures_are_seen_while_it_runs(
    run: Run, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 0.0)
    path = kept(tmp_path, "nqswap.json", [{**NQ_SWAP, "sub_answer": str(n)} for n in range(4)])
    for command in (["evaluate", "faithful", "--method", "nothing:max_tokens=1"], ["search", "--grid", "max_tokens=1"]):
        flags = ["--data", path, "-m", tiny_folder, "--batch", 2, "-o", "published=true"]
        ran = run(*command, *flags)
        assert ran.code == 0, ran.err
        lines = ran.err.splitlines()
        assert "accuracy 0.000, failures 1.000, 0 min" in [line for line in lines if "8/8" in line][-1]
        assert not any("accuracy" in line for line in lines if "2/8" in line)


def test_what_is_known_so_far_has_the_answers_of_a_resumed_run(tiny_folder: Path, tmp_path: Path) -> None:
    records = [{**NQ_SWAP, "sub_answer": answer} for answer in ("no", "no", "no", "yes")]
    path = kept(tmp_path, "nqswap.json", records)
    where: dict[str, Any] = {"model": str(tiny_folder), "dtype": "float32", "out": tmp_path / "out", "batch": 1}
    said: list[tuple[str, dict[str, float]]] = []
    for limit in (2, 0):
        methods = ["full:max_tokens=1", "full:max_tokens=2"]
        rows = evaluate(
            Faithful(published=True), path, methods, limit=limit, live=lambda *so_far: said.append(so_far), **where
        )
        # What is said last is what the rows have.
        for row in rows:
            last = [means for method, means in said if method == row.method][-1]
            assert last[row.metric] == pytest.approx(row.value)
    assert sum(method == "full:max_tokens=1" for method, _ in said) == 2 + 1 + 2
    assert {metric for _, means in said for metric in means} == {"accuracy", "failures"}
    assert {means["accuracy"] for _, means in said} >= {1.0, 0.75}


def test_the_number_of_a_record_decides_no_answer(tiny_folder: Path, tmp_path: Path) -> None:
    """A run of a byheart that knew no numbers of records is resumed."""
    assert Question("a", record=3) == Question("a")
    where: dict[str, Any] = {"model": str(tiny_folder), "dtype": "float32", "out": tmp_path / "out"}
    path = kept(tmp_path, "nqswap.json", [NQ_SWAP])
    evaluate(Faithful(), path, ["nothing:max_tokens=1"], **where)
    (file,) = (tmp_path / "out" / "answers").rglob("*.jsonl")
    answer = json.loads(file.read_text())
    assert answer["digest"] == "6f0162412482"


def test_a_run_without_the_system_prompt_is_another_one(run: Run, tmp_path: Path) -> None:
    folder, tokenizer = save_tiny(tmp_path / "tiny"), tiny_tokenizer()
    tokenizer.chat_template = "{{ '<|user|>Be brief.<|end|>' }}" + str(tokenizer.chat_template)
    tokenizer.save_pretrained(folder)
    flags = ["--data", kept(tmp_path, "nqswap.json", [NQ_SWAP]), "-m", folder, "--out", tmp_path / "out"]
    for more in ([], ["--no-system-prompt"], ["--system-prompt"]):
        ran = run("evaluate", "faithful", "--method", "nothing:max_tokens=1", *flags, *more)
        assert ran.code == 0, ran.err
        rows = json.loads((tmp_path / "out" / "rows.json").read_text())
        said = [each.get("system_prompt") for each in rows["about"]["runs"]]
        assert said == ([False] if more == ["--no-system-prompt"] else [None])
    assert len(list((tmp_path / "out" / "answers").rglob("*.jsonl"))) == 2
