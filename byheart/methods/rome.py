"""A fact as a change of rank one of a layer's feed-forward values: ROME (Meng et al. 2022, arXiv 2202.05262).

The matrix that writes to the stream is a memory of keys and values. At the subject's last token a key k goes in; the
value v* is learned with which the model says what is to be known; and of all changes that store it, the one is made
that changes least what other keys give: (v* - W k) (C^-1 k)^T / (k^T C^-1 k), where C are the moments of the keys
(section 3.1). Facts are marked in what is written, see ``text.fact_text``.

State: `down.<path>` (B, R, in) and `up.<path>` (B, out, R), float32: a rank for each of R edits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from byheart.errors import UsageError
from byheart.protocol import key_moments
from byheart.protocol.fact import Fact
from byheart.protocol.fact_editing import FactRows, keys_of
from byheart.protocol.fact_method import FactMethod
from byheart.protocol.state import State


class ROME(FactMethod):
    """Keeps an update of rank one for each fact, in one layer's feed-forward values, and no text.

    Args:
        layers: the one that is edited; none means that a third of the way up.
        steps, learning_rate, kl, decay, clamp, contexts, learned_tokens, chunk_tokens, seed: see ``FactMethod``.
    """

    name = "rome"

    @staticmethod
    def edited_layers(layers: Sequence[int], depth: int) -> list[int]:
        """The one that was given, or the one a third of the way up. Raises UsageError."""
        if len(layers) > 1:
            raise UsageError(f"rome edits one layer; layers is {list(layers)}. memit spreads an edit over several.")
        return list(layers) or [depth // 3]

    def edit(self, state: State, fact: Fact, rows: FactRows) -> State:
        """The least change of the layer's values with which its key gives what makes the fact known."""
        [(layer, path)] = self.paths.items()
        backbone, linear = self.backbone, self.backbone.linear(path)
        changes = self.changes(state, rows)
        key = keys_of(backbone, rows, path, changes)
        value = self.learn_value(rows, linear, layer, changes)
        with torch.no_grad(), backbone.deltas([self.read(state).deltas]):
            given = linear(key.to(backbone.dtype)[None, None])[0, 0].float()
        direction = key_moments.solve(self.factor(path), [key])[:, 0].to(key)
        return self.append(state, path, down=direction / (direction @ key), up=value.wanted - given)
