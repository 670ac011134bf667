"""Facts as changes of several layers' feed-forward values: MEMIT (Meng et al. 2023, arXiv 2210.07229).

What the stream should hold at the subject's last token after the last of the layers is learned as in ROME. What it
lacks is then spread: from the lowest layer up, each takes its share r of what is still missing, and its values change
by r k^T (S C + K K^T)^-1, where C are the moments of the layer's keys, S how much these weigh, and K the keys of all
facts (section 4.3). Facts that are written one after another count each other's keys: for given keys and shares, the
changes add up to those of all facts at once, as least squares do whose data come one by one.

State: `down.<path>` (B, R, in), `up.<path>` (B, out, R) and `keys.<path>` (B, R, in), float32, for each layer's values:
a rank and a key for each of R edits.

Dimensions: B batch, R edits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from byheart.errors import require_positive
from byheart.model.anatomy import hooked
from byheart.model.backbone import Backbone
from byheart.protocol import key_moments
from byheart.protocol.fact import Fact
from byheart.protocol.fact_editing import FactRows, keys_of
from byheart.protocol.fact_method import FactMethod
from byheart.protocol.state import State

_DEPTH = 5


class MEMIT(FactMethod):
    """Keeps updates of rank one for each fact, spread over some layers' feed-forward values, and no text.

    Args:
        layers: those that are edited; none means the five that end a third of the way up.
        moments_weight: how much the keys of other text weigh against those of the facts.
        steps, learning_rate, kl, decay, clamp, contexts, learned_tokens, chunk_tokens, seed: see ``FactMethod``.
    """

    name = "memit"
    parts = ("down", "up", "keys")

    def __init__(
        self,
        backbone: Backbone,
        *,
        layers: Sequence[int] = (),
        moments_weight: float = 15000.0,
        steps: int = 20,
        learning_rate: float = 0.5,
        kl: float = 0.0625,
        decay: float = 0.5,
        clamp: float = 0.75,
        contexts: int = 20,
        learned_tokens: int = 4,
        chunk_tokens: int = 256,
        seed: int = 0,
    ) -> None:
        FactMethod.__init__(
            self,
            backbone,
            layers=layers,
            steps=steps,
            learning_rate=learning_rate,
            kl=kl,
            decay=decay,
            clamp=clamp,
            contexts=contexts,
            learned_tokens=learned_tokens,
            chunk_tokens=chunk_tokens,
            seed=seed,
        )
        require_positive(moments_weight=moments_weight)
        self.moments_weight = moments_weight

    @staticmethod
    def edited_layers(layers: Sequence[int], depth: int) -> list[int]:
        """Those that were given, from the lowest up, or the five that end a third of the way up."""
        last = depth // 3
        return sorted(set(layers)) or list(range(max(0, last + 1 - _DEPTH), last + 1))

    def edit(self, state: State, fact: Fact, rows: FactRows) -> State:
        """Spread what the stream lacks after the last layer over the layers, from the lowest up."""
        last = self.layers[-1]
        wanted = self.learn_value(rows, self.backbone.layers[last], last, self.changes(state, rows)).wanted
        for left, path in zip(range(len(self.paths), 0, -1), self.moment_paths, strict=True):
            changes = self.changes(state, rows)
            share = (wanted - self._stream(state, rows, last)) / left
            key = keys_of(self.backbone, rows, path, changes)
            direction = self.direction(path, state[f"keys.{path}"][0], key)
            state = self.append(state, path, down=direction, up=share, keys=key)
        return state

    def direction(self, path: str, earlier: Float[Tensor, "R K"], key: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        """The product of the inverse of S C + K K^T and the key, which is the last of K."""
        solved = key_moments.solve(self.factor(path, self.moments_weight), [*earlier, key])
        keys = torch.stack([*earlier, key], dim=1).double().cpu()
        # Woodbury's identity: the factor is of S C alone, and serves every fact.
        among = torch.eye(keys.shape[1], dtype=keys.dtype) + keys.T @ solved
        last = torch.eye(keys.shape[1], dtype=keys.dtype)[-1]
        found: Tensor = solved @ torch.linalg.solve(among, last)
        return found.to(key)

    @torch.no_grad()
    def _stream(self, state: State, rows: FactRows, layer: int) -> Float[Tensor, " D"]:
        """What the stream holds after a layer at the subject of the bare fact."""
        seen: list[Tensor] = []
        hook = self.backbone.layers[layer].register_forward_hook(lambda module, args, out: seen.append(out))
        with self.backbone.changing(self.changes(state, rows)), hooked([hook]):
            self.backbone.hidden(rows.tokens)
        return rows.at_subject(seen[0])[0].float()
