"""State files that somebody has changed: their bytes, their tensors, or their header, with a hash that fits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from byheart import open_state
from byheart.errors import ByheartError, StateError
from byheart.session.session import Session
from tests.conftest import CAT
from tests.faults.attack import Attack, Try, refused
from tests.faults.forgery import Originals, StateFile

Tensors = Mapping[str, Tensor]


_ACCEPTED = "it was accepted"


def _opener(originals: Originals, path: Path) -> Callable[[], Session]:
    return lambda: open_state(path, model=originals.backbone, encoder=originals.encoder)


def _prepared(folder: Path) -> tuple[Originals, Path]:
    """Good files, which open: a forged one is refused for what is wrong with it, not for being forged."""
    originals, path = Originals.make(folder), folder / "m.safetensors"
    for file in originals.files.values():
        file.write(path)
        _opener(originals, path)()
    return originals, path


# ---- bytes ----


def _flip(raw: bytearray, random: Random) -> None:
    raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)


def _cut(raw: bytearray, random: Random) -> None:
    del raw[random.randrange(len(raw)) :]


def _cut_out(raw: bytearray, random: Random) -> None:
    start = random.randrange(len(raw))
    del raw[start : start + random.choice([1, 8, 512])]


def _append(raw: bytearray, random: Random) -> None:
    raw += random.randbytes(random.choice([1, 8, 4096]))


def _overwrite(raw: bytearray, random: Random) -> None:
    start, length = random.randrange(len(raw)), random.choice([1, 4, 64, 1000])
    raw[start : start + length] = random.choice([bytes(length), b"\xff" * length, random.randbytes(length)])


def _repeat(raw: bytearray, random: Random) -> None:
    start = random.randrange(len(raw))
    raw[start:start] = raw[start : start + random.choice([1, 16, 300])]


def _header_length(raw: bytearray, random: Random) -> None:
    length = random.choice(
        [0, 1, 7, len(raw), len(raw) - 8, 100_000_001, 2**31, 2**63, 2**64 - 1, random.getrandbits(20)]
    )
    raw[:8] = length.to_bytes(8, "little")


def _header_byte(raw: bytearray, random: Random) -> None:
    length = max(1, min(int.from_bytes(raw[:8], "little"), len(raw) - 8))
    raw[8 + random.randrange(length)] = random.choice(b'0123456789-."{}[],:\\e\x00\xff')


_BYTES = (_flip, _cut, _cut_out, _append, _overwrite, _repeat, _header_length, _header_byte)


def spoil_bytes(raw: bytearray, random: Random) -> None:
    """Change a file's bytes in one way, or in several."""
    for _ in range(random.choice([1, 1, 1, 3])):
        if len(raw) > 8:
            random.choice(_BYTES)(raw, random)


def change_bytes(folder: Path) -> Try:
    """A changed file is refused, unless it says the same in other spelling."""
    originals, path = _prepared(folder)
    names = sorted(originals.files)

    def attempt(number: int, random: Random) -> list[str]:
        original = originals.files[random.choice(names)]
        raw = bytearray(original.write(path).read_bytes())
        spoil_bytes(raw, random)
        path.write_bytes(raw)
        problems = refused(_opener(originals, path), StateError)
        return [] if problems == ["it was accepted"] and says_the_same(path, original) else problems

    return attempt


def says_the_same(path: Path, original: StateFile) -> bool:
    found = StateFile.read(path)
    return found.header == original.header and all(
        torch.equal(found.tensors[name], tensor) for name, tensor in original.tensors.items()
    )


# ---- tensors ----


def _drop(tensors: Tensors, random: Random) -> Tensors:
    lost = random.choice(sorted(tensors))
    return {name: tensor for name, tensor in tensors.items() if name != lost}


def _drop_all(tensors: Tensors, random: Random) -> Tensors:
    return {"nothing": torch.zeros(1)} if random.random() < 0.5 else {}


def _add(tensors: Tensors, random: Random) -> Tensors:
    return {**tensors, random.choice(["keys.9", "hidden", "x", "__class__", "state"]): torch.zeros(1, 2, 3, 8)}


