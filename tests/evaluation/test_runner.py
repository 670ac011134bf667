"""The one loop: what is written and asked together, in which order, and what is said of an item that cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from byheart.data.records import Fields
from byheart.errors import BudgetError, InputError
from byheart.evaluation.method_spec import Candidate, text_lengths
from byheart.evaluation.runner import Asked, group_questions, parts_of, run
from byheart.evaluation.task import Answer, Item, Part, Question, Task
from byheart.methods.full import Full
from byheart.protocol.size import fixed_size
from byheart.session.opening import load
from byheart.session.session import Session
from tests.samples import codec_of


class Words(Task):
    """Keeps every answer, and scores its length."""

    name = "words"
    max_tokens = 4

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        return iter(())

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        return {"length": len(answer.text)}


class Choices(Words):
    """Scores the loss of the first choice."""

    name = "choices"
    asks = "choices"

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        return {"loss": Part(answer.losses[0], answer.tokens[0])}


class Controlled(Choices):
    """The same, also by the memory of the next item."""

    name = "controlled"
    control = True


TEXTS = ("The cat is called Muck.", "A dog.", "The bird is called Lu and sings.")


@pytest.fixture
def opened(tiny_folder: Path) -> Session:
    return load(str(tiny_folder), method="full", dtype="float32")


def remember(opened: Session, *texts: str) -> Session:
    session = opened.fork()
    for text in texts:
        session.write(text)
    return session


# ---- words ----


def test_answers_are_those_of_a_session_alone(opened: Session) -> None:
    items = [Item((text,), (Question("Who?"), Question("Where is it?"))) for text in TEXTS]
    (outcomes,) = run(Words(), items, [Candidate.of("full", opened)], batch=2)
    assert [(o.item, o.question) for o in outcomes] == [(n, k) for n in range(3) for k in range(2)]
    for outcome in outcomes:
        session = remember(opened, TEXTS[outcome.item])
        question = items[outcome.item].questions[outcome.question]
        assert outcome.text == session.ask(question.text, max_tokens=4)
        assert outcome.parts == {"length": (len(outcome.text), 1.0)}
        assert (outcome.bytes, outcome.tokens) == (session.bytes, session.header.written[0].tokens)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_answers_do_not_depend_on_what_is_beside_them(batch: int, opened: Session) -> None:
    items = [Item((text,), (Question("Who?"),)) for text in TEXTS]
    (outcomes,) = run(Words(), items, [Candidate.of("window:recent=8", opened)], batch=batch)
    alone = [run(Words(), [item], [Candidate.of("window:recent=8", opened)])[0][0] for item in items]
    assert [outcome.text for outcome in outcomes] == [outcome.text for outcome in alone]


def test_a_question_is_asked_after_as_many_texts_as_it_says(opened: Session) -> None:
    questions = tuple(Question("Who?", after=after) for after in (2, 0, 1, None))
    (outcomes,) = run(Words(), [Item(TEXTS, questions)], [Candidate.of("full", opened)])
    tokens = [entry.tokens for entry in remember(opened, *TEXTS).header.written]
    assert [outcome.tokens for outcome in outcomes] == [sum(tokens[:count]) for count in (2, 0, 1, 3)]
    assert outcomes[0].text == remember(opened, *TEXTS[:2]).ask("Who?", max_tokens=4)
    assert outcomes[3].text == remember(opened, *TEXTS).ask("Who?", max_tokens=4)


@pytest.mark.parametrize("spec", ["full", "window:recent=8", "retrieval:tokens=60", "compact:times=2", "nothing"])
def test_what_reading_costs_stands_beside_each_answer(spec: str, opened: Session) -> None:
    item = Item(("The cat is called Muck and lives here. " * 5,), (Question("Who?"), Question("lives here")))
    candidate = Candidate.of(spec, opened)
    (outcomes,) = run(Words(), [item], [candidate])
    session = remember(candidate.session, *item.texts)
    kept, slot = session.encoder.template_tokens(), opened.backbone.slot_bytes
    text = session.header.tokens - len(kept["opening"]) - len(kept["receipt"])
    around = session.header.tokens - text
    lower = codec_of(opened.backbone).start / len(opened.backbone.layers)
    again = {"retrieval:tokens=60": 60 - around, "compact:times=2": lower * text}
    for outcome, question in zip(outcomes, item.questions, strict=True):
        assert outcome.reading_bytes == session.reading_for(question.text).bytes
        assert outcome.reread_tokens == again.get(spec, 0)
        assert outcome.first_token_seconds is not None
    assert outcomes[0].reading_bytes == {"retrieval:tokens=60": 60 * slot, "nothing": 0}.get(
        spec, session.reading.bytes
    )


def test_items_of_different_numbers_of_texts_are_written_side_by_side(opened: Session) -> None:
    items = [Item(TEXTS[:count], (Question("Who?"),)) for count in (0, 3, 1)]
    (outcomes,) = run(Words(), items, [Candidate.of("full", opened)])
    kept = [remember(opened, *item.texts).bytes for item in items]
    assert [outcome.bytes for outcome in outcomes] == kept
    assert kept[0] == 0 < kept[2] < kept[1]


def test_each_candidate_has_its_own_answers(opened: Session) -> None:
    specs = ["full:max_tokens=1", "full:max_tokens=3"]
    found = run(Words(), [Item(TEXTS[:1], (Question("Who?"),))], [Candidate.of(spec, opened) for spec in specs])
    session = remember(opened, TEXTS[0])
    assert [outcomes[0].text for outcomes in found] == [session.ask("Who?", max_tokens=n) for n in (1, 3)]


def test_a_text_that_is_not_a_turn_is_continued_by_a_bare_question(opened: Session) -> None:
    item = Item(TEXTS[:1], (Question("And so", use_chat_template=False),), use_chat_template=False)
    (((outcome),),) = run(Words(), [item], [Candidate.of("full", opened)])
    assert outcome.tokens == len(opened.encoder.continuation(TEXTS[0])) + len(opened.encoder.start)


# ---- likelihoods ----


def test_a_choice_has_the_loss_of_its_tokens(opened: Session) -> None:
    item = Item(TEXTS[:1], (Question("It is", choices=(" a cat", " a dog")),))
    ((outcome,),) = run(Choices(), [item], [Candidate.of("full", opened)])
    session = remember(opened, TEXTS[0])
    assert (outcome.reading_bytes, outcome.first_token_seconds) == (session.reading.bytes, None)
    prompt, choice = session.prompt("It is"), session.encoder.continuation(" a cat", use_chat_template=True)
    with torch.no_grad(), session.backbone.reading([session.reading]) as cache:
        hidden = session.backbone.hidden(torch.cat([prompt, choice])[None], cache=cache)
    scores = torch.log_softmax(session.backbone.logits(hidden[0, len(prompt) - 1 : -1]), dim=-1)
    loss = -scores.gather(1, choice[:, None]).sum().item()
    assert outcome.parts["loss"] == pytest.approx((loss, len(choice)), rel=1e-4)


def test_the_control_asks_the_memory_of_the_next_item(opened: Session) -> None:
    question = Question("It is", choices=(" a cat",))
    items = [Item((text,), (question,)) for text in TEXTS]
    (outcomes,) = run(Controlled(), items, [Candidate.of("full", opened)])
    own = [outcome.parts["loss"] for outcome in outcomes]
    # The longest comes first, so its neighbour is the first, whose neighbour is the second.
    for n, other in ((2, 0), (0, 1), (1, 2)):
        assert outcomes[n].control["loss"] == pytest.approx(own[other], rel=1e-4)
        assert outcomes[n].control != outcomes[n].parts


def test_a_task_without_a_control_has_none(opened: Session) -> None:
    item = Item(TEXTS[:1], (Question("It is", choices=(" a cat",)),))
    ((outcome,),) = run(Choices(), [item], [Candidate.of("full", opened)])
    assert outcome.control == {}


def test_a_score_is_kept_as_a_total_and_its_weight() -> None:
    assert parts_of(Words(), Question("?"), Answer("four")) == {"length": (4.0, 1.0)}
    assert parts_of(Choices(), Question("?"), Answer(losses=(3.0,), tokens=(2,))) == {"loss": (3.0, 2)}


# ---- words and likelihoods ----


class Both(Words):
    """Scores the words, and the loss of a choice where there is one."""

    name = "both"

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        loss = {"loss": Part(answer.losses[0], answer.tokens[0])} if answer.losses else {}
        return {"length": len(answer.text), **loss}


def test_a_question_in_words_has_the_likelihood_of_its_choices_too(opened: Session) -> None:
    """However the words are decoded, the likelihood is the model's own."""
    with_choice, without = Question("It is", choices=(" a cat",)), Question("It is")
    item, specs = Item(TEXTS[:1], (with_choice, without)), ["full", "full:context_aware=0.5"]
    plain, aware = run(Both(), [item], [Candidate.of(spec, opened) for spec in specs])
    words = run(Words(), [item], [Candidate.of(spec, opened) for spec in specs])
    assert [[each.text for each in own] for own in (plain, aware)] == [[each.text for each in own] for own in words]
    ((likely,),) = run(Choices(), [Item(TEXTS[:1], (with_choice,))], [Candidate.of("full", opened)])
    for own in (plain, aware):
        assert own[0].parts["loss"] == pytest.approx(likely.parts["loss"], rel=1e-4)
        assert set(own[1].parts) == {"length"}


