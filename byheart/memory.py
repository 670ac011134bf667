"""The one protocol of every memory: ``init``, ``write``, ``read``.

A memory is a mechanism: its parameters are learned once, its states are many. A state is a value: ``write`` returns a
new one and leaves its argument alone, so a session can be kept, forked and thrown away. The first dimension of every
tensor of a state is the batch, so states are stacked by concatenation.

Dimensions: B batch, H key-value heads, M rows of memory, T tokens, W head width.
"""

from __future__ import annotations

import abc
import inspect
import json
import os
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from byheart.backbone import Backbone
from byheart.episode import Batch
from byheart.errors import CheckpointError, InputError, StateMismatchError, UsageError
from byheart.reading import KV, Reading
from byheart.state import State, fingerprint
from byheart.tuning import episode_loss

__all__ = ["Memory", "Reading", "State", "cut", "kv_of", "named", "stack", "unstack"]


class Memory(nn.Module, abc.ABC):
    """A mechanism over a frozen backbone. Subclasses are final; their keyword-only arguments are their options.

    Every option must be kept as an attribute of the same name, in types that JSON has.
    """

    name: ClassVar[str]
    """How users call it; the key of the table in ``byheart.memories``."""
    keeps_turns: bool = False
    """Whether its prefix is text as the model itself reads it, so that text is written as turns of a conversation."""
    capacity: int | None = None
    """Prefix rows it holds at most; None where it grows."""

    def __init__(self, backbone: Backbone) -> None:
        nn.Module.__init__(self)
        self.backbone = backbone
        # Writing builds no graph unless a training loop says ``train()``.
        self.training = False

    @abc.abstractmethod
    def init(self) -> State:
        """The state of a session into which nothing was written; batch 1."""

    @abc.abstractmethod
    def write(self, state: State, segment: Int[Tensor, "B T"]) -> State:
        """The state after reading ``segment``, of any length; ``state`` is left alone."""

    @abc.abstractmethod
    def read(self, state: State) -> Reading:
        """What the model sees of ``state``."""

    def pieces(self, segment: Int[Tensor, "B T"]) -> Iterator[Int[Tensor, "B t"]]:
        """What ``write`` takes at once; writing the pieces one by one gives the same state."""
        return iter((segment,))

    def select(self, state: State, prompt: Int[Tensor, " T"]) -> State:
        """The part of ``state`` that bears on a question: ``state`` itself, unless a memory reads some of it only."""
        return state

    def write_many(self, states: Sequence[State], segments: Sequence[Int[Tensor, "1 _"]]) -> list[State]:
        """Write one segment into each of many sessions; those of one shape go through the model as one batch."""
        out: list[State | None] = [None] * len(states)
        groups: dict[Any, list[int]] = {}
        for n, (state, segment) in enumerate(zip(states, segments, strict=True)):
            shapes = tuple((name, tuple(tensor.shape)) for name, tensor in sorted(state.items()))
            groups.setdefault((shapes, segment.shape[1]), []).append(n)
        for members in groups.values():
            written = self.write(stack([states[n] for n in members]), torch.cat([segments[n] for n in members]))
            for n, state in zip(members, unstack(written), strict=True):
                out[n] = state
        return [state for state in out if state is not None]

    def loss(
        self, batch: Batch, *, teacher: float = 0.0, every_segment: float = 0.0, checkpoint_writes: bool = False
    ) -> Float[Tensor, ""]:
        """How badly targets are predicted from what was kept, with gradients through the writes.

        Args:
            teacher: weight of the divergence from the same model that has the whole text in front of it.
            every_segment: weight of the text itself from the second segment on, each token predicted from the
                tokens before it in its segment and the memory of earlier segments.
            checkpoint_writes: keep only the states between writes and run each write again for its gradients: a
                third more time, and room that grows with the states instead of with all layers of all segments.
        """
        states = [self.init()] * batch.target.shape[0]
        hidden: list[Tensor] = []
        for index in range(batch.segments.shape[1]):
            if every_segment and index:
                hidden.append(self._seen(states, batch.segments[:, index], batch.counts[:, index]))
            if checkpoint_writes:
                states = checkpoint(self.write_many, states, batch.rows(index), use_reentrant=False)
            else:
                states = self.write_many(states, batch.rows(index))
        seen = torch.cat([*hidden, self._seen(states, batch.target)], dim=1)
        return episode_loss(self.backbone, seen, batch, teacher=teacher, every_segment=every_segment)

    def _seen(self, states: Sequence[State], tokens: Tensor, counts: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, D) of tokens that each read their own state."""
        with self.backbone.reading([self.read(state) for state in states], room=tokens.shape[1]) as cache:
            return self.backbone.hidden(tokens, cache=cache, counts=counts)

    def options(self) -> dict[str, Any]:
        """The keyword-only arguments that made this memory."""
        signature = inspect.signature(type(self)).parameters.values()
        return {p.name: vars(self)[p.name] for p in signature if p.kind is p.KEYWORD_ONLY}

    @classmethod
    def framed(
        cls, *, header: Sequence[int], footer: Sequence[int], opening: Sequence[int], receipt: Sequence[int]
    ) -> dict[str, Any]:
        """Options that come from the chat template.

        Args:
            header, footer: tokens that open and close an assistant turn.
            opening, receipt: tokens before and behind a text that is written as a turn; later ones have no opening.
        """
        return {}

    @classmethod
    def sized(cls, backbone: Backbone, budget: int, tokens: int) -> dict[str, Any]:
        """Options whose state for one text of ``tokens`` tokens takes at most ``budget`` bytes.

        Raises BudgetError where even the least is more, and UsageError where there is no size to choose.
        """
        raise UsageError(f"'{cls.name}' has no size to choose for a budget of bytes; take another memory.")

    @property
    def fingerprint(self) -> str:
        """A name for the learned parts; the same for two memories that read states alike."""
        return fingerprint(self.state_dict(), torch.float32, samples=4096)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the learned parts and the options that made this memory into ``folder``."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        card = {"mechanism": self.name, "options": self.options(), "backbone": self.backbone.fingerprint}
        save_file({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}, path / "memory.safetensors")
        (path / "memory.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")

    def export(self, folder: str | Path) -> None:
        """Write the learned parts as other libraries read them; nothing, where there is no such format."""
        return None

    def load_pretrained(self, folder: str | Path) -> None:
        """Read learned parts that ``save_pretrained`` wrote. Raises StateMismatchError or CheckpointError."""
        card = read_card(folder)
        if (card["mechanism"], card["backbone"]) != (self.name, self.backbone.fingerprint):
            raise StateMismatchError(
                f"'{folder}' holds a {card['mechanism']} for backbone {card['backbone']}; "
                f"this is a {self.name} on backbone {self.backbone.fingerprint}."
            )
        try:
            stored = load_file(Path(folder) / "memory.safetensors", device=str(self.backbone.device))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"'{folder}': memory.safetensors cannot be read ({error}).") from error
        # A buffer that is None is a learned part that only some have.
        for name in [name for name, buffer in self._buffers.items() if buffer is None and name in stored]:
            setattr(self, name, stored[name])
        own = self.state_dict()
        missing, unexpected = sorted(own.keys() - stored.keys()), sorted(stored.keys() - own.keys())
        misshapen = [name for name in sorted(own.keys() & stored.keys()) if own[name].shape != stored[name].shape]
        if missing or unexpected or misshapen:
            raise CheckpointError(
                f"'{folder}' does not fit: missing {missing}, unexpected {unexpected}, of another shape {misshapen}."
            )
        self.load_state_dict(stored)


def is_learned(name: str) -> bool:
    """Whether ``name`` is a folder that ``save_pretrained`` wrote, or means to be one."""
    return os.sep in name or (Path(name) / "memory.json").is_file()


def read_card(folder: str | Path) -> dict[str, Any]:
    """What ``save_pretrained`` said of a folder: mechanism, options, backbone. Raises CheckpointError."""
    try:
        card: dict[str, Any] = json.loads((Path(folder) / "memory.json").read_text(encoding="utf-8"))
        return {key: card[key] for key in ("mechanism", "options", "backbone")}
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"'{folder}' holds no byheart memory: memory.json cannot be read ({error}).") from error


def stack(states: Sequence[State]) -> State:
    """Many sessions of equal shapes as one batch."""
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def unstack(state: State) -> list[State]:
    """A batch as single sessions, each with tensors of its own."""
    batch = next(iter(state.values())).shape[0]
    return [{name: tensor[b : b + 1].clone() for name, tensor in state.items()} for b in range(batch)]


def named(kv: KV) -> dict[str, Tensor]:
    """Keys and values as tensors of a state, ``keys.0``, ``values.0`` and so on."""
    return {
        f"{part}.{index}": tensor
        for part, tensors in (("keys", kv.keys), ("values", kv.values))
        for index, tensor in enumerate(tensors)
    }


def kv_of(state: State) -> KV | None:
    """The keys and values in a state, or None where it has none."""
    layers = sum(name.startswith("keys.") for name in state)
    if layers == 0:
        return None
    return KV(*(tuple(state[f"{part}.{index}"] for index in range(layers)) for part in ("keys", "values")))


def cut(segment: Int[Tensor, "B T"], *, longest: int, shortest: int = 1) -> Iterator[Int[Tensor, "B t"]]:
    """Pieces of at most ``longest`` tokens; a last piece under ``shortest`` shares evenly with the one before it."""
    if segment.shape[1] == 0:
        raise InputError("There is nothing to write: the text is empty.")
    tokens, start = segment.shape[1], 0
    while start < tokens:
        left = tokens - start
        take = min(longest, left)
        if 0 < left - take < shortest:
            take = left - max(shortest, left // 2)
        yield segment[:, start : start + max(take, 1)]
        start += max(take, 1)


def shared(ids: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, other, strict=False)))


def positive(**values: int | float) -> None:
    """Raise UsageError for any value that is not above zero."""
    for name, value in values.items():
        if value <= 0:
            raise UsageError(f"{name} must be above 0; it is {value}.")
