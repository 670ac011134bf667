"""Every way to choose tokens, against loops that run everything again at every step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from byheart.errors import InputError, ModelError, UsageError
from byheart.generation.decoding import Decoding
from byheart.generation.dola import candidate_layers, dola_scores
from byheart.generation.generate import Generation, Request, generate, sample
from byheart.model.backbone import Backbone
from byheart.model.kv_cache import PrefixCache
from byheart.model.reading import DenseDelta, LowRankDelta, Reading, cast
from byheart.testing import VOCABULARY, tiny_backbone, tiny_model
from tests.naive import decoding as naive
from tests.samples import ALL_FAMILIES, backbone, hooks, logits, method, tokens, written

TEXT = tokens(15, seed=1)
PROMPTS = [tokens(4, seed=2)[0], tokens(7, seed=3)[0]]
STEPS = 8
DRAWS = 10_000


def said(
    own: Backbone, readings: list[Reading], prompts: list[Tensor], others: list[Tensor] | None = None, **options: Any
) -> list[list[int | None]]:
    steps = generate(
        own, prompts, readings, decoding=Decoding(max_tokens=STEPS, **options), unconditional_prompts=others
    )
    return [list(row) for row in zip(*steps, strict=True)]


def read(case: str, family: str = "llama") -> Reading:
    made = method(case, family)
    with torch.no_grad():
        return made.read(written(made, TEXT))


def last_of(own: Backbone, reading: Reading) -> Callable[[Tensor], Tensor]:
    """Next-token logits after a reading, everything run again."""
    return lambda text: logits(own, reading, text)[0, -1]


@torch.no_grad()
def model_with(own: Backbone, reading: Reading) -> Callable[[Tensor], Tensor]:
    """Next-token logits of a copy of the model whose weights are changed, after the text itself."""
    model: Any = copy.deepcopy(own.model)
    for path, delta in reading.deltas.items():
        change = delta.weight[0] if isinstance(delta, DenseDelta) else delta.up[0] @ delta.down[0]
        model.get_decoder().get_submodule(path).weight += change
    return lambda text: model(torch.cat([TEXT, text], dim=1)).logits[0, -1]


# ---- greedy ----


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_greedy_tokens_are_those_of_the_model_over_the_whole_text(family: str) -> None:
    own = backbone(family)
    with torch.no_grad():
        expected = [naive.greedy(model_with(own, Reading()), prompt, steps=STEPS) for prompt in PROMPTS]
        reading = read("full", family)
    assert said(own, [reading, reading], PROMPTS) == expected
    assert said(own, [reading], PROMPTS[:1]) == expected[:1]


@pytest.mark.parametrize("case", ["latent-pool lora", "ffn-lora", "last-ffn"])
def test_greedy_tokens_with_changed_layers_are_those_of_a_changed_model(case: str) -> None:
    own, reading = backbone(), read(case)
    expected = [naive.greedy(last_of(own, reading), prompt, steps=STEPS) for prompt in PROMPTS]
    assert said(own, [reading, reading], PROMPTS) == expected


def test_long_answers_outgrow_the_cache() -> None:
    own = backbone()
    with own.reading([Reading()], room=2) as cache:
        steps = list(generate(own, PROMPTS[:1], [Reading()], decoding=Decoding(max_tokens=300), cache=cache))
    assert len(steps) == 300
    with torch.no_grad():
        whole = torch.cat([PROMPTS[0], torch.tensor(steps)[:, 0]])[None]
        likeliest = own.model(whole).logits[0].argmax(-1)
    assert likeliest[len(PROMPTS[0]) - 1 : -1].tolist() == [step[0] for step in steps]


def test_a_row_stops_alone_and_all_rows_stop_the_loop() -> None:
    own = backbone()
    free = said(own, [Reading(), Reading()], PROMPTS)
    stops = {free[0][2], free[1][5]}
    first, second = (next(n for n, token in enumerate(row) if token in stops) for row in free)
    assert first != second
    steps = list(
        generate(own, PROMPTS, [Reading()] * 2, decoding=Decoding(max_tokens=STEPS), stop_tokens=stops)  # type: ignore[arg-type]
    )
    assert len(steps) == max(first, second) + 1
    for row, (length, expected) in enumerate(zip((first, second), free, strict=True)):
        ours = [step[row] for step in steps]
        assert ours[:length] == expected[:length]
        assert ours[length:] == [None] * (len(steps) - length)


# ---- sampling ----


def test_a_seed_repeats_a_sample() -> None:
    own = backbone()
    samples = {seed: said(own, [Reading()], PROMPTS[:1], temperature=2.0, seed=seed) for seed in range(5)}
    assert samples[3] == said(own, [Reading()], PROMPTS[:1], temperature=2.0, seed=3)
    assert len({tuple(rows[0]) for rows in samples.values()}) == 5


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_the_narrowest_sample_is_greedy(narrow: dict[str, Any]) -> None:
    own = backbone()
    options = {"temperature": 1.0, "seed": 0, **narrow}
    assert said(own, [Reading()] * 2, PROMPTS, **options) == said(own, [Reading()] * 2, PROMPTS)


def drawn(probabilities: list[float], **options: Any) -> Tensor:
    """How often each token is drawn from these probabilities."""
    decoding = Decoding(seed=0, **options)
    scores, generator = torch.tensor(probabilities).log(), torch.Generator().manual_seed(0)
    picked = torch.tensor([sample(scores, decoding, generator) for _ in range(DRAWS)])
    return torch.bincount(picked, minlength=len(probabilities)) / DRAWS


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1.0}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, [0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3, 0.09 / 0.3]),
        ({"temperature": 1.0, "top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"temperature": 1.0, "top_k": 100}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 1.0, "top_p": 0.69}, [0, 4 / 7, 0, 3 / 7]),
        ({"temperature": 1.0, "top_p": 0.71}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"temperature": 1.0, "top_p": 0.95, "top_k": 1}, [0.0, 1.0, 0.0, 0.0]),
    ],
)
def test_samples_follow_the_distribution(options: dict[str, Any], expected: list[float]) -> None:
    found = drawn([0.1, 0.4, 0.2, 0.3], **options)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=0.02)
    assert (found[torch.tensor(expected) == 0] == 0).all()


def test_many_tokens_of_little_probability_are_drawn_too() -> None:
    found = drawn([1 / 3000] * 3000, temperature=1.0, top_p=0.9)
    assert 1500 < (found > 0).sum() <= 2701


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ModelError, match="not finite"):
        sample(torch.tensor([0.0, float("nan")]), Decoding(temperature=1.0), None)


# ---- contrast ----


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_contrast_in_one_pass_is_that_of_two_models(family: str) -> None:
    own, reading = backbone(family), read("last-ffn", family)
    score = naive.contrast(model_with(own, reading), model_with(own, Reading()), strength=4.0)
    with torch.no_grad():
        expected = [naive.greedy(score, prompt, steps=STEPS) for prompt in PROMPTS]
    ours = said(own, [reading, reading], PROMPTS, contrast=4.0)
    assert ours == expected
    assert ours != said(own, [reading, reading], PROMPTS)


def test_contrast_needs_one_pass_where_only_the_last_block_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    own, rows = backbone(), []
    layer = own.layers[0]
    handle = layer.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
    try:
        said(own, [read("last-ffn")], PROMPTS[:1], contrast=0.5)
        one_pass = list(rows)
        rows.clear()
        said(own, [read("ffn-lora values")], PROMPTS[:1], contrast=0.5)
    finally:
        handle.remove()
    assert one_pass == [1] * STEPS
    assert rows == [2] * STEPS


@pytest.mark.parametrize("case", ["ffn-lora values", "last-ffn two", "last-ffn", "latent-pool lora", "full"])
def test_contrast_in_a_batch_with_a_row_that_has_no_change(case: str) -> None:
    own, reading, plain = backbone(), read(case), read("window")
    base = replace(reading, deltas={})
    score = naive.contrast(last_of(own, reading), last_of(own, base), strength=1.5)
    expected = [
        naive.greedy(score, PROMPTS[0], steps=STEPS),
        naive.greedy(last_of(own, plain), PROMPTS[1], steps=STEPS),
    ]
    assert said(own, [reading, plain], PROMPTS, contrast=1.5) == expected


def test_contrast_with_low_rank_changes_is_that_of_two_models() -> None:
    own, made = backbone(), method("ffn-lora")
    with torch.no_grad():
        updates = made.read(written(made, TEXT)).deltas
    assert all(isinstance(delta, LowRankDelta) for delta in updates.values())
    reading = replace(read("full"), deltas=updates)
    score = naive.contrast(model_with(own, reading), model_with(own, Reading()), strength=0.5)
    with torch.no_grad():
        expected = naive.greedy(score, PROMPTS[0], steps=STEPS)
    assert said(own, [reading], PROMPTS[:1], contrast=0.5) == [expected]


@pytest.mark.parametrize("case", ["full", "latent-pool lora", "last-ffn", "ffn-lora"])
def test_context_awareness_contrasts_with_a_model_that_read_nothing(case: str) -> None:
    own, reading = backbone(), read(case)
    score = naive.contrast(last_of(own, reading), last_of(own, Reading()), strength=0.5)
    expected = [naive.greedy(score, prompt, steps=STEPS) for prompt in PROMPTS]
    ours = said(own, [reading, reading], PROMPTS, context_aware=0.5)
    assert ours == expected
    assert ours != said(own, [reading, reading], PROMPTS)


def test_context_awareness_may_ask_the_other_side_differently() -> None:
    own, reading, others = backbone(), read("full"), [PROMPTS[1], PROMPTS[0]]
    each = [
        said(own, [reading], [one], context_aware=0.5, others=[two]) for one, two in zip(PROMPTS, others, strict=True)
    ]
    found = said(own, [reading, reading], PROMPTS[:2], context_aware=0.5, others=others)
    assert found == [row for (row,) in each]
    assert found != said(own, [reading, reading], PROMPTS[:2], context_aware=0.5)
    with pytest.raises(UsageError, match="1 unconditional prompts for 2 readings"):
        said(own, [reading, reading], PROMPTS[:2], others=others[:1])


# ---- DoLa ----


@pytest.mark.parametrize(
    ("depth", "high", "low"),
    [
        (32, [16, 18, 20, 22, 24, 26, 28, 30], [2, 4, 6, 8, 10, 12, 14]),
        (30, [15, 17, 19, 21, 23, 25, 27, 29], [2, 4, 6, 8, 10, 12, 14]),
        (60, [40, 42, 44, 46, 48, 50, 52, 54, 56, 58], [2, 4, 6, 8, 10, 12, 14, 16, 18]),
        (80, [60, 62, 64, 66, 68, 70, 72, 74, 76, 78], [2, 4, 6, 8, 10, 12, 14, 16, 18]),
    ],
)
def test_dola_compares_the_published_hidden_states(depth: int, high: list[int], low: list[int]) -> None:
    """As FastMem's code (16, 18, ... 30 of 32) and transformers number them: 0 are the embeddings, n layer n - 1."""
    assert [layer + 1 for layer in candidate_layers("high", depth)] == high
    assert [layer + 1 for layer in candidate_layers("low", depth)] == low


