"""What every method is: states, readings of them, their files, and the loss that trains."""

from importlib import import_module
from typing import TYPE_CHECKING

from byheart.protocol.objective import Objective

if TYPE_CHECKING:
    from byheart.protocol.episode import Batch as Batch, Episode as Episode, collate as collate
    from byheart.protocol.kv_method import KVMethod as KVMethod, NewKV as NewKV
    from byheart.protocol.kv_slots import (
        concat as concat,
        gather as gather,
        map_slots as map_slots,
        top_indices as top_indices,
    )
    from byheart.protocol.method import Method as Method
    from byheart.protocol.size import (
        Size as Size,
        every_size as every_size,
        fixed_size as fixed_size,
        slots_size as slots_size,
    )
    from byheart.protocol.state import Header as Header, State as State, Written as Written

_NAMES = {
    "episode": "Batch Episode collate",
    "kv_method": "KVMethod NewKV",
    "kv_slots": "concat gather map_slots top_indices",
    "method": "Method",
    "size": "Size every_size fixed_size slots_size",
    "state": "Header State Written",
}
_HOME = {name: home for home, names in _NAMES.items() for name in names.split()}
__all__ = [*_HOME, "Objective"]


def __getattr__(name: str) -> object:
    """A name that needs PyTorch, imported when it is first used: the settings of training are listed without it."""
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
