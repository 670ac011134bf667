"""What every method is: states, readings of them, their files, and the loss that trains."""

from importlib import import_module
from typing import TYPE_CHECKING

from byheart.protocol.objective import Objective

if TYPE_CHECKING:
    from byheart.protocol.episode import Batch as Batch, Episode as Episode, collate as collate
    from byheart.protocol.method import Method as Method
    from byheart.protocol.state import Header as Header, State as State, Written as Written

_HOME = {"Batch": "episode", "Episode": "episode", "collate": "episode", "Method": "method"}
_HOME |= {"Header": "state", "State": "state", "Written": "state"}
__all__ = ["Batch", "Episode", "Header", "Method", "Objective", "State", "Written", "collate"]


def __getattr__(name: str) -> object:
    """A name that needs PyTorch, imported when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
