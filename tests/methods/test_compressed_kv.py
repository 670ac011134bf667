"""Compressed keys and values against the published recursion, and what a thousand turns do to their numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from byheart.errors import UsageError
from byheart.methods.compressed_kv import CompressedKV
from byheart.model.backbone import Backbone
from byheart.model.kv_cache import PrefixCache
from byheart.model.reading import KV
from byheart.protocol.episode import Episode, collate
from byheart.protocol.kv_slots import kv_to_state, state_to_kv
from byheart.protocol.slot_stream import SlotStream
from byheart.protocol.state import State
from byheart.testing import tiny_backbone, tiny_model
from tests.naive.compressed_kv import Recursion
from tests.naive.slot_stream import Streaming
from tests.samples import ALL_FAMILIES, backbone, hooks, logits, stir, tokens, written

MARKS = 3
SEGMENTS = [tokens(length, seed=n) for n, length in enumerate([9, 4, 1, 12, 7])]
PROMPT = tokens(5, seed=50)
TYPES = [{"merge": merge, "recurrent": recurrent} for merge in ("concat", "mean") for recurrent in (True, False)]
every_type = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: f"{kind['merge']}-{kind['recurrent']}")


def compressed(own: Backbone, **options: Any) -> CompressedKV:
    made = CompressedKV(own, **{"tokens": MARKS, "rank": 2, "segment_tokens": 0, **options})
    stir(made)
    return made.eval()


def twin_of(made: CompressedKV, family: str) -> Recursion:
    lora = made.lora
    updates = {
        path: (down.detach(), up.detach(), lora.scale)
        for path, down, up in zip(lora.paths, lora.down, lora.up, strict=True)
    }
    kind: dict[str, Any] = {"merge": made.merge, "recurrent": made.recurrent, "sink": made.sink}
    if made.first is not None:
        kind["first"] = [(k[None], v[None]) for k, v in made.first.detach()]
    return Recursion(tiny_model(family), made.embeddings.detach(), updates, **kind)


# ---- the naive twin ----


@pytest.mark.parametrize("merge", ["concat", "mean"])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_method_reads_as_in_the_published_recursion(family: str, merge: str) -> None:
    require_like_the_recursion(family, {"merge": merge})


@every_type
@pytest.mark.parametrize("sink", [False, True])
def test_every_type_reads_as_in_the_published_recursion(kind: dict[str, Any], sink: bool) -> None:
    require_like_the_recursion("llama", {**kind, "sink": sink})


@every_type
@pytest.mark.parametrize("sink", [False, True])
def test_a_learned_first_slot_stands_before_everything(kind: dict[str, Any], sink: bool) -> None:
    require_like_the_recursion("llama", {**kind, "sink": sink, "first_slot": True, "linears": "all"})


@torch.no_grad()
def require_like_the_recursion(family: str, kind: dict[str, Any]) -> None:
    own = backbone(family)
    made = compressed(own, **kind)
    state, naive = made.init(), twin_of(made, family)
    for segment in SEGMENTS:
        state = made.write(state, segment)
        naive.write(segment)
        torch.testing.assert_close(logits(own, made.read(state), PROMPT)[0], naive.read(PROMPT), rtol=0, atol=1e-4)
    held = state_to_kv(state)
    assert held is not None
    rows = MARKS * (len(SEGMENTS) if made.merge == "concat" else 1) + made.sink
    assert (made.read(state).slots, held.slots) == (rows + made.first_slot, rows)
    for ours, (theirs, _) in zip(held.keys, naive.concat(naive.sink, naive.memory), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert int(state["tokens"]) + made.first_slot == naive.offset
    assert int(state["segments"]) == len(SEGMENTS)
    assert hooks(own) == []


@every_type
def test_types_read_differently(kind: dict[str, Any]) -> None:
    own = backbone()
    ours = logits(own, compressed(own, **kind).read(written(compressed(own, **kind), *SEGMENTS)), PROMPT)
    for other in (*TYPES, {**kind, "sink": True}):
        if other != kind:
            theirs = logits(own, compressed(own, **other).read(written(compressed(own, **other), *SEGMENTS)), PROMPT)
            assert (ours - theirs).abs().max() > 1e-3


# ---- text that streams through slots ----

STREAM = {"slots": 26, "segment_tokens": 7, "compressed_slots": 6}


@torch.no_grad()
@pytest.mark.parametrize(
    "kind",
    [
        {"merge": "concat", "sink": True},
        {"merge": "concat", "first_slot": True},
        {"merge": "mean", "sink": True},
        {"merge": "concat", "bits": 8},
    ],
    ids=str,
)
def test_every_token_is_read_as_in_the_published_loop_of_single_tokens(kind: dict[str, Any]) -> None:
    own = backbone()
    made, text = compressed(own, **STREAM, **kind), tokens(90, seed=3)
    naive = Streaming(own, twin_of(made, "llama"), slots=26, segment=7, compressed=6)
    expected = torch.stack([naive.next_logits(token[None, None]) for token in text[0]])
    state, done, most = made.init(), 0, 0
    for length in (30, 1, 41, 18):
        while length:
            piece = text[:, done : done + min(length, made.reads_at_once(state, text[:, done:]))]
            found = logits(own, made.read(state), piece)[0]
            # Codes of 8 bits are coarse, and what was read after them is coarser.
            near = 0.3 if "bits" in kind else 1e-4
            torch.testing.assert_close(found, expected[done : done + piece.shape[1]], rtol=0, atol=near)
            most = max(most, made.read(state).slots + piece.shape[1])
            state, done, length = made.write(state, piece), done + piece.shape[1], length - piece.shape[1]
    assert done == 90
    assert most == made.capacity == 26
    whole = made.write(made.init(), text)
    assert (int(whole["tokens"]), int(whole["segments"])) == (90, int(state["segments"]))
    torch.testing.assert_close(
        logits(own, made.read(whole), PROMPT), logits(own, made.read(state), PROMPT), rtol=0, atol=near
    )


def test_the_published_stream_compresses_where_it_did() -> None:
    """160 slots, 8 of them compressed and a sink: 62 tokens between two compressions, and 64 once 8 are there."""
    stream = SlotStream(most=160, sink=1, compressed=8, segment=64, marks=2)
    times = [stream.segments(tokens) for tokens in range(600)]
    assert [n for n in range(1, 600) if times[n] > times[n - 1]] == [160, 222, 284, 346, 408, 472, 536]
    assert [stream.held(n, stream.segments(n)) for n in (159, 160, 222, 346, 408, 472)] == [159, 98, 98, 98, 96, 96]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 20}, "slots must be at least 22 beside a learned first one: 8 compressed ones and a segment of 14"),
        ({"compressed_slots": 7}, "compressed_slots must be a multiple of tokens, of which a segment has 4; it is 7"),
        ({"segment_tokens": 0}, "segment_tokens must be above tokens, 4, where slots are bounded; it is 0"),
        ({"recurrent": False}, "slots needs recurrent=True"),
    ],
)
def test_slots_that_cannot_be_shared_out_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compressed(backbone(), **{"tokens": 4, "slots": 40, "segment_tokens": 14, **options})


def test_slots_are_for_reading_alone() -> None:
    batch = collate([Episode((tokens(9)[0],), tokens(5)[0])])
    with pytest.raises(UsageError, match="trained without slots"):
        compressed(backbone(), **STREAM).loss(batch)


# ---- the control ----


@torch.no_grad()
def test_text_that_is_kept_is_read_with_the_compression_tokens_between() -> None:
    """As published: the tokens are inserted, nothing is hidden, and text is counted without them."""
    own = backbone()
    made = compressed(own, keep_text=True)
    naive = twin_of(made, "llama")
    parts = [torch.cat([own.embed(text), made.embeddings[None]], dim=1) for text in SEGMENTS[:3]]
    marks = [torch.tensor([0.0] * text.shape[1] + [1.0] * MARKS) for text in SEGMENTS[:3]]
    places, read = [], 0
    for text in SEGMENTS[:3]:
        places.append(torch.arange(read, read + text.shape[1] + MARKS))
        read += text.shape[1]
    places.append(torch.arange(read, read + PROMPT.shape[1]))
    embeds = torch.cat([*parts, own.embed(PROMPT)], dim=1)
    gate = torch.cat([*marks, torch.zeros(PROMPT.shape[1])])
    expected = naive.run_model(embeds, [], gate, torch.cat(places)[None])[0][-PROMPT.shape[1] :]
    state = written(made, *SEGMENTS[:3])
    torch.testing.assert_close(logits(own, made.read(state), PROMPT)[0], expected, rtol=0, atol=1e-4)
    assert made.read(state).slots == read + 3 * MARKS


@pytest.mark.parametrize("options", [{"merge": "mean"}, {"sink": True}, {"slots": 40}])
def test_a_control_drops_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="keep_text keeps every slot"):
        compressed(backbone(), keep_text=True, **options)


# ---- positions ----


@torch.no_grad()
@every_type
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("later", [1, 137, 1_000_000])
def test_how_much_was_read_before_does_not_matter(kind: dict[str, Any], sink: bool, later: int) -> None:
    """The same memory, its keys as of later positions: the same answers, and the same memory after another write."""
    own = backbone()
    made = compressed(own, sink=sink, **kind)
    state = written(made, *SEGMENTS[:3])

    def moved(one: State, by: int) -> State:
        held = state_to_kv(one)
        assert held is not None
        return {**one, **kv_to_state(own.rotate(held, by)), "tokens": one["tokens"] + by}

    ours = logits(own, made.read(moved(state, later)), PROMPT)
    torch.testing.assert_close(ours, logits(own, made.read(state), PROMPT), rtol=0, atol=1e-4)
    after = made.write(moved(state, later), SEGMENTS[3])
    torch.testing.assert_close(
        logits(own, made.read(after), PROMPT),
        logits(own, made.read(made.write(state, SEGMENTS[3])), PROMPT),
        rtol=0,
        atol=1e-4,
    )


def test_a_reader_stands_right_after_the_memory() -> None:
    """However long the text was, positions stay small: the last compression token's is the prefix length and more."""
    own = backbone()
    made = compressed(own, segment_tokens=20)
    state = written(made, tokens(1000))
    assert made.read(state).slots == MARKS * 50
    with torch.no_grad(), own.reading([made.read(state)]) as cache:
        _, positions = cache.step(torch.zeros(1, 2, own.dim))
    assert positions.tolist() == [[150, 151]]


