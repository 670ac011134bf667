"""The page of results is measured, kept and written by one command, here on a tiny model; numbers are not judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import results
from byheart.evaluation.method_spec import MethodSpec, split_budget, split_specs, with_controls, without_control
from byheart.evaluation.results import Result, load, save
from byheart.evaluation.tasks import build
from byheart.evaluation.tasks.questions import SHORT
from byheart.methods import BUILT_IN
from byheart.reports.compare import compare

_PLAN = """
[[measure]]
name = "questions"
title = "Answers"
note = "All at once."
task = "questions"
data = ["pets"]
limit = 2
methods = ["nothing", "full", "window@8KB", "retrieval", "compressed-kv:tokens=2;segment_tokens=16;rank=2"]
figures = ["f1-bytes"]

[[measure]]
name = "retention"
title = "Later"
note = "One after another."
task = "retention"
data = ["pets"]
limit = 2
options = { distractors = 2, every = 1 }
methods = ["latent-pool:slots=4;blocks=2;longest=32;shortest=2"]
figures = ["accuracy-distractors"]
"""
_PETS = ["Muck", "Ada", "Tom", "Kit"]


@pytest.fixture
def command(tiny_folder: Path, tmp_path: Path) -> list[str]:
    asked = [
        {"context": f"The cat is {pet}.", "question": f"Which cat, {asker}?", "answers": [pet]}
        for pet in _PETS
        for asker in ("Ann", "Bob")
    ]
    (tmp_path / "pets.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in asked))
    (tmp_path / "plan.toml").write_text(_PLAN)
    places = {"--plan": "plan.toml", "--data": "", "--runs": "runs", "--kept": "kept", "--page": "page.md"}
    about = [each for name, end in places.items() for each in (name, str(tmp_path / end))]
    return [*about, "--model", str(tiny_folder), "--dtype", "float32"]


def test_everything_is_measured_kept_and_shown(command: list[str], tmp_path: Path) -> None:
    results.main(command)
    _, rows = load(tmp_path / "kept" / "questions" / "rows.json")
    assert len({row.method for row in rows}) == 5
    page = (tmp_path / "page.md").read_text()
    assert "## Answers" in page
    assert "## Later" in page
    assert "rows.json`, computed in float32." in page
    for row in rows:
        assert f"`{row.method}`" in page
    for figure in ("page/questions-pets-f1-bytes.svg", "page/retention-pets-accuracy-distractors.svg"):
        assert f"]({figure})" in page
        assert (tmp_path / figure).read_text().lstrip().startswith("<")
    made = compare([tmp_path / "kept"], out=tmp_path / "report")
    assert len({number.row.task for number in made.numbers}) == 2


def test_a_second_model_is_measured_where_it_lies_and_kept_by_its_name(
    command: list[str], tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(_PLAN.split("[[measure]]")[1].join(["[[measure]]", 'model = "Another"\n']))
    results.main(command)
    assert "--at Another=FILE" in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()
    results.main([*command, "--at", f"Another={tiny_folder}", "--limit", "1"])
    text = (tmp_path / "kept" / "questions" / "rows.json").read_text()
    assert json.loads(text)["about"]["model"] == "Another"
    assert str(tmp_path) not in text
    assert "--model Another" in (tmp_path / "page.md").read_text()


def test_a_measure_whose_data_are_not_there_is_left_out(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(_PLAN.replace('data = ["pets"]', 'data = ["lists"]', 1))
    results.main(command)
    assert "questions: left out" in (said := capsys.readouterr().err)
    assert "has no lists, which `python benchmarks/kinds.py FOLDER` makes" in said
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["retention"]


def test_the_page_alone_needs_no_model(command: list[str], tmp_path: Path) -> None:
    results.main([*command, "--only", "questions"])
    first = (tmp_path / "page.md").read_text()
    assert "## Later" not in first
    (tmp_path / "page.md").unlink()
    results.main([*command, "--report", "--model", "absent"])
    assert (tmp_path / "page.md").read_text() == first


def test_studies_of_other_scripts_are_shown_below(command: list[str], tmp_path: Path) -> None:
    study = '\n[[study]]\nname = "places"\ntitle = "Places"\nnote = "Two."\ncommand = "python x.py"\n'
    (tmp_path / "plan.toml").write_text(
        f'{study}[[study]]\nname = "absent"\ntitle = "No"\nnote = ""\ncommand = ""\n{_PLAN}'
    )
    row = Result("edit", "facts", "keys - values", "score", 0.25, 0.125, 0.5, 60, 0, 0.0)
    save(tmp_path / "places.json", [row])
    results.main([*command, "--only", "questions"])
    page = (tmp_path / "page.md").read_text()
    assert (
        page.index("## Answers")
        < page.index("## Places")
        < page.index("python x.py")
        < page.index("0.250 [0.125, 0.500]")
    )
    assert "## No" not in page


def test_an_unknown_name_is_refused(command: list[str]) -> None:
    with pytest.raises(SystemExit, match="has no question"):
        results.main([*command, "--only", "question"])


@pytest.mark.parametrize("one", results.plan(results.PLAN), ids=lambda one: one.name)
def test_what_is_planned_can_be_asked_for(one: results.Measure) -> None:
    build(one.task, **one.options)
    with_controls(one.methods, one.control)
    assert one.against in ("", *one.methods)
    for said in one.methods:
        assert split_specs(said) == [said]
        assert MethodSpec.of(split_budget(said)[0]).name in BUILT_IN
        # A control is set against its method, letter for letter.
        assert without_control(said) in one.methods


def test_the_plan_has_the_published_rows_of_fastmem() -> None:
    plan = {one.name: one for one in results.plan(results.PLAN)}
    asked, shown = plan["fastmem"], plan["fastmem-one-shot"]
    assert {"nq_swap", "nq", "memotrap", "hotpotqa"} | {"nq_synth"} == set(asked.data)
    # Zero-shot, DoLa, CAD; the paper's method alone, with CD and with DoLa.
    own = "last-ffn:keep_text=false;max_tokens=32"
    plain = [f"nothing:max_tokens=32{more}" for more in ("", ";dola=high", ";context_aware=0.5")]
    assert {*plain, own, f"{own};contrast=0.5", f"{own};dola=high"} <= set(asked.methods)
    assert shown.options["shots"] == 1
    assert set(shown.data) <= set(asked.data)


def test_controls_are_measured_and_stand_in_the_command(command: list[str], tmp_path: Path) -> None:
    plan = """
[[measure]]
name = "questions"
title = "Answers"
note = "With controls."
task = "questions"
data = ["pets"]
limit = 2
control = ["nothing", "other"]
options = { instruction = "short" }
methods = ["nothing", "window:recent=8"]
figures = ["gold_loss-bytes"]
"""
    (tmp_path / "plan.toml").write_text(plan)
    results.main(command)
    page = (tmp_path / "page.md").read_text()
    assert "-o instruction=short --control nothing,other --limit 2" in page
    for said in ("`window:recent=8;control=nothing`", "`window:recent=8;control=other`", "gold loss over other text"):
        assert said in page
    about, _ = load(tmp_path / "kept" / "questions" / "rows.json")
    assert {run["options"]["instruction"] for run in about["runs"]} == {SHORT}
