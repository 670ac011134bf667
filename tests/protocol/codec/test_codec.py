from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from byheart.errors import BudgetError, CorruptStateError, InputError
from byheart.model.lower_layers import input_of
from byheart.model.reading import KV
from byheart.protocol.codec.calibration import Example, calibrate
from byheart.protocol.codec.codec import LEAST_BYTES, Codec
from tests.samples import backbone, codec_of, tokens

TEXT = tokens(80, seed=31)


@cache
def read(start: int = 0) -> tuple[KV, Tensor]:
    """Un-rotated slots of all layers, and what layer ``start`` is given."""
    own = backbone()
    with input_of(own, start) as taken:
        kv = own.prefill(TEXT)
    return own.rotate(kv, -torch.arange(TEXT.shape[1])), taken[0][0]


def encode(codec: Codec, size: int) -> bytes:
    return codec.encode(*read(codec.start), TEXT[0], size)


def error(codec: Codec, size: int) -> float:
    exact, hidden = read(codec.start)
    ids, components = codec.decode(encode(codec, size))
    assert torch.equal(ids, TEXT[0])
    total = 0.0
    for start, kv in codec.slots(components, hidden):
        span = slice(start, start + len(kv.keys))
        pairs = zip((*kv.keys, *kv.values), (*exact.keys[span], *exact.values[span]), strict=True)
        total += sum(float((a - b).pow(2).sum()) for a, b in pairs)
    return total


def test_a_code_has_the_bytes_that_it_is_given_and_more_of_them_lose_less() -> None:
    codec = codec_of(backbone())
    sizes = (1000, 2000, 4000, 8000)
    codes = [encode(codec, size) for size in sizes]
    assert [len(code) for code in codes] == list(sizes)
    assert [len(code.rstrip(b"\0")) > 0.97 * size for code, size in zip(codes, sizes, strict=True)] == [True] * 4
    errors = [error(codec, size) for size in sizes]
    assert errors == sorted(errors, reverse=True)
    nothing = sum(float(part.pow(2).sum()) for part in (*read()[0].keys, *read()[0].values))
    assert errors[-1] < 0.01 * nothing


@pytest.mark.parametrize("columns", [2, 4, 5])
def test_a_table_fills_its_bytes(columns: int) -> None:
    """A sample of evenly spaced tokens would see one column alone."""
    own, text = backbone(), tokens(400, seed=5)
    codec = codec_of(own)
    with input_of(own, codec.start) as taken:
        kv = own.prefill(text)
    kv = own.rotate(kv, -torch.arange(text.shape[1]))
    sizes = torch.where(torch.arange(text.shape[1]) % columns == 0, 0.0, 30.0)[:, None]
    kv = KV(tuple(part * sizes for part in kv.keys), tuple(part * sizes for part in kv.values))
    code = codec.encode(kv, taken[0][0], text[0], 6000)
    assert len(code.rstrip(b"\0")) > 0.85 * len(code)


@pytest.mark.parametrize("size", [LEAST_BYTES, 60])
def test_too_few_bytes_are_refused(size: int) -> None:
    with pytest.raises(BudgetError):
        encode(codec_of(backbone()), size)


def test_a_code_that_was_changed_or_cut_is_refused() -> None:
    codec = codec_of(backbone())
    code = encode(codec, 2000)
    for place in (*range(14), *range(37, 1900, 37)):
        changed = bytearray(code)
        changed[place] ^= 0x41
        with pytest.raises(CorruptStateError):
            list(codec.decode(bytes(changed))[1])
    for length in (0, 5, 10, 900):
        with pytest.raises(CorruptStateError):
            list(codec.decode(code[:length])[1])


def test_a_codec_is_its_tensors() -> None:
    codec = codec_of(backbone())
    again = Codec.of(backbone(), codec.tensors())
    assert again.fingerprint == codec.fingerprint
    assert encode(again, 2000) == encode(codec, 2000)
    for name in codec.tensors():
        with pytest.raises(ValueError, match=r"lacks|shape|groups|hidden"):
            Codec.of(backbone(), {key: value for key, value in codec.tensors().items() if key != name})
    with pytest.raises(ValueError, match="finite"):
        Codec.of(backbone(), {**codec.tensors(), "center.0": codec.tensors()["center.0"] * torch.nan})


def test_the_same_texts_make_the_same_codec() -> None:
    rows = tokens(60, seed=5, batch=40)
    examples = [Example(row[:3], row[3:54], row[54:], 0) for row in rows]
    seen: list[tuple[int, int]] = []
    first = calibrate(backbone(), examples, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (40, 40)
    assert calibrate(backbone(), examples).fingerprint == first.fingerprint


def test_texts_may_have_any_lengths() -> None:
    rows = tokens(100, seed=5, batch=40)
    examples = [Example(row[:3], row[3 : 40 + length], row[40 + length :], 0) for length, row in enumerate(rows)]
    assert error(calibrate(backbone(), examples), 8000) < 3 * error(codec_of(backbone()), 8000)


def test_too_little_text_is_refused() -> None:
    row = tokens(60, seed=5)[0]
    with pytest.raises(InputError, match="2000 tokens"):
        calibrate(backbone(), [Example(row[:0], row[:50], row[50:], 0)])


def test_layers_are_coded_in_groups_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    from byheart.protocol.codec import calibration

    monkeypatch.setattr(calibration, "WIDEST_GROUP", 2 * read()[0].keys[0][0, :, 0].numel())
    rows = tokens(60, seed=5, batch=40)
    codec = calibrate(backbone(), [Example(row[:0], row[:50], row[50:], 0) for row in rows])
    assert len(codec.groups) > 1
    assert error(codec, 8000) < 3 * error(codec_of(backbone()), 8000)


def test_only_layers_from_its_start_are_coded() -> None:
    rows = tokens(60, seed=5, batch=40)
    codec = calibrate(backbone(), [Example(row[:0], row[:50], row[50:], 0) for row in rows], start=1)
    assert [(group.start, group.stop) for group in codec.groups] == [(1, len(backbone().layers))]
    _, components = codec.decode(encode(codec, 3000))
    ((first, kv),) = codec.slots(components, read(1)[1])
    assert (first, len(kv.keys)) == (1, len(backbone().layers) - 1)
    assert Codec.of(backbone(), codec.tensors()).fingerprint == codec.fingerprint


def test_slots_that_are_no_numbers_are_refused() -> None:
    keys = tuple(part.clone() for part in read()[0].keys)
    keys[1][0, 0, 3] = torch.inf
    with pytest.raises(InputError, match="no finite numbers"):
        codec_of(backbone()).encode(KV(keys, read()[0].values), read()[1], TEXT[0], 2000)
