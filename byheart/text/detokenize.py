"""From tokens to text, piece by piece: nothing is given that a later token may change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from byheart.text.encoder import ChatEncoder


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
        places = [decoded.find(stop) for stop in self.stops if stop in decoded]
        if places:
            self.ended = True
            return self._give(decoded[: min(places)])
        return self._give(decoded[: len(decoded) - _pending(decoded, self.stops)])

    def finish(self) -> str:
        """The text that was held back, at the end of the tokens."""
        if self.ended:
            return ""
        self.ended = True
        return self._give(self.encoder.decode(self._tokens))

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


def _pending(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of ``text`` that more tokens may change or make into a stop string."""
    # Some tokenizers show a character that is not whole yet as one mark, some as a mark for each byte.
    whole = text.rstrip("\ufffd")
    broken = len(text) - len(whole)
    # A stop string may go on in the character that is not whole.
    begun = [
        len(text) - len(shown) + n
        for shown in {text, whole}
        for stop in stops
        for n in range(1, len(stop))
        if shown.endswith(stop[:n])
    ]
    return max([broken, *begun])
