import dataclasses
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from byheart.errors import BudgetError, InputError, UnknownNameError, UsageError
from byheart.evaluation.evaluate import evaluate
from byheart.evaluation.method_spec import Candidate, group_by_state
from byheart.evaluation.results import Result, load as load_rows
from byheart.evaluation.run_folder import Outcome, append, digest_of, known
from byheart.evaluation.runner import Asked, group_questions, run as run_task
from byheart.evaluation.task import Answer, Fields, Item, Part, Question, Task
from byheart.evaluation.tasks import BUILT_IN, build, defaults, find
from byheart.evaluation.tasks.faithful import Faithful
from byheart.evaluation.tasks.integrity import Integrity
from byheart.evaluation.tasks.questions import Questions
from byheart.generation.decoding import Decoding
from byheart.generation.generate import Request
from byheart.generation.likelihood import likelihoods
from byheart.methods.key_norm import KeyNorm
from byheart.model.kv_cache import PrefixCache
from byheart.model.reading import Reading
from byheart.protocol.checkpoint import save_pretrained
from byheart.session.batch import answer_many
from byheart.session.opening import load
from byheart.session.session import Session
from tests.conftest import Run

METRICS = ("contains", "exact_match", "f1", "answer_words", "gold_loss")
TEXTS = ["The cat is called Muck.", "The dog is called Rex and the dog is big.", "A bird."]


class Chosen(Task):
    """Which of two continuations is likelier, before and after a second text."""

    name = "chosen"
    asks = "choices"

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        for record in records:
            asked = [
                Question("It is", choices=(" a cat", " a big dog"), after=n, conditions={"after": n}) for n in (1, 2)
            ]
            yield Item((record["context"], "And so on."), tuple(asked))

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        return {"first": float(answer.best() == 0), "loss": Part(answer.losses[1], answer.tokens[1])}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "cats.jsonl"
    asked = [
        {"task": "qa", "context": text, "question": f"{word} is called?", "answers": ["Muck", "Rex"]}
        for text in TEXTS
        for word in ("Who", "What")
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in asked))
    return file


@pytest.fixture
def opened(tiny_folder: Path) -> Session:
    return load(str(tiny_folder), method="full", dtype="float32")


