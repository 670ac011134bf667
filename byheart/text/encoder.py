"""From text to the tokens that a model reads: bare text, turns of a conversation, questions and continuations.

How a text and a question are encoded, where the model has a chat template and text is written as turns:

    document:  <system and user header> text <end of turn, assistant header> I have read it. <end of turn, user header>
    question:  question <end of turn, assistant header>

Where text is written bare, a question is a conversation of its own. It knows a tokenizer; it does not know models,
methods or states.

Dimensions: T tokens.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from byheart.errors import InputError
from byheart.text.chat_template import RECEIPT, REPEAT, ChatTemplate, special_tokens
from byheart.text.conversation import around, fold_turns
from byheart.text.fingerprint import fingerprint_tokenizer, fingerprint_vocabulary
from byheart.text.prompt_format import PromptFormat

Tokenizer: TypeAlias = PreTrainedTokenizerBase


class ChatEncoder:
    """A tokenizer with its chat template. Tokens are long integers on the CPU.

    Args:
        model_stops: tokens that end an answer by the model's own settings.
        system_prompt: keep what the chat template says of its own before a conversation, as Qwen's and SmolLM2's do;
            FastMem (arXiv 2406.16069) asks without it.
        prompt_format: what stands around texts and questions instead of a chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        model_stops: Collection[int] = (),
        system_prompt: bool = True,
        prompt_format: PromptFormat | None = None,
    ) -> None:
        self.tokenizer, self.system_prompt = tokenizer, system_prompt
        self.model_stops = frozenset(model_stops)
        self.prompt_format = prompt_format

    def with_format(self, prompt_format: PromptFormat | None) -> ChatEncoder:
        """The same with another prompt format; this one where there is none."""
        if prompt_format is None or prompt_format == self.prompt_format:
            return self
        twin = copy.copy(self)
        twin.prompt_format = prompt_format
        return twin

    @cached_property
    def template(self) -> ChatTemplate:
        """What the chat template puts around texts and questions."""
        return ChatTemplate.of(self.tokenizer, system_prompt=self.system_prompt)

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template; without one, bare lines stand around texts and questions."""
        return bool(self.tokenizer.chat_template)

    @cached_property
    def start(self) -> list[int]:
        """What the tokenizer puts before every text, such as a BOS token; empty for many."""
        return list(self.tokenizer("").input_ids)

    @cached_property
    def stop_tokens(self) -> set[int]:
        """Tokens that end an answer: the model's, the tokenizer's, and the chat template's end of turn."""
        return {*self.model_stops, *self._own_stops()}

    def _own_stops(self) -> set[int]:
        """Those of the tokenizer and its chat template."""
        ends = [self.tokenizer.eos_token_id, *special_tokens(self.tokenizer, self.template.end)[:1]]
        return {token for token in ends if token is not None}

    @cached_property
    def fingerprint(self) -> str:
        """A name for the tokenizer, its chat template, and what else ends an answer."""
        name = fingerprint_tokenizer(self.tokenizer, stops=self.stop_tokens - self._own_stops())
        return name if self.system_prompt else f"{name}.no-system-prompt"

    @cached_property
    def vocabulary_fingerprint(self) -> str:
        """The name that byheart 0.2 gave the tokenizer."""
        return fingerprint_vocabulary(self.tokenizer)

    def document(self, text: str, *, first: bool, as_turn: bool) -> Int[Tensor, " T"]:
        """A text as it is written. Raises InputError.

        Args:
            first: nothing was written before it.
            as_turn: it becomes a turn of a conversation, which the next text or question continues.
        """
        require_characters(text)
        if self.prompt_format is not None:
            return self._formatted(self.prompt_format.ahead(first=first), text, first=first)
        opening = self.template.opening if first else ""
        parts = [opening, text, self.template.receipt] if as_turn else ["", text]
        return self.encode(*parts, first=first)

    def turn(self, question: str, answer: str, *, first: bool, as_turn: bool) -> Int[Tensor, " T"]:
        """A question and its answer as they are written. Raises InputError. ``first`` and ``as_turn`` as above."""
        require_characters(question + answer)
        if self.prompt_format is not None:
            parts = [self.prompt_format.ahead(first=first), question, f"{self.prompt_format.answer} ", answer]
            return self._formatted(*parts, first=first)
        if not as_turn:
            parts = ["", question, "\n", answer, "\n"]
        elif self.has_template:
            before, _, after = self.template.receipt.partition(RECEIPT)
            parts = [self.template.opening if first else "", question, before, answer, after]
        else:
            parts = [self.template.question, question, f"{self.template.answer} ", answer, self.template.receipt]
        return self.encode(*parts, first=first)

    def question(
        self, text: str, *, continues: bool, use_chat_template: bool = True, first: bool = True
    ) -> Int[Tensor, " T"]:
        """The tokens that ask ``text``, or the bare text for the model to continue. Raises InputError.

        Args:
            continues: it follows text that was written as turns, or in the encoder's prompt format.
            first: it begins as every text does, unless it ``continues``.
        """
        if not text.strip():
            raise InputError("There is nothing to ask: the question is empty.")
        require_characters(text)
        if not use_chat_template:
            return self.encode("", text, first=first and not continues)
        if self.prompt_format is not None:
            ahead = self.prompt_format.ahead(first=not continues)
            return self._formatted(ahead, text, self.prompt_format.answer, first=first and not continues)
        header = "" if continues and self.has_template else self.template.question
        return self.encode(header, text, self.template.answer, first=first and not continues)

    def conversation(
        self, messages: Sequence[tuple[str, str]], *, continues: bool = False, first: bool = True
    ) -> Int[Tensor, " T"]:
        """The tokens of a conversation, up to where the answer begins. Raises InputError.

        Where nothing comes before it, it is what the chat template itself writes. After a memory, or without a chat
        template, messages are turns one after another, and what the system says opens the user's next turn.

        Args:
            messages: role (system, user or assistant) and text of each; the last one is the user's.
            continues, first: as for ``question``.
        """
        if not messages or messages[-1][0] != "user" or not messages[-1][1].strip():
            raise InputError("There is nothing to ask: a conversation must end with a message of the user's.")
        for _, text in messages:
            require_characters(text)
        if self.prompt_format is None and self.has_template and not continues:
            roles, texts = zip(*messages, strict=True)
            whole = around(self.tokenizer, roles)
            opening = whole.parts[0] if roles[0] == "system" else self.template.question
            return self.encode(opening, *whole.filled(texts)[1:], first=first)
        opening, before, after, answer = self._around_turns(continues=continues)
        parts = [opening]
        for question, reply in fold_turns(messages):
            parts += [question, answer] if reply is None else [question, before, reply, after]
        encode = self.encode if self.prompt_format is None else self._formatted
        return encode(*parts, first=first and not continues)

    def _around_turns(self, *, continues: bool) -> tuple[str, str, str, str]:
        """What stands before the first question, before an answer, after it, and where an answer is to begin."""
        if self.prompt_format is not None:
            form = self.prompt_format
            return form.ahead(first=not continues), f"{form.answer} ", form.ahead(first=False), form.answer
        template = self.template
        if self.has_template:
            before, _, after = template.receipt.partition(RECEIPT)
            return "", before, after, template.answer
        return template.question, f"{template.answer} ", template.receipt + template.question, template.answer

    def continuation(self, text: str, *, use_chat_template: bool = False) -> Int[Tensor, " T"]:
        """The tokens of text that continues a prompt, after a space where that prompt ends in bare lines."""
        # Bare lines end in a colon, and so do the formats that methods were trained with.
        spaced = f" {text}" if use_chat_template and (self.prompt_format or not self.has_template) else text
        return self._tensor(self.tokenizer(spaced, add_special_tokens=False, verbose=False).input_ids)

    def encode(self, *parts: str, first: bool) -> Int[Tensor, " T"]:
        """Template and user text alternating, as one text; a special token's name in the user's text is only text."""
        named = any(mark in text for text in parts[1::2] for mark in self.tokenizer.all_special_tokens)
        pieces = [(part, n % 2 == 1) for n, part in enumerate(parts)] if named else [("".join(parts), False)]
        ids: list[int] = []
        for piece, plain in pieces:
            ids += self.tokenizer(piece, add_special_tokens=False, split_special_tokens=plain).input_ids
        return self._tensor(self._started(ids) if first else self._continued(ids))

    def _formatted(self, *parts: str, first: bool) -> Int[Tensor, " T"]:
        """Format and user text alternating; where text was written before, as it stands after any."""
        # Some tokenizers put a space before a text, and what follows another one has none.
        before = self.encode("a", first=False)
        tokens = self.encode(f"a{parts[0]}", *parts[1:], first=False)
        is_apart = not first and torch.equal(tokens[: len(before)], before)
        return tokens[len(before) :] if is_apart else self.encode(*parts, first=first)

    def template_tokens(self) -> dict[str, list[int]]:
        """What stands around texts, as a method may need it among its options.

        ``header`` and ``footer`` open and close an assistant turn; ``opening`` and ``receipt`` stand before and after
        a text that is written as a turn, the opening before the first one alone. ``repeat`` asks for the text again
        after its receipt; ``repeat_from`` asks for it from some words on, which follow, before ``repeat_answer``.
        """
        template, plain = self.template, {"add_special_tokens": False}
        asked = "" if self.has_template else template.question
        return {
            "header": self._started(self.tokenizer(template.turn, **plain).input_ids),
            "footer": special_tokens(self.tokenizer, template.end)[:1],
            "opening": self._started(self.tokenizer(template.opening, **plain).input_ids),
            "receipt": list(self.tokenizer(template.receipt, **plain).input_ids),
            "repeat": list(self.tokenizer(f"{asked}{REPEAT}.{template.answer}", **plain).input_ids),
            "repeat_from": list(self.tokenizer(f"{asked}{REPEAT}, starting with", **plain).input_ids),
            "repeat_answer": list(self.tokenizer(template.answer, **plain).input_ids),
        }

    def cut(self, text: str, tokens: int) -> str:
        """The longest beginning of a text that has at most so many tokens."""

        def count(end: int) -> int:
            return len(self.encode("", text[:end], first=False))

        # Characters are tried instead of decoding tokens, which does not always give back the text.
        return text if count(len(text)) <= tokens else text[: bisect_right(range(len(text)), tokens, key=count) - 1]

    def decode(self, tokens: Sequence[int] | Tensor) -> str:
        """The text of tokens, special ones left out."""
        ids = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _started(self, ids: Sequence[int]) -> list[int]:
        """The tokens with what every text begins with, unless a template has already put it there."""
        begun = list(ids[: len(self.start)]) == self.start
        return list(ids) if begun else [*self.start, *ids]

    def _continued(self, ids: Sequence[int]) -> list[int]:
        """The tokens without what every text begins with, where a template has put it there."""
        count = len(self.start)
        return list(ids[count:]) if list(ids[:count]) == self.start else list(ids)

    def _tensor(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor(list(ids), dtype=torch.long)


def require_characters(text: str) -> None:
    """Raise InputError for text that is not valid Unicode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"Character {error.start + 1} of the text is half a character: it was not UTF-8.") from error
