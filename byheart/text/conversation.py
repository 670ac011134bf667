"""What a chat template puts around the messages of a conversation, found by rendering marks in their places.

A template is rendered once for each order of roles, in a process of its own, and most conversations have one of a few:
a system message or none, then the user and the assistant in turn. Where a template writes every exchange alike, which
is seen on three of them, a longer conversation is put together without rendering it. It knows no tokens.

What a template makes of a message's own words, beyond leaving out whitespace at its ends, is not found this way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from byheart.errors import InputError, ModelError
from byheart.files import cached
from byheart.text.chat_template import cache_key, default_template, render_apart

# Whitespace that no template writes of its own.
_SPACE = "\u2003"
_ALIKE = 3


@dataclass(frozen=True)
class Around:
    """``parts`` stand before the first message, between messages, and after the last; one more than there are messages.

    ``trimmed`` says of each message whether whitespace at its start and at its end is left out.
    """

    parts: Sequence[str]
    trimmed: Sequence[Sequence[bool]]

    def filled(self, texts: Sequence[str]) -> list[str]:
        """Parts and texts alternating."""
        out = [self.parts[0]]
        for text, (start, end), part in zip(texts, self.trimmed, self.parts[1:], strict=True):
            text = text.lstrip() if start else text
            out += [text.rstrip() if end else text, part]
        return out


def around(tokenizer: Any, roles: Sequence[str]) -> Around:
    """What stands around messages of these roles, up to where the answer begins. Raises InputError, ModelError."""
    if not is_usual(roles):
        return _found_here(cache_key(default_template(tokenizer), tokenizer.special_tokens_map), tuple(roles))
    head = _head(roles)
    exchanges = (len(roles) - len(head) + 1) // 2
    known = _found(tokenizer, [[*head, *_exchanges(count + 1)] for count in range(_ALIKE)])
    if exchanges <= _ALIKE:
        return known[exchanges - 1]
    return _longer(known, len(head), exchanges) or _found(tokenizer, [list(roles)])[0]


def is_usual(roles: Sequence[str]) -> bool:
    """Whether a system message or none is followed by the user and the assistant in turn, the user last."""
    head = _head(roles)
    return list(roles) == [*head, *_exchanges((len(roles) - len(head) + 1) // 2)]


def fold_turns(messages: Sequence[tuple[str, str]]) -> list[tuple[str, str | None]]:
    """Questions and their answers in turn, None where the last one has none yet; the system speaks with the user."""
    turns: list[tuple[str, str | None]] = []
    for role, text in messages:
        question, answer = turns.pop() if turns and (turns[-1][1] is None or role == "assistant") else ("", None)
        if role == "assistant":
            turns.append((question, text if answer is None else f"{answer}\n\n{text}"))
        else:
            turns.append((f"{question}\n\n{text}" if question else text, None))
    return turns


def _head(roles: Sequence[str]) -> tuple[str, ...]:
    return tuple(roles[:1]) if list(roles[:1]) == ["system"] else ()


def _exchanges(count: int) -> list[str]:
    """The roles of so many questions and the answers between them."""
    return ["user", "assistant"] * (count - 1) + ["user"]


def _longer(known: Sequence[Around], head: int, exchanges: int) -> Around | None:
    """A conversation of more exchanges than were rendered; None where a template does not write them all alike."""
    two, three = known[1:]
    repeated = slice(head + 1, head + 3), slice(head + 3, head + 5)
    is_alike = three.parts[repeated[0]] == three.parts[repeated[1]] and two.parts == [
        *three.parts[: head + 3],
        three.parts[-1],
    ]
    ends = three.trimmed[head:]
    if not is_alike or ends[:2] != ends[2:4] or ends[0] != ends[4]:
        return None
    more = exchanges - _ALIKE
    return Around(
        [*three.parts[: head + 1], *list(three.parts[repeated[0]]) * (2 + more), three.parts[-1]],
        [*three.trimmed[:head], *list(ends[:2]) * (2 + more), ends[4]],
    )


def _found(tokenizer: Any, orders: list[list[str]]) -> list[Around]:
    """What stands around the messages of each order of roles, rendered together and kept for all processes."""
    template, tokens = default_template(tokenizer), tokenizer.special_tokens_map
    key = cache_key(template, tokens, "conversation", *map(" ".join, orders))
    return [Around(**found) for found in cached("templates", key, lambda: _rendered(template, tokens, orders))]


@lru_cache(maxsize=32)
def _found_here(key: str, roles: tuple[str, ...]) -> Around:
    """The same of one order, kept in this process alone: there is no end to the orders that clients may think of."""
    template, tokens, *_ = json.loads(key)
    return Around(**_rendered(template, tokens, [list(roles)])[0])


def _rendered(template: str, tokens: Mapping[str, Any], orders: list[list[str]]) -> list[dict[str, Any]]:
    marks = [[f"\u2063{number}\u2063" for number in range(len(roles))] for roles in orders]
    conversations = [
        (
            [{"role": role, "content": f"{_SPACE}{mark}{_SPACE}"} for role, mark in zip(roles, each, strict=True)],
            True,
        )
        for roles, each in zip(orders, marks, strict=True)
    ]
    try:
        rendered = render_apart(template=template, tokens=tokens, conversations=conversations)
    except ModelError as error:
        said = ", ".join(orders[0])
        raise InputError(f"The model's chat template does not take messages by {said}: {error}") from error
    return [asdict(_split(text, each)) for text, each in zip(rendered, marks, strict=True)]


def _split(text: str, marks: Sequence[str]) -> Around:
    """A rendered text, cut at its marks. Raises InputError where one is missing or moved."""
    parts, trimmed = [], []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            raise InputError("The model's chat template leaves out or moves messages of this conversation.")
        trimmed.append([not before.endswith(_SPACE), not text.startswith(_SPACE)])
        parts.append(before.removesuffix(_SPACE))
        text = text.removeprefix(_SPACE)
    return Around([*parts, text], trimmed)
