"""An update trained on tasks: where it sits, that it keeps no text, how it learns, and what PEFT reads of it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from byheart.data.mixture import prompted, prompts_of
from byheart.errors import InputError, UnknownNameError, UsageError
from byheart.evaluation.evaluate import evaluate
from byheart.evaluation.tasks.multitask import Multitask
from byheart.methods import build
from byheart.methods.adapter import PRESETS
from byheart.model.backbone import Backbone
from byheart.protocol.method import Method
from byheart.protocol.objective import Objective
from byheart.session.opening import load
from byheart.session.session import Session
from byheart.testing import tiny_backbone, tiny_model
from byheart.training.config import TrainingConfig
from scripts import merge
from tests.conftest import Run, tiny_tokenizer
from tests.methods.test_contract import BATCH
from tests.samples import backbone, fresh, logits, stir, tokens, written

NLI = {"dataset": "rte", "task": "mc", "context": "It rains.", "question": "It is wet."}
RECORDS = [{**NLI, "label": 0}, {**NLI, "context": "It snows.", "label": 1}, {**NLI, "context": "Dry.", "label": 1}]


@pytest.fixture(scope="module")
def session() -> Session:
    return load(tiny_backbone(), method="adapter", encoder=tiny_tokenizer())


@pytest.fixture
def data(tmp_path: Path) -> str:
    return file(tmp_path / "rte.jsonl", *RECORDS)


def file(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def size(made: Method) -> int:
    return sum(parameter.numel() for parameter in made.parameters())


# ---- where it sits ----


def test_the_three_matrices_of_a_feed_forward_layer_take_equally_many_parameters() -> None:
    sizes = {preset: size(build("adapter", backbone(), preset=preset)) for preset in PRESETS}
    assert sizes["qv"] < sizes["qv+up"] == sizes["qv+gate"] == sizes["qv+down"]


def test_it_updates_all_layers_of_the_names_and_no_other() -> None:
    made = fresh("adapter gate", backbone())
    ends = {path.rpartition(".")[2] for path in made.read(made.init()).deltas}
    assert ends == {"q_proj", "v_proj", "gate_proj"}
    assert len(made.read(made.init()).deltas) == 3 * len(backbone().layers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "qv+dawn"}, r"no preset of adapter 'qv\+dawn'\. Did you mean 'qv\+down'\? There are: qv,"),
        ({"linears": ["q_prj"]}, r"no linear layer in this model called 'q_prj'\. Did you mean 'q_proj'\?"),
        ({"dropout": 1.0}, r"dropout must be 0 or more and below 1; it is 1\.0"),
        ({"rank": 0}, "rank must be above 0; it is 0"),
    ],
)
def test_what_it_cannot_be_made_with_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises((UnknownNameError, UsageError), match=message):
        build("adapter", backbone(), **options)


def test_texts_leave_no_trace_and_an_untrained_one_changes_nothing() -> None:
    own, made = backbone(), fresh("adapter", backbone())
    empty, full = (logits(own, made.read(state), tokens(7)) for state in (made.init(), written(made, tokens(9))))
    assert torch.equal(empty, full)
    untrained = build("adapter", own)
    plain = build("nothing", own)
    ours, theirs = (logits(own, each.read(each.init()), tokens(7)) for each in (untrained, plain))
    assert torch.equal(ours, theirs)


# ---- learning ----


@pytest.mark.parametrize("objective", [Objective(), Objective(teacher=0.5, every_segment=0.3)])
def test_the_loss_is_that_of_reading_the_update(objective: Objective) -> None:
    made = fresh("adapter", backbone())
    theirs = Method.loss(made, BATCH, objective)
    theirs.backward()
    expected = [parameter.grad.clone() for parameter in made.parameters() if parameter.grad is not None]
    made.zero_grad()
    ours = made.loss(BATCH, objective)
    ours.backward()
    torch.testing.assert_close(ours, theirs)
    found = [parameter.grad for parameter in made.parameters() if parameter.grad is not None]
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_inputs_drop_out_while_it_is_trained_alone() -> None:
    made = fresh("adapter", backbone(), dropout=0.5)
    assert torch.equal(made.loss(BATCH), made.loss(BATCH))
    made.train()
    assert not torch.equal(made.loss(BATCH), made.loss(BATCH))


# ---- episodes ----


def test_a_prompt_is_trained_as_it_is_asked(session: Session, data: str) -> None:
    item = next(iter(Multitask().items([RECORDS[0]], 0)))
    prompts = [each for each in prompts_of([data]) if "rains" in each.text]
    (label,) = prompted(session.encoder, prompts)
    (whole,) = prompted(session.encoder, prompts, supervised="all")
    assert session.encoder.tokenizer.decode(label.target[label.answer :]).startswith(" entailment")
    assert int(label.target[-1]) in session.encoder.stop_tokens
    assert torch.equal(label.target[: label.answer], session.prompt(item.questions[0].text, use_chat_template=False))
    assert torch.equal(whole.target, label.target)
    assert (label.segments, whole.answer) == ((), 1)


def test_a_share_of_the_records_is_drawn_by_the_seed(tmp_path: Path) -> None:
    path = file(tmp_path / "rte.jsonl", *({**NLI, "context": f"It is {n}.", "label": 0} for n in range(20)))
    drawn = [prompts_of([f"{path}:0.25"], seed=seed) for seed in (1, 1, 2)]
    assert [len(each) for each in drawn] == [5, 5, 5]
    assert drawn[0] == drawn[1] != drawn[2]


def test_records_that_cannot_be_asked_are_named(tmp_path: Path, data: str) -> None:
    with pytest.raises(UnknownNameError, match=r"no prompt of multitask for the data set 'ret'"):
        prompts_of([file(tmp_path / "a.jsonl", {**NLI, "dataset": "ret", "label": 0})])
    with pytest.raises(InputError, match="Record 2 has no 'label'"):
        prompts_of([file(tmp_path / "b.jsonl", RECORDS[0], NLI)])
    with pytest.raises(InputError, match="holds no record"):
        prompts_of([file(tmp_path / "c.jsonl")])
    with pytest.raises(UsageError, match=r"share of .* must be above 0 and at most 1; it is 3"):
        prompts_of([f"{data}:3"])


# ---- a run ----


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_run_is_trained_told_measured_and_read_by_peft(
    run: Run, data: str, tiny_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["train", "adapter", "-o", "preset=qv+up", "--prompts", "label", "--data", data, "--model", tiny_folder]
    command += ["--epochs", 4, "--batch", 2, "--learning-rate", 0.1, "--dtype", "float32", "--held-out", data]
    ran = run(*command, "--out", out)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("Trained 8 steps: loss ")
    recipe = json.loads((out / "recipe.json").read_text())
    expected = size(build("adapter", tiny_backbone(), preset="qv+up"))
    assert recipe["parameters"] == expected
    assert f"Learned parts: {expected:,} parameters." in ran.out
    assert (recipe["steps"], recipe["prompts"], recipe["data"]) == (8, "label", ["rte.jsonl"])
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]

    rows = evaluate(Multitask(), data, [str(out)], model=str(tiny_folder), dtype="float32")
    assert [row.metric for row in rows] == ["accuracy", "macro_f1"]

    trained = load(str(tiny_folder), method=str(out), dtype="float32")
    theirs = PeftModel.from_pretrained(tiny_model(), str(out)).eval()
    with torch.no_grad():
        expected_logits = theirs(input_ids=tokens(9)).logits
    made = trained.method
    torch.testing.assert_close(
        logits(trained.backbone, made.read(made.init()), tokens(9)), expected_logits, rtol=0, atol=1e-4
    )
    plain = logits(trained.backbone, build("nothing", trained.backbone).read({"writes": torch.zeros(1)}), tokens(9))
    assert (plain - expected_logits).abs().max() > 1e-2


def test_what_a_run_cannot_be_is_said_before_the_model_is_opened(data: str, tmp_path: Path) -> None:
    nowhere: dict[str, Any] = {"model": "./no-such-model", "method": "adapter", "data": [data]}
    with pytest.raises(UnknownNameError, match=r"no value of prompts 'lable'\. Did you mean 'label'"):
        TrainingConfig.of(**nowhere, prompts="lable").run(tmp_path)
    with pytest.raises(UsageError, match="epochs is for prompts"):
        TrainingConfig.of(**nowhere, epochs=1).run(tmp_path)
    with pytest.raises(InputError, match="Record 1 has no 'label'"):
        TrainingConfig.of(**{**nowhere, "data": [file(tmp_path / "b.jsonl", NLI)]}, prompts="all").run(tmp_path)


def test_a_base_in_four_bits_needs_a_gpu_and_a_package(
    data: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = TrainingConfig.of(
        method="adapter", model=str(tiny_folder), data=[data], prompts="label", dtype="4bit", device="cpu"
    )
    with pytest.raises(UsageError, match=r"dtype '4bit' needs a GPU; the device is 'cpu'\."):
        made.run(tmp_path / "out")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install bitsandbytes"):
        Backbone.open(str(tiny_folder), dtype="4bit", device="cuda")


class Packed(nn.Linear):
    """As of bitsandbytes in 4 bits: a linear layer whose weight is bytes of no shape, unpacked when it is called."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None)
        self.bias, self.whole = plain.bias, plain.weight.shape
        packed = plain.weight.detach().view(torch.uint8).reshape(-1, 1)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.reshape(-1).view(torch.float32).view(self.whole)
        return nn.functional.linear(x, weight, self.bias)


