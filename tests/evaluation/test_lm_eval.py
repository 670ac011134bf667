"""lm-eval's tasks, after a memory: nothing changes no number, and a full one is as good as the text in front."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from byheart.errors import InputError, UsageError
from byheart.evaluation import lm_eval as harness
from byheart.model.backbone import Backbone
from byheart.protocol.state import nbytes
from byheart.session.opening import load
from byheart.session.session import Session
from byheart.testing import tiny_backbone, tiny_model
from tests.conftest import CAT, Run, tiny_tokenizer

TASKS = ("pick", "name", "roll")
_METRICS = {"pick": ("acc", "acc_norm"), "name": ("exact_match",), "roll": ("word_perplexity", "bits_per_byte")}
_KINDS = {
    "pick": "output_type: multiple_choice\ndoc_to_choice: '{{places}}'\ndoc_to_target: '{{right}}'\n",
    "name": "output_type: generate_until\ndoc_to_target: '{{name}}'\n"
    "generation_kwargs: {until: ['q', '.'], max_gen_toks: 6}\n",
    "roll": "output_type: loglikelihood_rolling\ndoc_to_target: '{{text}}'\n",
}
_AGGREGATED = {"word_perplexity": "weighted_perplexity", "bits_per_byte": "bits_per_byte"}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing is asked of a network, nothing is kept, and no metric is drawn on all cores."""
    import datasets
    import lm_eval.evaluator

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "DISABLE_MULTIPROC", "TQDM_DISABLE"):
        monkeypatch.setenv(name, "1")
    # What lm-eval notes about the machine, it asks other programs; that takes longer than the tasks.
    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda found: None)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    with torch.random.fork_rng():
        yield
    if not bars:
        datasets.enable_progress_bars()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three tasks of one's own, over one JSON file."""
    docs = [
        {"text": f"{name} is in the {right}.", "name": name, "places": ["den", "barn", "loft"], "right": right}
        for name, right in [("Muck", "den"), ("Tom", "loft"), ("Old Billy", "barn"), ("Flo", "den"), ("Eve", "barn")]
    ]
    made = tmp_path / "tasks"
    made.mkdir()
    (made / "docs.jsonl").write_text("".join(f"{json.dumps(doc)}\n" for doc in docs))
    for task in TASKS:
        _write_task(made, task)
    return made


def _write_task(folder: Path, task: str, *, name: str = "", description: str = "") -> None:
    lines = [
        f"task: {name or task}",
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'docs.jsonl'}}}}}",
        "test_split: test\nfewshot_split: test",
        "doc_to_text: " + ("''" if task == "roll" else "'Where is {{name}}? It is in the'"),
        _KINDS[task],
        "metric_list:",
        *(f"  - metric: {m}\n    aggregation: {_AGGREGATED.get(m, 'mean')}" for m in _METRICS[task]),
        f"description: {json.dumps(description)}" if description else "",
    ]
    (folder / f"{name or task}.yaml").write_text("\n".join(lines))


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=each, idx=n, metadata=("t", n, 1))
        for n, each in enumerate(arguments)
    ]


def plain(backbone: Backbone, *, batch: int = 3) -> Any:
    return HFLM(backbone.model, tokenizer=tiny_tokenizer(), batch_size=batch)


def session(method: str = "full", family: str = "llama", **options: Any) -> Session:
    return load(tiny_backbone(family), method=method, encoder=tiny_tokenizer(), trained=False, **options)


ASKED = [("Where? ", "here"), ("Where is it, then?", " in the engine room"), ("A", "B"), ("Long one: ", "x")]
UNTIL: dict[str, Any] = {"until": ["q"], "max_gen_toks": 5}
PROMPTS = ["Name it:", "Name the cat of mine:", "N"]


def answered(lm: Any, *, before: str = "", **how: Any) -> tuple[list[float], list[str]]:
    """Likelihoods of continuations, and answers, with the same text before every context."""
    told = [(before + prompt, {**UNTIL, **how}) for prompt in PROMPTS]
    return likelihoods(lm, before=before), lm.generate_until(requests("generate_until", *told))


def likelihoods(lm: Any, *, before: str = "") -> list[float]:
    pairs = [(before + context, continuation) for context, continuation in ASKED]
    return [each[0] for each in lm.loglikelihood(requests("loglikelihood", *pairs))]