# ---- a thousand turns ----


class Scripted:
    """In place of a model: each pass leaves known keys and values in the cache, rounded as the model rounds them."""

    def __init__(self, own: Backbone, marks: int, *, seed: int = 0) -> None:
        self.own, self.marks = own, marks
        self.generator = torch.Generator().manual_seed(seed)
        self.made: list[KV] = []
        self.rotations = own.anatomy.rotations

    def hidden(self, *, embeds: Tensor, cache: PrefixCache) -> None:
        """What ``Backbone.hidden`` does to the cache."""
        held, length = cache.get_seq_length(), embeds.shape[1]
        where = torch.arange(held, held + length)
        keys, values = [], []
        for index, rotation in enumerate(self.rotations):
            row = torch.randn(2, 1, 2, length, 8, generator=self.generator, dtype=torch.float64)
            rounded = rotation.rotate(row[0], where).to(self.own.dtype)
            cache.update(rounded, row[1].to(self.own.dtype), index)
            # What was really kept, as of position 0.
            keys.append(rotation.rotate(rounded.double(), -where)[:, :, -self.marks :])
            values.append(row[1].to(self.own.dtype).double()[:, :, -self.marks :])
        self.made.append(KV(tuple(keys), tuple(values)))


def exact(script: Scripted, lengths: list[int], merge: str, read: int) -> KV:
    """What a reader should see, in float64, from what each pass left."""
    ends = list(itertools.accumulate(lengths))

    def placed(layer: int, turn: int) -> Tensor:
        # Row j of a turn stands at its segment's end + j; the reader's next token stands at position ``read``.
        steps = torch.arange(script.marks) + ends[turn] + read - ends[-1]
        return script.rotations[layer].rotate(script.made[turn].keys[layer], steps)

    keys, values = [], []
    for layer in range(len(script.rotations)):
        turned = torch.stack([placed(layer, turn) for turn in range(len(lengths))])
        value = torch.stack([one.values[layer] for one in script.made])
        keys.append(turned.mean(0) if merge == "mean" else torch.cat(list(turned), dim=2))
        values.append(value.mean(0) if merge == "mean" else torch.cat(list(value), dim=2))
    return KV(tuple(keys), tuple(values))


