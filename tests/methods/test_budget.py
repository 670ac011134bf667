"""Memories made to fit a number of bytes: what is kept fits, the next size does not, and too little says the least."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import torch

from byheart.errors import BudgetError, UnknownNameError, UsageError
from byheart.methods import BUILT_IN, build
from byheart.methods.budget import options_for, parse_bytes
from byheart.model.backbone import Backbone
from byheart.protocol.method import Method
from byheart.protocol.state import nbytes
from byheart.testing import tiny_backbone
from tests.samples import tokens, written

TOKENS = 1100
# What the next size up is, of those that have one; the others take what they take.
LARGER: dict[str, Any] = {
    "window": lambda own: {**own, "recent": own["recent"] + 1},
    "every-kth": lambda own: {**own, "every": own["every"] - 1},
    "mean-pooled": lambda own: {**own, "every": own["every"] - 1},
    "key-norm": lambda own: {**own, "slots": own["slots"] + 1},
    "attention-score": lambda own: {**own, "slots": own["slots"] + 1},
    "latent-pool": lambda own: {**own, "blocks": own["blocks"] + 1},
    "cartridge": lambda own: {**own, "slots": own["slots"] + 1},
}
FIXED = ["compressed-kv", "retrieval", "nothing", "full"]
QUICK: dict[str, Any] = {"cartridge": {"steps": 1, "chunk_tokens": 64}, "latent-pool": {"longest": 64}}
SIZED = [name for name in BUILT_IN if name in (*LARGER, *FIXED)]


@cache
def roomy(dtype: torch.dtype = torch.float32) -> Backbone:
    """A backbone that reads a text of several chunks."""
    return tiny_backbone(dtype=dtype, max_position_embeddings=2048)


def kept(name: str, dtype: torch.dtype, **options: Any) -> int:
    made = build(name, roomy(dtype), **{**QUICK.get(name, {}), **options})
    return nbytes(written(made, tokens(TOKENS, seed=1)))


def least(name: str, dtype: torch.dtype = torch.float32) -> int:
    """What the refusal of one byte says."""
    with pytest.raises(BudgetError, match=rf"A budget of 1 bytes is too small for '{name}', .* at least \d+") as error:
        options_for(name, roomy(dtype), 1, TOKENS)
    return int(re.findall(r"at least (\d+)", str(error.value))[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("times", [1.0, 1.7, 5.3])
@pytest.mark.parametrize("name", SIZED)
def test_what_is_kept_fits_and_the_next_size_does_not(name: str, times: float, dtype: torch.dtype) -> None:
    own = roomy(dtype)
    budget = int(least(name, dtype) * times)
    options = options_for(name, own, budget, TOKENS)
    assert kept(name, dtype, **options) <= budget
    # Without options it is the default size, however much room there is.
    if name in LARGER and options:
        assert kept(name, dtype, **LARGER[name](options)) > budget
    else:
        assert options == {}


@pytest.mark.parametrize("name", SIZED)
def test_a_byte_less_than_the_least_is_refused(name: str) -> None:
    needed = least(name)
    assert isinstance(options_for(name, roomy(), needed, TOKENS), dict)
    with pytest.raises(BudgetError, match=rf"A budget of {needed - 1} bytes is too small .* at least {needed}"):
        options_for(name, roomy(), needed - 1, TOKENS)


def test_a_pool_is_the_default_one_where_that_fits_since_a_trained_one_may_be_there() -> None:
    own, full = roomy(), kept("latent-pool", torch.float32)
    assert options_for("latent-pool", own, full, TOKENS) == {}
    assert options_for("latent-pool", own, 100 * full, TOKENS) == {}
    assert options_for("latent-pool", own, full - 1, TOKENS) == {"slots": 64, "blocks": 7}


def test_a_short_text_may_be_kept_whole() -> None:
    own = roomy()
    for name in ("every-kth", "mean-pooled"):
        assert options_for(name, own, 100 * own.slot_bytes, 100) == {"every": 1}
    assert options_for("cartridge", own, 100 * own.slot_bytes, 20) == {"slots": 20}
    assert options_for("window", own, own.slot_bytes, 100) == {"sinks": 0, "recent": 1}


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name not in SIZED])
def test_a_memory_without_a_size_says_so(name: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}' has no size to choose for a budget of bytes"):
        options_for(name, roomy(), 1 << 20, TOKENS)


def test_every_memory_sizes_itself_or_says_that_it_cannot() -> None:
    assert {name for name, kind in BUILT_IN.items() if "sized" in vars(kind)} == set(SIZED)
    assert "sized" in vars(Method)


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="There is no method 'windw'"):
        options_for("windw", roomy(), 1000, 10)
    with pytest.raises(UsageError, match="budget_bytes must be above 0; it is 0"):
        options_for("window", roomy(), 0, 10)
    with pytest.raises(UsageError, match="tokens must be above 0; it is 0"):
        options_for("window", roomy(), 1000, 0)


# ---- sizes in words ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [("300", 300), ("300 B", 300), ("64KB", 65536), ("64 kb", 65536), ("1.5MB", 3 << 19), (" 2GB ", 2 << 30)],
)
def test_sizes_are_read(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "KB", "64 apples", "-1KB", "0", "1,5MB", "1e3", "64KBs", "0.5", "64٣"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"'{text}' is no number of bytes; write one such as 300, 64KB"):
        parse_bytes(text)
