"""A pool of hidden states in every layer, renewed by what is read (MemoryLLM, Wang et al. 2024, arXiv 2402.04624).

A segment is read behind the pool's newest rows; the hidden states of its last rows, as they leave each layer, become
that layer's new rows. As many old rows are dropped at random, so every text fades by the same factor with each write
(section 3.2, equation 5). A question sees all rows at every layer's input.

What a position sees while a segment of T >= K tokens is written (K rows are renewed):

    first | newest K rows | text (T)
      1   |   1 ... 1     | causal

The published rows stand at the input of the layer whose output they were. Hidden rows matter to reading only by their
keys and values, so those are kept, un-rotated: a write projects its new rows and no other. Rows live in slots; a new
row takes a dropped row's slot, and `place` says where each slot stands in the order of age.

State: `keys.l`, `values.l` (B, H, 1 + M, W) a layer, slot 0 the first row (a learned BOS), keys as of position 0;
`place` (B, L, M), the position of each slot, 1 the oldest; `recent` (B, L, E, D), hidden states of the newest rows in
order; `hidden` (B, L, M, D) in slots, where kept; `writes`, `seed` (B,).

Dimensions: B batch, L layers, H heads, M rows, K renewed rows, E <= K newest rows, T tokens, D hidden, W head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from byheart.errors import BudgetError, UsageError, require_positive
from byheart.model.backbone import Backbone
from byheart.model.lora import LoRA
from byheart.model.reading import KV, Reading
from byheart.protocol.kv_slots import kv_to_state, state_to_kv
from byheart.protocol.method import Method
from byheart.protocol.segments import split_segments
from byheart.protocol.state import State

_SLOTS, _BLOCKS = 64, 8


class LatentPool(Method):
    """Keeps ``blocks`` x ``slots`` slots a layer; a write renews ``slots`` of them.

    Args:
        slots: slots renewed by a write, K.
        blocks: the pool holds blocks * slots slots.
        forget: ``layer`` drops other rows in every layer, ``shared`` the same ones in all.
        seed: of the random forgetting; a state replays exactly.
        longest, shortest: text is cut into segments of at most ``longest`` tokens; a last one under ``shortest``
            shares with the one before it.
        keep_hidden: keep the hidden states of all rows too, for export; the newest are always kept.
        feed: what a layer's rows are: its ``output`` at the segment's last tokens, as published, which stands where
            the model has inputs and must be learned to be read; or its ``input``, which the model reads as it is.
        rank, alpha: of LoRAs; rank 0 has none.
        adapt: ``all`` has a LoRA for writing and another for reading, which projects the pool and serves the tokens
            that read it, as published; ``kept`` has one for writing alone, active at the rows that are kept.
        targets: names of the linear layers that the LoRAs update.
    """

    name = "latent-pool"

    def __init__(
        self,
        backbone: Backbone,
        *,
        slots: int = _SLOTS,
        blocks: int = _BLOCKS,
        forget: str = "layer",
        seed: int = 0,
        longest: int = 512,
        shortest: int = 16,
        keep_hidden: bool = False,
        feed: str = "output",
        adapt: str = "all",
        rank: int = 0,
        alpha: float = 32.0,
        targets: tuple[str, ...] | list[str] = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj", "gate_proj"),
    ) -> None:
        Method.__init__(self, backbone)
        require_positive(slots=slots, blocks=blocks, longest=longest, shortest=shortest)
        if blocks < 2:
            raise UsageError(f"blocks must be 2 or more, or every write would replace the whole pool; it is {blocks}.")
        if longest < shortest:
            raise UsageError(f"longest must be at least shortest; they are {longest} and {shortest}.")
        _one_of("forget", forget, ("layer", "shared"))
        _one_of("feed", feed, ("output", "input"))
        _one_of("adapt", adapt, ("all", "kept"))
        self.slots, self.blocks, self.forget, self.seed = slots, blocks, forget, seed
        self.longest, self.shortest, self.keep_hidden = longest, shortest, keep_hidden
        self.feed, self.adapt = feed, adapt
        self.rank, self.alpha, self.targets = rank, alpha, list(targets)
        self.capacity = 1 + slots * blocks
        layers = len(backbone.layers)
        # In float32 whatever the model's type: steps of training are too small for bfloat16.
        self.first = nn.Parameter(_first_rows(backbone).float())
        self.mark = nn.Parameter(torch.zeros(backbone.dim, device=backbone.device))
        paths = [p for i in range(layers) for p in backbone.linears(i) if p.rsplit(".", 1)[-1] in self.targets]
        self.writing = LoRA(backbone, paths, rank=rank, alpha=alpha) if rank else None
        self.reading = LoRA(backbone, paths, rank=rank, alpha=alpha) if rank and adapt == "all" else None
        self.initial: Tensor | None
        self.register_buffer("initial", None)

    @classmethod
    def sized(cls, backbone: Backbone, budget: int, tokens: int) -> dict[str, Any]:
        """The default size, for which a trained pool may be there; where that is too much, as many blocks as fit.

        Counted is a full pool, with its first row and the newest hidden states.
        """
        layers, slots = len(backbone.layers), _SLOTS
        newest = layers * slots * backbone.dim * backbone.dtype.itemsize
        once, block = backbone.slot_bytes + newest + 16, slots * (backbone.slot_bytes + 8 * layers)
        if budget < once + 2 * block:
            raise BudgetError(cls.name, budget, once + 2 * block)
        blocks = (budget - once) // block
        return {"slots": slots, "blocks": blocks} if blocks < _BLOCKS else {}

    def fill(self, pool: Tensor) -> None:
        """Let every session start from ``pool`` (L, M, D), hidden states in order of age, as a trained pool does."""
        self.initial = pool.to(self.backbone.device, self.backbone.dtype)

    def init(self) -> State:
        """The first row alone, or the trained pool."""
        layers = len(self.backbone.layers)
        first = self.first.to(self.backbone.dtype)
        pool = first.new_zeros(layers, 0, self.backbone.dim) if self.initial is None else self.initial.to(first)
        rows = torch.cat([first, pool], dim=1)[None]
        where = self.backbone.device
        place = torch.arange(1, 1 + pool.shape[1], device=where).expand(1, layers, -1).clone()
        state = {
            **kv_to_state(self._project(rows)),
            "place": place,
            "recent": pool[None, :, max(0, pool.shape[1] - self.slots) :].clone(),
            "writes": torch.zeros(1, dtype=torch.long, device=where),
            "seed": torch.tensor([self.seed], device=where),
        }
        return {**state, "hidden": pool[None].clone()} if self.keep_hidden else state

    def pieces(self, segment: Tensor) -> Iterator[Tensor]:
        """Segments of ``shortest`` to ``longest`` tokens."""
        return split_segments(segment, longest=self.longest, shortest=self.shortest)

    def write(self, state: State, segment: Tensor) -> State:
        """Read ``segment`` piece by piece; each renews rows of the pool."""
        for piece in self.pieces(segment):
            state = self.renew(state, self.dry_run(state, piece))
        return state

    def dry_run(self, state: State, piece: Tensor) -> Tensor:
        """The rows (B, L, K, D) that writing ``piece`` would add; the state stays as it is."""
        newest = state["recent"]
        batch, length = piece.shape
        carried = min(max(self.slots - length, 0), newest.shape[2])
        before = newest.shape[2] - carried
        moving = newest[:, :, before:]
        embeds = torch.cat([moving[:, 0], self.backbone.embed(piece)], dim=1) if carried else self.backbone.embed(piece)
        marked = min(self.slots, embeds.shape[1])
        outputs = embeds.new_empty(batch, len(self.backbone.layers), marked, self.backbone.dim)
        learned: list[Tensor] = []
        mark = self.mark.to(embeds.dtype)

        def keep(index: int, hidden: Tensor) -> None:
            """Keep the last rows."""
            if torch.is_grad_enabled():
                learned.append(hidden[:, -marked:].clone())
            else:
                outputs[:, index] = hidden[:, -marked:]

        def enter(index: int, hidden: Tensor) -> Tensor:
            """A layer's input: carried rows as the pool has them, and the mark that says what will be kept."""
            own = torch.cat([moving[:, index], hidden[:, carried:]], dim=1) if carried else hidden
            if torch.is_grad_enabled():
                own = torch.cat([own[:, :-marked], own[:, -marked:] + mark], dim=1)
            else:
                own[:, -marked:] += mark
            if self.feed == "input":
                keep(index, own)
            return own

        with (
            torch.set_grad_enabled(torch.is_grad_enabled() and self.training),
            self.backbone.reading([Reading(self._behind(state, before), batch=batch)], room=embeds.shape[1]) as cache,
            self.backbone.layer_inputs(enter),
            self.backbone.layer_outputs(keep) if self.feed == "output" else nullcontext(),
            _maybe(self.writing, self.backbone, self._gate(embeds.shape[1], marked)),
        ):
            self.backbone.hidden(embeds=embeds, cache=cache)
        return torch.stack(learned, dim=1) if learned else outputs

    def renew(self, state: State, delta: Tensor, kept: Tensor | None = None) -> State:
        """The state after ``delta`` (B, L, K, D) joined the pool.

        Args:
            kept: positions in order of age (from 0) of the rows that stay, (M - dropped,) for all layers or
                (L, M - dropped); drawn from the state's generator without it.
        """
        new = delta.shape[2]
        place = state["place"]
        dropped = max(0, place.shape[2] + new - self.slots * self.blocks)
        gone = self._gone(state, dropped) if kept is None else _others(place, kept, dropped)
        projected = self._project(delta)
        held = state_to_kv(state)
        slots, place = _slots(place, gone, new)
        if held is None:
            raise UsageError("This state has no pool; make one with init().")
        fresh = {
            **kv_to_state(_replaced(held, projected, slots + 1)),
            "place": place,
            "recent": delta if new == self.slots else torch.cat([state["recent"], delta], dim=2)[:, :, -self.slots :],
            "writes": state["writes"] + 1,
            "seed": state["seed"],
        }
        if self.keep_hidden:
            hidden = state["hidden"]
            grown = torch.cat([hidden, hidden.new_empty(*hidden.shape[:2], new - dropped, hidden.shape[3])], dim=2)
            fresh["hidden"] = grown.scatter(2, slots[..., None].expand(-1, -1, -1, hidden.shape[3]), delta)
        return fresh

    def read(self, state: State) -> Reading:
        """The first row and the pool, each row at its position in the order of age, and the reading LoRA."""
        held = state_to_kv(state)
        batch = state["writes"].shape[0]
        deltas = self.reading.deltas(batch) if self.reading is not None else {}
        if held is None:
            return Reading(deltas=deltas, batch=batch)
        place = torch.cat([state["place"].new_zeros(batch, state["place"].shape[1], 1), state["place"]], dim=2)
        steps = [_one_row(place[:, index]) for index in range(place.shape[1])]
        return Reading(self.backbone.turn(held, steps), deltas, batch=batch)

    def pool(self, state: State) -> Tensor:
        """The hidden states (B, L, M, D) in order of age; needs ``keep_hidden``."""
        if "hidden" not in state:
            raise UsageError("This pool keeps no hidden states; make the memory with keep_hidden=True.")
        order = state["place"].argsort(dim=2)[..., None]
        return torch.take_along_dim(state["hidden"], order, dim=2)

    def _gate(self, length: int, marked: int) -> slice | None:
        """The tokens of a segment at which the writing LoRA is active."""
        return slice(length - marked, length) if self.adapt == "kept" else None

    def _project(self, rows: Tensor) -> KV:
        with _maybe(self.reading, self.backbone):
            return self.backbone.project(list(rows.unbind(1)))

    def _behind(self, state: State, before: int) -> KV:
        """What a segment is read behind: the first row and ``before`` rows of the newest, at positions 0 on."""
        held = state_to_kv(state)
        if held is None:
            raise UsageError("This state has no pool; make one with init().")
        if self.writing is not None and self.adapt == "all":
            newest = state["recent"][:, :, :before]
            rows = torch.cat([self.first.to(newest.dtype).expand(len(newest), -1, -1, -1), newest], 2)
            with self.writing.active(self.backbone):
                held = self.backbone.project(list(rows.unbind(1)))
        else:
            held = _newest(held, state["place"], state["recent"].shape[2], before)
        return self.backbone.turn(held, torch.arange(held.slots, device=held.keys[0].device))

    def _gone(self, state: State, dropped: int) -> Tensor:
        """Positions in order of age (from 0) of the rows to drop, (B, L, dropped), by each session's generator."""
        _, layers, held = state["place"].shape
        draws = []
        for seed, writes in zip(state["seed"].tolist(), state["writes"].tolist(), strict=True):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + writes)
            each = layers if self.forget == "layer" else 1
            drawn = torch.stack([torch.randperm(held, generator=generator)[:dropped] for _ in range(each)])
            draws.append(drawn.expand(layers, -1))
        return torch.stack(draws).to(state["place"].device)


