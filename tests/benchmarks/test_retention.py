"""How long a pool keeps a text: the points of a curve on a tiny model, and the table of its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import retention
from byheart.methods.latent_pool import LatentPool
from byheart.protocol.episode import Episode
from byheart.protocol.state import State
from byheart.session.opening import load


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "words.jsonl"
    texts = (" ".join(f"{word}{n}" for n in range(200)) for word in ("ape", "bee", "cat", "dog"))
    file.write_text("".join(json.dumps({"task": "lm", "context": text}) + "\n" for text in texts))
    return file


def test_a_curve_has_a_point_for_each_number_of_writes(data: Path, tiny_folder: Path) -> None:
    options = {"slots": 8, "blocks": 2, "longest": 256, "shortest": 4}
    method = load(str(tiny_folder), method="latent-pool", dtype="float32", **options).method
    assert isinstance(method, LatentPool)
    points = retention.curve(method, str(data), windows=4, size=2, after=(0, 2))
    assert [(point.dataset, point.after) for point in points] == [("words", 0), ("words", 2)]
    for point in points:
        assert point.kept == pytest.approx(point.value - point.other)
    # The law starts at what is kept without later writes, of which the first still finds room for its block.
    assert points[0].law == points[0].kept
    assert points[1].law == pytest.approx(points[0].kept / 2)
    first, filled = retention.curve(method, str(data), windows=4, size=2, after=(0, 2), before=2)
    assert filled.law == pytest.approx(first.kept / 4)
    # Four windows are too few to say how they differ.
    assert all(point.low == point.kept == point.high for point in points)


def test_texts_that_fill_the_pool_are_written_first(data: Path, tiny_folder: Path) -> None:
    method = load(str(tiny_folder), method="latent-pool", dtype="float32", slots=8, blocks=3, longest=64).method
    texts = [torch.arange(n, n + 20) for n in range(1, 10)]
    seen: list[list[int]] = []

    def noted(states: list[State], segments: list[torch.Tensor]) -> list[State]:
        seen.append([int(segment[0, 0]) for segment in segments])
        return write_many(states, segments)

    write_many, method.write_many = method.write_many, noted  # type: ignore[method-assign]
    episodes = [Episode((text,), text[:8]) for text in texts]
    retention.after_each(method, episodes[:2], episodes[2:], [0, 2], before=2)
    assert seen == [[9, 8], [8, 7], [1, 2], [4, 5], [5, 6]]


def test_the_report_draws_the_law_of_the_stored_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into a fresh pool of eight blocks seven more writes drop nothing; the law of earlier files had them drop."""
    page = tmp_path / "docs" / "explanation" / "measures.md"
    page.parent.mkdir(parents=True)
    page.write_text("Before.\n<!-- retention -->\nold\n<!-- /retention -->\nAfter.\n")
    monkeypatch.setattr(retention, "ROOT", tmp_path / "benchmarks")
    kept = {0: 0.75, 7: 0.11, 8: 0.2, 30: 0.0}
    points = [
        {
            "dataset": "novels",
            "after": n,
            "value": v,
            "other": 0.0,
            "kept": v,
            "low": v - 0.1,
            "high": v + 0.1,
            "law": 9.0,
        }
        for n, v in kept.items()
    ]
    file = tmp_path / "retention.json"
    file.write_text(
        json.dumps({"method": {"blocks": 8, "longest": 256, "shortest": 16}, "windows": 24, "points": points})
    )
    retention.main(["--report", "--out", str(file)])
    laws = {point["after"]: point["law"] for point in json.loads(file.read_text())["points"]}
    assert laws == pytest.approx({0: 0.75, 7: 0.75, 8: 0.75 * 7 / 8, 30: 0.75 * (7 / 8) ** 23})
    text = page.read_text()
    assert "| novels | 7 | 0.11 | 0.00 | 0.11 | 0.01 to 0.21 | 0.75 | 24 |" in text
    assert text.startswith("Before.\n")
    assert text.endswith("After.\n")
    assert (page.parent / retention.FIGURE).exists()


def test_each_piece_of_a_text_is_a_write() -> None:
    """Of 256 tokens, in two pieces into four blocks: the second text after them drops a fourth with each piece."""
    pool = {"blocks": 4, "longest": 128, "shortest": 16}
    assert [retention.law(pool, 0, n) for n in (0, 1, 2)] == pytest.approx([1, 1, (3 / 4) ** 2])
    # Where other texts have filled the pool, its own second piece has already dropped a fourth of the first.
    assert retention.law(pool, 2, 1) == pytest.approx((3 / 4) ** 2)


def test_data_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        retention.main([])
    assert "give --data, or --report" in capsys.readouterr().err


def test_the_share_is_of_the_sums_over_windows() -> None:
    floor, ceiling = torch.tensor([4.0, 2.0]), torch.tensor([1.0, 1.0])
    assert retention.share_closed(floor, ceiling, torch.tensor([2.0, 2.0])).item() == 0.5
    assert retention.share_closed(floor, ceiling, torch.stack([floor, ceiling])).tolist() == [0.0, 1.0]


def test_the_table_has_a_line_for_each_point(tmp_path: Path) -> None:
    point = {"dataset": "squad", "after": 2, "value": 0.5, "other": 0.125, "kept": 0.375}
    file = tmp_path / "retention.json"
    file.write_text(json.dumps({"windows": 8, "points": [{**point, "low": 0.25, "high": 0.5, "law": 0.3}]}))
    table = retention.table(file)
    assert "| squad | 2 | 0.50 | 0.12 | 0.38 | 0.25 to 0.50 | 0.30 | 8 |" in table
    assert "python benchmarks/retention.py --data eval/squad.jsonl --windows 8" in table
    assert retention.drawn(file).lstrip().startswith("<?xml")
