"""What a method was trained to find around texts and questions goes with what it learned into every session."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from byheart.errors import CheckpointError
from byheart.protocol.checkpoint import save_pretrained
from byheart.session.opening import load
from byheart.session.session import Session
from byheart.text.encoder import ChatEncoder
from byheart.text.prompt_format import PromptFormat
from tests.conftest import tiny_tokenizer
from tests.samples import backbone, fresh

FORMAT = {"opening": "System: ", "before": "\nA: ", "answer": "\nOutput:"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = fresh("compressed-kv", backbone())
    made.prompt_format = FORMAT
    save_pretrained(made, tmp_path / "kept")
    return tmp_path / "kept"


def opened(folder: Path) -> Session:
    return load(backbone(), method=str(folder), encoder=tiny_tokenizer())


def same(tokens: torch.Tensor, text: str) -> bool:
    """Whether tokens are those of a text, what every text begins with aside."""
    own = tiny_tokenizer()
    return tokens.tolist() == own(text, add_special_tokens=False).input_ids


def test_texts_questions_and_turns_stand_as_in_training(folder: Path) -> None:
    session, encoder = opened(folder), ChatEncoder(tiny_tokenizer())
    start = torch.tensor(encoder.start, dtype=torch.long)
    assert same(session.document("a b")[0][len(start) :], "System: a b")
    assert same(session.prompt("who")[len(start) :], "System: who\nOutput:")
    session.write("a b")
    assert same(session.document("a b")[0], "\nA: a b")
    assert same(session.prompt("who"), "\nA: who\nOutput:")
    assert same(session.encoder.turn("who", "I", first=False, as_turn=False), "\nA: who\nOutput: I")
    # A bare question goes on with the text; nothing begins again.
    assert same(session.prompt("who", use_chat_template=False), "who")
    assert same(session.prompt("who", alone=True)[len(start) :], "System: who\nOutput:")
    assert isinstance(session.ask("who", max_tokens=2), str)


def test_without_a_format_the_encoder_stays_as_it_is() -> None:
    encoder = ChatEncoder(tiny_tokenizer())
    assert PromptFormat.of({}) is None
    assert encoder.with_format(None) is encoder
    assert encoder.with_format(PromptFormat(**FORMAT)).prompt_format == PromptFormat(**FORMAT)
    assert encoder.prompt_format is None


def test_a_format_of_other_parts_is_refused(folder: Path) -> None:
    card = folder / "method.json"
    card.write_text(card.read_text().replace('"before"', '"beside"'))
    with pytest.raises(CheckpointError, match="prompt_format"):
        opened(folder)
