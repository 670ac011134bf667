from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from byheart.errors import CorruptStateError, InputError, UsageError
from byheart.methods import compact
from byheart.methods.budget import options_for
from byheart.methods.compact import Compact, nbytes, runs_of
from byheart.protocol.chat_frame import SINKS
from byheart.protocol.codec.calibration import Example, calibrate
from byheart.protocol.state import State
from tests.samples import backbone, codec_of, tokens

OPENING, RECEIPT = [5, 6, 7, 8, 9], [10, 11, 12]


def made(**options: object) -> Compact:
    codec_of(backbone())
    return Compact(backbone(), **{"times": 4, "opening": OPENING, "receipt": RECEIPT, **options})  # type: ignore[arg-type]


def turn(length: int, *, seed: int, first: bool) -> torch.Tensor:
    return torch.cat(
        [torch.tensor([OPENING if first else []]).long(), tokens(length, seed=seed), torch.tensor([RECEIPT])], dim=1
    )


def written(method: Compact, *lengths: int) -> State:
    state = method.init()
    for number, length in enumerate(lengths):
        state = method.write(state, turn(length, seed=number, first=number == 0))
    return state


def test_the_template_takes_no_bytes_and_is_read_exactly() -> None:
    method = made()
    state = written(method, 40, 30)
    assert [(run.around, run.tokens) for run in runs_of(state)] == [(3, 40), (2, 30)]
    assert state["codes"].shape[1] == sum(nbytes(backbone(), length, 4) for length in (40, 30))
    kv = method.read(state).prefix
    assert kv is not None
    assert kv.slots == method.prefix_slots(state) == 40 + 30 + len(OPENING) + 2 * len(RECEIPT)
    opening = backbone().prefill(torch.tensor([OPENING]))
    torch.testing.assert_close(kv.slice(0, len(OPENING)).keys, opening.keys)
    before = kv.slice(0, len(OPENING) + 40)
    receipt = backbone().prefill(torch.tensor([RECEIPT]), before)
    again = kv.slice(before.slots, before.slots + len(RECEIPT))
    torch.testing.assert_close(again.values, receipt.values, atol=1e-5, rtol=1e-4)


def test_a_text_without_the_template_begins_exactly() -> None:
    method = made()
    text = tokens(30, seed=8)
    state = method.write(method.init(), text)
    assert state["first"].tolist() == text[:, :4].tolist()
    kv = method.read(state).prefix
    assert kv is not None
    assert kv.slots == 30
    torch.testing.assert_close(kv.slice(0, 4).values, backbone().prefill(text[:, :4]).values)


@pytest.mark.parametrize("length", [1, 2, 4, 5])
def test_texts_shorter_than_any_frame_are_kept(length: int) -> None:
    method = made()
    state = method.write(method.init(), tokens(length, seed=3))
    assert method.read(state).slots == length
    method.require_own(state, written=True)


def test_what_is_added_leaves_earlier_codes_as_they_were() -> None:
    method = made()
    first = written(method, 20)
    state, lengths = first, [20]
    for number in range(30):
        state = method.write(state, turn(4, seed=50 + number, first=False))
        lengths.append(4)
    size = first["codes"].shape[1]
    assert torch.equal(state["codes"][:, :size], first["codes"])
    kv, alone = method.read(state).prefix, method.read(first).prefix
    assert kv is not None
    assert alone is not None
    for now, then in zip(kv.slice(0, alone.slots).values, alone.values, strict=True):
        assert torch.equal(now, then)


def test_a_reading_does_not_depend_on_what_was_read_before() -> None:
    method = made()
    states = [written(method, 20, 9), written(method, 20), written(method, 15, 9)]
    for state in states:
        found, alone = method.read(state).prefix, made().read(state).prefix
        assert found is not None
        assert alone is not None
        torch.testing.assert_close(found.values, alone.values)