@pytest.mark.parametrize(
    ("chosen", "states"), [("low", [2]), ("high", [4, 6]), ([0, 1], [1, 2]), ([6], [7]), ([1, 4], [2, 5])]
)
def test_dola_is_the_published_rule(chosen: str | list[int], states: list[int]) -> None:
    model = tiny_model(num_hidden_layers=8)
    with torch.no_grad():
        expected = [naive.greedy(naive.dola(model, states), prompt, steps=STEPS) for prompt in PROMPTS]
    deep = tiny_backbone(num_hidden_layers=8)
    assert said(deep, [Reading(), Reading()], PROMPTS, dola=chosen) == expected


def test_dola_chooses_another_layer_for_each_row_and_drops_the_implausible() -> None:
    mature = torch.tensor([[0.7, 0.26, 0.04], [0.3, 0.3, 0.4]])
    premature = torch.tensor([[[0.6, 0.3, 0.1], [0.05, 0.05, 0.9]], [[0.1, 0.1, 0.8], [0.3, 0.4, 0.3]]])
    scores = dola_scores(mature.log(), premature.log())
    expected = torch.stack([mature[0] / premature[1, 0], mature[1] / premature[0, 1]]).log()
    expected[0, 2] = float("-inf")
    torch.testing.assert_close(scores, expected)


