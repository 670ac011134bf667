"""What a chat template puts around texts and questions, found by rendering it, so that no template is known by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

RECEIPT = "I have read it."
_TEXT, _QUESTION = "\u2063text\u2063", "\u2063question\u2063"


@dataclass(frozen=True)
class ChatTemplate:
    """What surrounds texts and questions; bare lines where a tokenizer has no template.

    ``opening`` and ``receipt`` stand around a text that is read, ``question`` and ``answer`` around a question that is
    a conversation of its own; ``turn`` opens an assistant's turn and ``end`` closes it.
    """

    opening: str
    receipt: str
    answer: str
    question: str
    turn: str
    end: str

    @classmethod
    def of(cls, tokenizer: Any) -> ChatTemplate:
        """Found by rendering marked messages."""
        if not tokenizer.chat_template:
            return cls("", "\n\n", "\nAnswer:", "Question: ", "", "")
        user, assistant = {"role": "user", "content": _TEXT}, {"role": "assistant", "content": RECEIPT}

        def rendered(messages: Sequence[dict[str, str]], prompted: bool) -> str:
            return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompted))

        question = {"role": "user", "content": _QUESTION}
        alone, prompted = rendered([question], False), rendered([question], True)
        whole = rendered([user, assistant, question], True)
        return cls(
            opening=whole.split(_TEXT)[0],
            receipt=whole.split(_TEXT)[1].split(_QUESTION)[0],
            answer=whole.split(_QUESTION)[1],
            question=prompted.split(_QUESTION)[0],
            turn=prompted[len(alone) :],
            end=alone.split(_QUESTION)[1],
        )


def special_tokens(tokenizer: Any, text: str) -> list[int]:
    """The special tokens in a text."""
    known = set(tokenizer.all_special_ids)
    return [token for token in tokenizer(text, add_special_tokens=False).input_ids if token in known]
