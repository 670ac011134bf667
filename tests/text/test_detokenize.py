"""Text comes as soon as it is certain, and never has to be taken back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from byheart.text.detokenize import Detokenizer, decode_stream
from byheart.text.encoder import ChatEncoder


def byte_encoder(kind: str) -> ChatEncoder:
    """One token for each byte, as GPT-2 (``level``) and Llama 2 (``fallback``) have them for rare characters."""
    if kind == "level":
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        words = Tokenizer(models.BPE({name: index for index, name in enumerate(alphabet)}, []))
        words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        words.decoder = decoders.ByteLevel()
    else:
        vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
        words = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
        words.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return ChatEncoder(PreTrainedTokenizerFast(tokenizer_object=words))


BYTES = {kind: byte_encoder(kind) for kind in ("level", "fallback")}
both_kinds = pytest.mark.parametrize("kind", list(BYTES))


def streamed(kind: str, text: str, *stops: str) -> list[str]:
    ids: list[int] = BYTES[kind].continuation(text).tolist()
    assert len(ids) == len(text.encode())
    return list(decode_stream(iter(ids), BYTES[kind], stops))


def until(text: str, stops: list[str]) -> str:
    """What is left of ``text`` if reading ends as soon as a stop string is complete."""
    for end in range(1, len(text) + 1):
        found = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if found:
            return text[: min(found)]
    return text


@both_kinds
def test_a_character_of_many_bytes_is_shown_when_it_is_whole(kind: str) -> None:
    pieces = [piece for piece in streamed(kind, "aé漢😺👩‍👩‍👧z") if piece]
    assert "".join(pieces) == "aé漢😺👩‍👩‍👧z"
    assert pieces == list("aé漢😺👩‍👩‍👧z")


@both_kinds
def test_an_answer_may_break_off_in_a_character(kind: str) -> None:
    ids = BYTES[kind].continuation("a😺").tolist()[:-1]
    assert "".join(decode_stream(iter(ids), BYTES[kind], [])).rstrip("\ufffd") == "a"


@both_kinds
def test_a_stop_string_may_go_on_in_a_character_that_is_not_whole(kind: str) -> None:
    assert "".join(streamed(kind, "a0é", "0é")) == "a"
    assert "".join(streamed(kind, "a0éb", "0è")) == "a0éb"


@both_kinds
def test_the_mark_of_a_broken_character_is_no_stop_string_but_the_character_is(kind: str) -> None:
    assert "".join(streamed(kind, "aéb", "\ufffd")) == "aéb"
    assert "".join(streamed(kind, "a\ufffdb", "\ufffd")) == "a"
    assert "".join(streamed(kind, "a\ufffd", "\ufffd")) == "a"
    assert "".join(streamed(kind, "a\ufffdb", "\ufffd", "a\ufffdb")) == "a"


# Characters of one to four bytes, one of no shape, and the mark of a broken one.
SOME = "0aé漢😺\x80\ufffd"


@both_kinds
@given(
    text=st.text(max_size=12) | st.text(SOME, max_size=12),
    stops=st.lists(st.text(min_size=1, max_size=3) | st.text(SOME, min_size=1, max_size=3), max_size=3),
)
def test_what_is_streamed_is_the_text_up_to_a_stop(kind: str, text: str, stops: list[str]) -> None:
    pieces = streamed(kind, text, *stops)
    assert "".join(pieces) == until(text, stops)


@both_kinds
@given(text=st.text("ab", max_size=16), stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_stops_that_begin_like_the_text_are_found(kind: str, text: str, stops: list[str]) -> None:
    assert "".join(streamed(kind, text, *stops)) == until(text, stops)


@both_kinds
def test_text_is_shown_as_soon_as_it_is_certain(kind: str) -> None:
    def tokens() -> Iterator[int | None]:
        for place, token in enumerate(BYTES[kind].continuation("abcSTOPd").tolist()):
            taken.append(place)
            yield token

    taken: list[int] = []
    pieces = decode_stream(tokens(), BYTES[kind], ["STOP"])
    assert next(pieces) == "a"
    assert taken == [0]
    assert list(pieces) == ["b", "c", ""] or list(pieces) == []
    assert taken[-1] == 6


def test_a_stopped_row_ends_the_text() -> None:
    assert (
        "".join(decode_stream(iter([*BYTES["level"].continuation("ab").tolist(), None, 5]), BYTES["level"], [])) == "ab"
    )


@both_kinds
def test_a_detokenizer_has_the_text_so_far_and_says_when_it_has_ended(kind: str) -> None:
    detokenizer = Detokenizer(BYTES[kind], ["\n"])
    said = [detokenizer.push(token) for token in BYTES[kind].continuation("ab\ncd").tolist()]
    assert said == ["a", "b", "", "", ""]
    assert (detokenizer.text, detokenizer.ended) == ("ab", True)
    assert detokenizer.finish() == ""


@both_kinds
def test_what_was_held_back_comes_at_the_end(kind: str) -> None:
    detokenizer = Detokenizer(BYTES[kind], ["STOP"])
    assert [detokenizer.push(token) for token in BYTES[kind].continuation("aST").tolist()] == ["a", "", ""]
    assert not detokenizer.ended
    assert detokenizer.push(None) == "ST"
    assert (detokenizer.text, detokenizer.ended) == ("aST", True)
