"""What a decoder is made of, found by running one token through it rather than by its family's name.

Measured once when a model is opened: which modules follow the layers, how each layer rotates its keys, and, on demand,
where a layer's feed-forward block sits. A layer that cannot be driven is refused with its number. A model without
rotary positions is one whose keys stay where they were made. This module knows hooks and shapes; it does not know any
model family.

Dimensions: B batch, T tokens, D hidden, F rotated pairs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from byheart.errors import UnsupportedModelError
from byheart.model.kv_cache import KeyValueTap, PrefixCache, Tapped
from byheart.model.linear import LINEARS, Linear
from byheart.model.reading import KV, Reading
from byheart.model.rope import ROUNDED, Rotation, Rounding, cos_sin

# Powers of two: a float32 product of position and frequency is exact there, so the measured frequency is too.
_PROBES = (1, 32, 1024)
_CHECKED_TURN = 3


@dataclass(frozen=True)
class Anatomy:
    """A decoder's layers, the keyword arguments each gets at position 0, how each rotates keys, and what follows them.

    ``cache_argument`` is what its forward calls the key-value cache, ``stack`` where the layers are in it.
    ``rotations`` is empty where keys cannot be moved: positions are no plain rotation of them. ``tables`` are the
    modules that give cosines and sines, each with the frequencies of all components; ``rounding`` is done to these.
    """

    layers: Sequence[nn.Module]
    arguments: tuple[dict[str, Any], ...]
    rotations: tuple[Rotation, ...]
    norms: tuple[nn.Module, ...]
    cache_argument: str
    stack: str = "layers"
    tables: tuple[tuple[nn.Module, tuple[float, ...]], ...] = ()
    rounding: Rounding | None = None

    def rounded(self, rounding: Rounding | None) -> Anatomy:
        """The same where angles are rounded. Raises UnsupportedModelError where that is not known of the model."""
        if rounding is None:
            return self
        scales = [arguments["position_embeddings"][0] for arguments in self.arguments if self.tables]
        if len(self.tables) != 1 or any(bool((scale != 1).any()) for scale in scales):
            raise UnsupportedModelError(
                f"the config says {ROUNDED}, which byheart knows only where all layers have the same rotary positions, "
                "without a scale of attention (YaRN)."
            )
        rotations = tuple(replace(rotation, rounding=rounding) for rotation in self.rotations)
        return replace(self, rotations=rotations, rounding=rounding)

    def as_rounded(self) -> AbstractContextManager[None]:
        """Inside: the model sees rounded angles, where there is a rounding. After: its own again."""
        tables = self.tables if self.rounding else ()
        return hooked(module.register_forward_hook(self._round, with_kwargs=True) for module, _ in tables)

    def _round(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any], out: Any) -> tuple[Tensor, Tensor]:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        (positions,) = (value for value in given if not value.is_floating_point())
        return cos_sin(self.tables[0][1], positions, out[0].dtype, self.rounding)

    def require_rotations(self, model: str) -> None:
        """Raise UnsupportedModelError, which names the model, where its keys cannot be moved."""
        if not self.rotations:
            raise UnsupportedModelError(
                f"{model} has no rotary positions that byheart can turn, so its keys cannot be moved in front of "
                "another text. Take a method that leaves them where they are, such as full, ffn-edit or rome."
            )


@dataclass(frozen=True)
class LayerCheckpoint:
    """The layers from ``start`` on, ready to be run again from their input without the ones below.

    ``hidden`` (B, T, D) is that input, ``arguments`` what each layer was called with.
    """

    start: int
    hidden: Tensor
    arguments: tuple[dict[str, Any], ...]


@contextmanager
def hooked(handles: Iterable[Any]) -> Iterator[None]:
    """Before: hooks about to be registered, or just so. After: all of them removed, whatever happened inside."""
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


def measure(decoder: nn.Module, *, dim: int, dtype: torch.dtype, device: torch.device, positions: int) -> Anatomy:
    """Run one token through ``decoder`` and find what its layers do. Raises UnsupportedModelError, naming the layer."""
    if device.type == "meta":
        raise UnsupportedModelError("the model has no weights (device 'meta'); load it first.")
    name, stack = _stack_of(decoder)
    layers: Sequence[nn.Module] = list(stack)
    arguments: list[dict[str, Any]] = []
    calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any], Any]] = []
    handles = [
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: arguments.append(named_arguments(module, args, kwargs)), with_kwargs=True
        )
        for layer in layers
    ]
    handles += [
        child.register_forward_hook(lambda *call: calls.append(call), with_kwargs=True)
        for child in (*(child for child in decoder.children() if child is not stack), layers[-1])
    ]
    at_zero = torch.zeros(1, 1, dtype=torch.long, device=device)
    x = noise(1, dim, dtype, device)
    with hooked(handles), torch.no_grad():
        _run(decoder, x, at_zero, layers, cache_argument(decoder))
    if len(arguments) != len(layers):
        raise UnsupportedModelError(f"{len(arguments)} of {len(layers)} decoder layers ran; byheart needs all of them.")
    last = max(n for n, call in enumerate(calls) if call[0] is layers[-1])
    norms = tuple(call[0] for call in calls[last + 1 :])
    rotations, tables = _rotations(layers, arguments, calls, at_zero, positions, noise(3, dim, dtype, device))
    found = Anatomy(layers, tuple(arguments), rotations, norms, cache_argument(decoder), name, tables)
    if not rotations:
        _require_cached_as_whole(decoder, found, noise(4, dim, dtype, device))
    return found


def _stack_of(decoder: nn.Module) -> tuple[str, nn.ModuleList]:
    """The decoder's list of layers, by its name; of several lists ``layers``, or else the longest."""
    stacks = {name: child for name, child in decoder.named_children() if isinstance(child, nn.ModuleList) and child}
    if not stacks:
        raise UnsupportedModelError(f"{type(decoder).__name__} has no list of layers; byheart cannot drive layer 0.")
    name = "layers" if "layers" in stacks else max(stacks, key=lambda name: len(stacks[name]))
    return name, stacks[name]


