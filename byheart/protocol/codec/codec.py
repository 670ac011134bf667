"""A codec: what a model's keys and values have in common, measured once, so that a text's own take few bytes.

    code    header (tokens, step, words, checksum), then by the range coder: token ids, and levels, group after group

A code stands for the slots of one text, or of a part of one. It is decoded with the model and the codec that made it;
a code that was changed is found by its checksum.

Dimensions: M slots, as many as T tokens; L layers, H heads, W head width, N numbers, C components, D hidden.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from byheart.errors import BudgetError, CorruptStateError, InputError
from byheart.model.backbone import Backbone
from byheart.model.fingerprint import fingerprint
from byheart.model.reading import KV
from byheart.protocol.codec import levels as coding
from byheart.protocol.codec.entropy import LevelDecoder, LevelEncoder
from byheart.protocol.codec.transform import Transform, features_of

_HEADER = struct.Struct("<IhII")
LEAST_BYTES = _HEADER.size + 8
"""Of a code, beside four for each token."""
# Steps that can be chosen, in ``UNITS`` per doubling, as a header holds them.
_FINEST, _COARSEST = -1 << 13, 1 << 13
_CHANGED = "A code was changed after it was written; restore its file from a copy."
_TRIES, _FILLED = 5, 0.985
# So many tokens are enough to find a step that is nearly right.
_SAMPLE, _NEAR = 64, 2


@dataclass(frozen=True)
class Group:
    """Layers ``start`` to ``stop``, coded together."""

    start: int
    stop: int
    keys: Transform
    values: Transform


class Codec:
    """Codes the slots of one model.

    Args:
        mean_embedding: what token embeddings are measured from.
    """

    def __init__(self, backbone: Backbone, groups: Sequence[Group], mean_embedding: Float[Tensor, " D"]) -> None:
        self.backbone = backbone
        self.groups = tuple(groups)
        self.mean_embedding = mean_embedding

    @classmethod
    def of(cls, backbone: Backbone, tensors: Mapping[str, Tensor]) -> Codec:
        """A codec from its ``tensors``. Raises ValueError where they are not those of a codec for this model."""
        try:
            groups = [
                Group(start, stop, *(_transform(tensors, 2 * index + half) for half in (0, 1)))
                for index, (start, stop) in enumerate(tensors["spans"].tolist())
            ]
            codec = cls(backbone, groups, tensors["mean_embedding"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"it lacks {error}") from error
        codec._require_fit()
        return codec

    def over(self, backbone: Backbone) -> Codec:
        """The same codec for the same model, opened again or in another precision."""
        return self if backbone is self.backbone else Codec(backbone, self.groups, self.mean_embedding)

    @torch.no_grad()
    def encode(self, kv: KV, tokens: Int[Tensor, " T"], nbytes: int) -> bytes:
        """The slots (1, H, M, W) of ``tokens``, un-rotated, in ``nbytes`` bytes. Raises BudgetError or InputError."""
        ids = tokens.cpu().numpy().astype(np.int32)
        parts = self._components(kv, tokens)
        if not all(bool(part.isfinite().all()) for part in parts):
            raise InputError("The model's keys and values of this text are no finite numbers; open it in float32.")
        best, allowed = b"", 8.0 * nbytes
        for _ in range(_TRIES):
            code = self._pack(ids, self._find_step(parts, allowed), parts)
            if len(code) <= nbytes:
                best = max(best, code, key=len)
            if _FILLED * nbytes <= len(best):
                break
            # What heat saves, and how unlike the sample the other tokens are, is known once a code was made.
            allowed *= (1 + _FILLED) / 2 * nbytes / len(code)
        if not best:
            raise BudgetError("codec", nbytes, len(code))
        return best.ljust(nbytes, b"\0")

    @torch.no_grad()
    def decode(self, code: bytes) -> tuple[KV, Int[Tensor, " T"]]:
        """Slots (1, H, M, W), un-rotated, and their tokens. Raises CorruptStateError for a code that was changed."""
        tokens, step, words, checksum = self.header(code)
        end = _HEADER.size + 4 * words
        try:
            coder = LevelDecoder(code[_HEADER.size : end])
            ids = coder.take_uniform(tokens, self._vocabulary)
            taken = [coding.take_levels(coder, tokens, coding.grid(part.widths, step)) for part in self._parts]
        except (ValueError, AssertionError) as error:
            raise CorruptStateError(_CHANGED) from error
        if checksum != _checksum(ids, [levels for levels, _ in taken]) or code[end:].strip(b"\0"):
            raise CorruptStateError(_CHANGED)
        found = torch.from_numpy(ids).long()
        return self._slots([coding.from_levels(*part, step) for part in taken], found), found

    def header(self, code: bytes) -> tuple[int, int, int, int]:
        """Tokens, step, words and checksum of a code. Raises CorruptStateError."""
        if len(code) < _HEADER.size:
            raise CorruptStateError("A code is cut off; restore its file from a copy.")
        tokens, step, words, checksum = _HEADER.unpack_from(code)
        if not 0 < tokens <= self.backbone.positions or _HEADER.size + 4 * words > len(code):
            raise CorruptStateError(_CHANGED)
        return tokens, step, words, checksum

    def _components(self, kv: KV, tokens: Tensor) -> list[Float[Tensor, "_ T"]]:
        features, components = self._features(tokens), []
        for group in self.groups:
            for part, tensors in ((group.keys, kv.keys), (group.values, kv.values)):
                x = torch.cat(tensors[group.start : group.stop], dim=1)[0]
                components.append(part.forward(x.transpose(0, 1).reshape(len(tokens), -1).cpu(), features))
        return components

    def _slots(self, components: Sequence[Float[Tensor, "_ T"]], tokens: Tensor) -> KV:
        features, slot, found = self._features(tokens), self.backbone.slot, iter(components)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for group in self.groups:
            for part, into, like in ((group.keys, keys, slot.keys[0]), (group.values, values, slot.values[0])):
                x = part.back(next(found), features).view(len(tokens), -1, like.shape[3]).to(like.device, like.dtype)
                into += torch.split(x.transpose(0, 1)[None], like.shape[1], dim=1)
        return KV(tuple(keys), tuple(values))

    def _features(self, tokens: Tensor) -> Float[Tensor, "T F"]:
        """Of each token, and of the one before it in the same code."""
        return features_of(self.backbone.embed(tokens[None])[0].float().cpu() - self.mean_embedding)

    def _pack(self, ids: NDArray[np.int32], step: int, parts: Sequence[Tensor]) -> bytes:
        coder, whole = LevelEncoder(), []
        coder.put_uniform(ids, self._vocabulary)
        for y, part in zip(parts, self._parts, strict=True):
            tables = coding.grid(part.widths, step)
            whole.append(coding.to_levels(y[: coding.count_coded(tables)], step).numpy())
            coding.put_levels(coder, whole[-1], tables)
        words = coder.bytes()
        return _HEADER.pack(len(ids), step, len(words) // 4, _checksum(ids, whole)) + words

    def _find_step(self, parts: Sequence[Tensor], bits: float) -> int:
        """The finest step with which a sample of the tokens takes its share of the bits."""
        tokens = parts[0].shape[1]
        sample = [part[:, :: max(1, tokens // _SAMPLE)].contiguous() for part in parts]
        share = (bits - 8 * _HEADER.size) / tokens - np.log2(self._vocabulary)
        low, high = max(_FINEST, *(coding.finest_step(y) for y in parts)), _COARSEST
        while high - low > _NEAR:
            step = (low + high) // 2
            each = zip(sample, self._parts, strict=True)
            total = sum(coding.count_bits(coding.to_levels(y, step), coding.grid(p.widths, step)) for y, p in each)
            low, high = (low, step) if total <= share * sample[0].shape[1] else (step, high)
        return high

    def tensors(self) -> dict[str, Tensor]:
        """All that decides how it codes, as a file holds it; see ``of``."""
        spans = torch.tensor([[group.start, group.stop] for group in self.groups])
        named = {"mean_embedding": self.mean_embedding, "spans": spans}
        for index, part in enumerate(self._parts):
            named |= {f"{name}.{index}": tensor for name, tensor in part.tensors().items()}
        return named

    @cached_property
    def fingerprint(self) -> str:
        """A name for all that decides how it codes."""
        return fingerprint(self.tensors())

    @property
    def _parts(self) -> Iterator[Transform]:
        return (part for group in self.groups for part in (group.keys, group.values))

    def _require_fit(self) -> None:
        """Raise ValueError unless the tensors have the shapes that this model's slots ask for."""
        slot, dim = self.backbone.slot, self.backbone.dim
        ends = [end for group in self.groups for end in (group.start, group.stop)]
        if ends[:1] != [0] or ends[-1] != len(slot.keys) or ends[1:-1:2] != ends[2::2] or ends != sorted(ends):
            raise ValueError("its groups are not the model's layers")
        if self.mean_embedding.shape != (dim,):
            raise ValueError("its embeddings are not the model's")
        heads, width = slot.keys[0].shape[1::2]
        for group in self.groups:
            for part in (group.keys, group.values):
                part.require_fit(heads=(group.stop - group.start) * heads, width=width, features=2 * dim)

    @cached_property
    def _vocabulary(self) -> int:
        return self.backbone.embedding.num_embeddings


def _transform(tensors: Mapping[str, Tensor], index: int) -> Transform:
    end = f".{index}"
    return Transform.of({name.removesuffix(end): tensor for name, tensor in tensors.items() if name.endswith(end)})


def _checksum(ids: NDArray[np.int32], levels: Sequence[coding.Levels]) -> int:
    value = zlib.crc32(ids.astype("<i4").tobytes())
    for part in levels:
        value = zlib.crc32(part.astype("<i2", copy=False).data, value)
    return value