def test_an_instruction_stands_after_the_question(opened: Session) -> None:
    question = Question("Who?", choices=(" a cat",), instruction="Be short.")
    ((outcome,),) = run(Both(), [Item(TEXTS[:1], (question,))], [Candidate.of("full", opened)])
    assert outcome.text == remember(opened, TEXTS[0]).ask("Who?\nBe short.", max_tokens=4)
    asked = Question("Who?\nBe short.", choices=(" a cat",))
    ((same,),) = run(Choices(), [Item(TEXTS[:1], (asked,))], [Candidate.of("full", opened)])
    assert outcome.parts["loss"] == pytest.approx(same.parts["loss"], rel=1e-4)


def test_a_method_selects_by_the_question_without_its_instruction(
    opened: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = Candidate.of("retrieval", opened)
    method, searched, select = candidate.session.method, [], candidate.session.method.select
    monkeypatch.setattr(method, "select", lambda state, asked: searched.append(len(asked)) or select(state, asked))
    question = Question("Who is the cat?", choices=("a",), instruction="Answer with words from the text.")
    run(Both(), [Item(TEXTS[:1], (question,))], [candidate])
    # For the answer, for how likely the right one is, and to count what is read again.
    assert searched == [len(opened.encoder.continuation("Who is the cat?"))] * 3


def test_context_aware_decoding_is_set_against_the_question_without_the_text(opened: Session) -> None:
    """Where a question repeats the text, both sides would else see it, and nothing would be set against anything."""
    asked, bare = "The cat is Muck.\nWho?", "Who?"
    candidates = [Candidate.of(spec, opened) for spec in ("nothing:context_aware=2", "nothing")]
    items = [Item(TEXTS[:1], (Question(asked, unconditional=other),)) for other in (bare, "")]
    aware, plain = run(Words(), items, candidates)
    encoder = opened.encoder
    prompts = [encoder.question(text, continues=False) for text in (asked, bare)]

    def scores(prompt: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return opened.backbone.logits(opened.backbone.hidden(prompt[None])[0, -1]).log_softmax(-1)

    for _ in range(4):
        token = (3 * scores(prompts[0]) - 2 * scores(prompts[1])).argmax()[None]
        prompts = [torch.cat([prompt, token]) for prompt in prompts]
    expected = encoder.decode(prompts[0][-4:]).strip()
    assert aware[0].text == expected != plain[0].text
    assert aware[1].text == plain[1].text


# ---- groups ----


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(10, 8, [10]), (13, 8, [8, 5]), (16, 8, [8, 8]), (18, 8, [8, 10]), (3, 1, [1, 1, 1]), (5, 2, [2, 3]), (0, 8, [])],
)
def test_a_few_questions_are_not_left_to_a_group_of_their_own(count: int, size: int, sizes: list[int]) -> None:
    asked = [Asked(0, k, Question(str(k))) for k in range(count)]
    groups = list(group_questions(asked, size))
    assert [len(group) for group in groups] == sizes
    assert [question for group in groups for question in group] == asked


