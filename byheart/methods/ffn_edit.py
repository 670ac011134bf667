"""An edit of whole feed-forward matrices by plain gradient descent on the text (Qiu et al. 2024, arXiv 2402.12233).

A feed-forward layer is a memory of keys (the matrices that match its input: gate and up) and values (the one that
writes to the stream: down). The paper's first half edits facts by back-propagation into the one or the other of chosen
layers; its code was not released, so the settings are this project's. With ``bound`` this is the constrained
fine-tuning of Zhu et al. (2020, arXiv 2012.00363), and with ``stop_loss`` it ends early as the baselines of ROME do.

State: `delta.<path>` (B, out, in) for each edited weight, float32: 4 bytes per weight, however short the text is. The
optimizer keeps two more of the same size while it learns.

Dimensions: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from byheart.errors import UsageError, require_not_negative, require_one_of, require_positive
from byheart.model.backbone import Backbone
from byheart.model.linear import widths
from byheart.model.losses import LogitsBuffer, token_losses
from byheart.model.optimize import descend, require_steps
from byheart.model.reading import DenseDelta, Reading
from byheart.protocol.method import Method
from byheart.protocol.segments import require_learnable, split_segments, write_in_step
from byheart.protocol.state import State, stack, unstack


class FFNEdit(Method):
    """Keeps a change of the chosen layers' whole feed-forward keys or values, and no text.

    Args:
        role: ``keys`` edits the gate and up matrices, ``gate`` and ``up`` one of them; ``values`` and ``down`` are the
            same matrix, the one that writes to the stream.
        layers: which layers; none means the middle one.
        steps, learning_rate, clip: of AdamW on the text's next-token loss; the defaults are for single facts.
        stop_loss: nats per token below which a text is learned well enough; 0 takes all steps.
        learned_tokens: only so many of a text's last tokens are learned, the others are read; 0 is all.
        bound: the most that a single weight may change; 0 is no bound.
        chunk_tokens: longer text is learned in pieces of this many tokens, one after another.
    """

    name = "ffn-edit"

    def __init__(
        self,
        backbone: Backbone,
        *,
        role: str = "keys",
        layers: Sequence[int] = (),
        steps: int = 5,
        learning_rate: float = 4e-3,
        clip: float = 1.0,
        stop_loss: float = 0.0,
        learned_tokens: int = 0,
        bound: float = 0.0,
        chunk_tokens: int = 1024,
    ) -> None:
        Method.__init__(self, backbone)
        require_positive(learning_rate=learning_rate, clip=clip)
        require_steps(steps)
        depth = len(backbone.layers)
        if chunk_tokens < 2:
            raise UsageError(f"chunk_tokens must be 2 or more, or no token has a next one; it is {chunk_tokens}.")
        require_not_negative(stop_loss=stop_loss, learned_tokens=learned_tokens, bound=bound)
        require_one_of("role", role, ("keys", "values", "gate", "up", "down"))
        if any(not 0 <= layer < depth for layer in layers):
            raise UsageError(f"layers must lie between 0 and {depth - 1}; they are {list(layers)}.")
        self.role, self.layers = role, list(layers) or [depth // 2]
        self.steps, self.learning_rate, self.clip = steps, learning_rate, clip
        self.stop_loss, self.learned_tokens, self.bound = stop_loss, learned_tokens, bound
        self.chunk_tokens = chunk_tokens
        self._paths = [path for index in sorted(set(self.layers)) for path in _paths(backbone, index, role)]

    def init(self) -> State:
        """No change."""
        # By their sizes: the weights of a model in 4 bits have another shape.
        shapes = {path: reversed(widths(self.backbone.linear(path))) for path in self._paths}
        return {f"delta.{path}": torch.zeros(1, *shape, device=self.backbone.device) for path, shape in shapes.items()}

    def pieces(self, segment: Tensor) -> Iterator[Tensor]:
        """Parts of at most ``chunk_tokens`` tokens."""
        return split_segments(segment, longest=self.chunk_tokens, shortest=2)

    def write(self, state: State, segment: Tensor) -> State:
        """Learn ``segment``, from what was learned before."""
        return stack(self.write_many(unstack(state), list(torch.split(segment, 1))))

    def write_many(self, states: Sequence[State], segments: Sequence[Tensor]) -> list[State]:
        """Learn many texts of any lengths at once: each has its own change, all share the passes."""
        require_learnable(*segments)
        return write_in_step(states, map(self.pieces, segments), self._learn)

    def read(self, state: State) -> Reading:
        """The changes; no prefix."""
        deltas = {path: DenseDelta(state[f"delta.{path}"]) for path in self._paths}
        return Reading(deltas=deltas, batch=next(iter(state.values())).shape[0])

    # Tensors made in inference mode cannot be tuned, whatever mode the caller is in.
    @torch.inference_mode(False)
    def _learn(self, states: Sequence[State], texts: Sequence[Tensor]) -> list[State]:
        leaves = [{path: state[f"delta.{path}"].clone().requires_grad_() for path in self._paths} for state in states]
        # Padding stands on the right, where no token of the text sees it.
        tokens = pad_sequence([text[0] for text in texts], batch_first=True).to(self.backbone.device)
        learned = self._mask(texts).to(self.backbone.device)
        with torch.no_grad(), self.backbone.upper(min(self.layers)) as taken:
            self.backbone.hidden(tokens)
        scratch, counts = LogitsBuffer(), learned.sum(1).tolist()

        def loss() -> Tensor:
            with self.backbone.deltas([{path: DenseDelta(delta) for path, delta in row.items()} for row in leaves]):
                hidden = self.backbone.resume(taken[0])[:, :-1]
            losses = token_losses(self.backbone, hidden[learned], tokens[:, 1:][learned], scratch=scratch)
            return torch.stack([part.mean() for part in torch.split(losses.total, counts)])

        descend(
            [list(row.values()) for row in leaves],
            loss,
            steps=self.steps,
            learning_rate=self.learning_rate,
            clip=self.clip,
            # The leaves are changes: to decay them would draw the text out again.
            weight_decay=0.0,
            stop_loss=self.stop_loss,
            bound=self.bound,
        )
        return [{f"delta.{path}": delta.detach() for path, delta in row.items()} for row in leaves]

    def _mask(self, texts: Sequence[Tensor]) -> Tensor:
        """Which tokens (B, T - 1), from the second on, are learned: those of the text, or the last of them."""
        lengths = torch.tensor([text.shape[1] for text in texts])[:, None]
        places = torch.arange(1, int(lengths.max()))
        first = lengths - self.learned_tokens if self.learned_tokens else torch.ones_like(lengths)
        return (places >= first) & (places < lengths)


def _paths(backbone: Backbone, index: int, role: str) -> list[str]:
    """The matrices of layer ``index`` that have this role. Raises UsageError where none has it alone."""
    roles = backbone.feed_forward_roles(index)
    if role in ("keys", "values", "down"):
        return [path for path, found in roles.items() if found == ("keys" if role == "keys" else "values")]
    keys = [path for path, found in roles.items() if found == "keys"]
    found = [path for path in keys if _is_factor(backbone, index, path) == (role == "up")]
    if len(keys) != 2 or len(found) != 1:
        raise UsageError(
            f"layer {index} has no matrix that is its {role} alone: its keys are {', '.join(keys)}. Take role=keys."
        )
    return found


@torch.no_grad()
def _is_factor(backbone: Backbone, index: int, path: str) -> bool:
    """Whether the block's output is linear in this matrix's: so it is in up's, and in gate's it is not."""
    block, linear = backbone.feed_forward_block(index), backbone.linear(path)
    # Large, so that an activation is far from its linear middle.
    noise = 10 * torch.randn(1, 4, backbone.dim, generator=torch.Generator().manual_seed(0))
    x = noise.to(backbone.device, backbone.dtype)

    def scaled(factor: float) -> Tensor:
        with backbone.changing([(linear, lambda module, args, out: factor * out)]):
            output: Tensor = block(x)
        return output.float()

    bent, straight = scaled(1) + scaled(-1) - 2 * scaled(0), scaled(1) - scaled(0)
    return bool(bent.norm() < 0.1 * straight.norm())
