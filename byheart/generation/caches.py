"""The cache in which rows read their memories, copied only where that is needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from byheart.model.backbone import Backbone
from byheart.model.kv_cache import PrefixCache
from byheart.model.reading import Reading
from byheart.model.shared_prefix import SharedPrefixCache, saves_copies


def cache_for(backbone: Backbone, readings: Sequence[Reading], *, room: int, may_share: bool = False) -> PrefixCache:
    """A cache for rows of these readings, one each, with room for so many tokens; it adds no changes of layers.

    Args:
        may_share: read all memories where they are; otherwise those alone for which that saves copies.
    """
    if (may_share or saves_copies(readings)) and backbone.hides_slots:
        return SharedPrefixCache(readings, layers=len(backbone.layers), dtype=backbone.dtype)
    # A prefix that can be learned from would make the cache so too, and tie it to the passes that fill it.
    with torch.no_grad(), backbone.reading(readings, room=room) as cache:
        return cache