def test_questions_of_one_group_have_answers_of_one_length() -> None:
    asked = [Asked(n, 0, Question(max_tokens=tokens)) for n, tokens in enumerate((None, 3, None, 5, 3))]
    assert [[each.item for each in group] for group in group_questions(asked, 8)] == [[0, 2], [1, 4], [3]]


def test_targets_of_one_group_have_the_same_number_in_their_items() -> None:
    asked = [Asked(n, k, Question(target=(1, 2))) for n in range(3) for k in range(2)]
    groups = [[(each.item, each.number) for each in group] for group in group_questions(asked, 8)]
    assert groups == [[(0, 0), (1, 0), (2, 0)], [(0, 1), (1, 1), (2, 1)]]


# ---- resuming ----


def test_what_is_known_is_not_asked_again(opened: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items, file = [Item((text,), (Question("Who?"),)) for text in TEXTS], tmp_path / "answers.jsonl"
    candidate = Candidate.of("full", opened)
    run(Words(), items[:2], [candidate], files=[file])
    method, written, write_many = candidate.session.method, [], candidate.session.method.write_many
    monkeypatch.setattr(method, "write_many", lambda s, t: written.append(len(s)) or write_many(s, t))
    told: list[int] = []
    (outcomes,) = run(Words(), items, [candidate], files=[file], advance=told.append)
    assert (written, told) == ([1], [4, 1, 1])
    assert [outcome.item for outcome in outcomes] == [0, 1, 2]
    assert run(Words(), items, [candidate], files=[file])[0] == outcomes
    assert written == [1]


def test_answers_are_kept_batch_by_batch(opened: Session, tmp_path: Path) -> None:
    file, seen = tmp_path / "answers.jsonl", []

    def lines(steps: int) -> None:
        seen.append(len(file.read_text().splitlines()) if file.exists() else 0)

    items = [Item((text,), (Question("Who?"),)) for text in TEXTS]
    run(Words(), items, [Candidate.of("full", opened)], batch=1, files=[file], advance=lines)
    # Nothing at first; then after each text and each answer, what the batches before have left.
    assert seen == [0, 0, 0, 1, 1, 2, 2]


def test_an_item_that_changed_is_asked_again(opened: Session, tmp_path: Path) -> None:
    file, candidate = tmp_path / "answers.jsonl", Candidate.of("full", opened)
    run(Words(), [Item(TEXTS[:1], (Question("Who?"),))], [candidate], files=[file])
    ((outcome,),) = run(Words(), [Item(TEXTS[:1], (Question("Where?"),))], [candidate], files=[file])
    assert outcome.text == remember(opened, TEXTS[0]).ask("Where?", max_tokens=4)


# ---- what cannot be measured ----


def test_the_question_that_cannot_be_answered_is_named(opened: Session) -> None:
    good, empty = Question("It is", choices=(" a",)), Question("It is", choices=("",))
    items = [Item(TEXTS[:1], (good,)), Item(TEXTS[:1], (good, empty))]
    with pytest.raises(InputError, match="'full' cannot answer question 2 of item 2: A choice is empty"):
        run(Choices(), items, [Candidate.of("full", opened)])


@pytest.mark.parametrize(("text", "match"), [("\ud800", "not UTF-8"), ("  ", "the text is empty")])
def test_the_text_that_cannot_be_written_is_named(text: str, match: str, opened: Session) -> None:
    items = [Item((each,), (Question("Who?"),)) for each in (TEXTS[0], text)]
    with pytest.raises(InputError, match=rf"'full' cannot be given a text of item 2: .*{match}"):
        run(Words(), items, [Candidate.of("full", opened)])


def test_a_memory_that_cannot_fit_its_bytes_is_refused(opened: Session) -> None:
    with pytest.raises(BudgetError, match="1024 bytes is too small for 'full', which needs at least"):
        run(Words(), [Item(TEXTS[:1], (Question("Who?"),))], [Candidate.of("full@1KB", opened)])


def test_a_memory_that_outgrows_its_bytes_is_refused(opened: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Full, "size", fixed_size(lambda backbone, tokens: 1))
    candidate = Candidate.of("full@1KB", opened)
    with pytest.raises(BudgetError, match="1024 bytes is too small for 'full@1KB', which needs at least"):
        run(Words(), [Item(TEXTS[:1], (Question("Who?"),))], [candidate])


def test_each_memory_is_as_large_as_fits_its_own_text(opened: Session) -> None:
    """A memory that grows with its text is not sized for the longest of all."""
    texts, question = ["a" * 100, "b" * 400, "c" * 101], (Question("Who?"),)
    most = 40 * opened.backbone.slot_bytes
    (outcomes,) = run(Words(), [Item((text,), question) for text in texts], [Candidate.of(f"every-kth@{most}", opened)])
    assert [outcome.bytes for outcome in outcomes] == [most] * 3


@pytest.mark.parametrize("method", ["full", "window", "every-kth", "compact"])
def test_texts_are_counted_without_the_chat_template(method: str, opened: Session) -> None:
    texts = ("a" * 30, "b" * 7, tuple(range(5)))
    # Only a method that writes turns gives up what begins every text; others keep it as text.
    begins = len(opened.encoder.start) * (method == "every-kth")
    assert text_lengths(Item(texts, ()), method, opened.encoder) == [30 + begins, 7, 5]


def test_nothing_to_do_is_nothing_done(opened: Session) -> None:
    told: list[int] = []
    assert run(Words(), [], [Candidate.of("full", opened)], advance=told.append) == [[]]
    assert told == [0]


def test_the_session_of_a_candidate_stays_as_it_was(opened: Session) -> None:
    candidate: Any = Candidate.of("full", opened)
    run(Words(), [Item(TEXTS[:1], (Question("Who?"),))], [candidate])
    assert (candidate.session.header.written, candidate.session.bytes) == ([], 0)
