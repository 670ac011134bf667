"""Official files and the columns of others, read as they are published."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from byheart.data.layouts import layouts, recognise
from byheart.data.prompts import fill_prompt
from byheart.data.records import Record, read, rows
from byheart.errors import InputError
from byheart.evaluation.tasks import build

PAGE = "<H1> Cats </H1> <P> Muck is a cat . </P>"
NQ = {
    "document_text": PAGE,
    "question_text": "who is a cat",
    "example_id": 5,
    "annotations": [
        {
            "yes_no_answer": "NONE",
            "long_answer": {"start_token": 3, "end_token": 10},
            "short_answers": [{"start_token": 4, "end_token": 5}],
        }
    ],
}


def written(folder: Path, name: str, content: Any) -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    lines = content if isinstance(content, str) else "".join(f"{json.dumps(row)}\n" for row in content)
    (folder / name).write_text(lines, encoding="utf-8")
    return str(folder / name)


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        (
            {"task": "glue-rte", "input": "It rains.", "output": "yes", "options": ["no", "yes"]},
            {
                "task": "mc",
                "dataset": "glue-rte",
                "context": "It rains.",
                "choices": ["no", "yes"],
                "answers": ["yes"],
                "label": 1,
            },
        ),
        (
            {"dialogue": ["Hi.", "Ho."], "narrative": "They met."},
            {"task": "dialog", "meta": {"turns": ["Hi.", "Ho."], "narrative": "They met."}},
        ),
        (
            {"article": "A barn burned.", "summary": "It burned.", "id": 1},
            {"task": "summ", "context": "A barn burned.", "answers": ["It burned."]},
        ),
        ({"short_book_title": "Cats", "text": "A cat."}, {"task": "lm", "context": "A cat."}),
        ({"dialog": ["Hi . ", " Ho ."], "act": [1, 2]}, {"task": "dialog", "meta": {"turns": ["Hi .", "Ho ."]}}),
        (
            {"question": "is it", "passage": "It is.", "answer": True},
            {"context": "It is.", "choices": ["no", "yes"], "label": 1, "answers": ["yes"]},
        ),
        ({"question": "is it", "passage": "It is.", "label": 0}, {"context": "It is.", "label": 0, "answers": ["no"]}),
        ({"question": "is it", "passage": "It is.", "label": -1}, {"context": "It is.", "label": -1}),
        (
            {"premise": "a", "choice1": "b", "choice2": "c", "question": "cause", "label": 1},
            {"context": "a", "question": "cause", "choices": ["b", "c"], "label": 1, "answers": ["c"]},
        ),
        ({"premise": "a", "hypothesis": "b", "label": 2}, {"context": "a", "question": "b", "label": 2}),
        ({"sentence1": "a", "sentence2": "b", "label": 0}, {"context": "a", "question": "b", "label": 0}),
        ({"question": "a", "sentence": "b", "label": 0}, {"context": "b", "question": "a", "label": 0}),
        (
            {"article": "a", "question": "q", "options": ["1", "2", "3", "4"], "answer": "C"},
            {"context": "a", "question": "q", "choices": ["1", "2", "3", "4"], "label": 2, "answers": ["3"]},
        ),
        (
            {"question": "q", "choices": {"label": ["A", "B"], "text": ["x", "y"]}, "answerKey": "B"},
            {"question": "q", "choices": ["x", "y"], "label": 1, "answers": ["y"]},
        ),
        (
            {"startphrase": "s", **{f"ending{n}": str(n) for n in range(4)}, "label": 3},
            {"context": "s", "choices": ["0", "1", "2", "3"], "label": 3, "answers": ["3"]},
        ),
        ({"text": "t", "label": 5, "label_text": "comp.windows.x"}, {"context": "t", "label": 5}),
        ({"text": "t", "label": "sci.med"}, {"context": "t", "label": "sci.med"}),
        (
            {"sentence1": "a", "sentence2": "b", "gold_label": "neutral", "label1": "entailment"},
            {"context": "a", "question": "b", "label": "neutral"},
        ),
        (
            {
                "id": "1",
                "answerKey": "B",
                "question": {"stem": "q", "choices": [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}]},
            },
            {"question": "q", "choices": ["x", "y"], "label": 1, "answers": ["y"]},
        ),
        (
            {
                "id": "1",
                "question": "q",
                "answer": "yes",
                "supporting_facts": {"title": ["T"], "sent_id": [0]},
                "context": {"title": ["T", "U"], "sentences": [["One.", "Two."], ["Three."]]},
            },
            {"task": "qa", "context": "One. Two.\nThree.", "answers": ["yes"]},
        ),
        (
            {
                "_id": "1",
                "question": "q",
                "answer": "yes",
                "supporting_facts": [["T", 0]],
                "context": [["T", ["One.", "Two."]], ["U", ["Three."]]],
            },
            {"task": "qa", "context": "One. Two.\nThree.", "answers": ["yes"]},
        ),
        (
            {"id": "1", "title": "T", "context": "c", "question": "q", "answers": {"text": ["x"], "answer_start": [0]}},
            {"task": "qa", "context": "c", "answers": ["x"]},
        ),
        (
            {"context": "c", "question": "q", "answers": ["x"], "key": "k", "labels": [{"start": [0], "end": [0]}]},
            {"task": "qa", "answers": ["x"]},
        ),
    ],
)
def test_columns_of_others_become_fields(row: dict[str, Any], fields: dict[str, Any]) -> None:
    [found] = recognise([row], "s")
    assert {**row, **fields} == {name: value for name, value in found.items() if name in {**row, **fields}}
    assert ("answers" in found) == ("answers" in fields)


def test_every_layout_is_recognised_by_the_columns_that_it_reads() -> None:
    names = {layout.name for layout in layouts()}
    assert len(names) == len(layouts()) == 22


@pytest.mark.parametrize("row", [{"context": "a", "premise": "b", "hypothesis": "c", "label": 0}, {"text": "a"}, {}])
def test_records_of_ones_own_and_unknown_ones_stay_as_they_are(row: dict[str, Any]) -> None:
    assert list(recognise([row], "s", "a/b")) == [row]


def test_a_column_of_another_kind_is_named_with_its_layout() -> None:
    row = {"question": "q", "passage": "p", "answer": "perhaps"}
    with pytest.raises(InputError, match=r"'a' \(read as BoolQ, google/boolq\), record 2: 'label' .*'perhaps' is none"):
        list(recognise([{**row, "answer": True}, row], "'a'"))


@pytest.mark.parametrize(
    ("file", "row", "dataset", "right"),
    [
        ("BoolQ/train.jsonl", {"question": "q", "passage": "p", "idx": 0, "label": True}, "boolq", "true"),
        ("CB/val.jsonl", {"premise": "p", "hypothesis": "h", "label": "neutral", "idx": 0}, "cb", "neutral"),
        ("RTE/val.jsonl", {"premise": "p", "hypothesis": "h", "label": "not_entailment"}, "rte", "not_entailment"),
        ("rte.jsonl", {"sentence1": "p", "sentence2": "h", "label": 1}, "rte", "not_entailment"),
        (
            "COPA/train.jsonl",
            {"premise": "p", "choice1": "b", "choice2": "c", "question": "cause", "label": 1},
            "copa",
            "Choice2",
        ),
    ],
)
def test_an_official_file_is_asked_by_its_folders_name(
    tmp_path: Path, file: str, row: dict[str, Any], dataset: str, right: str
) -> None:
    [record] = rows(written(tmp_path, file, [row]))
    filled = fill_prompt(record, 1)
    assert (filled.dataset, filled.right) == (dataset, right)


# Made up for this test, in the form of each set's own files.
OFFICIAL = {
    "RTE/dev.tsv": 'index\tsentence1\tsentence2\tlabel\n0\t"It rains, he said.\tIt is wet.\tnot_entailment\n',
    "WNLI/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tIt rains.\tIt is wet.\t1\n",
    "QNLI/dev.tsv": "index\tquestion\tsentence\tlabel\n0\tIs it wet?\tIt rains.\tentailment\n",
    "MNLI/dev_mismatched.tsv": "index\tsentence1\tsentence2\tlabel1\tgold_label\n"
    "0\tIt rains.\tIt is.\tneutral\tneutral\n",
    "swag/val.csv": ",startphrase,ending0,ending1,ending2,ending3,label\n0,He,a,b,c,d,2\n",
    "commonsense_qa/dev.jsonl": '{"answerKey": "A", "id": "1", "question": {"stem": "Wet?", "choices": '
    '[{"label": "A", "text": "yes"}, {"label": "B", "text": "no"}]}}\n',
    "20_newsgroups/test.csv": "text,label\nA cure.,sci.med\n",
    "squad_v2/dev-v2.0.json": '{"version": "v2.0", "data": [{"title": "T", "paragraphs": [{"context": "It rains.", '
    '"qas": [{"id": "1", "question": "Dry?", "is_impossible": true, "answers": []}]}]}]}',
    "newsqa/combined-newsqa-data-v1.json": '{"data": [{"storyId": "s", "type": "dev", "text": "Ann left.", '
    '"questions": [{"q": "Who?", "consensus": {"s": 0, "e": 4}}]}]}',
    "hotpot_qa/dev.json": '[{"_id": "1", "question": "Who?", "answer": "Ann", "supporting_facts": [["T", 0]], '
    '"context": [["T", ["Ann left."]]]}]',
}


@pytest.mark.parametrize(
    ("file", "dataset", "right"),
    [
        ("RTE/dev.tsv", "rte", "not_entailment"),
        ("WNLI/dev.tsv", "wnli", "entailment"),
        ("QNLI/dev.tsv", "qnli", "entailment"),
        ("MNLI/dev_mismatched.tsv", "mnli", "neutral"),
        ("swag/val.csv", "swag", "C"),
        ("commonsense_qa/dev.jsonl", "commonsense_qa", "A"),
        ("20_newsgroups/test.csv", "20_newsgroups", "sci.med"),
        ("squad_v2/dev-v2.0.json", "squad", "unanswerable"),
        ("newsqa/combined-newsqa-data-v1.json", "newsqa", "Ann"),
        ("hotpot_qa/dev.json", "hotpot_qa", "Ann"),
    ],
)
def test_each_sets_own_file_is_asked_by_its_prompt(tmp_path: Path, file: str, dataset: str, right: str) -> None:
    [record] = rows(written(tmp_path, file, OFFICIAL[file]))
    filled = fill_prompt(record, 1)
    assert (filled.dataset, filled.right) == (dataset, right)
    [item] = build("multitask", published=True).items([record], 0)
    assert item.questions[0].answers == (right,)


def test_a_table_as_parquet_is_read_by_path(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table({"premise": ["p"], "hypothesis": ["h"], "label": [2]})
    (tmp_path / "cb").mkdir()
    parquet.write_table(table, tmp_path / "cb" / "train.parquet")
    assert fill_prompt(rows(str(tmp_path / "cb" / "train.parquet"))[0], 1).right == "neutral"


def test_a_story_in_another_form_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, "newsqa.json", '{"data": [{"storyId": "s", "text": "t", "questions": [{"q": "Who?"}]}]}')
    with pytest.raises(InputError, match=r"newsqa\.json' has a story with questions that are not as NewsQA's"):
        rows(file)


@pytest.mark.parametrize("name", ["ehovy/race/middle", "SetFit/20_newsgroups", "aps/super_glue/cb", "google/boolq"])
def test_a_name_of_the_hub_has_the_prompt_of_its_last_parts(name: str) -> None:
    record = {"dataset": name, "context": "c", "question": "q", "label": 1, "choices": ["a", "b"]}
    assert fill_prompt(record, 1).dataset in {"race_middle", "20_newsgroups", "cb", "boolq"}


# ---- NaturalQuestions ----


def test_a_natural_question_is_asked_about_its_paragraph(tmp_path: Path) -> None:
    file = tmp_path / "v1.0-simplified_train.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps(NQ).encode()))
    [row] = rows(str(file))
    assert (row["context"], row["question"], row["answers"]) == ("Muck is a cat .", "who is a cat", ["Muck"])
    assert read(str(file)).records == [Record("qa", "Muck is a cat .", "who is a cat", "Muck")]
    [item] = build("questions").items([row], 0)
    assert item.questions[0].answers == ("Muck",)


def test_the_parts_with_one_entry_per_token_are_read_alike() -> None:
    tokens = [{"token": token, "html_token": token.startswith("<")} for token in PAGE.split(" ")]
    row = {name: value for name, value in NQ.items() if name != "document_text"} | {"document_tokens": tokens}
    assert [found["context"] for found in recognise([row, NQ], "s")] == ["Muck is a cat ."] * 2


def test_a_question_without_an_answer_is_asked_about_the_page_and_yes_or_no_answers() -> None:
    none = {"yes_no_answer": "NONE", "long_answer": {"start_token": -1, "end_token": -1}, "short_answers": []}
    yes = {**NQ["annotations"][0], "yes_no_answer": "YES", "short_answers": []}
    first, second = recognise([{**NQ, "annotations": [none]}, {**NQ, "annotations": [none, yes]}], "s")
    assert (first["context"], first["answers"]) == ("Cats Muck is a cat .", [])
    assert (second["context"], second["answers"]) == ("Muck is a cat .", ["yes"])


def test_a_natural_question_in_another_form_is_named() -> None:
    with pytest.raises(InputError, match=r"s, record 1 is not as NaturalQuestions' own are: KeyError\('long_answer'\)"):
        list(recognise([{**NQ, "annotations": [{}]}], "s"))


# ---- LaMP ----

QUESTION = {"id": "10", "input": "Which tag? A cat sat.", "profile": [{"text": "A dog ran.", "tag": "dog"}]}


def pair(folder: Path, golds: Any) -> str:
    written(folder, "dev_outputs.json", json.dumps(golds))
    return written(folder, "dev_questions.json", json.dumps([QUESTION]))


def test_the_outputs_beside_lamps_questions_are_read_with_them(tmp_path: Path) -> None:
    file = pair(tmp_path, {"task": "LaMP_2", "golds": [{"id": "11", "output": "dog"}, {"id": "10", "output": "cat"}]})
    assert rows(file) == [{**QUESTION, "output": "cat"}]
    assert rows(str(tmp_path)) == [{**QUESTION, "output": "cat"}]


@pytest.mark.parametrize(
    ("golds", "match"),
    [
        (
            {"task": "LaMP_2", "golds": [{"id": "11", "output": "dog"}]},
            "record 1 has the id '10', of which '.*no output",
        ),
        ([], "dev_outputs.json' holds no list under 'golds'"),
    ],
)
def test_a_question_without_an_output_is_named(tmp_path: Path, golds: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        rows(pair(tmp_path, golds))


# ---- compressed files ----


def test_a_damaged_compressed_file_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps(NQ).encode())
    for content in (whole[:-12], b"plain"):
        (tmp_path / "a.jsonl.gz").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.jsonl\.gz' cannot be read"):
            rows(str(tmp_path / "a.jsonl.gz"))