def off(ours: KV, theirs: KV) -> float:
    """The largest difference of any key or value."""
    pairs = [*zip(ours.keys, theirs.keys, strict=True), *zip(ours.values, theirs.values, strict=True)]
    return max(float((one.double() - other.double()).abs().max()) for one, other in pairs)


@torch.no_grad()
@pytest.mark.parametrize("merge", ["concat", "mean"])
def test_a_thousand_turns_are_as_exact_as_ten(merge: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Updating and reading alone, in bfloat16, against float64: rounding must not build up over turns."""
    own = tiny_backbone(dtype=torch.bfloat16, num_hidden_layers=1)
    made = compressed(own, merge=merge, tokens=2, recurrent=False)
    script = Scripted(own, 2)
    monkeypatch.setattr(own, "hidden", script.hidden)
    state, lengths, errors = made.init(), [], {}
    for turn in range(1, 1001):
        lengths.append(3 + turn % 60)
        state = made.write(state, tokens(lengths[-1]))
        if turn in (10, 100, 1000):
            seen = made.read(state).prefix
            assert seen is not None
            errors[turn] = off(seen, exact(script, lengths, merge, seen.slots))
    assert sum(lengths) > 30_000
    # A mean is kept in float32; the others are rounded twice, once to be kept and once to be read.
    assert errors[10] < (1e-5 if merge == "mean" else 0.05)
    assert errors[1000] <= 2 * errors[10]


@torch.no_grad()
def turns(count: int) -> Iterator[tuple[int, float]]:
    """How far a bfloat16 model's averaged memory is from a float64 model's, relative to its size."""
    small, exactly = tiny_backbone(dtype=torch.bfloat16), tiny_backbone(dtype=torch.bfloat16)
    exactly = Backbone(exactly.model.double())
    methods = [compressed(own, merge="mean", tokens=2) for own in (small, exactly)]
    states = [made.init() for made in methods]
    for turn in range(1, count + 1):
        text = tokens(4 + turn % 5, seed=turn)
        states = [made.write(state, text) for made, state in zip(methods, states, strict=True)]
        ours, theirs = (made.read(state).prefix for made, state in zip(methods, states, strict=True))
        assert ours is not None
        assert theirs is not None
        size = max(float(part.abs().max()) for part in (*theirs.keys, *theirs.values))
        yield turn, off(ours, theirs) / size


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_whole_bfloat16_model_stays_near_a_float64_one(count: int) -> None:
    errors = dict(turns(count))
    assert errors[10] < 0.05
    assert max(errors.values()) < 2 * max(errors[turn] for turn in range(1, 11))


# ---- parts ----


def test_a_text_is_cut_into_segments() -> None:
    made = compressed(backbone(), segment_tokens=8)
    state = written(made, tokens(20, seed=1))
    assert int(state["segments"]) == 3
    assert made.read(state).slots == 3 * MARKS
    whole = compressed(backbone(), segment_tokens=0)
    assert int(written(whole, tokens(200, seed=1))["segments"]) == 1


def test_an_average_never_grows() -> None:
    made = compressed(backbone(), merge="mean", sink=True)
    state = made.init()
    sizes = set()
    for n in range(6):
        state = written(made, tokens(9, seed=n), start=state)
        sizes.add(made.read(state).slots)
    assert sizes == {MARKS + 1} == {made.capacity}
    assert state["keys.0"].dtype == torch.float32


def test_the_first_tokens_slot_is_the_sink() -> None:
    own = backbone()
    made = compressed(own, sink=True)
    state = written(made, *SEGMENTS[:2])
    with torch.no_grad():
        text = own.prefill(SEGMENTS[0])
    held = state_to_kv(state)
    assert held is not None
    for ours, theirs in zip(held.slice(0, 1).keys, text.slice(0, 1).keys, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_compression_tokens_start_near_the_mean_of_all_embeddings() -> None:
    own = backbone()
    made = CompressedKV(own, tokens=3)
    table = own.embedding.weight
    for k in range(3):
        rows = [table[n] for n in range(len(table)) if n % 3 == k]
        torch.testing.assert_close(made.embeddings[-k - 1], torch.stack(rows).mean(0))
    assert (made.embeddings[0] - made.embeddings[1]).abs().max() > 1e-3


def test_an_untrained_update_changes_nothing_and_a_trained_one_only_the_marks() -> None:
    own = backbone()
    plain, trained = CompressedKV(own, tokens=2), CompressedKV(own, tokens=2)
    stir(trained.lora)
    first, second = (written(made, SEGMENTS[0]) for made in (plain, trained))
    with torch.no_grad():
        marks = plain.embeddings.to(own.dtype)[None]
        cache = PrefixCache(len(own.layers))
        own.hidden(embeds=torch.cat([own.embed(SEGMENTS[0]), marks], dim=1), cache=cache)
    held = state_to_kv(first)
    assert held is not None
    assert off(held, cache.rows_from(SEGMENTS[0].shape[1])) < 1e-5
    assert (first["keys.2"] - second["keys.2"]).abs().max() > 1e-3
    assert (first["keys.0"] - second["keys.0"]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "tokens must be above 0; it is 0"),
        ({"rank": 0}, "rank must be above 0; it is 0"),
        ({"merge": "median"}, "merge must be one of concat, mean; it is 'median'"),
        ({"segment_tokens": -1}, "segment_tokens must be 0 or more; it is -1"),
    ],
)
def test_options_that_compress_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CompressedKV(backbone(), **options)
