import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from byheart.errors import InputError, UnknownNameError, UsageError
from byheart.evaluation.evaluate import evaluate
from byheart.evaluation.method_spec import Candidate
from byheart.evaluation.results import Result
from byheart.evaluation.runner import run
from byheart.evaluation.task import Answer, Fields, Item, Part, Question, ShareLeft, Task
from byheart.evaluation.tasks import build
from byheart.evaluation.tasks.edit import Edit
from byheart.evaluation.tasks.integrity import Integrity
from byheart.evaluation.tasks.longbench import LongBench
from byheart.evaluation.tasks.needle import Needle
from byheart.evaluation.tasks.recall import Recall
from byheart.evaluation.tasks.retention import Retention
from byheart.protocol.forgetting import share_left
from byheart.session.opening import load
from byheart.text.fact_text import FactText

NAMES = ["Muck", "Rex", "Old Tom Cat", "Bo", "Lu", "a name of four words"]


def cats(names: Sequence[str] = NAMES) -> list[Fields]:
    """Two texts' worth of words each, one question about each; the last one's answer is long."""
    asked = [
        {"context": f"Cat {n} is called {name}. It is old.", "question": f"Who is {n}?", "answers": [name, "cat"]}
        for n, name in enumerate(names)
    ]
    return [*asked, {**asked[0], "question": "And who not?", "answers": []}]


def items(task: Task, records: Sequence[Fields], seed: int = 0) -> list[Item]:
    found = list(task.items(records, seed))
    assert found == list(task.items(records, seed))
    return found


def row(metric: str, value: float, **at: Any) -> Result:
    return Result("task", "data", "full", metric, value, value - 0.1, value + 0.1, 4, 10, 1.0, at)


# ---- retention and integrity ----


def test_retention_asks_before_between_and_after_the_same_distractors() -> None:
    found = items(Retention(distractors=3, every=2, words=6), cats())
    assert len(found) == 5
    for item in found:
        assert len(item.texts) == 4
        assert [(q.after, q.conditions["distractors"]) for q in item.questions] == [(1, 0), (3, 2), (4, 3)]
        assert item.questions[0].answers[0] in item.texts[0]
        assert all(len(text.split()) <= 6 for text in item.texts[1:])
        assert all(text.endswith("\n") for text in item.texts)
        assert item.texts[0][:5] not in {text[:5] for text in item.texts[1:]}
    shared = [item.texts[1:] for item in found if item.texts[0] not in _texts_of_distractors(found)]
    assert shared
    assert len(set(shared)) == 1
    assert found != items(Retention(distractors=3, every=2, words=6), cats(), seed=1)


def _texts_of_distractors(found: Sequence[Item]) -> set[str]:
    starts = {text[:5] for item in found for text in item.texts[1:]}
    return {item.texts[0] for item in found if item.texts[0][:5] in starts}


def test_a_hit_is_the_first_answer_case_included() -> None:
    question = Question("Who?", ("Rex", "dog"))
    judged = [Retention().score(question, Answer(text)) for text in ("It is Rex!", "rex", "dog")]
    assert [each["accuracy"] for each in judged] == [1, 0, 0]
    assert [each["f1"] for each in judged] == [0.5, 1, 1]


def test_texts_before_the_items_own_fill_the_memory() -> None:
    fresh, filled = (items(Retention(distractors=2, every=1, words=6, before=n), cats()) for n in (0, 2))
    for item, twin in zip(filled, fresh, strict=True):
        assert item.texts[2:] == twin.texts
        assert len({text[:5] for text in item.texts}) == 5
        assert [q.after for q in item.questions] == [3, 4, 5]
        assert [q.conditions for q in item.questions] == [q.conditions for q in twin.questions]
    with pytest.raises(InputError, match="6 different texts give no 6 distractors"):
        items(Retention(distractors=2, before=4), cats())


def by_blocks(blocks: int) -> ShareLeft:
    return lambda *, before, later: share_left(blocks, before=before, later=later)