def count_writes(one: Candidate, writes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Note how many texts each call writes side by side."""
    method, write_many = one.session.method, one.session.method.write_many
    monkeypatch.setattr(method, "write_many", lambda s, t: writes.append(len(s)) or write_many(s, t))


def test_a_text_is_written_once_and_all_its_questions_are_asked_together(
    opened: Session, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    one = Candidate.of("full:max_tokens=3", opened)
    count_writes(one, writes, monkeypatch)
    task = Questions()
    items = list(task.items([json.loads(line) for line in data.read_text().splitlines()], 0))
    (outcomes,) = run_task(task, items, [one], batch=2)
    assert writes == [2, 1]
    assert len(outcomes) == 6
    for outcome in outcomes:
        item = items[outcome.item]
        alone = one.session.fork()
        alone.write(item.texts[0])
        said = alone.ask(item.questions[outcome.question].text, max_tokens=3, stop="\n")
        assert outcome.text == said


def test_memories_that_differ_in_decoding_alone_share_what_is_written(
    opened: Session, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where some answers of some of them are there already."""
    writes: list[int] = []
    task = Questions()
    items = list(task.items([json.loads(line) for line in data.read_text().splitlines()], 0))
    said = ["full:max_tokens=3", "nothing:max_tokens=3", "full:max_tokens=3;context_aware=0.5", "full@8MB"]
    ones = [Candidate.of(each, opened) for each in said]
    count_writes(ones[0], writes, monkeypatch)
    assert [[one.spec for one in group] for group in group_by_state(ones)] == [[said[0], said[2]], [said[1]], [said[3]]]
    pair, files = [ones[0], ones[2]], [tmp_path / "plain.jsonl", tmp_path / "aware.jsonl"]
    apart = [run_task(task, items, [one])[0] for one in pair]
    assert [outcome.text for outcome in apart[0]] != [outcome.text for outcome in apart[1]]
    run_task(task, items[:1], pair[:1], files=files[:1])
    writes.clear()
    seen: list[int] = []
    together = run_task(task, items, pair, files=files, advance=seen.append)
    assert sum(writes) == len(items)
    assert [[outcome.text for outcome in own] for own in together] == [[o.text for o in own] for own in apart]
    assert min(seen) > 0
    assert sum(seen) == 2 * sum(len(item.texts) + len(item.questions) for item in items)
    writes.clear()
    again = run_task(task, items, pair, files=files)
    assert not writes
    assert again == together


def test_differences_are_taken_on_the_same_items(opened: Session, data: Path, tmp_path: Path) -> None:
    said, given = ["nothing:max_tokens=6", "full:max_tokens=6"], {"model": opened.backbone, "out": tmp_path / "out"}
    apart = evaluate(Questions(), str(data), said, model=opened.backbone)
    rows = evaluate(Questions(), str(data), said, against=said[0], **given)
    assert [row.value for row in rows[: len(apart)]] == [row.value for row in apart]
    none, whole = (next(row for row in apart if (row.method, row.metric) == (each, "f1")) for each in said)
    (found,) = (row for row in rows if row.metric == "f1_difference")
    assert (found.method, found.n) == (said[1], whole.n)
    assert found.value == pytest.approx(whole.value - none.value)
    assert found.low <= found.value <= found.high
    # Of itself there is no difference, and of two that answer alike it is nothing.
    twin = evaluate(Questions(), str(data), [said[1], f"{said[1]};top_k=1"], against=said[1], model=opened.backbone)
    assert {(row.value, row.low, row.high) for row in twin if "difference" in row.metric} == {(0.0, 0.0, 0.0)}
    kept = load_rows(tmp_path / "out" / "rows.json")
    assert [row.metric for row in kept[1] if row.method == said[1]] == [r.metric for r in rows if r.method == said[1]]
    with pytest.raises(UsageError, match="'window' is none of the methods that are measured: nothing"):
        evaluate(Questions(), str(data), said, against="window", **given)


def test_an_answer_can_be_made_to_begin_with_given_words(opened: Session) -> None:
    task = Faithful(primed=True)
    items = list(task.items([{"context": "The cat is Muck.", "question": "Who?", "answers": ["Muck"]}], 0))
    one = Candidate.of("full:max_tokens=5", opened)
    ((outcome,),) = run_task(task, items, [one])
    alone = one.session.fork()
    alone.write(items[0].texts[0])
    prompt = torch.cat([alone.prompt(items[0].questions[0].text), alone.encoder.continuation("The answer is:")])
    request = Request(prompt, alone.reading, Decoding(max_tokens=5), None, alone.encoder.stop_tokens)
    (said,) = answer_many(alone.backbone, alone.encoder, [request])
    assert outcome.text == f"The answer is:{said}".strip()
    # What begins so cannot fail, so there is no number of failures.
    assert set(outcome.parts) == {"accuracy"}


@pytest.mark.parametrize(
    ("count", "batch", "sizes"),
    [
        (10, 8, [10]),
        (12, 8, [12]),
        (13, 8, [8, 5]),
        (16, 8, [8, 8]),
        (18, 8, [8, 10]),
        (3, 8, [3]),
        (3, 1, [1, 1, 1]),
        (5, 2, [2, 3]),
        (0, 8, []),
    ],
)
def test_a_few_questions_are_not_left_to_a_batch_of_their_own(count: int, batch: int, sizes: list[int]) -> None:
    asked = [Asked(0, k, Question(str(k))) for k in range(count)]
    groups = list(group_questions(asked, batch))
    assert [len(group) for group in groups] == sizes
    assert [one for group in groups for one in group] == asked


@pytest.mark.parametrize("is_shared", [False, True])
def test_likelihoods_are_those_of_each_continuation_alone(
    opened: Session, is_shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened.fork()
    session.write(TEXTS[0])
    prompts = [session.encoder.continuation("It is"), session.encoder.continuation("The big and old")]
    choices = [
        [session.encoder.continuation(" a cat"), session.encoder.continuation("x")],
        [session.encoder.continuation(" dog there")],
    ]
    readings = [session.reading, session.reading if is_shared else Reading()]
    assert opened.backbone.hides_slots
    with monkeypatch.context() as patch:
        if is_shared:
            # A memory that several rows read is not copied for each.
            patch.delattr(PrefixCache, "of")
        found = likelihoods(opened.backbone, prompts, readings, choices)
    assert [len(row) for row in found] == [2, 1]
    for prompt, reading, row, each in zip(prompts, readings, choices, found, strict=True):
        for choice, one in zip(row, each, strict=True):
            with torch.no_grad(), opened.backbone.reading([reading]) as cache:
                hidden = opened.backbone.hidden(torch.cat([prompt, choice])[None], cache=cache)
            scores = torch.log_softmax(opened.backbone.logits(hidden[0, len(prompt) - 1 : -1]), dim=-1)
            expected = -scores.gather(1, choice[:, None]).sum().item()
            assert one.loss == pytest.approx(expected, rel=1e-4)
            assert (one.tokens, one.likeliest) == (len(choice), int((scores.argmax(-1) == choice).sum()))


def test_questions_are_asked_after_the_texts_that_they_say(opened: Session) -> None:
    task = Chosen()
    items = list(task.items([{"context": text} for text in TEXTS], 0))
    (outcomes,) = run_task(task, items, [Candidate.of("full", opened)], batch=2)
    assert [(o.item, o.conditions["after"]) for o in outcomes] == [(n, after) for n in range(3) for after in (1, 2)]
    session = opened.fork()
    session.write(TEXTS[1])
    prompt, choice = session.prompt("It is"), session.encoder.continuation(" a big dog")
    (found,) = likelihoods(opened.backbone, [prompt], [session.reading], [[choice]])
    assert outcomes[2].parts["loss"] == pytest.approx((found[0].loss, found[0].tokens), rel=1e-4)
    assert outcomes[2].parts["loss"] != outcomes[3].parts["loss"]


def test_a_run_that_was_interrupted_goes_on_and_gives_the_same_rows(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where: dict[str, Any] = {"model": str(tiny_folder), "dtype": "float32", "batch": 1}
    methods = ["full:max_tokens=2", "nothing:max_tokens=2"]

    def kept(rows: Sequence[Result]) -> list[tuple[Any, ...]]:
        return [(r.dataset, r.method, r.metric, r.value, r.low, r.high, r.n, r.bytes) for r in rows]

    whole = evaluate(Questions(), str(data), methods, out=tmp_path / "whole", **where)
    assert {(row.metric, row.method, row.n) for row in whole} == {
        (metric, method, 6) for metric in METRICS for method in methods
    }
    assert kept(load_rows(tmp_path / "whole" / "rows.json")[1]) == kept(whole)
    asked: list[str] = []
    score = Questions.score

    def failing(self: Questions, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        asked.append(question.text)
        if len(asked) == 5:
            raise KeyboardInterrupt
        return score(self, question, answer)

    monkeypatch.setattr(Questions, "score", failing)
    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        evaluate(Questions(), str(data), methods, out=broken, **where)
    (file,) = broken.rglob("*.jsonl")
    file.write_text(file.read_text() + '{"item": 2, "dig')
    again = evaluate(Questions(), str(data), methods, out=broken, **where)
    assert len(asked) == 5 + 2 + 6
    assert kept(again) == kept(whole)


def test_a_row_is_kept_flat_and_read_again() -> None:
    row = Result("gap", "cats", "full", "loss", 1.0, 0.5, 1.5, 3, 10, 0.1, {"segments": 2}, {"tokens": 4}, False, 2)
    assert list(row.flat())[-5:] == ["seconds", "higher_is_better", "clusters", "segments", "tokens"]
    assert Result.of(row.flat()) == row
    with pytest.raises(InputError, match="no row of a result: it lacks bytes, dataset"):
        Result.of({"task": "gap"})


def test_a_run_of_other_settings_is_refused(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    where: dict[str, Any] = {"model": str(tiny_folder), "dtype": "float32", "limit": 1, "out": tmp_path / "out"}
    evaluate(Questions(), str(data), ["nothing:max_tokens=1"], **where)
    with pytest.raises(UsageError, match=r"other settings: seed 0 \(now 1\).*another --out"):
        evaluate(Questions(), str(data), ["nothing:max_tokens=1"], seed=1, **where)


def test_what_cannot_be_measured_is_refused(opened: Session, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"chosen measures likelihoods: 'full:contrast=0\.5' has no contrast"):
        Candidate.of("full:contrast=0.5", opened).decoding_for(Chosen())
    assert Candidate.of("window:recent=8;contrast=0.5", opened).decoding_for(Questions()) == Decoding(32, contrast=0.5)
    lacking = tmp_path / "lacking.jsonl"
    lacking.write_text(json.dumps({"context": "A.", "answers": ["b"]}) + "\n")
    with pytest.raises(InputError, match="Record 1 has no 'question'; its fields are answers, context"):
        evaluate(Questions(), str(lacking), ["full"], model=opened.backbone)
    lacking.write_text(json.dumps({"context": "A.", "question": "b"}) + "\n")
    with pytest.raises(InputError, match="gives no item for questions"):
        evaluate(Questions(), str(lacking), ["full"], model=opened.backbone)
    with pytest.raises(UsageError, match="batch must be 1 or more"):
        evaluate(Questions(), str(data), ["full"], batch=0)
    with pytest.raises(UnknownNameError, match=r"no task 'question'.*questions"):
        build("question")
    with pytest.raises(UnknownNameError, match=r"no option of questions 'tokens'"):
        build("questions", tokens=3)


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_a_task_is_final_and_says_what_it_measures(name: str) -> None:
    kind = BUILT_IN[name]
    (base,) = kind.__bases__
    assert issubclass(base, Task)
    assert inspect.isabstract(base)
    assert (kind.name, kind.__module__.rsplit(".", 1)[-1]) == (name, name.replace("-", "_"))
    assert kind.__doc__
    assert kind.__doc__.splitlines()[0].endswith(".")
    assert build(name).options() == defaults(kind)


def test_memories_are_made_to_fit_a_number_of_bytes(run: Run, data: Path, tiny_folder: Path) -> None:
    flags = ["--data", data, "--model", tiny_folder, "--limit", 3, "--json"]
    said = "full@,window,key-norm:max_tokens=1,every-kth@1KB"
    ran = run("evaluate", "questions", "--method", said, "--budget", "2KB", *flags)
    assert ran.code == 0, ran.err
    kept = {row["method"]: row["bytes"] for row in ran.json}
    assert set(kept) == {"full", "window@2KB", "key-norm:max_tokens=1@2KB", "every-kth@1KB"}
    assert kept["full"] > 2048 >= kept["window@2KB"] > kept["every-kth@1KB"] > 0
    assert 0 < kept["key-norm:max_tokens=1@2KB"] <= 2048
    refused = run("evaluate", "questions", "--method", "window@3", *flags)
    assert refused.code == 2
    assert "window" in refused.err
    assert run("evaluate", "questions", "--method", "window@much", *flags).code == 2


def test_tasks_are_measured_from_the_command_line(run: Run, data: Path, tiny_folder: Path, tmp_path: Path) -> None:
    flags = ["--data", data, "--model", tiny_folder, "--limit", 2, "--out", tmp_path / "out"]
    ran = run("evaluate", "questions", "--method", "full:max_tokens=2,nothing:max_tokens=2", *flags, "--json")
    assert ran.code == 0, ran.err
    assert {(row["task"], row["dataset"], row["method"], row["metric"], row["n"]) for row in ran.json} == {
        ("questions", "cats", f"{method}:max_tokens=2", metric, 4)
        for method in ("full", "nothing")
        for metric in METRICS
    }
    kept = [row for row in ran.json if row["method"].startswith("full")]
    assert all(row["reading_bytes"] > row["bytes"] and row["reread_tokens"] == 0 for row in kept)
    table = " ".join(run("evaluate", "questions", "--method", "full:max_tokens=2", *flags).out.split())
    assert "exact match" in table
    assert "0 tokens" in table
    assert run("evaluate", "questons", "--method", "full", *flags).code == 2
    assert "questions" in run("tasks").out


# ---- the run's folder ----


def test_answers_of_other_weights_and_other_options_are_not_those_of_a_run(
    opened: Session, data: Path, tmp_path: Path
) -> None:
    method, out = load(opened.backbone, method="compressed-kv").method, tmp_path / "out"
    save_pretrained(method, tmp_path / "trained")

    def files(said: str, limit: int = 0) -> int:
        evaluate(Questions(), str(data), [said], model=opened.backbone, out=out, limit=limit)
        return len(list(out.rglob("*.jsonl")))

    assert [files(str(tmp_path / "trained")), files(str(tmp_path / "trained"))] == [1, 1]
    with torch.no_grad():
        next(method.parameters()).add_(1)
    save_pretrained(method, tmp_path / "trained")
    assert files(str(tmp_path / "trained")) == 2
    # The longer text has another `every`.
    assert [files("every-kth:max_tokens=1@6KB", limit) for limit in (1, 1, 3)] == [3, 3, 4]


def test_data_of_one_name_are_told_apart(opened: Session, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for folder in ("squad", "nq", "squad"):
        file = tmp_path / folder / "dev.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"context": f"A {folder}.", "question": "What?", "answers": ["A"]}) + "\n")
        evaluate(Questions(), str(file), ["nothing:max_tokens=1"], model=opened.backbone, out=out)
    assert {(row.dataset, row.metric) for row in load_rows(out / "rows.json")[1]} == {
        (name, metric) for name in ("dev", "nq-dev") for metric in METRICS
    }
    assert {file.parent.name for file in out.rglob("*.jsonl")} == {"dev", "nq-dev"}


def test_rows_say_how_each_of_them_was_measured(opened: Session, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for method, limit in (("nothing:max_tokens=1", 1), ("window:max_tokens=1", 2), ("nothing:max_tokens=1", 3)):
        evaluate(Questions(), str(data), [method], model=opened.backbone, limit=limit, skip=3 - limit, out=out)
    about, _ = load_rows(out / "rows.json")
    assert (about["seed"], about["dtype"]) == (0, "float32")
    assert [(run["method"], run["limit"], run["skip"]) for run in about["runs"]] == [
        ("window:max_tokens=1", 2, 1),
        ("nothing:max_tokens=1", 3, 0),
    ]
    assert {"sinks", "recent"} <= about["runs"][0]["resolved"].keys()
    evaluate(Integrity(writes=2, memories=1), str(data), ["nothing:max_tokens=1"], model=opened.backbone, out=out)
    assert load_rows(out / "rows.json")[0]["runs"][-1]["options"]["writes"] == 2


def test_memories_are_made_first_and_their_rows_are_kept_one_by_one(
    opened: Session, data: Path, tmp_path: Path
) -> None:
    where: dict[str, Any] = {"model": opened.backbone, "limit": 1, "out": tmp_path / "out"}
    with pytest.raises(UnknownNameError, match="windov"):
        evaluate(Questions(), str(data), ["nothing", "full", "windov"], **where)
    assert not (tmp_path / "out").exists()

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(Questions(), str(data), ["nothing:max_tokens=1", "full"], progress=interrupt, **where)
    assert {row.method for row in load_rows(tmp_path / "out" / "rows.json")[1]} == {"nothing:max_tokens=1"}


def test_an_answer_may_hold_any_line_separator(tmp_path: Path) -> None:
    item = Item(("a",), (Question("b"),))
    outcome = Outcome(0, "d", 0, {}, "a\u2028b\x85c\u2029", {"f1": (1.0, 1.0)}, 1, 2, 0.5, 0.5)
    append(tmp_path / "answers.jsonl", [outcome])
    assert known(tmp_path / "answers.jsonl", [item], ["d"]) == {0: [outcome]}


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_task_tells_the_options_that_are_not_at_their_defaults(name: str) -> None:
    """By them answers are told apart, so one that a later release adds must not drop those of before."""
    assert build(name).chosen() == {}
    for option, default in defaults(find(name)).items():
        if isinstance(default, bool):
            assert build(name, **{option: not default}).chosen() == {option: not default}


def test_a_field_at_its_default_changes_no_digest() -> None:
    later = [("later", int, dataclasses.field(default=0))]
    grown = dataclasses.make_dataclass("Question", later, bases=(Question,), frozen=True)
    asked, other = Question("b", conditions={"n": 1}), Question("b", conditions={"n": 2})
    assert digest_of([Item(("a",), (asked,))]) == digest_of([Item(("a",), (grown("b", conditions={"n": 1}),))])
    assert digest_of([asked]) != digest_of([other])
    assert digest_of([asked]) != digest_of([grown("b", conditions={"n": 1}, later=2)])
    assert digest_of([asked]) != digest_of([dataclasses.replace(asked, use_chat_template=False)])


# ---- items that cannot be measured ----


def test_contrast_of_a_memory_that_changes_no_weight_is_refused_before_anything_is_written(
    opened: Session, data: Path, tmp_path: Path
) -> None:
    for said in ("window:contrast=0.5;max_tokens=1", "nothing:contrast=0.5;max_tokens=1"):
        with pytest.raises(UsageError, match="this memory changes none"):
            evaluate(Questions(), str(data), ["full", said], model=opened.backbone, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    tuned = "last-ffn:steps=1;contrast=0.5;max_tokens=1"
    assert evaluate(Questions(), str(data), [tuned, tuned], model=opened.backbone, limit=1)


def test_a_memory_that_is_given_text_as_turns_has_other_answers(
    opened: Session, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"model": opened.backbone, "limit": 1, "out": tmp_path / "out"}
    for turns in (True, False):
        monkeypatch.setattr(KeyNorm, "text_format", "turn" if turns else "text")
        evaluate(Questions(), str(data), ["key-norm:max_tokens=1"], **given)
    assert len(list((tmp_path / "out" / "answers").rglob("*.jsonl"))) == 2


def test_an_item_that_cannot_be_answered_is_named(opened: Session) -> None:
    good, empty = Question("It is", choices=(" a", " b")), Question("It is", choices=(" a", ""))
    one = Candidate.of("full", opened)
    with pytest.raises(InputError, match="'full' cannot answer question 2 of item 2: A choice is empty"):
        run_task(Chosen(), [Item(("A.",), (good,)), Item(("A.",), (good, empty))], [one])
    with pytest.raises(InputError, match=r"'full' cannot be given a text of item 2: .*not UTF-8"):
        run_task(Chosen(), [Item(("A.",), (good,)), Item(("\ud800",), (good,))], [one])


def test_a_choice_must_fit_the_model(opened: Session) -> None:
    prompt, most = opened.encoder.continuation("It is"), opened.backbone.positions
    long = torch.zeros(most, dtype=torch.long)
    with pytest.raises(InputError, match="leave no room for an answer"):
        likelihoods(opened.backbone, [prompt], [Reading()], [[prompt, long[len(prompt) - 1 :]]])
    (found,) = likelihoods(opened.backbone, [prompt], [Reading()], [[prompt, long[len(prompt) :]]])
    assert found[1].tokens == most - len(prompt)


def test_a_memory_that_keeps_more_than_its_bytes_is_refused(opened: Session, data: Path) -> None:
    # The text alone fits; what is put around it takes nothing.
    assert all(row.bytes <= 17408 for row in evaluate(Questions(), str(data), ["full@17KB"], model=opened.backbone))
    with pytest.raises(BudgetError, match=r"9216 bytes is too small for 'full', which needs at least \d{5}"):
        evaluate(Questions(), str(data), ["full@9KB"], model=opened.backbone)
    # Options that are given go before those that would fit.
    with pytest.raises(BudgetError, match=r"8192 bytes is too small for 'window', which needs"):
        evaluate(Questions(), str(data), ["window:recent=400@8KB"], model=opened.backbone)


# ---- steps ----


def test_progress_moves_with_every_text_and_answer(opened: Session, data: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    where: dict[str, Any] = {"model": opened.backbone, "out": tmp_path / "out"}
    task = Integrity(writes=3, memories=2)
    methods = ["nothing:max_tokens=1", "window:max_tokens=1"]
    evaluate(task, str(data), methods, progress=lambda *done: told.append(done), **where)
    assert told == [(n, 24) for n in (*range(0, 13, 2), *range(12, 25, 2))]
    told.clear()
    evaluate(task, str(data), methods, progress=lambda *done: told.append(done), **where)
    assert told == [(12, 24), (24, 24)]
