"""What editors of a feed-forward block's values share: keys of a fact over random contexts, and the value to store.

ROME and MEMIT (Meng et al. 2022, arXiv 2202.05262; 2023, arXiv 2210.07229) take a fact apart into a key, what the
matrix is given at the subject's last token, and a value, what it should give there for the model to say what is to be
known. The key is a mean over texts that stand before the fact, which the model itself draws; the value is learned by
gradient descent, and held by what the model says of the subject otherwise. Constants are those of the papers' code.

Dimensions: B rows (the fact after each context, then the essence), T tokens, N contexts, D hidden, K key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from byheart.model.anatomy import hooked
from byheart.model.backbone import Backbone, Change
from byheart.model.losses import token_losses
from byheart.protocol.fact import Fact

_LENGTHS = (5, 10)
_LEARNED = 5e-2


@dataclass(frozen=True)
class FactRows:
    """A fact after nothing and after each context, and last, where it has a subject, a prompt for its essence.

    ``places`` are those of the subject's last token, or of the essence's; ``learned`` marks the tokens that are
    predicted, from the second on; ``contexts`` rows are the fact's.
    """

    tokens: Int[Tensor, "B T"]
    places: Int[Tensor, " B"]
    learned: Bool[Tensor, "B t"]
    contexts: int
    essence_end: int

    @classmethod
    def of(cls, backbone: Backbone, fact: Fact, contexts: Sequence[Tensor]) -> FactRows:
        """The rows of a fact; what follows the target is not read."""
        text = fact.tokens[: fact.end].cpu()
        # A token that begins every text stays at the beginning.
        start = int(text[0] == backbone.first_token and fact.subject > 0)
        ahead = [text[:0], *contexts]
        rows = [torch.cat([text[:start], context, text[start:]]) for context in ahead]
        subject = torch.tensor([fact.subject + len(context) for context in ahead])
        spans = [(fact.start + len(context), fact.end + len(context)) for context in ahead]
        if len(fact.essence):
            rows.append(fact.essence.cpu())
            subject = torch.cat([subject, torch.tensor([fact.essence_subject])])
            spans.append((0, 0))
        places = torch.arange(1, max(map(len, rows)))
        learned = torch.stack([(places >= first) & (places < last) for first, last in spans])
        tokens, device = pad_sequence(rows, batch_first=True), backbone.device
        return cls(tokens.to(device), subject.to(device), learned.to(device), len(ahead), len(rows[-1]) - 1)

    @property
    def has_essence(self) -> bool:
        """Whether the last row asks what the subject is."""
        return len(self.tokens) > self.contexts

    def at_subject(self, values: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """What stands at each row's subject."""
        return values[torch.arange(len(values), device=values.device), self.places]


@dataclass(frozen=True)
class Value:
    """What a module gives at the subject of the bare fact, and the change with which the fact is known."""

    before: Float[Tensor, " D"]
    change: Float[Tensor, " D"]

    @property
    def wanted(self) -> Float[Tensor, " D"]:
        """What it should give there."""
        return self.before + self.change


@torch.no_grad()
def draw_contexts(backbone: Backbone, count: int, seed: int) -> list[Int[Tensor, " _"]]:
    """So many beginnings of texts that the model draws by itself, of 5 and 10 tokens in turn."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.full((count, 1), backbone.first_token)
    for _ in range(max(_LENGTHS) if count else 0):
        chances = torch.softmax(backbone.logits(backbone.hidden(tokens)[:, -1]), dim=-1).cpu()
        tokens = torch.cat([tokens, torch.multinomial(chances, 1, generator=generator)], dim=1)
    return [row[1 : 1 + _LENGTHS[n % len(_LENGTHS)]] for n, row in enumerate(tokens)]


@torch.no_grad()
def keys_of(backbone: Backbone, rows: FactRows, path: str, changes: Sequence[Change]) -> Float[Tensor, " K"]:
    """The mean of what the matrix at ``path`` is given at the subject, over the contexts."""
    taken: list[Tensor] = []
    hook = backbone.linear(path).register_forward_pre_hook(lambda module, args: taken.append(args[0]))
    with backbone.changing(changes), hooked([hook]):
        backbone.hidden(rows.tokens)
    return rows.at_subject(taken[0])[: rows.contexts].float().mean(0)


def learn_value(
    backbone: Backbone,
    rows: FactRows,
    module: nn.Module,
    layer: int,
    changes: Sequence[Change],
    *,
    steps: int,
    learning_rate: float,
    kl: float,
    decay: float,
    most: float,
) -> Value:
    """What ``module``, in ``layer`` or all of it, should give at the subject for the model to say what is to be known.

    Args:
        changes: of linear layers, by earlier edits.
        kl: weight of the divergence of what the model says of the subject's essence from what it said before.
        decay: weight of the change's length, divided by the square of the value's.
        most: the longest that the change may become, times the value's length.
    """
    # Tensors made in inference mode cannot be tuned.
    with torch.inference_mode(False):
        seen: list[Tensor] = []
        # Hooks run in the order of their registration: this one sees what the changes make of the output.
        shown = hooked(_showing(rows, each, seen) for each in [module])
        with torch.no_grad(), backbone.changing(changes), shown, backbone.upper(layer) as taken:
            plain = _essence(backbone, rows, backbone.hidden(rows.tokens))
        before = seen[0].float()
        change, length = torch.zeros_like(before).requires_grad_(), before.norm()
        optimizer = torch.optim.Adam([change], lr=learning_rate)
        for _ in range(steps):
            with torch.enable_grad(), backbone.changing(changes), hooked([_adding(rows, module, change)]):
                hidden = backbone.resume(taken[0])
                missed = _missed(backbone, rows, hidden)
                loss = missed + decay * _length(change) / length**2
                if rows.has_essence:
                    now = _essence(backbone, rows, hidden)
                    loss = loss + kl * (now.exp() * (now - plain)).sum()
            if missed.item() < _LEARNED:
                break
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                change.mul_((most * length / change.norm().clamp(min=1e-12)).clamp(max=1.0))
        return Value(before, change.detach())


def _showing(rows: FactRows, module: nn.Module, seen: list[Tensor]) -> Any:
    """The handle of a hook that keeps what a module gives at the subject of the bare fact."""
    return module.register_forward_hook(lambda module, args, out: seen.append(rows.at_subject(out)[0]))


def _adding(rows: FactRows, module: nn.Module, change: Tensor) -> Any:
    """The handle of a hook that adds a change to what a module gives at the subjects."""

    def add(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        changed = out.clone()
        changed[torch.arange(len(out), device=out.device), rows.places] += change.to(out.dtype)
        return changed

    return module.register_forward_hook(add)


def _missed(backbone: Backbone, rows: FactRows, hidden: Tensor) -> Tensor:
    """The mean loss of a token that is to be known, in nats; each context has equally many."""
    losses = token_losses(backbone, hidden[:, :-1][rows.learned], rows.tokens[:, 1:][rows.learned])
    return losses.total.mean()


def _essence(backbone: Backbone, rows: FactRows, hidden: Tensor) -> Tensor:
    """The log-probabilities (V,) after the prompt for the essence."""
    return torch.log_softmax(backbone.logits(hidden[-1, rows.essence_end]), dim=-1)


def _length(vector: Tensor) -> Tensor:
    """The norm; its gradient at 0 is 0."""
    return vector.pow(2).sum().clamp(min=1e-24).sqrt()
