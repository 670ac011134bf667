from __future__ import annotations

import pytest
import torch

from byheart.model.precision import fast_dtype
from tests.samples import backbone, codec_of

CPU = torch.device("cpu")


def test_a_processor_computes_in_bfloat16_only_with_instructions_for_it() -> None:
    has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert fast_dtype(CPU) == (torch.bfloat16 if has else torch.float32)


def test_devices_of_which_nothing_is_known_compute_in_float32() -> None:
    assert fast_dtype(torch.device("meta")) == torch.float32


@pytest.mark.gpu
def test_a_gpu_says_itself_whether_it_has_bfloat16() -> None:
    assert fast_dtype(torch.device("cuda")) == (torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32)


def test_the_products_of_a_codec_are_computed_in_it() -> None:
    transform = codec_of(backbone()).groups[0].transform
    features = torch.randn(5, len(transform.prediction))
    slots = transform.back(torch.randn(5, len(transform.widths)), features)
    assert slots.dtype == transform.forward(slots, features).dtype == fast_dtype(CPU)
