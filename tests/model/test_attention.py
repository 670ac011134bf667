"""byheart's attention against torch's own kernel, and against the attention that transformers writes out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from byheart.errors import UnsupportedModelError
from byheart.model import attention
from byheart.model.attention import choose_kernel, folded_attention, grouped_attention
from byheart.model.reading import Reading
from byheart.testing import tiny_backbone, tiny_model
from tests.samples import ALL_FAMILIES, tokens

KERNELS = {"grouped": grouped_attention, "folded": folded_attention}
every_kernel = pytest.mark.parametrize("kernel", list(KERNELS))
SHAPES = [(1, 2, 1, 1, 5), (2, 2, 3, 4, 9), (1, 1, 4, 3, 30), (3, 4, 1, 7, 7)]


def qkv(
    batch: int, heads: int, group: int, rows: int, held: int, *, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(batch + held)
    shapes = [(batch, heads * group, rows, 8), (batch, heads, held, 8), (batch, heads, held, 8)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def stock(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float) -> Tensor:
    """torch's own kernel over repeated heads; gives (B, T, heads, W) as transformers wants it."""
    group = query.shape[1] // key.shape[1]
    each = (part.repeat_interleave(group, dim=1) for part in (key, value))
    out = torch.nn.functional.scaled_dot_product_attention(query, *each, attn_mask=mask, scale=scaling)
    return out.transpose(1, 2)


def written_out(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float, softcap: float
) -> Tensor:
    """Attention as the formula has it, with a soft cap on the scores."""
    group = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(group, dim=1) for part in (key, value))
    scores = (query @ key.mT) * scaling
    scores = (scores / softcap).tanh() * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


def causal(rows: int, held: int) -> Tensor:
    return torch.ones(rows, held, dtype=torch.bool).tril(held - rows)[None, None]


def padded(batch: int, rows: int, held: int) -> Tensor:
    """Causal, and the first keys of each row hidden, one more in each."""
    seen = causal(rows, held).expand(batch, -1, -1, -1).clone()
    for b in range(batch):
        seen[b, :, :, : min(b, held - rows)] = False
    return seen


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["none", "causal", "padded", "additive"])
@every_kernel
def test_every_kernel_is_attention(kernel: str, shape: tuple[int, ...], kind: str) -> None:
    batch, _, _, rows, held = shape
    query, key, value = qkv(*shape)
    masks = {"none": None, "causal": causal(rows, held), "padded": padded(batch, rows, held)}
    masks["additive"] = torch.zeros(batch, 1, rows, held).masked_fill(~padded(batch, rows, held), -1e9)
    ours = KERNELS[kernel](query, key, value, masks[kind], scaling=0.3)
    torch.testing.assert_close(ours, stock(query, key, value, masks[kind], scaling=0.3), rtol=0, atol=2e-6)
    assert ours.is_contiguous()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_a_soft_cap_bounds_the_scores(shape: tuple[int, ...], masked: bool) -> None:
    batch, _, _, rows, held = shape
    query, key, value = qkv(*shape)
    mask = padded(batch, rows, held) if masked else None
    ours = grouped_attention(query * 5, key, value, mask, scaling=0.5, softcap=2.0)
    theirs = written_out(query * 5, key, value, mask, scaling=0.5, softcap=2.0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_keys_in_a_longer_buffer_and_a_longer_mask_give_the_same(masked: bool) -> None:
    query, key, value = qkv(2, 2, 3, 4, 9)
    mask = padded(2, 4, 9) if masked else None
    longer = None if mask is None else torch.cat([mask, torch.ones(2, 1, 4, 6, dtype=torch.bool)], dim=-1)
    views = [torch.cat([part, torch.full((2, 2, 20, 8), 7.0)], dim=2)[:, :, :9] for part in (key, value)]
    assert not views[0].is_contiguous()
    ours = grouped_attention(query, *views, longer, scaling=0.3)
    torch.testing.assert_close(ours, stock(query, key, value, mask, scaling=0.3), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["bool", "additive"])
@every_kernel
def test_a_query_that_sees_nothing_gives_numbers(kernel: str, kind: str) -> None:
    """Padding on the left has such rows; a NaN there would reach every other row of the batch's matrices."""
    query, key, value = qkv(1, 2, 2, 3, 5)
    mask = torch.zeros(1, 1, 3, 5, dtype=torch.bool)
    given = mask if kind == "bool" else torch.zeros(1, 1, 3, 5).masked_fill(~mask, torch.finfo(torch.float32).min)
    assert KERNELS[kernel](query, key, value, given, scaling=0.3).isfinite().all()


@every_kernel
def test_bfloat16_is_as_near_as_the_stock_kernel(kernel: str) -> None:
    query, key, value = qkv(2, 2, 3, 4, 200)
    exact = stock(query.double(), key.double(), value.double(), None, scaling=0.35)
    small = [part.bfloat16() for part in (query, key, value)]
    ours = (KERNELS[kernel](*small, None, scaling=0.35).double() - exact).abs().max()
    theirs = (stock(*small, None, scaling=0.35).double() - exact).abs().max()
    assert ours < 2 * theirs


def test_arguments_are_left_alone() -> None:
    parts, mask = qkv(2, 2, 3, 4, 9), padded(2, 4, 9)
    before = [part.clone() for part in (*parts, mask)]
    grouped_attention(*parts, mask, scaling=0.3, softcap=3.0)
    assert all(torch.equal(part, old) for part, old in zip((*parts, mask), before, strict=True))


def test_gradients_are_those_of_the_stock_kernel() -> None:
    def grads(run: object) -> tuple[Tensor, ...]:
        parts = [part.requires_grad_() for part in qkv(2, 2, 3, 4, 9)]
        run(*parts, padded(2, 4, 9), scaling=0.3).sin().sum().backward()  # type: ignore[operator]
        return tuple(part.grad for part in parts)  # type: ignore[misc]

    torch.testing.assert_close(grads(grouped_attention), grads(stock), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("rows", "masked", "expected"),
    [(1, False, "folded"), (1, True, "folded"), (20, True, "folded"), (20, False, "stock"), (500, True, "stock")],
)
def test_few_queries_are_folded_on_a_cpu(dtype: torch.dtype, rows: int, masked: bool, expected: str) -> None:
    query, key = torch.empty(1, 4, rows, 8, dtype=dtype), torch.empty(1, 2, 1000, 8, dtype=dtype)
    assert choose_kernel(query, key, torch.ones(1) if masked else None) == expected


def test_the_stock_kernel_is_chosen_elsewhere() -> None:
    query, key = torch.empty(1, 4, 1, 8, device="meta"), torch.empty(1, 2, 5000, 8, device="meta")
    assert choose_kernel(query, key, None) == "stock"


def test_training_is_grouped_in_bfloat16_where_scores_are_few() -> None:
    query = torch.empty(1, 4, 60, 8, dtype=torch.bfloat16, requires_grad=True)
    key = torch.empty(1, 2, 60, 8, dtype=torch.bfloat16)
    assert choose_kernel(query, key, None) == "grouped"
    assert choose_kernel(query.repeat(1, 1, 100, 1), key.repeat(1, 1, 100, 1), None) == "stock"
    assert choose_kernel(query.float(), key.float(), None) == "stock"


@pytest.mark.parametrize("rows", [1, 4])
def test_without_a_mask_queries_are_the_last_of_the_keys(rows: int) -> None:
    query, key, value = qkv(1, 2, 2, rows, 9)
    ours, _ = attention.attention_forward(torch.nn.Identity(), query, key, value, None, scaling=0.3, softcap=5.0)
    torch.testing.assert_close(ours, written_out(query, key, value, causal(rows, 9), scaling=0.3, softcap=5.0))


def test_learned_sinks_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"learned sinks \(gpt-oss\)"):
        attention.attention_forward(torch.nn.Identity(), *qkv(1, 1, 1, 1, 2), None, s_aux=torch.ones(1))


