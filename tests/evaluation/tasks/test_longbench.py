"""LongBench as published; the records of this module are made up for it, in the official format."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from byheart.errors import InputError, UsageError
from byheart.evaluation.evaluate import evaluate
from byheart.evaluation.results import Result
from byheart.evaluation.task import Answer, Fields, Item
from byheart.evaluation.tasks import build
from byheart.evaluation.tasks.longbench import LongBench
from byheart.generation.decoding import Decoding
from byheart.generation.generate import Generation
from byheart.session.opening import load
from byheart.session.session import Session

STORY = "\n\n".join(f"Passage {n}: Muck {n} sat, and Rex {n} ran." for n in range(1, 60))


def record(dataset: str, **more: Any) -> Fields:
    given = {"input": "Who sat?", "context": STORY, "answers": ["Muck 7"], "length": 420, "dataset": dataset}
    return {**given, "language": "en", "all_classes": None, "_id": "a1", **more}


@pytest.fixture
def opened(tiny_folder: Path) -> Session:
    return load(str(tiny_folder), method="full", dtype="float32")


def items(task: LongBench, records: Sequence[Fields], opened: Session) -> list[Item]:
    (split,) = task.split(opened.encoder)
    return list(split.items(records, 0))


def written(item: Item) -> tuple[int, ...]:
    return tuple(token for text in item.texts for token in text if isinstance(token, int))


@pytest.mark.parametrize("dataset", ["hotpotqa", "qasper", "trec", "passage_retrieval_en", "gov_report", "repobench-p"])
def test_the_prompt_form_is_the_official_prompt_as_one_turn(dataset: str, opened: Session) -> None:
    (item,) = items(LongBench(form="prompt"), [record(dataset, all_classes=["City"])], opened)
    (turns,) = items(LongBench(), [record(dataset, all_classes=["City"])], opened)
    question, is_turn = item.questions[0], dataset not in ("trec", "repobench-p")
    between = {"qasper": "\n\n ", "trec": "", "repobench-p": ""}.get(dataset, "\n\n")
    whole = f"{turns.texts[0]}{between}{turns.questions[0].text}"
    expected = opened.encoder.question(whole, continues=False, use_chat_template=is_turn)
    assert [*written(item), *question.tokens] == expected.tolist()
    asked = opened.encoder.decode(question.tokens)
    assert turns.questions[0].text.strip()[-20:] in asked
    assert "Passage 3" not in asked
    assert (item.use_chat_template, question.use_chat_template) == (is_turn, is_turn)
    # No turn stands inside of it.
    assert "I have read it." not in opened.encoder.decode(written(item))


def test_the_full_text_in_the_prompt_form_is_what_the_model_says_to_the_official_prompt(
    opened: Session, tmp_path: Path
) -> None:
    short = record("hotpotqa", context="Muck sat. Rex ran.")
    (item,) = items(LongBench(form="prompt"), [short], opened)
    (tmp_path / "hotpotqa.jsonl").write_text(json.dumps(short))
    out = tmp_path / "out"
    evaluate(LongBench(form="prompt"), str(tmp_path / "hotpotqa.jsonl"), ["full"], model=opened.backbone, out=out)
    whole = opened.encoder.question(
        "Answer the question based on the given passages. Only give me the answer and do not output any other words."
        "\n\nThe following are given passages.\nMuck sat. Rex ran.\n\nAnswer the question based on the given passages. "
        "Only give me the answer and do not output any other words.\n\nQuestion: Who sat?\nAnswer:",
        continues=False,
    )
    nothing = load(opened.backbone, method="nothing", encoder=opened.encoder)
    request = nothing.request("x", Decoding(max_tokens=32), tokens=whole.tolist())
    generation, made = Generation(nothing.backbone), list[int | None]()
    generation.add([request])
    while generation.running:
        made.append(generation.step()[0].last)
    said = "".join(opened.encoder.decode([token for token in made if token is not None]))
    (line,) = [json.loads(line) for line in (out / "pred" / "full" / "hotpotqa.jsonl").read_text().splitlines()]
    assert line == {"pred": said.strip(), "answers": ["Muck 7"], "all_classes": None, "length": 420}
    assert item.questions[0].max_tokens == 32


def test_a_prompt_that_is_too_long_loses_its_middle(opened: Session) -> None:
    encoder = opened.encoder
    (whole,) = items(LongBench(form="prompt"), [record("hotpotqa")], opened)
    (cut,) = items(LongBench(form="prompt", tokens=601), [record("hotpotqa")], opened)
    text = encoder.decode(written(cut))
    assert "The following are given passages." in text
    assert "Passage 30:" not in text
    assert "Passage 59:" in text
    assert encoder.decode(cut.questions[0].tokens) == encoder.decode(whole.questions[0].tokens)
    around = len(encoder.question("x", continues=False)) + 5
    assert 600 - 5 <= len(written(cut)) + len(cut.questions[0].tokens) <= 600 + around
    (tiny,) = items(LongBench(form="prompt", tokens=4), [record("hotpotqa")], opened)
    assert len(written(tiny)) == 1
    assert tiny.questions[0].tokens


def test_memoryllms_blocks_are_cut_from_the_end(opened: Session) -> None:
    encoder = opened.encoder
    (turns,) = items(LongBench(), [record("qasper")], opened)
    ids = encoder.continuation(f"{turns.texts[0]}\n\n {turns.questions[0].text}").tolist()
    (item,) = items(LongBench(form="blocks"), [record("qasper")], opened)
    lengths = [len(text) for text in item.texts]
    assert [*written(item), *item.questions[0].tokens] == ids
    assert len(item.questions[0].tokens) == 512 - 128
    assert lengths[1:] == [512] * (len(lengths) - 1)
    assert lengths[0] == (len(ids) - 384) % 512
    assert not item.use_chat_template
    assert not item.questions[0].use_chat_template
    (cut,) = items(LongBench(form="blocks", tokens=600), [record("qasper")], opened)
    kept = len(written(cut)) + len(cut.questions[0].tokens)
    assert abs(kept - (600 - 128)) < 5
    assert cut.questions[0].tokens == item.questions[0].tokens


def test_of_a_summary_memoryllm_continues_the_last_two_paragraphs(opened: Session) -> None:
    (item,) = items(LongBench(form="blocks"), [record("gov_report")], opened)
    assert opened.encoder.decode(item.questions[0].tokens) == "Now, write a one-page summary of the report.\n\nSummary:"
    assert opened.encoder.decode(written(item)).endswith("Rex 59 ran.")


def test_longbench_e_has_a_row_for_each_length(tmp_path: Path, opened: Session) -> None:
    lengths = (100, 4000, 7999, 8000)
    records = [record("lcc_e", length=length, answers=["x"]) for length in lengths]
    found = items(LongBench(), records, opened)
    assert sorted(item.questions[0].conditions["length"] for item in found) == ["0-4k", "4-8k", "4-8k", "8k+"]
    (plain,) = items(LongBench(by_length=True), [record("lcc")], opened)
    assert plain.questions[0].conditions == {"subset": "lcc", "length": "0-4k"}
    task, question = LongBench(), found[0].questions[0]
    assert task.official(question, "  y ") == (
        "pred_e/lcc.jsonl",
        {"pred": "  y ", "answers": ["x"], "all_classes": None, "length": question.about["length"]},
    )
    with pytest.raises(InputError, match="Record 1 has the length '9'; LongBench's are whole numbers of words"):
        items(LongBench(by_length=True), [record("lcc", length="9")], opened)
    rows = [
        Result("t", "d", "m", "score", value, value, value, 4, 8, 1.0, {"subset": subset, "length": length})
        for subset, length, value in (("a", "0-4k", 0.2), ("a", "8k+", 0.6), ("b", "0-4k", 0.4))
    ]
    (average,) = task.summary(rows)
    assert (average.value, average.conditions) == (pytest.approx(0.3), {"length": "0-4k"})


def test_classes_stand_in_the_official_line() -> None:
    (item,) = LongBench().items([record("trec", all_classes=["City", "Name"], answers=["City"])], 0)
    name, line = LongBench().official(item.questions[0], "City")
    assert (name, line["all_classes"], line["length"]) == ("pred/trec.jsonl", ["City", "Name"], 420)


def test_whitespace_before_code_is_part_of_it(tmp_path: Path, opened: Session) -> None:
    (item,) = LongBench().items([record("lcc", context="def cat():\n", answers=["    return 1"])], 0)
    question = item.questions[0]
    assert item.texts[0] == "Please complete the code given below. \ndef cat():\n"
    assert (question.text, question.is_stripped, question.use_chat_template) == ("Next line of code:\n", False, False)
    assert LongBench().score(question, Answer("    return 1\nmore")) == {"score": 1}
    (item,) = LongBench().items([record("repobench-p", context="import cat\n", input="def dog():\n")], 0)
    assert item.questions[0].text == "def dog():\nNext line of code:\n"


def test_options_that_do_not_fit_are_named() -> None:
    with pytest.raises(UsageError, match="form must be one of turns, prompt, blocks; it is 'chat'"):
        build("longbench", form="chat")
    with pytest.raises(UsageError, match="give form=prompt or form=blocks too"):
        build("longbench", tokens=100)
