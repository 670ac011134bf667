"""Text that streams through a number of slots while every token of it is predicted."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest
import torch

from byheart.data.records import rows
from byheart.evaluation.evaluate import evaluate
from byheart.evaluation.targets import stream_losses, target_losses
from byheart.evaluation.tasks.stream import Stream
from byheart.protocol.episode import Episode, collate
from byheart.session.opening import load
from byheart.session.session import Session
from tests.samples import backbone, method, tokens

STREAM = "compressed-kv:slots=20;segment_tokens=6;compressed_slots=4;tokens=2"
WINDOW = "window:sinks=1;recent=9;chunk_tokens=4"


@pytest.fixture(scope="module")
def opened(tiny_folder: Path) -> Session:
    return load(str(tiny_folder), dtype="float32", method="nothing")


def test_every_token_but_the_first_is_predicted_once(opened: Session) -> None:
    (task,) = Stream(every=5, pieces=3).split(opened.encoder)
    text = "a b c d e f g h i j k l m n o p q r s t u"
    ids = tuple(opened.encoder.encode("", text, first=True).tolist())
    (item,) = task.items([{"context": text}], 0)
    assert task.asks == "stream"
    assert item.texts == (ids[:5], ids[5:10])
    assert [(asked.target, asked.after, asked.conditions) for asked in item.questions] == [
        (ids[start : start + 6], n, {"token": start}) for n, start in enumerate((0, 5, 10))
    ]
    assert list(task.items([{"context": "a"}], 0)) == []


def test_segments_of_any_length_lose_what_single_tokens_lose(opened: Session, tmp_path: Path) -> None:
    """What a token sees does not depend on how the text is cut; PG19's own columns are read."""
    book = {"short_book_title": "made up for this test", "text": " ".join("abcdefgh"[n % 8] for n in range(80))}
    hub = tmp_path / "pg19.jsonl"
    hub.write_text(json.dumps(book))
    assert rows(str(hub))[0]["context"] == book["text"]
    found: dict[int, dict[str, float]] = {}
    for every, pieces in ((60, 1), (1, 60), (12, 5)):
        measured = evaluate(
            Stream(every=every, pieces=pieces), str(hub), [STREAM, WINDOW, "full"], model=opened.backbone
        )
        losses = [row for row in measured if row.metric == "loss"]
        found[every] = {spec: fmean(row.value for row in losses if row.method == spec) for spec in (STREAM, "full")}
    for spec in (STREAM, "full"):
        assert found[1][spec] == pytest.approx(found[60][spec], abs=1e-4)
        assert found[12][spec] == pytest.approx(found[60][spec], abs=1e-4)
    assert abs(found[1][STREAM] - found[1]["full"]) > 1e-4


@pytest.mark.parametrize("case", ["full", "window", "latent-pool", "compressed-kv", "compressed-kv stream", "last-ffn"])
def test_a_stream_is_read_by_every_method_as_it_writes(case: str) -> None:
    """Two texts of different lengths side by side; without what can be written at once it would be one target."""
    made, own = method(case), backbone()
    targets = [tokens(31, seed=1)[0], tokens(12, seed=2)[0]]
    found = stream_losses(made, [made.init(), made.init()], targets)
    assert [count for _, count in found] == [30, 11]
    for target, (loss, _) in zip(targets, found, strict=True):
        state, expected, left = made.init(), 0.0, target
        while len(left) > 1:
            length = min(len(left) - 1, made.reads_at_once(state, left[None]))
            batch = collate([Episode((), left[: length + 1])])
            with torch.no_grad():
                expected += float(target_losses(own, [made.read(state)], batch))
                state = made.write(state, left[None, :length]) if len(left) > length + 1 else state
            left = left[length:]
        assert loss == pytest.approx(expected, rel=1e-3)
