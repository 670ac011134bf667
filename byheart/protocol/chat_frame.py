"""What stands around written texts, for methods that keep it as tokens and read it exactly.

Slots of the chat template say nothing of the text, and models put weight on the first slots whatever they say (Xiao et
al. 2024, arXiv 2309.17453). So a text's frame is the opening before the first text and the receipt after each, or,
where a first text comes without the template, its first tokens.

    first text:  [opening or first tokens | text | receipt]
    later ones:  [text | receipt]

Dimensions: B batch, T tokens, E first tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

SINKS = 4
_OPENING, _RECEIPT, _FIRST = 1, 2, 4
_KINDS = {0, _OPENING, _RECEIPT, _OPENING | _RECEIPT, _FIRST, _FIRST | _RECEIPT}


@dataclass(frozen=True)
class ChatFrame:
    """The tokens that the chat template puts before the first text, and after each."""

    opening: Sequence[int]
    receipt: Sequence[int]

    def split(self, piece: Int[Tensor, "B T"], *, first: bool = True) -> tuple[int, int]:
        """How many tokens stand before and after the text; all rows of a batch begin and end alike.

        Args:
            first: nothing was written before.
        """
        before, after = self.template_around(piece, first=first)
        return before or (min(SINKS, piece.shape[1] - after) if first else 0), after

    def template_around(self, piece: Int[Tensor, "B T"], *, first: bool = True) -> tuple[int, int]:
        """How many tokens of the chat template stand before and after the text; arguments as for ``split``."""
        rows, opening, receipt = piece.tolist(), list(self.opening), list(self.receipt)
        length, opened, received = piece.shape[1], len(opening) or 1, len(receipt) or 1
        after = len(receipt) if length > len(receipt) and all(row[-received:] == receipt for row in rows) else 0
        is_opened = first and length > len(opening) + after and all(row[:opened] == opening for row in rows)
        return len(opening) if is_opened else 0, after

    def key(self, piece: Int[Tensor, "1 T"], *, first: bool = True) -> tuple[int, int, int]:
        """What the rows of a batch must have in common: as many tokens around the text, and of one kind."""
        before, after = self.split(piece, first=first)
        return before, after, self.kind(piece, before, after)

    def kind(self, piece: Int[Tensor, "B T"], before: int, after: int) -> int:
        """A number for what stands around the text of a piece that ``split`` cut so."""
        is_opening = bool(before) and piece[0, :before].tolist() == list(self.opening)
        return (_OPENING if is_opening else _FIRST if before else 0) | (_RECEIPT if after else 0)

    def before(self, kind: int, first: Int[Tensor, "B E"]) -> list[list[int]]:
        """The tokens before a text, of each row; ``first`` are those of a first text without the template."""
        if kind & _OPENING:
            return [list(self.opening)] * len(first)
        return first.tolist() if kind & _FIRST else [[]] * len(first)

    def after(self, kind: int) -> list[int]:
        """The tokens after a text."""
        return list(self.receipt) if kind & _RECEIPT else []


def keeps_first(kind: int) -> bool:
    """Whether a first text came without the template, so that its first tokens are kept."""
    return bool(kind & _FIRST)


def require_kind(kind: int, place: int, tokens: int) -> None:
    """Raise ValueError unless so many tokens of text can have this around them, as the piece at ``place``."""
    begins_again = place and kind & (_OPENING | _FIRST)
    if kind not in _KINDS or begins_again or tokens < (0 if keeps_first(kind) else 1):
        raise ValueError(f"run {place} is none that it writes")
