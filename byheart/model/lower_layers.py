"""What a layer is given, and the layers below it run alone.

Dimensions: B batch, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from byheart.errors import UnsupportedModelError
from byheart.model.anatomy import hooked
from byheart.model.backbone import Backbone
from byheart.model.kv_cache import PrefixCache


class _Stopped(Exception):
    """Raised where a layer and those after it are not needed; ``hidden`` is what the layer was given."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


@contextmanager
def input_of(backbone: Backbone, index: int) -> Iterator[list[Float[Tensor, "B T D"]]]:
    """Keep what layer ``index`` is given. Inside: a pre-hook, an item per pass. After: none."""
    taken: list[Tensor] = []
    with hooked([backbone.layers[index].register_forward_pre_hook(lambda module, args: taken.append(args[0]))]):
        yield taken


def run_lower(backbone: Backbone, tokens: Int[Tensor, "B T"], index: int, cache: PrefixCache) -> Float[Tensor, "B T D"]:
    """What layer ``index`` is given for ``tokens``; only the layers below it run, and add to the cache."""

    def stop(module: nn.Module, args: tuple[Any, ...]) -> None:
        raise _Stopped(args[0])

    with hooked([backbone.layers[index].register_forward_pre_hook(stop)]):
        try:
            backbone.hidden(tokens, cache=cache)
        except _Stopped as stopped:
            return stopped.hidden
    raise UnsupportedModelError(f"Layer {index} did not run.")