def packed_backbone() -> Backbone:
    model = tiny_model()
    for name, module in list(model.get_decoder().named_modules()):
        if isinstance(module, nn.Linear):
            model.get_decoder().set_submodule(name, Packed(module))
    return Backbone(model)


@pytest.mark.usefixtures("one_order_of_products")
@pytest.mark.parametrize("name", ["adapter", "compressed-kv", "latent-pool"])
def test_a_base_with_packed_weights_trains_as_a_plain_one(name: str) -> None:
    """Layers are called; nobody reads their weights."""
    found = []
    for own in (packed_backbone(), tiny_backbone()):
        made = fresh(name, own)
        loss = made.loss(BATCH)
        loss.backward()
        grads = {key: part.grad for key, part in made.named_parameters() if part.grad is not None}
        found.append((loss.detach(), grads))
        assert grads
        state = written(made, tokens(9))
        found[-1] += (logits(own, made.read(state), tokens(5)),)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_packed_weights_are_not_tuned() -> None:
    with pytest.raises(
        UsageError, match=r"tunes 'layers\.2\.mlp\.\w+', whose weight is packed; open the model in anoth"
    ):
        build("last-ffn", packed_backbone())


def test_a_method_that_learns_from_writes_refuses_episodes_without_segments(
    data: str, tiny_folder: Path, tmp_path: Path
) -> None:
    made = TrainingConfig.of(model=str(tiny_folder), data=[data], prompts="label", steps=1, dtype="float32")
    with pytest.raises(UsageError, match="compressed-kv learns from what is written; these episodes have no segments"):
        made.run(tmp_path / "out")


