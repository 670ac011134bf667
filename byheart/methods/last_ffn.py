"""The last feed-forward block, tuned on the text before answering (FastMem, Zhu et al. 2024, arXiv 2406.16069).

A few steps of AdamW on cross-entropy plus a KL divergence from the untouched model teach the last block the text
(section 3). Nothing below that block changes, so its input is computed once, and the text's keys and values are the
ordinary ones: they are the prefix, as the paper prompts with the text too. What is kept of the tuning is a float32
change of each weight; steps of 1e-5 would vanish in bfloat16 weights.

State: `delta.<path>` (B, out, in) for each tuned weight, float32; `keys.l`, `values.l` (B, H, M, W) where the text is
kept, coded where ``bits`` is not 16.

Dimensions: B batch, H heads, M slots, T tokens, D hidden, W head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from byheart.errors import InputError, UnsupportedModelError, UsageError, require_not_negative, require_positive
from byheart.model.anatomy import LayerCheckpoint
from byheart.model.backbone import Backbone
from byheart.model.feed_forward import FeedForwardInput
from byheart.model.linear import is_transposed
from byheart.model.losses import LogitsBuffer, Reference, make_reference, token_losses
from byheart.model.optimize import descend, require_steps
from byheart.model.reading import DenseDelta, Reading
from byheart.protocol.kv_slots import prefill_pieces
from byheart.protocol.method import Method
from byheart.protocol.quantise import require_bits
from byheart.protocol.segments import (
    common_prefix_length,
    require_known,
    require_learnable,
    require_positions,
    split_segments,
)
from byheart.protocol.slot_coding import SlotCoding
from byheart.protocol.state import State, kv_slots, stack, unstack

_PUBLISHED_RATE, _PUBLISHED_SIZE = 1e-5, 8.03e9
"""For question answering, of Llama 3 8B."""


@dataclass(frozen=True)
class Tuned:
    """What tuning on one text gave: a change for each weight, and the loss and KL before each step, if any."""

    deltas: dict[str, Tensor]
    losses: list[float] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Text:
    """One text being learned: what the tuned blocks are fed, its targets, and the untouched model's predictions."""

    fed: FeedForwardInput | LayerCheckpoint
    span: slice
    targets: Tensor
    reference: Reference


def rate_for(parameters: int) -> float:
    """The learning rate for a model of so many parameters.

    It is the paper's 1e-5 from 8 billion parameters on, below that in inverse proportion, nowhere above 1e-3: at the
    paper's own rate nothing changes in a model of 135 million parameters. Between these sizes the proportion is a
    guess; docs/explanation/log.md has what was measured.
    """
    return _PUBLISHED_RATE * min(max(1.0, _PUBLISHED_SIZE / parameters), 100.0)


