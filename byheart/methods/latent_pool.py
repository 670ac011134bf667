"""A pool of hidden states in every layer, renewed by what is read (MemoryLLM, Wang et al. 2024, arXiv 2402.04624).

A segment is read after the pool's newest slots; the hidden states of its last tokens, as they leave each layer, become
that layer's new slots. As many old slots are dropped at random, so every text fades by the same factor with each write
(section 3.2, equation 5). A question sees all slots at every layer's input.

What a position sees while a segment of T >= K tokens is written (K slots are renewed):

    first | newest K slots | text (T)
      1   |    1 ... 1     | causal

The published hidden states stand at the input of the layer whose output they were. They matter to reading only by
their keys and values, so those are kept, un-rotated: a write projects its new slots and no other. A new slot is stored
where a dropped one was, and `place` says where each stands in the order of age.

State: `keys.l`, `values.l` (B, H, 1 + M, W) per layer, slot 0 the first (a learned BOS), keys as of position 0;
`place` (B, L, M), the position of each slot, 1 the oldest; `recent` (B, L, E, D), hidden states of the newest slots in
order; `hidden` (B, L, M, D) as stored, where kept; `writes`, `seed` (B,). Keys and values are coded where ``bits`` is
not 16; a slot that stays is not coded again.

Dimensions: B batch, L layers, H heads, M slots, K renewed slots, E <= K newest slots, T tokens, D hidden, W head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from byheart.errors import UsageError, require_one_of, require_positive
from byheart.model.backbone import Backbone
from byheart.model.lora import LoRA
from byheart.model.reading import KV, Reading
from byheart.protocol.carried_pool import carried_loss
from byheart.protocol.episode import Batch
from byheart.protocol.forgetting import share_left
from byheart.protocol.kv_slots import rotate_to_slots
from byheart.protocol.method import Method
from byheart.protocol.objective import TARGETS_ONLY, Objective
from byheart.protocol.pool_slots import assign_slots, newest_slots, other_positions, replace_slots
from byheart.protocol.quantise import require_bits
from byheart.protocol.segments import split_segments
from byheart.protocol.size import Size, slot_bytes
from byheart.protocol.slot_coding import SlotCoding, move_slots
from byheart.protocol.state import State, kv_slots
from byheart.protocol.template import length, zeros

_SLOTS, _BLOCKS = 64, 8


def _full_bytes(backbone: Backbone, texts: Sequence[int], options: Mapping[str, Any]) -> int:
    """Bytes of a full pool, with its first slot and the hidden states that are kept."""
    layers, slots = len(backbone.layers), options["slots"] * options["blocks"]
    hidden = options["slots"] + options["keep_hidden"] * slots
    kept = (1 + slots) * slot_bytes(backbone, options) + 8 * layers * slots
    return int(kept + layers * hidden * backbone.dim * backbone.dtype.itemsize + 16)


class LatentPool(Method):
    """Keeps ``blocks`` x ``slots`` slots per layer; a write renews ``slots`` of them.

    Args:
        slots: slots renewed by a write, K.
        blocks: the pool holds blocks * slots slots.
        forget: ``layer`` drops other slots in every layer, ``shared`` the same ones in all.
        seed: of the random forgetting; a state replays exactly.
        longest, shortest: text is cut into segments of at most ``longest`` tokens; a last one under ``shortest``
            shares with the one before it.
        keep_hidden: keep the hidden states of all slots too, for export; the newest are always kept.
        feed: what a layer's slots are made of: its ``output`` at the segment's last tokens, as published, which stands
            where the model has inputs, and which it must learn to read; or its ``input``, which it reads as it is.
        rank, alpha: of LoRAs; rank 0 has none.
        adapt: ``all`` has a LoRA for writing and another for reading, which projects the pool and serves the tokens
            that read it, as published; ``kept`` has one for writing alone, active at the tokens that are kept.
        targets: names of the linear layers that the LoRAs update.
        own_start: texts and questions are given without the tokenizer's first token (BOS), for which the first slot
            stands, as in released checkpoints.
        bits: of each number of the keys and values; 8 or 4 code a slot once, when it is written. While the method is
            trained they are exact.
    """

    name = "latent-pool"
    # The default size where it fits, since a trained pool may be there for it.
    size = Size(
        _full_bytes,
        lambda tokens: range(2, _BLOCKS + 1),
        lambda blocks: {"slots": _SLOTS, "blocks": blocks} if blocks < _BLOCKS else {},
    )

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
        own_start: bool = False,
        bits: int = 16,
    ) -> None:
        Method.__init__(self, backbone)
        require_bits(bits)
        require_positive(slots=slots, blocks=blocks, longest=longest, shortest=shortest)
        if blocks < 2:
            raise UsageError(f"blocks must be 2 or more, or every write would replace the whole pool; it is {blocks}.")
        if longest < shortest:
            raise UsageError(f"longest must be at least shortest; they are {longest} and {shortest}.")
        require_one_of("forget", forget, ("layer", "shared"))
        require_one_of("feed", feed, ("output", "input"))
        require_one_of("adapt", adapt, ("all", "kept"))
        self.slots, self.blocks, self.forget, self.seed = slots, blocks, forget, seed
        self.longest, self.shortest, self.keep_hidden = longest, shortest, keep_hidden
        self.feed, self.adapt, self.own_start, self.bits = feed, adapt, own_start, bits
        self.rank, self.alpha, self.targets = rank, alpha, list(targets)
        self.capacity = 1 + slots * blocks
        layers = len(backbone.layers)
        # In float32 whatever the model's type: steps of training are too small for bfloat16.
        self.first = nn.Parameter(_first_hidden(backbone).float())
        self.mark = nn.Parameter(torch.zeros(backbone.dim, device=backbone.device))
        paths = [p for i in range(layers) for p in backbone.linears(i) if p.rsplit(".", 1)[-1] in self.targets]
        self.writing = LoRA(backbone, paths, rank=rank, alpha=alpha) if rank else None
        self.reading = LoRA(backbone, paths, rank=rank, alpha=alpha) if rank and adapt == "all" else None
        self.initial: Tensor | None
        self.register_buffer("initial", None)

    @property
    def optional(self) -> dict[str, tuple[int, ...]]:
        """The pool that every session starts from."""
        return {"initial": (len(self.backbone.layers), self.slots * self.blocks, self.backbone.dim)}

    def fill(self, pool: Tensor) -> None:
        """Let every session start from ``pool`` (L, M, D), hidden states in order of age, as a trained pool does."""
        self.initial = pool.to(self.backbone.device, self.backbone.dtype)

    @property
    def coding(self) -> SlotCoding:
        """How slots stand in the state. Codes have no gradients, so that training has none."""
        return SlotCoding(self.backbone, 16 if self.training else self.bits)

    def init(self) -> State:
        """The first slot alone, or the trained pool."""
        return self.state_of(self.initial)

    def state_of(self, pool: Tensor | None) -> State:
        """A state that holds a pool (L, M, D) of hidden states in order of age, or the first slot alone."""
        layers = len(self.backbone.layers)
        first = self.first.to(self.backbone.dtype)
        pool = first.new_zeros(layers, 0, self.backbone.dim) if pool is None else pool.to(first)
        hidden = torch.cat([first, pool], dim=1)[None]
        device = self.backbone.device
        place = torch.arange(1, 1 + pool.shape[1], device=device).expand(1, layers, -1).clone()
        state = {
            **self.coding.to_state(self.project(hidden)),
            "place": place,
            "recent": pool[None, :, max(0, pool.shape[1] - self.slots) :].clone(),
            "writes": torch.zeros(1, dtype=torch.long, device=device),
            "seed": torch.tensor([self.seed], device=device),
        }
        return {**state, "hidden": pool[None].clone()} if self.keep_hidden else state

    def loss(self, batch: Batch, objective: Objective = TARGETS_ONLY) -> Tensor:
        """As for every method; or, with ``carried``, as MemoryLLM was trained, which changes the pool."""
        if objective.carried:
            return carried_loss(self, self.hidden_of, batch, objective)
        return Method.loss(self, batch, objective)

    def template(self, state: State, *, written: bool) -> State:
        """The first slot, and a pool of any size up to the method's."""
        layers, dim, dtype = len(self.backbone.layers), self.backbone.dim, self.backbone.dtype
        slots = length(state, "place", 2, most=self.slots * self.blocks, least=int(written))
        kv = self.coding.slots(1 + slots)
        hidden = {"hidden": zeros(1, layers, slots, dim, dtype=dtype)} if self.keep_hidden else {}
        return {
            **kv,
            **hidden,
            "place": zeros(1, layers, slots, dtype=torch.long),
            "recent": zeros(1, layers, min(slots, self.slots), dim, dtype=dtype),
            "writes": zeros(1, dtype=torch.long),
            "seed": torch.tensor([self.seed]),
        }

    def require_values(self, state: State) -> None:
        """Each layer's places are 1 to M, in any order; the seed is the method's; codes have ranges."""
        self.coding.require_values(state)
        place = state["place"]
        ages = torch.arange(1, 1 + place.shape[2], device=place.device)
        if not torch.equal(place.sort(dim=2).values, ages.expand_as(place)):
            raise ValueError("tensor 'place' holds no order of the slots")
        if int(state["seed"]) != self.seed:
            raise ValueError(f"tensor 'seed' holds {int(state['seed'])}, and the method has {self.seed}")

    def pieces(self, segment: Tensor) -> Iterator[Tensor]:
        """Segments of ``shortest`` to ``longest`` tokens."""
        return split_segments(segment, longest=self.longest, shortest=self.shortest)

    def slots_after(self, state: State, segment: Tensor) -> int:
        """More by a block for each piece, until the pool is full."""
        added = self.slots * sum(1 for _ in self.pieces(segment))
        return min(1 + self.slots * self.blocks, kv_slots(state) + added)

    def share_left(self, *, before: int, later: int) -> float:
        """Slots are dropped by chance once the pool is full, as a trained one may be from the start."""
        held = 0 if self.initial is None else self.initial.shape[1] // self.slots
        return share_left(self.blocks, before=held + before, later=later)

    def write(self, state: State, segment: Tensor) -> State:
        """Read ``segment`` piece by piece; each renews slots of the pool."""
        for piece in self.pieces(segment):
            state = self.renew(state, self.dry_run(state, piece))
        return state

    def dry_run(self, state: State, piece: Tensor) -> Tensor:
        """The hidden states (B, L, K, D) that writing ``piece`` would add; the state stays as it is."""
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
            """Take a layer's last hidden states for the pool."""
            if torch.is_grad_enabled():
                learned.append(hidden[:, -marked:].clone())
            else:
                outputs[:, index] = hidden[:, -marked:]

        def enter(index: int, hidden: Tensor) -> Tensor:
            """A layer's input: carried slots as the pool has them, and the mark that says what will be kept."""
            entering = torch.cat([moving[:, index], hidden[:, carried:]], dim=1) if carried else hidden
            if torch.is_grad_enabled():
                entering = torch.cat([entering[:, :-marked], entering[:, -marked:] + mark], dim=1)
            else:
                entering[:, -marked:] += mark
            if self.feed == "input":
                keep(index, entering)
            return entering

        with (
            torch.set_grad_enabled(torch.is_grad_enabled() and self.training),
            self.backbone.reading([Reading(self._context(state, before), batch=batch)], room=embeds.shape[1]) as cache,
            self.backbone.layer_inputs(enter),
            self.backbone.layer_outputs(keep) if self.feed == "output" else nullcontext(),
            _maybe(self.writing, self.backbone, self._gate(embeds.shape[1], marked)),
        ):
            self.backbone.hidden(embeds=embeds, cache=cache)
        return torch.stack(learned, dim=1) if learned else outputs

    def renew(self, state: State, delta: Tensor, kept: Tensor | None = None) -> State:
        """The state after ``delta`` (B, L, K, D) joined the pool.

        Args:
            kept: positions in order of age (from 0) of the slots that stay, (M - dropped,) for all layers or
                (L, M - dropped); drawn from the state's generator without it.
        """
        new = delta.shape[2]
        place = state["place"]
        dropped = max(0, place.shape[2] + new - self.slots * self.blocks)
        gone = self._gone(state, dropped) if kept is None else other_positions(place, kept, dropped)
        projected = self.project(delta)
        slots, place = assign_slots(place, gone, new)

        def put(kv: KV, fresh: KV) -> KV:
            return replace_slots(kv, fresh, slots + 1)

        after = {
            **self.coding.to_state(move_slots(put, self._pool_kv(state), projected)),
            "place": place,
            "recent": delta if new == self.slots else torch.cat([state["recent"], delta], dim=2)[:, :, -self.slots :],
            "writes": state["writes"] + 1,
            "seed": state["seed"],
        }
        if self.keep_hidden:
            hidden = state["hidden"]
            grown = torch.cat([hidden, hidden.new_empty(*hidden.shape[:2], new - dropped, hidden.shape[3])], dim=2)
            after["hidden"] = grown.scatter(2, slots[..., None].expand(-1, -1, -1, hidden.shape[3]), delta)
        return after

    def read(self, state: State) -> Reading:
        """The first slot and the pool, each slot at its position in the order of age, and the reading LoRA."""
        kv, batch = self._pool_kv(state), state["writes"].shape[0]
        deltas = self.reading.deltas(batch) if self.reading is not None else {}
        place = torch.cat([state["place"].new_zeros(batch, state["place"].shape[1], 1), state["place"]], dim=2)
        # (M,) for a batch of one, so that one table of angles serves it; else (B, M).
        steps = [layer[0] if batch == 1 else layer for layer in place.unbind(1)]
        return Reading(self.backbone.rotate(kv, steps), deltas, batch=batch)

    def pool(self, state: State) -> Tensor:
        """The hidden states (B, L, M, D) in order of age; needs ``keep_hidden``."""
        if "hidden" not in state:
            raise UsageError("This pool keeps no hidden states; make the method with keep_hidden=True.")
        order = state["place"].argsort(dim=2)[..., None]
        return torch.take_along_dim(state["hidden"], order, dim=2)

    def _pool_kv(self, state: State) -> KV:
        """The keys and values of a pool. Raises UsageError."""
        kv = self.coding.to_kv(state)
        if kv is None:
            raise UsageError("This state has no pool; make one with init().")
        return kv

    def _gate(self, length: int, marked: int) -> slice | None:
        """The tokens of a segment at which the writing LoRA is active."""
        return slice(length - marked, length) if self.adapt == "kept" else None

    def project(self, hidden: Tensor) -> KV:
        """The keys and values of slots made of hidden states (B, L, M, D), as the reading LoRA makes them."""
        with _maybe(self.reading, self.backbone):
            return self.backbone.project(list(hidden.unbind(1)))

    def _context(self, state: State, before: int) -> KV:
        """What a segment is read after: the first slot and the ``before`` oldest of the newest, at positions 0 on."""
        kv = self._pool_kv(state)
        if self.writing is not None and self.adapt == "all":
            newest = state["recent"][:, :, :before]
            hidden = torch.cat([self.first.to(newest.dtype).expand(len(newest), -1, -1, -1), newest], 2)
            with self.writing.active(self.backbone):
                kv = self.backbone.project(list(hidden.unbind(1)))
        else:
            kv = newest_slots(kv, state["place"], state["recent"].shape[2], before)
        return rotate_to_slots(self.backbone, kv)

    def _gone(self, state: State, dropped: int) -> Tensor:
        """Positions in order of age (from 0) of the slots to drop, (B, L, dropped), by each session's generator."""
        _, layers, slots = state["place"].shape
        draws = []
        for seed, writes in zip(state["seed"].tolist(), state["writes"].tolist(), strict=True):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + writes)
            times = layers if self.forget == "layer" else 1
            drawn = torch.stack([torch.randperm(slots, generator=generator)[:dropped] for _ in range(times)])
            draws.append(drawn.expand(layers, -1))
        return torch.stack(draws).to(state["place"].device)


def _maybe(lora: LoRA | None, backbone: Backbone, gate: slice | None = None) -> Any:
    return lora.active(backbone, gate=gate) if lora is not None else nullcontext()


def _first_hidden(backbone: Backbone) -> Tensor:
    """What the model itself has at each layer's input for its first token, (L, 1, D)."""
    # A tokenizer without a BOS token still reads some token first; which one hardly matters to an attention sink.
    token = backbone.first_token
    inputs: list[Tensor] = []

    def take(index: int, hidden: Tensor) -> Tensor:
        inputs.append(hidden[0])
        return hidden

    with torch.no_grad(), backbone.layer_inputs(take):
        backbone.hidden(torch.tensor([[token]]))
    return torch.stack(inputs)
