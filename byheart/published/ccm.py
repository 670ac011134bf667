"""CCM's released adapters (Compressed Context Memory, Kim et al. 2024, arXiv 2312.03414).

A folder holds ``adapter_config.json`` and one file of tensors (R rank, D hidden, n tokens per segment):

    base_model.model.model.layers.i.self_attn.{q,k,v,o}_proj.lora_A.weight   (R, in)
    base_model.model.model.layers.i.self_attn.{q,k,v,o}_proj.lora_B.weight   (out, R)
    base_model.model.model.embed_tokens.comp_embeddings.weight               (n, D), or (2n, D) where merged

Older ones say ``gist_embeddings``. The second half of a merging adapter's rows are the carriers of its sums; byheart
averages without them. Nothing in the files says how segments are joined, nor on what it was trained: only the names of
the folder and of those above it do, as in ``pretrain/finetune/llama-7b-no-online-concat_recur-ntok2-sink``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from byheart.errors import CheckpointError, UnknownNameError, UsageError
from byheart.methods.compressed_kv import CompressedKV
from byheart.model.backbone import Backbone
from byheart.protocol.settings import read_settings
from byheart.published.hub import find_folder, name_of
from byheart.published.settings import LoRACard
from byheart.published.shards import Shapes, copy, low_rank_shapes, require, shapes, shards
from byheart.text.prompt_format import PromptFormat

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


_LONGEST_TURN = 128


class _Training(NamedTuple):
    """Data that adapters were trained on: tokens of their longest segments, and what stood around segments."""

    segment_tokens: int
    prompt_format: PromptFormat


# Appendix C and the released code: turns of at most 128 tokens, demonstrations of 256, profile entries of 100, and for
# general text segments of 64.
_TRAINED_ON = {
    "dialog": _Training(_LONGEST_TURN, PromptFormat(before="\nA: ", answer="\nA:")),
    "soda": _Training(_LONGEST_TURN, PromptFormat(before="\nA: ", answer="\nA:")),
    "unified": _Training(_LONGEST_TURN, PromptFormat(before="\nA: ", answer="\nOutput:")),
    "metaicl": _Training(256, PromptFormat(before="\nInput: ", answer="\nOutput:")),
    "lamp": _Training(100, PromptFormat(before="\nInput: ", answer="\nOutput:")),
    "pretrain": _Training(64, PromptFormat(before="\n", answer="\nOutput:")),
}
# Models for chats were asked in a form of their own, whatever the data.
_CHAT = re.compile("chat|inst")
_CHAT_FORMAT = PromptFormat("System: You are a chatbot agent. \n\n", "\nUser: ", "\nAssistant:")


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
    dataset: str | None = None,
    segment_tokens: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
) -> CompressedKV:
    """Open a released CCM adapter over its base model, ready to be written and read.

    Longer text is cut into segments as long as those that it was trained on. What stood around these stands around the
    texts and questions of a session too, and is kept by ``save_pretrained``.

    Args:
        adapter: a released folder, such as ``llama-7b-no-online-concat_recur-ntok2-sink``, or its name on the hub, such
            as ``OWNER/NAME/llama-7b-no-online-concat_recur-ntok2-sink``, see ``hub``.
        base: the model it was trained on: a folder, a hub id, or a backbone that is already open.
        merge: ``concat_recur``, ``merge_recur``, ``concat`` or ``merge``; by the folder's name without it.
        sink: whether the first token's slot is kept; by the folder's name without it.
        base_lora: folder or hub name of the first training step's LoRA (``llama-7b-no``), which is merged into the
            base first.
        dataset: ``dialog``, ``soda``, ``unified``, ``metaicl``, ``lamp`` or ``pretrain``, on which it was trained; by
            the folders above without it. Where these do not say it, texts and questions stand as the model's own do.
        segment_tokens: of a segment, at most; those of the data set without it, or 128.
        dtype, device: of a base that is opened here; LoRA and embeddings stay in float32.

    Raises CheckpointError naming tensors that are missing, unexpected, of the wrong shape or not finite, and settings
    that are absent or of another type; ModelError for a base that cannot be opened; UsageError where the folder's name
    does not say how segments are joined, or ``base_lora`` would change a backbone that is in use.
    """
    where = find_folder(adapter)
    kind = _kind(name_of(adapter), merge, sink)
    trained_on = _training(where.resolve(), dataset)
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
        segment_tokens=trained_on.segment_tokens if segment_tokens is None else segment_tokens,
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
    if trained_on.prompt_format != PromptFormat():
        method.prompt_format = asdict(trained_on.prompt_format)
    return method


def _training(where: Path, dataset: str | None) -> _Training:
    """What the adapter in a folder was trained on: as given, else as the folders above say; plain text of neither."""
    if dataset is not None and dataset not in _TRAINED_ON:
        raise UnknownNameError("data set of CCM", dataset, list(_TRAINED_ON))
    above = next((part for part in reversed(where.parts[:-1]) if part in _TRAINED_ON), None)
    name = dataset or above
    found = _Training(_LONGEST_TURN, PromptFormat()) if name is None else _TRAINED_ON[name]
    return found._replace(prompt_format=_CHAT_FORMAT) if name and _CHAT.search(where.name) else found


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
