"""How data sets of classification and multiple choice are asked, and which words answer.

The prompts of "Empirical Study on Updating Key-Value Memories in Transformer Feed-forward Layers" (Qiu et al. 2024,
arXiv 2402.12233): the same to train on as to measure with. Records have byheart's schema; their ``dataset`` chooses
the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from byheart.data.records import Fields, required
from byheart.errors import InputError, UnknownNameError

WORDS = 300


@dataclass(frozen=True)
class Prompt:
    """How a data set is asked, and which words answer.

    Args:
        labels: the words for a record's choices, in their order; else the choices themselves.
        aliases: other words for choices of these names.
        usual: the choices of records that have none, in the order in which the data set numbers them.
    """

    shape: str
    labels: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
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
        aliases={"yes": "true", "no": "false", "True": "true", "False": "false"},
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


@dataclass(frozen=True)
class FilledPrompt:
    """A record's prompt, the words that may answer it, and the right ones; the model says them after a space."""

    dataset: str
    text: str
    labels: tuple[str, ...]
    right: str


def fill_prompt(record: Fields, number: int, *, words: int = WORDS) -> FilledPrompt:
    """The prompt of a record; its passage is cut after so many words, 0 is never.

    Raises UnknownNameError for its data set, and InputError with the record's number.
    """
    dataset = str(required(record, "dataset", number)).lower()
    if dataset not in PROMPTS:
        raise UnknownNameError("prompt of multitask for the data set", dataset, PROMPTS)
    prompt = PROMPTS[dataset]
    choices = [str(choice) for choice in record.get("choices") or prompt.usual or required(record, "choices", number)]
    labels = prompt.labels[: len(choices)] or tuple(prompt.aliases.get(choice, choice) for choice in choices)
    filled = {name: required(record, name, number) for name in ("context", "question") if f"{{{name}}}" in prompt.shape}
    if words and "context" in filled:
        filled["context"] = _cut(str(filled["context"]), words)
    options = ". ".join(f"{letter}.{choice}" for letter, choice in zip(_LETTERS, choices, strict=False))
    place = required(record, "label", number)
    if len(choices) < 2 or place not in range(len(labels)):
        raise InputError(
            f"Record {number} has {len(choices)} choices and the label {place!r}; give one of two or more."
        )
    return FilledPrompt(dataset, prompt.shape.format(**filled, choices=choices, options=options), labels, labels[place])


def _cut(text: str, words: int) -> str:
    """The first words of a text; one that has no more is left as it is."""
    return text if len(text.split()) <= words else " ".join(text.split()[:words])
