"""The twins of ``byheart.decoding``: every step runs every model over the whole text again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def greedy(score: Callable[[Tensor], Tensor], prompt: Tensor, *, steps: int) -> list[int]:
    """The likeliest token, time and again; ``score`` gives next-token scores (V,) of a text (1, T)."""
    text = prompt[None]
    for _ in range(steps):
        text = torch.cat([text, score(text).argmax()[None, None]], dim=1)
    return text[0, len(prompt) :].tolist()


def contrast(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], *, strength: float
) -> Callable[..., Tensor]:
    """(1 + a) times the one less a times the other."""
    return lambda text: (1 + strength) * ours(text) - strength * theirs(text)


def dola(model: nn.Module, states: list[int]) -> Callable[[Tensor], Tensor]:
    """DoLa over a transformers model, by the numbers of its own list of hidden states; 0 are the embeddings."""

    def divergence(p: Tensor, q: Tensor) -> float:
        middle = (p + q) / 2
        return float(0.5 * (p * (p / middle).log()).sum() + 0.5 * (q * (q / middle).log()).sum())

    def score(text: Tensor) -> Tensor:
        out = model(text, output_hidden_states=True)
        last = out.logits[0, -1].softmax(-1)
        early = [model.lm_head(out.hidden_states[state][0, -1]).softmax(-1) for state in states]
        chosen = max(early, key=lambda p: divergence(last, p))
        scores = last.log() - chosen.log()
        return scores.masked_fill(last < 0.1 * last.max(), float("-inf"))

    return score
