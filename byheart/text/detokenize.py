"""From tokens to text, part by part: nothing is yielded that a later token may change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase


def text_of(tokens: Iterator[int | None], tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> Iterator[str]:
    """Text as it becomes certain: no incomplete characters, and nothing that may yet become a stop string."""
    ids: list[int] = []
    given = 0
    for token in tokens:
        if token is None:
            break
        ids.append(token)
        text = decoded(tokenizer, ids)
        ends = [text.find(stop) for stop in stops if stop in text]
        if ends:
            yield text[given : min(ends)]
            return
        safe = len(text) - _pending(text, stops)
        if safe > given:
            yield text[given:safe]
            given = safe
    yield decoded(tokenizer, ids)[given:]


def texts_of(
    steps: Iterator[Sequence[int | None]], tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]
) -> list[str]:
    """The texts of rows generated side by side; no step is taken once every row has ended."""
    rows: list[list[int | None]] = []
    going: list[list[int | None]] = []
    for step in steps:
        if not rows:
            rows = [[] for _ in step]
            going = rows
        for row, token in zip(rows, step, strict=True):
            row.append(token)
        # What has ended is not decoded again at each step.
        going = [row for row in going if not _ended(row, tokenizer, stops)]
        if not going:
            break
    return ["".join(text_of(iter(row), tokenizer, stops)) for row in rows]


def _ended(row: Sequence[int | None], tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> bool:
    """Whether a row has reached a stop token or a stop string."""
    ids = [token for token in row if token is not None]
    return len(ids) < len(row) or any(stop in decoded(tokenizer, ids) for stop in stops)


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def _pending(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of ``text`` that more tokens may change or make into a stop string."""
    # Some tokenizers show an incomplete character as one replacement mark, some as one per byte.
    broken = len(text) - len(text.rstrip("\ufffd"))
    begun = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return max([broken, *begun])
