"""Text in, text out: frames, streams, stop strings, and what a session keeps between questions."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from byheart.errors import InputError, StateError, StateMismatchError, UsageError
from byheart.generation.generate import Generation, Request, RunningSequence
from byheart.model.backbone import Backbone
from byheart.model.stock_attention import generate_inputs
from byheart.protocol.state import nbytes
from byheart.protocol.state_file import load_hash
from byheart.session import session as sessions
from byheart.session.batch import ask_many, write_many
from byheart.session.opening import load, open_state
from byheart.session.session import Session
from byheart.testing import tiny_backbone
from byheart.text.chat_template import ChatTemplate
from tests.conftest import save_tiny, tiny_tokenizer
from tests.model.test_stock_attention import with_common_direction
from tests.samples import KINDS, METHODS, OPTIONS, backbone, greedy, hooks
from tests.text.test_detokenize import byte_encoder

TEXT, QUESTION = "The cat is called Muck.", "What is the cat called?"
TALK = {"max_tokens": 14, "temperature": 1.5, "seed": 3}


def bare_tokenizer() -> PreTrainedTokenizerFast:
    """The same words without a chat template."""
    made = tiny_tokenizer()
    made.chat_template = None
    return made


def session(name: str = "full", *, template: bool = True, own: Backbone | None = None, **options: Any) -> Session:
    return load(
        own or backbone(),
        method=name,
        encoder=tiny_tokenizer() if template else bare_tokenizer(),
        **{**OPTIONS.get(name, {}), **options},
    )


def read(name: str = "full", *texts: str, **options: Any) -> Session:
    made = session(name, **options)
    for text in texts or (TEXT,):
        made.write(text)
    return made


def talk(made: Session, question: str = QUESTION) -> dict[str, Any]:
    """Options for which the answer is long enough to be interrupted."""
    for seed in range(50):
        options = {**TALK, "seed": seed}
        if len(list(made.fork().stream(question, **options))) > 8:
            return options
    raise AssertionError("no long answer")


def seen(made: Session) -> list[str]:
    """What the memory is given from now on, as text, piece by piece."""
    pieces: list[str] = []
    write = made.method.write

    def spy(state: Any, segment: Any) -> Any:
        pieces.append(made.encoder.tokenizer.decode(segment[0]))
        return write(state, segment)

    made.method.write = spy  # type: ignore[method-assign]
    return pieces


# ---- frames ----


def test_a_frame_is_what_the_template_puts_around_messages() -> None:
    assert ChatTemplate.of(tiny_tokenizer()) == ChatTemplate(
        opening="<|user|>",
        receipt="<|end|><|assistant|>I have read it.<|end|><|user|>",
        answer="<|end|><|assistant|>",
        question="<|user|>",
        turn="<|assistant|>",
        end="<|end|>",
    )


def test_a_frame_is_found_in_any_template() -> None:
    """One that writes a system message of its own, numbers nothing, and strips what it is given."""
    made = tiny_tokenizer()
    made.chat_template = (
        "[system]{% for m in messages %}{{ '\\n[' + m.role + '] ' + m.content.strip() + ' [/' + m.role + ']' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '\\n[assistant] ' }}{% endif %}"
    )
    frame = ChatTemplate.of(made)
    assert frame.opening == frame.question == "[system]\n[user] "
    assert frame.receipt == " [/user]\n[assistant] I have read it. [/assistant]\n[user] "
    assert frame.answer == " [/user]\n[assistant] "
    assert (frame.turn, frame.end) == ("\n[assistant] ", " [/user]")


@pytest.mark.parametrize("name", ["full", "window", "last-ffn"])
def test_texts_and_questions_make_the_conversation_that_the_template_writes(name: str) -> None:
    made = session(name, chunk_tokens=512) if name != "last-ffn" else session(name, header=[], footer=[])
    pieces = seen(made)
    made.write("One.")
    made.write("Two.")
    made.write_turn("Three?", "Four.")
    given = "".join(pieces) + made.encoder.tokenizer.decode(made.prompt("Five?"))
    receipt = {"role": "assistant", "content": "I have read it."}
    conversation = [
        {"role": "user", "content": "One."},
        receipt,
        {"role": "user", "content": "Two."},
        receipt,
        {"role": "user", "content": "Three?"},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "Five?"},
    ]
    assert given == made.encoder.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)


def test_a_memory_without_turns_is_given_the_bare_text_and_a_question_of_its_own() -> None:
    made = session("latent-pool")
    pieces = seen(made)
    made.write("One.")
    made.write_turn("Two?", "Three.")
    assert "".join(pieces) == "One.Two?\nThree.\n"
    assert made.encoder.tokenizer.decode(made.prompt("Four?")) == "<|user|>Four?<|end|><|assistant|>"


def test_fastmem_without_its_text_has_no_turns() -> None:
    made = session("last-ffn", keep_text=False)
    pieces = seen(made)
    before = made.prompt("Four?")
    made.write("One.")
    assert "".join(pieces) == "One."
    assert made.prompt("Four?").equal(before)
    assert session("last-ffn").method.text_format == "turn"


def test_running_text_is_written_bare_and_a_bare_question_goes_on_from_it() -> None:
    made = session("full")
    pieces, twin = seen(made), made.fork()
    for text in ("One.", " Two."):
        write_many([made], [text], use_chat_template=False)
    whole = "".join(pieces) + made.encoder.tokenizer.decode(made.prompt(" Three", use_chat_template=False))
    assert whole == "One. Two. Three"
    write_many([made, twin], [" Four.", "Four."], use_chat_template=[False, True])
    assert " Four." in pieces
    assert "".join(pieces).endswith("<|user|>Four.<|end|><|assistant|>I have read it.<|end|><|user|>")


def test_a_choice_stands_after_the_frame_as_an_answer_does() -> None:
    for template, expected in ((True, "Rex"), (False, " Rex")):
        made = session(template=template)
        assert made.encoder.continuation("Rex", use_chat_template=True).equal(made.encoder.continuation(expected))
        assert (
            made.encoder.continuation("Rex").equal(made.encoder.continuation("Rex", use_chat_template=True)) == template
        )


def test_without_a_template_lines_make_the_frame() -> None:
    made = session("full", template=False)
    pieces = seen(made)
    made.write("One.")
    made.write_turn("Two?", "Three.")
    given = "".join(pieces) + made.encoder.tokenizer.decode(made.prompt("Four?"))
    assert given == "One.\n\nQuestion: Two?\nAnswer: Three.\n\nQuestion: Four?\nAnswer:"
    pool = session("latent-pool", template=False)
    pieces = seen(pool)
    pool.write_turn("Two?", "Three.")
    assert "".join(pieces) == "Two?\nThree.\n"
    assert pool.encoder.tokenizer.decode(pool.prompt("Four?")) == "Question: Four?\nAnswer:"


def test_a_conversation_may_begin_with_a_question() -> None:
    made = session("full")
    prompt = made.encoder.tokenizer.decode(made.prompt("One?"))
    assert prompt == "<|user|>One?<|end|><|assistant|>"
    answer = "".join(made.reply("One?", max_tokens=3))
    pieces = seen(made)
    made.write_turn("One?", answer)
    assert "".join(pieces) == f"{prompt}{answer}<|end|><|user|>"


def test_the_tokenizers_first_token_comes_once() -> None:
    """It begins a conversation, and a question that is a conversation of its own."""
    made = tiny_tokenizer()
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    templates = (made.chat_template, "<s>" + made.chat_template)
    for name, first in (("full", False), ("latent-pool", True)):
        for template in templates:
            made.chat_template = template
            one = load(backbone(), method=name, encoder=made, **OPTIONS[name])
            pieces = seen(one)
            one.write("One.")
            one.write("Two.")
            assert "".join(pieces).startswith("<s>")
            assert "".join(pieces).count("<s>") == 1
            assert one.encoder.tokenizer.decode(one.prompt("Three?")).count("<s>") == first


def test_a_method_with_a_first_token_of_its_own_is_given_no_other() -> None:
    made = tiny_tokenizer()
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    for template in (made.chat_template, "<s>" + made.chat_template):
        made.chat_template = template
        one = load(backbone(), method="latent-pool", encoder=made, **{**OPTIONS["latent-pool"], "own_start": True})
        pieces = seen(one)
        one.write("One.")
        one.write_turn("Two?", "Three.")
        words = one.encoder.tokenizer
        assert "<s>" not in "".join(pieces) + words.decode(one.prompt("Four?"))
        assert words.decode(one.prompt("Four?")).startswith("<|user|>Four?")
        # The model without the memory begins as it always does.
        assert words.decode(one.prompt("Four?", alone=True)).startswith("<s><|user|>Four?")


def test_fastmems_frame_comes_from_the_template() -> None:
    made = session("last-ffn")
    words = made.encoder.tokenizer
    assert made.method.options()["header"] == words("<|assistant|>", add_special_tokens=False).input_ids
    assert made.method.options()["footer"] == words("<|end|>", add_special_tokens=False).input_ids
    assert session("last-ffn", header=[9], footer=[]).method.options()["header"] == [9]
    assert session("last-ffn", template=False).method.options()["header"] == []


@pytest.mark.parametrize("begins", [False, True], ids=["plain", "with a first token"])
@pytest.mark.parametrize("options", [{}, {"keep_text": False}, {"framed": False}], ids=str)
def test_fastmem_learns_the_bare_text_in_an_assistant_turn(
    options: dict[str, bool], begins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, learned = tiny_tokenizer(), []
    if begins:
        words.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = load(backbone(), method="last-ffn", encoder=words, steps=1, keep_text=options.get("keep_text", True))
    tune = made.method.tune_many
    monkeypatch.setattr(made.method, "tune_many", lambda before, texts: learned.extend(texts) or tune(before, texts))
    for text in ("One.", "Two."):
        write_many([made], [text], use_chat_template=options.get("framed", True))
    first = "<s>" * begins
    said = [(words.decode(ids[0, :start]), words.decode(ids[0, start:])) for ids, start in learned]
    assert said == [(f"{first}<|assistant|>", f"{text}<|end|>") for text in ("One.", "Two.")]


# ---- writing ----


@pytest.mark.parametrize("name", METHODS)
def test_what_was_written_is_on_record(name: str) -> None:
    made, calls = session(name), []
    entry = made.write(TEXT * 3, source="cat.txt", progress=lambda done, total: calls.append((done, total)))
    assert (entry.source, entry.characters) == ("cat.txt", len(TEXT) * 3)
    assert made.header.written == [entry]
    assert calls[0] == (0, entry.tokens)
    assert calls[-1] == (entry.tokens, entry.tokens)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    made.write_turn("Who?", "Me.")
    assert [written.source for written in made.header.written] == ["cat.txt", "chat"]
    assert made.header.tokens == sum(written.tokens for written in made.header.written)


@pytest.mark.parametrize("text", ["", " \n\t", "\u2003"])
def test_nothing_cannot_be_written_or_asked(text: str) -> None:
    made = read()
    with pytest.raises(InputError, match="nothing to write: the text is empty"):
        made.write(text)
    with pytest.raises(InputError, match="nothing to ask: the question is empty"):
        made.ask(text)


def test_half_a_character_cannot_be_written() -> None:
    made = read()
    message = "Character 4 of the text is half a character: it was not UTF-8"
    for refused in (made.write, made.ask, session().write, lambda text: made.write_turn(text, "Yes.")):
        with pytest.raises(InputError, match=message):
            refused("caf\udce9\ud83d")
    assert len(made.header.written) == 1


def test_a_text_that_cannot_be_written_leaves_the_memory() -> None:
    made = read("full")
    before, reading, header = made.state, made.reading, made.header
    with pytest.raises(InputError, match="the model reads at most 512"):
        made.write("x" * 1000)
    assert made.state is before
    assert made.reading is reading
    assert made.header == header


@pytest.mark.parametrize("name", ["full", "last-ffn", "every-kth", "compressed-kv", "window"])
def test_a_text_without_room_is_refused_before_anything_is_computed(name: str) -> None:
    """A question must fit too; texts of hundreds of thousands of tokens are refused at once."""
    options = {
        "window": {"recent": 600},
        "every-kth": {"every": 2},
        "compressed-kv": {"tokens": 2, "segment_tokens": 4},
    }
    made, steps = session(name, **options.get(name, {})), []
    text = "x" * 100_000
    message = (
        r"The text has 100,\d{3} tokens, .* would have \d+,?\d+ slots, but the model reads at most 512, \d+ of them"
    )
    for write in (
        made.write,
        lambda text, **_: made.write_turn("Who?", text),
        lambda text, **_: write_many([made], [text]),
    ):
        with pytest.raises(InputError, match=message):
            write(text, progress=lambda done, total: steps.append(done))
    assert (steps, made.header.written) == ([], [])


@pytest.mark.parametrize("name", ["full", "window", "latent-pool", "retrieval", "compressed-kv"])
def test_what_was_written_can_be_asked_until_no_text_is_taken(name: str) -> None:
    made = load(backbone(), method=name, encoder=tiny_tokenizer())

    def fill() -> None:
        for _ in range(300):
            made.write(TEXT * 2)
            assert made.reading.slots + len(made.prompt("?")) < made.backbone.positions

    with pytest.raises(InputError, match="Write less of it, or take a smaller memory"):
        fill()
    list(made.stream("?", max_tokens=1))


def test_an_answer_ends_at_the_models_positions_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    made = read("full", "x" * 470)
    room = made.backbone.positions - made.reading.slots - len(made.prompt("?"))
    with caplog.at_level("WARNING"):
        made.ask("?", max_tokens=300, temperature=5.0, seed=1)
    assert 0 < room < 30
    assert "the model reads at most 512 tokens" in caplog.text


def test_an_interrupted_write_leaves_the_memory() -> None:
    made = read("window")
    before = made.state

    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.write(TEXT * 5, progress=interrupt)
    assert made.state is before
    assert len(made.header.written) == 1


# ---- asking ----


@pytest.mark.parametrize("name", METHODS)
def test_a_stream_is_the_answer(name: str) -> None:
    made = read(name)
    how = talk(made)
    pieces = list(made.stream(QUESTION, **how))
    assert "".join(pieces).strip() == made.ask(QUESTION, **how)
    assert len(pieces) > 5


def test_a_memory_in_which_nothing_was_written_cannot_be_asked() -> None:
    for ask in (session().ask, lambda question: ask_many([session()], [question])):
        with pytest.raises(InputError, match="Nothing has been written into this memory; write a text first"):
            ask(QUESTION)


def test_options_of_decoding_are_checked_at_once() -> None:
    made = read()
    with pytest.raises(UsageError, match=r"no option of decoding 'tempreature'. Did you mean 'temperature'"):
        made.stream(QUESTION, tempreature=1.0)
    with pytest.raises(UsageError, match="top_p must be above 0"):
        made.stream(QUESTION, top_p=0.0)
    with pytest.raises(UsageError, match=r"no option of decoding 'tempreature'. Did you mean 'temperature'"):
        ask_many([made], [QUESTION], tempreature=1.0)


def test_an_answer_ends_with_the_turn() -> None:
    """The template's end of turn, the tokenizer's end of text and the model's own."""
    made = read()
    words = made.encoder.tokenizer
    assert made.encoder.stop_tokens == {2, words.convert_tokens_to_ids("</s>"), words.convert_tokens_to_ids("<|end|>")}
    assert session(template=False).encoder.stop_tokens == {2}


