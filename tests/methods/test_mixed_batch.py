"""Rows of one batch read different memories, of different lengths, for prompts of different lengths.

What a row is told must be what it is told alone. Every pair of memories shares a batch, then all of them at once.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations_with_replacement

import pytest
import torch
from torch import Tensor

from byheart.model import attention
from byheart.model.reading import Reading
from tests.samples import ALL_FAMILIES, METHODS, VARIANTS, backbone, greedy, hooks, logits, method, tokens, written

# Families whose attention differs most; the others when slow tests are asked for.
_QUICK = ("llama", "qwen3", "gemma3_text")

CLOSE = 1e-4


@cache
def row(case: str, family: str, place: int) -> tuple[Reading, Tensor]:
    """The reading and the prompt (1, T) of row ``place``, of lengths that no other row has."""
    made = method(case, family)
    state = written(made, tokens(11 + 2 * place, seed=place), tokens(4 + 2 * place, seed=place + 20))
    with torch.no_grad():
        return made.read(state), tokens(2 + place, seed=place + 40)


def together(rows: list[tuple[Reading, Tensor]], family: str) -> list[Tensor]:
    """Each row's logits (T, V) from one pass through the model."""
    own = backbone(family)
    longest = max(prompt.shape[1] for _, prompt in rows)
    padded = torch.zeros(len(rows), longest, dtype=torch.long)
    counts = torch.zeros(len(rows), longest, dtype=torch.bool)
    for b, (_, prompt) in enumerate(rows):
        padded[b, longest - prompt.shape[1] :] = prompt[0]
        counts[b, longest - prompt.shape[1] :] = True
    with torch.no_grad(), own.reading([reading for reading, _ in rows]) as cache:
        out = own.logits(own.hidden(padded, cache=cache, mask=counts))
    return [out[b, counts[b]] for b in range(len(rows))]


def require_rows_as_alone(rows: list[tuple[Reading, Tensor]], family: str) -> None:
    own = backbone(family)
    for (reading, prompt), ours in zip(rows, together(rows, family), strict=True):
        torch.testing.assert_close(ours, logits(own, reading, prompt)[0], rtol=0, atol=CLOSE)
    said = greedy(own, [reading for reading, _ in rows], [prompt[0] for _, prompt in rows])
    assert said == [greedy(own, [reading], [prompt[0]])[0] for reading, prompt in rows]
    assert hooks(own) == []


@pytest.mark.parametrize(
    "pair",
    [
        # All of them together are quick; pair by pair only with the one that keeps everything, and with their like.
        pytest.param(
            pair, id=" and ".join(pair), marks=[] if "full" in pair or pair[0] == pair[1] else pytest.mark.slow
        )
        for pair in combinations_with_replacement(METHODS, 2)
    ],
)
def test_two_memories_share_a_batch(pair: tuple[str, str]) -> None:
    require_rows_as_alone([row(case, "llama", place) for place, case in enumerate(pair)], "llama")


@pytest.mark.parametrize(
    "family",
    [family if family in _QUICK else pytest.param(family, marks=pytest.mark.slow) for family in ALL_FAMILIES],
)
def test_all_memories_share_a_batch(family: str) -> None:
    require_rows_as_alone([row(case, family, place) for place, case in enumerate(METHODS)], family)


@pytest.mark.parametrize("rows", [pytest.param(0, marks=pytest.mark.slow), 10_000], ids=["stock", "folded"])
def test_all_variants_share_a_batch(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "FEW_ROWS", rows)
    cases = [*VARIANTS, *METHODS]
    require_rows_as_alone([row(case, "llama", place) for place, case in enumerate(cases)], "llama")


def test_a_batch_of_one_memory_and_single_rows_share_a_batch() -> None:
    """A reading may serve several rows."""
    made = method("window")
    texts = tokens(12, seed=1, batch=2)
    both, alone = written(made, texts), [written(made, texts[b : b + 1]) for b in range(2)]
    other = row("last-ffn", "llama", 3)[0]
    prompts = [tokens(n, seed=n)[0] for n in (3, 5, 4)]
    with torch.no_grad():
        ours = greedy(backbone(), [made.read(both), other], prompts)
        theirs = greedy(backbone(), [*map(made.read, alone), other], prompts)
    assert ours == theirs


def test_the_memories_differ_enough_to_be_told_apart() -> None:
    """Else rows could be swapped and nothing above would notice."""
    own, prompt = backbone(), tokens(5, seed=60)
    said = [logits(own, row(case, "llama", place)[0], prompt)[0] for place, case in enumerate(METHODS)]
    for n, one in enumerate(said):
        for other in said[:n]:
            assert (one - other).abs().max() > 100 * CLOSE