class LastFFN(Method):
    """Keeps a change of the last ``layers`` feed-forward blocks, and the text's keys and values.

    Args:
        steps, kl: of the tuning; the paper's settings for question answering are the defaults. No steps leave the model
            as it is.
        kl_target: a divergence in nats by which the weight ``kl`` is raised or lowered before each step, as the
            released code can (5 there; Ziegler et al. 2019, arXiv 1909.08593); 0 leaves it. A step then costs a second
            product with the head.
        learning_rate: of the tuning; 0 takes one by the model's size, see ``rate_for``, and what it is stands in
            the memory's header.
        layers: how many of the last layers' blocks are tuned.
        keep_text: keep the text's keys and values as the prefix too.
        clip: bound on the gradient's norm.
        header, footer: tokens put around the text while it is learned, an assistant turn in the paper; the header
            is not learned.
        opening, receipt: tokens that stand around the text where it is kept as a turn of a conversation. They are in
            the prefix and are not learned: the paper learns the bare text, in an assistant turn, and prompts with it
            in a user's.
        bits: of each number of the text's keys and values; 8 or 4 code it once, when it is written.
    """

    name = "last-ffn"

    def __init__(
        self,
        backbone: Backbone,
        *,
        steps: int = 10,
        learning_rate: float = 0.0,
        kl: float = 0.1,
        layers: int = 1,
        keep_text: bool = True,
        clip: float = 1.0,
        header: Sequence[int] = (),
        footer: Sequence[int] = (),
        opening: Sequence[int] = (),
        receipt: Sequence[int] = (),
        bits: int = 16,
        kl_target: float = 0.0,
    ) -> None:
        Method.__init__(self, backbone)
        require_bits(bits)
        require_positive(layers=layers, clip=clip)
        require_steps(steps, least=0)
        require_not_negative(kl=kl, learning_rate=learning_rate, kl_target=kl_target)
        require_known(backbone, header=header, footer=footer, opening=opening, receipt=receipt)
        if layers > len(backbone.layers):
            raise UsageError(f"layers must be at most {len(backbone.layers)}, the model's depth; it is {layers}.")
        self.steps, self.kl, self.kl_target, self.layers = steps, kl, kl_target, layers
        self.learning_rate = learning_rate or rate_for(sum(part.numel() for part in backbone.model.parameters()))
        self.keep_text, self.clip, self.bits = keep_text, clip, bits
        self.coding = SlotCoding(backbone, bits)
        # Without the text there is no conversation for a question to continue.
        self.text_format = "turn" if keep_text else "text"
        self.header, self.footer = list(header), list(footer)
        self.opening, self.receipt = list(opening), list(receipt)
        depth = len(backbone.layers)
        self._paths = [p for i in range(depth - layers, depth) for p in backbone.feed_forward_roles(i)]
        for path, linear in ((path, backbone.linear(path)) for path in self._paths):
            if is_transposed(linear):
                raise UnsupportedModelError(
                    f"last-ffn cannot tune '{path}', whose weight is transposed as GPT-2's are; take ffn-lora."
                )
            if linear.weight.shape != (linear.out_features, linear.in_features):
                raise UsageError(f"last-ffn tunes '{path}', whose weight is packed; open the model in another dtype.")

    def init(self) -> State:
        """No change."""
        return {
            f"delta.{path}": torch.zeros((1, *self.backbone.linear(path).weight.shape), device=self.backbone.device)
            for path in self._paths
        }

    def slots_after(self, state: State, segment: Tensor) -> int:
        """One more per token, where the text is kept."""
        return kv_slots(state) + self.keep_text * segment.shape[1]

    def write(self, state: State, segment: Tensor) -> State:
        """Learn ``segment``, from what was learned before."""
        return stack(self.write_many(unstack(state), list(torch.split(segment, 1))))

    def write_many(self, states: Sequence[State], segments: Sequence[Tensor]) -> list[State]:
        """Learn many texts of any lengths at once: each has its own change, all share one product with the head."""
        before = [{path: state[f"delta.{path}"][0] for path in self._paths} for state in states]
        learned = self._learn(before, segments)
        after: list[State] = []
        for state, segment, tuned in zip(states, segments, learned, strict=True):
            changes = {f"delta.{path}": delta[None] for path, delta in tuned.deltas.items()}
            after.append({**self._with_text(state, segment, changes), **changes})
        return after

    def template(self, state: State, *, written: bool) -> State:
        """The changes, and the text's slots once it was written."""
        kv = self.coding.template(state) if self.keep_text and written else {}
        return {**self.init(), **kv}

    def require_values(self, state: State) -> None:
        """Raise ValueError where a code's range is none."""
        self.coding.require_values(state)

    def read(self, state: State) -> Reading:
        """The text's prefix, where kept, and the change of the last blocks."""
        return Reading(self.coding.to_plain(state), self._deltas(state), batch=next(iter(state.values())).shape[0])

    def tune(self, tokens: Tensor, *, start: int) -> Tuned:
        """Tune on ``tokens`` (1, T): those from ``start`` on are learned, the ones before are only read."""
        return self.tune_many([{}], [(tokens, start)])[0]

    def _deltas(self, state: State) -> dict[str, DenseDelta]:
        # Without steps the changes are zeros, which would only cost their products.
        return {path: DenseDelta(state[f"delta.{path}"]) for path in self._paths if self.steps}

    def _with_text(self, state: State, segment: Tensor, changes: State) -> State:
        """Everything kept but the changes: the text's keys and values, which only deeper tuning touches."""
        if not self.keep_text:
            return {}
        past = self.coding.to_kv(state)
        total = (past.slots if past else 0) + segment.shape[1]
        require_positions(self.backbone, total, "write less of it, or make the method with keep_text=False")
        with self.backbone.deltas([self._deltas(changes) if self.layers > 1 else {}]):
            kv = prefill_pieces(self.backbone, split_segments(segment, longest=1024), past)
        return self.coding.to_state(kv) if kv else {}

    def _bare(self, text: Tensor) -> Tensor:
        """The text (1, T) without what it has of the opening and the receipt."""
        ids = text[0].tolist()
        start = common_prefix_length(ids, self.opening)
        end = len(ids) - common_prefix_length(ids[start:][::-1], self.receipt[::-1]) if self.keep_text else len(ids)
        return text[:, start:end] if start < end else text

    def _learn(self, before: Sequence[Mapping[str, Tensor]], texts: Sequence[Tensor]) -> list[Tuned]:
        turns = []
        for text in texts:
            if text.shape[1] == 0:
                raise InputError("There is nothing to write: the text is empty.")
            ends = [torch.tensor([ids], dtype=torch.long, device=text.device) for ids in (self.header, self.footer)]
            # Without a header the first token has nothing before it to be predicted from.
            turns.append((torch.cat([ends[0], self._bare(text), ends[1]], dim=1), max(1, len(self.header))))
            require_learnable(turns[-1][0])
            require_positions(self.backbone, turns[-1][0].shape[1], "write it in parts")
        return self.tune_many(before, turns)

    # Tensors made in inference mode cannot be tuned, whatever mode the caller is in.
    @torch.inference_mode(False)
    def tune_many(self, before: Sequence[Mapping[str, Tensor]], texts: Sequence[tuple[Tensor, int]]) -> list[Tuned]:
        """As ``tune``, of several texts together, each from the changes that were made before it."""
        frozen = {path: self.backbone.linear(path).weight for path in self._paths}
        if not self.steps:
            return [
                Tuned({p: d.get(p, torch.zeros_like(w, dtype=torch.float)) for p, w in frozen.items()}) for d in before
            ]
        weights = [{p: (w.float() + deltas.get(p, 0)).requires_grad_() for p, w in frozen.items()} for deltas in before]
        prepared = [self._prepare(tokens, start) for tokens, start in texts]
        targets, reference = torch.cat([text.targets for text in prepared]), _concat([t.reference for t in prepared])
        scratch, counts = LogitsBuffer(), [len(text.targets) for text in prepared]
        history: list[Tensor] = []
        kl: float | Tensor = self.kl

        def loss() -> Tensor:
            nonlocal kl
            hidden = torch.cat(
                [self._hidden(tuned, text)[text.span] for tuned, text in zip(weights, prepared, strict=True)]
            )
            how: dict[str, Any] = {"reference": reference, "scratch": scratch}
            if self.kl_target:
                now = token_losses(self.backbone, hidden.detach(), targets, **how).divergence
                kl = kl * self._raise(now, counts, share=(len(history) + 1) / self.steps)
            values = token_losses(self.backbone, hidden, targets, kl=kl, **how)
            means = [[part.mean() for part in torch.split(v, counts)] for v in (values.total, values.divergence)]
            history.append(torch.stack([torch.stack(column).detach() for column in means]))
            return torch.stack(means[0])

        groups = [list(tuned.values()) for tuned in weights]
        descend(groups, loss, steps=self.steps, learning_rate=self.learning_rate, clip=self.clip)
        steps = torch.stack(history, dim=-1).tolist()
        deltas = [{p: w.detach() - frozen[p].float() for p, w in tuned.items()} for tuned in weights]
        return [Tuned(*tuned) for tuned in zip(deltas, *steps, strict=True)]

    def _raise(self, divergence: Tensor, counts: Sequence[int], *, share: float) -> Tensor:
        """By what the weight of the divergence is multiplied, for each token (N,): the same throughout a text."""
        means = torch.stack([part.mean() for part in torch.split(divergence, list(counts))])
        factors = 1 + (means / self.kl_target - 1).clamp(-0.2, 0.2) * share
        return factors.repeat_interleave(torch.tensor(counts, device=factors.device))

    @torch.no_grad()
    def _prepare(self, tokens: Tensor, start: int) -> _Text:
        """Run the frozen model once and keep what the tuned blocks are fed."""
        first = len(self.backbone.layers) - self.layers
        tokens = tokens.to(self.backbone.device)
        span = slice(start - 1, tokens.shape[1] - 1)
        if self.layers == 1:
            with self.backbone.feed_forward_inputs(first) as fed:
                hidden = self.backbone.hidden(tokens)
            kept: FeedForwardInput | LayerCheckpoint = FeedForwardInput(fed[0].input.float(), fed[0].residual.float())
        else:
            with self.backbone.upper(first) as taken:
                hidden = self.backbone.hidden(tokens)
            kept = taken[0]
        return _Text(kept, span, tokens[0, start:], make_reference(self.backbone, hidden[0, span]))

    def _hidden(self, weights: Mapping[str, Tensor], text: _Text) -> Tensor:
        """Final hidden states (T, D) with these weights in the tuned blocks."""
        if isinstance(text.fed, LayerCheckpoint):
            changes = {p: DenseDelta((w - self.backbone.linear(p).weight.float())[None]) for p, w in weights.items()}
            with self.backbone.deltas([changes]):
                return self.backbone.resume(text.fed)[0]
        last = self.backbone.feed_forward(len(self.backbone.layers) - 1)
        names = {id(module): name for name, module in last.block.named_modules()}
        parameters = {f"{names[id(self.backbone.linear(path))]}.weight": w for path, w in weights.items()}
        output = functional_call(last.block, parameters, (text.fed.input,))
        return self.backbone.finish(last.finish(text.fed.residual, output))[0]


def _concat(references: Sequence[Reference]) -> Reference:
    columns = ("mean", "bias", "negentropy", "hidden")
    return Reference(*(torch.cat([vars(reference)[column] for reference in references]) for column in columns))