# ---- stop strings and half characters ----


def test_a_stop_string_ends_an_answer_across_tokens() -> None:
    """A token is a character here."""
    made = read()
    how = talk(made)
    whole = "".join(made.stream(QUESTION, **how))
    stop = whole[3:6]
    expected = whole[: whole.find(stop)]
    assert "".join(made.stream(QUESTION, stop=stop, **how)) == expected
    assert "".join(made.stream(QUESTION, stop=["never seen", stop], **how)) == expected
    assert made.ask(QUESTION, stop=stop, **how) == expected.strip()
    assert "".join(made.stream(QUESTION, stop="never seen", **how)) == whole


@pytest.mark.parametrize("stop", ["", ["x", ""]])
def test_an_empty_stop_string_is_refused(stop: str | list[str]) -> None:
    with pytest.raises(UsageError, match="stop string must not be empty"):
        read().stream(QUESTION, stop=stop)


# ---- what is kept between questions ----


def test_a_reading_and_its_cache_are_made_once_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    made, reads = read(), []
    original = made.method.read
    made.method.read = lambda state: reads.append(1) or original(state)  # type: ignore[method-assign,func-returns-value]
    first = made.ask(QUESTION, **TALK)
    reading, copied = made.reading, []
    copy = made.backbone.reading
    monkeypatch.setattr(made.backbone, "reading", lambda *given, **room: copied.append(1) or copy(*given, **room))
    assert made.ask(QUESTION, **TALK) == first
    assert made.reading is reading
    assert len(reads) == 1
    assert not copied
    made.write(TEXT)
    assert made.reading is not reading
    copied.clear()
    made.ask(QUESTION, **TALK)
    assert copied
    assert len(reads) == 2