def test_the_law_is_that_of_the_pool_and_falls_to_what_nothing_reaches() -> None:
    rows = [row("accuracy", value, distractors=n) for n, value in ((0, 0.6), (2, 0.5), (4, 0.1))]
    rows.append(row("f1", 0.6, distractors=0))
    floor = {"nothing": [row("accuracy", 0.2, distractors=n) for n in (0, 2, 4)]}
    # Three blocks hold the text and two more; the two after those each drop a third.
    law = Retention().expect(rows, floor, by_blocks(3))
    assert [(r.metric, r.conditions["distractors"]) for r in law] == [("law", 0), ("law", 2), ("law", 4)]
    assert [r.value for r in law] == pytest.approx([0.6, 0.6, 0.2 + 0.4 * (2 / 3) ** 2])
    assert not any(r.has_interval for r in law)
    full = Retention(before=3).expect(rows, floor, by_blocks(3))
    assert [r.value for r in full] == pytest.approx([0.6, 0.2 + 0.4 * (2 / 3) ** 2, 0.2 + 0.4 * (2 / 3) ** 4])


def test_there_is_no_law_without_a_rule_or_a_floor() -> None:
    rows = [row("accuracy", 0.6, distractors=0)]
    assert Retention().expect(rows, {"nothing": rows}, lambda *, before, later: None) == []
    assert Retention().expect(rows, {"nothing": []}, by_blocks(3)) == []


