"""From text to tokens and back: the tokenizer and the chat template."""

from byheart.text.encoder import ChatEncoder, Tokenizer
from byheart.text.fact_text import FactText
from byheart.text.prompt_format import PromptFormat

__all__ = ["ChatEncoder", "FactText", "PromptFormat", "Tokenizer"]
