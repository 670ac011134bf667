"""What a method was trained to find around texts and questions, in place of a chat template.

    first text   later text   question answer
    opening TEXT before TEXT  before TEXT answer TEXT

It is plain text, part of the tokens around it, and no special token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PromptFormat:
    """What stands before the first text, before every later text and question, and before an answer."""

    opening: str = ""
    before: str = ""
    answer: str = ""

    @classmethod
    def of(cls, stored: Mapping[str, str]) -> PromptFormat | None:
        """As a method keeps it; None where it keeps none."""
        return cls(**stored) if stored else None

    def ahead(self, *, first: bool) -> str:
        """What stands before a text or a question."""
        return self.opening if first else self.before