def _rename(tensors: Tensors, random: Random) -> Tensors:
    renamed = random.choice(sorted(tensors))
    return {f"{name}x" if name == renamed else name: tensor for name, tensor in tensors.items()}


def _cast(tensors: Tensors, random: Random) -> Tensors:
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int32, torch.bool, torch.uint8)
    return _with_one(tensors, random, lambda tensor: tensor.to(random.choice([k for k in kinds if k != tensor.dtype])))


def _resize(tensors: Tensors, random: Random) -> Tensors:
    def resized(tensor: Tensor) -> Tensor:
        dimension = random.randrange(tensor.dim()) if tensor.dim() else None
        if dimension is None:
            return tensor.reshape(1, 1)
        size = tensor.shape[dimension]
        wanted = random.choice([0, size - 1, size + 1, 2 * size, 40 * size])
        return tensor.repeat_interleave(42, dimension).narrow(dimension, 0, max(0, wanted))

    return _with_one(tensors, random, resized)


def _more_slots(tensors: Tensors, random: Random) -> Tensors:
    """More of everything along one dimension, the same one of each tensor."""
    times, dimension = random.choice([2, 3, 50]), random.choice([0, 1, 2, 3])
    return {
        name: tensor.repeat_interleave(times, dimension) if tensor.dim() > dimension else tensor
        for name, tensor in tensors.items()
    }


def _reshape(tensors: Tensors, random: Random) -> Tensors:
    shapes: list[Callable[[Tensor], Tensor]] = [
        lambda tensor: tensor[None],
        lambda tensor: tensor.flatten(),
        lambda tensor: (
            tensor.transpose(0, -1) if tensor.dim() > 1 and tensor.shape[0] != tensor.shape[-1] else tensor[None]
        ),
        lambda tensor: tensor.sum(),
    ]
    return _with_one(tensors, random, random.choice(shapes))


def _not_finite(tensors: Tensors, random: Random) -> Tensors:
    def spoilt(tensor: Tensor) -> Tensor:
        flat = tensor.clone().reshape(-1)
        cell = random.choice([0, flat.numel() - 1, random.randrange(flat.numel())])
        if tensor.is_floating_point():
            flat[cell] = random.choice([float("nan"), float("inf"), float("-inf")])
        elif tensor.dtype == torch.uint8:
            flat[cell] = int(flat[cell]) ^ random.randint(1, 255)
        else:
            # A number of writes may be large; a token of the vocabulary may not.
            flat[cell] = random.choice([-1, -100] if tensor.numel() == 1 else [-1, -100, 128, 2**31 - 1])
        return flat.view(tensor.shape)

    return _with_one(tensors, random, spoilt)


TENSORS = (_drop, _drop_all, _add, _rename, _cast, _resize, _more_slots, _reshape, _not_finite)


def _with_one(tensors: Tensors, random: Random, change: Callable[[Tensor], Tensor]) -> Tensors:
    changed = random.choice(sorted(name for name, tensor in tensors.items() if tensor.numel()))
    return {name: change(tensor) if name == changed else tensor for name, tensor in tensors.items()}


def wrong_tensors(folder: Path) -> Try:
    """Tensors that no write could have made, under a good header, are refused."""
    originals, path = _prepared(folder)
    names = sorted(originals.files)

    def attempt(number: int, random: Random) -> list[str]:
        method = random.choice(names)
        original = originals.files[method]
        kinds = TENSORS if original.tensors else (_add,)
        change = random.choice(kinds)
        tensors = change(original.tensors, random)
        if could_be(original.tensors, tensors):
            return []
        original.with_tensors(tensors).write(path)
        return [f"{method} {change.__name__[1:]} -> {p}" for p in refused(_opener(originals, path), StateError)]

    return attempt


def could_be(original: Tensors, tensors: Tensors) -> bool:
    """Whether a write could have made these tensors.

    They are as they were, or the tokens of another length of text, or keep as many slots, but others.
    """
    if original.keys() != tensors.keys():
        return False
    both = [(name, original[name], tensors[name]) for name in original]
    tokens = [*tensors] == ["tokens"] and tensors["tokens"].dtype == torch.int32
    return all(
        old.dtype == new.dtype
        and (torch.equal(old, new) or (tokens and _longer(old, new)) or (name == "kept" and _as_many(old, new)))
        for name, old, new in both
    )