def test_dola_reads_memories_too() -> None:
    own, reading, score = backbone(), read("full"), naive.dola(tiny_model(), [1, 2])
    with torch.no_grad():
        expected = naive.greedy(lambda text: score(torch.cat([TEXT, text], dim=1)), PROMPTS[0], steps=STEPS)
    assert said(own, [reading], PROMPTS[:1], dola=[0, 1]) == [expected]


# ---- what is left behind ----

EVERY_WAY: list[dict[str, Any]] = [
    {},
    {"contrast": 0.5},
    {"context_aware": 0.5},
    {"dola": "high"},
    {"temperature": 1.0},
]


@pytest.mark.parametrize("options", EVERY_WAY, ids=str)
@pytest.mark.parametrize("case", ["last-ffn", "ffn-lora", "full", "repeat-score"])
def test_an_interrupted_answer_puts_the_cache_back(case: str, options: dict[str, Any]) -> None:
    own, reading, how = backbone(), read(case), Decoding(max_tokens=STEPS, seed=0, **options)
    with own.reading([replace(reading, deltas={})]) as cache:
        pass
    held = cache.get_seq_length()

    def answer(prompt: Tensor) -> Any:
        return generate(own, [prompt], [reading], decoding=how, cache=cache)

    whole = list(answer(PROMPTS[0]))
    assert cache.get_seq_length() == held
    stopped = answer(PROMPTS[1])
    next(stopped)
    next(stopped)
    stopped.close()
    assert cache.get_seq_length() == held
    assert cache.valid is None
    assert hooks(own) == []
    assert list(answer(PROMPTS[0])) == whole
    assert whole == list(generate(own, [PROMPTS[0]], [reading], decoding=how))


