"""The tuned last block against tuning by full passes, and what it leaves beside the change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from byheart.errors import InputError, UnsupportedModelError, UsageError
from byheart.methods.full import Full
from byheart.methods.last_ffn import LastFFN, rate_for
from byheart.model.backbone import Backbone
from byheart.protocol.kv_slots import state_to_kv
from byheart.protocol.state import State, stack, unstack
from byheart.testing import tiny_backbone, tiny_model
from tests.naive import last_ffn as naive
from tests.samples import ALL_FAMILIES, backbone, hooks, logits, tokens, weights_hash, written

TEXT, PROMPT = tokens(14, seed=1), tokens(6, seed=2)
HOW: dict[str, Any] = {"steps": 4, "learning_rate": 1e-2, "kl": 0.5}


def changes(state: State) -> dict[str, Tensor]:
    return {name.removeprefix("delta."): part for name, part in state.items() if name.startswith("delta.")}


def near(ours: Tensor, theirs: Tensor, *, within: float = 1e-2) -> None:
    """Adam divides by each gradient's size, so where a gradient is all but zero its rounding is magnified."""
    assert theirs.norm() > 0.01
    assert (ours - theirs).norm() < within * theirs.norm()


# ---- the naive twin ----


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_tuning_is_that_of_full_passes(family: str, layers: int) -> None:
    own, model = backbone(family), tiny_model(family)
    made = LastFFN(own, layers=layers, **HOW)
    tuned = made.tune(TEXT, start=3)
    deltas, losses, divergences = naive.tune(model, TEXT, start=3, paths=list(changes(made.init())), **HOW)
    assert len(deltas) == layers * (2 if family == "phi3" else 3)
    assert tuned.deltas.keys() == deltas.keys()
    for path, delta in deltas.items():
        near(tuned.deltas[path], delta)
    assert tuned.losses == pytest.approx(losses, rel=1e-3)
    assert tuned.divergences == pytest.approx(divergences, rel=1e-2, abs=1e-5)
    assert losses[-1] < losses[0]
    assert hooks(own) == []


@pytest.mark.parametrize("target", [1e-3, 5.0])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_weight_of_the_divergence_follows_its_target(family: str, target: float) -> None:
    """It rises where the model strays farther than the target, and falls where it does not; each text has its own."""
    own, model, how = backbone(family), tiny_model(family), {**HOW, "steps": 6, "kl": 5.0}
    made = LastFFN(own, kl_target=target, **how)
    paths = list(changes(made.init()))
    texts = [TEXT, tokens(9, seed=3)]
    states = made.write_many([made.init()] * 2, texts)
    for state, text in zip(states, texts, strict=True):
        deltas, _, _ = naive.tune(model, text, start=1, paths=paths, kl_target=target, **how)
        plain, _, _ = naive.tune(model, text, start=1, paths=paths, **how)
        for path, part in changes(state).items():
            near(part[0], deltas[path], within=1e-3)
        # Another weight would be seen.
        assert any((deltas[path] - plain[path]).norm() > 1e-2 * plain[path].norm() for path in paths)


