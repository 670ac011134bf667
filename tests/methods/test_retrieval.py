"""Segments chosen by the question: their scores, their places, and who asks for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st

from byheart.errors import UsageError
from byheart.methods.retrieval import Retrieval, bm25
from byheart.model.reading import Reading
from byheart.protocol.state import nbytes, stack, unstack
from byheart.session.batch import ask_many
from byheart.session.opening import load
from byheart.session.session import Session
from byheart.testing import tiny_backbone
from tests.conftest import tiny_tokenizer
from tests.naive import bm25 as naive
from tests.samples import ALL_FAMILIES, backbone, logits, tokens, written

PROMPT = tokens(5, seed=9)
FILLER = "So it went on and on. " * 8
STORY = f"{FILLER}The cat is XQZ. {FILLER}"
TALK = {"max_tokens": 6, "temperature": 1.5, "seed": 3}


@given(
    text=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    question=st.lists(st.integers(0, 12), min_size=1, max_size=9),
    size=st.integers(1, 12),
    k1=st.floats(0.1, 3),
    b=st.floats(0, 1),
)
def test_scores_are_those_of_the_formula(text: list[int], question: list[int], size: int, k1: float, b: float) -> None:
    segments = [text[start : start + size] for start in range(0, len(text), size)]
    expected = naive.scores(segments, question, k1=k1, b=b)
    ours = bm25(torch.tensor(text), torch.tensor(question), size=size, saturation=k1, length_weight=b)
    torch.testing.assert_close(ours, torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("budget", "sinks", "places"),
    [
        (9, 1, [0, *range(8, 12), *range(20, 24)]),
        (6, 1, [0, *range(8, 12), 20]),
        (8, 0, [*range(8, 12), *range(20, 24)]),
        (12, 0, [*range(8, 12), *range(20, 26), 16, 17]),
    ],
)
def test_the_best_segments_stay_in_the_order_of_the_text(budget: int, sinks: int, places: list[int]) -> None:
    """Segments of four; the third has two of the question's words, the sixth one, the newest of the rest come next."""
    # No other token stands twice, so the tokens say which places were chosen.
    text = torch.arange(3, 29)[None]
    text[0, [8, 11, 21]] = torch.tensor([70, 71, 71])
    retrieval = Retrieval(backbone(), tokens=budget, segment_tokens=4, sinks=sinks)
    selected = retrieval.select({"tokens": text.int()}, torch.tensor([70, 71]))
    assert selected["tokens"].tolist() == text[:, sorted(places)].tolist()


def test_the_state_is_the_text_in_four_bytes_a_token() -> None:
    made = Retrieval(backbone())
    state = written(made, tokens(20, seed=1), tokens(30, seed=2))
    assert nbytes(state) == 4 * 50
    assert torch.equal(state["tokens"].long(), torch.cat([tokens(20, seed=1), tokens(30, seed=2)], dim=1))
    assert made.select(state, PROMPT[0]) is state


def test_rows_of_a_batch_are_chosen_apart() -> None:
    made = Retrieval(backbone(), tokens=10, segment_tokens=4)
    alone = [written(made, tokens(31, seed=seed)) for seed in (1, 2)]
    both = unstack(made.select(stack(alone), PROMPT[0]))
    for ours, state in zip(both, alone, strict=True):
        chosen = made.select(state, PROMPT[0])["tokens"]
        assert chosen.shape == (1, 10)
        assert torch.equal(ours["tokens"], chosen)


@torch.no_grad()
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_text_that_fits_reads_as_the_text(family: str) -> None:
    own, text = backbone(family), tokens(20, seed=1)
    made = Retrieval(own, tokens=20, chunk_tokens=7)
    ours = logits(own, made.read(written(made, text)), PROMPT)
    torch.testing.assert_close(ours, own.model(torch.cat([text, PROMPT], dim=1)).logits[:, 20:], rtol=0, atol=1e-4)


@torch.no_grad()
def test_without_a_question_the_first_and_the_newest_tokens_are_read() -> None:
    own, text = tiny_backbone(max_position_embeddings=64), tokens(100, seed=1)
    made = Retrieval(own, tokens=10, sinks=2)
    near = torch.cat([text[:, :2], text[:, -8:]], dim=1)
    ours = logits(own, made.read(written(made, text)), PROMPT)
    torch.testing.assert_close(ours, logits(own, Reading(own.prefill(near)), PROMPT), rtol=0, atol=1e-4)


# ---- the frame ----

OPENING, RECEIPT = [3, 4, 5], [6, 7]


def turns(*texts: list[int], **options: Any) -> tuple[Retrieval, torch.Tensor]:
    """A memory that was written the texts as turns, and its tokens."""
    made = Retrieval(backbone(), segment_tokens=4, opening=OPENING, receipt=RECEIPT, **options)
    framed = [[*(OPENING if n == 0 else []), *text, *RECEIPT] for n, text in enumerate(texts)]
    return made, written(made, *(torch.tensor([each]) for each in framed))["tokens"]


