"""What every method promises on every family: one contract, for each row of the table.

A new method is tested by being in the table; options that make it quick go into ``tests.samples.OPTIONS``.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from byheart.errors import InputError, UsageError
from byheart.methods import build
from byheart.model.backbone import Backbone
from byheart.model.reading import Reading
from byheart.model.stock_attention import stock_cache
from byheart.protocol import state_file as states
from byheart.protocol.checkpoint import load_pretrained, save_pretrained
from byheart.protocol.episode import Episode, collate
from byheart.protocol.method import Method
from byheart.protocol.state import Header, State, stack, unstack
from byheart.testing import tiny_model
from tests.samples import (
    ALL_FAMILIES,
    METHODS,
    VARIANTS,
    backbone,
    fresh,
    greedy,
    hooks,
    logits,
    method,
    same,
    stir,
    tokens,
    weights_hash,
    written,
)

TEXTS = [tokens(20, seed=1), tokens(5, seed=2), tokens(37, seed=3)]
PROMPT = tokens(7, seed=4)
BATCH = collate(
    [Episode((tokens(20 + b, seed=13)[0], tokens(9, seed=14)[0]), tokens(12 - b, seed=15)[0]) for b in (0, 1)]
)
ROUNDING = 1e-4

CASES = [(case, family) for case in METHODS for family in ALL_FAMILIES] + [(case, "llama") for case in VARIANTS]
_COUNT = len(ALL_FAMILIES)
# Without slow tests, these see every family, and the others the first one and two that differ from method to method, so
# that every family is still seen by several. Coarser codes of a method are seen where finer ones are not.
_EVERYWHERE = ("full", "latent-pool")
_FINE = tuple(case for case in VARIANTS if case.endswith("8 bits") and not case.startswith(_EVERYWHERE))
_SEEN = {
    (case, ALL_FAMILIES[(2 * number + step) % _COUNT]) for number, case in enumerate(METHODS) for step in range(2)
} | {(case, family) for case, family in CASES if family == "llama" or case in _EVERYWHERE}
_SEEN -= {(case, "llama") for case in _FINE}


def _parametrized(quick: Collection[tuple[str, str]]) -> pytest.MarkDecorator:
    """All cases; only ``quick`` ones run without slow tests."""
    cases = [each if each in quick else pytest.param(*each, marks=pytest.mark.slow) for each in CASES]
    return pytest.mark.parametrize(("case", "family"), cases)


on_every_family = _parametrized(_SEEN)
# What hardly depends on the model runs on one family.
on_one_family = _parametrized({each for each in _SEEN if each[1] == "llama"})


def test_quick_tests_show_every_family_to_many_methods() -> None:
    for family in ALL_FAMILIES:
        assert len({case for case, seen in _SEEN if seen == family}) >= len(_EVERYWHERE) + 2


@pytest.fixture
def own(family: str) -> Backbone:
    return backbone(family)


@pytest.fixture
def made(case: str, family: str) -> Method:
    return method(case, family)


@cache
def written_once(case: str, family: str) -> tuple[State, Reading]:
    """The state and the reading after all texts; values, so that all tests can share them."""
    made = method(case, family)
    state = written(made, *TEXTS)
    with torch.no_grad():
        return state, made.read(state)


@pytest.fixture
def state(case: str, family: str) -> State:
    return written_once(case, family)[0]


@pytest.fixture
def reading(case: str, family: str) -> Reading:
    return written_once(case, family)[1]


def keeps_nothing(made: Method) -> bool:
    """Whether a method says that it holds no slots and changes nothing: the floor of comparisons."""
    return made.capacity == 0


def copy_of(state: State) -> State:
    return {name: tensor.clone() for name, tensor in state.items()}


# ---- writing ----


@on_every_family
def test_writing_leaves_its_argument_alone(made: Method, state: State) -> None:
    before = copy_of(state)
    after = written(made, TEXTS[0], start=state)
    same(state, before)
    kept = copy_of(after)
    written(made, TEXTS[1], start=after)
    same(after, kept)


@on_one_family
def test_writing_changes_the_state(made: Method, state: State) -> None:
    after = written(made, TEXTS[0], start=state)
    assert any(
        name not in state or tensor.shape != state[name].shape or not torch.equal(tensor, state[name])
        for name, tensor in after.items()
    )


@on_one_family
def test_writing_twice_gives_the_same_twice(made: Method, state: State) -> None:
    left = written(made, TEXTS[0], start=state)
    written(made, TEXTS[1], start=state)
    same(written(made, TEXTS[0], start=state), left)


@on_one_family
def test_a_session_replays(case: str, own: Backbone, state: State) -> None:
    twin = fresh(case, own)
    same(written(twin, *TEXTS), state)


@on_every_family
def test_writing_the_pieces_equals_writing_the_whole(made: Method) -> None:
    text = torch.cat(TEXTS, dim=1)
    pieces = list(made.pieces(text))
    assert torch.equal(torch.cat(pieces, dim=1), text)
    same(written(made, *pieces), written(made, text))


@on_one_family
def test_the_first_dimension_is_the_batch(made: Method, state: State) -> None:
    for one in (made.init(), state):
        assert all(tensor.shape[0] == 1 for tensor in one.values())


@on_every_family
def test_a_batch_equals_its_rows(made: Method, own: Backbone) -> None:
    texts = [tokens(20, seed=5), tokens(20, seed=6)]
    alone = [written(made, text, TEXTS[1]) for text in texts]
    both = written(made, torch.cat(texts), TEXTS[1].expand(2, -1), start=stack([made.init()] * 2))
    with torch.no_grad():
        reading = made.read(both)
    assert reading.batch == 2 or keeps_nothing(made)
    for row, one, read in zip(unstack(both), alone, reading.rows(), strict=True):
        same(row, one, within=1e-3)
        with torch.no_grad():
            expected = logits(own, made.read(one), PROMPT)
        torch.testing.assert_close(logits(own, read, PROMPT), expected, rtol=0, atol=ROUNDING)


@on_one_family
def test_what_a_text_will_take_is_known_before(made: Method) -> None:
    state, exact = made.init(), made.capacity is None
    for text in TEXTS:
        after = made.slots_after(state, text)
        state = written(made, text, start=state)
        assert made.prefix_slots(state) == after if exact else made.prefix_slots(state) <= after <= (made.capacity or 0)


@on_one_family
def test_sessions_written_together_equal_each_alone(made: Method, own: Backbone) -> None:
    histories = [[TEXTS[0]], [TEXTS[0], TEXTS[2]], [], [TEXTS[1]], [TEXTS[0], TEXTS[1], TEXTS[2]]]
    segments = [tokens(9, seed=7), tokens(9, seed=8), tokens(30, seed=9), tokens(9, seed=10), tokens(9, seed=11)]
    before = [written(made, *history) for history in histories]
    with torch.no_grad():
        together = made.write_many(before, segments)
    assert len(together) == len(segments)
    for start, segment, both in zip(before, segments, together, strict=True):
        alone = written(made, segment, start=start)
        same(both, alone, within=1e-3)
        # A session that stays must not hold on to what was written beside it.
        assert all(part.untyped_storage().nbytes() == part.nbytes for part in both.values())
        with torch.no_grad():
            ours, theirs = (logits(own, made.read(one), PROMPT) for one in (both, alone))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=ROUNDING)


@on_one_family
def test_an_empty_text_is_refused(made: Method, state: State) -> None:
    if keeps_nothing(made):
        return
    with pytest.raises(InputError, match=r"empty|at least two tokens"):
        made.write(state, TEXTS[0][:, :0])


@on_one_family
def test_a_text_of_one_token_is_kept_or_refused(made: Method, own: Backbone, state: State) -> None:
    with suppress(InputError), torch.no_grad():
        after = written(made, TEXTS[0][:, :1], start=state)
        assert logits(own, made.read(after), PROMPT).isfinite().all()


# ---- reading ----


@on_every_family
def test_reading_changes_what_the_model_says(made: Method, own: Backbone, reading: Reading) -> None:
    plain = logits(own, Reading(), PROMPT)
    said = logits(own, reading, PROMPT)
    changes_nothing = reading.slots == 0 and not reading.deltas
    # What was learned before may change what the model says, whatever was written.
    assert changes_nothing == (keeps_nothing(made) and not any(True for _ in made.parameters()))
    if changes_nothing:
        assert torch.equal(said, plain)
    else:
        assert (said - plain).abs().max() > ROUNDING
    assert said.isfinite().all()


@on_one_family
def test_different_texts_read_differently(made: Method, own: Backbone, reading: Reading) -> None:
    with torch.no_grad():
        other = made.read(written(made, *(tokens(text.shape[1], seed=12) for text in TEXTS)))
    difference = (logits(own, reading, PROMPT) - logits(own, other, PROMPT)).abs().max()
    assert (difference > ROUNDING) != keeps_nothing(made)


@on_one_family
def test_a_memory_holds_no_more_than_it_says(made: Method, state: State, reading: Reading) -> None:
    assert made.capacity is None or reading.slots <= made.capacity
    with torch.no_grad():
        longer = made.read(written(made, *TEXTS, start=state))
    assert made.capacity is None or longer.slots <= made.capacity


@on_one_family
def test_a_fresh_memory_can_be_read(made: Method, own: Backbone) -> None:
    with torch.no_grad():
        assert logits(own, made.read(made.init()), PROMPT).isfinite().all()


@on_every_family
def test_reading_leaves_no_trace(made: Method, own: Backbone, state: State) -> None:
    weights, plain = weights_hash(own), logits(own, Reading(), PROMPT)
    after = written(made, TEXTS[0], start=state)
    with torch.no_grad():
        reading = made.read(after)
    greedy(own, [reading], [PROMPT[0]])
    with pytest.raises(ZeroDivisionError), own.reading([reading]):
        raise ZeroDivisionError
    assert hooks(own) == []
    assert weights_hash(own) == weights
    assert torch.equal(logits(own, Reading(), PROMPT), plain)
    assert not any(parameter.requires_grad for parameter in own.model.parameters())
    assert not own.model.training


@on_one_family
def test_reading_leaves_its_state_alone(made: Method, own: Backbone, state: State) -> None:
    before = copy_of(state)
    with torch.no_grad():
        greedy(own, [made.read(state)], [PROMPT[0]])
    same(state, before)


@on_every_family
def test_stock_generate_over_a_reading_says_the_same(own: Backbone, reading: Reading) -> None:
    ours = greedy(own, [reading], [PROMPT[0]])[0]
    mask = torch.ones(1, reading.slots + PROMPT.shape[1], dtype=torch.long)
    with own.reading([reading]) as cache:
        theirs = own.model.generate(
            PROMPT,
            attention_mask=mask,
            max_new_tokens=len(ours),
            do_sample=False,
            eos_token_id=None,
            **{own.anatomy.cache_argument: cache},
        )
    assert ours == theirs[0, PROMPT.shape[1] :].tolist()


@on_one_family
def test_stock_attention_over_a_stock_cache_says_the_same(own: Backbone, family: str, reading: Reading) -> None:
    if reading.deltas or (reading.prefix and reading.prefix.masks):
        with pytest.raises(UsageError, match=r"Session\.(ask|stock_reading)"):
            stock_cache(reading)
        return
    theirs = tiny_model(family)
    theirs.set_attn_implementation("sdpa")
    with torch.no_grad():
        found = theirs(PROMPT, **{own.anatomy.cache_argument: stock_cache(reading)}).logits
    torch.testing.assert_close(found, logits(own, reading, PROMPT), rtol=0, atol=1e-5)


@on_one_family
def test_what_is_read_again_is_a_share_of_what_was_written(made: Method, state: State) -> None:
    assert made.reread_tokens(made.init()) == 0
    again, text = made.reread_tokens(state), sum(text.shape[1] for text in TEXTS)
    assert 0 <= again <= text
    # The codec of so few layers leaves none of them to be run again, but the first tokens of a bare text are.
    assert (again > 0) == (made.name in ("compact", "retrieval"))


# ---- keeping ----


@on_every_family
def test_a_state_is_what_its_method_says(made: Method, state: State, reading: Reading) -> None:
    for one, is_written in ((made.init(), False), (state, True), (state, False)):
        made.require_own(one, written=is_written)
    assert made.prefix_slots(state) == reading.slots


@on_every_family
def test_a_saved_state_says_the_same(made: Method, own: Backbone, state: State, tmp_path: Path) -> None:
    header = Header(made.name, made.options(), own.fingerprint, "tokenizer", made.fingerprint, own.source)
    for kept in (state, made.init()):
        size, _ = states.save(tmp_path / "one.state", kept, header)
        loaded, read = states.load(tmp_path / "one.state")
        assert size == (tmp_path / "one.state").stat().st_size
        read.require(replace(header, options=made.options()), "the file")
        same(loaded, {name: tensor.detach() for name, tensor in kept.items()})
    states.save(tmp_path / "one.state", state, header)
    loaded, _ = states.load(tmp_path / "one.state")
    with torch.no_grad():
        ours, theirs = ([made.read(one)] for one in (loaded, state))
    assert greedy(own, ours, [PROMPT[0]]) == greedy(own, theirs, [PROMPT[0]])


@pytest.mark.parametrize("name", METHODS)
def test_default_options_make_the_same_method_again(name: str) -> None:
    options = json.loads(json.dumps(build(name, backbone()).options()))
    assert json.loads(json.dumps(build(name, backbone(), **options).options())) == options


@on_one_family
def test_options_make_the_same_method_again(made: Method, own: Backbone) -> None:
    options = json.loads(json.dumps(made.options()))
    twin = build(made.name, own, **options)
    assert json.loads(json.dumps(twin.options())) == options
    stir(twin)
    assert twin.fingerprint == made.fingerprint
    same(written(twin, *TEXTS), written(made, *TEXTS))


@on_one_family
def test_learned_parts_are_saved_and_loaded(
    case: str, made: Method, own: Backbone, state: State, tmp_path: Path
) -> None:
    save_pretrained(made, tmp_path)
    twin = build(made.name, own, **made.options())
    load_pretrained(twin, tmp_path)
    assert twin.fingerprint == made.fingerprint
    same(written(twin, *TEXTS), state)


# ---- learning ----


@on_every_family
def test_the_loss_teaches_what_is_learned_and_no_weight(case: str, own: Backbone) -> None:
    if "stream" in case:
        pytest.skip("refused, see test_compressed_kv")
    made = fresh(case, own).train()
    value = made.loss(BATCH)
    assert value.shape == ()
    assert value.isfinite()
    # What a part of the last layer writes may be seen by nobody, so only some of a part's tensors need a gradient.
    taught = {part.split(".")[0]: False for part, _ in made.named_parameters()}
    if taught:
        value.backward()
    for part, parameter in made.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), part
            taught[part.split(".")[0]] |= bool(parameter.grad.abs().max() > 0)
    assert all(taught.values()), taught
    assert all(parameter.grad is None for parameter in own.model.parameters())
    assert hooks(own) == []