def test_a_mask_is_put_back_too() -> None:
    own, readings = backbone(), [read("full"), read("window")]
    with own.reading(readings) as cache:
        pass
    before = cache.valid
    first = list(generate(own, PROMPTS, readings, decoding=Decoding(max_tokens=3), cache=cache))
    assert cache.valid is before
    assert list(generate(own, PROMPTS, readings, decoding=Decoding(max_tokens=3), cache=cache)) == first


@pytest.mark.parametrize("options", EVERY_WAY, ids=str)
def test_answers_in_progress_do_not_see_one_another(options: dict[str, Any]) -> None:
    """Two users stream at the same time; each has changed layers."""
    own, how = backbone(), Decoding(max_tokens=STEPS, seed=0, **options)
    readings = [read("ffn-lora"), read("last-ffn"), Reading()]
    alone = [list(generate(own, [PROMPTS[0]], [reading], decoding=how)) for reading in readings]
    streams = [generate(own, [PROMPTS[0]], [reading], decoding=how) for reading in readings]
    together: list[list[Any]] = [[] for _ in streams]
    for _ in range(STEPS):
        for stream, out in zip(streams, together, strict=True):
            out.append(next(stream))
            assert torch.equal(logits(own, Reading(), TEXT), logits(backbone(), Reading(), TEXT))
            assert hooks(own) == []
    assert together == alone


def test_a_cache_lent_to_decoding_serves_other_passes_afterwards() -> None:
    own = backbone()
    with own.reading([Reading()], room=1) as cache:
        list(generate(own, PROMPTS[:1], [Reading()], decoding=Decoding(max_tokens=3), cache=cache))
        with torch.no_grad():
            torch.testing.assert_close(own.hidden(TEXT, cache=cache), own.hidden(TEXT))


