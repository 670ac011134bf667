"""CCM's released adapters (Compressed Context Memory, Kim et al. 2024, arXiv 2312.03414).

A folder holds ``adapter_config.json`` and one file of tensors (R rank, D hidden, n tokens per segment):

    base_model.model.model.layers.i.self_attn.{q,k,v,o}_proj.lora_A.weight   (R, in)
    base_model.model.model.layers.i.self_attn.{q,k,v,o}_proj.lora_B.weight   (out, R)
    base_model.model.model.embed_tokens.comp_embeddings.weight               (n, D), or (2n, D) where merged

Older ones say ``gist_embeddings``. The second half of a merging adapter's rows are the carriers of its sums; byheart
averages without them. Nothing in the files says how segments are joined: only the folder's name does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from byheart.errors import CheckpointError, UnknownNameError, UsageError
from byheart.methods.compressed_kv import CompressedKV
from byheart.model.backbone import Backbone
from byheart.protocol.settings import read_settings
from byheart.published.hub import find_folder, name_of
from byheart.published.settings import LoRACard
from byheart.published.shards import Shapes, copy, low_rank_shapes, require, shapes, shards

# The published name -> how slots join the memory, and whether a segment sees the memory while it is compressed.
_KINDS = {
    "concat_recur": ("concat", True),
    "merge_recur": ("mean", True),
    "concat": ("concat", False),
    "merge": ("mean", False),
}
_PREFIX = "base_model.model.model."
_ROWS = f"{_PREFIX}embed_tokens.comp_embeddings.weight"
_LEGACY_ROWS = f"{_PREFIX}embed_tokens.gist_embeddings.weight"
_NAME = re.compile(rf"(?:^|-)(?P<kind>{'|'.join(_KINDS)})-ntok(?P<tokens>\d+)(?P<sink>-sink)?")


@dataclass(frozen=True)
class _Kind:
    """What only a folder's name says; ``tokens`` is None where it does not."""

    merge: str
    recurrent: bool
    sink: bool
    tokens: int | None


def ccm(
    adapter: str | Path,
    *,
    base: str | Path | Backbone,
    merge: str | None = None,
    sink: bool | None = None,
    base_lora: str | Path | None = None,
    dtype: str = "auto",
    device: str = "auto",
) -> CompressedKV:
    """Open a released CCM adapter over its base model, ready to be written and read.

    Args:
        adapter: a released folder, such as ``llama-7b-no-online-concat_recur-ntok2-sink``, or its name on the hub, such
            as ``OWNER/NAME/llama-7b-no-online-concat_recur-ntok2-sink``, see ``hub``.
        base: the model it was trained on: a folder, a hub id, or a backbone that is already open.
        merge: ``concat_recur``, ``merge_recur``, ``concat`` or ``merge``; by the folder's name without it.
        sink: whether the first token's slot is kept; by the folder's name without it.
        base_lora: folder or hub name of the first training step's LoRA (``llama-7b-no``), which is merged into the
            base first.
        dtype, device: of a base that is opened here; LoRA and embeddings stay in float32.

    Raises CheckpointError naming tensors that are missing, unexpected, of the wrong shape or not finite, and settings
    that are absent or of another type; ModelError for a base that cannot be opened; UsageError where the folder's name
    does not say how segments are joined, or ``base_lora`` would change a backbone that is in use.
    """
    where = find_folder(adapter)
    kind = _kind(name_of(adapter), merge, sink)
    card = read_settings(where / "adapter_config.json", LoRACard)
    found = _tensors(where)
    tokens = _tokens(where, kind, found)
    backbone = _base(base, base_lora, dtype=dtype, device=device)
    paths = [path for index in range(len(backbone.layers)) for path in backbone.attention_linears(index)]
    expected = {**_low_rank_shapes(backbone, paths, card.r), _ROWS: (found[_ROWS].shape[0], backbone.dim)}
    require(where, {name: tuple(tensor.shape) for name, tensor in found.items()}, expected)
    method = CompressedKV(
        backbone,
        tokens=tokens,
        merge=kind.merge,
        recurrent=kind.recurrent,
        sink=kind.sink,
        segment_tokens=0,
        rank=card.r,
        alpha=card.lora_alpha,
    )
    # The second half of a merging adapter's rows is not used, but must be sound all the same.
    rows = method.embeddings.new_empty(found[_ROWS].shape)
    copy(where, _ROWS, found[_ROWS], rows)
    with torch.no_grad():
        method.embeddings.copy_(rows[:tokens])
    for path, down, up in zip(method.lora.paths, method.lora.down, method.lora.up, strict=True):
        for name, target in ((f"{_PREFIX}{path}.lora_A.weight", down), (f"{_PREFIX}{path}.lora_B.weight", up)):
            copy(where, name, found[name], target)
    method.train(False)
    return method