@pytest.mark.parametrize("name", KINDS)
def test_answers_in_progress_do_not_disturb_others(name: str) -> None:
    """A stream is left half read while the same session answers, is written to, and answers again."""
    made, twin = read(name), read(name)
    how = talk(twin)
    expected = list(twin.stream(QUESTION, **how))
    other = twin.ask("Who?", **how)
    slow = made.stream(QUESTION, **how)
    pieces = [next(slow), next(slow)]
    assert made.ask("Who?", **how) == other
    assert made.ask(QUESTION, **how) == "".join(expected).strip()
    pieces.append(next(slow))
    late = made.stream(QUESTION, **how)
    made.write("Another text.")
    twin.write("Another text.")
    pieces += list(slow)
    assert pieces == expected
    assert made.ask("Who?", **how) == twin.ask("Who?", **how)
    assert list(late) == expected
    assert made.ask("Who?", **how) == twin.ask("Who?", **how)
    assert hooks(made.backbone) == []


def test_a_stream_that_is_dropped_disturbs_nothing() -> None:
    made = read("ffn-lora")
    how = talk(made)
    expected = made.ask(QUESTION, **how)
    for _ in made.stream(QUESTION, **how):
        break
    stopped = made.stream(QUESTION, **how)
    next(stopped)
    assert made.ask(QUESTION, **how) == expected


