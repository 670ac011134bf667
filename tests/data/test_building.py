"""Data sets built from a local web server and folders: chosen, mapped, checked, written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from byheart.data import building, sources
from byheart.data.building import LOCK, build, list_sources
from byheart.data.columns import content_key
from byheart.data.sets import DataSet, find_set, read_sets
from byheart.errors import InputError
from tests.data.server import Server, serving

ENTRY = """
[cats]
title = "Cats"
licence = "MIT"
columns = {{ id = "cat-{{#}}", context = "text", question = "asked", answers = ["said"] }}
fixed = {{ dataset = "cats", task = "qa" }}

[[cats.from]]
url = "{url}/cats.jsonl"
sha256 = "{source}"
choose = {{ where = {{ kind = "cat" }} }}

[cats.parts.train]
choose = {{ shuffle = 0, take = [0, 3] }}
records = 3

[cats.parts.eval]
choose = {{ shuffle = 0, take = [3, 5] }}
records = 2
sha256 = "{sha256}"
"""
ROWS = [{"text": f"T{n}", "asked": f"Q{n}?", "said": f"A{n}", "kind": "cat" if n % 2 else "dog"} for n in range(12)]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        found.files["/cats.jsonl"] = lines(ROWS)
        yield found


def cats(server: Server, folder: Path, *, source: str = "", sha256: str = "", entry: str = ENTRY) -> DataSet:
    (folder / "sets.toml").write_text(entry.format(url=server.url, source=source, sha256=sha256), encoding="utf-8")
    return read_sets(folder / "sets.toml")["cats"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_parts_are_chosen_by_their_rule_and_mapped(server: Server, tmp_path: Path) -> None:
    built = build(cats(server, tmp_path), tmp_path / "to")
    order = list(range(1, 12, 2))
    random.Random(0).shuffle(order)
    made = [[json.loads(line) for line in Path(each.path).read_text().splitlines()] for each in built]
    assert [[record["id"] for record in part] for part in made] == [
        [f"cat-{n}" for n in order[:3]],
        [f"cat-{n}" for n in order[3:5]],
    ]
    assert made[0][0] == {
        **{"id": f"cat-{order[0]}", "dataset": "cats", "split": "", "task": "qa", "context": f"T{order[0]}"},
        **{"question": f"Q{order[0]}?", "answers": [f"A{order[0]}"]},
        **{"choices": None, "label": None, "meta": {}},
    }
    assert [(each.records, each.is_new, each.is_published) for each in built] == [(3, True, False), (2, True, False)]
    lock = json.loads((tmp_path / "to" / LOCK).read_text())
    assert lock["train/cats.jsonl"] == {
        "sha256": built[0].sha256,
        "records": 3,
        "from": {f"{server.url}/cats.jsonl": hashlib.sha256(lines(ROWS)).hexdigest()},
    }


def test_a_second_build_fetches_and_writes_nothing(server: Server, tmp_path: Path) -> None:
    data_set = cats(server, tmp_path)
    build(data_set, tmp_path / "to")
    before, asked = files(tmp_path / "to"), len(server.asked)
    assert [each.is_new for each in build(data_set, tmp_path / "to")] == [False, False]
    assert (files(tmp_path / "to"), len(server.asked)) == (before, asked)
    # Of a part that is gone, the source is still there.
    (tmp_path / "to" / "eval" / "cats.jsonl").unlink()
    assert [each.is_new for each in build(data_set, tmp_path / "to", offline=True)] == [False, True]
    assert files(tmp_path / "to") == before


def test_what_the_published_numbers_were_made_from_is_known_by_its_digest(server: Server, tmp_path: Path) -> None:
    first = build(cats(server, tmp_path), tmp_path / "first")[1]
    assert build(cats(server, tmp_path, sha256=first.sha256), tmp_path / "to")[1].is_published


# ---- what has changed ----


def test_a_source_of_another_digest_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cats\.jsonl has changed"):
        build(cats(server, tmp_path, source="0" * 64), tmp_path / "to")
    assert files(tmp_path / "to") == {}


def test_a_build_of_another_digest_is_not_written_unless_it_is_accepted(server: Server, tmp_path: Path) -> None:
    data_set = cats(server, tmp_path, sha256="0" * 64)
    match = (
        r"eval/cats\.jsonl' would be another than the one that the published .*\(2 records of 2; .*not written; --acc"
    )
    with pytest.raises(InputError, match=match):
        build(data_set, tmp_path / "to")
    assert {"eval/cats.jsonl", "train/cats.jsonl"} & files(tmp_path / "to").keys() == {"train/cats.jsonl"}
    assert [each.is_published for each in build(data_set, tmp_path / "to", accept=True)] == [False, False]
    # From then on it is the one that is known.
    assert [each.is_new for each in build(data_set, tmp_path / "to")] == [False, False]


def test_a_first_build_is_what_later_ones_must_be(server: Server, tmp_path: Path) -> None:
    data_set, to = cats(server, tmp_path), tmp_path / "to"
    build(data_set, to)
    server.files["/cats.jsonl"] = lines(ROWS[::-1])
    for path in [*(to / "sources").iterdir(), to / "train" / "cats.jsonl"]:
        path.unlink()
    with pytest.raises(
        InputError, match=r"train/cats\.jsonl' would be another than the one that was built here before"
    ):
        build(data_set, to)
    assert not (to / "train" / "cats.jsonl").exists()


def test_a_file_that_was_changed_by_hand_is_named_and_left(server: Server, tmp_path: Path) -> None:
    data_set, to = cats(server, tmp_path), tmp_path / "to"
    build(data_set, to)
    (to / "train" / "cats.jsonl").write_text("mine\n")
    with pytest.raises(
        InputError, match=r"train/cats\.jsonl' is not the one that was built here before: it was changed"
    ):
        build(data_set, to)
    assert (to / "train" / "cats.jsonl").read_text() == "mine\n"
    assert build(data_set, to, accept=True)[0].records == 1


def test_a_damaged_lock_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / LOCK).write_text("{")
    with pytest.raises(InputError, match=r"data\.lock\.json' cannot be read: .*Remove it"):
        build(cats(server, tmp_path), tmp_path / "to")


# ---- what cannot be built ----


@pytest.mark.parametrize(
    ("wrong", "right", "match"),
    [
        ('context = "text"', 'context = "txt"', r"cats\.jsonl, record \d+: 'context' should come from column 'txt', "),
        ('kind = "cat"', 'sort = "cat"', r"cats\.jsonl, record 1: there is no 'sort', by which it is chosen; "),
    ],
)
def test_a_wrong_column_is_named_with_the_record_and_nothing_is_written(
    server: Server, tmp_path: Path, wrong: str, right: str, match: str
) -> None:
    entry = ENTRY.replace(wrong, right)
    assert entry != ENTRY
    with pytest.raises(InputError, match=rf"{match}.*its columns are asked, kind, said, text\."):
        build(cats(server, tmp_path, entry=entry), tmp_path / "to")
    assert [name for name in files(tmp_path / "to") if not name.startswith("sources/")] == []


def test_a_choice_that_nothing_meets_is_said(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cats\.jsonl gives no record: kind cow"):
        build(cats(server, tmp_path, entry=ENTRY.replace('kind = "cat"', 'kind = "cow"')), tmp_path / "to")


def test_a_name_that_is_not_in_the_source_is_said(server: Server, tmp_path: Path) -> None:
    entry = ENTRY.replace('where = {{ kind = "cat" }}', 'order = "said", where = {{ said = ["A5", "A3", "A99"] }}')
    with pytest.raises(InputError, match=r"cats\.jsonl has no A99: 1 of 3 are not there"):
        build(cats(server, tmp_path, entry=entry), tmp_path / "to")
    built = build(cats(server, tmp_path, entry=entry.replace(', "A99"', "")), tmp_path / "to")
    assert sum(each.records for each in built) == 2


def test_without_space_nothing_half_stays(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_set = cats(server, tmp_path)
    original = building.records_of

    def full(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield from list(original(*arguments, **options))[:1]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(building, "records_of", full)
    with pytest.raises(InputError, match=r"train/cats\.jsonl' could not be written: there is no space left") as caught:
        build(data_set, tmp_path / "to")
    assert "\n" not in str(caught.value)
    assert [name for name in files(tmp_path / "to") if not name.startswith("sources/")] == []


def test_a_download_that_is_cut_leaves_no_part_of_a_set(server: Server, tmp_path: Path) -> None:
    server.cut = 100
    with pytest.raises(InputError, match=r"100 bytes are kept"):
        build(cats(server, tmp_path), tmp_path / "to")
    assert [name for name in files(tmp_path / "to") if not name.startswith("sources/")] == []
    server.cut = 0
    assert [each.records for each in build(cats(server, tmp_path), tmp_path / "to")] == [3, 2]


def test_offline_it_says_what_would_be_fetched_and_where_it_is_looked_for(server: Server, tmp_path: Path) -> None:
    data_set = cats(server, tmp_path)
    [(name, place, there)] = list_sources(data_set, tmp_path / "to")
    assert (name, there) == (f"{server.url}/cats.jsonl", False)
    with pytest.raises(InputError, match=r"/cats\.jsonl is not there and would be fetched\. Put it at '") as caught:
        build(data_set, tmp_path / "to", offline=True)
    assert str(place) in str(caught.value)
    assert server.asked == []
    place.parent.mkdir(parents=True)
    place.write_bytes(lines(ROWS))
    assert [each.records for each in build(data_set, tmp_path / "to", offline=True)] == [3, 2]


# ---- sets as they are declared ----


def test_listed_records_are_found_by_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQuAD's part is chosen by content, from SQuAD's own layout."""
    pairs = [("The  cat.", "Who?", ["cat"]), ("A dog.", "What?", []), ("A cow.", "Why?", ["cow", "it"])]
    records = [{"context": c, "question": q, "answers": a} for c, q, a in pairs]
    keys = [content_key(record) for record in (records[2], records[0])]
    monkeypatch.setattr(building, "LISTS", tmp_path)
    (tmp_path / "squad-eval.txt").write_text("\n".join(keys))
    qas = [
        {"context": c, "qas": [{"id": q, "question": q, "is_impossible": not a, "answers": [{"text": t} for t in a]}]}
        for c, q, a in pairs
    ]
    data_set = find_set("squad")
    part = next(part for part in data_set.parts if part.name == "eval")
    place = part.pieces[0].source.place(tmp_path)
    place.write_text(json.dumps({"data": [{"title": "t", "paragraphs": qas}]}))
    monkeypatch.setattr(sources, "fetch", lambda *arguments, **options: "")
    made = list(building.records_of(part, tmp_path, progress=lambda done, total: None))
    assert [(record["id"], record["question"]) for record in made] == [
        (f"squad-eval-{keys[0]}", "Why?"),
        (f"squad-eval-{keys[1]}", "Who?"),
    ]
    (tmp_path / "squad-eval.txt").write_text("\n".join([*keys, "00000000"]))
    with pytest.raises(InputError, match="1 of the 3 records that squad-eval lists are not in the source"):
        building.records_of(part, tmp_path, progress=lambda done, total: None)