# ---- nothing ----


@pytest.mark.parametrize("written", [(), (CAT,)])
def test_nothing_changes_no_number(written: tuple[str, ...]) -> None:
    own = session("nothing")
    lm, bare = harness.language_model(own, harness.keep(own, written), batch=3), plain(own.backbone)
    assert answered(lm) == answered(bare)
    rolled = requests("loglikelihood_rolling", (CAT,), ("another text " * 50,), ("x",))
    assert lm.loglikelihood_rolling(rolled) == bare.loglikelihood_rolling(rolled)
    assert lm.max_length == bare.max_length


def test_tasks_with_nothing_have_lm_evals_own_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    # Of the five documents there would be no intervals to compare.
    monkeypatch.setattr(harness, "FEWEST_CLUSTERS", 5)
    own = session("nothing")
    rows = harness.measure(own, TASKS, include=folder, batch=3)
    known = TaskManager(include_path=folder, include_defaults=False)
    found = simple_evaluate(plain(own.backbone), tasks=list(TASKS), task_manager=known, bootstrap_iters=1000)
    for row in rows:
        metrics = found["results"][row.dataset]
        assert row.value == metrics[f"{row.metric},none"]
        error = metrics[f"{row.metric}_stderr,none"]
        assert row.high - row.low == pytest.approx(0 if error == "N/A" else 2 * 1.96 * error)
    assert [(row.dataset, row.metric) for row in rows] == [(task, m) for task in TASKS for m in _METRICS[task]]
    assert {(row.task, row.method, row.n, row.seconds) for row in rows} == {("lm-eval", "nothing", 5, 0.0)}


@pytest.mark.parametrize(("documents", "has_interval"), [(9, False), (10, True)])
def test_few_documents_have_no_interval(documents: int, has_interval: bool) -> None:
    metrics = {"acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": documents}
    costs = {"method": "nothing", "bytes": 8, "seconds": 0.0}
    (row,) = harness.to_rows("arc", metrics, {"acc": True}, costs)
    assert (row.value, row.n, row.clusters, row.has_interval) == (0.5, documents, documents, has_interval)


# ---- a full memory ----


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "granite"])
def test_a_full_memory_is_the_text_before_each_context(family: str) -> None:
    own = session("full", family)
    kept = harness.keep(own, [CAT, "It sleeps in the engine room.\n"])
    lm, bare = harness.language_model(own, kept, batch=3), plain(own.backbone)
    before = f"{CAT}It sleeps in the engine room.\n"
    found, answers = answered(lm)
    expected, told = answered(bare, before=before)
    assert found == pytest.approx(expected, rel=1e-5)
    assert answers == told
    assert found != pytest.approx(likelihoods(bare), rel=1e-3)
    assert lm.max_length == bare.max_length - len(before)


def test_beams_read_the_memory_too() -> None:
    own = session("full")
    lm = harness.language_model(own, harness.keep(own, [CAT]), batch=3)
    assert answered(lm, num_beams=2)[1] == answered(plain(own.backbone), before=CAT, num_beams=2)[1]


def test_a_rolled_text_begins_after_the_memory() -> None:
    """As in lm-eval without a memory, its first token follows the one that texts begin with."""
    own = session("full")
    lm, bare = harness.language_model(own, harness.keep(own, [CAT])), plain(own.backbone)
    texts = ["a text to be read", "another"]
    pairs = [(("", text), [*bare.tok_encode(CAT), bare.prefix_token_id], bare.tok_encode(text)) for text in texts]
    expected = [each[0] for each in bare._loglikelihood_tokens(pairs)]
    rolled = lm.loglikelihood_rolling(requests("loglikelihood_rolling", *((text,) for text in texts)))
    assert rolled == pytest.approx(expected, rel=1e-5)