@pytest.mark.parametrize("how", [{"contrast": 0.5}, {"context_aware": 0.5}, {"dola": "high"}, {}])
def test_every_way_to_decode_works_from_text(how: dict[str, Any]) -> None:
    made = read("last-ffn")
    first = made.ask(QUESTION, max_tokens=8, **how)
    made.ask(QUESTION, max_tokens=8)
    assert made.ask(QUESTION, max_tokens=8, **how) == first


def test_context_awareness_asks_the_model_that_read_nothing_a_whole_conversation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, added = read("full"), Generation.add
    requests: list[Request] = []

    def noted(self: Generation, asked: Sequence[Request]) -> list[RunningSequence]:
        requests.extend(asked)
        return added(self, asked)

    monkeypatch.setattr(Generation, "add", noted)
    made.ask(QUESTION, max_tokens=2, context_aware=0.5)
    ask_many([made], [QUESTION], max_tokens=2, context_aware=0.5)
    alone = session("full").prompt(QUESTION)
    assert [alone.equal(request.unconditional_prompt) for request in requests] == [True, True]
    assert not made.prompt(QUESTION).equal(alone)


def test_what_other_engines_read_has_no_masks() -> None:
    ours = read()
    assert ours.stock_reading() is ours.reading
    masked = read("repeat-score", own=Backbone(with_common_direction()))
    stock = masked.stock_reading()
    assert masked.reading.prefix is not None
    assert masked.reading.prefix.masks
    theirs: Any = with_common_direction()
    theirs.set_attn_implementation("sdpa")
    prompt = masked.prompt(QUESTION)
    inputs = generate_inputs(masked.backbone, stock, prompt)
    written = theirs.generate(**inputs, max_new_tokens=8, do_sample=False)[0, len(prompt) :].tolist()
    with torch.no_grad():
        [expected] = greedy(masked.backbone, [masked.reading], [prompt], steps=8)
    assert written[: len(expected)] == expected


