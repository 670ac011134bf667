"""Numbers in few bits: how far off they are, what is exact, and what a code takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from byheart.errors import UsageError
from byheart.protocol.quantise import Quantised, dequantise, group_width, quantise, require_bits

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
WIDTHS = [1, 2, 7, 31, 33, 64, 80, 128]


def numbers(*shape: int, dtype: torch.dtype = torch.float32, size: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(shape[-1])
    return (size * torch.randn(shape, generator=generator)).to(dtype)


def there_and_back(x: Tensor, bits: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return dequantise(quantise(x, bits=bits), bits=bits, width=x.shape[-1], dtype=dtype)


def groups(x: Tensor) -> Tensor:
    return x.float().reshape(*x.shape[:-1], -1, group_width(x.shape[-1]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("bits", [8, 4])
def test_a_number_is_within_half_a_step_of_what_it_was(bits: int, width: int, dtype: torch.dtype) -> None:
    x = numbers(2, 3, 5, width, dtype=dtype)
    least, most = (end[..., None] for end in groups(x).aminmax(dim=-1))
    steps = (most - least) / ((1 << bits) - 1)
    # Ranges of float32 numbers are rounded to float16.
    rounding = groups(x).abs().amax(-1, keepdim=True) / 1024
    assert ((groups(there_and_back(x, bits)) - groups(x)).abs() <= steps / 2 + rounding + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [8, 4])
def test_the_ends_of_a_group_are_exact_in_16_bits_and_so_are_equal_numbers(bits: int, dtype: torch.dtype) -> None:
    x = numbers(4, 64, dtype=dtype)
    found = groups(there_and_back(x, bits, dtype))
    for end in ("amin", "amax"):
        assert torch.equal(getattr(found, end)(-1), getattr(groups(x), end)(-1))
    for value in (0.0, -2.5, 1e-5):
        same = torch.full((3, 64), value, dtype=dtype)
        assert torch.equal(there_and_back(same, bits, dtype), same)


@pytest.mark.parametrize("bits", [8, 4])
def test_each_slot_is_coded_as_alone(bits: int) -> None:
    x = numbers(2, 3, 5, 64)
    together = quantise(x, bits=bits)
    alone = quantise(x[1:, 2:, 4:], bits=bits)
    assert torch.equal(together.codes[1:, 2:, 4:], alone.codes)
    assert torch.equal(together.ranges[1:, 2:, 4:], alone.ranges)


@pytest.mark.parametrize(
    ("width", "size"), [(1, 1), (8, 8), (31, 31), (33, 11), (64, 32), (80, 20), (96, 32), (256, 32)]
)
def test_groups_are_of_32_or_the_most_that_is_even(width: int, size: int) -> None:
    assert group_width(width) == size


@pytest.mark.parametrize("width", WIDTHS)
def test_codes_take_the_bits_they_say_and_ranges_two_numbers_a_group(width: int) -> None:
    for bits, expected in ((8, width), (4, (width + 1) // 2)):
        code = quantise(numbers(2, width), bits=bits)
        assert (code.codes.shape, code.codes.dtype) == ((2, expected), torch.uint8)
        assert code.ranges.shape == (2, 2 * width // group_width(width))
        assert code.ranges.element_size() == 2


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_are_told_apart_in_order(bits: int) -> None:
    top = (1 << bits) - 1
    x = torch.arange(top + 1).float()[torch.arange(32) * top // 31]
    code = quantise(x[None], bits=bits)
    assert torch.equal(there_and_back(x[None], bits)[0], x)
    if bits == 4:
        assert code.codes[0].tolist() == [int(a) | int(b) << 4 for a, b in x.reshape(-1, 2).tolist()]
    else:
        assert torch.equal(code.codes[0].float(), x)


@pytest.mark.parametrize("bits", [8, 4])
def test_numbers_beyond_float16_are_held_at_its_end_and_those_of_bfloat16_are_not(bits: int) -> None:
    x = torch.tensor([[-1e6, 0.0, 1e6]])
    assert there_and_back(x, bits)[0, 2] == torch.finfo(torch.float16).max
    large = x.bfloat16()
    assert torch.equal(there_and_back(large, bits, torch.bfloat16)[0, ::2], large[0, ::2])


@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_no_number_stays_none_so_that_nobody_takes_it_for_one(bits: int) -> None:
    x = numbers(2, 32)
    x[1, 5] = float("nan")
    assert there_and_back(x, bits)[0].isfinite().all()
    assert there_and_back(x, bits)[1].isnan().any()


@pytest.mark.parametrize("bits", [8, 4])
def test_any_code_between_finite_ends_is_a_finite_number(bits: int) -> None:
    most = torch.finfo(torch.bfloat16).max
    ends = torch.tensor([[-most, most]], dtype=torch.bfloat16)
    codes = torch.arange(32, dtype=torch.uint8)[None] * 8
    width = 32 if bits == 8 else 64
    ends = ends.repeat_interleave(width // 32, dim=1)
    assert dequantise(Quantised(codes, ends), bits=bits, width=width, dtype=torch.float32).isfinite().all()


def test_slots_of_none_have_codes_of_none() -> None:
    assert there_and_back(torch.zeros(1, 2, 0, 64), 4).shape == (1, 2, 0, 64)


@pytest.mark.parametrize("bits", [0, 1, 2, 3, 5, 7, 9, 15, 17, 32, -8])
def test_other_bits_are_refused(bits: int) -> None:
    with pytest.raises(UsageError, match=f"bits must be one of 16, 8, 4; it is {bits}"):
        require_bits(bits)
