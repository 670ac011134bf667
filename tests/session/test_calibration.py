from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from byheart.data.records import read
from byheart.errors import InputError, StateMismatchError
from byheart.protocol.codec import shelf
from byheart.session import load, open_state
from byheart.session.calibration import TEXTS, calibrate_model, ensure_codec, make_codec
from tests.conftest import save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("calibrated"), seed=41)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the texts that byheart brings: enough for a tiny model."""
    records = [json.loads(line) for line in (TEXTS / "squad.jsonl").read_text(encoding="utf-8").splitlines()]
    path = tmp_path_factory.mktemp("texts") / "some.jsonl"
    lines = [{**record, "context": record["context"][:400]} for record in records[:16]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_compact_memory_is_written_saved_opened_and_asked(folder: Path, texts: Path, tmp_path: Path) -> None:
    session = load(str(folder), method="full", dtype="float32")
    shelf.keep(make_codec(session.backbone, session.encoder, source=str(texts)))
    memory = load(session.backbone, method="compact", times=4)
    memory.write("The cat sat on the mat and watched the rain fall on the garden all day long.")
    memory.write("Then it slept.")
    answer = memory.ask("Who slept?", max_tokens=5)
    size = memory.save(tmp_path / "cat.safetensors")
    full = load(session.backbone, method="full")
    full.write("The cat sat on the mat and watched the rain fall on the garden all day long.")
    assert size < full.bytes
    again = load(session.backbone, method="compact", times=4)
    again.load(tmp_path / "cat.safetensors")
    assert again.ask("Who slept?", max_tokens=5) == answer
    twin = again.fork()
    twin.write("A dog came.")
    assert again.header.tokens < twin.header.tokens
    assert again.ask("Who slept?", max_tokens=5) == answer


def test_a_codec_is_made_once(folder: Path) -> None:
    session = load(str(folder), method="full", dtype="float32")
    first = ensure_codec(session.backbone, session.encoder)
    assert ensure_codec(session.backbone, session.encoder).fingerprint == first.fingerprint


def test_too_little_text_is_refused(folder: Path, tmp_path: Path) -> None:
    session = load(str(folder), method="full", dtype="float32")
    (tmp_path / "short.txt").write_text("One sentence.", encoding="utf-8")
    with pytest.raises(InputError, match="2000 tokens"):
        make_codec(session.backbone, session.encoder, source=str(tmp_path / "short.txt"))


def test_the_texts_that_come_along_are_of_many_kinds() -> None:
    kinds = {path.stem for path in TEXTS.glob("*.jsonl")}
    assert kinds >= {"squad", "novels", "code", "lists", "languages", "personachat"}
    assert {record.task for record in read(str(TEXTS)).records} == {"lm", "qa"}
    licences = (TEXTS / "LICENCES").read_text(encoding="utf-8")
    assert all(f"{kind}.jsonl" in licences for kind in kinds)


def test_memories_stay_readable_when_their_model_gets_another_codec(
    folder: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BYHEART_CACHE", str(tmp_path / "here"))
    more = tmp_path / "more.jsonl"
    more.write_text("".join(texts.read_text(encoding="utf-8").splitlines(keepends=True)[:12]), encoding="utf-8")
    where: dict[str, Any] = {"dtype": "float32"}
    first, _ = calibrate_model(str(folder), data=str(texts), **where)
    made, path = load(str(folder), method="compact", **where), tmp_path / "cat.safetensors"
    made.write("The cat sat on the mat and watched the rain fall on the garden all day long.")
    answer, size = made.ask("Who sat?", max_tokens=5), made.save(path)
    second, kept = calibrate_model(str(folder), data=str(more), **where)
    assert second.fingerprint != first.fingerprint
    # What there is is not made again unless that is asked for.
    again, path_again = calibrate_model(str(folder), **where)
    assert (again.fingerprint, path_again) == (second.fingerprint, kept)
    opened = open_state(path, model=str(folder))
    assert opened.ask("Who sat?", max_tokens=5) == answer
    opened.write("A dog came.")
    assert opened.save(path) > size
    assert open_state(path, model=str(folder)).header.adapter == first.fingerprint
    assert load(str(folder), method="compact", **where).header.adapter == second.fingerprint
    monkeypatch.setenv("BYHEART_CACHE", str(tmp_path / "there"))
    shelf.keep(second)
    with pytest.raises(StateMismatchError, match="calibrate MODEL --use FILE"):
        open_state(path, model=str(folder))


def test_the_codec_that_there_is_goes_to_another_machine(
    folder: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BYHEART_CACHE", str(tmp_path / "here"))
    made, _ = calibrate_model(str(folder), data=str(texts), dtype="float32")
    read_texts: list[int] = []
    how: dict[str, Any] = {"dtype": "float32", "progress": lambda done, total: read_texts.append(done)}
    copied, path = calibrate_model(str(folder), out=tmp_path / "codec.safetensors", **how)
    assert copied.fingerprint == made.fingerprint
    assert not read_texts
    calibrate_model(str(folder), out=tmp_path / "new.safetensors", data=str(texts), **how)
    assert read_texts
    monkeypatch.setenv("BYHEART_CACHE", str(tmp_path / "there"))
    used, kept = calibrate_model(str(folder), use=path, dtype="float32")
    assert used.fingerprint == made.fingerprint
    assert kept.is_relative_to(tmp_path / "there")
