"""What every method is that edits a fact into feed-forward values as a change of rank one; how, a subclass says.

Nothing here knows where the change comes from. Facts are edited one after another, each of the model as the earlier
ones left it.

State: `down.<path>` (B, R, in) and `up.<path>` (B, out, R), float32, for each edited matrix: a rank for each edit.

Dimensions: B batch, R edits, T tokens.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from byheart.errors import UsageError, require_not_negative, require_positive
from byheart.model.backbone import Backbone, Change
from byheart.model.linear import widths
from byheart.model.optimize import require_steps
from byheart.model.reading import LowRankDelta, Reading
from byheart.protocol import key_moments
from byheart.protocol.fact import Fact
from byheart.protocol.fact_editing import FactRows, Value, draw_contexts, learn_value
from byheart.protocol.method import Method
from byheart.protocol.segments import require_learnable, split_segments
from byheart.protocol.state import State, stack, unstack
from byheart.protocol.template import length, zeros

_MOST = 1 << 20
_UP = "up"


class FactMethod(Method):
    """A method whose state is a low-rank change of the values of some layers; a subclass says which, by ``edit``.

    Args:
        layers: whose values are changed; none leaves the choice to the method.
        steps, learning_rate: of Adam, for what is to be stored.
        kl: weight of what the model says of the subject otherwise.
        decay: weight of the length of the change of what is stored.
        clamp: the longest that this change may be, times the length of what it changes.
        contexts: how many texts the model draws to stand before the fact.
        learned_tokens: of a text that is not marked as a fact: so many last tokens are to be known, and the one before
            them is taken for the subject's last.
        chunk_tokens: longer text is taken for several facts, one after another.
        seed: of the contexts.
    """

    parts: ClassVar[Sequence[str]] = ("down", _UP)
    """The tensors of each edited matrix, of which ``up`` alone has an edit as its last dimension, not as its second."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        layers: Sequence[int] = (),
        steps: int = 20,
        learning_rate: float = 0.5,
        kl: float = 0.0625,
        decay: float = 0.5,
        clamp: float = 4.0,
        contexts: int = 20,
        learned_tokens: int = 4,
        chunk_tokens: int = 256,
        seed: int = 0,
    ) -> None:
        Method.__init__(self, backbone)
        if chunk_tokens < 2:
            raise UsageError(
                f"chunk_tokens must be 2 or more, or nothing stands before a target; it is {chunk_tokens}."
            )
        require_positive(learning_rate=learning_rate, clamp=clamp, learned_tokens=learned_tokens)
        require_not_negative(kl=kl, decay=decay, contexts=contexts)
        require_steps(steps)
        self.steps, self.learning_rate, self.kl, self.decay = steps, learning_rate, kl, decay
        self.clamp, self.contexts, self.learned_tokens = clamp, contexts, learned_tokens
        self.chunk_tokens, self.seed = chunk_tokens, seed
        self.layers = self.edited_layers(layers, len(backbone.layers))
        self.paths = {layer: _values_of(backbone, layer) for layer in self.layers}
        """The matrix of each layer that is edited."""
        self.moment_paths = list(self.paths.values())

    @staticmethod
    @abc.abstractmethod
    def edited_layers(layers: Sequence[int], depth: int) -> list[int]:
        """Which of ``depth`` layers are edited: those that were given, or the method's own choice where none were."""

    @abc.abstractmethod
    def edit(self, state: State, fact: Fact, rows: FactRows) -> State:
        """The state of one session once a fact is edited into it too; ``rows`` are the fact after each context."""

    def init(self) -> State:
        """No edit."""
        return self._like(0)

    def template(self, state: State, *, written: bool) -> State:
        """As many edits as there are."""
        return self._like(length(state, f"down.{self.moment_paths[0]}", 1, most=_MOST, least=int(written)))

    def pieces(self, segment: Tensor) -> Iterator[Tensor]:
        """Parts of at most ``chunk_tokens`` tokens."""
        return split_segments(segment, longest=self.chunk_tokens, shortest=2)

    def write(self, state: State, segment: Tensor) -> State:
        """Edit what the last tokens of ``segment`` say, as a fact without marks."""
        require_learnable(segment)
        rows = unstack(state)
        for piece in self.pieces(segment):
            rows = self.write_facts(rows, [Fact.of_text(text, self.learned_tokens) for text in piece])
        return stack(rows)

    # Tensors made in inference mode cannot be tuned by, whatever mode the caller is in.
    @torch.inference_mode(False)
    def write_facts(self, states: Sequence[State], facts: Sequence[Fact]) -> list[State]:
        """Edit a fact into each of many sessions, one session after another."""
        own = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
        pairs = zip(own, facts, strict=True)
        return [self.edit(state, fact, FactRows.of(self.backbone, fact, self._contexts)) for state, fact in pairs]

    def read(self, state: State) -> Reading:
        """The changes; no prefix."""
        deltas = {path: LowRankDelta(state[f"down.{path}"], state[f"{_UP}.{path}"]) for path in self.moment_paths}
        return Reading(deltas=deltas, batch=next(iter(state.values())).shape[0])

    # ---- for ``edit`` ----

    def changes(self, state: State, rows: FactRows) -> list[Change]:
        """The changes of a state, for each row of a fact; rows share them, so that all go through one product."""
        return self.backbone.changes([self.read(state).deltas] * len(rows.tokens))

    def learn_value(self, rows: FactRows, module: nn.Module, layer: int, changes: Sequence[Change]) -> Value:
        """What a module of a layer should give, by this method's options; see ``fact_editing``."""
        return learn_value(
            self.backbone,
            rows,
            module,
            layer,
            changes,
            steps=self.steps,
            learning_rate=self.learning_rate,
            kl=self.kl,
            decay=self.decay,
            most=self.clamp,
        )

    def append(self, state: State, path: str, **vectors: Tensor) -> State:
        """The state with one edit more of the matrix at ``path``: a vector for each of ``parts``."""
        added = dict(state)
        for part in self.parts:
            vector = vectors[part].to(self.backbone.device, torch.float32)
            name, new = f"{part}.{path}", vector[None, :, None] if part == _UP else vector[None, None]
            added[name] = torch.cat([state[name], new], dim=2 if part == _UP else 1)
        return added

    def factor(self, path: str, scale: float = 1.0) -> Tensor:
        """The factor of the moments of a matrix's keys, see ``key_moments``; made once. Raises UsageError."""
        if path not in self._factors:
            self._factors[path] = key_moments.factor(key_moments.require(self.backbone, path), scale)
        return self._factors[path]

    @cached_property
    def _factors(self) -> dict[str, Tensor]:
        return {}

    @cached_property
    def _contexts(self) -> list[Tensor]:
        return draw_contexts(self.backbone, self.contexts, self.seed)

    def _like(self, edits: int) -> State:
        """A state of one session of so many edits, all zero."""
        found: dict[str, Tensor] = {}
        for path in self.moment_paths:
            width, height = widths(self.backbone.linear(path))
            shapes: Mapping[bool, tuple[int, ...]] = {True: (1, height, edits), False: (1, edits, width)}
            for part in self.parts:
                empty = zeros(*shapes[part == _UP], dtype=torch.float32)
                found[f"{part}.{path}"] = empty.to(self.backbone.device)
        return found


def _values_of(backbone: Backbone, layer: int) -> str:
    depth = len(backbone.layers)
    if not 0 <= layer < depth:
        raise UsageError(f"layers must lie between 0 and {depth - 1}; they hold {layer}.")
    [path] = [path for path, role in backbone.feed_forward_roles(layer).items() if role == "values"]
    return path