def row_of(name: str) -> dict[str, Any]:
    """A row in the columns of a set's source."""
    rewrite = {
        "prompt": "{} was born in",
        "subject": "Ada",
        "target_new": {"str": "Rome"},
        "target_true": {"str": "Bonn"},
    }
    rows: dict[str, dict[str, Any]] = {
        "nq": {"question": "q", "answers": ["a"], "ctxs": [{"title": "T", "text": "x"}]},
        "fairytaleqa": {"story_name": "s", "story_section": "x", "question": "q", "answer1": "a", "answer2": "b"},
        "personachat": {
            "personality": ["I run."],
            "utterances": [
                {"history": ["hi"], "candidates": ["no"]},
                {"history": ["hi", "ho"], "candidates": ["no", "hu"]},
            ],
        },
        "dailydialog": {"dialogue_id": "d-0", "domains": ["Life"], "turns": [{"utterance": "hi"}, {"utterance": "ho"}]},
        "nq_swap": {"question": "q", "sub_context": "x", "sub_answer": ["a"]},
        "nq_synth": {
            "input_index": 7,
            "gold_answers": "a",
            "context_string": "x \nUsing only the references listed above, answer the following question: \n"
            "Question: q ?\nAnswer:",
        },
        "memotrap": {"prompt": "p", "classes": "[' a.', ' b.']", "answer_index": 1, "part": 1, "round": 2},
        "hotpotqa": {
            **{"_id": "h", "question": "q", "answer": "a", "type": "bridge", "level": "hard", "supporting_facts": []},
            "context": [["T", ["One.", " Two."]], ["U", ["Three."]]],
        },
        "counterfact": {
            **{"case_id": 3, "requested_rewrite": rewrite},
            **{"paraphrase_prompts": ["Ada came from"], "neighborhood_prompts": ["Bob was born in"]},
        },
        "zsre": {
            **{"subject": "Ada", "src": "Where?", "alt": "Rome", "answers": ["Bonn"], "rephrase": "In what place?"},
            **{"loc": "nq question: who", "loc_ans": "me"},
        },
        "kv_retrieval": {"ordered_kv_records": [["k", "v"]], "key": "k", "value": "v"},
        "xsum": {"id": "x", "article": "A.", "summary": "S."},
        "cnndm": {"id": "x", "article": "A.", "highlights": "S."},
        "cb": {"premise": "p", "hypothesis": "h", "label": 1},
        "rte": {"sentence1": "p", "sentence2": "h", "label": 1},
        "boolq": {"passage": "p", "question": "q", "label": 1},
        "copa": {"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": 1},
    }
    return rows[name]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("nq", {"context": "T\nx", "answers": ["a"], "meta": {"n_ctx": 1}}),
        ("fairytaleqa", {"context": "x", "answers": ["a"], "meta": {"story": "s"}}),
        ("personachat", {"meta": {"turns": ["hi", "ho", "hu"], "persona": ["I run."]}, "task": "dialog"}),
        ("dailydialog", {"id": "d-0", "meta": {"turns": ["hi", "ho"], "topic": ["Life"]}}),
        ("nq_swap", {"context": "x", "answers": ["a"], "task": "conflict"}),
        ("nq_synth", {"id": "nqsynth-7", "context": "x", "question": "q ?", "answers": ["a"], "task": "conflict"}),
        ("memotrap", {"question": "p", "choices": ["a.", "b."], "label": 1, "answers": ["b."]}),
        ("hotpotqa", {"context": "T\nOne. Two.\n\nU\nThree.", "answers": ["a"]}),
        ("counterfact", {"question": "Ada was born in", "answers": ["Rome"]}),
        ("zsre", {"question": "Where?", "answers": ["Rome"]}),
        ("kv_retrieval", {"context": '{"k": "v"}', "question": "k", "answers": ["v"]}),
        ("xsum", {"context": "A.", "answers": ["S."], "task": "summ"}),
        ("cnndm", {"context": "A.", "answers": ["S."]}),
        ("cb", {"context": "p", "question": "h", "label": 1, "answers": ["contradiction"]}),
        ("rte", {"context": "p", "question": "h", "answers": ["not_entailment"]}),
        ("boolq", {"context": "p", "question": "q?", "answers": ["yes"]}),
        ("copa", {"context": "p", "question": "cause", "choices": ["a", "b"], "answers": ["b"]}),
    ],
)
def test_a_row_of_each_source_becomes_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fields: dict[str, Any]
) -> None:
    part = next(part for part in find_set(name).parts if part.name == "eval")
    start, end = part.choice.take or (0, 1)
    row = row_of(name)
    for column, value in part.pieces[0].choice.where.items():
        row[column] = value
    monkeypatch.setattr(sources.Source, "rows", lambda *arguments, **options: iter([row] * end))
    made = list(building.records_of(part, tmp_path, progress=lambda done, total: None))
    assert len(made) == end - start
    assert {**made[0], **fields} == made[0]
    assert list(made[0]) == list(building.EMPTY)


