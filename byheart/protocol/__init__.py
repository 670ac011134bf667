"""What every method is: states, readings of them, their files, and the loss that trains."""

from byheart.protocol.episode import Batch, Episode, collate
from byheart.protocol.kv_method import KVMethod, NewKV
from byheart.protocol.kv_slots import concat, gather, map_slots, top_indices
from byheart.protocol.method import Method
from byheart.protocol.size import Size, every_size, fixed_size, slots_size
from byheart.protocol.state import Header, State, Written

__all__ = [
    "Batch",
    "Episode",
    "Header",
    "KVMethod",
    "Method",
    "NewKV",
    "Size",
    "State",
    "Written",
    "collate",
    "concat",
    "every_size",
    "fixed_size",
    "gather",
    "map_slots",
    "slots_size",
    "top_indices",
]