# ---- the first stage of two ----


def test_with_the_full_text_the_loss_is_that_after_it() -> None:
    own = backbone()
    made, plain = (build("adapter", own, preset="qv", dropout=0.0, full_text=each) for each in (True, False))
    text, places = BATCH.joined()
    row, column = BATCH.weights()[:, 1:].nonzero(as_tuple=True)
    columns = torch.cat([BATCH.segments.flatten(1), BATCH.target], dim=1)
    logits = own.logits(own.hidden(text)[row, places[row, column]])
    losses = torch.nn.functional.cross_entropy(logits, columns[row, column + 1], reduction="none")
    wanted = (losses * BATCH.weights()[row, column + 1]).sum()
    # An update that was not trained changes nothing.
    assert made.loss(BATCH).item() == pytest.approx(wanted.item(), rel=1e-5)
    assert made.loss(BATCH).item() != pytest.approx(plain.loss(BATCH).item(), rel=1e-3)
    assert made.loss(BATCH, Objective(teacher=1.0)).item() == pytest.approx(wanted.item(), rel=1e-5)
    # A change is told from the plain model with the same text.
    stir(made)
    assert made.loss(BATCH, Objective(teacher=1.0)).item() > made.loss(BATCH).item() + 1e-4


def test_an_adapter_becomes_a_model(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = file(tmp_path / "text.jsonl", {"task": "lm", "context": "The cat is called Muck. " * 40})
    TrainingConfig.of(
        method="adapter",
        options={"full_text": True, "rank": 2},
        model=str(tiny_folder),
        dtype="float32",
        data=[source],
        segments=[1],
        segment_tokens=16,
        target_tokens=8,
        batch=2,
        steps=2,
        learning_rate=1e-2,
    ).run(tmp_path / "trained")
    merge.main([str(tmp_path / "trained"), str(tmp_path / "merged"), "--model", str(tiny_folder), "--dtype", "float32"])
    trained = load(str(tiny_folder), method=str(tmp_path / "trained"), dtype="float32")
    merged, before = (
        load(str(folder), method="full", dtype="float32") for folder in (tmp_path / "merged", tiny_folder)
    )
    prompt = tokens(12)
    reading = trained.method.read(trained.method.init())
    found = logits(trained.backbone, reading, prompt)
    assert torch.allclose(merged.backbone.logits(merged.backbone.hidden(prompt)), found, atol=1e-4)
    assert not torch.allclose(before.backbone.logits(before.backbone.hidden(prompt)), found, atol=1e-4)
