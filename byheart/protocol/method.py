"""The one protocol of every method: ``init``, ``write``, ``read``, and the ``loss`` that trains it.

A method's parameters are learned once, its states are many. A state is a value: ``write`` returns a new one and leaves
its argument alone, so a session can be kept, forked and thrown away. The first dimension of every tensor of a state is
the batch, so states are stacked by concatenation.

Dimensions: B batch, T tokens.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from byheart.errors import UsageError
from byheart.model.backbone import Backbone
from byheart.model.fingerprint import fingerprint, sample_fingerprint
from byheart.model.reading import Reading
from byheart.model.slices import Slices
from byheart.protocol.episode import Batch
from byheart.protocol.episode_loss import episode_loss
from byheart.protocol.fact import Fact
from byheart.protocol.grouping import group
from byheart.protocol.objective import TARGETS_ONLY, Objective
from byheart.protocol.segments import write_in_step
from byheart.protocol.size import Size
from byheart.protocol.state import State, kv_slots, stack, unstack
from byheart.protocol.template import require_template


class Method(nn.Module, abc.ABC):
    """How a memory is made, over a frozen backbone. What can be instantiated is final.

    A method's options are the keyword-only arguments of its class. Each must be kept as an attribute of the same name,
    in types that JSON has.
    """

    name: ClassVar[str]
    """How users call it; the key of the table in ``byheart.methods``."""
    text_format: Literal["text", "turn"] = "text"
    """``turn`` where its prefix is text as the model itself reads it, so that text is written as turns of a chat."""
    size: ClassVar[Size | None] = None
    """Which options decide the bytes of its state; None where a number of bytes cannot choose them."""
    needs_codec: ClassVar[bool] = False
    """Whether it codes keys and values, for which a model needs a codec."""
    own_start: bool = False
    """Whether its prefix has a first token of its own, so that texts and questions begin without the tokenizer's."""
    moment_paths: Sequence[str] = ()
    """The linear layers whose inputs' second moments it needs, see ``protocol.key_moments``."""
    capacity: int | None = None
    """How many slots its prefix has at most; None where it grows."""

    def __init__(self, backbone: Backbone) -> None:
        nn.Module.__init__(self)
        self.backbone = backbone
        self.prompt_format: Mapping[str, str] = {}
        """What stood around texts and questions where it was trained, see ``text.PromptFormat``; kept with what it
        learned. Empty where that is the model's own chat template."""
        # Writing builds no graph unless a training loop says ``train()``.
        self.training = False
        self._named: tuple[list[tuple[int, int]], dict[str, Tensor], str] | None = None
        self._made: list[tuple[int, int]] | None = None

    @abc.abstractmethod
    def init(self) -> State:
        """The state of a session into which nothing was written; batch 1."""

    @abc.abstractmethod
    def write(self, state: State, segment: Int[Tensor, "B T"]) -> State:
        """The state after reading ``segment``, of any length; ``state`` is left alone."""

    def write_in_slices(self, state: State, segment: Int[Tensor, "B T"], *, longest: int) -> Slices[State]:
        """As ``write``, with pauses in which the model may do something else; gives the tokens read since the last.

        Here a slice is a piece, of whatever length. A method whose pieces are long reads them in slices of at most
        ``longest`` tokens.
        """
        for piece in self.pieces(segment):
            with torch.no_grad():
                state = self.write(state, piece)
            yield piece.shape[1]
        return state

    def prepare(self, state: State, *, longest: int) -> Slices[None]:
        """Do what takes long of ``read``, as ``write_in_slices`` does its part. Here that is nothing."""
        yield from ()

    def apart(self) -> Method:
        """The same method for another memory: what it keeps aside to save time is not shared. Here it keeps nothing."""
        return self

    @abc.abstractmethod
    def read(self, state: State) -> Reading:
        """What the model sees of ``state``."""

    def template(self, state: State, *, written: bool) -> State:
        """A state as ``state`` should be: its names, shapes and types, and the least value of each integer.

        Files of somebody else's are compared with it. Here it is what ``init`` gives, or ``state`` itself where that is
        nothing: a method whose tensors grow, or are not all there before the first write, says more.

        Args:
            written: whether something was written into it.
        """
        return self.init() or state

    def require_values(self, state: State) -> None:
        """Raise ValueError where numbers cannot be a state's, though names, shapes and types are."""
        return None

    def require_own(self, state: State, *, written: bool) -> None:
        """Raise ValueError, in one line, unless ``state`` is one session's state of this method."""
        written = written or state.keys() != self.init().keys()
        if written and not state:
            raise ValueError("it has no tensors, though something was written")
        require_template(state, self.template(state, written=written))
        if {tensor.shape[:1] for tensor in state.values()} - {(1,)}:
            raise ValueError("its tensors are of more than one session")
        self.require_values(state)

    def slots_after(self, state: State, segment: Int[Tensor, "B T"]) -> int:
        """How many slots the prefix has, at most, once ``segment`` is written too; nothing is computed.

        Here slots are added one per token up to ``capacity``; without one they are as they were.
        """
        held = kv_slots(state)
        return held if self.capacity is None else min(self.capacity, held + segment.shape[1])

    def share_left(self, *, before: int, later: int) -> float | None:
        """The share of a text's slots that is expected to be left after so many ``later`` writes, by the method's rule.

        Here None: there is no such rule. A text that is written in several pieces counts as several writes.

        Args:
            before: writes before the text.
        """
        return None

    @torch.no_grad()
    def prefix_slots(self, state: State) -> int:
        """How many slots the prefix of ``state`` has."""
        return self.read(state).slots

    def reread_tokens(self, state: State) -> float:
        """How many tokens of the text the model runs again to read ``state``; nothing is computed.

        Tokens that go through some of the layers count as that share of them. What a chat template puts around the
        text does not count.
        """
        return 0.0

    def pieces(self, segment: Int[Tensor, "B T"]) -> Iterator[Int[Tensor, "B t"]]:
        """The parts that ``write`` reads one after another; writing them one by one gives the same state."""
        return iter((segment,))

    def reads_at_once(self, state: State, segment: Int[Tensor, "B T"]) -> int:
        """How many of the first tokens of ``segment`` the model reads after ``state`` before what is kept changes."""
        return next(iter(self.pieces(segment))).shape[1]

    def select(self, state: State, prompt: Int[Tensor, " T"]) -> State:
        """The part of ``state`` that bears on a question: ``state`` itself, unless the method reads some of it only."""
        return state

    def use_codec(self, made: str) -> None:
        """Code with the codec of this fingerprint, where it is here and the method needs one."""

    def batch_key(self, state: State, segment: Int[Tensor, "1 _"]) -> Hashable:
        """What sessions must have in common to be written as one batch: here shapes."""
        return segment.shape[1], *((name, tensor.shape) for name, tensor in sorted(state.items()))

    def write_many(self, states: Sequence[State], segments: Sequence[Int[Tensor, "1 _"]]) -> list[State]:
        """Write one segment into each of many sessions; those with one ``batch_key`` are one batch."""
        pairs = list(zip(states, segments, strict=True))
        out: list[State | None] = [None] * len(pairs)
        for members in group(range(len(pairs)), lambda n: self.batch_key(*pairs[n])).values():
            written = self.write(stack([states[n] for n in members]), torch.cat([segments[n] for n in members]))
            for n, state in zip(members, unstack(written), strict=True):
                out[n] = state
        return [state for state in out if state is not None]

    def write_facts(self, states: Sequence[State], facts: Sequence[Fact]) -> list[State]:
        """Write one fact into each of many sessions; here as any text, whatever is marked in it."""
        return write_in_step(states, [self.pieces(fact.tokens[None]) for fact in facts], self.write_many)

    def loss(self, batch: Batch, objective: Objective = TARGETS_ONLY) -> Float[Tensor, ""]:
        """How badly targets are predicted from what was kept, with gradients through the writes.

        Args:
            objective: what is weighed beside the targets, and whether writes are run again for their gradients.
        """
        if objective.carried:
            raise UsageError(f"method '{self.name}' has no pool to carry; leave out carried, or train latent-pool.")
        states, hidden = self.write_episodes(batch, objective)
        seen = torch.cat([*hidden, self.hidden_of(states, batch.target)], dim=1)
        return episode_loss(self.backbone, seen, batch, objective)

    def write_episodes(self, batch: Batch, objective: Objective) -> tuple[list[State], list[Tensor]]:
        """The state of each episode after its segments; with ``every_segment``, hidden states of all but the first."""
        states = [self.init()] * batch.target.shape[0]
        hidden: list[Tensor] = []
        for index in range(batch.segments.shape[1]):
            if objective.every_segment and index:
                hidden.append(self.hidden_of(states, batch.segments[:, index], batch.mask[:, index]))
            if objective.checkpoint_writes:
                states = checkpoint(self.write_many, states, batch.rows(index), use_reentrant=False)
            else:
                states = self.write_many(states, batch.rows(index))
        return states, hidden

    def hidden_of(self, states: Sequence[State], tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, D) of tokens that each read their own state."""
        with self.backbone.reading([self.read(state) for state in states], room=tokens.shape[1]) as cache:
            return self.backbone.hidden(tokens, cache=cache, mask=mask)

    def options(self) -> dict[str, Any]:
        """The keyword-only arguments that this method was made with.

        An option that comes later has what was before as its default: files that do not name it have that.
        """
        return {name: vars(self)[name] for name in defaults(type(self))}

    def known_options(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Options that a file names, and those that are newer than the file at their defaults."""
        return with_defaults(type(self), stored)

    @property
    def optional(self) -> dict[str, tuple[int, ...]]:
        """Buffers that are None until they are learned: name -> shape."""
        return {}

    def mark_untrained(self) -> None:
        """Take the parameters for what model, options and machine make of them: nothing was learned yet."""
        self._made = self._versions()

    @property
    def is_untrained(self) -> bool:
        """Whether no parameter was trained, loaded or replaced since ``mark_untrained``."""
        return self._made is not None and self._made == self._versions()

    def _versions(self) -> list[tuple[int, int]] | None:
        """What tells whether a parameter was changed since; None where nothing does."""
        tensors = [*self.parameters(), *self.buffers()]
        # torch counts the changes of a tensor in place, but not of one that was made in inference mode.
        if any(tensor.is_inference() for tensor in tensors):
            return None
        return [(id(tensor), tensor._version) for tensor in tensors]

    @property
    def fingerprint(self) -> str:
        """A name for the learned parts, hashed once until one is changed; see ``model.fingerprint``.

        Parts that are not trained have one name on every machine, though their last digits differ from one processor to
        another.
        """
        if self.is_untrained:
            return "untrained"
        # Held, so that no other tensor can come to lie where one of them lay.
        tensors, versions = self.state_dict(), self._versions()
        if versions is None:
            return fingerprint(tensors)
        if self._named is None or self._named[0] != versions:
            self._named = versions, tensors, fingerprint(tensors)
        return self._named[2]

    @property
    def sampled_fingerprint(self) -> str:
        """The name that byheart 0.2 gave the learned parts, by samples of them."""
        return sample_fingerprint(self.state_dict(), torch.float32, samples=4096)

    def export(self, folder: str | Path) -> None:
        """Write the learned parts as other libraries read them; nothing, where there is no such format."""
        return None


def defaults(kind: type) -> dict[str, Any]:
    """The options of a method or task, the keyword-only arguments of its class, and their defaults."""
    return {p.name: p.default for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY}


def with_defaults(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that a file names, and those that are newer than the file at their defaults."""
    return {**defaults(kind), **options}
