"""A tokenizer's name covers all that decides which tokens a text becomes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast, ProphetNetTokenizer

from byheart.text.encoder import ChatEncoder
from byheart.text.fingerprint import fingerprint_tokenizer, fingerprint_vocabulary
from tests.conftest import tiny_tokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
MODEL = {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4}, "merges": [["a", "b"], ["b", "c"]]}
WHOLE: dict[str, Any] = {"version": "1.0", "added_tokens": [], "model": MODEL}


def bpe(special: dict[str, str] | None = None, **parts: Any) -> PreTrainedTokenizerFast:
    own = Tokenizer.from_str(json.dumps({**WHOLE, **parts}))
    return PreTrainedTokenizerFast(tokenizer_object=own, **(special or SPECIAL))


OTHERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "normaliser": lambda: bpe(normalizer={"type": "Lowercase"}),
    "pre-tokeniser": lambda: bpe(pre_tokenizer={"type": "Whitespace"}),
    "order of the merges": lambda: bpe(model={**MODEL, "merges": [["b", "c"], ["a", "b"]]}),
    "decoder": lambda: bpe(decoder={"type": "Fuse"}),
    "swapped letters": lambda: bpe(model={**MODEL, "vocab": {**MODEL["vocab"], "a": 1, "b": 0}}),
    "special tokens": lambda: bpe({"bos_token": "<s>", "eos_token": "<s>"}),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_pipeline_has_another_name(other: Callable[[], PreTrainedTokenizerFast]) -> None:
    assert fingerprint_tokenizer(other()) != fingerprint_tokenizer(bpe())


def test_another_chat_template_has_another_name() -> None:
    own, other = tiny_tokenizer(), tiny_tokenizer()
    other.chat_template = own.chat_template.replace("<|end|>", "<|end|> ")
    assert fingerprint_tokenizer(other) != fingerprint_tokenizer(own)
    assert fingerprint_vocabulary(other) == fingerprint_vocabulary(own)


def test_a_name_stays_when_a_tokenizer_is_used_and_saved(tmp_path: Path) -> None:
    own = tiny_tokenizer()
    before = fingerprint_tokenizer(own)
    own("a cat", padding="max_length", truncation=True, max_length=9)
    assert fingerprint_tokenizer(own) == before == fingerprint_tokenizer(tiny_tokenizer())
    own.save_pretrained(tmp_path)
    assert fingerprint_tokenizer(AutoTokenizer.from_pretrained(tmp_path)) == before


def test_a_tokenizer_in_python_has_a_name() -> None:
    names = {fingerprint_tokenizer(ByT5Tokenizer(extra_ids=ids)) for ids in (0, 0, 5)}
    assert len(names) == 2


def test_the_settings_of_a_tokenizer_in_python_are_part_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "The"]))
    own, other = (ProphetNetTokenizer(tmp_path / "vocab.txt", do_lower_case=lower) for lower in (True, False))
    assert own("The").input_ids != other("The").input_ids
    assert fingerprint_tokenizer(own) != fingerprint_tokenizer(other)
    own.save_pretrained(tmp_path / "saved")
    assert fingerprint_tokenizer(ProphetNetTokenizer.from_pretrained(tmp_path / "saved")) == fingerprint_tokenizer(own)


def test_what_ends_an_answer_besides_the_tokenizers_own_is_part_of_the_name() -> None:
    own = tiny_tokenizer()
    end, turn, other = own.eos_token_id, own.convert_tokens_to_ids("<|end|>"), 40
    plain = fingerprint_tokenizer(own)
    assert {ChatEncoder(own, model_stops=stops).fingerprint for stops in ((), (end,), (turn, end))} == {plain}
    longer = {ChatEncoder(own, model_stops=stops).fingerprint for stops in ((other,), (end, other), (other, turn))}
    assert len(longer) == 1
    assert longer.pop().startswith(f"{plain}.")
    assert ChatEncoder(own, model_stops=(other, 41)).fingerprint != ChatEncoder(own, model_stops=(other,)).fingerprint
