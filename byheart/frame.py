"""What a chat template puts around texts and questions, found by rendering it, so that no template is known by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

RECEIPT = "I have read it."
_TEXT, _QUESTION = "\u2063text\u2063", "\u2063question\u2063"


@dataclass(frozen=True)
class Frame:
    """What a model's chat template puts around texts and questions; bare lines where it has none."""

    opening: str
    receipt: str
    answer: str
    question: str
    turn: str
    end: str

    def tokens(self, tokenizer: Any) -> dict[str, list[int]]:
        """The frame as memories may need it, see ``Memory.framed``; a text's first token stands before all else."""
        begins = list(tokenizer("").input_ids)

        def ids(text: str) -> list[int]:
            found = list(tokenizer(text, add_special_tokens=False).input_ids)
            return found if found[: len(begins)] == begins else begins + found

        return {
            "header": ids(self.turn),
            "footer": special(tokenizer, self.end)[:1],
            "opening": ids(self.opening),
            "receipt": tokenizer(self.receipt, add_special_tokens=False).input_ids,
        }

    @classmethod
    def of(cls, tokenizer: Any) -> Frame:
        """Found by rendering marked messages, so that no template is known by name."""
        if not tokenizer.chat_template:
            return cls("", "\n\n", "\nAnswer:", "Question: ", "", "")
        user, assistant = {"role": "user", "content": _TEXT}, {"role": "assistant", "content": RECEIPT}

        def rendered(messages: Sequence[dict[str, str]], prompted: bool) -> str:
            return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompted))

        question = {"role": "user", "content": _QUESTION}
        alone, prompted = rendered([question], False), rendered([question], True)
        whole = rendered([user, assistant, question], True)
        turn = prompted[len(alone) :]
        return cls(
            opening=whole.split(_TEXT)[0],
            receipt=whole.split(_TEXT)[1].split(_QUESTION)[0],
            answer=whole.split(_QUESTION)[1],
            question=prompted.split(_QUESTION)[0],
            turn=turn,
            end=alone.split(_QUESTION)[1],
        )


def special(tokenizer: Any, text: str) -> list[int]:
    """The special tokens in a text."""
    known = set(tokenizer.all_special_ids)
    return [token for token in tokenizer(text, add_special_tokens=False).input_ids if token in known]