def test_the_first_token_of_all_is_that_of_the_written_text() -> None:
    """Where a tokenizer puts a token in front of a text, it stands in front of the memory and of nothing else."""
    from tokenizers.processors import TemplateProcessing

    words = tiny_tokenizer()
    words.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    assert words("ab").input_ids[0] == 1
    own = load(tiny_backbone(), method="full", encoder=words)
    lm = harness.language_model(own, harness.keep(own, [CAT]), batch=3)
    bare = HFLM(own.backbone.model, tokenizer=copy.deepcopy(words), batch_size=3)
    found, answers = answered(lm)
    expected, told = answered(bare, before=CAT)
    assert found == pytest.approx(expected, rel=1e-5)
    assert answers == told
    floor = load(own.backbone, method="nothing", encoder=words)
    assert answered(harness.language_model(floor, harness.keep(floor, [CAT]), batch=3)) == answered(bare)


def test_tasks_with_a_full_memory_have_the_numbers_of_a_description(folder: Path) -> None:
    for task in ("pick", "name"):
        _write_task(folder, task, name=f"{task}_told", description=CAT)
    own = session("full")
    read = harness.measure(own, ["pick", "name"], texts=[CAT], include=folder, fewshot=1)
    told = harness.measure(session("nothing"), ["pick_told", "name_told"], include=folder, fewshot=1)
    assert [(row.metric, row.value, row.low, row.n) for row in read] == [
        (row.metric, pytest.approx(row.value), pytest.approx(row.low), row.n) for row in told
    ]
    bare = own.method.write({}, own.document(CAT, use_chat_template=False))
    assert {row.bytes for row in read} == {nbytes(bare)}
    assert not own.header.written
    assert own.reading.slots == 0


# ---- any memory ----


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("window", {"sinks": 1, "recent": 7}),
        ("latent-pool", {"slots": 4, "blocks": 2}),
        ("compressed-kv", {}),
        ("ffn-lora", {"steps": 2}),
        ("last-ffn", {"steps": 2}),
    ],
)
def test_likelihoods_are_those_of_the_backbone_after_the_reading(method: str, options: dict[str, Any]) -> None:
    own = session(method, **options)
    kept = harness.keep(own, [CAT])
    lm = harness.language_model(own, kept, batch=3)
    found = likelihoods(lm)
    for (context, continuation), likelihood in zip(ASKED, found, strict=True):
        tokens = torch.tensor([tiny_tokenizer()(context + continuation).input_ids])
        with torch.no_grad(), own.backbone.reading([kept.reading]) as cache:
            logits = own.backbone.logits(own.backbone.hidden(tokens, cache=cache))[0].log_softmax(-1)
        # lm-eval gives the spaces at a context's end to the continuation.
        each = [logits[n - 1, tokens[0, n]] for n in range(len(context.rstrip()), tokens.shape[1])]
        assert likelihood == pytest.approx(float(sum(each)), rel=1e-4)
    assert likelihoods(plain(own.backbone)) != pytest.approx(found, rel=1e-4)
    answers = [answered(harness.language_model(own, kept, batch=batch))[1] for batch in (1, 3)]
    assert answers[0] == answers[1]


def test_a_saved_memory_is_read_as_it_was_written() -> None:
    own = session("full")
    before = f"{own.encoder.template.opening}{CAT}{own.encoder.template.receipt}"
    own.write(CAT)
    kept = harness.keep(own)
    assert harness.language_model(own, kept).add_bos_token is False
    assert kept.reading.slots == own.reading.slots
    expected = likelihoods(plain(own.backbone), before=before)
    assert likelihoods(harness.language_model(own)) == pytest.approx(expected, rel=1e-5)


# ---- what cannot be done ----


def test_a_memory_without_room_for_a_request() -> None:
    model = tiny_model(max_position_embeddings=64)
    own = load(Backbone(model), method="full", encoder=tiny_tokenizer())
    kept = harness.keep(own, ["fifteen letters"])
    model.config.max_position_embeddings = 16
    with pytest.raises(InputError, match=r"15 slots leave no room for a request: the model reads at most 16"):
        harness.language_model(own, kept)


def test_an_answer_without_room(folder: Path) -> None:
    own = load(Backbone(tiny_model(max_position_embeddings=32)), method="full", encoder=tiny_tokenizer())
    with pytest.raises(InputError, match=r"lm-eval could not run name: .*maximum sequence length \(5\)"):
        harness.measure(own, ["name"], texts=["x" * 27], include=folder)


def test_an_empty_text() -> None:
    with pytest.raises(InputError, match="nothing to write"):
        harness.keep(session(), [""])