def test_a_reading_that_can_be_learned_from_is_decoded_as_any() -> None:
    """Outside of ``no_grad`` a trained memory's reading has gradients; tokens have none."""
    own, made = backbone(), method("latent-pool")
    reading = made.read(made.init())
    assert reading.prefix is not None
    assert reading.prefix.values[0].requires_grad
    with torch.no_grad():
        expected = said(own, [made.read(made.init())], PROMPTS[:1])
    assert said(own, [reading], PROMPTS[:1]) == expected


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be 1 or more; it is 0"),
        ({"temperature": -0.5}, "temperature must be .*; it is -0.5"),
        ({"temperature": float("nan")}, "temperature must be .*; it is nan"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1; it is 0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1; it is 1.5"),
        ({"top_k": -1}, "top_k must be 0 or more; it is -1"),
        ({"contrast": 0.5, "dola": "high"}, "Choose one of contrast, dola"),
        ({"contrast": 0.5, "context_aware": 1.0}, "Choose one of contrast, context_aware"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Decoding(**options)


@pytest.mark.parametrize(
    ("dola", "message"),
    [
        ("middle", "dola must be high, low or a list of layers; it is 'middle'"),
        ([], r"dola's layers must lie between 0 and 1; they are \[\]"),
        ([0, 2], r"dola's layers must lie between 0 and 1; they are \[0, 2\]"),
        ([-1], r"dola's layers must lie between 0 and 1; they are \[-1\]"),
    ],
)
def test_layers_that_dola_cannot_compare_are_refused(dola: str | list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        said(backbone(), [Reading()], PROMPTS[:1], dola=dola)
    assert hooks(backbone()) == []


def test_every_prompt_needs_a_reading() -> None:
    with pytest.raises(UsageError, match="2 prompts for 1 readings"):
        said(backbone(), [Reading()], PROMPTS)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="prompt is empty"):
        said(backbone(), [Reading(), Reading()], [PROMPTS[0], PROMPTS[0][:0]])


def test_a_prompt_that_leaves_no_room_is_refused_with_its_lengths() -> None:
    own = backbone()
    with pytest.raises(InputError, match=r"memory's 15 slots and the prompt's 497 tokens .* at most 512"):
        said(own, [read("full")], [tokens(497)[0]])
    assert len(said(own, [Reading()], [tokens(511)[0]])[0]) >= 1


@pytest.mark.parametrize(("most", "is_cut"), [(100, True), (10, True), (9, False), (5, False)])
def test_an_answer_ends_at_the_models_positions(most: int, is_cut: bool, caplog: pytest.LogCaptureFixture) -> None:
    own = backbone()
    reading = Reading(own.prefill(tokens(own.positions - 16)))
    generation = Generation(own)
    [sequence] = generation.add([Request(tokens(7)[0], reading, Decoding(max_tokens=most))])
    while generation.running:
        generation.step()
    assert (len(sequence.tokens), sequence.is_cut) == (min(most, 9), is_cut)
    message = "An answer was cut short: the model reads at most 512 tokens."
    assert [record.getMessage() for record in caplog.records] == [message] * is_cut


def test_tokens_stay_within_the_vocabulary() -> None:
    assert all(0 <= token < VOCABULARY for token in said(backbone(), [Reading()], PROMPTS[:1], temperature=5.0)[0])


# ---- sequences of their own ----


def finished(generation: Generation) -> None:
    while generation.running:
        generation.step()


def ways() -> list[Request]:
    """Requests of every kind, whose answers end at different lengths."""
    readings = [read("full"), read("last-ffn"), read("ffn-lora"), read("window"), Reading(), read("last-ffn")]
    readings.append(read("repeat-score"))
    decodings = [
        Decoding(max_tokens=5),
        Decoding(max_tokens=8, contrast=0.5),
        Decoding(max_tokens=3, contrast=0.7),
        Decoding(max_tokens=7, context_aware=0.5),
        Decoding(max_tokens=6, dola="high"),
        Decoding(max_tokens=8, temperature=1.5, seed=3),
        Decoding(max_tokens=6),
    ]
    prompts = [tokens(4 + n, seed=20 + n)[0] for n in range(len(readings))]
    return [Request(*parts) for parts in zip(prompts, readings, decodings, strict=True)]


def alone(request: Request) -> list[int]:
    generation = Generation(backbone())
    (sequence,) = generation.add([request])
    finished(generation)
    return sequence.tokens


def test_every_sequence_is_decoded_in_its_own_way() -> None:
    requests, generation = ways(), Generation(backbone())
    sequences = generation.add(requests)
    finished(generation)
    assert [sequence.tokens for sequence in sequences] == [alone(request) for request in requests]
    assert [len(sequence.tokens) for sequence in sequences] == [r.decoding.max_tokens for r in requests]
    assert hooks(backbone()) == []


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0], [3, 0, 5, 6, 1, 4, 2]], ids=str)
def test_sequences_join_between_steps(order: list[int]) -> None:
    requests, generation = ways(), Generation(backbone())
    sequences = {}
    for number in order:
        (sequences[number],) = generation.add([requests[number]])
        generation.step()
    finished(generation)
    assert {n: sequence.tokens for n, sequence in sequences.items()} == {n: alone(requests[n]) for n in order}


def test_a_memory_that_several_sequences_read_is_not_copied_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, other = read("full"), read("window")
    requests = [
        Request(tokens(4 + n, seed=30 + n)[0], reading, Decoding(max_tokens=3 + n))
        for n, reading in enumerate([memory, other, memory, Reading()])
    ]
    expected = [alone(request) for request in requests]
    # They may join others whose memory was copied, and stay apart from them.
    generation = Generation(backbone())
    first = generation.add(requests[:1])
    monkeypatch.delattr(PrefixCache, "of")
    sequences = generation.add(requests)
    finished(generation)
    assert [sequence.tokens for sequence in first + sequences] == [expected[0], *expected]