# ---- forking and forgetting ----


def test_a_parked_memory_comes_back_when_it_is_used() -> None:
    made = read("latent-pool")
    answer, held = made.ask(QUESTION, **TALK), dict(made.state)
    reading = weakref.ref(made.reading)
    made.park()
    gc.collect()
    assert reading() is None
    assert made.bytes == sum(tensor.nbytes for tensor in held.values())
    assert made.ask(QUESTION, **TALK) == answer
    made.park()
    made.write("The dog is called Rex.")
    assert len(made.header.written) == 2
    # Where its model is on another device than the machine's memory, it goes there.
    made.park()
    made.backbone = SimpleNamespace(device="meta")  # type: ignore[assignment]
    assert {tensor.device.type for tensor in made.state.values()} == {"meta"}


@pytest.mark.parametrize("name", KINDS)
def test_a_fork_goes_its_own_way(name: str) -> None:
    made, reference = read(name), read(name)
    before = made.ask(QUESTION, **TALK)
    twin = made.fork()
    slow = made.stream(QUESTION, **TALK)
    begun = next(slow, "")
    assert twin.ask(QUESTION, **TALK) == before
    assert (begun + "".join(slow)).strip() == before
    twin.write("The dog is called Rex.")
    assert (len(made.header.written), len(twin.header.written)) == (1, 2)
    assert made.ask(QUESTION, **TALK) == before
    made.write("The hen is called Agnes.")
    reference.write("The hen is called Agnes.")
    assert made.ask(QUESTION, **TALK) == reference.ask(QUESTION, **TALK)


