"""Endless text under a fixed number of bytes: each segment is predicted, then written (CCM's streaming, 2312.03414).

The published setting keeps 160 slots of PG19's text, and counts every token's loss with all that is kept before it:
``every=1000``, with ``compressed-kv:slots=160`` and as many slots in ``window:sinks=1;recent=97;chunk_tokens=62``, both
of which show a token 98 to 160 slots. Else segments are whole words, whose first ones are given as a prompt.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence

from byheart.data.records import Fields, required
from byheart.evaluation.task import Item, Question, Task, shuffled
from byheart.evaluation.tasks.perplexity import Perplexity
from byheart.text.encoder import ChatEncoder


class Stream(Perplexity):
    """Perplexity of a long text, segment by segment, each predicted before it is written (CCM).

    Args:
        words: of a segment.
        given: words at the start of a segment that are not predicted.
        pieces: segments of a text, at most; 0 is all.
        block: segments whose losses are one number.
        every: tokens of a segment, instead of words; then every token is predicted, with as much before it as the
            method keeps, and each segment has a number of its own.
    """

    name = "stream"
    encoder: ChatEncoder

    def __init__(self, *, words: int = 64, given: int = 4, pieces: int = 64, block: int = 8, every: int = 0) -> None:
        if not 0 < given < words or min(pieces, every) < 0 or block < 1:
            raise ValueError(
                "given must be between 0 and words, pieces and every 0 or more and block 1 or more; they are "
                f"{given} of {words}, {pieces}, {every} and {block}"
            )
        self.words, self.given, self.pieces, self.block, self.every = words, given, pieces, block, every
        self.asks = "stream" if every else "choices"

    def split(self, encoder: ChatEncoder) -> Sequence[Task]:
        """Itself, with an encoder."""
        task = copy.copy(self)
        task.encoder = encoder
        return (task,)

    def items(self, records: Sequence[Fields], seed: int) -> Iterator[Item]:
        """One per text; of its end, what makes no whole segment is left out."""
        for number, record in shuffled(records, seed):
            text = str(required(record, "context", number))
            found = self._tokens(text) if self.every else self._words(text)
            if found is not None:
                yield found

    def _tokens(self, text: str) -> Item | None:
        """Segments of tokens, each predicted up to the first token of the next one."""
        tokens = self.encoder.encode("", text, first=True).tolist()
        starts = range(0, len(tokens) - self.every, self.every)[: self.pieces or None]
        segments = [tuple(tokens[start : start + self.every + 1]) for start in starts]
        questions = (
            Question(target=segment, after=n, conditions={"token": start})
            for n, (start, segment) in enumerate(zip(starts, segments, strict=True))
        )
        return Item(tuple(segment[:-1] for segment in segments[:-1]), tuple(questions)) if segments else None

    def _words(self, text: str) -> Item | None:
        # Whitespace belongs to the word after it: segments joined are the text.
        words = re.findall(r"\s*\S+", text)
        segments = [words[n : n + self.words] for n in range(0, len(words) - self.words + 1, self.words)]
        segments = segments[: self.pieces or None]
        questions = tuple(self._question(n, segment) for n, segment in enumerate(segments))
        texts = tuple("".join(segment) for segment in segments[:-1])
        return Item(texts, questions, use_chat_template=False) if segments else None

    def _question(self, before: int, segment: Sequence[str]) -> Question:
        """What is asked after so many segments."""
        return Question(
            "".join(segment[: self.given]),
            choices=("".join(segment[self.given :]),),
            after=before,
            conditions={"pieces": before // self.block * self.block},
            use_chat_template=False,
        )
