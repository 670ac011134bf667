"""The tasks of CCM, FastMem and the feed-forward study, and what their papers' code does that is easily missed."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from byheart.data.prompts import prompts
from byheart.data.records import rows
from byheart.errors import InputError, UnknownNameError, UsageError
from byheart.evaluation.evaluate import evaluate
from byheart.evaluation.grid_search import GRID, search, settings
from byheart.evaluation.metrics import summary as summary_scores
from byheart.evaluation.results import Result, means
from byheart.evaluation.rows import make_rows
from byheart.evaluation.run_folder import Outcome
from byheart.evaluation.runner import parts_of
from byheart.evaluation.task import Answer, Item, Part, Question
from byheart.evaluation.tasks import build
from byheart.evaluation.tasks.dialogue import Dialogue
from byheart.evaluation.tasks.faithful import Faithful
from byheart.evaluation.tasks.icl import ICL
from byheart.evaluation.tasks.multitask import Multitask
from byheart.evaluation.tasks.profile import Profile
from byheart.evaluation.tasks.questions import SHORT, Questions
from byheart.evaluation.tasks.stream import Stream
from byheart.evaluation.tasks.summary import Summary
from tests.conftest import Run
from tests.naive.scores import label_scores

Record = dict[str, Any]
SWAPPED = {
    "question": "who wrote it ?",
    "org_context": "Ann wrote it.",
    "org_answer": ["Ann"],
    "sub_context": "Bob wrote it.",
    "sub_answer": ["Bob"],
}
TRAP = {"prompt": 'End in "more": He said: no', "classes": "[' sore.', ' more.']", "answer_index": 1}
NLI = {"context": "It rains.", "question": "It is wet."}
TALK = {"meta": {"turns": ["a", "b", "c", "d", "e"], "persona": ["I sing.", "I run."]}}
RATED = {
    "id": "1",
    "input": "What is the score?",
    "output": "4",
    "profile": [{"id": str(n), "text": f"review {n}", "score": str(n)} for n in (1, 2, 3)],
}
FILED = {
    "id": "1",
    "input": "Which category? categories: [sports, food & drink, travel] article: a cup final",
    "output": "sports",
    "profile": [{"id": "7", "text": "a soup", "title": "Soup", "category": "food & drink"}],
}


def only(items: Sequence[Item]) -> tuple[Item, Question]:
    """The one item and its first question."""
    (item,) = items
    return item, item.questions[0]


def data(folder: Path, records: Sequence[Mapping[str, Any]]) -> str:
    file = folder / "set.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


def row(value: float, **at: Any) -> Result:
    return Result("t", "d", "m", "accuracy", value, value - 0.1, value + 0.1, 4, 8, 0.5, at)


# ---- records of the hub ----


def test_records_of_the_hub_say_their_data_set_and_a_script_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(name: str, split: str) -> list[Record]:
        if name == "a/script":
            raise RuntimeError("Dataset scripts are no longer supported")
        return [{"summary": split}, {"dataset": "own"}]

    package = ModuleType("datasets")
    package.__spec__ = ModuleSpec("datasets", None, origin="x")
    package.load_dataset = opened  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", package)
    assert rows("a/b:test") == [{"dataset": "a/b", "summary": "test"}, {"dataset": "own"}]
    with pytest.raises(InputError, match="'a/script' could not be read from the hub: Dataset scripts"):
        rows("a/script")


def test_questions_without_an_answer_are_left_out() -> None:
    squad = [
        {"context": "A cat.", "question": f"Who {n}?", "answers": {"text": texts, "answer_start": []}}
        for n, texts in enumerate((["cat", "A cat"], []))
    ]
    item, asked = only(list(Questions().items(squad, 0)))
    assert (len(item.questions), asked.text, asked.answers) == (1, "Who 0?", ("cat", "A cat"))
    assert set(Questions.sources) == {"squad"}


def test_an_answer_is_judged_in_five_ways_of_which_none_decides() -> None:
    question = Question("Who?", ("cat", "the old cat"))
    found = Questions().score(question, Answer("It is the old cat", losses=(3.0,), tokens=(2,)))
    assert found == {
        "contains": 1.0,
        "exact_match": 0.0,
        "f1": pytest.approx(2 / 3),
        "answer_words": 5.0,
        "gold_loss": Part(3.0, 2),
    }
    assert {metric: Questions.higher_is_better.get(metric, True) for metric in found} == {
        **dict.fromkeys(("contains", "exact_match", "f1"), True),
        "answer_words": None,
        "gold_loss": False,
    }


def test_the_first_right_answer_that_has_words_is_the_one_whose_loss_counts() -> None:
    records = [{"context": "A cat.", "question": "Who?", "answers": answers} for answers in (["", "cat"], ["", " "])]
    (item,) = Questions().items(records, 0)
    assert sorted(question.choices for question in item.questions) == [(), ("cat",)]
    assert "gold_loss" not in Questions().score(Question("Who?", ("",)), Answer("x"))


def test_a_short_answer_is_asked_for_in_words_that_the_run_says() -> None:
    record = {"context": "A cat.", "question": "Who?", "answers": ["cat"]}
    _, asked = only(list(Questions(instruction="short").items([record], 0)))
    assert (asked.text, asked.prompt) == ("Who?", f"Who?\n{SHORT}")
    assert Questions(instruction="short").options() == {"instruction": SHORT, "texts": 1}
    _, asked = only(list(Questions(instruction="One word.").items([record], 0)))
    assert asked.prompt == "Who?\nOne word."
    # What was measured before there was the option stays comparable.
    _, asked = only(list(Questions().items([record], 0)))
    assert (asked.prompt, Questions().options()) == ("Who?", {"instruction": "", "texts": 1})


# ---- faithful ----


def test_questions_about_several_texts_of_one_memory() -> None:
    records = [
        {"context": context, "question": f"{context}?", "answers": [context]} for context in ("One", "Two", "Three")
    ]
    two, one = Questions(texts=2).items(records, 0)
    assert (len(two.texts), len(one.texts)) == (2, 1)
    assert [question.text for question in two.questions] == [f"{text}?" for text in two.texts]
    assert {*two.texts, *one.texts} == {"One", "Two", "Three"}


def test_the_context_alone_is_written_and_the_question_asked_with_one_mark() -> None:
    item, asked = only(list(Faithful().items([SWAPPED], 0)))
    assert item.texts == ("Bob wrote it.",)
    assert asked.answers == ("Bob",)
    assert asked.text.endswith("\nQuestion: who wrote it?")
    assert "Bob" not in asked.text
    item, asked = only(list(Faithful(swapped=False, context=True).items([SWAPPED], 0)))
    assert (item.texts, asked.answers) == (("Ann wrote it.",), ("Ann",))
    assert asked.text.endswith("\nContext: Ann wrote it.\nQuestion: who wrote it?")
    ours = {"context": "Bob wrote it.", "question": "who wrote it", "answers": ["Bob", "Bobby"]}
    item, asked = only(list(Faithful().items([ours], 0)))
    assert (item.texts, asked.answers) == (("Bob wrote it.",), ("Bob", "Bobby"))
    official = {"input": "who wrote it", "context": "A.", "answer": "Ann", "sub_context": "B.", "sub_answer": "Bob"}
    assert only(list(Faithful().items([official], 0)))[0].texts == ("B.",)
    assert only(list(Faithful(swapped=False).items([official], 0)))[0].texts == ("A.",)


def test_hotpots_paragraphs_have_a_line_each_without_titles() -> None:
    hub = {"title": ["T", "U"], "sentences": [["One.", "Two."], ["Three."]]}
    own = [["T", ["One.", "Two."]], ["U", ["Three."]]]
    for context in (hub, own):
        item, _ = only(list(Faithful().items([{"context": context, "question": "Which?", "answer": "no"}], 0)))
        assert item.texts == ("One. Two.\nThree.",)


def test_memotrap_is_cut_at_its_first_colon_and_candidates_lose_their_full_stop() -> None:
    item, asked = only(list(Faithful().items([TRAP], 0)))
    assert item.texts == ('End in "more".',)
    assert asked.text.endswith('\nSentence: He said: no\nCandidates: "sore" or "more"')
    assert asked.answers == ("more",)
    ours = {"context": "", "question": TRAP["prompt"], "choices": ["sore.", "more."], "label": 1, "answers": ["more."]}
    assert list(Faithful().items([ours], 0)) == [item]
    _, asked = only(list(Faithful(context=True).items([TRAP], 0)))
    assert '\nInstruction: End in "more"\n' in asked.text


@pytest.mark.parametrize(
    ("said", "accuracy", "failures"),
    [
        ("The answer is: Ann. No, THE ANSWER IS: the Bob.", 1, 0),
        ("The answer is: Bob. No, the answer is: Ann.", 0, 0),
        ("Bob", 0, 1),
    ],
)
def test_the_last_stated_answer_counts(said: str, accuracy: float, failures: float) -> None:
    assert Faithful().score(Question("?", ("Bob",)), Answer(said)) == {"accuracy": accuracy, "failures": failures}


def test_an_answer_that_is_made_to_begin_so_is_no_failure_and_no_success() -> None:
    assert Faithful(primed=True).score(Question("?", ("Bob",)), Answer("The answer is: Bob.")) == {"accuracy": 1.0}


@pytest.mark.parametrize("record", [SWAPPED, TRAP])
def test_context_aware_decoding_is_set_against_the_question_without_the_context(record: Record) -> None:
    _, repeated = only(list(Faithful(context=True).items([record], 0)))
    _, bare = only(list(Faithful().items([record], 0)))
    assert repeated.unconditional == bare.text != repeated.text
    # Without the context in the question the memory alone is what the other side lacks.
    assert bare.unconditional == ""


def test_published_hits_are_those_of_the_released_code() -> None:
    unstated = Answer("Who knows")
    assert Faithful(published=True).score(Question("?", ("no",)), unstated)["accuracy"] == 1
    assert Faithful().score(Question("?", ("no",)), unstated)["accuracy"] == 0


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"context": "A.", "question": "b"}, "Record 1 has no 'answer'"),
        ({**TRAP, "prompt": "no"}, "Record 1 has no ':' between"),
        ({**TRAP, "classes": "[' sore.'"}, r"Record 1 has no list in 'classes', but \"\[' sore"),
        ({**TRAP, "answer_index": 2}, "Record 1 has 2 candidates, but its answer is number 2"),
    ],
)
def test_faithful_says_which_record_it_cannot_ask(record: Record, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(Faithful().items([record], 0))


# ---- multitask ----


@pytest.mark.parametrize(
    ("dataset", "label", "right"),
    [
        ("cb", 1, "contradiction"),
        ("mnli", 1, "neutral"),
        ("rte", 1, "not_entailment"),
        ("qnli", 0, "entailment"),
        ("wnli", 0, "not_entailment"),
        ("boolq", 1, "true"),
    ],
)
def test_labels_are_numbered_as_each_data_set_does(dataset: str, label: int, right: str) -> None:
    item, asked = only(list(Multitask().items([{**NLI, "dataset": dataset, "label": label}], 0)))
    assert item.texts == ()
    assert asked.answers == (right,)
    assert not asked.use_chat_template


def test_a_records_own_choices_decide_what_its_label_means() -> None:
    for choices, label in ((["entailment", "neutral", "contradiction"], 2), (["contradiction", "neutral"], 0)):
        record = {**NLI, "dataset": "cb", "choices": choices, "label": label}
        assert only(list(Multitask().items([record], 0)))[1].answers == ("contradiction",)
    record = {**NLI, "dataset": "boolq", "choices": ["yes", "no"], "label": 1}
    _, asked = only(list(Multitask().items([record], 0)))
    assert (asked.answers, asked.choices) == (("false",), (" true", " false"))


def test_prompts_are_the_published_ones() -> None:
    def asked(**record: Any) -> Question:
        return only(list(Multitask().items([record], 0)))[1]

    copa = asked(dataset="COPA", context="It fell.", question="cause", choices=["Wind.", "Luck."], label=1)
    assert copa.text == "### Premise:It fell. ### Choice1:Wind. ### Choice2:Luck. ### Question:cause ### Choice:"
    assert (copa.choices, copa.answers) == ((" Choice1", " Choice2"), ("Choice2",))
    race = asked(dataset="race_high", context="C {x}", question="Q", choices=["a", "b", "c", "d"], label=3)
    assert race.text == (
        "Read Context and answer question ### Context:C {x} ### Question:Q ### Options:A.a. B.b. C.c. D.d### Choice:"
    )
    assert race.answers == ("D",)
    rte = asked(**NLI, dataset="rte", label=0)
    assert rte.text == (
        "### Premise:It rains. ### Hypothesis:It is wet. "
        "### Relationship (choose between 'entailment' and 'not entailment'):"
    )
    five = asked(dataset="commonsense_qa", question="Q", choices=list("vwxyz"), label=4)
    assert five.choices[-1] == " E"
    # SWAG reads a sixth field in the released code, and fails.
    assert asked(dataset="swag", context="He", choices=list("abcd"), label=0).text.endswith(
        "A.a. B.b. C.c. D.d### Choice:"
    )
    assert {"newsgroups20", "boolq", "copa", "cb", "rte", "qnli", "race", "mnli", "wnli", "swag"} <= prompts().keys()


def test_a_long_passage_is_cut_and_a_short_one_left_as_it_is() -> None:
    record = {"dataset": "rte", "context": "a\nb  c d", "question": "e", "label": 0}
    assert "Premise:a b c ###" in only(list(Multitask(words=3).items([record], 0)))[1].text
    assert "Premise:a\nb  c d ###" in only(list(Multitask(words=4).items([record], 0)))[1].text


def test_the_likeliest_label_answers_and_published_words_must_be_the_label() -> None:
    asked = Question("?", ("no",), (" yes", " no"))
    found = Answer(losses=(2.0, 3.0), tokens=(1, 3))
    assert Multitask().score(asked, found)["accuracy"] == 0
    assert Multitask(each_token=True).score(asked, found)["accuracy"] == 1
    assert (Multitask().asks, Multitask(published=True).asks) == ("choices", "words")
    published = Multitask(published=True)
    assert [published.score(asked, Answer(said))["accuracy"] for said in ("no", "No", "no.")] == [1, 0, 0]


def test_answers_in_words_are_generated_and_any_right_one_is_a_hit() -> None:
    record = {"dataset": "squad_v2", "context": "A.", "question": "Who?", "answers": ["Ann", "Bo"]}
    task = Multitask(published=True)
    _, asked = only(list(task.items([record], 0)))
    assert (asked.choices, asked.answers) == ((), ("Ann", "Bo"))
    assert [task.score(asked, Answer(said))["accuracy"] for said in ("Bo", "Ann", "bo")] == [1, 1, 0]
    with pytest.raises(InputError, match=r"Record 1 of 'squad_v2' is answered in words.* -o published=true"):
        list(Multitask().items([record], 0))


@pytest.mark.parametrize("published", [False, True], ids=["likeliest", "published"])
def test_macro_f1_counts_each_label_once(published: bool) -> None:
    """Of labels that are right or said: three times yes and once no are right, a stray word is a label of its own."""
    right = ["yes", "yes", "yes", "no"]
    said = ["yes", "yes", "no", "no"] if not published else ["yes", "yes", "no", "maybe"]
    task = Multitask(published=published)
    outcomes = []
    for n, (gold, word) in enumerate(zip(right, said, strict=True)):
        answer = (
            Answer(word) if published else Answer(losses=(0.0, 1.0) if word == "yes" else (1.0, 0.0), tokens=(1, 1))
        )
        question = Question("?", (gold,), (" yes", " no"), conditions={"set": "boolq"})
        parts = parts_of(task, question, answer)
        outcomes.append(Outcome(n, "", 0, question.conditions, "", parts, 0, 0, 0.0, 0.0))
    accuracy, macro = make_rows(task, "data", "nothing", {"nothing": outcomes})
    # yes: precision 1, recall 2/3, F1 4/5. no: 2/3, or 0 where the right one is told as a third label.
    expected = (4 / 5 + 0 + 0) / 3 if published else (4 / 5 + 2 / 3) / 2
    assert macro.value == pytest.approx(expected) == label_scores(said, right).macro_f1
    assert (accuracy.metric, macro.metric, macro.conditions["set"], macro.n) == ("accuracy", "macro_f1", "boolq", 4)
    # Some draws have fewer labels, but none has none.
    assert 0 <= macro.low <= macro.value <= macro.high <= 1
    rows = [accuracy, macro, *(replace(row, conditions={**row.conditions, "set": "rte"}) for row in (accuracy, macro))]
    assert [row.metric for row in task.summary(rows)] == ["mean_accuracy", "mean_macro_f1"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**NLI, "dataset": "cb"}, "Record 1 has no 'label'"),
        ({**NLI, "dataset": "cb", "label": -1}, "Record 1 has 3 choices and the label -1"),
        ({"dataset": "cb", "context": "A.", "label": 0}, "Record 1 has no 'question'"),
        ({**NLI, "dataset": "race", "label": 0}, "Record 1 has no 'choices'"),
    ],
)
def test_multitask_says_which_record_it_cannot_ask(record: Record, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(Multitask().items([record], 0))
    with pytest.raises(UnknownNameError, match=r"no prompt of multitask for the data set 'ret'\. Did you mean 'rte'"):
        list(Multitask().items([{**NLI, "dataset": "ret", "label": 0}], 0))


# ---- dialogue ----


def test_a_reply_is_predicted_after_exactly_so_many_turns() -> None:
    item, _ = only(list(Dialogue(turns=(1, 3, 4), persona=False).items([TALK], 0)))
    assert item.texts == ("a\n", "b\n", "c\n")
    told = [
        (question.conditions["turn"], question.after, question.text, question.choices) for question in item.questions
    ]
    assert told == [(1, 1, "b", ("c",)), (3, 3, "d", ("e",))]
    assert list(Dialogue(turns=(4,)).items([TALK], 0)) == []


def test_a_persona_is_of_the_one_who_speaks_second_and_may_be_one_text() -> None:
    item, _ = only(list(Dialogue(turns=(0, 1, 2, 3)).items([TALK], 0)))
    assert item.texts == ("I sing.\nI run.\n", "a\n", "b\n")
    told = [
        (question.conditions["turn"], question.after, question.text, question.choices) for question in item.questions
    ]
    assert told == [(0, 1, "a", ("b",)), (2, 3, "c", ("d",))]
    talk = {"meta": {**TALK["meta"], "persona": "I sing."}}
    assert only(list(Dialogue().items([talk], 0)))[0].texts == ("I sing.\n", "a\n", "b\n")


def test_both_speakers_personas_say_whose_they_are() -> None:
    talk = {"meta": {**TALK["meta"], "persona": {"user": ["I sing."], "assistant": ["I run."]}}}
    assert only(list(Dialogue().items([talk], 0)))[0].texts[0] == "user: I sing.\nassistant: I run.\n"
    talk = {"meta": {**TALK["meta"], "persona": {"user": "I sing."}}}
    item, asked = only(list(Dialogue(turns=(1,)).items([talk], 0)))
    assert (item.texts[0], asked.choices) == ("user: I sing.\n", ("c",))


def test_replies_losses_are_pooled_and_perplexity_is_their_exponential() -> None:
    assert Dialogue().score(Question("?"), Answer(losses=(6.0,), tokens=(3,))) == {"loss": Part(6.0, 3)}
    loss = row(2.0, turn=1).mapped("loss", float)
    (made,) = Dialogue().summary([loss])
    assert (made.metric, made.value, made.low, made.high) == ("perplexity", *map(math.exp, (2.0, 1.9, 2.1)))
    assert made.conditions == {"turn": 1}


# ---- icl ----


def shown(name: str, count: int, labels: int = 2) -> list[Record]:
    return [{"dataset": name, "context": f"{name} {n}", "answers": [f"l{n % labels}"]} for n in range(count)]


def test_a_query_is_never_among_its_demonstrations_and_each_record_is_asked_once() -> None:
    task = ICL(demonstrations=(0, 2, 4), queries=3)
    items = list(task.items([*shown("x", 7), *shown("y", 5)], 3))
    asked: list[str] = []
    for item in items:
        queries = [question for question in item.questions if question.after == 0]
        others = {"x": 7, "y": 5}[item.questions[0].conditions["set"]] - len(queries)
        assert len(item.texts) == len({*item.texts}) == min(4, others)
        assert not item.use_chat_template
        assert all(text.endswith(("\nl0\n", "\nl1\n")) for text in item.texts)
        for question in item.questions:
            assert f"{question.text}{question.answers[0]}\n" not in item.texts
            assert question.after == question.conditions["demonstrations"]
            assert question.choices == ("l0", "l1")
        asked += [question.text for question in queries]
    assert len(asked) == len({*asked}) == 12
    assert [item.questions[0].conditions["set"] for item in items] == ["x", "y", "x", "y", "x"]
    assert items == list(task.items([*shown("x", 7), *shown("y", 5)], 3))
    assert items != list(task.items([*shown("x", 7), *shown("y", 5)], 4))


def test_a_data_set_of_one_label_is_left_out() -> None:
    items = list(ICL().items([*shown("one", 4, labels=1), *shown("x", 4)], 0))
    assert {question.conditions["set"] for item in items for question in item.questions} == {"x"}


def test_labels_are_compared_by_their_loss_a_token() -> None:
    asked = Question("?", ("l1",), ("l0", "l1"))
    assert ICL().score(asked, Answer(losses=(2.0, 3.0), tokens=(1, 3))) == {"accuracy": 1}


def test_each_data_set_counts_once_in_the_mean_and_mrpc_not_at_all() -> None:
    rows = [
        row(value, demonstrations=k, set=name)
        for k, name, value in ((0, "x", 0.2), (0, "y", 0.4), (0, "glue-mrpc", 1.0), (4, "x", 0.6), (4, "y", 1.0))
    ]
    made = ICL().summary(rows)
    assert [(each.metric, each.conditions, each.n) for each in made] == [
        ("mean_accuracy", {"demonstrations": 0}, 8),
        ("mean_accuracy", {"demonstrations": 4}, 8),
    ]
    assert [each.value for each in made] == pytest.approx([0.3, 0.8])
    # Two independent intervals of half a width 0.1: that of their mean is 0.1 / sqrt(2).
    assert made[0].high - made[0].value == pytest.approx(0.1 / math.sqrt(2))
    assert means(rows[:1], over="set", metric="accuracy") == []


# ---- profile ----


def test_a_profile_is_written_entry_by_entry_and_ratings_have_errors() -> None:
    task = Profile(entries=(1, 3, 9))
    item, asked = only(list(task.items([RATED], 0)))
    assert sorted(item.texts) == [f'the score for the review: "review {n}" is "{n}".\n' for n in (1, 2, 3)]
    assert [question.after for question in item.questions] == [1, 3]
    assert asked.choices == ("1", "2", "3", "4", "5")
    losses = Answer(losses=(5.0, 1.0, 5.0, 5.0, 5.0), tokens=(1,) * 5)
    assert task.score(asked, losses) == {"accuracy": 0, "absolute_error": 2, "squared_error": 4}
    (root,) = task.summary([row(4.0, entries=1).mapped("squared_error", float)])
    assert (root.metric, root.value) == ("rmse", 2.0)


def test_categories_are_those_that_the_input_lists() -> None:
    item, asked = only(list(Profile().items([FILED], 0)))
    assert item.texts == ('the category for the article: "a soup" is "food & drink".\n',)
    assert asked.choices == ("sports", "food & drink", "travel")
    empty = {**FILED, "input": "Which category? categories: [sports, , travel,] article: a cup final"}
    assert only(list(Profile().items([empty], 0)))[1].choices == ("sports", "travel")
    found = Profile().score(asked, Answer(losses=(1.0, 2.0, 3.0), tokens=(1, 4, 1)))
    assert found == {"accuracy": 1, "macro_f1/sports": Part(2.0, 2.0)}
    unlisted = [{**FILED, "input": "Which?", "output": name} for name in ("b", "a")]
    assert only(list(Profile().items(unlisted, 0))[:1])[1].choices == ("a", "b")
    assert list(Profile(words=3).items([FILED], 0)) == []


def test_profile_says_which_record_it_cannot_ask() -> None:
    with pytest.raises(InputError, match="Record 1 has the output 'cars', which is none of: sports, food & drink"):
        list(Profile().items([{**FILED, "output": "cars"}], 0))
    with pytest.raises(
        InputError, match="Record 1 has a profile whose entries have none of LaMP's fields: text and cat"
    ):
        list(Profile().items([{**FILED, "profile": [{"body": "a"}]}], 0))
    with pytest.raises(InputError, match="Record 1 has no 'profile'"):
        list(Profile().items([{**FILED, "profile": []}], 0))


# LaMP's seven tasks; the records are made up for this test.
LAMP = {
    1: ({"title": "On cats", "abstract": "Cats sit."}, "[2]", 'a paper by the same author: "On cats".\n'),
    4: ({"text": "one two three four", "title": "Up"}, "Muck wins", 'the title for the text: "one two" is "Up".\n'),
    5: ({"title": "On cats", "abstract": "a b c"}, "On dogs", 'the title for the abstract: "a b" is "On cats".\n'),
    6: ({"text": "one two three", "title": "Hello"}, "Lunch", 'the title for the text: "one two" is "Hello".\n'),
    7: ({"text": "so very glad"}, "so glad", 'a text by the same author: "so very".\n'),
}


@pytest.mark.parametrize("task", LAMP)
def test_lamps_own_pairs_of_files_are_asked(task: int, tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("rouge_score")
    entry, right, text = LAMP[task]
    question = {"id": "1", "input": "What? [1]: a [2]: b", "profile": [{"id": "2", **entry}]}
    (tmp_path / "dev_questions.json").write_text(json.dumps([question]))
    (tmp_path / "dev_outputs.json").write_text(
        json.dumps({"task": f"LaMP_{task}", "golds": [{"id": "1", "output": right}]})
    )
    (found,) = Profile(words=2 if task > 1 else 9).items(rows(str(tmp_path / "dev_questions.json")), 0)
    assert found.texts == (text,)
    made = Profile(entries=[0, 1])
    measured = evaluate(
        made, str(tmp_path / "dev_questions.json"), ["nothing"], model=str(tiny_folder), dtype="float32", batch=1
    )
    metrics = {"accuracy", "macro_f1"} if task == 1 else {"rouge1", "rouge_l"}
    assert {row.metric for row in measured} == metrics
    # One task may be asked of several data sets.
    assert made.asks == "choices"


def test_words_of_a_profile_are_scored_by_rouge_and_not_mixed_with_labels() -> None:
    pytest.importorskip("rouge_score")
    asked = Question("?", ("Muck wins the race",), about={"kind": "headline"})
    assert Profile().score(asked, Answer("Muck wins")) == pytest.approx({"rouge1": 2 / 3, "rouge_l": 2 / 3})
    tweet = {"id": "1", "input": "?", "output": "b", "profile": [{"text": "a"}]}
    with pytest.raises(InputError, match="answered in words and some by a label; give each LaMP alone"):
        list(Profile().items([FILED, tweet], 0))


# ---- summary ----


def test_a_summary_is_compared_with_the_gold_one_and_its_article(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rouge_score")
    record = {"article": "The cats ran far away.", "summary": "Cats ran."}
    item, asked = only(list(Summary(dataset="xsum", words=3).items([record], 0)))
    assert item.texts == ("The cats ran",)
    assert asked.text == "Summarize the above article in 1 sentence."
    found = Summary().score(asked, Answer("Cats run."))
    # Without a stemmer "ran" and "run" are as different as with one, "cats" and "cat" would be one word.
    assert found == {"rouge1": 0.5, "rouge2": 0.0, "rouge_l": 0.5}
    assert Summary().score(asked, Answer("Cat ran."))["rouge1"] == 0.5
    given: list[Any] = []
    monkeypatch.setattr(summary_scores, "bert_precision", lambda *texts: given.append(texts) or 0.9)
    assert Summary(bertscore=True).score(asked, Answer("Cats."))["bert_precision"] == 0.9
    assert given == [("Cats.", "The cats ran")]
    monkeypatch.setattr(summary_scores, "factkb", lambda *texts, model: given.append((*texts, model)) or 0.1)
    for option, model in ((True, "bunsenfeng/FactKB"), ("a/folder", "a/folder")):
        assert Summary(factkb=option).score(asked, Answer("Cats."))["factkb"] == 0.1
        assert given.pop() == ("Cats.", "The cats ran", model)
    with pytest.raises(UnknownNameError, match=r"no prompt of summary for the data set 'xsun'\. Did you mean 'xsum'"):
        list(Summary().items([{**record, "dataset": "xsun"}], 0))
    with pytest.raises(InputError, match=r"Record 1 has no 'dataset', .* give -o dataset=NAME .* cnndm, xsum, wikihow"):
        list(Summary().items([record], 0))
    # The hub's records say where they come from.
    hub = {**record, "dataset": "EdinburghNLP/xsum"}
    assert only(list(Summary().items([hub], 0)))[1].text == "Summarize the above article in 1 sentence."
    hub = {**record, "dataset": "abisee/cnn_dailymail"}
    assert "in 3 sentences" in only(list(Summary(dataset="cnndm").items([hub], 0)))[1].text


# ---- stream ----


def test_a_piece_is_predicted_before_it_is_written() -> None:
    words = [f"w{n}" for n in range(14)]
    item, _ = only(list(Stream(words=4, given=1, block=2).items([{"context": "\n".join(words)}], 0)))
    assert not item.use_chat_template
    assert item.texts == ("w0\nw1\nw2\nw3", "\nw4\nw5\nw6\nw7")
    assert [(q.text, q.choices, q.after, q.conditions["pieces"]) for q in item.questions] == [
        ("w0", ("\nw1\nw2\nw3",), 0, 0),
        ("\nw4", ("\nw5\nw6\nw7",), 1, 0),
        ("\nw8", ("\nw9\nw10\nw11",), 2, 2),
    ]
    assert Stream().score(Question("?"), Answer(losses=(6.0,), tokens=(3,))) == {"loss": Part(6.0, 3)}
    assert len(only(list(Stream(words=4, given=1, pieces=1).items([{"context": "a b c d e f g h"}], 0)))[0].texts) == 0
    assert list(Stream().items([{"context": "a b c"}], 0)) == []


# ---- all of them, on a tiny model ----


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("dialogue", "turns", [-1], "turns must be numbers from 0 on"),
        ("icl", "demonstrations", [], "demonstrations must be numbers from 0 on"),
        ("profile", "words", 0, "words 1 or more"),
        ("stream", "given", 64, "given must be between 0 and words"),
        ("stream", "wrds", 64, "no option of stream 'wrds'"),
    ],
)
def test_options_that_cannot_be_are_refused(name: str, option: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(name, **{option: value})


@pytest.mark.parametrize(
    ("name", "records", "options", "metrics"),
    [
        ("faithful", [SWAPPED], {}, {"accuracy", "failures"}),
        ("multitask", [{**NLI, "dataset": "rte", "label": 0}], {}, {"accuracy", "macro_f1"}),
        ("multitask", [{**NLI, "dataset": "rte", "label": 0}], {"published": True}, {"accuracy", "macro_f1"}),
        ("dialogue", [TALK], {"turns": [0, 2]}, {"loss", "perplexity"}),
        (
            "icl",
            [*shown("x", 3), *shown("y", 3)],
            {"demonstrations": [0, 1], "queries": 2},
            {"accuracy", "mean_accuracy"},
        ),
        ("profile", [RATED], {"entries": [2]}, {"accuracy", "absolute_error", "squared_error", "rmse"}),
        ("stream", [{"context": "a b c d e f g h i"}], {"words": 3, "given": 1}, {"loss", "perplexity"}),
        ("stream", [{"context": "a b c d e f g h i"}], {"every": 4}, {"loss", "perplexity"}),
    ],
)
def test_memories_are_measured(
    tiny_folder: Path, tmp_path: Path, name: str, records: list[Record], options: dict[str, Any], metrics: set[str]
) -> None:
    said = "nothing:max_tokens=2" if build(name, **options).asks == "words" else "nothing"
    rows = evaluate(build(name, **options), data(tmp_path, records), [said], model=str(tiny_folder), dtype="float32")
    assert {each.metric for each in rows} == metrics
    assert all(math.isfinite(each.value) and each.low <= each.value <= each.high for each in rows)


def test_words_that_are_generated_too_are_scored_by_rouge_beside_the_same_likelihoods(
    tiny_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("rouge_score")
    asked = Question("?", ("the cats ran",), ("the cats ran",))
    answer = Answer("A cat running", (6.0,), (3,))
    assert Dialogue(rouge=True).score(asked, answer) == {"loss": Part(6.0, 3), "rouge_l": 1 / 3, "answer_words": 3.0}
    assert ICL(rouge=True).score(asked, answer) == {"accuracy": 1.0, "rouge_l": 1 / 3, "answer_words": 3.0}
    classes = [*shown("x", 3), *shown("y", 3)]
    for name, records, options, more in (
        ("dialogue", [TALK], {"turns": [0, 2]}, {"rouge_l", "answer_words"}),
        ("icl", classes, {"demonstrations": [0, 1], "queries": 2}, {"rouge_l", "answer_words", "mean_rouge_l"}),
    ):
        where: dict[str, Any] = {"model": str(tiny_folder), "dtype": "float32"}
        plain, rouge = (
            evaluate(build(name, **options, rouge=rouge), data(tmp_path, records), [said], **where)
            for rouge, said in ((False, "full"), (True, "full:max_tokens=2"))
        )
        assert {row.metric for row in rouge} - {row.metric for row in plain} == more
        found = {(row.metric, str(row.conditions)): row.value for row in rouge}
        assert [found[row.metric, str(row.conditions)] for row in plain] == pytest.approx([row.value for row in plain])


def test_nothing_is_written_of_an_item_without_texts(tiny_folder: Path, tmp_path: Path) -> None:
    """Every memory that knows nothing yet is the bare model."""
    records = [{**NLI, "dataset": "rte", "label": n % 2, "context": f"It rains {n}."} for n in range(3)]
    methods = ["nothing", "full", "window:sinks=1;recent=7", "last-ffn:steps=1"]
    rows = evaluate(Multitask(), data(tmp_path, records), methods, model=str(tiny_folder), dtype="float32", batch=2)
    for metric in ("accuracy", "macro_f1"):
        assert len({each.value for each in rows if each.metric == metric}) == 1
    assert [each.n for each in rows] == [3] * 8


def test_answers_of_other_options_are_asked_again(tiny_folder: Path, tmp_path: Path) -> None:
    record = {**SWAPPED, "sub_answer": ["no"]}
    where: dict[str, Any] = {"model": str(tiny_folder), "dtype": "float32", "out": tmp_path / "out"}
    found = [
        evaluate(Faithful(published=published), data(tmp_path, [record]), ["full:max_tokens=2"], **where)[0].value
        for published in (False, True, False)
    ]
    assert found == [0, 1, 0]


# ---- search ----


def test_a_grid_is_all_combinations_and_the_published_one_has_sixty() -> None:
    assert settings("last-ffn", {"steps": ["1", "2"], "contrast": ["0.5"]}) == [
        "last-ffn:steps=1;contrast=0.5",
        "last-ffn:steps=2;contrast=0.5",
    ]
    assert len(settings("last-ffn", GRID)) == 60
    assert "last-ffn:learning_rate=1e-5;steps=10;kl=0.1" in settings("last-ffn", GRID)
    with pytest.raises(UnknownNameError, match=r"no option of last-ffn 'step'\. Did you mean 'steps'"):
        settings("last-ffn", {"step": ["1"]})
    with pytest.raises(UsageError, match="kl has no values to try"):
        settings("last-ffn", {"kl": []})


def test_settings_are_tried_on_some_items_and_the_best_comes_first(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [{**SWAPPED, "sub_context": f"Bob wrote {n}."} for n in range(4)]
    asked: list[str] = []

    def score(self: Faithful, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        asked.append(question.text)
        return {"accuracy": float(len(asked) > 4)}

    monkeypatch.setattr(Faithful, "score", score)
    where: dict[str, Any] = {
        "model": str(tiny_folder),
        "dtype": "float32",
        "out": tmp_path / "out",
        "limit": 2,
        "skip": 1,
    }
    grid = {"steps": ["1", "2", "3"], "max_tokens": ["1"]}
    rows = search(Faithful(), data(tmp_path, records), grid=grid, **where)
    assert [(each.method, each.value, each.n) for each in rows] == [
        ("last-ffn:steps=3;max_tokens=1", 1.0, 2),
        ("last-ffn:steps=1;max_tokens=1", 0.0, 2),
        ("last-ffn:steps=2;max_tokens=1", 0.0, 2),
    ]
    assert search(Faithful(), data(tmp_path, records), grid=grid, **where) == rows
    assert len(asked) == 6
    with pytest.raises(UnknownNameError, match=r"no metric of faithful 'accurcy'\. Did you mean 'accuracy'"):
        search(Faithful(), data(tmp_path, records), grid=grid, metric="accurcy", **where)
    with pytest.raises(InputError, match="gives no item for faithful after 9"):
        search(Faithful(), data(tmp_path, records), grid=grid, **{**where, "skip": 9})


def test_a_search_from_the_command_line(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    flags = [
        "--data",
        data(tmp_path, [SWAPPED]),
        "--model",
        tiny_folder,
        "--grid",
        "steps=1,2",
        "--grid",
        "max-tokens=1",
    ]
    ran = run("search", *flags)
    assert ran.code == 0, ran.err
    assert "last-ffn:steps=2;max_tokens=1" in ran.out
    assert "The best: --method 'last-ffn:steps=1;max_tokens=1'. Measure it on other items, with --skip 100." in ran.err
    found = run("search", *flags, "--json", "--limit", 0).json
    assert [each["method"] for each in found] == [f"last-ffn:steps={n};max_tokens=1" for n in (1, 2)]
    assert run("search", *flags, "--grid", "steps").code == 2
