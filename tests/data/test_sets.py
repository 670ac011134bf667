"""The table of data sets: what results and recipes need is there, and each entry can be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.results import KINDS
from byheart.data.building import LISTS
from byheart.data.hub import HubName
from byheart.data.sets import Choice, DataSet, Part, data_sets, find_set
from byheart.errors import UnknownNameError
from tests.samples import ROOT

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib  # type: ignore[no-redef]

PARTS = [(data_set, part) for data_set in data_sets().values() for part in data_set.parts]
IDS = [f"{part.name}/{data_set.name}" for data_set, part in PARTS]


def test_what_results_and_recipes_read_can_be_got() -> None:
    built = {f"{part.name}/{data_set.name}.jsonl" for data_set, part in PARTS}
    plan = tomllib.loads((ROOT / "benchmarks" / "results.toml").read_text(encoding="utf-8"))
    wanted = {f"eval/{name}.jsonl" for measure in plan["measure"] for name in measure["data"] if name not in KINDS}
    wanted |= {file for study in plan["study"] for file in re.findall(r"(?:train|eval)/\w+\.jsonl", study["command"])}
    for recipe in (ROOT / "recipes").glob("*.toml"):
        wanted |= {source.partition(":")[0] for source in tomllib.loads(recipe.read_text(encoding="utf-8"))["data"]}
    assert len(wanted) > 15
    assert wanted <= built


@pytest.mark.parametrize(("data_set", "part"), PARTS, ids=IDS)
def test_an_entry_can_be_read_and_says_what_it_is(data_set: DataSet, part: Part) -> None:
    assert data_set.title
    assert data_set.licence
    assert part.pieces
    assert part.name in ("train", "eval")
    for piece in part.pieces:
        assert bool(piece.source.url) != bool(piece.source.hub)
        assert piece.source.hub == "" or "/" in HubName.of(piece.source.hub).name
        assert {"context", "question", "meta.turns"} & piece.columns.keys()
    # What is not what the published numbers were made from says so.
    assert part.sha256 or data_set.note or data_set.name == "copa"
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in (part.sha256, part.pieces[0].source.sha256) if digest)


@pytest.mark.parametrize(("data_set", "part"), PARTS, ids=IDS)
def test_the_places_that_are_taken_are_as_many_as_the_records(data_set: DataSet, part: Part) -> None:
    if part.choice.take:
        assert part.choice.take[1] - part.choice.take[0] == part.records
    if part.choice.listed:
        assert len((LISTS / f"{part.choice.listed}.txt").read_text().split()) == part.records
    for piece in part.pieces:
        if piece.choice.order:
            assert len(piece.choice.where[piece.choice.order]) == part.records


def test_no_record_is_in_both_parts_of_a_set() -> None:
    first, other = (set((LISTS / f"squad-{part}.txt").read_text().split()) for part in ("eval", "train"))
    assert not first & other
    for name in ("nq", "counterfact"):
        eval_part, train_part = sorted(find_set(name).parts, key=lambda part: part.name)
        assert eval_part.pieces == train_part.pieces
        assert eval_part.choice.take[0] >= train_part.choice.take[1]
    novels = [set(part.pieces[0].choice.where["name"]) for part in find_set("novels").parts]
    assert not novels[0] & novels[1]


def test_a_rule_is_said_in_words() -> None:
    choice = Choice(where={"split": "test", "name": ["a", "b"]}, first=3999, shuffle=0, take=[700, 850])
    assert choice.rule == (
        "split test, name one of 2, the first 3,999, in the order of random.Random(0).shuffle, places 700 to 849"
    )
    assert Choice().rule == "all"
    assert Choice(listed="squad-eval").rule == "those that squad-eval lists, in its order"


def test_an_unknown_set_gets_the_list() -> None:
    with pytest.raises(UnknownNameError, match=r"There is no data set 'sqad'\. Did you mean 'squad'"):
        find_set("sqad")


def test_the_page_says_of_each_set_what_it_is() -> None:
    page = (ROOT / "docs" / "reference" / "data.md").read_text(encoding="utf-8")
    assert not [name for name in data_sets() if f"| `{name}` |" not in page]
    assert Path(ROOT / "byheart" / "data" / "sets.toml").exists()
