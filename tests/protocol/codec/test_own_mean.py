from __future__ import annotations

import pytest
import torch
from torch import Tensor

from byheart.protocol.codec import own_mean
from byheart.protocol.codec.levels import MOST_SHIFT
from byheart.protocol.codec.own_mean import SHORTEST, put_back, rows_before, shifts_before, take_off
from tests.protocol.codec.test_codec import TEXT, encode, read
from tests.samples import backbone, codec_of


def rows_of(tokens: int) -> Tensor:
    """Rows for so many tokens, whose numbers have a mean of about 3; the row before them is not yet set."""
    generator = torch.Generator().manual_seed(tokens)
    return torch.randn(rows_before(tokens) + tokens, 5, generator=generator) + 3


@pytest.mark.parametrize("tokens", [1, SHORTEST - 1, SHORTEST, 100, 5000])
def test_tokens_are_what_they_were_once_their_mean_is_back(tokens: int) -> None:
    rows = rows_of(tokens)
    exact = rows[rows_before(tokens) :].clone()
    take_off(rows, tokens)
    torch.testing.assert_close(put_back(rows, tokens), exact, atol=1e-5, rtol=1e-5)


def test_tokens_are_coded_without_their_mean() -> None:
    rows = rows_of(200)
    mean = rows[1:].mean(0)
    take_off(rows, 200)
    torch.testing.assert_close(rows[1:].mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    # An error of one step in the row, which is finer by its shift, is half of one step in a single token.
    scale = 2 * 200**0.5 * 2.0 ** (-int(shifts_before(200)[0]) / 8)
    torch.testing.assert_close(rows[0], mean * scale)


def test_a_short_text_has_no_row_more() -> None:
    assert rows_before(SHORTEST - 1) == len(shifts_before(SHORTEST - 1)) == 0
    rows = rows_of(SHORTEST - 1)
    exact = rows.clone()
    take_off(rows, SHORTEST - 1)
    assert torch.equal(rows, exact)


def test_the_longer_a_text_the_wider_are_the_tables_of_its_mean() -> None:
    widths = [int(shifts_before(tokens)[0]) for tokens in (64, 111, 112, 240, 100_000)]
    assert widths == [8, 8, 12, 16, 16]
    assert widths[-1] == MOST_SHIFT


def test_the_mean_of_slots_loses_less_at_equal_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What attention over many slots sees of errors."""
    codec = codec_of(backbone())
    exact, hidden = read(codec.start)

    def error_of_mean() -> float:
        _, components = codec.decode(encode(codec, 1000))
        total = 0.0
        for start, kv in codec.slots(components, hidden):
            pairs = zip(kv.values, exact.values[start : start + len(kv.values)], strict=True)
            total += sum(float((a - b).mean(2).pow(2).sum()) for a, b in pairs)
        return total

    with_mean = error_of_mean()
    monkeypatch.setattr(own_mean, "SHORTEST", TEXT.shape[1] + 1)
    assert with_mean < 0.5 * error_of_mean()