def test_unknown_folders_and_no_tasks(folder: Path) -> None:
    with pytest.raises(UsageError, match="no folder of tasks 'nonesuch'"):
        harness.measure(session(), ["pick"], include="nonesuch")
    with pytest.raises(UsageError, match="no tasks to run"):
        harness.measure(session(), [], include=folder)


def test_unknown_tasks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import tasks

    whole = tasks.TaskManager
    # Looking through all of lm-eval's own tasks takes a quarter of a minute.
    monkeypatch.setattr(tasks, "TaskManager", lambda *_, **how: whole(**{**how, "include_defaults": False}))
    with pytest.raises(UsageError, match=r"no task 'rolls'\. Did you mean 'roll'\? `lm-eval ls tasks`"):
        harness.measure(session(), ["rolls"], include=folder)


def test_without_lm_eval_the_rest_works(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    harness.reader_class.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(UsageError, match=r"not installed: pip install 'byheart\[lm-eval\]'"):
        harness.measure(session(), ["pick"], include=folder)
    with pytest.raises(UsageError, match=r"not installed: pip install 'byheart\[lm-eval\]'"):
        harness.language_model(session())


def test_one_file_knows_lm_eval_and_asks_for_it_late() -> None:
    package = Path(harness.__file__).parent
    told = {file: re.findall(r"^( *)(?:from|import) lm_eval", file.read_text(), re.M) for file in package.rglob("*.py")}
    assert {file.name: min(indents) > "" for file, indents in told.items() if indents} == {"lm_eval.py": True}


# ---- the command ----


def test_the_command_prints_rows(run: Run, folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cat.txt").write_text(CAT)
    given = ("--model", tiny_folder, "--include-path", folder, "--dtype", "float32", "--limit", 3)
    told = run("lm-eval", "--tasks", "pick,roll", *given, "--write", tmp_path / "cat.txt", "--json")
    assert told.code == 0
    first = told.json[0]
    shown = ["task", "dataset", "method", "metric", "value", "low", "high", "n", "bytes", "seconds"]
    assert list(first)[:10] == shown
    assert (first["task"], first["dataset"], first["method"], first["metric"]) == ("lm-eval", "pick", "full", "acc")
    assert first["n"] == 3
    assert first["bytes"] > 0


def test_the_command_shows_a_table(run: Run, folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    ran = run("lm-eval", "--tasks", "roll", "--model", tiny_folder, "--include-path", folder, "--out", out)
    assert ran.code == 0
    assert "word_perplexity" in ran.out
    assert "nothing" in ran.out
    kept = json.loads(out.read_text())
    assert kept["about"]["tasks"] == "roll"
    assert kept["about"]["lm_eval"] >= "0.4.13"
    assert [row["metric"] for row in kept["rows"]] == list(_METRICS["roll"])


def test_the_command_reads_a_saved_memory(run: Run, folder: Path, cat: Path) -> None:
    given = ("lm-eval", "--tasks", "pick", "--include-path", folder, "--json")
    by_name, by_path = run(*given, "--state", "cat"), run(*given, "--state", cat)
    assert (by_name.code, by_path.code) == (0, 0)
    assert {row["method"] for row in by_name.json} == {"cat"}
    assert [row["value"] for row in by_name.json] == [row["value"] for row in by_path.json]
    refused = run(*given, "--state", "cat", "--method", "window")
    assert refused.code == 2
    assert "--state 'cat' has a memory of its own" in refused.err


def test_the_command_takes_options_of_a_memory(run: Run, folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cat.txt").write_text(CAT)
    given = ("lm-eval", "--tasks", "pick", "--model", tiny_folder, "--include-path", folder, "--json")
    written = run(*given, "--method", "window:sinks=1;recent=3", "--write", tmp_path / "cat.txt")
    assert written.json[0]["method"] == "window:sinks=1;recent=3"


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "holds no text"), (b"\xff\xfe\xff", "is not UTF-8 text"), (None, "read")]
)
def test_the_command_refuses_what_is_no_text(run: Run, tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "text"
    if content is not None:
        file.write_bytes(content)
    ran = run("lm-eval", "--tasks", "pick", "--write", file)
    assert ran.code == 1
    assert message in ran.err
