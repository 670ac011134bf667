"""From tokens to text, piece by piece: nothing is given that a later token may change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from byheart.errors import UsageError
from byheart.text.encoder import ChatEncoder

# Some tokenizers show a character that is not whole yet as one mark, some as a mark for each byte.
_BROKEN = "\ufffd"


class Detokenizer:
    """The text of one answer while its tokens are made: no half characters, and nothing that may yet be a stop string.

    Args:
        stops: strings that end the answer; they are not part of it.
    """

    def __init__(self, encoder: ChatEncoder, stops: Sequence[str] = ()) -> None:
        self.encoder, self.stops = encoder, list(stops)
        self.text = ""
        self.ended = False
        self._tokens: list[int] = []

    def push(self, token: int | None) -> str:
        """The text that is certain since the last call; None ends the answer."""
        if self.ended:
            return ""
        if token is None:
            return self.finish()
        self._tokens.append(token)
        decoded = self.encoder.decode(self._tokens)
        whole = decoded.rstrip(_BROKEN)
        if (end := _find_stop(whole, self.stops)) is not None:
            self.ended = True
            return self._give(whole[:end])
        return self._give(whole[: len(whole) - _begun(whole, self.stops)])

    def finish(self) -> str:
        """The text that was held back, at the end of the tokens."""
        if self.ended:
            return ""
        self.ended = True
        decoded = self.encoder.decode(self._tokens)
        return self._give(decoded[: _find_stop(decoded, self.stops)])

    def _give(self, text: str) -> str:
        new, self.text = text[len(self.text) :], max(text, self.text, key=len)
        return new


def decode_stream(tokens: Iterator[int | None], encoder: ChatEncoder, stops: Sequence[str] = ()) -> Iterator[str]:
    """Text as it becomes certain, until the tokens end or a stop string does."""
    detokenizer = Detokenizer(encoder, stops)
    for token in tokens:
        if text := detokenizer.push(token):
            yield text
        if detokenizer.ended:
            return
    if text := detokenizer.finish():
        yield text


def _find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the stop string that is complete first begins, or an earlier one that ends with it; None without one."""
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    read = text[: min(ends, default=0)]
    return min((read.find(stop) for stop in stops if stop in read), default=None)


def _begun(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of ``text`` that more tokens may make into a stop string."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


def stop_strings(stop: str | Sequence[str]) -> list[str]:
    """Stop strings as a list. Raises UsageError for an empty one."""
    stops = [stop] if isinstance(stop, str) else list(stop)
    if "" in stops:
        raise UsageError("A stop string must not be empty: every answer would end before it began.")
    return stops