@pytest.mark.parametrize("name", KINDS)
def test_forgetting_is_a_fresh_start(name: str) -> None:
    made = read(name, "Something else entirely.", TEXT)
    made.ask(QUESTION, **TALK)
    made.forget()
    assert made.header.written == []
    assert list(made.reply(QUESTION, **TALK)) == list(session(name).reply(QUESTION, **TALK))
    with pytest.raises(InputError, match="Nothing has been written"):
        made.ask(QUESTION)
    made.write(TEXT)
    assert made.ask(QUESTION, **TALK) == read(name).ask(QUESTION, **TALK)


# ---- saving and loading ----


def test_a_memory_that_is_decoded_is_loaded_with_pauses(tmp_path: Path) -> None:
    made, twin = read("compact", TEXT * 8), session("compact")
    made.save(tmp_path / "one.state")
    pauses = list(twin.load_in_slices(tmp_path / "one.state", longest=32))
    assert len(pauses) > 4
    assert twin.header == made.header
    assert twin.ask(QUESTION, **TALK) == made.ask(QUESTION, **TALK)


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_session_goes_on_where_it_was(name: str, tmp_path: Path) -> None:
    made = read(name)
    size = made.save(tmp_path / "one.state")
    assert size == (tmp_path / "one.state").stat().st_size
    assert made.bytes == nbytes(made.state)
    twin = session(name)
    twin.load(tmp_path / "one.state")
    assert twin.header == made.header
    assert twin.ask(QUESTION, **TALK) == made.ask(QUESTION, **TALK)
    for one in (made, twin):
        one.write("The dog is called Rex.")
    assert twin.ask(QUESTION, **TALK) == made.ask(QUESTION, **TALK)


