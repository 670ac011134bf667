"""Endless text under a fixed number of bytes: each piece is predicted, then written (CCM's streaming, 2312.03414).

The published setting keeps 160 rows of PG19's text, and counts every token's loss with all that is kept before it. Here
the first words of a piece are given as a prompt, and the rest is predicted; the bytes are those of the memory that is
measured, such as ``window:sinks=1;recent=159``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence

from byheart.data.records import Fields, required
from byheart.evaluation.results import Result
from byheart.evaluation.task import Answer, Item, Part, Question, Task, shuffled


class Stream(Task):
    """Perplexity of a long text, piece by piece, each predicted before it is written (CCM).

    Args:
        words: of a piece.
        given: words at a piece's start that are not predicted.
        pieces: of a text, at most; 0 is all.
        block: pieces whose losses are one number.
    """

    name = "stream"
    asks = "choices"

    def __init__(self, *, words: int = 64, given: int = 4, pieces: int = 64, block: int = 8) -> None:
        if not 0 < given < words or pieces < 0 or block < 1:
            raise ValueError(
                "given must be between 0 and words, pieces 0 or more and block 1 or more; they are "
                f"{given} of {words}, {pieces} and {block}"
            )
        self.words, self.given, self.pieces, self.block = words, given, pieces, block

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One a text; of its last words, what makes no whole piece is left out."""
        for number, record in shuffled(records, seed):
            # White space belongs to the word behind it: pieces joined are the text.
            words = re.findall(r"\s*\S+", str(required(record, "context", number)))
            pieces = [words[n : n + self.words] for n in range(0, len(words) - self.words + 1, self.words)]
            pieces = pieces[: self.pieces or None]
            if pieces:
                questions = tuple(self._question(n, piece) for n, piece in enumerate(pieces))
                yield Item(tuple("".join(piece) for piece in pieces[:-1]), questions, framed=False)

    def score(self, question: Question, answer: Answer) -> Mapping[str, float | Part]:
        """The loss of the predicted words, so that all tokens count the same."""
        return {"loss": Part(answer.losses[0], answer.tokens[0])}

    def summary(self, rows: Sequence[Result]) -> list[Result]:
        """Perplexities, which the paper prints."""
        return [row.mapped("perplexity", math.exp) for row in rows if row.metric == "loss"]

    def _question(self, before: int, piece: Sequence[str]) -> Question:
        """What is asked after so many pieces."""
        return Question(
            "".join(piece[: self.given]),
            choices=("".join(piece[self.given :]),),
            after=before,
            at={"pieces": before // self.block * self.block},
            framed=False,
        )