def test_the_law_stands_beside_the_pool_alone(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "cats.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in cats()))
    pool = "latent-pool:slots=4;blocks=2;longest=64;shortest=2;max_tokens=2"
    task = Retention(distractors=2, every=1)
    rows = evaluate(task, str(file), [pool, "full:max_tokens=2"], model=str(tiny_folder), dtype="float32", limit=2)
    assert {(r.method, r.conditions["distractors"]) for r in rows if r.metric == "law"} == {(pool, n) for n in range(3)}
    assert {r.method for r in rows} == {"nothing", pool, "full:max_tokens=2"}


def test_integrity_asks_about_the_latest_text_by_blocks_of_writes() -> None:
    found = items(Integrity(writes=12, block=5, memories=3), cats())
    assert len({item.texts for item in found}) == len(found) == 3
    for item in found:
        texts = item.texts
        assert [q.after for q in item.questions] == list(range(1, 13))
        assert [q.conditions["writes"] for q in item.questions] == [5] * 5 + [10] * 5 + [12] * 2
        assert all(q.answers[0] in text for q, text in zip(item.questions, texts, strict=True))
        assert all(text.endswith("It is old.\n") for text in texts)
        # All texts come once before one comes again.
        assert len({*texts[:5]}) == len({*texts[5:10]}) == 5


def test_short_answers_are_needed() -> None:
    with pytest.raises(InputError, match="5 different texts give no 5 distractors"):
        items(Retention(distractors=5), cats(NAMES[:5]))
    with pytest.raises(InputError, match=r"None of 7 records .* 3 words or fewer; give more answer_words"):
        items(Integrity(), cats(["one two three four"] * 6))
    with pytest.raises(InputError, match="Record 1 has no 'question'; its fields are answers, context"):
        items(Retention(distractors=1), [{"context": "A.", "answers": ["b"]}])
    squad = {"context": "A cat.", "question": "Who?", "answers": {"text": [], "answer_start": []}}
    assert len(items(Integrity(memories=1), [*cats(), squad])) == 1
    for options in ({"every": 0}, {"before": -1}):
        with pytest.raises(UsageError, match="must be"):
            build("retention", **options)
    with pytest.raises(UsageError, match="must be 1 or more"):
        build("integrity", block=0)


# ---- needle and recall ----


def test_a_needle_stands_at_its_depth() -> None:
    words = " ".join(f"w{n}." if n % 10 == 0 else f"w{n}" for n in range(1000))
    task = Needle(lengths=(100, 400), depths=(0, 0.5, 1), needles=2)
    found = items(task, [{"context": words}])
    assert [tuple(item.questions[0].conditions.values()) for item in found] == [
        (length, depth) for _ in range(2) for length in (100, 400) for depth in (0, 50, 100)
    ]
    for item in found:
        (text,), (question,) = item.texts, item.questions
        length, depth = question.conditions.values()
        city = question.text.removeprefix("What is the secret number of ").removesuffix("?")
        needle = f"The secret number of {city} is {question.answers[0]}."
        before, after = (part.split() for part in text.split(needle))
        assert len(before) + len(after) == length
        assert length / 20 >= length * depth / 100 - len(before) >= 0
        # The longer text has a sentence that ends near enough.
        assert length == 100 or depth != 50 or before[-1].endswith(".")
    assert len({item.texts for item in found}) == 12
    assert task.score(found[0].questions[0], Answer(f"It is {found[0].questions[0].answers[0]}")) == {"accuracy": 1}
    with pytest.raises(InputError, match="2 words, but the longest text is to have 400"):
        items(task, [{"context": "two words"}])
    for options in ({"depths": [2]}, {"lengths": []}):
        with pytest.raises(UsageError, match="must be"):
            build("needle", **options)


def pairs() -> list[Fields]:
    told = [{f"key{n}-{k}": f"value{n}-{k}" for k in range(30)} for n in range(4)]
    return [
        {"context": json.dumps(p), "question": f"key{n}-7", "answers": [p[f"key{n}-7"]]} for n, p in enumerate(told)
    ]


def test_recall_keeps_the_asked_pair_among_so_many() -> None:
    found = items(Recall(), pairs())
    assert [item.questions[0].conditions["pairs"] for item in found] == [5, 10, 25] * 4
    places = set()
    for item in found:
        told, question = json.loads(item.texts[0]), item.questions[0]
        key = question.text.split('"')[1]
        assert len(told) == question.conditions["pairs"]
        assert (told[key],) == question.answers
        places.add(list(told).index(key))
    assert len(places) > 4
    assert Recall().score(found[0].questions[0], Answer(f"It is {found[0].questions[0].answers[0]}.")) == {
        "accuracy": 1
    }
    with pytest.raises(InputError, match=r"Record \d has 30 pairs in 'context'; 31 are asked for"):
        items(Recall(pairs=(31,)), pairs())
    with pytest.raises(InputError, match="Record 1: its 'context' is not JSON"):
        items(Recall(), [{**pairs()[0], "context": "{"}])
    with pytest.raises(InputError, match="Record 1: its 'context' has no key 'key9'"):
        items(Recall(), [{**pairs()[0], "question": "key9"}])
    with pytest.raises(UsageError, match="pairs must be 1 or more"):
        build("recall", pairs=[0])


# ---- edits ----

COUNTERFACT: Fields = {
    "question": "Sydney Newman, who works for",
    "answers": ["ESPN"],
    "meta": {
        "ground_truth": "BBC",
        "rephrase": "Sydney Newman goes to work at",
        "locality_prompt": "Stefan Kornelius works for",
        "locality_answer": "BBC",
    },
}
ROME: Fields = {
    "case_id": 0,
    "requested_rewrite": {
        "prompt": "{}, who works for",
        "subject": "Sydney Newman",
        "target_new": {"str": "ESPN"},
        "target_true": {"str": "BBC"},
    },
    "paraphrase_prompts": ["Sydney Newman goes to work at"],
    "neighborhood_prompts": ["Stefan Kornelius works for"],
}
ZSRE: Fields = {
    "question": "Which family is Elekmania of?",
    "answers": ["Geometridae"],
    "meta": {
        "ground_truth": ["Asteraceae"],
        "rephrase": "What family is Elekmania?",
        "locality_prompt": "what is a saddle valve",
        "locality_answer": "valve for liquid",
    },
}
MEND: Fields = {
    "src": "Which family is Elekmania of?",
    "rephrase": "What family is Elekmania?",
    "answers": ["Geometridae"],
    "alt": "Another",
    "loc": "what is a saddle valve",
    "loc_ans": "valve for liquid",
}


def asked(item: Item) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(q.about["metric"], q.text, q.choices) for q in item.questions]


