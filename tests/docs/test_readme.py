"""What the README shows is run, and what it claims is in the result files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks.tables import READING
from byheart.testing import FAMILIES
from tests.conftest import Run
from tests.docs.markdown import blocks, commands
from tests.samples import ROOT

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SESSION, RELEASED = blocks(TEXT, "python")
COMMANDS = commands(TEXT)
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples are there, as in a checkout, with texts short enough for a tiny model."""
    records = (ROOT / "examples" / "data" / "squad.jsonl").read_text(encoding="utf-8").splitlines()
    short = [{**record, "context": record["context"][:150]} for record in map(json.loads, records)]
    (tmp_path / "examples" / "data").mkdir(parents=True)
    (tmp_path / "examples" / "warsaw.txt").symlink_to(ROOT / "examples" / "warsaw.txt")
    (tmp_path / "examples" / "data" / "squad.jsonl").write_text("\n".join(map(json.dumps, short)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def execute(code: str) -> dict[str, object]:
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_it_fits_two_screens() -> None:
    assert len(TEXT.splitlines()) <= 138
    assert all(len(line) <= 120 for line in TEXT.splitlines() if not line.startswith(("|", "!", "byheart")))


def test_the_session_remembers_without_a_calibration(
    capsys: pytest.CaptureFixture[str], no_calibration: None, caplog: pytest.LogCaptureFixture
) -> None:
    threads = torch.get_num_threads()
    assert execute(SESSION)["session"].method.name == "compact"  # type: ignore[attr-defined]
    assert not caplog.records
    first, second = capsys.readouterr().out.splitlines()
    assert "Muck" in first
    assert "engine room" in second
    assert torch.get_num_threads() == threads


def test_released_checkpoints_open(tmp_path: Path) -> None:
    golden, checkpoints = ROOT / "tests" / "golden", tmp_path / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "memoryllm-8b").symlink_to(golden / "memoryllm_8b_tiny")
    (checkpoints / "llama-7b").symlink_to(golden / "ccm_concat_recur_tiny" / "base")
    # The name says how segments are joined, so a link would be followed to one that does not.
    adapter = golden / "ccm_concat_recur_tiny" / "adapter"
    shutil.copytree(adapter, checkpoints / "llama-7b-no-online-concat_recur-ntok2")
    names = execute(RELEASED)
    assert (names["pool"].name, names["compressed"].name) == ("latent-pool", "compressed-kv")  # type: ignore[attr-defined]
    assert names["compressed"].merge == "concat"  # type: ignore[attr-defined]


def test_the_commands_work_in_their_order(run: Run, tiny_folder: Path) -> None:
    """Training and measuring on a tiny model: what they give is not judged here."""
    for program, *arguments in COMMANDS:
        if program == "byheart":
            ended = run(*arguments, *(["--model", tiny_folder] if arguments[0] in ("train", "evaluate") else []))
            assert ended.code == 0, f"{arguments}: {ended.err}"
            if arguments[0] == "ask":
                assert "Sigismund" in ended.out
            if arguments[0] == "list":
                assert "warsaw-2" in ended.out
    assert Path("report/index.html").exists()


def test_the_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {words[1] for words in COMMANDS if words[0] == "make"} | set(re.findall(r"`make ([a-z-]+)`", TEXT))
    assert named >= {"demo", "test", "docs"}
    assert {target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)} == set()


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_it_claims_no_model_or_device_that_was_never_run(page: str) -> None:
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert "nothing was run on a GPU yet" in text
    assert not re.search(r"any (Hugging Face )?decoder|CPU or a GPU", text)


def test_it_names_the_families_that_are_tested() -> None:
    (named,) = re.findall(r"positions:\s(.*?) are\s+tested as tiny models", TEXT, re.DOTALL)
    words = re.sub(r"[^a-z0-9]", " ", named.lower().replace("-", "")).split()
    assert {re.match(r"[a-z]+", family)[0] for family in FAMILIES} == {  # type: ignore[index]
        re.match(r"[a-z]+", word)[0]  # type: ignore[index]
        for word in words
        if word != "and"
    }


def test_what_pip_installs_is_declared() -> None:
    first, second = [words for words in COMMANDS if words[0] == "pip"]
    extra = re.search(r"\[(\w+)\]", first[-1])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert extra is not None
    assert extra[1] in project["optional-dependencies"]
    assert second[-1] in (ROOT / "requirements" / "model.in").read_text(encoding="utf-8")


def test_other_servers_take_as_long_as_the_result_file_says() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "serving.json").read_text())["rows"]
    found = {row["name"]: f"{row['ratio']:.2f}" for row in rows}
    text = " ".join(TEXT.split())
    assert f"in {found['same_job transformers']} of the time that `transformers serve` takes" in text
    assert f"and {found['same_job llama.cpp']} of llama.cpp's" in text


def test_every_claim_leads_to_what_was_measured() -> None:
    """A sentence of prose with a measured number has a link to its row, as has every number of the table but costs."""
    lines = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL).splitlines()
    prose = " ".join(line for line in lines if not line.startswith(("|", "#", "!", "<")))
    sentences = re.split(r"(?<=\.) (?=[A-Z`])", prose)
    claims = [each for each in sentences if re.search(r"\d (seconds|%)|times fewer|times\b.*\bfewer", each)]
    assert len(claims) >= 2
    assert [each for each in claims if not re.search(r"explanation/(results|costs)\.md#", each)] == []
    (head,) = (line for line in lines if line.startswith("| method |"))
    # What a method keeps, and what reading costs, stands in the row that the other numbers of the line lead to.
    first = 3 + sum(title in head for title, _ in READING.values())
    cells = [cell.strip() for line in lines if line.startswith("| `") for cell in line.split("|")[first:-1]]
    numbers = [cell for cell in cells if cell]
    assert len(numbers) > 20
    assert [
        cell for cell in numbers if not re.fullmatch(r"\[-?[\d.]+\]\(docs/explanation/results\.md#[\w-]+\)", cell)
    ] == []


def test_what_it_says_of_methods_leads_to_rows() -> None:
    methods = TEXT[TEXT.index("## Which method?") : TEXT.index("<!-- tasks -->")]
    for name in ("compact", "retrieval", "latent-pool"):
        assert re.search(rf"`{name}`[^`]*results\.md#", methods), name


def test_no_other_program_is_shown() -> None:
    assert {words[0] for words in COMMANDS} == {"pip", "byheart"}


def test_the_numbers_it_opens_with_are_those_of_the_result_files() -> None:
    opening = " ".join(TEXT[: TEXT.index("## Install")].split())
    costs = {row["name"]: row for row in json.loads((RESULTS / "cost.json").read_text())["rows"]}["stored text"]
    rows = json.loads((RESULTS / "tasks" / "compact" / "rows.json").read_text())["rows"]
    small, full = (
        {row["metric"]: row for row in rows if row["method"] == name} for name in ("compact:times=32", "full")
    )
    assert (
        f"takes {costs['floor_seconds']:.1f} seconds; from a memory on disk it takes {costs['seconds']:.2f} seconds, "
        "with the method `full`" in opening
    )
    assert (
        f"in 32 times fewer bytes than its keys and values take, and its answers to {small['contains']['n']} questions"
        in opening
    )
    assert f"in {small['contains']['value']:.1%}".replace("%", " %") in opening
    assert f"with the whole text in {full['contains']['value']:.1%}".replace("%", " %") in opening