def _as_many(old: Tensor, new: Tensor) -> bool:
    """Whether as many bits are set."""
    return old.shape == new.shape and sum(map(int.bit_count, old.flatten().tolist())) == sum(
        map(int.bit_count, new.flatten().tolist())
    )


def _longer(old: Tensor, new: Tensor) -> bool:
    return new.dim() == 2 and new.shape[0] == 1 and new.shape[1] > 0 and bool(torch.isin(new, old).all())


# ---- headers ----

_HUGE, _DEEP = "9" * 5000, "[" * 100_000 + "]" * 100_000
# JSON text that is wrong whatever the field: of another type, or of a size that nothing has.
_WRONG_STRING = ("null", "true", "5", "-1", "1.5", "[]", "{}", '["full"]', _HUGE, _DEEP, "NaN", json.dumps("x" * 10**6))
_WRONG_COUNT = ("-1", '"5"', "1.5", "[]", "{}", _HUGE, f"-{_HUGE}", _DEEP, "true", "NaN", "Infinity", "1e400", '"x"')
_OTHER = ('""', '"x"', '"../../etc/passwd"', '"full\\u0000"', '"\\u001b]0;x\\u0007"', '"\\ud800"', '"__init__"')
_FINGERPRINT = ('"0"', f'"{"0" * 32}"', '"x"', '"../x"', f'"{"f" * 5000}"')
_NAMES = (
    *("model", "memory", "method", "dtype", "device", "encoder", "tokenizer", "trained", "self", "backbone", "new"),
    *("name", "home", "options", "__class__", "", "chunk_tokens", "slots", "x" * 10_000),
)
_OPTIONS = tuple(json.dumps({name: value}) for name in _NAMES for value in (None, "evil", {"a": 1}, [1], 1e308))
_WRONG: Mapping[str, tuple[str, ...]] = {
    "method": (*_WRONG_STRING, *_OTHER, '"adapter"', '"window "'),
    "options": ("null", "true", "5", '"x"', "[]", '[["a", 1]]', _DEEP, '{"a": ' + _DEEP + "}", *_OPTIONS),
    "backbone": (*_WRONG_STRING, *_FINGERPRINT),
    "tokenizer": (*_WRONG_STRING, *_FINGERPRINT),
    "adapter": (*_WRONG_STRING, *_FINGERPRINT),
    "model": _WRONG_STRING,
    "dtype": (*_WRONG_STRING, *_OTHER, '"float64"', '"load"', '"4bit"'),
    "learned": (*_WRONG_STRING, '"/etc"', '"/dev/zero"', '"."', '"../x"', '"x"', '"\\ud800"'),
    "slots": (*_WRONG_COUNT, "null", "1000000", "9007199254740993"),
    "capacity": ("-1", '"5"', "1.5", "[]", "{}", _HUGE, _DEEP, "NaN", "Infinity"),
    "text_format": (*_WRONG_STRING, '"x"', '"TURN"', '"../x"'),
    "format": (*_WRONG_COUNT, "null", "0", "99", "2.5", '"2"'),
    "written": ("null", "5", '"x"', "{}", "[null]", "[5]", '["x"]', "[[]]", "[{}]", _DEEP, "[" + _DEEP + "]"),
}
# Files of earlier versions may lack the others.
_NEEDED = ("method", "options", "backbone", "tokenizer", "adapter", "model", "format", "written")
_WRONG_ENTRY: Mapping[str, tuple[str, ...]] = {
    "source": ("null", "5", "[]", "{}", _DEEP, _HUGE, json.dumps("x" * 10**6)),
    "at": (*_WRONG_STRING, '"yesterday"', '""', '"2026-13-45T99:99:99+00:00"', '"9999999-01-01"'),
    "tokens": (*_WRONG_COUNT, "null"),
    "characters": (*_WRONG_COUNT, "null"),
}
_WHOLE = (
    "",
    "null",
    "[]",
    "5",
    '"x"',
    "{}",
    _DEEP,
    _HUGE,
    "{",
    '{"format": 2}',
    '{"format": 1}',
    "\ufeff{}",
    '{"a":' * 900,
)


def _spelled(fields: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in fields.items()) + "}"