def test_loading_replaces_what_was_held(tmp_path: Path) -> None:
    made, other = read(), read("full", "The dog is called Rex.")
    made.save(tmp_path / "one.state")
    other.ask(QUESTION, **TALK)
    other.load(str(tmp_path / "one.state"))
    assert other.ask(QUESTION, **TALK) == made.ask(QUESTION, **TALK)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: session("window"), "another method: it has full, this session has window"),
        (lambda: session(chunk_tokens=7), r"other options: it has .*'chunk_tokens': 16.*, .*'chunk_tokens': 7"),
        (lambda: session(bits=8), r"other options: it has .*'bits': 16.*, .*'bits': 8"),
        (
            lambda: session(own=tiny_backbone(seed=1)),
            r"another model: it has tiny-llama \([\w.]+\), .* tiny-llama \([\w.]+\)",
        ),
        (lambda: session(own=backbone("llama", torch.bfloat16)), "another precision: it has float32, .* bfloat16"),
        (
            lambda: load(
                backbone(), method="full", encoder=byte_encoder("level"), chunk_tokens=16, opening=[], receipt=[]
            ),
            "another tokenizer: it has",
        ),
    ],
)
def test_a_state_of_something_else_is_refused(tmp_path: Path, other: Any, message: str) -> None:
    read().save(tmp_path / "one.state")
    made = other()
    before = made.state
    with pytest.raises(StateMismatchError, match=message):
        made.load(tmp_path / "one.state")
    assert made.state is before


def test_a_state_of_other_learned_parts_is_refused(tmp_path: Path) -> None:
    read("compressed-kv").save(tmp_path / "one.state")
    trained = session("compressed-kv")
    with torch.no_grad():
        trained.method.get_parameter("embeddings").add_(1.0)
    made = Session(trained.backbone, trained.encoder, trained.method)
    with pytest.raises(StateMismatchError, match="other trained parts"):
        made.load(tmp_path / "one.state")


def test_a_failed_save_or_load_leaves_the_session(tmp_path: Path) -> None:
    made = read()
    before = made.ask(QUESTION, **TALK)
    with pytest.raises(StateError, match="no state file"):
        made.load(tmp_path / "none.state")
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="could not be written"):
        made.save(tmp_path / "file" / "one.state")
    assert made.ask(QUESTION, **TALK) == before


@pytest.mark.parametrize("name", ["last-ffn", "ffn-lora", "cartridge"])
def test_a_write_that_diverged_is_not_saved(name: str, tmp_path: Path) -> None:
    path = tmp_path / "one.state"
    read(name).save(path)
    before = path.read_bytes()
    made = session(name, learning_rate=1e15)
    made.write(TEXT)
    with pytest.raises(StateError, match=r"holds what is no finite number\. The write diverged; .* is as it was\.$"):
        made.save(path)
    assert path.read_bytes() == before
    assert (made.file_hash, made.header.slots) == ("", 0)


def test_a_session_knows_which_file_it_has(tmp_path: Path) -> None:
    made, other = read(), session()
    assert made.file_hash == ""
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="could not be written"):
        made.save(tmp_path / "file" / "one.state")
    assert (made.file_hash, made.header.slots) == ("", 0)
    made.save(tmp_path / "one.state")
    other.load(tmp_path / "one.state")
    assert made.file_hash == other.file_hash == load_hash(tmp_path / "one.state")
    assert made.fork().file_hash == ""
    made.write(TEXT)
    assert made.file_hash == other.file_hash
    made.save(tmp_path / "one.state")
    assert made.file_hash == load_hash(tmp_path / "one.state") != other.file_hash
    made.forget()
    assert made.file_hash == ""