def test_an_edit_is_the_same_in_all_formats() -> None:
    (one,), (official,) = items(Edit(), [COUNTERFACT]), items(Edit(), [ROME])
    assert one == official
    assert one.texts == ("Sydney Newman, who works for ESPN.\n",)
    assert not one.use_chat_template
    both = (" ESPN", " BBC")
    assert asked(one) == [
        ("efficacy", "Sydney Newman, who works for", both),
        ("paraphrase", "Sydney Newman goes to work at", both),
        ("specificity", "Stefan Kornelius works for", both),
    ]
    (one,), (official,) = items(Edit(), [ZSRE]), items(Edit(), [MEND])
    assert one == official
    assert one.texts == ("Which family is Elekmania of? Geometridae.\n",)
    assert asked(one) == [
        ("efficacy", "Which family is Elekmania of?", (" Geometridae",)),
        ("paraphrase", "What family is Elekmania?", (" Geometridae",)),
        # As MEMIT asks it: the mark is its own.
        ("specificity", "what is a saddle valve?", (" valve for liquid",)),
    ]
    assert not any(question.use_chat_template for question in one.questions)
    assert items(Edit(), [{**MEND, "answers": []}])[0].texts == ("Which family is Elekmania of? Another.\n",)


def test_counterfact_compares_losses_a_token_and_turns_round_for_neighbours() -> None:
    (item,) = items(Edit(), [ROME])
    # In all, the true object has the lower loss; a token, the new one.
    answer = Answer(losses=(6, 4), tokens=(3, 1), likeliest=(0, 0))
    found = [Edit().score(question, answer) for question in item.questions]
    assert found == [{"efficacy": Part(1, 1)}, {"paraphrase": Part(1, 1)}, {"specificity": Part(0, 1)}]
    even = Answer(losses=(4, 4), tokens=(1, 1), likeliest=(0, 0))
    assert [Edit().score(question, even) for question in item.questions][2] == {"specificity": Part(0, 1)}


def test_zsre_counts_tokens_and_an_edit_of_many_prompts_once() -> None:
    (item,) = items(Edit(), [ZSRE])
    half = Answer(losses=(9,), tokens=(4,), likeliest=(2,))
    assert Edit().score(item.questions[2], half) == {"specificity": Part(0.5, 1)}
    (many,) = items(Edit(), [{**ROME, "neighborhood_prompts": ["A works for", "B works for", "C", "D"]}])
    parts = [Edit().score(q, Answer(losses=(2, 1), tokens=(1, 1), likeliest=(0, 0))) for q in many.questions[2:]]
    assert parts == [{"specificity": Part(0.25, 0.25)}] * 4


def test_edits_are_written_one_after_another_and_then_asked() -> None:
    found = items(Edit(edits=2), [ROME, ZSRE, MEND, COUNTERFACT, ZSRE])
    assert [(len(item.texts), len(item.questions)) for item in found] == [(2, 6), (2, 6)]
    assert {(q.after, q.conditions["edits"]) for item in found for q in item.questions} == {(None, 2)}
    with pytest.raises(InputError, match="1 records give no 2 edits"):
        items(Edit(edits=2), [ROME])
    with pytest.raises(UsageError, match="edits must be 1 or more"):
        build("edit", edits=0)
    for record, field in [
        ({**ROME, "neighborhood_prompts": []}, "neighborhood_prompts"),
        ({**ROME, "requested_rewrite": {"prompt": "{}"}}, r"requested_rewrite\.subject"),
        ({**MEND, "loc": ""}, "loc"),
        ({**ZSRE, "meta": {}}, r"meta\.rephrase"),
    ]:
        with pytest.raises(InputError, match=f"Record 1 has no '{field}'"):
            items(Edit(), [record])


