"""Which precision a device computes fast in."""

from __future__ import annotations

from functools import cache

import torch


@cache
def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where ``device`` has instructions for it, else float32.

    A processor without them multiplies bfloat16 matrices number by number: with AVX2 alone a product of the codec took
    forty times as long as in float32.
    """
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bfloat16()
    return torch.bfloat16 if fast and device.type in ("cpu", "cuda") else torch.float32


def _cpu_has_bfloat16() -> bool:
    # torch keeps these checks private; a build without them has no fast bfloat16 either.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)
