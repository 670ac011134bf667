"""``byheart data``: what it lists, builds and says, with files that lie where they are looked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from byheart.data.building import SOURCES
from byheart.data.sets import data_sets, find_set
from tests.conftest import Run


def put(folder: Path, name: str, rows: int) -> Path:
    """A file in zsRE's columns, or in those of CounterFact, where it is looked for."""
    place = find_set(name).parts[0].pieces[0].source.place(folder / SOURCES)
    place.parent.mkdir(parents=True, exist_ok=True)
    row = {
        "subject": "Ada",
        "src": "Where?",
        "alt": "Rome",
        "answers": ["Bonn"],
        "rephrase": "R?",
        "loc": "L",
        "loc_ans": "A",
    }
    place.write_text(json.dumps([{**row, "src": f"Where {n}?"} for n in range(rows)]), encoding="utf-8")
    return place


def test_list_shows_every_set_with_its_parts_and_licence(run: Run) -> None:
    ran = run("data", "list")
    assert (ran.code, ran.err) == (0, "")
    assert [line.split()[0] for line in ran.out.splitlines()[1:] if not line.startswith(" ")] == list(data_sets())
    assert "eval 1,661, train 5,571  the same" in ran.out


def test_list_says_sources_and_rules_in_json(run: Run, tmp_path: Path) -> None:
    [found] = run("data", "list", "nq", "--to", tmp_path, "--json").json
    assert (found["name"], found["licence"]) == ("nq", "CC BY-SA 3.0")
    part = found["parts"][1]
    assert (part["part"], part["records"], len(part["sha256"])) == ("eval", 500, 64)
    assert part["rule"] == "in the order of random.Random(0).shuffle, places 1,655 to 2,154"
    assert part["from"][0]["source"].endswith("/qa_data/nq-open-oracle.jsonl.gz")
    assert part["from"][0]["pinned"] is True
    assert part["from"][0]["place"].startswith(str(tmp_path / "sources"))


def test_get_builds_what_is_there_and_says_which_records_it_is(run: Run, tmp_path: Path) -> None:
    put(tmp_path, "zsre", 1200)
    ran = run("data", "get", "zsre", "--to", tmp_path, "--offline")
    assert (ran.code, ran.err) == (0, "")
    file = tmp_path / "eval" / "zsre.jsonl"
    assert f"{file} built: 500 records, " in ran.out
    assert ran.out.endswith("not those of the published numbers.\n")
    [again] = run("data", "get", "zsre", "--to", tmp_path, "--offline", "--json").json
    assert (again["path"], again["records"], again["is_new"], again["is_published"]) == (str(file), 500, False, False)


def test_get_offline_says_all_that_would_be_fetched_and_builds_the_rest(run: Run, tmp_path: Path) -> None:
    put(tmp_path, "zsre", 1200)
    ran = run("data", "get", "zsre", "nq_swap", "counterfact", "--to", tmp_path, "--offline")
    assert ran.code == 1
    assert "zsre.jsonl built: 500 records" in ran.out
    assert "2 of 3 could not be built: nq_swap, counterfact. These would be fetched: " in ran.err
    assert (
        f"the hub's pminervini/NQ-Swap:dev, looked for at '{tmp_path / SOURCES / 'pminervini' / 'NQ-Swap'}'" in ran.err
    )
    assert "https://rome.baulab.info/data/dsets/counterfact.json, looked for at '" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_a_set_that_cannot_be_built_does_not_keep_others_from_it(run: Run, tmp_path: Path) -> None:
    put(tmp_path, "zsre", 1200)
    put(tmp_path, "counterfact", 9000)
    ran = run("data", "get", "counterfact", "zsre", "--to", tmp_path)
    assert ran.code == 1
    assert "zsre.jsonl built" in ran.out
    assert "'id' should come from column 'case_id', which is not there; its columns are alt, answers, loc," in ran.err
    assert "1 of 2 could not be built: counterfact." in ran.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["gte", "nq"], 2, "There is no action of `byheart data` 'gte'. Did you mean 'get'"),
        (["get"], 2, "Say which data sets to get, or all; there are squad, nq,"),
        (["get", "sqad"], 2, "There is no data set 'sqad'. Did you mean 'squad'"),
        (["list", "sqad"], 2, "There is no data set 'sqad'."),
    ],
)
def test_what_cannot_be_is_said_with_what_can(run: Run, arguments: list[str], code: int, said: str) -> None:
    ran = run("data", *arguments)
    assert ran.code == code
    assert said in ran.err