def test_a_file_opens_its_own_model(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    made = load(str(folder), method="window", dtype="float32", recent=20)
    made.write(TEXT)
    made.save(tmp_path / "one.state")
    again = open_state(tmp_path / "one.state")
    assert again.method.options() == made.method.options()
    assert again.backbone.dtype == torch.float32
    assert again.ask(QUESTION, **TALK) == made.ask(QUESTION, **TALK)
    moved = folder.rename(tmp_path / "moved")
    assert open_state(tmp_path / "one.state", model=str(moved)).ask(QUESTION, **TALK) == made.ask(QUESTION, **TALK)


# ---- many at once ----


def test_sessions_asked_together_answer_as_alone() -> None:
    made = [read(name, TEXT * (n % 9 + 1)) for n, name in enumerate(METHODS)]
    questions = [f"{'Really? ' * (n % 7)}{QUESTION}" for n in range(len(made))]
    alone = [one.ask(question, max_tokens=12) for one, question in zip(made, questions, strict=True)]
    assert ask_many(made, questions, max_tokens=12) == alone
    assert len(set(alone)) > 2
    assert hooks(backbone()) == []


def test_sessions_asked_together_stop_where_each_alone_does() -> None:
    made, questions = [read("full"), read("window")], [QUESTION, "The cat"]
    stop = made[0].ask(QUESTION, max_tokens=12)[2:4]
    alone = [each.ask(question, max_tokens=12, stop=stop) for each, question in zip(made, questions, strict=True)]
    assert stop not in alone[0]
    assert ask_many(made, questions, max_tokens=12, stop=stop) == alone
    with pytest.raises(UsageError, match="must not be empty"):
        ask_many(made, questions, stop="")


def test_contrast_needs_a_memory_that_changes_weights() -> None:
    plain, tuned = read("full"), read("last-ffn")
    for ask in (plain.ask, lambda question, **how: ask_many([plain], [question], **how)):
        with pytest.raises(UsageError, match="this memory changes none; take last-ffn"):
            ask(QUESTION, max_tokens=4, contrast=0.5)
    # One of several is enough: the others are decoded plainly.
    both = ask_many([tuned, plain], [QUESTION, QUESTION], max_tokens=4, contrast=0.5)
    assert both[1] == plain.ask(QUESTION, max_tokens=4)


def test_sessions_asked_together_need_a_question_each_and_one_model() -> None:
    with pytest.raises(UsageError, match="2 questions for 1 sessions"):
        ask_many([read()], [QUESTION, QUESTION])
    with pytest.raises(UsageError, match="0 questions for 0 sessions"):
        ask_many([], [])
    with pytest.raises(UsageError, match="must share one backbone"):
        ask_many([read(), read(own=tiny_backbone())], [QUESTION, QUESTION])


def test_a_session_may_start_from_a_state() -> None:
    made = read()
    again = Session(made.backbone, made.encoder, made.method, state=made.state, written=made.header.written)
    assert again.ask(QUESTION, **TALK) == made.ask(QUESTION, **TALK)


def test_the_module_names_no_mechanism() -> None:
    """It does not know which method it has."""
    source = Path(sessions.__file__).read_text(encoding="utf-8")
    assert not [name for name in METHODS if f'"{name}"' in source.replace('memory: str = "full"', "")]


def test_a_special_token_in_a_users_text_is_only_text() -> None:
    mine = session()
    mark = str(mine.encoder.tokenizer.eos_token)
    assert mine.encoder.tokenizer.eos_token_id not in mine.encoder.encode("", f"a {mark} b", "", first=False).tolist()
    assert mine.encoder.tokenizer.eos_token_id in mine.encoder.encode(f"a {mark} b", "", first=False).tolist()