def named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a layer was called with besides its input, by name: some decoders give it by place."""
    names = list(inspect.signature(module.forward).parameters)
    return {**dict(zip(names[1:], args[1:], strict=False)), **kwargs}


def _rotations(
    layers: Sequence[nn.Module],
    arguments: Sequence[dict[str, Any]],
    calls: Sequence[tuple[Any, ...]],
    at_zero: Tensor,
    positions: int,
    x: Tensor,
) -> tuple[tuple[Rotation, ...], tuple[tuple[nn.Module, tuple[float, ...]], ...]]:
    """How each layer rotates its keys, and by which tables; none where no layer is given cosines and sines."""
    if not any(map(_is_rotary, arguments)):
        return (), ()
    replays = [_replay(index, inputs, calls, at_zero) for index, inputs in enumerate(arguments)]
    tables: dict[int, tuple[nn.Module, tuple[float, ...]]] = {}
    rotations = []
    for index, (layer, inputs, replay) in enumerate(zip(layers, arguments, replays, strict=True)):
        embeddings = inputs["position_embeddings"]
        if id(embeddings) not in tables:
            module = next(call[0] for call in calls if call[3] is embeddings)
            tables[id(embeddings)] = module, _frequencies(index, replay, positions, at_zero.device)
        rotations.append(_rotation(index, layer, inputs, replay, tables[id(embeddings)][1], x))
    return tuple(rotations), tuple(tables.values())


def _is_rotary(arguments: dict[str, Any]) -> bool:
    """Whether a layer is given a cosine and a sine; at position 0 the first of the two is not 0."""
    pair = arguments.get("position_embeddings")
    return isinstance(pair, tuple | list) and len(pair) == 2 and bool(pair[0].any())


def _require_cached_as_whole(decoder: nn.Module, anatomy: Anatomy, x: Tensor) -> None:
    """Raise UnsupportedModelError unless text in two parts over a cache is read as the whole is."""

    def read(part: Tensor, start: int, cache: PrefixCache) -> Tensor:
        positions = torch.arange(start, start + part.shape[1], device=part.device)[None]
        given = {"inputs_embeds": part, "position_ids": positions, "use_cache": True, anatomy.cache_argument: cache}
        with torch.no_grad():
            out: Tensor = decoder(**given).last_hidden_state
        return out

    whole, cache = read(x, 0, PrefixCache(len(anatomy.layers))), PrefixCache(len(anatomy.layers))
    parts = torch.cat([read(x[:, :2], 0, cache), read(x[:, 2:], 2, cache)], dim=1)
    close = 1e-4 if x.dtype == torch.float32 else 5e-2
    if (whole - parts).float().norm() > close * whole.float().norm():
        raise UnsupportedModelError(
            f"{type(decoder).__name__} reads text that continues a key-value cache differently from the whole text; "
            "its positions cannot be kept."
        )


def cache_argument(module: nn.Module) -> str:
    """What a module's forward calls the key-value cache; transformers 5.24 renamed ``past_key_values``."""
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"