def forge_header(header: str, random: Random) -> tuple[str, str]:
    """What was changed, and a header that says what no session would have said."""
    fields: dict[str, str] = {name: json.dumps(value) for name, value in json.loads(header).items()}
    kind = random.choice(["field"] * 6 + ["entry"] * 3 + ["absent", "extra", "twice", "whole"])
    if kind == "whole":
        return kind, random.choice(_WHOLE)
    name = random.choice(sorted(_WRONG))
    if kind == "entry":
        name = random.choice(sorted(_WRONG_ENTRY))
        entry = {key: json.dumps(value) for key, value in json.loads(fields["written"])[0].items()}
        change = random.choice(["wrong"] * 6 + ["absent", "extra"])
        entry = _changed(entry, name, random.choice(_WRONG_ENTRY[name]), change)
        return f"entry {name} {change} {entry.get(name, '')[:40]}", _spelled(
            {**fields, "written": f"[{_spelled(entry)}]"}
        )
    if kind == "twice":
        value = random.choice(_WRONG[name])
        return f"{name} twice", _spelled(fields)[:-1] + f", {json.dumps(name)}: {value}}}"
    if kind == "absent":
        name = random.choice(_NEEDED)
    value = random.choice(_WRONG[name])
    fields = _changed(fields, name, value, "wrong" if kind == "field" else kind)
    return f"{kind} {name} {value[:40] if kind == 'field' else ''}", _spelled(fields)


def _changed(fields: Mapping[str, str], name: str, value: str, change: str) -> dict[str, str]:
    if change == "absent":
        return {key: text for key, text in fields.items() if key != name}
    return {**fields, ("more" if change == "extra" else name): value}


def wrong_headers(folder: Path) -> Try:
    """A header that no session would have written is refused."""
    originals, path = _prepared(folder)
    names = sorted(originals.files)

    def attempt(number: int, random: Random) -> list[str]:
        method = random.choice(names)
        original = originals.files[method]
        what, header = forge_header(original.header, random)
        if header == original.header:
            return []
        original.with_header(header).write(path)
        return [f"{method}: {what} -> {problem}" for problem in refused(_opener(originals, path), StateError)]

    return attempt


# ---- options ----

_EXTREME: Mapping[type, tuple[Any, ...]] = {
    bool: (True, False),
    int: (-1, 0, 10**9, 2**31, 2**40, 2**53),
    float: (-1.0, 0.0, 1e-300, 1e15, 2.0**53, 2**53),
    str: ("", "x", "a/b", "cuda"),
    list: ([], [-1], [10**9], [0] * 5000, [2**53], ["x"]),
}


def extreme_options(folder: Path) -> Try:
    """A header whose options are extreme is refused, or the memory can be written, saved and opened again."""
    originals, path = _prepared(folder)
    # There are no options without fields, and none of nothing.
    names = sorted(name for name, file in originals.files.items() if json.loads(file.header)["options"])

    def attempt(number: int, random: Random) -> list[str]:
        method = random.choice(names)
        header = json.loads(originals.files[method].header)
        option = random.choice(sorted(header["options"]))
        before = header["options"][option]
        value = random.choice(_EXTREME.get(type(before), (None, -1, 2**40, "x", [1])))
        header["options"][option] = value
        originals.files[method].with_header(json.dumps(header)).write(path)

        def use() -> None:
            session = _opener(originals, path)()
            session.write(CAT)
            session.save(path)

        problems = refused(use, ByheartError)
        if problems == [_ACCEPTED]:
            # What was saved is opened again.
            problems = [problem for problem in refused(_opener(originals, path)) if problem != _ACCEPTED]
        return [f"{method} {option} {str(value)[:40]} -> {problem}" for problem in problems]

    return attempt


ATTACKS = (
    Attack("states.bytes", "state files with changed bytes", change_bytes, 20_000, seconds=20),
    Attack("states.tensors", "state files with wrong tensors and a right hash", wrong_tensors, 1_500, seconds=20),
    Attack("states.headers", "state files with a wrong header and a right hash", wrong_headers, 1_500, seconds=20),
    Attack(
        "states.options", "state files with extreme options, opened and written: hang, traceback", extreme_options, 500
    ),
)
