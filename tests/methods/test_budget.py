"""Methods sized to fit a number of bytes: what is kept fits, the next size does not, too little names the least."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from byheart.errors import BudgetError, UnknownNameError, UsageError
from byheart.methods import BUILT_IN, build, defaults, pretrained
from byheart.methods.budget import options_for, parse_bytes
from byheart.model.backbone import Backbone
from byheart.protocol.checkpoint import save_pretrained
from byheart.protocol.size import Size, every_size
from byheart.protocol.state import nbytes
from byheart.testing import tiny_backbone
from tests.samples import CODED, codec_of, tokens, written

TOKENS = 1100


def finer(every: float) -> float:
    """The next number of four digits."""
    power = len(str(int(every))) - 1
    return round(every - 10.0 ** (power - 3 - (every == 10**power)), 4)


# What the next size up is, of those that have one; the others take what they take.
LARGER: dict[str, Any] = {
    "window": lambda options: {**options, "recent": options["recent"] + 1},
    "every-kth": lambda options: {**options, "every": finer(options["every"])},
    "mean-pooled": lambda options: {**options, "every": finer(options["every"])},
    "key-norm": lambda options: {**options, "slots": options["slots"] + 1},
    "attention-score": lambda options: {**options, "slots": options["slots"] + 1},
    # Of a short text, a step of a millionth is less than a slot.
    "repeat-score": lambda options: {"share": options["share"] + 2e-4},
    "latent-pool": lambda options: {**options, "blocks": options["blocks"] + 1},
    "cartridge": lambda options: {**options, "slots": options["slots"] + 1},
}
FIXED = ["compressed-kv", "retrieval", "nothing", "full"]
QUICK: dict[str, Any] = {"cartridge": {"steps": 1, "chunk_tokens": 64}, "latent-pool": {"longest": 64}}
# `compact` is tested beside the method: tiny models have no slots to make 128 times smaller.
SIZED = [name for name in BUILT_IN if name in (*LARGER, *FIXED)]


@cache
def roomy(dtype: torch.dtype = torch.float32) -> Backbone:
    """A backbone that reads a text of several chunks."""
    return tiny_backbone(dtype=dtype, max_position_embeddings=2048)


def kept(name: str, dtype: torch.dtype, **options: Any) -> int:
    method = build(name, roomy(dtype), **{**QUICK.get(name, {}), **options})
    return nbytes(written(method, tokens(TOKENS, seed=1)))


def least(name: str, dtype: torch.dtype = torch.float32) -> int:
    """What the refusal of one byte says."""
    with pytest.raises(BudgetError, match=rf"A budget of 1 bytes is too small for '{name}', .* at least \d+") as error:
        options_for(name, roomy(dtype), 1, TOKENS)
    return int(re.findall(r"at least (\d+)", str(error.value))[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("times", [1.0, 1.7, 5.3])
@pytest.mark.parametrize("name", SIZED)
def test_what_is_kept_fits_and_the_next_size_does_not(name: str, times: float, dtype: torch.dtype) -> None:
    budget = int(least(name, dtype) * times)
    options = options_for(name, roomy(dtype), budget, TOKENS)
    assert kept(name, dtype, **options) <= budget
    # Without options it is the default size, however much room there is.
    if name in LARGER and options:
        assert kept(name, dtype, **LARGER[name](options)) > budget
    else:
        assert options == {}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", [name for name in CODED if name in SIZED])
def test_fewer_bits_leave_room_for_more(name: str, bits: int) -> None:
    own, budget = roomy(), int(1.2 * least(name))
    options = options_for(name, own, budget, TOKENS, given={"bits": bits})
    assert kept(name, torch.float32, bits=bits, **options) <= budget
    if name in LARGER:
        # The default pool is the largest.
        assert not options or kept(name, torch.float32, bits=bits, **LARGER[name](options)) > budget
        assert options != options_for(name, own, budget, TOKENS)


@pytest.mark.parametrize("bits", [8, 4])
def test_all_keys_and_values_fit_less_room_in_fewer_bits(bits: int) -> None:
    needed = kept("full", torch.float32, bits=bits)
    assert options_for("full", roomy(), needed, TOKENS, given={"bits": bits}) == {}
    with pytest.raises(BudgetError, match=f"needs at least {needed}"):
        options_for("full", roomy(), needed - 1, TOKENS, given={"bits": bits})


@pytest.mark.parametrize("name", SIZED)
def test_a_byte_less_than_the_least_is_refused(name: str) -> None:
    needed = least(name)
    assert isinstance(options_for(name, roomy(), needed, TOKENS), dict)
    with pytest.raises(BudgetError, match=rf"A budget of {needed - 1} bytes is too small .* at least {needed}"):
        options_for(name, roomy(), needed - 1, TOKENS)


def test_a_pool_is_the_default_one_where_that_fits_since_a_trained_one_may_be_there() -> None:
    backbone, full = roomy(), kept("latent-pool", torch.float32)
    assert options_for("latent-pool", backbone, full, TOKENS) == {}
    assert options_for("latent-pool", backbone, 100 * full, TOKENS) == {}
    assert options_for("latent-pool", backbone, full - 1, TOKENS) == {"slots": 64, "blocks": 7}


def test_a_short_text_may_be_kept_whole() -> None:
    backbone = roomy()
    for name in ("every-kth", "mean-pooled"):
        assert options_for(name, backbone, 100 * backbone.slot_bytes, 100) == {"every": 1}
    assert options_for("cartridge", backbone, 100 * backbone.slot_bytes, 20) == {"slots": 20}


@pytest.mark.parametrize(
    ("name", "slots", "options"),
    [
        ("window", 1, {"sinks": 0, "recent": 1}),
        ("window", 3, {"sinks": 2, "recent": 1}),
        ("window", 40, {"sinks": 4, "recent": 36}),
        ("key-norm", 1, {"slots": 1, "sinks": 0, "recent": 0}),
        ("key-norm", 10, {"slots": 10, "sinks": 2, "recent": 2}),
        ("key-norm", 1000, {"slots": 1000, "sinks": 4, "recent": 32}),
        ("attention-score", 1, {"slots": 1, "observed": 1}),
        ("attention-score", 10, {"slots": 10, "observed": 2}),
        ("attention-score", 1000, {"slots": 1000, "observed": 32}),
        ("cartridge", 2, {"slots": 2}),
        ("cartridge", 40, {"slots": 40}),
        ("every-kth", 3, {"every": 512}),
        ("every-kth", 4, {"every": 341.4}),
        ("mean-pooled", 550, {"every": 2}),
    ],
)
def test_so_many_slots_give_these_options(name: str, slots: int, options: dict[str, int]) -> None:
    backbone = roomy()
    for budget in (slots * backbone.slot_bytes, (slots + 1) * backbone.slot_bytes - 1):
        assert options_for(name, backbone, budget, TOKENS) == options


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name not in (*SIZED, "compact")])
def test_a_method_without_a_size_says_so(name: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}' has no size to choose for a budget of bytes; take another method"):
        options_for(name, roomy(), 1 << 20, TOKENS)


def test_every_method_declares_a_size_or_has_none() -> None:
    assert {name for name, kind in BUILT_IN.items() if kind.size is not None} == {*SIZED, "compact"}


@pytest.mark.parametrize("name", SIZED)
def test_sizes_are_in_the_order_of_their_bytes(name: str) -> None:
    """The search for what fits halves the range: it must never meet a larger size of fewer bytes."""
    size, backbone = BUILT_IN[name].size, roomy()
    assert size is not None
    for length in (1, 2, 63, 64, 65, 1024, 1025, 5000):
        some = size.sizes(length)[:2000]
        known = defaults(BUILT_IN[name])
        needed = [size.nbytes(backbone, [length], {**known, **size.options(choice)}) for choice in some]
        assert needed == sorted(needed)


@pytest.mark.parametrize("length", [1, 2, 7, 63, 64, 65, 200])
@pytest.mark.parametrize("every", [1, 1.001, 2, 2.5, 3, 7, 9.999, 64])
@pytest.mark.parametrize("sinks", [0, 1, 3])
def test_slots_are_counted_as_they_are_kept(length: int, every: int, sinks: int) -> None:
    backbone = roomy()
    for name in ("every-kth", "mean-pooled"):
        method = build(name, backbone, every=every, sinks=sinks, chunk_tokens=64)
        counted = every_size(most=64).nbytes(backbone, [length, 70], method.options())
        assert counted == nbytes(written(method, tokens(length), tokens(70)))


def test_the_largest_size_within_a_budget_is_found_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, size = (
        roomy(),
        Size(lambda backbone, texts, options: options["n"] ** 2, lambda tokens: range(3, tokens), lambda n: {"n": n}),
    )
    monkeypatch.setattr(BUILT_IN["nothing"], "size", size)
    for budget in range(9, 200):
        largest = max(n for n in range(3, 12) if n * n <= budget)
        assert options_for("nothing", backbone, budget, 12) == {"n": largest}
    with pytest.raises(BudgetError, match="A budget of 8 bytes is too small for 'nothing', which needs at least 9"):
        options_for("nothing", backbone, 8, 12)


# ---- how close ----

# What takes what it takes, or comes in steps that are coarser than two hundredths of these budgets.
NOT_CLOSE = {
    **dict.fromkeys(("nothing", "full", "retrieval", "compressed-kv"), "there is nothing to choose"),
    "latent-pool": "a pool has whole blocks of 64 slots",
}
# Every chunk that is read has a slot more at once, so that only a text of one chunk comes close.
BY_CHUNK = ["every-kth", "mean-pooled"]
CLOSE = [name for name, kind in BUILT_IN.items() if kind.size is not None and name not in NOT_CLOSE]


@cache
def wide() -> Backbone:
    """A backbone of 1,536 bytes a slot, so that a whole slot is about a hundredth of the least budget."""
    return tiny_backbone(max_position_embeddings=16384, head_dim=32)


@pytest.mark.parametrize("budget", ["128KB", pytest.param("512KB", marks=pytest.mark.slow), "2MB"])
@pytest.mark.parametrize("name", CLOSE)
def test_a_long_text_takes_at_least_98_hundredths_of_its_bytes(name: str, budget: str) -> None:
    own, most = wide(), parse_bytes(budget)
    codec_of(own)
    text = tokens(6000 if name == "compact" else 4000, seed=1)
    given = {**QUICK.get(name, {}), **({"chunk_tokens": 4096} if name in BY_CHUNK else {})}
    options = {**given, **options_for(name, own, most, text.shape[1], given=given)}
    assert 0.98 * most <= nbytes(written(build(name, own, **options), text)) <= most


@pytest.mark.parametrize("name", BY_CHUNK)
def test_a_step_of_a_text_in_chunks_is_a_slot_of_each(name: str) -> None:
    own, text, most = wide(), tokens(4000, seed=1), 128 << 10
    used = nbytes(written(build(name, own, **options_for(name, own, most, 4000)), text))
    assert most - 4 * own.slot_bytes < used <= most


@pytest.mark.parametrize("name", ["every-kth", "mean-pooled", "repeat-score", "compact"])
def test_several_texts_fit_together(name: str) -> None:
    own, texts = wide(), [tokens(length, seed=length) for length in (900, 1, 40, 300, 1100)]
    codec_of(own)
    options = options_for(name, own, 200 << 10, [text.shape[1] for text in texts])
    # Every text of few tokens costs what a whole one does, of which few are left.
    assert 0.97 * (200 << 10) <= nbytes(written(build(name, own, **options), *texts)) <= 200 << 10


def test_methods_of_whole_slots_are_as_close_as_a_slot_of_the_default_model() -> None:
    """23,040 bytes a slot in bfloat16: five, 22 and 91 of them fit, which is .88, .97 and 1.00 of the bytes."""
    heads = {
        "hidden_size": 36,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "num_attention_heads": 9,
        "head_dim": 64,
    }
    own = tiny_backbone(dtype=torch.bfloat16, **heads)
    assert own.slot_bytes == 23040
    for name in ("window", "key-norm", "attention-score", "cartridge", "every-kth", "mean-pooled"):
        kind, used = BUILT_IN[name], []
        for budget in (128 << 10, 512 << 10, 2 << 20):
            options = {**defaults(kind), **options_for(name, own, budget, 1000)}
            assert kind.size is not None
            used.append(round(kind.size.nbytes(own, [1000], options) / budget, 2))
        assert used == [0.88, 0.97, 1.0], name


def test_every_method_with_a_size_is_close_or_named_as_not() -> None:
    assert {*CLOSE, *NOT_CLOSE} == {name for name, kind in BUILT_IN.items() if kind.size is not None}


# ---- options that are given ----


@pytest.mark.parametrize(
    "given",
    [
        {"merge": "mean"},
        {"merge": "mean", "sink": True},
        {"tokens": 2},
        {"segment_tokens": 100, "sink": True},
        {"segment_tokens": 0},
        {"bits": 4, "tokens": 3},
        {"slots": 160, "tokens": 2, "sink": True},
        {"keep_text": True},
        {"slots": 120, "merge": "mean"},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compressed_text_takes_what_its_options_say(given: dict[str, Any], dtype: torch.dtype) -> None:
    needed = kept("compressed-kv", dtype, **given)
    assert options_for("compressed-kv", roomy(dtype), needed, TOKENS, given=given) == {}
    with pytest.raises(BudgetError, match=f"needs at least {needed}"):
        options_for("compressed-kv", roomy(dtype), needed - 1, TOKENS, given=given)


def test_the_pretrained_mean_is_counted_as_it_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a method is opened with decides: the options of the learned parts, where some are found."""
    own = roomy()
    save_pretrained(build("compressed-kv", own, merge="mean", tokens=7), tmp_path)
    monkeypatch.setattr(pretrained, "find", lambda *asked: tmp_path)
    needed = kept("compressed-kv", torch.float32, merge="mean", tokens=7)
    with pytest.raises(BudgetError, match=f"needs at least {needed}"):
        options_for("compressed-kv", own, needed - 1, TOKENS, given={"merge": "mean"})


