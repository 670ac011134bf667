"""What a chat template puts around texts and questions, found by rendering it, so that no template is known by name.

A template is a program that somebody else wrote. It is rendered once, in a process of its own and within bounds
(``render_template``); what was found is kept in the user's cache folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import transformers

from byheart.errors import ModelError
from byheart.files import cached

RECEIPT = "I have read it."
REPEAT = "Repeat the previous context exactly"
_TEXT, _QUESTION = "\u2063text\u2063", "\u2063question\u2063"
_LONGEST = 1 << 20
# Most of it is the start of Python; the program itself bounds the time that it computes.
_SECONDS = 30
_PROGRAM = Path(__file__).with_name("render_template.py")


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
    def of(cls, tokenizer: Any, *, system_prompt: bool = True) -> ChatTemplate:
        """Found by rendering marked messages. Raises ModelError for a template that cannot be used.

        Args:
            system_prompt: with what a template says before the first turn where no system message is given.
        """
        if not tokenizer.chat_template:
            return cls("", "\n\n", "\nAnswer:", "Question: ", "", "")
        template, tokens = default_template(tokenizer), tokenizer.special_tokens_map
        key = cache_key(template, tokens, RECEIPT, *([] if system_prompt else ["no system prompt"]))

        def find() -> dict[str, str]:
            whole = cls.found(template, tokens)
            return asdict(whole if system_prompt else whole._without_system_prompt(template, tokens))

        return cls(**cached("templates", key, find))

    @classmethod
    def found(cls, template: str, tokens: Mapping[str, Any]) -> ChatTemplate:
        """What a template puts around marked messages; ``tokens`` are the special tokens that it may name."""
        user, assistant = {"role": "user", "content": _TEXT}, {"role": "assistant", "content": RECEIPT}
        question = {"role": "user", "content": _QUESTION}
        conversations = [([question], False), ([question], True), ([user, assistant, question], True)]
        alone, prompted, whole = render_apart(template=template, tokens=tokens, conversations=conversations)
        opening, _, rest = whole.partition(_TEXT)
        receipt, _, answer = rest.partition(_QUESTION)
        if _QUESTION not in rest or RECEIPT not in receipt or not prompted.startswith(alone) or _QUESTION not in alone:
            raise refused("it leaves out or moves parts of a conversation")
        return cls(
            opening=opening,
            receipt=receipt,
            answer=answer,
            question=prompted.partition(_QUESTION)[0],
            turn=prompted[len(alone) :],
            end=alone.partition(_QUESTION)[2],
        )

    def _without_system_prompt(self, template: str, tokens: Mapping[str, Any]) -> ChatTemplate:
        """The same with the header of a user's later turn before the first one, after the token that begins a text.

        Raises ModelError where turns cannot be told apart.
        """
        messages = [
            {"role": "user", "content": _TEXT},
            {"role": "assistant", "content": RECEIPT},
            {"role": "user", "content": _QUESTION},
        ]
        before, whole = render_apart(
            template=template, tokens=tokens, conversations=[(messages[:2], False), (messages, False)]
        )
        header = whole.removeprefix(before).partition(_QUESTION)[0]
        if not whole.startswith(before) or not self.opening.endswith(header) or not header:
            raise refused("its system prompt cannot be told from its turns; keep it", "")
        begin = str(tokens.get("bos_token") or "")
        opening = f"{begin if self.opening.startswith(begin) else ''}{header}"
        return replace(self, opening=opening, question=opening)


def special_tokens(tokenizer: Any, text: str) -> list[int]:
    """The special tokens in a text."""
    known = set(tokenizer.all_special_ids)
    return [token for token in tokenizer(text, add_special_tokens=False).input_ids if token in known]


def cache_key(template: str, tokens: Mapping[str, Any], *more: str) -> str:
    """What tells whether a template would be rendered as it was before."""
    # A template may write today's date.
    day = time.strftime("%Y-%m-%d") if "strftime_now" in template else ""
    return json.dumps([template, tokens, day, transformers.__version__, *more], default=str)


def default_template(tokenizer: Any) -> str:
    """The template of a conversation without tools. Raises ModelError."""
    templates = tokenizer.chat_template
    template = templates.get("default") if isinstance(templates, dict) else templates
    if not isinstance(template, str) or len(template) > _LONGEST:
        raise refused(f"it must be text of at most {_LONGEST:,} characters")
    return template


def render_apart(**asked: Any) -> list[str]:
    """Texts that ``render_template.render`` gives, in a process of its own. Raises ModelError."""
    # The executable of a frozen program is that program, not Python.
    command = ["" if hasattr(sys, "frozen") else sys.executable, "-I", str(_PROGRAM)]
    try:
        ran = subprocess.run(
            command, input=json.dumps(asked, default=str).encode(), capture_output=True, timeout=_SECONDS
        )
        answer: dict[str, Any] = json.loads(ran.stdout)
    except OSError as error:
        raise refused(f"Python could not be started as '{command[0]}' to render it ({error})") from error
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise refused("it takes too much time or memory") from error
    if "error" in answer:
        raise refused(" ".join(answer["error"].split()))
    rendered: list[str] = answer["rendered"]
    return rendered


def refused(reason: str, advice: str = " Open the model with another tokenizer (encoder=...).") -> ModelError:
    return ModelError(f"The model's chat template cannot be used: {reason}.{advice}")