def test_what_is_written_marks_its_subject_and_its_target() -> None:
    for record, subject, target in (
        (ROME, "Sydney Newman", "ESPN"),
        ({**MEND, "subject": "no such"}, "", str(MEND["answers"][0]) if MEND.get("answers") else str(MEND["alt"])),
        (ZSRE, "", "Geometridae"),
        ({**ZSRE, "meta": {**ZSRE["meta"], "subject": "Elekmania"}}, "Elekmania", "Geometridae"),
    ):
        (item,) = items(Edit(), [record])
        (text,) = item.texts
        assert isinstance(text, FactText)
        assert (text.subject, text.target, text.demonstrations) == (subject, target, "")


def test_the_nearest_other_edits_are_demonstrated_in_turn(tmp_path: Path) -> None:
    def other(name: str, new: str) -> Fields:
        rewrite = {**ROME["requested_rewrite"], "subject": name, "target_new": {"str": new}}
        return {**ROME, "requested_rewrite": rewrite, "paraphrase_prompts": [f"{name} goes to work at"]}

    # Made up for this test, in CounterFact's form.
    others = [ROME, other("Bo", "NBC"), other("Sydney Lee", "ESPN"), other("Al", "CBS")]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(f"{json.dumps(record)}\n" for record in others))
    (item,) = items(Edit(demonstrations=str(file), shown=2), [ROME])
    (text,) = item.texts
    assert isinstance(text, FactText)
    # The edit itself is not shown; the nearest of the others stands last. A copy is first, then a rephrasing.
    first, second, rest = text.demonstrations.split("\n\n")
    assert first.startswith("New Fact: Al, who works for CBS.\nPrompt:\nAl, who works for CBS")
    assert second == "New Fact: Sydney Lee, who works for ESPN.\nPrompt:\nSydney Lee goes to work at ESPN"
    assert rest == ""
    (item,) = items(Edit(demonstrations=str(file), shown=5), [{**ROME, "case_id": 9}])
    assert item.texts[0].demonstrations.count("New Fact") == 3
    assert "Stefan Kornelius works for BBC" not in item.texts[0].demonstrations
    with pytest.raises(UsageError, match="shown must be above 0"):
        build("edit", shown=0)


def test_the_score_of_edits_is_the_harmonic_mean() -> None:
    rows = [row("efficacy", 0.9), row("paraphrase", 0.6), row("specificity", 0.6)]
    (score,) = Edit().summary(rows)
    assert (score.metric, score.n) == ("score", 12)
    assert score.value == pytest.approx(3 / (1 / 0.9 + 2 / 0.6))
    assert (score.low, score.high) == (pytest.approx(3 / (1 / 0.8 + 2 / 0.5)), pytest.approx(3 / (1 + 2 / 0.7)))
    assert Edit().summary(rows[:2]) == []


# ---- LongBench ----


def longbench(dataset: str, **more: Any) -> Fields:
    given = {"input": "Why {now}?", "context": "One.\n\nTwo  {three} four.", "answers": ["Paragraph 3"]}
    return {**given, "dataset": dataset, "length": 4, "language": "en", "all_classes": None, "_id": "0", **more}


@pytest.mark.parametrize(
    ("dataset", "before", "after", "max_tokens", "use_chat_template"),
    [
        ("qasper", "based on the information in the article, write", "Question: Why {now}?\n\nAnswer:", 128, True),
        ("musique", "The following are given passages.\n", "Question: Why {now}?\nAnswer:", 32, True),
        ("gov_report", "Report:\n", "Now, write a one-page summary of the report.\n\nSummary:", 512, True),
        ("trec", "Here are some examples of questions.\n\n", "\nWhy {now}?", 64, False),
        ("triviaqa", "The following are some examples.\n\n", "\n\nWhy {now}?", 32, False),
        ("samsum", "The following are some examples.\n\n", "\n\nWhy {now}?", 128, False),
        ("passage_retrieval_en", "is from.\n\n", '"Paragraph 2", etc.\n\nThe answer is: ', 32, True),
    ],
)  # fmt: skip
def test_the_official_prompt_is_cut_after_the_context(
    dataset: str, before: str, after: str, max_tokens: int, use_chat_template: bool
) -> None:
    (item,) = items(LongBench(), [longbench(dataset, all_classes=["City"])])
    (text,), (question,) = item.texts, item.questions
    assert before in text
    assert item.use_chat_template == use_chat_template
    assert text.endswith("One.\n\nTwo  {three} four.")
    assert question.text.endswith(after) if use_chat_template else question.text == after
    assert (question.max_tokens, question.use_chat_template, question.conditions) == (
        max_tokens,
        use_chat_template,
        {"subset": dataset},
    )