@pytest.mark.parametrize(
    ("name", "given", "chosen"),
    [
        ("window", {"sinks": 10}, {"recent": 30}),
        ("window", {"recent": 10}, {"sinks": 4}),
        ("key-norm", {"recent": 0}, {"slots": 40, "sinks": 4}),
        ("latent-pool", {"slots": 8}, {"blocks": 3}),
        ("every-kth", {"chunk_tokens": 100, "sinks": 4}, {"every": 33.34}),
    ],
)
def test_what_is_given_is_not_chosen_and_counts(name: str, given: dict[str, int], chosen: dict[str, float]) -> None:
    backbone = roomy()
    assert options_for(name, backbone, 40 * backbone.slot_bytes, TOKENS, given=given) == chosen


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="There is no method 'windw'"):
        options_for("windw", roomy(), 1000, 10)
    with pytest.raises(UsageError, match="bits must be one of 16, 8, 4; it is 3"):
        options_for("window", roomy(), 1000, 10, given={"bits": 3})
    with pytest.raises(UsageError, match="budget_bytes must be above 0; it is 0"):
        options_for("window", roomy(), 0, 10)
    with pytest.raises(UsageError, match="tokens must be above 0; it is 0"):
        options_for("window", roomy(), 1000, 0)


# ---- sizes in words ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("300", 300),
        ("300 B", 300),
        ("64KB", 65536),
        ("64 kb", 65536),
        ("64KiB", 65536),
        ("1.5 MiB", 3 << 19),
        ("2gib", 2 << 30),
        ("1.5MB", 3 << 19),
        (" 2GB ", 2 << 30),
    ],
)
def test_sizes_are_read(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "KB", "64 apples", "-1KB", "0", "1,5MB", "1e3", "64KBs", "0.5", "64٣"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"'{text}' is no number of bytes; write one such as 300, 64KiB"):
        parse_bytes(text)
