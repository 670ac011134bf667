"""From text to tokens and back: the tokenizer and the chat template."""

from byheart.text.encoder import ChatEncoder, Tokenizer

__all__ = ["ChatEncoder", "Tokenizer"]
