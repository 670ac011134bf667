"""Data that are too large to hold are read window by window, and a batch is a function of its number alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from byheart.data import streaming
from byheart.data.mixture import Mixture, Weighted
from byheart.data.records import rows, stream_rows
from byheart.data.streaming import StreamedMixture, StreamedSource
from byheart.errors import InputError, UsageError
from byheart.text.encoder import ChatEncoder
from tests.conftest import tiny_tokenizer

ENCODER = ChatEncoder(tiny_tokenizer())
RECORDS, SIZE, BATCH = 10, 4, 2


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """A folder that stands for a corpus; its texts were made up for this test."""
    texts = [{"text": f"{chr(97 + n)} " * 60} for n in range(RECORDS)]
    lines = [f"{json.dumps(text)}\n" for text in texts]
    (tmp_path / "first.jsonl").write_text("".join(lines[:6]))
    (tmp_path / "second.jsonl").write_text("".join(lines[6:]))
    return str(tmp_path)


def letters(weighted: Weighted) -> str:
    return "".join(record.context[0] for record in weighted.data.records)


def open_mixture(*sources: str, packed: int = 1) -> StreamedMixture:
    make = partial(Mixture, ENCODER, batch=BATCH, packed=packed, segments=(1, 2), segment_tokens=16, target_tokens=8)
    return StreamedMixture(make, [StreamedSource(source, SIZE) for source in sources])


def test_a_stream_gives_the_rows_of_a_source(corpus: str) -> None:
    assert list(stream_rows(corpus)) == rows(corpus)


def test_windows_follow_one_another_and_begin_again(corpus: str) -> None:
    source = StreamedSource(f"{corpus}:2.5", SIZE)
    assert [letters(source.window(n)) for n in range(5)] == ["abcd", "efgh", "ijab", "cdef", "ghij"]
    assert source.window(3).weight == 2.5


@pytest.mark.parametrize("order", [(3, 1, 0, 2), (0, 0, 4, 4), (2, 3)])
def test_a_window_is_the_same_whenever_it_is_asked_for(corpus: str, order: tuple[int, ...]) -> None:
    source = StreamedSource(corpus, SIZE)
    expected = ["abcd", "efgh", "ijab", "cdef", "ghij"]
    assert [letters(source.window(n)) for n in order] == [expected[n] for n in order]


def test_no_more_than_a_window_is_read_ahead(corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0

    def counted(source: str) -> Iterator[object]:
        nonlocal read
        for row in stream_rows(source):
            read += 1
            yield row

    monkeypatch.setattr(streaming, "stream_rows", counted)
    source = StreamedSource(corpus, SIZE)
    assert read == SIZE + 1
    read = 0
    source.window(1)
    assert read == 2 * SIZE


def test_a_small_source_is_held_whole(corpus: str) -> None:
    source = StreamedSource(corpus, RECORDS)
    assert letters(source.window(7)) == "abcdefghij"


@pytest.mark.parametrize("packed", [1, 2])
def test_a_batch_depends_on_its_number_alone(corpus: str, packed: int) -> None:
    numbers = range(8)
    in_order = open_mixture(corpus, packed=packed)
    expected = [in_order(n) for n in numbers]
    for n in (7, 2, 5, 0):
        again = open_mixture(corpus, packed=packed)(n)
        assert torch.equal(again.segments, expected[n].segments)
        assert torch.equal(again.target, expected[n].target)


def test_a_window_serves_as_many_batches_as_it_has_records_for(corpus: str) -> None:
    mixture = open_mixture(corpus)
    assert mixture.batches == SIZE // BATCH
    first, second = (set(ENCODER.decode(mixture(n).target.flatten())) - {" "} for n in (1, 2))
    assert first <= set("abcd")
    assert second <= set("efgh")
    # What is dealt together comes from one window.
    assert open_mixture(corpus, packed=4).batches == 4


def test_a_name_of_the_hub_is_streamed_with_config_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder stands for the hub, as the package ``datasets`` reads one; it was made up for this test."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "allenai" / "c4"
    (folder / "en").mkdir(parents=True)
    card = "configs:\n- config_name: en\n  data_files: [{split: train, path: en/*.jsonl}]\n"
    (folder / "README.md").write_text(f"---\n{card}---\n")
    for part in range(2):
        texts = [{"text": f"{chr(97 + 5 * part + n)} " * 60, "url": "made up"} for n in range(5)]
        (folder / "en" / f"{part}.jsonl").write_text("".join(f"{json.dumps(text)}\n" for text in texts))
    asked = []
    original = datasets.load_dataset

    def load(*names: str, **options: object) -> object:
        asked.append((names, options))
        return original(*names, **options)

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = StreamedSource("allenai/c4/en:train:3", SIZE)
    assert [letters(source.window(n)) for n in range(3)] == ["abcd", "efgh", "ijab"]
    assert source.weight == 3
    assert asked[0] == (("allenai/c4",), {"name": "en", "split": "train", "streaming": True})


def test_what_cannot_be_streamed_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="stream must be above 0; it is -1"):
        StreamedSource("texts.jsonl", -1)
    with pytest.raises(InputError, match="There is no data file or folder"):
        StreamedSource(str(tmp_path / "none.jsonl"), 4)
    (tmp_path / "torn.jsonl").write_text('{"text": "a"}\n{"text"\n')
    with pytest.raises(InputError, match=r"torn\.jsonl' line 2 is not JSON"):
        StreamedSource(str(tmp_path / "torn.jsonl"), 4)