def _kind(name: str, merge: str | None, sink: bool | None) -> _Kind:
    """How segments are joined: as given, else as the folder's name says."""
    match = _NAME.search(name)
    if merge is None and match is None:
        raise UsageError(
            f"The folder's name '{name}' does not say how segments are joined (such as '-concat_recur-ntok2'); "
            f"give merge: {', '.join(_KINDS)}."
        )
    kind = merge if merge is not None else match["kind"] if match else ""
    if kind not in _KINDS:
        raise UnknownNameError("merge of CCM", kind, _KINDS)
    keeps_sink = sink if sink is not None else bool(match and match["sink"])
    return _Kind(*_KINDS[kind], sink=keeps_sink, tokens=int(match["tokens"]) if match else None)


def _tensors(where: Path) -> dict[str, Tensor]:
    """An adapter's tensors, under the newer name of its embeddings."""
    found = {name: tensor for shard in shards(where) for name, tensor in shard.items()}
    if _LEGACY_ROWS in found:
        found[_ROWS] = found.pop(_LEGACY_ROWS)
    if _ROWS not in found:
        raise CheckpointError(f"'{where}' lacks {_ROWS}, the compression tokens: it is no CCM adapter.")
    return found


def _tokens(where: Path, kind: _Kind, found: Mapping[str, Tensor]) -> int:
    """Compression tokens per segment; a merging adapter holds as many rows again for its sums."""
    rows = found[_ROWS].shape[0] if found[_ROWS].dim() else 0
    tokens, left = divmod(rows, 2) if kind.merge == "mean" else (rows, 0)
    if left or not tokens or kind.tokens not in (None, tokens):
        raise CheckpointError(
            f"'{where}' does not fit its name: it holds {rows} rows of embeddings, "
            f"which is not what {kind.tokens or 'any number of'} compression tokens of this kind have."
        )
    return tokens


def _low_rank_shapes(backbone: Backbone, paths: Iterable[str], rank: int) -> Shapes:
    return low_rank_shapes({f"{_PREFIX}{path}": backbone.linear(path).weight for path in paths}, rank)


def _base(base: str | Path | Backbone, base_lora: str | Path | None, *, dtype: str, device: str) -> Backbone:
    if not isinstance(base, Backbone):
        backbone = Backbone.open(str(base), dtype=dtype, device=device)
        if base_lora is not None:
            _merge(backbone, find_folder(base_lora))
            # Its weights are others now, and so is its fingerprint.
            return Backbone(backbone.model, source=backbone.source)
        return backbone
    if base_lora is not None:
        raise UsageError(
            "base_lora would change a backbone that is open already, for all who use it; give base as a folder."
        )
    return base


@torch.no_grad()
def _merge(backbone: Backbone, where: Path) -> None:
    """Add the first training step's LoRA to the weights; nobody else has seen this backbone yet."""
    card = read_settings(where / "adapter_config.json", LoRACard)
    linears = [path for index in range(len(backbone.layers)) for path in backbone.linears(index)]
    paths = [path for path in linears if path.rpartition(".")[2] in card.target_modules]
    expected = _low_rank_shapes(backbone, paths, card.r)
    require(where, shapes(where), expected)
    found = {name: torch.empty(shape, device=backbone.device) for name, shape in expected.items()}
    for shard in shards(where):
        for name, tensor in shard.items():
            copy(where, name, tensor, found[name])
    for path in paths:
        weight = backbone.linear(path).weight
        down, up = (found[f"{_PREFIX}{path}.lora_{part}.weight"] for part in "AB")
        merged = torch.addmm(weight.float(), up, down, alpha=card.lora_alpha / card.r)
        copy(where, f"{_PREFIX}{path}", merged, weight)
