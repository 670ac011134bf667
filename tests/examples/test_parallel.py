"""The check of the parallel computation runs as it says, here on a tiny model."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.samples import ROOT


@pytest.mark.parametrize("option", ["merge=concat", "merge=mean"])
def test_parallel_and_recurrent_computation_agree(
    option: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "cat.txt"
    text.write_text("The cat is called Muck. " * 12, encoding="utf-8")
    main = runpy.run_path(str(ROOT / "examples" / "parallel.py"))["main"]
    given = [str(text), "--model", str(tiny_folder), "-o", option, "-o", "segment_tokens=16"]
    assert main(given) < 1e-3
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first.partition(": ")[2] == second.partition(": ")[2]
    with pytest.raises(SystemExit):
        main([*given[:3], "--method", "full"])
    assert "full does not compute in parallel" in capsys.readouterr().err