@torch.no_grad()
@pytest.mark.parametrize("keep_text", [False, True])
def test_no_steps_leave_the_model_as_it_is(keep_text: bool) -> None:
    own = backbone()
    made = LastFFN(own, steps=0, keep_text=keep_text)
    state = written(made, PROMPT, start=written(made, TEXT))
    assert not any(part.any() for part in changes(state).values())
    assert made.read(state).deltas == {}
    text = torch.cat([TEXT, PROMPT], dim=1)
    plain = Full(own).read(written(Full(own), text)) if keep_text else Full(own).read(Full(own).init())
    torch.testing.assert_close(logits(own, made.read(state), PROMPT), logits(own, plain, PROMPT))
    made.require_own(state, written=True)


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_written_text_reads_as_in_the_tuned_model(family: str, layers: int) -> None:
    """The prefix and the change together: the tuned model with the text in front."""
    own = backbone(family)
    made = LastFFN(own, layers=layers, **HOW)
    state = written(made, TEXT)
    model = naive.changed(tiny_model(family), {path: part[0] for path, part in changes(state).items()})
    expected = model(torch.cat([TEXT, PROMPT], dim=1)).logits[:, TEXT.shape[1] :]
    torch.testing.assert_close(logits(own, made.read(state), PROMPT), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_second_text_goes_on_from_the_first(layers: int) -> None:
    own, model = backbone(), tiny_model()
    made = LastFFN(own, layers=layers, **HOW)
    state = written(made, TEXT)
    again = written(made, PROMPT, start=state)
    before = {path: part[0] for path, part in changes(state).items()}
    deltas, _, _ = naive.tune(model, PROMPT, start=1, paths=list(changes(made.init())), before=before, **HOW)
    for path, part in changes(again).items():
        near(part[0], deltas[path])
        assert (part[0] - before[path]).norm() > 0.01
    assert made.read(again).slots == TEXT.shape[1] + PROMPT.shape[1]


def test_a_frame_is_read_and_its_end_is_learned() -> None:
    """Header tokens are no targets; the footer is one."""
    own, header, footer = backbone(), [5, 6, 7], [9]
    made = LastFFN(own, header=header, footer=footer, **HOW)
    framed = torch.cat([torch.tensor([header]), TEXT, torch.tensor([footer])], dim=1)
    deltas, _, _ = naive.tune(tiny_model(), framed, start=3, paths=list(changes(made.init())), **HOW)
    state = written(made, TEXT)
    for path, part in changes(state).items():
        near(part[0], deltas[path])
    assert made.read(state).slots == TEXT.shape[1]


@pytest.mark.parametrize(
    ("before", "after"),
    [([5, 6], [7, 8]), ([], [7, 8]), ([5], []), ([], [8])],
    ids=["a turn", "a later turn", "running text after a first token", "an answer in a conversation"],
)
def test_what_stands_around_a_text_is_kept_but_not_learned(before: list[int], after: list[int]) -> None:
    """FastMem learns the bare context in an assistant turn; the user's turn around it is in the prompt alone."""
    around: dict[str, Any] = {"header": [3, 4], "footer": [9], "opening": [5, 6], "receipt": [7, 8]}
    text = tokens(9, seed=5)
    assert not {*before, *after} & {*text[0, [0, -1]].tolist()}
    whole = torch.cat([torch.tensor([ids], dtype=torch.long) for ids in (before, text[0].tolist(), after)], dim=1)
    kept = written(LastFFN(backbone(), **around, **HOW), whole)
    bare = written(LastFFN(backbone(), header=[3, 4], footer=[9], **HOW), text)
    assert all(torch.equal(changes(kept)[path], part) for path, part in changes(bare).items())
    full = state_to_kv(written(Full(backbone()), whole))
    held = state_to_kv(kept)
    assert full is not None
    assert held is not None
    torch.testing.assert_close((held.keys, held.values), (full.keys, full.values))


def test_a_text_that_is_all_frame_is_learned() -> None:
    made = LastFFN(backbone(), header=[3], opening=[5, 6], receipt=[7, 8], **HOW)
    assert changes(written(made, torch.tensor([[5, 6, 7, 8]])))


@pytest.mark.parametrize("clip", [1e-3, 1e9])
def test_gradients_are_clipped_as_in_the_paper(clip: float) -> None:
    """Adam forgets a gradient's size but not how it changes; a decaying one shows the clip."""
    own = backbone()
    made = LastFFN(own, clip=clip, **HOW)
    deltas, _, _ = naive.tune(tiny_model(), TEXT, start=1, paths=list(changes(made.init())), clip=clip, **HOW)
    for path, part in made.tune(TEXT, start=1).deltas.items():
        near(part, deltas[path])


# ---- many at once ----


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_texts_of_different_lengths_learned_together_equal_each_alone(family: str, layers: int) -> None:
    own = backbone(family)
    made = LastFFN(own, layers=layers, **HOW)
    texts = [tokens(length, seed=length) for length in (14, 3, 40)]
    starts = [made.init(), written(made, PROMPT), made.init()]
    with torch.no_grad():
        together = made.write_many(starts, texts)
    for state, text, start in zip(together, texts, starts, strict=True):
        alone = written(made, text, start=start)
        for path, part in changes(alone).items():
            near(changes(state)[path], part)
        ours, theirs = (logits(own, made.read(one), PROMPT) for one in (state, alone))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_a_batch_has_a_change_for_each_row() -> None:
    own = backbone()
    made = LastFFN(own, **HOW)
    both = written(made, tokens(9, seed=1, batch=2), start=stack([made.init()] * 2))
    rows = [changes(row) for row in unstack(both)]
    assert all((rows[0][path] - rows[1][path]).norm() > 0.01 for path in rows[0])


# ---- what is kept ----


@torch.no_grad()
def test_the_prefix_is_the_texts_own() -> None:
    own = backbone()
    kept, full = (state_to_kv(written(made, TEXT, PROMPT)) for made in (LastFFN(own, **HOW), Full(own)))
    assert kept is not None
    assert full is not None
    torch.testing.assert_close((kept.keys, kept.values), (full.keys, full.values))


def test_without_the_text_only_the_change_is_kept() -> None:
    made = LastFFN(backbone(), keep_text=False, **HOW)
    state = written(made, TEXT)
    assert all(name.startswith("delta.") for name in state)
    assert made.read(state).slots == 0


def test_small_steps_do_not_vanish_in_bfloat16() -> None:
    """Of the weights' own type, 1e-5 would be rounded away; the change is kept in float32."""
    own = tiny_backbone(dtype=torch.bfloat16)
    before = weights_hash(own)
    made = LastFFN(own, steps=3, learning_rate=1e-5)
    first, second = made.init(), written(made, TEXT)
    for path, part in changes(second).items():
        assert part.dtype == torch.float32
        assert 1e-5 < float(part.abs().max()) < 1e-4
        assert (part != changes(first)[path]).float().mean() > 0.9
    assert weights_hash(own) == before


@pytest.mark.parametrize(
    ("family", "reason"), [("gpt2", "whose weight is transposed"), ("gptj", "no feed-forward block")]
)
def test_models_whose_blocks_it_cannot_tune_are_refused(family: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        written(LastFFN(backbone(family)), tokens(5))


def test_tuning_helps_in_any_precision() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        losses = LastFFN(backbone("llama", dtype), steps=8, learning_rate=3e-3, kl=0.1).tune(TEXT, start=1).losses
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < 0.9 * losses[0]


def test_the_divergence_holds_the_model_back() -> None:
    free, held = (LastFFN(backbone(), **{**HOW, "kl": kl}).tune(TEXT, start=1) for kl in (0.0, 20.0))
    assert free.divergences[0] == pytest.approx(0.0, abs=1e-5)
    assert held.divergences[-1] < free.divergences[-1]


# ---- the learning rate ----


@pytest.mark.parametrize(
    ("parameters", "rate"),
    [(70_000_000_000, 1e-5), (8_030_000_000, 1e-5), (803_000_000, 1e-4), (134_515_008, 5.97e-4), (1_000_000, 1e-3)],
)
def test_smaller_models_are_tuned_faster(parameters: int, rate: float) -> None:
    assert rate_for(parameters) == pytest.approx(rate, rel=1e-2)


def test_what_the_rate_is_stands_in_the_options() -> None:
    """So a memory is opened with the rate that it was made with, whatever a later rule says."""
    assert LastFFN(backbone()).options()["learning_rate"] == LastFFN(backbone(), learning_rate=1e-3).learning_rate
    assert LastFFN(backbone(), learning_rate=2e-5).options()["learning_rate"] == 2e-5
    steps = [max(abs(part).max().item() for part in changes(written(LastFFN(backbone(), steps=1), TEXT)).values())]
    assert steps == pytest.approx([1e-3], rel=0.1)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps must be 0 or more; it is -1"),
        ({"kl_target": -1.0}, "kl_target must be 0 or more; it is -1"),
        ({"learning_rate": -1.0}, "learning_rate must be 0 or more; it is -1.0"),
        ({"layers": 0}, "layers must be above 0; it is 0"),
        ({"layers": 4}, "layers must be at most 3, the model's depth; it is 4"),
        ({"clip": -1.0}, "clip must be above 0; it is -1.0"),
        ({"kl": -0.1}, "kl must be 0 or more; it is -0.1"),
    ],
)
def test_options_that_cannot_tune_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LastFFN(backbone(), **options)


def test_texts_that_cannot_be_learned_are_refused() -> None:
    own: Backbone = backbone()
    made, framed = LastFFN(own, **HOW), LastFFN(own, header=[5, 6], footer=[7], **HOW)
    with pytest.raises(InputError, match="text is empty"):
        made.write(made.init(), TEXT[:, :0])
    with pytest.raises(InputError, match="too short to learn: give at least two tokens"):
        made.write(made.init(), TEXT[:, :1])
    assert all(part.isfinite().all() for part in written(framed, TEXT[:, :1]).values())
    with pytest.raises(InputError, match="text has 513 tokens in all, but the model reads at most 512"):
        framed.write(framed.init(), tokens(510))
    with pytest.raises(InputError, match=r"text has 526 tokens in all, .* at most 512; .* keep_text=False"):
        made.write(written(made, TEXT), tokens(512))


def test_a_refused_text_leaves_the_state() -> None:
    made = LastFFN(backbone(), **HOW)
    state = written(made, TEXT)
    before = {name: part.clone() for name, part in state.items()}
    with pytest.raises(InputError):
        made.write(state, tokens(512))
    assert all(torch.equal(part, before[name]) for name, part in state.items())
