"""Methods that keep chosen slots: what ``keep`` is given, and what becomes of what it gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from byheart.errors import InputError
from byheart.model.backbone import Backbone
from byheart.model.reading import KV
from byheart.protocol.kv_method import KVMethod, NewKV
from byheart.protocol.kv_slots import concat, state_to_kv
from byheart.protocol.method import Method
from byheart.testing import tiny_model
from tests.samples import ALL_FAMILIES, backbone, hooks, logits, tokens, written

TEXT, PROMPT = tokens(20, seed=1), tokens(5, seed=2)


class Spy(KVMethod):
    """Keeps what ``choose`` says and remembers what it was given."""

    name = "spy"

    def __init__(self, backbone: Backbone, choose: Callable[[KV | None, KV], KV] = concat, *, chunk: int = 8) -> None:
        Method.__init__(self, backbone)
        self.choose, self.chunk_tokens = choose, chunk
        self.calls: list[tuple[KV | None, NewKV]] = []

    def keep(self, past: KV | None, new: NewKV) -> KV:
        self.calls.append((past, new))
        return self.choose(past, new)


class Watching(Spy):
    """Watches the last three tokens of each piece."""

    observed = 3


class Exact(Spy):
    """Takes its slots in float32."""

    in_float32 = True


def unrotated(own: Backbone, text: Tensor) -> KV:
    with torch.no_grad():
        return own.rotate(own.prefill(text), -torch.arange(text.shape[1]))


def close(ours: KV, theirs: KV) -> None:
    for a, b in zip(ours.keys + ours.values, theirs.keys + theirs.values, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def newest(past: KV | None, new: KV) -> KV:
    """The last five slots."""
    kv = concat(past, new)
    return kv.slice(max(0, kv.slots - 5))


def test_a_class_that_does_not_say_what_to_keep_cannot_be_instantiated() -> None:
    with pytest.raises(TypeError, match="abstract"):
        KVMethod(backbone())


# ---- what keep is given ----


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_slots_are_given_unrotated_piece_by_piece(family: str) -> None:
    spy = Spy(backbone(family))
    written(spy, TEXT)
    assert [(past.slots if past else 0, new.slots) for past, new in spy.calls] == [(0, 8), (8, 8), (16, 4)]
    whole = unrotated(spy.backbone, TEXT)
    start = 0
    for past, new in spy.calls:
        if past is not None:
            close(past, whole.slice(0, start))
        close(new, whole.slice(start, start + new.slots))
        start += new.slots
        assert new.attention == ()


def test_a_piece_is_read_after_what_was_kept_and_not_after_what_was_dropped() -> None:
    spy = Spy(backbone(), newest)
    state = written(spy, TEXT[:, :8])
    reading = spy.read(state)
    written(spy, TEXT[:, 8:12], start=state)
    with torch.no_grad():
        expected = spy.backbone.prefill(TEXT[:, 8:12], reading.prefix)
    close(spy.calls[-1][1], spy.backbone.rotate(expected, -torch.arange(5, 9)))


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
def test_attention_is_that_of_the_last_tokens_to_all_slots(family: str) -> None:
    watching, eager = Watching(backbone(family), chunk=12), tiny_model(family)
    eager.set_attn_implementation("eager")
    written(watching, TEXT)
    with torch.no_grad():
        layers = eager(TEXT, output_attentions=True).attentions
    assert [part.shape[2] for _, new in watching.calls for part in new.attention] == [12] * 3 + [20] * 3
    for ours, theirs in zip(watching.calls[-1][1].attention, layers, strict=True):
        grouped = theirs[:, :, -3:].mean(2).unflatten(1, (ours.shape[1], -1)).mean(2)
        torch.testing.assert_close(ours, grouped, rtol=0, atol=1e-4)


def test_attention_is_missing_where_the_model_runs_on_another() -> None:
    model = tiny_model("llama", seed=5)
    model.set_attn_implementation("sdpa")
    watching = Watching(Backbone(model))
    written(watching, TEXT)
    assert [new.attention for _, new in watching.calls] == [(), (), ()]


def test_slots_in_float32_are_not_rounded_before_they_are_unrotated() -> None:
    rough, exact = Spy(backbone("llama", torch.bfloat16)), Exact(backbone("llama", torch.bfloat16))
    written(rough, TEXT[:, :8])
    written(exact, TEXT[:, :8])
    rounded, precise = rough.calls[0][1], exact.calls[0][1]
    for before, after in zip(rounded.keys + rounded.values, precise.keys + precise.values, strict=True):
        assert (before.dtype, after.dtype) == (torch.bfloat16, torch.float32)
        assert torch.equal(after.bfloat16(), before)
    assert any(not torch.equal(after.bfloat16().float(), after) for after in precise.keys)


# ---- what becomes of what it gives ----


def test_what_it_gives_is_the_state_and_stands_at_its_places() -> None:
    spy = Spy(backbone(), newest)
    state = written(spy, TEXT)
    kept = state_to_kv(state)
    assert kept is not None
    assert kept.slots == 5
    prefix = spy.read(state).prefix
    assert prefix is not None
    close(prefix, spy.backbone.rotate(kept, torch.arange(5)))


def test_nothing_written_is_read_as_nothing() -> None:
    spy = Spy(backbone())
    assert spy.init() == {}
    reading = spy.read(spy.init())
    assert (reading.prefix, reading.batch) == (None, 1)


@pytest.mark.parametrize("chunk", [1, 3, 20, 100])
def test_how_a_text_is_split_changes_nothing_where_all_is_kept(chunk: int) -> None:
    spy = Spy(backbone(), chunk=chunk)
    with torch.no_grad():
        expected = spy.backbone.model(torch.cat([TEXT, PROMPT], dim=1)).logits[:, 20:]
    torch.testing.assert_close(logits(spy.backbone, spy.read(written(spy, TEXT)), PROMPT), expected, rtol=0, atol=1e-4)


def test_a_write_builds_no_graph_even_in_training() -> None:
    spy = Spy(backbone()).train()
    state = spy.write({}, TEXT)
    assert not any(tensor.requires_grad for tensor in state.values())


def test_an_empty_text_is_refused_and_a_failure_leaves_no_hook() -> None:
    spy = Spy(backbone())
    with pytest.raises(InputError, match="nothing to write: the text is empty"):
        spy.write({}, TEXT[:, :0])

    def fail(past: KV | None, new: KV) -> KV:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Watching(backbone(), fail).write({}, TEXT)
    assert hooks(backbone()) == []
    later = Spy(backbone())
    written(later, TEXT)
    assert all(new.attention == () for _, new in later.calls)
