"""A chat template is a program of somebody else's: it is rendered within bounds, or refused in one line."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

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


# ---- without a system prompt ----

# Made up for this test, in the forms of Qwen 2.5 and SmolLM2, Llama 3.1, Llama 3, and Mistral.
_CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_HEADED = (
    "{% for m in messages %}{{ '<h>' + m.role + '</h>\n\n' + m.content | trim + '<eot>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<h>assistant</h>\n\n' }}{% endif %}"
)
_LLAMA = "{{ bos_token }}{{ '<h>system</h>\n\nToday: July.<eot>' }}" + _HEADED
_INSTRUCT = (
    "{{ bos_token }}[SYSTEM]Be brief.[/SYSTEM]{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}"
    "[/INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def bare(template: str) -> ChatTemplate:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return ChatTemplate.of(tokenizer, system_prompt=False)


@pytest.mark.parametrize(
    ("template", "opening"),
    [
        (_CHATML, "<|im_start|>user\n"),
        (_LLAMA, "<s><h>user</h>\n\n"),
        ("{{ bos_token }}" + _HEADED, "<s><h>user</h>\n\n"),
        (_INSTRUCT, "<s>[INST]"),
        (_MESSAGES, "[user]"),
    ],
    ids=["qwen", "llama 3.1", "llama 3", "mistral", "none"],
)
def test_the_system_prompt_of_a_template_can_be_left_out(template: str, opening: str) -> None:
    whole, without = found(template), bare(template)
    assert (without.opening, without.question) == (opening, opening)
    assert whole.opening.endswith(opening.removeprefix("<s>"))
    assert replace(without, opening=whole.opening, question=whole.question) == whole
    # Both are kept, each under its own name.
    assert (found(template), bare(template)) == (whole, without)


def test_without_a_template_there_is_no_system_prompt_to_leave_out() -> None:
    assert bare("") == found("")


def test_a_template_whose_turns_cannot_be_told_apart_keeps_its_system_prompt() -> None:
    numbered = "{% for m in messages %}{{ loop.index }}[{{ m.role }}]{{ m.content }};{% endfor %}"
    with pytest.raises(ModelError, match=r"its system prompt cannot be told from its turns; keep it\.$"):
        bare(numbered)
    assert found(numbered).opening == "1[user]"
