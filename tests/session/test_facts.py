"""Marked sentences on their way to a method: places of characters become places of tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from byheart.session.batch import write_many
from byheart.session.facts import encode_fact
from byheart.session.opening import load
from byheart.session.session import Session
from byheart.text.encoder import ChatEncoder
from byheart.text.fact_text import FactText
from tests.conftest import tiny_tokenizer
from tests.samples import OPTIONS, backbone, moments_of, same

SENTENCE = "The dog of Ann is Rex.\n"


@pytest.fixture
def encoder() -> ChatEncoder:
    """One without a chat template: where words stand in a fact does not depend on it."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    return ChatEncoder(tokenizer)


@pytest.mark.parametrize("first", [True, False])
def test_places_are_those_of_the_marked_words(encoder: ChatEncoder, first: bool) -> None:
    tokens = encoder.document(SENTENCE, first=first, as_turn=False)
    fact = encode_fact(encoder, FactText(SENTENCE, subject="Ann", target="Rex"), tokens, first=first)
    assert encoder.decode(fact.tokens[fact.start : fact.end]).strip() == "Rex"
    assert encoder.decode(fact.tokens[: fact.subject + 1]) == "The dog of Ann"
    assert encoder.decode(fact.essence) == "Ann is a"
    assert encoder.decode(fact.essence[: fact.essence_subject + 1]) == "Ann"
    assert encoder.decode(fact.shown).endswith(f"New Fact: {SENTENCE.strip()}\nPrompt:\n")
    marked = FactText(SENTENCE, target="Rex")
    turn = encode_fact(encoder, marked, tokens, first=first, as_turn=True)
    assert torch.equal(turn.shown, encoder.document(marked.shown, first=first, as_turn=True))


def test_without_a_subject_the_words_before_the_target_are_taken(encoder: ChatEncoder) -> None:
    tokens = encoder.document("Rex barks", first=False, as_turn=False)
    fact = encode_fact(encoder, FactText("Rex barks", target="Rex"), tokens, first=False)
    assert (fact.subject, fact.start, len(fact.essence)) == (0, 1, 0)
    fact = encode_fact(encoder, FactText("Rex barks", target="barks"), tokens, first=False)
    assert fact.subject == fact.start - 1
    assert fact.end == len(tokens)


@pytest.mark.parametrize("name", ["rome", "memit", "ike", "ffn-edit", "full"])
def test_a_fact_is_written_alone_as_among_other_texts(name: str, encoder: ChatEncoder) -> None:
    own = backbone()
    moments_of(own)
    text = FactText(SENTENCE, subject="Ann", target="Rex")

    def opened() -> Session:
        return load(own, method=name, encoder=encoder, **OPTIONS.get(name, {}))

    alone = opened()
    alone.write(text)
    method = alone.method
    both = [Session(own, encoder, method) for _ in range(2)]
    write_many(both, [text, "Bo has a cat."])
    same(both[0].state, alone.state, within=1e-4)
    plain = opened()
    plain.write(str(text))
    differs = any(not torch.equal(plain.state[part], alone.state[part]) for part in plain.state if part in alone.state)
    assert differs == (name in ("rome", "memit", "ike"))


def test_an_edited_memory_is_saved_and_edited_further(encoder: ChatEncoder, tmp_path: Path) -> None:
    own = backbone()
    moments_of(own)
    made = load(own, method="rome", encoder=encoder, **OPTIONS["rome"])
    made.write(FactText(SENTENCE, subject="Ann", target="Rex"))
    made.save(tmp_path / "a.byheart")
    again = load(own, method="rome", encoder=encoder, **OPTIONS["rome"])
    again.load(tmp_path / "a.byheart")
    for session in (made, again):
        session.write(FactText("The cat of Bo is Tom.", subject="Bo", target="Tom"))
    same(again.state, made.state)
