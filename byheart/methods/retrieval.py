"""The segments of the text that share rare words with the question (BM25, Robertson and Zaragoza 2009).

The text is kept as its tokens and read again at question time: BM25 (doi.org/10.1561/1500000019)
scores its segments by the question's tokens, and the best ones that fit, in the order of the text, are read with the
model's ordinary attention. Any memory that is read as a whole must be compared with it: the least state, exact keys and
values, but a question costs a pass over what it reads, and sees nothing else. Without a question the newest tokens are
read. What is read stands in one turn of a conversation: all texts after one opening and before one receipt.

State: `tokens` (B, T), int32.

Dimensions: B batch, T tokens, Q tokens of a question, S segments.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from byheart.errors import InputError, UsageError, require_positive
from byheart.model.backbone import Backbone
from byheart.model.reading import Reading
from byheart.protocol.kv_slots import prefill_pieces
from byheart.protocol.method import Method
from byheart.protocol.segments import common_prefix_length, require_known, split_segments
from byheart.protocol.size import fixed_size
from byheart.protocol.state import State
from byheart.protocol.template import length, zeros


class Retrieval(Method):
    """Keeps all tokens and reads ``tokens`` of them.

    Args:
        tokens: how many tokens a question sees; the last segment chosen is cut short to fit.
        segment_tokens: how many tokens are chosen or left out together.
        sinks: first tokens of the text that are always among them.
        saturation, length_weight: k1 and b of BM25: how soon more of one word adds nothing, and how much a segment
            pays for being long.
        chunk_tokens: how many tokens are read at once; bounds the room a reading takes, changes nothing.
        opening, receipt: tokens around a text that is kept as a turn; they are always among what is read.
    """

    name = "retrieval"
    text_format = "turn"
    size = fixed_size(lambda backbone, tokens: 4 * tokens)

    def __init__(
        self,
        backbone: Backbone,
        *,
        tokens: int = 512,
        segment_tokens: int = 64,
        sinks: int = 1,
        saturation: float = 1.2,
        length_weight: float = 0.75,
        chunk_tokens: int = 1024,
        opening: Sequence[int] = (),
        receipt: Sequence[int] = (),
    ) -> None:
        Method.__init__(self, backbone)
        require_positive(tokens=tokens, segment_tokens=segment_tokens, saturation=saturation, chunk_tokens=chunk_tokens)
        require_known(backbone, opening=opening, receipt=receipt)
        if tokens > backbone.positions:
            raise UsageError(f"tokens must be at most {backbone.positions}, the model's positions; it is {tokens}.")
        if tokens <= (around := len(opening) + len(receipt)):
            raise UsageError(f"tokens must be more than {around}, which stand around a text; it is {tokens}.")
        if not 0 <= sinks <= tokens:
            raise UsageError(f"sinks must be 0 or more and at most tokens, {tokens}; it is {sinks}.")
        if not 0 <= length_weight <= 1:
            raise UsageError(f"length_weight must lie between 0 and 1; it is {length_weight}.")
        self.tokens, self.segment_tokens, self.sinks = tokens, segment_tokens, sinks
        self.saturation, self.length_weight, self.chunk_tokens = saturation, length_weight, chunk_tokens
        self.opening, self.receipt = list(opening), list(receipt)
        self.capacity = tokens

    def init(self) -> State:
        """No tokens."""
        return {}

    def write(self, state: State, segment: Tensor) -> State:
        """Keep ``segment`` after the text so far, in the same turn."""
        if segment.shape[1] == 0:
            raise InputError("There is nothing to write: the text is empty.")
        new = segment.to(self.backbone.device, torch.int32, copy=True)
        if not state:
            return {"tokens": new}
        past = state["tokens"]
        if self._is_turn(past) and self._is_turn(new):
            past = past[:, : past.shape[1] - len(self.receipt)]
        return {"tokens": torch.cat([past, new], dim=1)}

    def write_many(self, states: Sequence[State], segments: Sequence[Tensor]) -> list[State]:
        """One by one: nothing is computed, and each text may or may not be a turn."""
        return [self.write(state, segment) for state, segment in zip(states, segments, strict=True)]

    def select(self, state: State, prompt: Tensor) -> State:
        """The tokens of the best segments, in the order of the text."""
        if not state or state["tokens"].shape[1] <= self.tokens:
            return state
        text, question = state["tokens"], prompt.to(state["tokens"])
        return {"tokens": torch.stack([row[self._indices(row, question)] for row in text])}

    def template(self, state: State, *, written: bool) -> State:
        """Any number of tokens."""
        return {"tokens": zeros(1, length(state, "tokens", 1, most=sys.maxsize), dtype=torch.int32)} if written else {}

    def require_values(self, state: State) -> None:
        """Tokens are of the model's vocabulary."""
        known = self.backbone.embedding.num_embeddings
        if state and (largest := int(state["tokens"].max())) >= known:
            raise ValueError(f"tensor 'tokens' holds {largest}, and the model knows tokens below {known}")

    def slots_after(self, state: State, segment: Tensor) -> int:
        """One more per token, up to those that are read."""
        return min(self.tokens, self.prefix_slots(state) + segment.shape[1])

    def prefix_slots(self, state: State) -> int:
        """What a reading would have, without making one."""
        return min(self.tokens, state["tokens"].shape[1]) if state else 0

    def reread_tokens(self, state: State) -> float:
        """All that are read, but for the chat template."""
        if not state:
            return 0.0
        row = state["tokens"][0].tolist()
        opened = common_prefix_length(row, self.opening)
        closed = common_prefix_length(row[::-1], self.receipt[::-1])
        return float(max(0, self.prefix_slots(state) - opened - closed))

    def read(self, state: State) -> Reading:
        """The exact keys and values of the first and the newest tokens, read as if they were the text."""
        if not state:
            return Reading()
        text = state["tokens"].long()
        older = max(0, text.shape[1] - self.tokens)
        first = max(self.sinks, *(common_prefix_length(row.tolist(), self.opening) for row in text))
        text = torch.cat([text[:, :first], text[:, first + older :]], dim=1)
        kv = prefill_pieces(self.backbone, split_segments(text, longest=self.chunk_tokens), None)
        return Reading(kv, batch=text.shape[0])

    def _is_turn(self, text: Int[Tensor, "B T"]) -> bool:
        """Whether each row ends as a text that is kept as a turn does."""
        return bool(self.receipt) and all(row[-len(self.receipt) :].tolist() == self.receipt for row in text)

    def _indices(self, text: Int[Tensor, " T"], question: Int[Tensor, " Q"]) -> Int[Tensor, " K"]:
        """Which ``tokens`` tokens are read: opening and receipt, then segment by segment; of equals, the newest."""
        ids = text.tolist()
        opened = common_prefix_length(ids, self.opening)
        closed = len(ids) - common_prefix_length(ids[::-1], self.receipt[::-1])
        # What is read anyway is not searched: no question has such tokens.
        searched = text.clone()
        searched[:opened] = searched[closed:] = -1
        scores = bm25(
            searched, question, size=self.segment_tokens, saturation=self.saturation, length_weight=self.length_weight
        )
        order = len(scores) - 1 - scores.flip(0).argsort(descending=True, stable=True)
        owner = torch.arange(len(text), device=text.device) // self.segment_tokens
        wanted = order.argsort()[owner]
        wanted[: max(self.sinks, opened)] = -1
        wanted[closed:] = -1
        return wanted.argsort(stable=True)[: self.tokens].sort().values


def bm25(
    text: Int[Tensor, " T"], question: Int[Tensor, " Q"], *, size: int, saturation: float, length_weight: float
) -> Float[Tensor, " S"]:
    """How well each segment of ``size`` tokens answers a question; tokens that few segments have count most."""
    terms, asked = torch.unique(question, return_counts=True)
    owner = torch.arange(len(text), device=text.device) // size
    segments = -(-len(text) // size)
    lengths = owner.bincount(minlength=segments).float()
    found = (text == terms[:, None]).float()
    counts = found.new_zeros(len(terms), segments).index_add(1, owner, found)
    having = (counts > 0).sum(1)
    # One more than the odds, so that a word that most segments have does not count against them.
    rarity = torch.log1p((segments - having + 0.5) / (having + 0.5))
    norm = saturation * (1 - length_weight + length_weight * lengths / lengths.mean())
    weights: Tensor = (asked * rarity)[:, None] * counts * (saturation + 1) / (counts + norm)
    return weights.sum(0)
