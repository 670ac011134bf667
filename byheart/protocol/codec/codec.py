"""A codec: what a model's keys and values have in common, measured once, so that a text's own take few bytes.

    code    header (tokens, step, words, checksum), then by the range coder: token ids; each group's shifts and levels,
            those of the text's own mean before those of the tokens (``own_mean``)

A code stands for the slots of one text, or of a part of one. It is decoded with the model and the codec that made it;
a code that was changed is found by its checksum.

Only layers from ``start`` on are coded. Those below are run again on the tokens when a code is read: they give their
own keys and values exactly, and with them the hidden states from which most of the upper layers' slots are known.

Dimensions: M slots, as many as T tokens; R rows; L layers, H heads, W head width, N numbers, C components, D hidden.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from byheart.errors import BudgetError, CorruptStateError, InputError
from byheart.model.backbone import Backbone
from byheart.model.fingerprint import fingerprint
from byheart.model.reading import KV
from byheart.protocol.codec import levels as coding, own_mean
from byheart.protocol.codec.entropy import LevelDecoder, LevelEncoder
from byheart.protocol.codec.transform import Transform, features_of

_HEADER = struct.Struct("<IhII")
LEAST_BYTES = _HEADER.size + 8
"""Of a code, beside four for each token."""
# Steps that can be chosen, in ``UNITS`` per doubling, as a header holds them.
_FINEST, _COARSEST = -1 << 13, 1 << 13
_CHANGED = "A code was changed after it was written; restore its file from a copy."
_TRIES, _FILLED = 5, 0.98
# So many tokens, at least, are enough to find a step that is nearly right.
_SAMPLE = 128
_GOLDEN = (5**0.5 - 1) / 2
_SHIFTS = 2 * coding.MOST_SHIFT + 1
# Part of a codec's name: it goes up with every change after which earlier codes cannot be read.
_CODING = 3
# Of so many tokens, a transform's numbers take little memory beside the slots.
_PIECE = 256


@dataclass(frozen=True)
class Group:
    """Layers ``start`` to ``stop``, whose keys and values are coded together."""

    start: int
    stop: int
    transform: Transform


@dataclass(frozen=True)
class _Part:
    """A group's components, by how much their tokens' steps are finer, and the widths of a token without a shift.

    Before the tokens stands their mean, as a row of its own.
    """

    y: Float[Tensor, "R C"]
    shifts: coding.Shifts
    widths: Int[Tensor, " C"]

    def only(self, rows: slice | NDArray[np.intp]) -> _Part:
        """Some of its rows."""
        return _Part(self.y[rows], self.shifts[rows], self.widths)

    def count_bits(self, step: int) -> float:
        """How many bits it takes with a step, nearly."""
        return coding.count_bits(self.y, step, coding.Grid.of(self.widths, step, self.shifts))


class Codec:
    """Codes the slots of one model.

    Args:
        groups: from layer ``start`` to the last.
        mean: what features of hidden states are measured from.
    """

    def __init__(self, backbone: Backbone, groups: Sequence[Group], mean: Float[Tensor, " D"]) -> None:
        self.backbone = backbone
        self.groups = tuple(groups)
        self.mean = mean
        self.start = self.groups[0].start if self.groups else 0

    @classmethod
    def of(cls, backbone: Backbone, tensors: Mapping[str, Tensor]) -> Codec:
        """A codec from its ``tensors``. Raises ValueError where they are not those of a codec for this model."""
        try:
            spans = enumerate(tensors["spans"].tolist())
            groups = [Group(start, stop, _transform(tensors, index)) for index, (start, stop) in spans]
            codec = cls(backbone, groups, tensors["mean"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"it lacks {error}") from error
        codec._require_fit()
        return codec

    def over(self, backbone: Backbone) -> Codec:
        """The same codec for the same model, opened again or in another precision."""
        return self if backbone is self.backbone else Codec(backbone, self.groups, self.mean)

    @torch.no_grad()
    def encode(self, kv: KV, hidden: Float[Tensor, "T D"], tokens: Int[Tensor, " T"], nbytes: int) -> bytes:
        """The slots of ``tokens`` in ``nbytes`` bytes. Raises BudgetError or InputError.

        Args:
            kv: slots (1, H, M, W) of all layers, un-rotated.
            hidden: what layer ``start`` was given.
        """
        ids = tokens.cpu().numpy().astype(np.int32)
        parts = list(self._components(kv, hidden))
        bits = self._rate(parts, len(ids))
        best, allowed, tried = b"", 8.0 * nbytes, set[int]()
        for _ in range(_TRIES):
            step, expected = _find_step(parts, bits, allowed)
            if step in tried:
                break
            tried.add(step)
            code = self._pack(ids, step, parts)
            if len(code) <= nbytes:
                best = max(best, code, key=len)
            if _FILLED * nbytes <= len(best):
                break
            # What heat saves, and how unlike the sample the other tokens are, is known once a code was made.
            allowed = min(allowed, expected) * (1 + _FILLED) / 2 * nbytes / len(code)
        if not best:
            raise BudgetError("codec", nbytes, len(code))
        return best.ljust(nbytes, b"\0")

    def decode(self, code: bytes) -> tuple[Int[Tensor, " T"], Iterator[Float[Tensor, "T _"]]]:
        """The tokens, and each group's components for ``slots``, decoded when they are asked for.

        Raises CorruptStateError for a code that was changed, at the latest before the last components.
        """
        tokens, _, words, _ = self.header(code)
        with _refusing():
            coder = LevelDecoder(code[_HEADER.size : _HEADER.size + 4 * words])
            ids = coder.take_uniform(tokens, self._vocabulary)
        return torch.from_numpy(ids).long(), self._take(coder, code)

    def _take(self, coder: LevelDecoder, code: bytes) -> Iterator[Float[Tensor, "T _"]]:
        tokens, step, words, checksum = self.header(code)
        sums: list[int] = []
        for group in self.groups:
            with _refusing():
                own = coder.take_uniform(tokens, _SHIFTS).astype(np.int16) - coding.MOST_SHIFT
                shifts = np.concatenate([own_mean.shifts_before(tokens), own])
                y, sum_ = coding.take_levels(coder, step, coding.Grid.of(group.transform.widths, step, shifts))
            sums.append(sum_)
            if len(sums) == len(self.groups):
                end = _HEADER.size + 4 * words
                if checksum != _checksum(tokens, step, code[_HEADER.size : end], sums) or code[end:].strip(b"\0"):
                    raise CorruptStateError(_CHANGED)
            yield own_mean.put_back(y, tokens)

    @torch.no_grad()
    def slots(
        self, components: Iterable[Float[Tensor, "T _"]], hidden: Float[Tensor, "T D"]
    ) -> Iterator[tuple[int, KV]]:
        """Each group's first layer and its slots (1, H, M, W), un-rotated, from what layer ``start`` is given."""
        features, like = self._features(hidden), self.backbone.slot.keys[0]
        for group, y in zip(self.groups, components, strict=True):
            x = group.transform.back(y, features).to(like.device, like.dtype)
            each = torch.split(x.view(len(hidden), -1, like.shape[3]).transpose(0, 1)[None], like.shape[1], dim=1)
            layers = group.stop - group.start
            yield group.start, KV(tuple(each[:layers]), tuple(each[layers:]))

    def header(self, code: bytes) -> tuple[int, int, int, int]:
        """Tokens, step, words and checksum of a code. Raises CorruptStateError."""
        if len(code) < _HEADER.size:
            raise CorruptStateError("A code is cut off; restore its file from a copy.")
        tokens, step, words, checksum = _HEADER.unpack_from(code)
        fits = 0 < tokens <= self.backbone.positions and _HEADER.size + 4 * words <= len(code)
        if not fits or not _FINEST < step <= _COARSEST:
            raise CorruptStateError(_CHANGED)
        return tokens, step, words, checksum

    def _components(self, kv: KV, hidden: Tensor) -> Iterator[_Part]:
        features, tokens = self._features(hidden), len(hidden)
        before = own_mean.rows_before(tokens)
        for group in self.groups:
            slots = [part for parts in (kv.keys, kv.values) for part in parts[group.start : group.stop]]
            rows = torch.empty(before + tokens, len(group.transform.widths), dtype=torch.bfloat16)
            y = rows[before:]
            for piece in _pieces(tokens):
                y[piece] = group.transform.forward(_numbers(slots, piece), features[piece])
            if not bool(y.sum(dtype=torch.float32).isfinite()):
                raise InputError("The model's keys and values of this text are no finite numbers; open it in float32.")
            shifts = coding.shifts_of(group.transform.importance_of(y, features))
            own_mean.take_off(rows, tokens)
            yield _Part(rows, np.concatenate([own_mean.shifts_before(tokens), shifts]), group.transform.widths)

    def _features(self, hidden: Tensor) -> Float[Tensor, "T D"]:
        return features_of(hidden) - self.mean

    def _pack(self, ids: NDArray[np.int32], step: int, parts: Sequence[_Part]) -> bytes:
        coder, sums, before = LevelEncoder(), [], own_mean.rows_before(len(ids))
        coder.put_uniform(ids, self._vocabulary)
        for part in parts:
            coder.put_uniform((part.shifts[before:] + coding.MOST_SHIFT).astype(np.int32), _SHIFTS)
            sums.append(coding.put_levels(coder, part.y, step, coding.Grid.of(part.widths, step, part.shifts)))
        words = coder.bytes()
        return _HEADER.pack(len(ids), step, len(words) // 4, _checksum(len(ids), step, words, sums)) + words

    def _rate(self, parts: Sequence[_Part], tokens: int) -> Callable[[int], float]:
        """How many bits all rows take with a step, as a sample of the tokens tells."""
        before = own_mean.rows_before(tokens)
        means = [part.only(slice(before)) for part in parts]
        sample = [part.only(before + _sample(tokens)) for part in parts]
        constant = np.log2(self._vocabulary) + len(parts) * np.log2(_SHIFTS) + 8 * _HEADER.size / tokens

        @cache
        def bits(step: int) -> float:
            each = sum(part.count_bits(step) for part in sample) / len(sample[0].shifts)
            return float(tokens * (each + constant)) + sum(part.count_bits(step) for part in means)

        return bits

    def tensors(self) -> dict[str, Tensor]:
        """All that decides how it codes, as a file holds it; see ``of``."""
        spans = torch.tensor([[group.start, group.stop] for group in self.groups])
        named = {"mean": self.mean, "spans": spans}
        for index, group in enumerate(self.groups):
            named |= {f"{name}.{index}": tensor for name, tensor in group.transform.tensors().items()}
        return named

    @cached_property
    def fingerprint(self) -> str:
        """A name for all that decides how it codes."""
        return fingerprint({**self.tensors(), "coding": torch.tensor([_CODING])})

    def _require_fit(self) -> None:
        """Raise ValueError unless the tensors have the shapes that this model's slots ask for."""
        slot, dim = self.backbone.slot, self.backbone.dim
        ends = [end for group in self.groups for end in (group.start, group.stop)]
        if not ends or ends[-1] != len(slot.keys) or ends[1:-1:2] != ends[2::2] or [0, *ends] != sorted([0, *ends]):
            raise ValueError("its groups are not the model's layers")
        if self.mean.shape != (dim,) or not bool(torch.isfinite(self.mean).all()):
            raise ValueError("its hidden states are not the model's")
        heads, width = slot.keys[0].shape[1::2]
        for group in self.groups:
            group.transform.require_fit(heads=2 * (group.stop - group.start) * heads, width=width, features=dim)

    @cached_property
    def _vocabulary(self) -> int:
        return self.backbone.embedding.num_embeddings


def _find_step(parts: Sequence[_Part], bits: Callable[[int], float], allowed: float) -> tuple[int, float]:
    """The finest step with which so many bits are enough, and how many it takes."""
    low, high = max(_FINEST, *(coding.finest_step(part.y, part.shifts) for part in parts)), _COARSEST
    while high - low > 1:
        step = (low + high) // 2
        low, high = (low, step) if bits(step) <= allowed else (step, high)
    return high, bits(high)


def _sample(tokens: int) -> NDArray[np.intp]:
    """Some of so many tokens, spread unevenly: evenly spaced ones may all be of one column of a table."""
    if tokens < 2 * _SAMPLE:
        return np.arange(tokens)
    places = np.arange(_SAMPLE) * _GOLDEN % 1 * tokens
    return np.sort(places.astype(np.intp))


def _pieces(tokens: int) -> Iterator[slice]:
    return (slice(start, start + _PIECE) for start in range(0, tokens, _PIECE))


def _numbers(slots: Sequence[Tensor], piece: slice) -> Float[Tensor, "t N"]:
    """Some slots (1, H, M, W) of layers, the numbers of each token in a row."""
    x = torch.cat([part[0, :, piece] for part in slots]).transpose(0, 1)
    return x.reshape(len(x), -1).cpu()


@contextmanager
def _refusing() -> Iterator[None]:
    """Say of what a coder cannot decode that it was changed."""
    try:
        yield
    except (ValueError, AssertionError) as error:
        raise CorruptStateError(_CHANGED) from error


def _transform(tensors: Mapping[str, Tensor], index: int) -> Transform:
    end = f".{index}"
    return Transform.of({name.removesuffix(end): tensor for name, tensor in tensors.items() if name.endswith(end)})


def _checksum(tokens: int, step: int, words: bytes, sums: Sequence[int]) -> int:
    """Of a code and of the levels in it: a machine that decodes other levels than were coded is found, too."""
    return zlib.crc32(struct.pack(f"<Ii{len(sums)}I", tokens, step, *sums), zlib.crc32(words))