def _maybe(lora: LoRA | None, backbone: Backbone, gate: slice | None = None) -> Any:
    return lora.active(backbone, gate=gate) if lora is not None else nullcontext()


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{option} must be {' or '.join(allowed)}; it is '{value}'.")


def _one_row(places: Tensor) -> Tensor:
    """(M,) where all batch rows agree, so that one table of angles serves them; else (B, M)."""
    return places[0] if places.shape[0] == 1 else places


def _others(place: Tensor, kept: Tensor, dropped: int) -> Tensor:
    """The positions (from 0) that are not in ``kept``, (B, L, dropped)."""
    batch, layers, held = place.shape
    stays = place.new_zeros(layers, held).scatter(1, kept.to(place.device).expand(layers, -1), 1).bool()
    return (~stays).nonzero()[:, 1].view(layers, dropped).expand(batch, -1, -1)


def _slots(place: Tensor, gone: Tensor, new: int) -> tuple[Tensor, Tensor]:
    """The slots (B, L, new) that new rows take, and every slot's position afterwards."""
    batch, layers, held = place.shape
    order = place.argsort(dim=2)
    freed = torch.take_along_dim(order, gone, dim=2)
    added = torch.arange(held, held + new - gone.shape[2], device=place.device).expand(batch, layers, -1)
    slots = torch.cat([freed, added], dim=2)
    is_gone = place.new_zeros(batch, layers, held).scatter(2, gone, 1)
    below = is_gone.cumsum(2)
    moved = place - torch.take_along_dim(below, place - 1, dim=2)
    moved = torch.cat([moved, moved.new_zeros(batch, layers, added.shape[2])], dim=2)
    first = held - gone.shape[2] + 1
    newest = torch.arange(first, first + new, device=place.device)
    return slots, moved.scatter(2, slots, newest.expand(batch, layers, -1))


