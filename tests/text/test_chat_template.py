"""A chat template is a program of somebody else's: it is rendered within bounds, or refused in one line."""

from __future__ import annotations

import sys
import time

import pytest

from byheart.errors import ModelError
from byheart.text.chat_template import ChatTemplate
from tests.conftest import tiny_tokenizer

_MESSAGES = "{% for m in messages %}[{{ m.role }}]{{ m.content }};{% endfor %}"
_LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
BAD = {
    "endless": (_LOOP, "takes too much time or memory"),
    "raises": ("{{ raise_exception('no\nsystem') }}", "TemplateError: no system"),
    "does not parse": ("{% for %}", "TemplateSyntaxError"),
    "drops the text": ("{% for m in messages %}[{{ m.role }}]{% endfor %}", "leaves out or moves parts"),
    "drops the answer": ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "leaves out"),
    "of too much text": ("{{ 'a' * 2000000 }}", "more than 1,048,576 characters around a short message"),
    "of too much memory": ("{{ 'a' * 10000000000 }}", "MemoryError"),
    "calls itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "reaches for Python": ("{{ ''.__class__.__mro__ }}", "SecurityError"),
    "too long": ("a" * (1 << 21), "at most 1,048,576 characters"),
}


def found(template: str | dict[str, str]) -> ChatTemplate:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return ChatTemplate.of(tokenizer)


@pytest.mark.parametrize(("template", "reason"), BAD.values(), ids=BAD)
def test_a_template_that_cannot_be_used_is_refused(template: str, reason: str) -> None:
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"^The model's chat template cannot be used: ") as refused:
        found(template)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
    assert time.monotonic() - start < 60


def test_a_template_is_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = found(_MESSAGES)
    assert (first.opening, first.receipt) == ("[user]", ";[assistant]I have read it.;[user]")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert found(_MESSAGES) == first
    with pytest.raises(ModelError, match="Python could not be started as '/nowhere/python' to render it"):
        found(f"{_MESSAGES}!")


def test_of_several_templates_the_default_is_rendered() -> None:
    assert found({"default": _MESSAGES, "tool_use": _LOOP}) == found(_MESSAGES)
    with pytest.raises(ModelError, match="must be text"):
        found({"tool_use": _MESSAGES})
