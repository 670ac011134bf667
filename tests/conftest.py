"""Settings of every test, a tiny model on disk, and the command line run in this process."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from byheart import load
from byheart.cli import main
from byheart.cli.threads import count_cpus
from byheart.errors import UnsupportedModelError
from byheart.files import cache_folder
from byheart.model.backbone import Backbone
from byheart.protocol.codec import shelf
from byheart.session import calibration
from byheart.testing import tiny_model
from tests.samples import codec_of, moments_of
from tests.store.postgres import Postgres, started

# More threads than cores make tiny models many times slower.
torch.set_num_threads(1)

settings.register_profile("byheart", deadline=None, derandomize=True, max_examples=25, database=None)
settings.load_profile("byheart")

_SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_TURNS = ["<|user|>", "<|assistant|>", "<|end|>"]
_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """A process for each processor that may be used, as ``-n auto`` means; xdist's own variable decides before that."""
    return None if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else count_cpus()


@cache
def _refused(family: str) -> str:
    """Why the installed transformers lets no model of a family read memories; empty where it does."""
    try:
        tiny_model(family)
    except UnsupportedModelError as error:
        return str(error)
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a GPT-J where transformers lets it take no attention; ``test_loading`` tests the error."""
    for item in items:
        case = getattr(item, "callspec", None)
        values = [value for value in case.params.values() if isinstance(value, str)] if case is not None else []
        if "gptj" in values and (problem := _refused("gptj")):
            item.add_marker(pytest.mark.skip(reason=problem))


CAT = "The cat is called Muck.\n"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character: all that ASCII prints, with a chat template; it fits the tiny models' vocabulary."""
    names = [*_SPECIAL.values(), *_TURNS, "\n", *(chr(code) for code in range(32, 127))]
    words = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    words.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=words, additional_special_tokens=_TURNS, **_SPECIAL)
    made.chat_template = _TEMPLATE
    return made


def save_tiny(folder: Path, *, seed: int = 0) -> Path:
    """A tiny model with its tokenizer, as ``--model`` takes it."""
    tiny_model("llama", seed=seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the tests' own, but for the unpacked default model: that is the user's, and made once."""
    models = cache_folder() / "models"
    models.mkdir(parents=True, exist_ok=True)
    own = tmp_path_factory.mktemp("cache")
    (own / "models").symlink_to(models.resolve())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BYHEART_CACHE", str(own))
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with the codec that compact memories need, made from few texts: byheart's own take seconds."""
    folder = save_tiny(tmp_path_factory.mktemp("tiny"))
    shelf.keep(codec_of(Backbone.open(str(folder), dtype="float32")))
    moments_of(Backbone.open(str(folder), dtype="float32"))
    return folder


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same shape."""
    return save_tiny(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server with no database; every test makes one of its own."""
    yield from started()


@pytest.fixture
def one_order_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows are multiplied as many are, so that layers of another class give the same bits."""
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)


@pytest.fixture
def no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model may be calibrated here."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a model is calibrated")

    monkeypatch.setattr(calibration, "make_codec", refuse)


@dataclass(frozen=True)
class Ran:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture(scope="session")
def saved_cat(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The state file of a memory into which one sentence was written."""
    session = load(str(tiny_folder), method="full")
    session.write(CAT, source="standard input")
    path = tmp_path_factory.mktemp("cat") / "cat.safetensors"
    session.save(path)
    return path.read_bytes()


class _Typed(io.TextIOWrapper):
    """Standard input that may say it is a terminal."""

    def __init__(self, typed: bytes, *, terminal: bool) -> None:
        super().__init__(io.BytesIO(typed), encoding="utf-8")
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the memories that a test's commands use."""
    monkeypatch.setenv("BYHEART_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def cat(home: Path, saved_cat: bytes) -> Path:
    """The file of a memory called ``cat``."""
    home.mkdir()
    (home / "cat.safetensors").write_bytes(saved_cat)
    return home / "cat.safetensors"


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run ``byheart`` with these arguments and this standard input."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()

    def ran(*arguments: object, stdin: bytes = b"", terminal: bool = False) -> Ran:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", _Typed(stdin, terminal=terminal))
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Ran(int(end.value.code or 0), said.out, said.err)

    yield ran
    transformers_logging.set_verbosity(verbosity)
    if bars:
        transformers_logging.enable_progress_bar()
