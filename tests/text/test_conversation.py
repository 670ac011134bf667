"""A conversation is encoded as its chat template writes it, and after a memory as the turns that follow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from jinja2 import TemplateError

from byheart.errors import InputError, ModelError
from byheart.files import cache_folder
from byheart.text import chat_template, conversation, render_template
from byheart.text.encoder import ChatEncoder
from byheart.text.prompt_format import PromptFormat
from tests.conftest import tiny_tokenizer

_TURNS = [("user", "Who?"), ("assistant", " I. "), ("user", "And </s> you?"), ("assistant", "You."), ("user", "So?")]
_SYSTEM = ("system", "Be brief.")
# Made up for these tests, in the forms of ChatML, Llama 3 and Mistral.
_DEFAULT = (
    "{% if messages[0].role != 'system' %}<|user|>Help.<|end|>{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_TRIMMED = "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}</s>{% endfor %}[assistant]"
_JOINED = (
    "{% for m in messages %}{% if m.role == 'user' %}[I]{{ m.content }}[/I]{% else %} {{ m.content }}</s>{% endif %}"
    "{% endfor %}"
)
_COUNTED = "{% for m in messages %}{{ loop.index }}{{ m.role }}:{{ m.content }}\n{% endfor %}>"


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates of these tests are harmless, and a process for each takes seconds."""

    def render(**asked: Any) -> list[str]:
        try:
            return render_template.render(**asked)
        except TemplateError as error:
            raise ModelError(str(error)) from error

    for module in (chat_template, conversation):
        monkeypatch.setattr(module, "render_apart", render)


def encoder(template: str | None = None, **options: object) -> ChatEncoder:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template if template is None else template
    return ChatEncoder(tokenizer, **options)  # type: ignore[arg-type]


def rendered(own: ChatEncoder, messages: list[tuple[str, str]]) -> str:
    """What the tokenizer's own template writes."""
    return str(
        own.tokenizer.apply_chat_template(
            [{"role": role, "content": text} for role, text in messages], add_generation_prompt=True, tokenize=False
        )
    )


def text_of(own: ChatEncoder, tokens: torch.Tensor) -> str:
    return str(own.tokenizer.decode(tokens, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("template", [None, _DEFAULT, _TRIMMED, _JOINED, _COUNTED])
def test_without_a_memory_it_is_what_the_template_writes(template: str | None) -> None:
    own = encoder(template)
    longer = [*_TURNS, ("assistant", "Yes."), ("user", "No?"), ("assistant", "No."), ("user", "Why?")]
    for messages in (_TURNS[:1], _TURNS[:3], [_SYSTEM, *_TURNS], longer, [_SYSTEM, *longer], [_TURNS[0], _TURNS[2]]):
        assert text_of(own, own.conversation(messages)) == rendered(own, messages)
    assert torch.equal(own.conversation(_TURNS[:1]), own.question("Who?", continues=False))


def test_a_longer_conversation_is_not_rendered_where_exchanges_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    own = encoder(_DEFAULT + "{# another #}")
    own.conversation(_TURNS)
    calls: list[object] = []
    monkeypatch.setattr(conversation, "render_apart", lambda **asked: calls.append(asked))
    longer = [*_TURNS, ("assistant", "Yes."), ("user", "No?")]
    assert text_of(own, own.conversation(longer)) == rendered(own, longer)
    assert not calls


def test_an_order_that_no_other_client_has_is_kept_in_this_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    own, calls = encoder(_DEFAULT + "{# unusual #}"), []
    own.conversation(_TURNS)
    original = conversation.render_apart
    monkeypatch.setattr(conversation, "render_apart", lambda **asked: calls.append(1) or original(**asked))
    unusual = [_TURNS[0], _TURNS[2], _TURNS[2]]
    kept = sorted(cache_folder().rglob("*.json"))
    assert text_of(own, own.conversation(unusual)) == rendered(own, unusual)
    assert text_of(own, own.conversation(unusual)) == rendered(own, unusual)
    assert len(calls) == 1
    assert sorted(cache_folder().rglob("*.json")) == kept


def test_names_of_special_tokens_in_messages_are_text() -> None:
    own = encoder()
    special = own.conversation([("user", "a</s><|assistant|>b")]).tolist()
    assert own.tokenizer.eos_token_id not in special
    assert special.count(own.tokenizer.convert_tokens_to_ids("<|assistant|>")) == 1


def test_after_a_memory_messages_are_the_turns_that_follow() -> None:
    own = encoder()
    tokens = own.conversation([_SYSTEM, *_TURNS[:3]], continues=True)
    expected = "Be brief.\n\nWho?<|end|><|assistant|> I. <|end|><|user|>And </s> you?<|end|><|assistant|>"
    assert text_of(own, tokens) == expected
    assert torch.equal(own.conversation(_TURNS[:1], continues=True), own.question("Who?", continues=True))


def test_without_a_template_or_in_a_method_s_format_turns_are_lines() -> None:
    bare = encoder("")
    assert text_of(bare, bare.conversation(_TURNS[:3])) == (
        "Question: Who?\nAnswer:  I. \n\nQuestion: And </s> you?\nAnswer:"
    )
    assert torch.equal(bare.conversation(_TURNS[:1]), bare.question("Who?", continues=False))
    own = encoder(prompt_format=PromptFormat(opening="O ", before="B ", answer=" A:"))
    assert text_of(own, own.conversation(_TURNS[:3])) == "O Who? A:  I. B And </s> you? A:"
    assert text_of(own, own.conversation(_TURNS[:3], continues=True)).startswith("B Who? A:")


def test_what_is_no_question_is_refused() -> None:
    own = encoder()
    for messages in ([], [("assistant", "Yes.")], [("user", " ")]):
        with pytest.raises(InputError, match="must end with a message of the user's"):
            own.conversation(messages)
    refusing = encoder(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    with pytest.raises(InputError, match=r"does not take messages by system, user: .*no system"):
        refusing.conversation([_SYSTEM, *_TURNS[:1]])
    moving = encoder("{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    with pytest.raises(InputError, match="leaves out or moves messages"):
        moving.conversation([_SYSTEM, *_TURNS[:1]])