def _run(decoder: nn.Module, x: Tensor, positions: Tensor, layers: Sequence[nn.Module], cache: str) -> None:
    try:
        decoder(inputs_embeds=x, position_ids=positions, use_cache=True, **{cache: PrefixCache(len(layers))})
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        kinds = sorted({type(layer).__name__ for layer in layers})
        raise UnsupportedModelError(
            f"the decoder ({', '.join(kinds)}) does not run over a key-value cache: {error}. "
            "Layers without keys and values, such as linear attention, cannot hold a memory."
        ) from error


def noise(tokens: int, dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, tokens, dim, generator=generator).to(device, dtype)


Replay = Callable[[int, torch.dtype], tuple[Tensor, Tensor]]


def _replay(index: int, arguments: dict[str, Any], calls: Sequence[tuple[Any, ...]], at_zero: Tensor) -> Replay:
    """The model's own cosine and sine for layer ``index`` at any position."""
    embeddings = arguments.get("position_embeddings")
    if embeddings is None:
        raise UnsupportedModelError(
            f"layer {index} gets no rotary position embeddings: its positions are not a plain rotation, "
            "so its keys cannot be moved in front of another text."
        )
    module, args, kwargs, _ = next(call for call in calls if call[3] is embeddings)

    def replay(position: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        where = torch.full_like(at_zero, position)

        def swap(value: object) -> object:
            if isinstance(value, Tensor):
                return value.to(dtype) if value.is_floating_point() else where
            return value

        with torch.no_grad():
            cos, sin = module(*map(swap, args), **{name: swap(value) for name, value in kwargs.items()})
        return cos[0, 0], sin[0, 0]

    return replay


def _frequencies(index: int, replay: Replay, positions: int, device: torch.device) -> tuple[float, ...]:
    """Radians per position for every component pair, refined over growing positions, then checked elsewhere."""
    frequencies = torch.zeros((), dtype=torch.float64)
    for position in _PROBES:
        cos, sin = (part.double().cpu() for part in replay(position, torch.float32))
        angle = torch.atan2(sin, cos)
        turns = torch.round((frequencies * position - angle) / (2 * math.pi)) if position > 1 else torch.zeros(())
        frequencies = (angle + 2 * math.pi * turns) / position
    # One position that no probe divides, and one past the longest text, where dynamic scaling has set in.
    for position in (127, 1 << positions.bit_length()):
        cos, sin = (part.double().cpu() for part in replay(position, torch.float32))
        scale = torch.sqrt(cos**2 + sin**2)
        if (torch.cos(frequencies * position) * scale - cos).abs().max() > 2e-2:
            raise UnsupportedModelError(
                f"layer {index} turns its keys differently at position {position}: its rotation depends on the length "
                "of the text (dynamic or long RoPE), so its keys cannot be kept."
            )
    return tuple(frequencies.tolist())


def _rotation(
    index: int, layer: nn.Module, arguments: dict[str, Any], replay: Replay, components: tuple[float, ...], x: Tensor
) -> Rotation:
    """Which components of the layer's keys rotate together, found by comparing its keys at two positions."""
    start, values = (part.float() for part in tap(layer, arguments, x, index))
    shape = arguments["position_embeddings"][0].shape
    cos, sin = replay(_CHECKED_TURN, x.dtype)
    turned = {**arguments, "position_embeddings": (cos.expand(shape), sin.expand(shape))}
    later, values_later = (part.float() for part in tap(layer, turned, x, index))
    half = len(components) // 2
    # GLM lists its frequencies as the half pairing does, and turns interleaved pairs by them.
    candidates = (
        Rotation(components[:half], "half"),
        Rotation(components[::2], "interleaved"),
        Rotation(components[:half], "interleaved"),
        Rotation((), "none"),
    )
    worst = 1e-3 if x.dtype == torch.float32 else 3e-2
    if (values_later - values).norm() > worst * values.norm():
        raise UnsupportedModelError(
            f"layer {index} ({type(layer).__name__}) keeps positions in its values, as latent attention does; "
            "its keys cannot be moved in front of another text."
        )
    for rotation in candidates:
        fits = 2 * len(rotation.frequencies) <= start.shape[-1]
        if fits and (rotation.rotate(start, _CHECKED_TURN) - later).norm() <= worst * later.norm():
            return rotation
    raise UnsupportedModelError(
        f"layer {index} ({type(layer).__name__}) does not turn its keys by a plain rotation; its keys cannot be kept."
    )


def tap(layer: nn.Module, arguments: dict[str, Any], x: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """The keys and values that ``layer`` makes of hidden states ``x`` (B, T, D), and nothing after them."""
    taker = KeyValueTap(0)
    with suppress(Tapped):
        layer(x, **with_cache(arguments, taker))
    if taker.taken is None:
        raise UnsupportedModelError(
            f"layer {index} ({type(layer).__name__}) keeps no keys and values; such layers cannot hold a memory."
        )
    return taker.taken


def keyless_linears(layer: nn.Module, arguments: dict[str, Any], x: Tensor, index: int) -> tuple[Linear, ...]:
    """Linear layers that run before ``layer`` shows its keys and values, and whose outputs do not reach them: queries.

    Found by changing each one's output; ``x`` (1, T, D) with T >= 2. None where they cannot be ``skipped``.
    """
    called: list[Linear] = []
    linears = [module for module in layer.modules() if isinstance(module, LINEARS)]
    with hooked([linear.register_forward_hook(lambda module, args, out: called.append(module)) for linear in linears]):
        expected = tap(layer, arguments, x, index)

    def is_keyless(linear: Linear) -> bool:
        with hooked([linear.register_forward_hook(lambda module, args, out: out + 1)]):
            return all(map(torch.equal, tap(layer, arguments, x, index), expected))

    found = tuple(linear for linear in called if is_keyless(linear))
    with suppress(RuntimeError), skipped(found):
        if all(map(torch.equal, tap(layer, arguments, x, index), expected)):
            return found
    return ()


@contextmanager
def skipped(linears: Sequence[Linear]) -> Iterator[None]:
    """Inside: these linear layers compute their first token alone and repeat it. After: as before."""
    tokens: dict[int, int] = {}

    def shorten(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens[id(module)] = args[0].shape[1]
        return (args[0][:, :1],)

    def lengthen(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out.expand(-1, tokens[id(module)], -1)

    handles = [linear.register_forward_pre_hook(shorten) for linear in linears]
    with hooked([*handles, *(linear.register_forward_hook(lengthen) for linear in linears)]):
        yield


def hides_slots(run: Callable[[PrefixCache], Tensor], slot: KV) -> bool:
    """Whether what stands in a slot that is hidden from every head changes nothing of what ``run`` gives."""
    masks = tuple(torch.zeros(part.shape[:3], dtype=torch.bool, device=part.device) for part in slot.keys)
    outs = []
    for number in (0, 1):
        kv = KV(tuple(number * part for part in slot.keys), tuple(number + part for part in slot.values), masks)
        with torch.no_grad():
            outs.append(run(PrefixCache.of([Reading(kv)], layers=len(slot.keys), dtype=slot.keys[0].dtype)))
    return torch.equal(*outs)


def with_cache(arguments: dict[str, Any], cache: PrefixCache | None) -> dict[str, Any]:
    """A layer's arguments with another cache, whatever the family calls it; None keeps nothing."""
    return {name: cache if isinstance(value, PrefixCache) else value for name, value in arguments.items()}
