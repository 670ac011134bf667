"""A name for a tokenizer: all that decides which tokens a text becomes, and how they become text again."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from transformers import PreTrainedTokenizerBase

_SETTINGS = ("special_tokens_map", "chat_template", "split_special_tokens", "clean_up_tokenization_spaces")


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """32 hexadecimal digits over its whole pipeline, its special tokens and its chat template."""
    digest = hashlib.sha256(_pipeline(tokenizer) if tokenizer.is_fast else _vocabulary_files(tokenizer))
    settings = [getattr(tokenizer, name, None) for name in _SETTINGS]
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


def fingerprint_vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    """The name that byheart 0.2 gave a tokenizer, by its vocabulary alone."""
    words = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(repr(words).encode()).hexdigest()[:32]


def _pipeline(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """Normaliser, splitting, vocabulary, merges and decoder; not truncation and padding, which each call decides."""
    # Those two stand before the added tokens.
    whole: str = tokenizer.backend_tokenizer.to_str()
    return whole.partition('"added_tokens":')[2].encode()


def _vocabulary_files(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """What a tokenizer in Python is made of: its class, its words, and the files of its vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        files = sorted(tokenizer.save_vocabulary(folder))
        parts = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files]
    return repr([type(tokenizer).__name__, fingerprint_vocabulary(tokenizer), *parts]).encode()