def test_a_sequence_that_is_removed_leaves_the_others_as_they_are() -> None:
    requests, generation = ways(), Generation(backbone())
    sequences = generation.add(requests)
    generation.step()
    generation.remove([sequences[3], sequences[0]])
    assert [n for n, sequence in enumerate(sequences) if sequence in generation.running] == [1, 2, 4, 5, 6]
    finished(generation)
    for number, sequence in enumerate(sequences):
        expected = alone(requests[number])
        assert sequence.tokens == (expected[:1] if number in (0, 3) else expected)


def test_a_sequence_may_be_removed_before_its_first_token() -> None:
    requests, generation = ways(), Generation(backbone())
    sequences = generation.add(requests)
    generation.remove(sequences[1:])
    finished(generation)
    assert [sequence.tokens for sequence in sequences] == [alone(requests[0]), *[[]] * 6]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_a_sampled_answer_is_the_same_alone_and_in_any_batch(temperature: float) -> None:
    own, how = backbone(), Decoding(max_tokens=STEPS, temperature=temperature, seed=5)
    readings = [read(case) for case in ("full", "window", "latent-pool", "full")]
    prompts = [tokens(3 + 2 * n, seed=n)[0] for n in range(4)]
    single = [list(generate(own, [p], [r], decoding=how)) for p, r in zip(prompts, readings, strict=True)]
    together = list(zip(*generate(own, prompts, readings, decoding=how), strict=True))
    assert [[step[0] for step in steps] for steps in single] == [list(row) for row in together]


def test_each_row_of_generate_may_have_a_decoding() -> None:
    own, readings = backbone(), [read("full"), read("full")]
    decodings = [Decoding(max_tokens=2), Decoding(max_tokens=5, temperature=1.0, seed=1)]
    rows = list(zip(*generate(own, PROMPTS, readings, decoding=decodings), strict=True))
    assert rows[0][2:] == (None, None, None)
    assert [token for token in rows[0] if token is not None] == alone(Request(PROMPTS[0], readings[0], decodings[0]))
    assert list(rows[1]) == alone(Request(PROMPTS[1], readings[1], decodings[1]))
    with pytest.raises(UsageError, match="There are 1 decodings for 2 readings"):
        next(generate(own, PROMPTS, readings, decoding=decodings[:1]))


def test_rows_that_have_ended_are_not_computed() -> None:
    """The decoder is given no more rows than there are answers in progress."""
    own = backbone()
    lengths = [1, 2, 4, 8]
    requests = [Request(PROMPTS[0], read("full"), Decoding(max_tokens=length)) for length in lengths]
    batches: list[int] = []
    first = own.layers[0]
    handle = first.register_forward_pre_hook(lambda module, args: batches.append(args[0].shape[0]))
    try:
        generation = Generation(own)
        generation.add(requests)
        finished(generation)
    finally:
        handle.remove()
    assert batches == [4, 3, 2, 2, 1, 1, 1, 1]


def test_a_generation_without_requests_takes_no_step() -> None:
    generation = Generation(backbone())
    assert generation.running == []
    assert generation.step() == []
    generation.close()


def test_a_prompt_for_a_model_without_memory_needs_room_too() -> None:
    request = Request(PROMPTS[0], Reading(), Decoding(context_aware=0.5), tokens(600)[0])
    with pytest.raises(InputError, match="600 tokens leave no room"):
        Generation(backbone()).add([request])
    plain = Request(PROMPTS[0], Reading(), Decoding(max_tokens=1), tokens(600)[0])
    assert len(alone(plain)) == 1


@pytest.mark.parametrize("case", ["last-ffn", "ffn-lora"])
def test_rows_that_share_a_change_share_one_product(case: str) -> None:
    """Ten questions about one text read its change of the weights once."""
    first, other = read(case), Reading(deltas=dict(read(case).deltas))
    converted = cast([reading.deltas for reading in (first, other, first)], torch.bfloat16)
    assert first.deltas.keys() == converted[0].keys() != set()
    for path, delta in converted[0].items():
        assert delta is converted[2][path]
        assert (delta is converted[1][path]) == (first.deltas[path] is other.deltas[path])
    assert cast([{}], torch.float32) == [{}]
