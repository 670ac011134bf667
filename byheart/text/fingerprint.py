"""A name for a tokenizer: all that decides which tokens a text becomes, and how they become text again."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Collection
from pathlib import Path

from transformers import PreTrainedTokenizerBase

_SETTINGS = ("special_tokens_map", "chat_template", "split_special_tokens", "clean_up_tokenization_spaces")


# Of what a tokenizer in Python was made with: where it is, what it is called, and what is hashed apart.
_INCIDENTAL = {"added_tokens_decoder", "auto_map", "backend", "is_local", "local_files_only", "model_max_length"}
_INCIDENTAL_ENDS = ("_class", "_file", "_or_path", "_special_tokens")


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase, *, stops: Collection[int] = ()) -> str:
    """32 hexadecimal digits over its whole pipeline, its special tokens and its chat template.

    Args:
        stops: tokens besides its own that end an answer; 16 more digits after a point where there are some.
    """
    digest = hashlib.sha256(_pipeline(tokenizer) if tokenizer.is_fast else _vocabulary_files(tokenizer))
    settings = [getattr(tokenizer, name, None) for name in _SETTINGS]
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    ends = hashlib.sha256(repr(sorted(stops)).encode()).hexdigest()[:16]
    return digest.hexdigest()[:32] + (f".{ends}" if stops else "")


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
    """What a tokenizer in Python is made of: its class and settings, its words, and the files of its vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        files = sorted(tokenizer.save_vocabulary(folder))
        parts = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files]
    settings = {
        name: str(value)
        for name, value in sorted(tokenizer.init_kwargs.items())
        if value is not None and name not in {*_INCIDENTAL, *_SETTINGS} and not name.endswith(_INCIDENTAL_ENDS)
    }
    return repr([type(tokenizer).__name__, settings, fingerprint_vocabulary(tokenizer), *parts]).encode()