def _replaced(held: KV, new: KV, slots: Tensor) -> KV:
    """``held`` with new rows (B, H, K, W) in ``slots`` (B, L, K); slots past the end lengthen it."""
    length = max(held.slots, int(slots.max()) + 1)

    def put(old: Tensor, fresh: Tensor, index: int) -> Tensor:
        out = old.new_empty(*old.shape[:2], length, old.shape[3])
        out[:, :, : old.shape[2]] = old
        for b in range(old.shape[0]):
            out[b, :, slots[b, index]] = fresh[b]
        return out

    return KV(
        tuple(put(old, fresh, i) for i, (old, fresh) in enumerate(zip(held.keys, new.keys, strict=True))),
        tuple(put(old, fresh, i) for i, (old, fresh) in enumerate(zip(held.values, new.values, strict=True))),
    )


def _newest(held: KV, place: Tensor, newest: int, before: int) -> KV:
    """The first row, and the ``before`` oldest of the ``newest`` rows, in order."""
    order = place.argsort(dim=2)[:, :, place.shape[2] - newest :][:, :, :before] + 1
    order = torch.cat([order.new_zeros(*order.shape[:2], 1), order], dim=2)

    def take(tensor: Tensor, index: int) -> Tensor:
        rows = [row.index_select(1, order[b, index]) for b, row in enumerate(tensor)]
        return rows[0][None] if len(rows) == 1 else torch.stack(rows)

    return KV(tuple(take(k, i) for i, k in enumerate(held.keys)), tuple(take(v, i) for i, v in enumerate(held.values)))


def _first_rows(backbone: Backbone) -> Tensor:
    """What the model itself has at each layer's input for its first token, (L, 1, D)."""
    # A tokenizer without a BOS token still reads some token first; which one hardly matters to an attention sink.
    token = backbone.first_token
    rows: list[Tensor] = []

    def take(index: int, hidden: Tensor) -> Tensor:
        rows.append(hidden[0])
        return hidden

    with torch.no_grad(), backbone.layer_inputs(take):
        backbone.hidden(torch.tensor([[token]]))
    return torch.stack(rows)
