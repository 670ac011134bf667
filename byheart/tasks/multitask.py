"""Eleven tasks of text classification and multiple choice, without any memory of a text.

The prompts of "Empirical Study on Updating Key-Value Memories in Transformer Feed-forward Layers" (Qiu et al. 2024,
arXiv 2402.12233), for a model whose feed-forward keys or values were tuned. Records have byheart's schema; their
``dataset`` chooses the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from byheart.errors import InputError, UnknownNameError
from byheart.rows import Row, means
from byheart.task import Answer, Fields, Item, Part, Question, Task, required, shuffled


@dataclass(frozen=True)
class Prompt:
    """How a data set is asked, and which words answer.

    Args:
        labels: said for a record's choices, in their order; else the choices themselves.
        said: other words for choices of these names.
        usual: a record's choices where it has none, in the order in which the data set numbers them.
    """

    shape: str
    labels: tuple[str, ...] = ()
    said: Mapping[str, str] = field(default_factory=dict)
    usual: tuple[str, ...] = ()


_LETTERS = tuple("ABCDEFGH")
_PAIR = "### Premise:{context} ### Hypothesis:{question} ### Relationship "
_RELATION = _PAIR + "(entailment, contradiction or neutral):"
_ENTAILED = _PAIR + "(choose between 'entailment' and 'not entailment'):"
_NEWSGROUPS = Prompt("### Sentence:{context} ### Class:")
_RACE = Prompt(
    "Read Context and answer question ### Context:{context} ### Question:{question} ### Options:{options}### Choice:",
    _LETTERS,
)
_COMMONSENSE = Prompt(
    "According to the Question, select the best choice among the Options. "
    "### Question:{question} ### Options:{options} ### Choice:",
    _LETTERS,
)
PROMPTS = {
    **dict.fromkeys(("newsgroups20", "20_newsgroups_fixed"), _NEWSGROUPS),
    "boolq": Prompt(
        "Read the Passage and answer the Question with true or false "
        "### Question:{question} ### Passage: {context} ### Answer:",
        said={"yes": "true", "no": "false", "True": "true", "False": "false"},
        usual=("false", "true"),
    ),
    "copa": Prompt(
        "### Premise:{context} ### Choice1:{choices[0]} ### Choice2:{choices[1]} ### Question:{question} ### Choice:",
        ("Choice1", "Choice2"),
    ),
    "cb": Prompt(_RELATION, usual=("entailment", "contradiction", "neutral")),
    "mnli": Prompt(_RELATION, usual=("entailment", "neutral", "contradiction")),
    "rte": Prompt(_ENTAILED, usual=("entailment", "not_entailment")),
    "qnli": Prompt(_ENTAILED, usual=("entailment", "not_entailment")),
    "wnli": Prompt(_ENTAILED, usual=("not_entailment", "entailment")),
    **dict.fromkeys(("race", "race_middle", "race_high", "dream"), _RACE),
    **dict.fromkeys(("commonsense_qa", "commonsenseqa"), _COMMONSENSE),
    "swag": Prompt(
        "Select the correct sentence that best completes the Passage below. "
        "### Passage:{context} ### Options:{options}### Choice:",
        _LETTERS,
    ),
}


class Multitask(Task):
    """Accuracy of classification and multiple choice by the model's own weights (the feed-forward study).

    The likeliest label answers, behind a blank. ``published``: the words that the model goes on with must be the
    label, letter by letter; only blanks around them are taken away.

    Args:
        words: a passage is cut after so many; 0 is never.
        each_token: compare labels by their loss a token, not in all.
    """

    name = "multitask"
    max_tokens = 20

    def __init__(self, *, words: int = 300, each_token: bool = False, published: bool = False) -> None:
        self.words, self.each_token, self.published = words, each_token, published
        self.asks = "words" if published else "choices"

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One a record; nothing is written."""
        for number, record in shuffled(records, seed):
            name = str(required(record, "dataset", number)).lower()
            if name not in PROMPTS:
                raise UnknownNameError("prompt of multitask for the data set", name, PROMPTS)
            yield Item((), (self._question(record, number, name),))

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """Whether the label is the right one."""
        if self.published:
            return {"accuracy": float(answer.text == question.answers[0])}
        said = question.choices[answer.best(each_token=self.each_token)]
        return {"accuracy": float(said.strip() == question.answers[0])}

    def summary(self, rows: Sequence[Row]) -> list[Row]:
        """The mean over data sets, where there are several."""
        return means(rows, over="set", metric="accuracy")

    def _question(self, record: Fields, number: int, name: str) -> Question:
        prompt = PROMPTS[name]
        choices = [str(each) for each in record.get("choices") or prompt.usual or required(record, "choices", number)]
        labels = prompt.labels[: len(choices)] or tuple(prompt.said.get(each, each) for each in choices)
        filled = {
            name: required(record, name, number) for name in ("context", "question") if f"{{{name}}}" in prompt.shape
        }
        if self.words and "context" in filled:
            filled["context"] = _cut(str(filled["context"]), self.words)
        options = ". ".join(f"{letter}.{each}" for letter, each in zip(_LETTERS, choices, strict=False))
        place = required(record, "label", number)
        if len(choices) < 2 or place not in range(len(labels)):
            raise InputError(
                f"Record {number} has {len(choices)} choices and the label {place!r}; give one of two or more."
            )
        return Question(
            prompt.shape.format(**filled, choices=choices, options=options),
            (labels[place],),
            tuple(f" {label}" for label in labels),
            framed=False,
            at={"set": name},
        )


def _cut(text: str, words: int) -> str:
    """The text as it is where it is no longer, else its first words."""
    return text if len(text.split()) <= words else " ".join(text.split()[:words])