@pytest.mark.parametrize("kernel", ["stock", "grouped", "folded"])
@pytest.mark.parametrize("window", [512, 8], ids=["wide", "sliding"])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_model_says_the_same_with_any_attention(
    family: str, window: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text after a prefix, padded and not, against eager attention over the whole text."""

    def forced(query: Tensor, key: Tensor, mask: Tensor | None) -> str:
        allowed = mask is not None or query.shape[2] == 1
        used.add(kernel if allowed else "stock")
        return kernel if allowed else "stock"

    used: set[str] = set()
    monkeypatch.setattr(attention, "choose_kernel", forced)
    settings = {"sliding_window": window} if family in ("mistral", "phi3", "gemma2", "gemma3_text") else {}
    own, naive = tiny_backbone(family, **settings), tiny_model(family, **settings)
    naive.set_attn_implementation("eager")
    texts, prompts = [tokens(20, seed=1), tokens(9, seed=2)], [tokens(3, seed=3), tokens(6, seed=4)]
    left = torch.cat([torch.zeros(1, 3, dtype=torch.long), prompts[0]], dim=1)
    counts = torch.tensor([[False] * 3 + [True] * 3, [True] * 6])
    with torch.no_grad():
        kept = [Reading(own.prefill(text)) for text in texts]
        with own.reading(kept) as cache:
            ours = own.logits(own.hidden(torch.cat([left, prompts[1]]), cache=cache, mask=counts))
            more = own.logits(own.hidden(tokens(1, seed=5).expand(2, -1), cache=cache))
        for b, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
            whole = torch.cat([text, prompt, tokens(1, seed=5)], dim=1)
            expected = naive(whole).logits[0, text.shape[1] :]
            length = prompt.shape[1]
            torch.testing.assert_close(ours[b, -length:], expected[:length], rtol=0, atol=1e-4)
            torch.testing.assert_close(more[b], expected[length:], rtol=0, atol=1e-4)
    assert kernel in used or family == "gemma2"
