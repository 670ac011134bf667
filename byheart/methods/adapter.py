"""One low-rank update of the model, trained on tasks and the same for every text (Qiu et al. 2024, arXiv 2402.12233).

A feed-forward layer is a memory of keys (the matrices that match its input: gate and up) and values (the one that
writes to the stream: down). The paper trains LoRA (Hu et al. 2021, arXiv 2106.09685) on the attention's queries and
values, and on one of these three beside them, to see which is the better place for what is learned. Such an update
knows what it learned in training and nothing else: texts leave no trace in it.

State: `writes` (B,), how many segments it was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from byheart.errors import InputError, UnknownNameError, UsageError, require_positive
from byheart.model.backbone import Backbone
from byheart.model.linear import is_transposed
from byheart.model.lora import LoRA
from byheart.model.reading import Reading
from byheart.protocol import peft as peft_files
from byheart.protocol.episode import Batch
from byheart.protocol.episode_loss import episode_loss
from byheart.protocol.method import Method
from byheart.protocol.objective import TARGETS_ONLY, Objective
from byheart.protocol.state import State

PRESETS = {
    "qv": ("q_proj", "v_proj"),
    "qv+up": ("q_proj", "v_proj", "up_proj"),
    "qv+gate": ("q_proj", "v_proj", "gate_proj"),
    "qv+down": ("q_proj", "v_proj", "down_proj"),
}


class Adapter(Method):
    """Keeps no text, only how often it was written to: what it knows was learned before.

    Args:
        preset: the linear layers to update: ``qv``, ``qv+up`` or ``qv+gate`` (keys), ``qv+down`` (values).
        linears: their names instead, such as ``q_proj``; every one of these names is updated.
        rank, alpha: of the update, scaled by alpha / rank.
        dropout: share of its input that is left out while it is trained.
        full_text: train with the whole text in front of what is predicted: the first stage of CCM (arXiv 2312.03414),
            which adapts a model before it is frozen and compressed; ``scripts/merge.py`` makes a model of it.
        seed: of its start.
    """

    name = "adapter"
    capacity = 0

    def __init__(
        self,
        backbone: Backbone,
        *,
        preset: str = "qv",
        linears: Sequence[str] = (),
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.1,
        full_text: bool = False,
        seed: int = 0,
    ) -> None:
        Method.__init__(self, backbone)
        require_positive(rank=rank, alpha=alpha)
        if preset not in PRESETS:
            raise UnknownNameError("preset of adapter", preset, PRESETS)
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout must be 0 or more and below 1; it is {dropout}.")
        self.preset, self.linears, self.rank, self.alpha = preset, list(linears), rank, alpha
        self.dropout, self.full_text, self.seed = dropout, full_text, seed
        paths = _paths(backbone, self.linears or PRESETS[preset])
        self.lora = LoRA(backbone, paths, rank=rank, alpha=alpha, dropout=dropout, seed=seed).train(False)

    def init(self) -> State:
        """Nothing written."""
        return {"writes": torch.zeros(1, dtype=torch.long, device=self.backbone.device)}

    def write(self, state: State, segment: Tensor) -> State:
        """Count."""
        if segment.shape[1] == 0:
            raise InputError("There is nothing to write: the text is empty.")
        return {"writes": state["writes"] + 1}

    def read(self, state: State) -> Reading:
        """The update, whatever was written."""
        batch = state["writes"].shape[0]
        return Reading(deltas=self.lora.deltas(batch), batch=batch)

    def loss(self, batch: Batch, objective: Objective = TARGETS_ONLY) -> Tensor:
        """As of every memory, but no segment is read before it is predicted unless ``full_text``; the update drops out.

        ``objective.teacher`` is the weight of the divergence from the plain model; there are no writes to checkpoint.
        """
        with self.lora.active(self.backbone):
            hidden = self._after_text(batch) if self.full_text else self._alone(batch, objective.every_segment)
        return episode_loss(self.backbone, hidden, batch, objective)

    def _after_text(self, batch: Batch) -> Tensor:
        """The states of all columns, each with the whole text before it."""
        text, places = batch.joined()
        rows = torch.arange(len(text), device=text.device)[:, None]
        return self.backbone.hidden(text)[rows, places]

    def _alone(self, batch: Batch, every_segment: float) -> Tensor:
        """The states of the target's columns, and of later segments' where they count, each without what is before."""
        seen = [
            self.backbone.hidden(batch.segments[:, index], mask=batch.mask[:, index])
            for index in range(1, batch.segments.shape[1])
            if every_segment
        ]
        return torch.cat([*seen, self.backbone.hidden(batch.target)], dim=1)

    def export(self, folder: str | Path) -> None:
        """Write the update as a PEFT adapter."""
        peft_files.write(
            Path(folder),
            {path: (down, up) for path, down, up in zip(self.lora.paths, self.lora.down, self.lora.up, strict=True)},
            decoder=self.backbone.decoder_path,
            base=self.backbone.source,
            alpha=self.alpha,
            dropout=self.dropout,
            transposed=any(is_transposed(self.backbone.linear(path)) for path in self.lora.paths),
        )


def _paths(backbone: Backbone, names: Sequence[str]) -> list[str]:
    """The linear layers of these names, in all layers. Raises UnknownNameError for a name that no layer has."""
    linears = [path for index in range(len(backbone.layers)) for path in backbone.linears(index)]
    known = list(dict.fromkeys(path.rpartition(".")[2] for path in linears))
    for name in names:
        if name not in known:
            raise UnknownNameError("linear layer in this model called", name, known)
    return [path for path in linears if path.rpartition(".")[2] in names]
