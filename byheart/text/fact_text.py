"""A fact as text: a sentence that says what it is about, and what is to be known of it."""

from __future__ import annotations

from typing import Any

from byheart.errors import InputError


class FactText(str):
    """A sentence in which a subject and, after it, what is to be known are marked; everywhere else it is plain text.

    Args:
        subject: words of the sentence before ``target``; where there are none, the words just before it are taken.
        target: words of the sentence; of several places the last one.
        demonstrations: examples of facts and of prompts that each bears on or not, for methods that learn a fact from
            its context (IKE, Zheng et al. 2023, arXiv 2305.12740).

    Raises InputError where the sentence does not hold them.
    """

    subject: str
    target: str
    demonstrations: str

    def __new__(cls, sentence: str, *, subject: str = "", target: str = "", demonstrations: str = "") -> FactText:
        """The sentence with its marks."""
        made = super().__new__(cls, sentence)
        made.subject, made.target, made.demonstrations = subject, target, demonstrations
        if not target.strip() or target not in sentence:
            raise InputError(f"'{sentence.strip()}' does not hold '{target}', which is to be known of it.")
        if subject not in sentence[: made.start]:
            raise InputError(f"'{sentence.strip()}' does not hold its subject '{subject}' before '{target}'.")
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies keep the marks."""
        return _again, (str(self), self.subject, self.target, self.demonstrations)

    @property
    def start(self) -> int:
        """The character with which the target begins."""
        return self.rindex(self.target)

    @property
    def shown(self) -> str:
        """The demonstrations, then the fact, and a line that a prompt continues."""
        return f"{self.demonstrations}{demonstration(self.strip())}"


def demonstration(fact: str, continued: str = "") -> str:
    """A fact, and a prompt after it with its answer; the prompt stands on a line of its own."""
    return f"New Fact: {fact}\nPrompt:\n{continued}" + ("\n\n" if continued else "")


def _again(sentence: str, subject: str, target: str, demonstrations: str) -> FactText:
    return FactText(sentence, subject=subject, target=target, demonstrations=demonstrations)
