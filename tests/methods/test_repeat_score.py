"""The slots that a repetition attends to, against attention that is written out; heads with slots of their own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from byheart import load
from byheart.errors import InputError, UnsupportedModelError, UsageError
from byheart.methods import build
from byheart.methods.budget import options_for
from byheart.methods.full import Full
from byheart.methods.repeat_score import RepeatScore, pack, runs_of, slots_of, unpack
from byheart.model.backbone import Backbone
from byheart.model.reading import Reading
from byheart.protocol.state import State, nbytes
from byheart.testing import tiny_backbone, tiny_model
from tests.naive import repeat_score as naive
from tests.samples import ALL_FAMILIES, backbone, greedy, logits, tokens, written

OPENING, RECEIPT, REPEAT, FROM, ANSWER = [5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15], [16, 17], [18]
PROMPT, TEXT = tokens(6, seed=9), tokens(30, seed=1)
FRAME = {
    "opening": OPENING,
    "receipt": RECEIPT,
    "repeat": REPEAT,
    "repeat_from": FROM,
    "repeat_answer": ANSWER,
}


def made(own: Backbone | None = None, **options: Any) -> RepeatScore:
    return RepeatScore(own or backbone(), **{"share": 0.4, **FRAME, **options})


def turn(text: Tensor, *, first: bool = True) -> Tensor:
    before, after = torch.tensor([OPENING if first else []]).long(), torch.tensor([RECEIPT])
    return torch.cat([before.expand(len(text), -1), text, after.expand(len(text), -1)], dim=1)


def kept_of(method: RepeatScore, state: State) -> Tensor:
    """Which slots stay, (B, T, L, H)."""
    heads = [part.shape[1] for part in method.backbone.slot.keys]
    return unpack(state["kept"], sum(heads)).unflatten(2, (len(heads), heads[0]))


# ---- which slots ----


@torch.no_grad()
@pytest.mark.parametrize("chunk_tokens", [1024, 7])
@pytest.mark.parametrize("repeat_tokens", [64, 12])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3"])
def test_scores_are_the_most_that_a_repetition_attends(family: str, repeat_tokens: int, chunk_tokens: int) -> None:
    own, eager = backbone(family), tiny_model(family)
    eager.set_attn_implementation("eager")
    method = made(own, repeat_tokens=repeat_tokens, chunk_tokens=chunk_tokens)
    context = turn(TEXT)[:, : -len(RECEIPT)]
    passes = [(torch.tensor([[*RECEIPT, *REPEAT]]), TEXT[:, :repeat_tokens])]
    for start in range(repeat_tokens, TEXT.shape[1], repeat_tokens):
        cue = TEXT[0, start - 8 : start].tolist()
        passes.append((torch.tensor([[*RECEIPT, *FROM, *cue, *ANSWER]]), TEXT[:, start : start + repeat_tokens]))
    expected = naive.scores(eager, context, passes, start=len(OPENING), tokens=30)
    with own.reading([Reading()]) as cache:
        own.hidden(context, cache=cache)
        found = method.scores(cache, TEXT, len(OPENING))
        assert cache.get_seq_length() == context.shape[1]
    torch.testing.assert_close(found[0], expected.flatten(0, 1), rtol=0, atol=1e-5)
    highest = expected.permute(2, 0, 1).flatten().topk(slots_of(30, expected[:, :, 0].numel(), 0.4)).indices
    kept = kept_of(method, method.write(method.init(), turn(TEXT))).flatten()
    assert sorted(kept.nonzero()[:, 0].tolist()) == sorted(highest.tolist())


def test_heads_keep_as_many_slots_as_they_need() -> None:
    method = made()
    kept = kept_of(method, written(method, turn(TEXT)))
    assert int(kept.sum()) == slots_of(30, 6, 0.4) == 72
    assert len(set(kept.sum(1).flatten().tolist())) > 1


def test_a_text_is_scored_by_itself_and_leaves_earlier_slots_alone() -> None:
    method = made()
    first = written(method, turn(TEXT))
    state = written(method, turn(tokens(17, seed=2), first=False), turn(tokens(9, seed=3), first=False), start=first)
    assert [(run.around, run.tokens) for run in runs_of(state)] == [(3, 30), (2, 17), (2, 9)]
    for name in ("keys", "values", "kept"):
        assert torch.equal(state[name][:, : first[name].shape[1]], first[name])
    kept = kept_of(method, state)[0].flatten(1).split([30, 17, 9])
    assert [int(part.sum()) for part in kept] == [slots_of(count, 6, 0.4) for count in (30, 17, 9)]


def test_rows_of_a_batch_keep_slots_of_their_own() -> None:
    method = made()
    texts = [[tokens(20, seed=row), tokens(15, seed=row + 5)] for row in (1, 2)]
    alone = [written(method, turn(one), turn(two, first=False)) for one, two in texts]
    ones, twos = (torch.cat(part) for part in zip(*texts, strict=True))
    both = written(method, turn(ones), turn(twos, first=False))
    assert not torch.equal(both["kept"][0], both["kept"][1])
    for row, state in enumerate(alone):
        assert torch.equal(both["kept"][row], state["kept"][0])
        torch.testing.assert_close(both["values"][row], state["values"][0], rtol=0, atol=1e-5)


# ---- what is read ----


@torch.no_grad()
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_all_slots_read_as_the_text(family: str) -> None:
    own, texts = backbone(family), [turn(TEXT), turn(tokens(11, seed=2), first=False)]
    method, full = made(own, share=1.0, chunk_tokens=9), Full(own)
    ours, theirs = method.read(written(method, *texts)), full.read(written(full, *texts))
    assert ours.prefix is not None
    assert ours.prefix.masks == ()
    assert ours.slots == theirs.slots
    torch.testing.assert_close(logits(own, ours, PROMPT), logits(own, theirs, PROMPT), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_reading_is_the_text_with_slots_hidden_from_heads(family: str) -> None:
    own = backbone(family)
    method = made(own)
    state = written(method, turn(TEXT))
    reading, start = method.read(state), len(OPENING)
    assert reading.prefix is not None
    whole = own.prefill(turn(TEXT)[:, : start + 30])
    kept = kept_of(method, state)[0]
    for layer, (keys, values, mask) in enumerate(zip(*_parts(reading), strict=True)):
        seen = mask[0, :, start : start + 30]
        assert torch.equal(seen, kept[:, layer].T)
        for ours, theirs in ((keys, whole.keys[layer]), (values, whole.values[layer])):
            part, exact = ours[0, :, start : start + 30], theirs[0, :, start:]
            torch.testing.assert_close(part[seen], exact[seen], rtol=0, atol=1e-5)
            assert not part[~seen].any()
        assert bool(mask[:, :, :start].all())
        assert bool(mask[:, :, start + 30 :].all())


def _parts(reading: Reading) -> tuple[Any, Any, Any]:
    prefix = reading.prefix
    assert prefix is not None
    return prefix.keys, prefix.values, prefix.masks


def test_the_template_takes_no_bytes() -> None:
    own, method = backbone(), made()
    bare = RepeatScore(own, share=0.4)
    slots = slots_of(30, 6, 0.4) * own.slot_bytes // 6
    # One byte a token for six bits, two numbers for the text.
    assert nbytes(written(method, turn(TEXT))) == slots + 30 + 8
    assert nbytes(written(bare, tokens(34, seed=1))) == slots + 30 + 8 + 4 * 4


def test_a_smaller_share_says_less_of_the_text() -> None:
    own, losses = backbone(), []
    full = Full(own)
    exact = logits(own, full.read(written(full, turn(TEXT))), PROMPT).log_softmax(-1)
    for share in (0.9, 0.5, 0.1):
        method = made(share=share)
        said = logits(own, method.read(written(method, turn(TEXT))), PROMPT).log_softmax(-1)
        losses.append(float((exact.exp() * (exact - said)).sum()))
    assert losses == sorted(losses)
    assert losses[0] > 0


# ---- bytes ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("times", [2, 4, 8.5])
def test_a_budget_is_met_from_below(times: float, dtype: torch.dtype) -> None:
    own, text = tiny_backbone(dtype=dtype), tokens(200, seed=4)
    budget = int(200 * own.slot_bytes / times)
    options = options_for("repeat-score", own, budget, 200)
    method = made(own, **options)
    size = nbytes(written(method, turn(text)))
    assert budget - own.slot_bytes < size <= budget


@pytest.mark.parametrize("count", [1, 7, 8, 9, 90])
def test_bits_are_packed_and_unpacked(count: int) -> None:
    bits = torch.rand(2, 5, count, generator=torch.Generator().manual_seed(count)) < 0.5
    packed = pack(bits)
    assert packed.shape == (2, 5, -(-count // 8))
    assert torch.equal(unpack(packed, count), bits)


# ---- what cannot be ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, "share must be above 0 and at most 1; it is 0"),
        ({"share": 1.5}, "share must be above 0 and at most 1; it is 1.5"),
        ({"repeat_tokens": 0}, "repeat_tokens must be above 0; it is 0"),
        ({"chunk_tokens": 0}, "chunk_tokens must be above 0; it is 0"),
        ({"repeat": [128]}, "repeat holds token 128, and the model knows those from 0 to 127"),
    ],
)
def test_options_that_cannot_be_had_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        made(**options)


def test_a_model_with_another_attention_is_refused() -> None:
    model = tiny_model("llama", seed=5)
    model.set_attn_implementation("sdpa")
    own, method = Backbone(model), made()
    with pytest.raises(UnsupportedModelError, match=r"saw 0 of \d+ layers; open it with Backbone\.open"):
        made(own).write({}, TEXT)
    reading = method.read(written(method, TEXT))
    with pytest.raises(UnsupportedModelError, match=r"cannot hide slots from single heads.*Backbone\.open"):
        logits(own, reading, PROMPT)


def test_layers_with_heads_of_different_widths_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own = tiny_backbone()
    keys = (*own.slot.keys[:-1], own.slot.keys[-1][..., :4])
    monkeypatch.setitem(vars(own), "slot", SimpleNamespace(keys=keys, values=own.slot.values))
    with pytest.raises(UnsupportedModelError, match=r"heads of different widths \(4, 8\).*use another method"):
        made(own)


def test_a_long_text_is_repeated_in_parts_that_the_positions_hold() -> None:
    own = tiny_backbone(max_position_embeddings=64)
    method = made(own)
    state = written(method, turn(tokens(30, seed=3)))
    assert int(unpack(state["kept"], 6).sum()) == slots_of(30, 6, 0.4)
    with pytest.raises(
        InputError,
        match=r"has 50 tokens in all, .* at most 64, which leaves too few to ask .* as repeat-score does; write",
    ):
        written(method, turn(tokens(45, seed=3)))
    with pytest.raises(InputError, match="has 78 tokens in all, but the model reads at most 64; write less of it"):
        written(method, turn(tokens(70, seed=3)))


def test_states_that_it_could_not_have_written_are_refused() -> None:
    method = made()
    state = dict(written(method, turn(tokens(20, seed=1)), turn(tokens(9, seed=2), first=False)))
    bare = dict(written(method, tokens(20, seed=1)))

    def changed(row: int, column: int, value: int) -> State:
        runs = state["runs"].clone()
        runs[0, row, column] = value
        return {**state, "runs": runs}

    flipped, unused = state["kept"].clone(), state["kept"].clone()
    flipped[0, 3, 0] ^= 4
    unused[0, 3, 0] |= 128
    wrong = [
        (changed(0, 0, 8), "run 0 is none that it writes"),
        (changed(1, 0, 1), "run 1 is none that it writes"),
        (changed(1, 1, 10), "shape"),
        (changed(0, 1, -1), "shape|holds"),
        (changed(0, 0, 4), "first tokens are not those of its first text"),
        ({**state, "kept": flipped}, "it keeps .* slots of a text, which is not its share"),
        ({**state, "kept": unused}, "layers or heads that the model does not have"),
        ({**state, "keys": state["keys"][:, :-1]}, "tensor 'keys' has shape"),
        ({**state, "runs": state["runs"][:, :1]}, "shape"),
        ({**bare, "first": bare["first"] + 127}, "a token that the model does not have"),
        ({name: part for name, part in state.items() if name != "first"}, "'first' is missing"),
    ]
    method.require_own(state, written=True)
    method.require_own(bare, written=True)
    for each, message in wrong:
        with pytest.raises(ValueError, match=message):
            method.require_own(each, written=True)


def test_sessions_of_other_frames_are_not_written_as_one_batch() -> None:
    method = made()
    # Of one shape: the first is a turn, the second text of as many tokens.
    segments = [turn(tokens(20, seed=1)), tokens(28, seed=2)]
    for state, segment in zip(method.write_many([{}, {}], segments), segments, strict=True):
        assert torch.equal(state["kept"], written(method, segment)["kept"])


def test_a_session_gives_it_what_asks_for_the_text(tiny_folder: Any) -> None:
    session = load(str(tiny_folder), method="repeat-score", share=0.5)
    options = session.header.options
    said = {name: session.encoder.tokenizer.decode(options[name]) for name in FRAME}
    assert said["repeat"] == "Repeat the previous context exactly.<|end|><|assistant|>"
    assert said["repeat_from"] + "x" + said["repeat_answer"] == (
        "Repeat the previous context exactly, starting withx<|end|><|assistant|>"
    )
    session.write("The cat is called Muck.")
    assert runs_of(session.state)[0].tokens == len("The cat is called Muck.")
    session.write("It sleeps.")
    assert [run.around for run in runs_of(session.state)] == [3, 2]
    assert isinstance(session.ask("Who?", max_tokens=3), str)


def test_it_generates_beside_readings_without_masks() -> None:
    own, method = backbone(), made()
    full = build("full", own)
    with torch.no_grad():
        readings = [method.read(written(method, turn(TEXT))), full.read(written(full, tokens(44, seed=8)))]
    prompts = [PROMPT[0], tokens(9, seed=6)[0]]
    alone = [greedy(own, [one], [prompt])[0] for one, prompt in zip(readings, prompts, strict=True)]
    assert greedy(own, readings, prompts) == alone
    assert greedy(own, readings[::-1], prompts[::-1]) == alone[::-1]
