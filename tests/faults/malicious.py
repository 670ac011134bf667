"""State files that name a model, and models that want to run code, ask a hub, hang, or be read without being named."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.faults import hub
from tests.faults.attack import Attack, Try
from tests.faults.command import run
from tests.faults.forgery import Originals

Spoil = Callable[[Path, Path, Random], None]
"""Change a good model's folder into an evil one, whose code would make the file ``marker``."""


# ---- code ----

_CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class EvilConfig(LlamaConfig):
    model_type = "evil"
class EvilModel(LlamaForCausalLM):
    config_class = EvilConfig
class EvilTokenizer(PreTrainedTokenizerFast):
    pass
"""


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def _edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _custom_model(folder: Path, marker: Path, random: Random) -> None:
    name = f"modeling_{random.getrandbits(30)}"
    (folder / f"{name}.py").write_text(_CODE.format(marker=str(marker)))
    classes = {"AutoConfig": f"{name}.EvilConfig", "AutoModelForCausalLM": f"{name}.EvilModel"}
    kind = random.choice(["evil", "llama"])
    _edit(folder / "config.json", model_type=kind, architectures=["EvilModel"], auto_map=classes)


def _custom_tokenizer(folder: Path, marker: Path, random: Random) -> None:
    name = f"tokenization_{random.getrandbits(30)}"
    (folder / f"{name}.py").write_text(_CODE.format(marker=str(marker)))
    classes = {"AutoTokenizer": [None, f"{name}.EvilTokenizer"]}
    _edit(folder / "tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map=classes)


def _custom_code_of_a_hub(folder: Path, marker: Path, random: Random) -> None:
    classes = {"AutoConfig": "attacker/code--m.C", "AutoModelForCausalLM": "attacker/code--m.M"}
    _edit(folder / "config.json", model_type="evil", auto_map=classes)


def _pickle(folder: Path, marker: Path, random: Random) -> None:
    (folder / "model.safetensors").unlink()
    raw = pickle.dumps({"model.embed_tokens.weight": _Evil(marker)}, protocol=random.choice([0, 2, 4]))
    (folder / "pytorch_model.bin").write_bytes(raw)


# ---- templates ----

_TEMPLATES = (
    "{% for i in range(10**9) %}{% for j in range(10**9) %}{% endfor %}{% endfor %}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{ 'x' * 10**10 }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ 9 ** 9 ** 9 ** 9 }}",
    "{{ raise_exception('no') }}",
    "{{ messages[99].content }}",
    "{% for",
    "{{ 1 / 0 }}",
    "",
    "no text at all",
    "{{ messages }}",
    "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    "{% for m in messages %}{{ m.content[:3] }}{% endfor %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% include '/etc/passwd' %}",
    "{% for m in messages %}{{ m.content }}{% endfor %}" + "{# x #}" * 500_000,
    "{% set ns = namespace(n=0) %}{% for m in messages %}{{ m.content }}{{ ns.__init__ }}{% endfor %}",
    "{{ strftime_now('%Y' * 100000000) }}",
    "\x1b]52;c;ZWNobw==\x07{% for m in messages %}{{ m.content }}\x1b[2J{% endfor %}",
)


def _template(folder: Path, marker: Path, random: Random) -> None:
    template = random.choice(_TEMPLATES)
    if random.random() < 0.5:
        (folder / "chat_template.jinja").write_text(template)
    else:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        _edit(folder / "tokenizer_config.json", chat_template=template)


# ---- files ----


def _fifo(folder: Path, marker: Path, random: Random) -> None:
    path = folder / random.choice(["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
    path.unlink()
    os.mkfifo(path)


def _device(folder: Path, marker: Path, random: Random) -> None:
    path = folder / random.choice(["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
    path.unlink()
    path.symlink_to(random.choice(["/dev/zero", "/dev/urandom", "/dev/tty"]))


def _sharded(folder: Path, marker: Path, random: Random) -> None:
    """An index whose shard lies somewhere else."""
    tensors = load_file(folder / "model.safetensors")
    outside = folder.parent / f"{folder.name}-outside.safetensors"
    save_file(tensors, outside, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "pipe.safetensors")
    shard = random.choice(
        [f"../{outside.name}", str(outside), "/dev/zero", "/dev/stdin", "pipe.safetensors", "sub/a.safetensors", ".", 5]
    )
    index: Any = random.choice(
        [{"weight_map": dict.fromkeys(tensors, shard)}, {"weight_map": [shard]}, [], {"weight_map": 5}]
    )
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _linked(folder: Path, marker: Path, random: Random) -> None:
    """A file that is a link to one elsewhere."""
    path = folder / random.choice(["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
    outside = path.rename(folder.parent / f"{folder.name}-outside{path.suffix}")
    path.symlink_to(random.choice([outside, Path("..") / outside.name]))


def _adapter(folder: Path, marker: Path, random: Random) -> None:
    """An adapter whose base is on a hub, or a folder like this one, or that is not to be read as it asks."""
    base = shutil.copytree(folder, folder.parent / f"{folder.name}-base")
    good: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    evil = random.choice(["hub", "hub", "base", "base", "pattern", "module"])
    if evil == "base":
        random.choice([_fifo, _device, _linked, _sharded])(base, marker, random)
    elif evil == "pattern":
        good[random.choice(["target_modules", "exclude_modules", "layers_pattern"])] = "(.*.*.*[a-z])*[a-z]*x"
    elif evil == "module":
        good |= {"megatron_config": {"a": 1}, "megatron_core": "antigravity"}
    good["base_model_name_or_path"] = random.choice(["attacker/x", "gpt2"]) if evil == "hub" else str(base)
    (folder / "config.json").unlink()
    weights = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{side}.weight": torch.zeros(shape)
        for layer in range(3)
        for side, shape in {"A": (2, 32), "B": (32, 2)}.items()
    }
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(good))


def _nonsense(folder: Path, marker: Path, random: Random) -> None:
    path = folder / random.choice(["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
    path.write_bytes(random.choice([b"", b"[]", b"{}", b"null", b"[" * 100_000, b"9" * 5000, random.randbytes(100)]))


# ---- settings ----

_SIZES = (10**6, 10**11, 10**30, -1, 0, 7, 1.5, "x", None, True, [], {}, 1e400, "8" * 10_000)
_KEYS = (
    *("num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta", "hidden_act", "model_type"),
    *("rope_parameters", "torch_dtype", "dtype", "architectures", "quantization_config", "tie_word_embeddings"),
)


def _settings(folder: Path, marker: Path, random: Random) -> None:
    _edit(
        folder / "config.json", **{random.choice(_KEYS): random.choice(_SIZES) for _ in range(random.choice([1, 1, 2]))}
    )


def _quantised(folder: Path, marker: Path, random: Random) -> None:
    kind = random.choice(["gptq", "awq", "bitsandbytes", "evil", "torchao", "quark", "fp8"])
    _edit(folder / "config.json", quantization_config={"quant_method": kind, "bits": 4})


def _good(folder: Path, marker: Path, random: Random) -> None:
    """A model like any other, which nobody named but the file."""


SPOILS: tuple[Spoil, ...] = (
    *(_custom_model, _custom_tokenizer, _custom_code_of_a_hub, _pickle, _template, _template, _fifo, _device),
    *(_sharded, _linked, _adapter, _adapter, _nonsense, _settings, _settings, _quantised),
)
_NEVER: tuple[Spoil, ...] = (_fifo, _device, _sharded, _linked, _adapter)
"""Those after which a folder must not open."""

# ---- tries ----

_watched: list[str] = []
_opened: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watched and isinstance(arguments[0], str) and arguments[0].startswith(tuple(_watched)):
        _opened.append(arguments[0])


def _copy(model: Path, target: Path, spoil: Spoil, random: Random) -> Path:
    shutil.copytree(model, target)
    spoil(target, target.parent / f"{target.name}-ran", random)
    return target


def _harm(target: Path, asked: list[str], stdout: str) -> list[str]:
    """What came of a command besides what it said."""
    problems = ["the code of the file ran"] if (target.parent / f"{target.name}-ran").exists() else []
    problems += [f"the hub was asked: {request}" for request in hub.requests() if request not in asked][:1]
    return problems + (["a question was asked on stdin"] if "[y/N]" in stdout else [])


def _ask(home: Path, *more: str, command: str = "ask") -> tuple[str, ...]:
    return (command, "evil", *(("Who?",) if command == "ask" else ()), "--home", str(home), "--max-tokens", "2", *more)


def named_by_a_file(folder: Path) -> Try:
    """A model or a learned folder that only a state file names is not opened; the command asks for it in a line."""
    originals, home = Originals.make(folder, "full"), folder / "home"
    home.mkdir()
    sys.addaudithook(_watch)

    def attempt(number: int, random: Random) -> list[str]:
        spoil = random.choice((*SPOILS, _good))
        target = _copy(originals.model, folder / f"evil{number}", spoil, random)
        field, value = random.choice(_named(target))
        header = {**json.loads(originals.files["full"].header), field: value}
        unknown = random.random() < 0.7
        if unknown:
            # Nothing that was opened before has this name; what has the other may be opened, but not from there.
            header["backbone"] = "".join(random.choices("0123456789abcdef", k=32))
        originals.files["full"].with_header(json.dumps(header)).write(home / "evil.safetensors")
        asked = hub.requests()
        _watched[:], _opened[:] = [str(target)], []
        ended = run(_ask(home, command=random.choice(["ask", "ask", "chat"])), b"y\nyes\ny\n" * 5)
        _watched.clear()
        problems = ended.problems() + _harm(target, asked, ended.out)
        problems += [f"'{Path(path).name}' was opened" for path in _opened[:1]]
        problems += ["it was opened and answered"] if unknown and ended.code == 0 else []
        return [f"{field} {value!r:.40} {spoil.__name__[1:]} -> {problem}" for problem in problems]

    return attempt


def _named(target: Path) -> list[tuple[str, str]]:
    """What a header may name: the evil folder in several spellings, or something on a hub."""
    ways = [str(target), str(target / "config.json"), f"{target.parent}/./x/../{target.name}", f"file://{target}"]
    hubs = [
        "attacker/x",
        "attacker",
        "gpt2",
        "attacker/x@main",
        os.environ.get("HF_ENDPOINT", "http://x") + "/attacker/x",
    ]
    devices = ["/dev/zero", "/dev/stdin", "", ".", "~", "/proc/self/environ"]
    models = [("model", name) for name in (*ways, *ways, *hubs, *devices)]
    return [*models, ("learned", str(target)), ("learned", "attacker/x"), ("learned", "/dev")]


def named_by_the_user(folder: Path) -> Try:
    """A folder that the user names runs no code, asks no hub and does not hang; its fault is said in a line."""
    originals, home = Originals.make(folder, "full"), folder / "home"
    home.mkdir()
    originals.files["full"].write(home / "evil.safetensors")

    def attempt(number: int, random: Random) -> list[str]:
        spoil = random.choice(SPOILS)
        target = _copy(originals.model, folder / f"evil{number}", spoil, random)
        asked = hub.requests()
        name = random.choice(["evil", "new"])
        command = ("chat", name, "--method", "full") if name == "new" else ("ask", name, "Who?")
        ended = run((*command, "--home", str(home), "--max-tokens", "2", "--model", str(target)), b"y\nyes\n")
        (home / "new.safetensors").unlink(missing_ok=True)
        problems = ended.problems() + _harm(target, asked, ended.out)
        problems += ["it was opened"] if spoil in _NEVER and ended.code == 0 else []
        what = f"{spoil.__name__[1:]} {_difference(originals.model, target)}"
        return [f"{what} -> {problem}" for problem in problems]

    return attempt


def _difference(good: Path, evil: Path) -> str:
    """What is other in the settings, to be read in a report."""
    if not (evil / "config.json").is_file() or (evil / "config.json").is_symlink():
        return ""
    try:
        ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (good, evil))
        return str({key: value for key, value in theirs.items() if ours.get(key) != value})[:120]
    except (ValueError, AttributeError, RecursionError):
        return ""


def _card(random: Random) -> str:
    cards: Mapping[str, Any] = {"method": "compressed-kv", "options": {"tokens": 2}, "backbone": "0" * 32}
    values = (
        None,
        5,
        [],
        {},
        "x",
        True,
        [["a", 1]],
        {"backbone": 1},
        {"self": 1},
        {"model": "x"},
        {"rank": 10**12},
        "full",
    )
    text = json.dumps({**cards, random.choice(["method", "options", "backbone"]): random.choice(values)})
    return random.choice([text, text, text, "", "[]", "5", "[" * 100_000, "9" * 5000, text[:-5]])


def learned_folders(folder: Path) -> Try:
    """A folder of learned parts that the user names and that is none is refused in a line."""
    originals = Originals.make(folder, "full")

    def attempt(number: int, random: Random) -> list[str]:
        learned = folder / f"learned{number}"
        learned.mkdir()
        card = learned / random.choice(["method.json", "memory.json"])
        kind = random.choice(["card", "card", "card", "card", "fifo", "device", "folder"])
        if kind == "card":
            card.write_text(_card(random))
        elif kind == "fifo":
            os.mkfifo(card)
        elif kind == "device":
            card.symlink_to("/dev/zero")
        else:
            card.mkdir()
        arguments = (
            "write",
            "new",
            "--home",
            str(folder / "home"),
            "--model",
            str(originals.model),
            "--method",
            str(learned),
        )
        ended = run(arguments, b"text")
        problems = ended.problems() + (["it was opened"] if ended.code == 0 else [])
        shown = card.read_text()[:100] if kind == "card" else kind
        return [f"{card.name} {shown} -> {problem}" for problem in problems]

    return attempt


ATTACKS = (
    Attack(
        "models.by_file",
        "models that only a state file names: opened, run, asked for",
        named_by_a_file,
        200,
        seconds=20,
    ),
    Attack(
        "models.by_user",
        "models with code, endless templates, pipes, links, adapters, absurd settings: run, hang, opened, traceback",
        named_by_the_user,
        300,
        seconds=60,
    ),
    Attack(
        "models.learned", "folders of learned parts that are none: traceback, hang", learned_folders, 100, seconds=20
    ),
)
