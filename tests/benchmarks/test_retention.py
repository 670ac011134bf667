"""How long a pool keeps a text: the points of a curve on a tiny model, and the table of its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import retention
from byheart.methods.latent_pool import LatentPool
from byheart.session.opening import load


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "words.jsonl"
    texts = (" ".join(f"{word}{n}" for n in range(200)) for word in ("ape", "bee", "cat", "dog"))
    file.write_text("".join(json.dumps({"task": "lm", "context": text}) + "\n" for text in texts))
    return file


def test_a_curve_has_a_point_for_each_number_of_writes(data: Path, tiny_folder: Path) -> None:
    options = {"slots": 8, "blocks": 2, "longest": 64, "shortest": 4}
    method = load(str(tiny_folder), method="latent-pool", dtype="float32", **options).method
    assert isinstance(method, LatentPool)
    points = retention.curve(method, str(data), windows=4, size=2, after=(0, 2))
    assert [(point.dataset, point.after) for point in points] == [("words", 0), ("words", 2)]
    for point in points:
        assert point.kept == pytest.approx(point.value - point.other)
    # The law starts at what is kept without later writes, of which each drops one of two blocks.
    assert points[0].law == points[0].kept
    assert points[1].law == pytest.approx(points[0].kept / 4)


def test_the_share_is_of_the_sums_over_windows() -> None:
    floor, ceiling = torch.tensor([4.0, 2.0]), torch.tensor([1.0, 1.0])
    assert retention.share_closed(floor, ceiling, torch.tensor([2.0, 2.0])).item() == 0.5
    assert retention.share_closed(floor, ceiling, torch.stack([floor, ceiling])).tolist() == [0.0, 1.0]


def test_the_table_has_a_line_for_each_point(tmp_path: Path) -> None:
    point = {"dataset": "squad", "after": 2, "value": 0.5, "other": 0.125, "kept": 0.375}
    file = tmp_path / "retention.json"
    file.write_text(json.dumps({"windows": 8, "points": [{**point, "low": 0.25, "high": 0.5, "law": 0.3}]}))
    table = retention.table(file)
    assert "| squad | 2 | 0.50 | 0.12 | 0.38 | 0.25 to 0.50 | 0.30 |" in table
    assert "python benchmarks/retention.py --data eval/squad.jsonl --windows 8" in table
    assert retention.drawn(file).lstrip().startswith("<?xml")