def test_longbench_keeps_the_last_words_and_scores_by_data_set() -> None:
    (item,) = items(LongBench(words=2), [longbench("trec", all_classes=["City", "Name"], answers=["City"])])
    assert item.texts[0].endswith("questions.\n\n{three} four.")
    (question,) = item.questions
    assert LongBench().score(question, Answer("City\nName")) == {"score": 1}
    assert LongBench().score(question, Answer("City or Name")) == {"score": 0.5}
    with pytest.raises(InputError, match="Record 1 has no 'all_classes'"):
        items(LongBench(), [longbench("trec")])
    with pytest.raises(InputError, match="Record 1 has no 'input'"):
        items(LongBench(), [longbench("qmsum", input="")])
    assert len(items(LongBench(), [longbench("multi_news", input="")])) == 1
    with pytest.raises(UnknownNameError, match=r"no English LongBench data set \(record 1\) 'qaspar'.*'qasper'"):
        items(LongBench(), [longbench("qaspar")])
    with pytest.raises(UsageError, match="words must be 0 or more"):
        build("longbench", words=-1)
    average = LongBench().summary([row("score", 0.2, subset="a"), row("score", 0.4, subset="b")])
    assert [(r.metric, r.value, r.n, r.conditions) for r in average] == [("average", pytest.approx(0.3), 8, {})]


# ---- measured ----


def test_answers_have_the_tokens_of_their_question(tiny_folder: Path) -> None:
    opened = load(str(tiny_folder), method="full", dtype="float32")
    limits = (None, 3, 5, 3)
    texts = [Item(("A cat.",), (Question("Who?", ("b",), max_tokens=limit),)) for limit in limits]
    memory = opened.fork()
    memory.write("A cat.")

    def answers(spec: str) -> list[str]:
        return [outcome.text for outcome in run(Retention(), texts, [Candidate.of(spec, opened)])[0]]

    assert answers("full") == [memory.ask("Who?", max_tokens=limit or Retention.max_tokens) for limit in limits]
    # What a method is asked with goes before all.
    assert answers("full:max_tokens=2") == [memory.ask("Who?", max_tokens=2)] * 4


@pytest.mark.parametrize(
    ("task", "records", "metrics"),
    [
        (Retention(distractors=1), cats(), {"accuracy", "f1"}),
        (Integrity(writes=3, block=2, memories=2), cats(), {"accuracy", "f1"}),
        (Needle(lengths=(5,), depths=(0, 0.5), needles=1), cats(), {"accuracy", "mean_accuracy"}),
        (Recall(pairs=(2,)), pairs()[:1], {"accuracy"}),
        (Edit(), [ROME], {"efficacy", "paraphrase", "specificity", "score"}),
        (Edit(edits=2), [ZSRE, MEND], {"efficacy", "paraphrase", "specificity", "score"}),
        (LongBench(), [longbench("samsum"), longbench("musique")], {"score", "average"}),
    ],
    ids=lambda value: value.name if isinstance(value, Task) else "",
)
def test_a_tiny_model_is_measured(
    task: Task, records: Sequence[Fields], metrics: set[str], tiny_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    method = "full" if task.asks == "choices" else "full:max_tokens=2"
    rows = evaluate(task, str(file), [method], model=str(tiny_folder), dtype="float32", limit=2, out=tmp_path / "out")
    assert {row.metric for row in rows} == metrics
    assert all(0 <= row.low <= row.value <= row.high <= 1 for row in rows)
    assert all(Result.of(row.flat()) == row for row in rows)