def test_all_texts_stand_in_one_turn() -> None:
    _, held = turns([20, 21], [30], [40, 41])
    assert held[0].tolist() == [*OPENING, 20, 21, 30, 40, 41, *RECEIPT]


def test_the_frame_is_always_read() -> None:
    made, held = turns([20] * 9, [30, 31, 32, 33], [40] * 9, tokens=9)
    chosen = made.select({"tokens": held}, torch.tensor([31, 33]))["tokens"][0].tolist()
    assert chosen[:3] == OPENING
    assert chosen[-2:] == RECEIPT
    assert {31, 33} <= set(chosen)
    assert len(chosen) == 9


def test_words_of_the_frame_find_nothing() -> None:
    """They are read anyway."""
    made, held = turns([20] * 5, [30, 31, 32, 33], [40] * 12, tokens=11)
    plain, also = (made.select({"tokens": held}, torch.tensor(asked)) for asked in ([31], [31, 4, 6, 7]))
    assert torch.equal(plain["tokens"], also["tokens"])


def test_texts_of_a_batch_are_turns_or_not_each_by_itself() -> None:
    made, framed = turns([20, 21])
    bare = torch.full((1, 7), 9, dtype=torch.int32)
    new = torch.tensor([[30, 31, *RECEIPT]])
    both = made.write_many([{"tokens": framed}, {"tokens": bare}], [new, new])
    assert both[0]["tokens"][0].tolist() == [*OPENING, 20, 21, 30, 31, *RECEIPT]
    assert both[1]["tokens"][0].tolist() == [*[9] * 7, 30, 31, *RECEIPT]


def test_without_a_question_the_frame_and_the_newest_tokens_are_read() -> None:
    made, held = turns([20] * 9, [30, 31, 32, 33], tokens=8)
    near = torch.tensor([[*OPENING, 31, 32, 33, *RECEIPT]])
    ours = logits(made.backbone, made.read({"tokens": held}), PROMPT)
    expected = logits(made.backbone, Reading(made.backbone.prefill(near)), PROMPT)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def test_bare_texts_have_no_frame() -> None:
    made = Retrieval(backbone(), tokens=6, segment_tokens=2, sinks=0, opening=OPENING, receipt=RECEIPT)
    held = written(made, torch.tensor([[20, 21, 22, 23, 24]]), torch.tensor([[30, 31, 32, 33, 34]]))
    assert held["tokens"][0].tolist() == [*range(20, 25), *range(30, 35)]
    assert made.select(held, torch.tensor([20, 31]))["tokens"][0].tolist() == [20, 21, 31, 32, 33, 34]


# ---- a session ----


def session(name: str, **options: Any) -> Session:
    made = load(backbone(), method=name, encoder=tiny_tokenizer(), **options)
    made.write(STORY)
    return made


def test_a_session_reads_what_its_question_is_about() -> None:
    made = session("retrieval", tokens=48, segment_tokens=16)
    text = made.encoder.tokenizer.decode(
        made.method.select(made.state, made.encoder.continuation("Who is XQZ?"))["tokens"][0]
    )
    assert "XQZ" in text
    assert "XQZ" not in made.encoder.tokenizer.decode(
        made.method.select(made.state, made.encoder.continuation("went on"))["tokens"][0]
    )
    assert made.reading_for("Who is XQZ?").slots == 48


def test_a_session_that_does_not_select_reads_once() -> None:
    made = session("full")
    assert made.reading_for("Who?") is made.reading_for("What?") is made.reading


def test_many_sessions_answer_as_each_alone() -> None:
    made = [session("retrieval", tokens=33, segment_tokens=16), session("full")]
    questions = ["Who is XQZ?", "What went on?"]
    greedy = {**TALK, "temperature": 0.0}
    expected = [each.ask(question, **greedy) for each, question in zip(made, questions, strict=True)]
    assert ask_many(made, questions, **greedy) == expected
    assert [made[0].ask(questions[0], **greedy) for _ in range(2)] == [expected[0]] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "tokens must be above 0; it is 0"),
        ({"tokens": 1 << 21}, r"tokens must be at most \d+, the model's positions; it is 2097152"),
        ({"segment_tokens": 0}, "segment_tokens must be above 0; it is 0"),
        (
            {"tokens": 5, "opening": OPENING, "receipt": RECEIPT},
            "tokens must be more than 5, which stand around a text",
        ),
        ({"tokens": 4, "sinks": 5}, "sinks must be 0 or more and at most tokens, 4; it is 5"),
        ({"saturation": 0.0}, r"saturation must be above 0; it is 0\.0"),
        ({"length_weight": 1.5}, r"length_weight must lie between 0 and 1; it is 1\.5"),
    ],
)
def test_options_that_read_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Retrieval(backbone(), **options)