def test_an_edit_has_its_rephrasing_and_its_neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, meta in (
        (
            "counterfact",
            {
                **{"subject": "Ada", "ground_truth": "Bonn", "rephrase": "Ada came from"},
                **{"locality_prompt": "Bob was born in", "locality_answer": "Bonn"},
            },
        ),
        (
            "zsre",
            {
                **{"subject": "Ada", "ground_truth": ["Bonn"], "rephrase": "In what place?"},
                **{"locality_prompt": "who", "locality_answer": "me"},
            },
        ),
    ):
        part = next(part for part in find_set(name).parts if part.name == "eval")
        rows = [row_of(name)] * 9000
        monkeypatch.setattr(sources.Source, "rows", lambda *arguments, rows=rows, **options: iter(rows))
        assert next(building.records_of(part, tmp_path, progress=lambda done, total: None))["meta"] == meta


def test_novels_are_windows_in_the_middle_and_in_the_order_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = next(part for part in find_set("novels").parts if part.name == "eval")
    names = part.pieces[0].choice.where["name"]
    rows = [{"name": name, "text": f"{'a' * 5000}{name}{'b' * 50000}"} for name in [*sorted(names), "Other_Book_1900"]]
    monkeypatch.setattr(sources.Source, "rows", lambda *arguments, **options: iter(rows))
    made = list(building.records_of(part, tmp_path, progress=lambda done, total: None))
    assert [record["id"] for record in made] == names
    first, length = made[0], 55000 + len(names[0])
    assert first["meta"] == {"author": "Doyle", "offset": (length - 50000) // 2, "total": length}
    assert len(first["context"]) == 45000
    assert first["context"].startswith("a" * (5000 - first["meta"]["offset"]) + names[0])
