"""How data sets of classification and multiple choice are asked, and which words answer.

The prompts of "Empirical Study on Updating Key-Value Memories in Transformer Feed-forward Layers" (Qiu et al. 2024,
arXiv 2402.12233): the same to train on as to measure with. Records have byheart's schema; their ``dataset`` chooses
the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from byheart.data.json_rows import listed
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
        in_words: there are no choices: a record's answers are the right ones.
    """

    shape: str
    labels: Sequence[str] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    usual: Sequence[str] = ()
    in_words: bool = False


_LETTERS = "ABCDEFGH"
NO_ANSWER = "unanswerable"
"""What is right where a text does not answer the question; the paper's code for such sets does not run."""


@cache
def prompts() -> dict[str, Prompt]:
    """The prompt of each data set; those of one kind share theirs."""
    stored = json.loads(Path(__file__).with_name("prompts.json").read_text(encoding="utf-8"))
    entries = [(entry.pop("datasets"), Prompt(**entry)) for entry in stored]
    return {name: prompt for names, prompt in entries for name in names}


@dataclass(frozen=True)
class FilledPrompt:
    """A record's prompt, the words that may answer it, and the right ones; the model says them after a space.

    ``others`` are right as well, where a question is answered in words of its own; there are then no ``labels``.
    """

    dataset: str
    text: str
    labels: tuple[str, ...]
    right: str
    others: tuple[str, ...] = ()


def fill_prompt(record: Fields, number: int, *, words: int = WORDS) -> FilledPrompt:
    """The prompt of a record; its passage is cut after so many words, 0 is never.

    One whose question is answered in words is not cut: the answer may be anywhere in it. Raises UnknownNameError for
    its data set, and InputError with the record's number.
    """
    dataset = _known(str(required(record, "dataset", number)).lower())
    prompt = prompts()[dataset]
    if prompt.in_words:
        filled = {name: required(record, name, number) for name in ("context", "question")}
        # SQuAD's own columns have what nobody answered as a list of none.
        right, *others = map(str, listed(record.get("answers")) or [NO_ANSWER])
        return FilledPrompt(dataset, prompt.shape.format(**filled), (), right, tuple(others))
    choices = [str(choice) for choice in record.get("choices") or prompt.usual or required(record, "choices", number)]
    labels = tuple(prompt.labels[: len(choices)]) or tuple(prompt.aliases.get(choice, choice) for choice in choices)
    filled = {name: required(record, name, number) for name in ("context", "question") if f"{{{name}}}" in prompt.shape}
    if words and "context" in filled:
        filled["context"] = _cut(str(filled["context"]), words)
    options = ". ".join(f"{letter}.{choice}" for letter, choice in zip(_LETTERS, choices, strict=False))
    place = required(record, "label", number)
    if isinstance(place, str):
        # Tables hold a number as text.
        place = choices.index(place) if place in choices else int(place) if place.isdecimal() else place
    if len(choices) < 2 or place not in range(len(labels)):
        raise InputError(
            f"Record {number} has {len(choices)} choices and the label {place!r}; give one of two or more."
        )
    return FilledPrompt(dataset, prompt.shape.format(**filled, choices=choices, options=options), labels, labels[place])


def _known(name: str) -> str:
    """The data set that has a prompt: of a name on the hub, that of its config, its own, or both. UnknownNameError."""
    parts = name.split("/")
    names = [name, *("_".join(parts[first:last]) for last in (len(parts), len(parts) - 1) for first in range(last))]
    found = next((known for known in names if known in prompts()), None)
    if found is None:
        raise UnknownNameError("prompt of multitask for the data set", name, prompts())
    return found


def _cut(text: str, words: int) -> str:
    """The first words of a text; one that has no more is left as it is."""
    return text if len(text.split()) <= words else " ".join(text.split()[:words])