def test_layers_that_are_run_again_are_exact() -> None:
    method = made(times=8)
    rows = tokens(60, seed=5, batch=40)
    method.codec = calibrate(backbone(), [Example(row[:0], row[:50], row[50:], 0) for row in rows], start=1)
    first, second = turn(40, seed=1, first=True), turn(20, seed=2, first=False)
    state = method.write(method.write(method.init(), first), second)
    kv, exact = method.read(state).prefix, backbone().prefill(torch.cat([first, second], dim=1))
    assert kv is not None
    torch.testing.assert_close(kv.keys[0], exact.keys[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(kv.values[0], exact.values[0], atol=1e-5, rtol=1e-4)
    coded = [float((a - b).pow(2).sum()) for a, b in zip(kv.values[1:], exact.values[1:], strict=True)]
    assert all(error > 1e-3 for error in coded)


def test_fewer_bytes_lose_more() -> None:
    text = turn(60, seed=2, first=True)
    exact = backbone().prefill(text)
    losses = []
    for times in (2, 4, 8):
        method = made(times=times)
        kv = method.read(method.write(method.init(), text)).prefix
        assert kv is not None
        losses.append(sum(float((a - b).pow(2).sum()) for a, b in zip(kv.values, exact.values, strict=True)))
    assert losses == sorted(losses)


@pytest.mark.parametrize("times", [1, 129, 0, -3])
def test_rates_that_cannot_be_had_are_refused(times: int) -> None:
    with pytest.raises(UsageError, match="times must be from 2 to 128"):
        made(times=times)


def test_states_that_it_could_not_have_written_are_refused() -> None:
    method = made()
    state = dict(written(method, 20, 9))

    def changed(row: int, column: int, value: int) -> State:
        runs = state["runs"].clone()
        runs[0, row, column] = value
        return {**state, "runs": runs}

    wrong = [
        changed(0, 0, 8),
        changed(1, 0, 1),
        changed(1, 1, 0),
        changed(0, 1, 21),
        changed(0, 2, 100),
        {**state, "codes": state["codes"][:, :-1]},
        {**state, "runs": state["runs"][:, :1]},
        {name: part for name, part in state.items() if name != "first"},
        {**state, "first": torch.tensor([[5]], dtype=torch.int32)},
        # A text of its first tokens alone, without these.
        {**state, "codes": state["codes"][:, :0], "runs": torch.tensor([[[4, 0, 0]]], dtype=torch.int32)},
    ]
    method.require_own(state, written=True)
    for each in wrong:
        with pytest.raises((ValueError, CorruptStateError)):
            method.require_own(each, written=True)


def test_a_changed_code_is_found_when_it_is_read() -> None:
    method = made()
    state = dict(written(method, 20))
    codes = state["codes"].clone()
    codes[0, 25] ^= 64
    with pytest.raises(CorruptStateError, match="changed"):
        method.read({**state, "codes": codes})


def test_who_gives_a_reading_up_does_not_wait_for_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    state, method, opened, decoded = written(made(), 20), made(), threading.Event(), list[Tensor]()
    decode = method.codec.decode

    def slow(code: bytes) -> tuple[Tensor, Iterator[Tensor]]:
        ids, components = decode(code)

        def each() -> Iterator[Tensor]:
            # As if there were three groups.
            for part in [*components] * 3:
                opened.wait(5)
                decoded.append(part)
                yield part

        return ids, each()

    monkeypatch.setattr(method.codec, "decode", slow)
    reading = method.prepare(state, longest=8)
    next(reading)
    reading.close()
    assert decoded == []
    opened.set()
    # Decoding does not go on for nobody.
    for thread in threading.enumerate():
        if thread.name.startswith("byheart-decoding"):
            thread.join(20)
    assert len(decoded) == 1


@pytest.mark.parametrize("share", [0.15, 0.2, 0.3])
def test_a_budget_is_met_from_below(share: float) -> None:
    own, length = backbone(), 100
    codec_of(own)
    budget = int(share * length * own.slot_bytes / 2)
    options = options_for("compact", own, budget, length)
    turn = torch.cat([torch.tensor([[5, 6]]), tokens(length, seed=4), torch.tensor([[7]])], dim=1)

    def size(times: float) -> int:
        method = Compact(own, times=times, opening=[5, 6], receipt=[7])
        return sum(part.nbytes for part in method.write(method.init(), turn).values())

    # The next number of times is a hundredth less.
    assert size(options["times"]) <= budget < size(options["times"] - 0.01)


def test_tokens_that_run_through_some_layers_count_as_a_share_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    method = made()
    state = written(method, 20)
    tokens_of_text = sum(run.tokens for run in runs_of(state))
    assert (tokens_of_text > 0, method.reread_tokens(state)) == (True, 0)
    monkeypatch.setattr(method.codec, "start", 2)
    assert method.reread_tokens(state) == pytest.approx(2 / 3 * tokens_of_text)


def test_sessions_of_other_frames_are_not_written_as_one_batch() -> None:
    method = made()
    # Of one shape: a turn, and bare text of as many tokens.
    segments = [turn(20, seed=1, first=True), tokens(28, seed=2)]
    for state, segment in zip(method.write_many([{}, {}], segments), segments, strict=True):
        assert torch.equal(state["codes"], method.write({}, segment)["codes"])


def test_a_template_as_long_as_the_first_tokens_is_another_frame() -> None:
    method = made(opening=OPENING[:SINKS], receipt=[])
    segments = [torch.cat([torch.tensor([OPENING[:SINKS]]), tokens(20, seed=1)], dim=1), tokens(24, seed=2)]
    states = method.write_many([{}, {}], segments)
    assert torch.equal(states[1]["first"], segments[1][:, :SINKS].to(torch.int32))
    assert states[0]["first"].shape[1] == 0


def test_a_text_past_the_model_s_positions_is_refused_before_it_is_read() -> None:
    with pytest.raises(InputError, match="reads at most"):
        made().write({}, tokens(backbone().positions + 1, seed=1))


def test_some_of_too_many_memories_that_are_written_to_in_turn_are_not_decoded_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method, decoded = made(), list[int]()
    decode = method.codec.decode
    monkeypatch.setattr(method.codec, "decode", lambda code: decoded.append(len(code)) or decode(code))
    # Half of the slots that all have in the end.
    monkeypatch.setattr(compact, "KEPT_BYTES", 6 * (5 + 6 * 23) * backbone().slot_bytes // 2)
    states = [method.init() for _ in range(6)]
    for number in range(6):
        states = [
            method.write(state, turn(20, seed=10 * number + place, first=number == 0))
            for place, state in enumerate(states)
        ]
    for state in states:
        method.read(state)
    # 36 is each text once; if the oldest were always let go, it would be 108.
    assert 36 <= len(decoded) < 90


def test_memories_that_are_written_to_in_turn_are_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    method, decoded = made(), list[int]()
    decode = method.codec.decode
    monkeypatch.setattr(method.codec, "decode", lambda code: decoded.append(len(code)) or decode(code))
    states = [method.init(), method.init()]
    for number in range(3):
        seeds = (10 + number, 20 + number)
        states = [
            method.write(state, turn(20, seed=seed, first=number == 0))
            for state, seed in zip(states, seeds, strict=True)
        ]
    found = [method.read(state).prefix for state in (*states, *states)]
    assert len(decoded) == 6
    for state, kv in zip((*states, *states), found, strict=True):
        exact = made().read(state).prefix
        assert kv is not None
        assert exact is not None
        torch.testing.assert_close(kv.values, exact.values, atol=1e-5, rtol=1e-4)
