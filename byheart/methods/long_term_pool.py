"""A latent pool whose dropped slots can be found again by a question (M+, Wang et al. 2025, arXiv 2502.00592).

Writing is ``latent-pool``'s (MemoryLLM). What it drops goes into a cache, and every so many writes from there into the
long-term memory, where a slot stays for so many merges (section 3.2). Before each layer, a trained retriever scores all
slots of both by the question's hidden states there; the best, ordered by age, are read between the first slot and the
pool (section 3.3):

    position   | 0     | 1 ... R                  | R + 1 ... R + M | R + M + 1 ...
    slot       | first | R recalled, oldest first | pool            | the question

The published code retrieves while it reads the prompt. Here ``select`` reads the bare question, layer by layer as
published, and what it found is read with the prompt; where the prompt is the bare question, both give the same. All
tokens of an answer read the same slots, as published. Without a question, or where the retriever is not trained, the
newest are read.

Faults of the released inference file are not followed: ages stand still while a slot is in the pool (``order`` offers
it), ages and scores are rounded, few slots are read twice, a batch keeps one row. Slots stay on the model's device.

State: that of ``latent-pool``, and `address` (B, L, M, P), `stamp` (B, L, M) of its slots; the cache's `cached_keys.l`,
`cached_values.l` (B, H, C, W), `cached_address`, `cached_stamp`, and the long-term memory's, named `long_` in place of
`cached_`, with `long_lives` (B, N). A slot's age is ``slots`` x writes - stamp. While a question is read, `recalled`
(B, L, R): places in the long-term memory, then the cache.

Dimensions: B batch, L layers, H heads, M slots of the pool, C of the cache, N of the long-term memory, R recalled,
K renewed, T tokens, D hidden, P numbers of an address, W head width.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from byheart.errors import UsageError, require_one_of, require_positive
from byheart.methods.latent_pool import LatentPool
from byheart.model.backbone import Backbone
from byheart.model.reading import KV, Reading, map_slots
from byheart.protocol.episode import Batch
from byheart.protocol.episode_loss import episode_loss
from byheart.protocol.method import Method
from byheart.protocol.objective import TARGETS_ONLY, Objective
from byheart.protocol.slot_search import (
    FoundSlots,
    Projector,
    best_slots,
    gather_layer,
    put_slots,
    search_loss,
    slot_scores,
)
from byheart.protocol.state import State, kv_slots
from byheart.protocol.template import length, zeros

_GONE = 0.01


class LongTermPool(Method):
    """Keeps a pool of ``blocks`` x ``slots`` slots per layer, and those that it dropped; a question reads some of them.

    Args:
        slots, blocks, seed, longest, shortest, feed, rank, alpha, adapt, targets: as for ``latent-pool``.
        recalled: a question reads recalled * slots slots of the long-term memory.
        merge_every: writes between two merges of the cache into the long-term memory.
        lives: what a slot has when it comes into the long-term memory; it leaves when it has none.
        decay: lives that every slot loses at a merge, the one that brings it included. A merge that would leave no more
            than a question reads takes none, as published.
        most: slots of the long-term memory, at most; the first that came leave first.
        width: numbers of an address, P.
        order: how recalled slots are ordered: ``written`` by their age; ``dropped`` as the released inference file
            does, by when they were dropped.
        started: slots of the long-term memory that a trained one starts with.
    """

    name = "long-term-pool"

    def __init__(
        self,
        backbone: Backbone,
        *,
        slots: int = 64,
        blocks: int = 8,
        recalled: int = 2,
        merge_every: int = 60,
        lives: float = 10.0,
        decay: float = 1.0,
        most: int = 153_600,
        width: int = 64,
        order: str = "written",
        started: int = 0,
        seed: int = 0,
        longest: int = 512,
        shortest: int = 16,
        feed: str = "output",
        adapt: str = "all",
        rank: int = 0,
        alpha: float = 32.0,
        targets: tuple[str, ...] | list[str] = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj", "gate_proj"),
    ) -> None:
        Method.__init__(self, backbone)
        require_positive(recalled=recalled, merge_every=merge_every, lives=lives, decay=decay, width=width)
        require_one_of("order", order, ("written", "dropped"))
        self.pool = LatentPool(
            backbone,
            slots=slots,
            blocks=blocks,
            seed=seed,
            longest=longest,
            shortest=shortest,
            feed=feed,
            adapt=adapt,
            rank=rank,
            alpha=alpha,
            targets=targets,
        )
        if not 0 <= started <= most or most < recalled * slots:
            raise UsageError(
                f"most must be at least recalled * slots, {recalled * slots}, and started from 0 to most; "
                f"they are {most} and {started}."
            )
        self.slots, self.blocks, self.recalled, self.merge_every, self.most = slots, blocks, recalled, merge_every, most
        self.lives, self.decay, self.width, self.order, self.started = lives, decay, width, order, started
        self.seed, self.longest, self.shortest, self.feed, self.adapt = seed, longest, shortest, feed, adapt
        self.rank, self.alpha, self.targets = rank, alpha, list(targets)
        self.capacity = 1 + slots * (blocks + recalled)
        layers = len(backbone.layers)
        # Of one side alone, zeros still learn, as LoRA's do; until then all slots fit alike and the newest are read.
        self.query = Projector(layers, backbone.dim, width, seed=seed, silent=True)
        self.address = Projector(layers, backbone.dim, width, seed=seed + 1)
        # What a trained memory starts with: hidden states, addresses, ages and lives, see ``init``.
        hidden, address = (torch.zeros(layers, started, size, dtype=backbone.dtype) for size in (backbone.dim, width))
        self.long_hidden, self.long_address = nn.Buffer(hidden), nn.Buffer(address)
        self.long_ages = nn.Buffer(torch.zeros(layers, started, dtype=torch.long))
        self.long_lives = nn.Buffer(torch.zeros(started))
        self.to(backbone.device)

    @property
    def optional(self) -> dict[str, tuple[int, ...]]:
        """The pool that every session starts from."""
        return {f"pool.{name}": shape for name, shape in self.pool.optional.items()}

    # ---- states ----

    def init(self) -> State:
        """The first slot alone, or the trained pool and long-term memory."""
        state = self.pool.init()
        held, slots = self.pool.initial, state["place"].shape[2]
        hidden = self.pool.first[:, :0] if held is None else held
        stamps = -self.long_ages[None] - (self.slots * slots if self.order == "written" else 0)
        stored = FoundSlots(self.project(self.long_hidden), self.long_address[None].clone(), stamps)
        return {
            **state,
            "address": self._addresses(hidden[None]),
            # Whole blocks apart, so that none has a rank within a block.
            "stamp": self.slots * (state["place"] - slots),
            **stored.map(lambda part: part[:, :, :0].clone()).to_state("cached_"),
            **stored.to_state("long_"),
            "long_lives": self.long_lives[None].clone(),
        }

    def template(self, state: State, *, written: bool) -> State:
        """The pool's, and a cache and a long-term memory of any size up to the method's."""
        pool = self.pool.template(state, written=written)
        cached = length(state, "cached_stamp", 2, most=self.slots * self.merge_every, least=0)
        long = length(state, "long_stamp", 2, most=self.most, least=0)
        return {
            **pool,
            **self._found_by("", pool["place"].shape[2]),
            **self._slots("cached_", cached),
            **self._slots("long_", long),
            "long_lives": zeros(1, long, dtype=torch.float32),
        }

    def require_values(self, state: State) -> None:
        """The pool's are the pool's; no slot is newer than the last write, nor in the cache after a merge."""
        self.pool.require_values(state)
        writes, held = int(state["writes"]), state["cached_stamp"].shape[2]
        if held > (most := self.slots * (writes % self.merge_every)):
            raise ValueError(f"tensor 'cached_stamp' holds {held} slots, and at most {most} wait after {writes} writes")
        for name in ("stamp", "cached_stamp", "long_stamp"):
            if bool((state[name] > self.slots * writes).any()):
                raise ValueError(f"tensor '{name}' holds a slot that is newer than the last write")

    def batch_key(self, state: State, segment: Tensor) -> Hashable:
        """Shapes, and what decides how many slots the next merge leaves."""
        lives = state["long_lives"].cpu().numpy().tobytes()
        return Method.batch_key(self, state, segment), int(state["writes"]) % self.merge_every, lives

    def prefix_slots(self, state: State) -> int:
        """The first slot, those that are recalled, and the pool."""
        return kv_slots(state) + self._recalled(state)

    def slots_after(self, state: State, segment: Tensor) -> int:
        """What the pool drops can be recalled."""
        pool = self.pool.slots_after(state, segment)
        added = self.slots * sum(1 for _ in self.pieces(segment))
        return pool + self._recalled(state, more=kv_slots(state) + added - pool)

    def share_left(self, *, before: int, later: int) -> float:
        """As in a pool, but counted from when what it drops has left the long-term memory too.

        That a slot is there does not mean that a question finds it. A merge that takes no lives is not reckoned with.
        """
        kept = self.merge_every * (math.ceil((self.lives - _GONE) / self.decay) - 1)
        return self.pool.share_left(before=before, later=max(0, later - min(kept, self.most // self.slots)))

    # ---- writing ----

    def pieces(self, segment: Tensor) -> Iterator[Tensor]:
        """Segments of ``shortest`` to ``longest`` tokens."""
        return self.pool.pieces(segment)

    def write(self, state: State, segment: Tensor) -> State:
        """Read ``segment`` piece by piece; each renews slots of the pool, and what it drops goes into the cache."""
        for piece in self.pieces(segment):
            state = self.renew(state, self.pool.dry_run(state, piece))
        return state

    def renew(self, state: State, delta: Tensor, kept: Tensor | None = None) -> State:
        """The state after ``delta`` (B, L, K, D) joined the pool; arguments as for ``LatentPool.renew``."""
        after = self.pool.renew(state, delta, kept)
        new, slots = delta.shape[2], after["place"].shape[2]
        # The newest stand where dropped ones stood, and what is more at the end.
        stored = after["place"].argsort(dim=2)[:, :, slots - new :]
        gone = stored[:, :, : state["place"].shape[2] + new - slots]
        gone = gone.gather(2, state["place"].gather(2, gone).argsort(dim=2))
        now = self.slots * after["writes"][:, None, None]
        stamps = now + torch.arange(1 - new, 1, device=now.device)
        dropped = FoundSlots(self._kv(state).slice(1), state["address"], state["stamp"]).gather(gone)
        if self.order == "dropped":
            dropped = replace(dropped, stamp=now - (-dropped.stamp) % self.slots)
        cached, long = FoundSlots.of(state, "cached_").append(dropped), FoundSlots.of(state, "long_")
        lives = state["long_lives"]
        if int(after["writes"][0]) % self.merge_every == 0:
            long, lives = self._merge(long, lives, cached)
            cached = cached.map(lambda part: part[:, :, :0].clone())
        return {
            **after,
            "address": put_slots(state["address"], self._addresses(delta.detach()), stored),
            "stamp": put_slots(state["stamp"], stamps.expand_as(stored), stored),
            **cached.to_state("cached_"),
            **long.to_state("long_"),
            "long_lives": lives,
        }

    def _merge(self, long: FoundSlots, lives: Tensor, cached: FoundSlots) -> tuple[FoundSlots, Tensor]:
        """The long-term memory with the cache's slots, and the lives of all (B, N), less those that have none."""
        joined = long.append(cached)
        before = torch.cat([lives, lives.new_full((len(lives), cached.stamp.shape[2]), self.lives)], dim=1)
        after = before - self.decay
        # Alike in all rows of a batch, see ``batch_key``.
        stay = (after[0] > _GONE).nonzero()[:, 0]
        if len(stay) <= self.recalled * self.slots:
            after, stay = before, torch.arange(before.shape[1], device=before.device)
        stay = stay[-self.most :]
        return joined.map(lambda part: part.index_select(2, stay)), after[:, stay]

    # ---- reading ----

    @torch.no_grad()
    def select(self, state: State, prompt: Tensor) -> State:
        """The state with the slots that a prompt (T,) finds; itself, where all are read anyway."""
        if _waiting(state) <= self.recalled * self.slots:
            return state
        where, _ = self.search(state, prompt[None].expand(len(state["writes"]), -1))
        return {**state, "recalled": where}

    @torch.no_grad()
    def search(self, state: State, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """What a prompt (B, T) finds, (B, L, R), and its hidden states at the layers' inputs, (B, L, T, D).

        Each layer's slots are chosen by the prompt as it is after the layers before have read theirs.
        """
        cached, long = FoundSlots.of(state, "cached_"), FoundSlots.of(state, "long_")
        found: list[Tensor] = []
        rows: list[Tensor] = []

        def enter(index: int, hidden: Tensor) -> Tensor:
            """Put what is found into the layer's cache, before it is read."""
            queries = self.query(hidden[:, None], index)[:, 0]
            scores = [slot_scores(queries, part.address[:, index]) for part in (long, cached)]
            stamps = torch.cat([long.stamp[:, index], cached.stamp[:, index]], dim=1)
            where = best_slots(torch.cat(scores, dim=1), stamps, self._recalled(state))
            keys, values = gather_layer(long.kv, cached.kv, index, where)
            steps = torch.arange(1, 1 + where.shape[1], device=where.device)
            kv = self.backbone.rotate(KV((keys,), (values,)), steps, start=index)
            cache.overwrite(index, kv.keys[0], values, start=1)
            found.append(where)
            rows.append(hidden)
            return hidden

        prompt = prompt.to(self.backbone.device)
        with (
            self.backbone.reading([self.read(state)], room=prompt.shape[1]) as cache,
            self.backbone.layer_inputs(enter),
        ):
            self.backbone.hidden(prompt, cache=cache)
        return torch.stack(found, dim=1), torch.stack(rows, dim=1)

    def read(self, state: State) -> Reading:
        """The first slot, those that a question found, or the newest, the oldest first, and the pool."""
        cached, long = FoundSlots.of(state, "cached_").kv, FoundSlots.of(state, "long_").kv
        where = state["recalled"] if "recalled" in state else self._newest(state)
        first, pool = (self._kv(state).slice(start, stop) for start, stop in ((0, 1), (1, None)))
        layers = [gather_layer(long, cached, index, layer) for index, layer in enumerate(where.unbind(1))]
        kv = first.append(KV(*zip(*layers, strict=True))).append(pool)
        recalled, place = where.shape[2], state["place"]
        steps = torch.arange(1 + recalled, device=place.device).expand(*place.shape[:2], -1)
        places = torch.cat([steps, place + recalled], dim=2)
        deltas = self.pool.reading.deltas(len(place)) if self.pool.reading is not None else {}
        # (M,) for a batch of one, so that one table of angles serves it; else (B, M).
        each = [layer[0] if len(layer) == 1 else layer for layer in places.unbind(1)]
        return Reading(self.backbone.rotate(kv, each), deltas, batch=len(place))

    def _newest(self, state: State) -> Tensor:
        """The newest slots of cache and long-term memory, (B, L, R)."""
        stamps = torch.cat([state["long_stamp"], state["cached_stamp"]], dim=2)
        alike = torch.zeros(stamps.shape[::2], device=stamps.device)
        return torch.stack([best_slots(alike, layer, self._recalled(state)) for layer in stamps.unbind(1)], dim=1)

    # ---- learning ----

    def loss(self, batch: Batch, objective: Objective = TARGETS_ONLY) -> Tensor:
        """The targets' loss, and how badly their first tokens tell their own episode's slots in the pool from others.

        Others are the slots of the batch's other episodes, and those of a trained pool. As published the two train
        different parts: what is found is read as it is, and hidden states are given to the retriever as they are.
        Unlike there, all parts have one learning rate, and there is no retriever for writing, which reading never uses.
        """
        states, hidden = self.write_episodes(batch, objective)
        asked = batch.target[:, : _query_tokens(batch)]
        found = [self.search(state, row[None]) for state, row in zip(states, asked, strict=True)]
        chosen = [{**state, "recalled": where} for state, (where, _) in zip(states, found, strict=True)]
        seen = torch.cat([*hidden, self.hidden_of(chosen, batch.target)], dim=1)
        searching = self.recall_loss(states, torch.cat([rows for _, rows in found]))
        return episode_loss(self.backbone, seen, batch, objective) + searching

    def recall_loss(self, states: list[State], rows: Tensor) -> Tensor:
        """The retriever's, of the hidden states (B, L, T, D) of prompts that each have a state of their own."""
        owners = torch.cat([torch.full_like(state["stamp"], owner) for owner, state in enumerate(states)], dim=2)
        stamps = torch.cat([state["stamp"] for state in states], dim=2)
        # What a trained pool begins with has no stamp after 0.
        own = (owners == torch.arange(len(states), device=owners.device)[:, None, None]) & (stamps > 0)
        addresses = torch.cat([state["address"] for state in states], dim=2).expand(len(states), -1, -1, -1)
        layers = zip(self.query(rows).unbind(1), addresses.unbind(1), strict=True)
        return search_loss(torch.stack([slot_scores(*layer) for layer in layers], dim=1), own)

    # ---- parts ----

    def _recalled(self, state: State, more: int = 0) -> int:
        """How many slots a question reads beside the pool, of those that wait and ``more``."""
        return min(self.recalled * self.slots, _waiting(state) + more)

    def _kv(self, state: State) -> KV:
        """The first slot and the pool. Raises UsageError."""
        if (kv := self.pool.coding.to_kv(state)) is None:
            raise UsageError("This state has no pool; make one with init().")
        return kv

    def _addresses(self, hidden: Tensor) -> Tensor:
        """By what slots made of hidden states (B, L, M, D) are found."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.training):
            found: Tensor = self.address(hidden).to(self.backbone.dtype)
        return found

    def project(self, hidden: Tensor) -> KV:
        """The keys and values of slots made of hidden states (L, M, D), for a batch of one."""
        if not hidden.shape[1]:
            return map_slots(lambda part: part[:, :, :0].clone(), self.backbone.slot)
        with self.pool.reading.active(self.backbone) if self.pool.reading is not None else nullcontext():
            return self.backbone.project(list(hidden[:, None].unbind(0)))

    def _slots(self, name: str, slots: int) -> dict[str, Tensor]:
        """So many slots as they stand in a state, all of them empty."""
        kv = {f"{name}{part}": tensor for part, tensor in self.pool.coding.slots(slots).items()}
        return {**kv, **self._found_by(name, slots)}

    def _found_by(self, name: str, slots: int) -> dict[str, Tensor]:
        """What so many slots are found by, all of it empty."""
        layers, dtype, oldest = len(self.backbone.layers), self.backbone.dtype, 1
        if self.started or self.pool.initial is not None:
            # Of what was there before the first write, see ``init``.
            oldest = -(self.slots**2) * self.blocks - max(self.long_ages.flatten().tolist(), default=0)
        stamp = torch.full((), oldest).expand(1, layers, slots)
        return {f"{name}address": zeros(1, layers, slots, self.width, dtype=dtype), f"{name}stamp": stamp}


def _waiting(state: State) -> int:
    """How many slots are in the long-term memory and in the cache."""
    return state["long_stamp"].shape[2] + state["cached_stamp"].shape[2]


def _query_tokens(batch: Batch) -> int:
    """How many first tokens of each target are a prompt: any number while training, as published; else half of them."""
    columns = torch.arange(batch.labels.shape[1], device=batch.labels.device)
    most = int((batch.labels * columns).amax(1).min())
    return int(torch.randint(1, most + 1, ())) if torch.is_grad_enabled() else (most + 1) // 2
