from __future__ import annotations

from functools import cache

import pytest
import torch

from byheart.errors import BudgetError, CorruptStateError, InputError
from byheart.model.reading import KV
from byheart.protocol.codec.calibration import Example, calibrate
from byheart.protocol.codec.codec import LEAST_BYTES, Codec
from tests.samples import backbone, codec_of, tokens

TEXT = tokens(80, seed=31)


@cache
def slots(family: str = "llama") -> KV:
    own = backbone(family)
    return own.rotate(own.prefill(TEXT), -torch.arange(TEXT.shape[1]))


def error(codec: Codec, size: int, family: str = "llama") -> float:
    kv, ids = codec.decode(codec.encode(slots(family), TEXT[0], size))
    assert torch.equal(ids, TEXT[0])
    pairs = zip((*kv.keys, *kv.values), (*slots(family).keys, *slots(family).values), strict=True)
    return sum(float((a - b).pow(2).sum()) for a, b in pairs)


def test_a_code_has_the_bytes_that_it_is_given_and_more_of_them_lose_less() -> None:
    codec = codec_of(backbone())
    sizes = (1000, 2000, 4000, 8000)
    codes = [codec.encode(slots(), TEXT[0], size) for size in sizes]
    assert [len(code) for code in codes] == list(sizes)
    assert [len(code.rstrip(b"\0")) > 0.97 * size for code, size in zip(codes, sizes, strict=True)] == [True] * 4
    errors = [error(codec, size) for size in sizes]
    assert errors == sorted(errors, reverse=True)
    nothing = sum(float(part.pow(2).sum()) for part in (*slots().keys, *slots().values))
    assert errors[-1] < 0.01 * nothing


@pytest.mark.parametrize("size", [LEAST_BYTES, 60])
def test_too_few_bytes_are_refused(size: int) -> None:
    with pytest.raises(BudgetError):
        codec_of(backbone()).encode(slots(), TEXT[0], size)


def test_a_code_that_was_changed_or_cut_is_refused() -> None:
    codec = codec_of(backbone())
    code = codec.encode(slots(), TEXT[0], 2000)
    for place in range(0, 1900, 37):
        changed = bytearray(code)
        changed[place] ^= 0x41
        with pytest.raises(CorruptStateError):
            codec.decode(bytes(changed))
    for length in (0, 5, 10, 900):
        with pytest.raises(CorruptStateError):
            codec.decode(code[:length])


def test_a_codec_is_its_tensors() -> None:
    codec = codec_of(backbone())
    again = Codec.of(backbone(), codec.tensors())
    assert again.fingerprint == codec.fingerprint
    assert again.encode(slots(), TEXT[0], 2000) == codec.encode(slots(), TEXT[0], 2000)
    for name in codec.tensors():
        with pytest.raises(ValueError, match=r"lacks|shape|groups|embeddings"):
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


def test_too_little_text_is_refused() -> None:
    row = tokens(60, seed=5)[0]
    with pytest.raises(InputError, match="2000 tokens"):
        calibrate(backbone(), [Example(row[:0], row[:50], row[50:], 0)])


def test_layers_are_coded_in_groups_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    from byheart.protocol.codec import calibration

    monkeypatch.setattr(calibration, "WIDEST_GROUP", 2 * slots().keys[0][0, :, 0].numel())
    rows = tokens(60, seed=5, batch=40)
    codec = calibrate(backbone(), [Example(row[:0], row[:50], row[50:], 0) for row in rows])
    assert len(codec.groups) > 1
    assert error(codec, 8000) < 3 * error(codec_of(backbone()), 8000)


def test_slots_that_are_no_numbers_are_refused() -> None:
    keys = tuple(part.clone() for part in slots().keys)
    keys[1][0, 0, 3] = torch.inf
    with pytest.raises(InputError, match="no finite numbers"):
        codec_of(backbone()).encode(KV(keys, slots().values), TEXT[0], 2000)
