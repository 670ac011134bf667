"""A memory for language models: write text once, keep it as a small state, read it in any later conversation.

session = byheart.load("smollm2", memory="full")
session.write("The cat is called Muck.")
session.ask("What is the cat called?")
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from byheart.backbone import Backbone as Backbone
    from byheart.decoding import Decoding as Decoding, generate as generate
    from byheart.errors import ByheartError as ByheartError
    from byheart.memory import Memory as Memory, State as State
    from byheart.reading import KV as KV, DenseDelta as DenseDelta, LowRankDelta as LowRankDelta, Reading as Reading
    from byheart.session import Session as Session, ask_many as ask_many, load as load, open_state as open_state
    from byheart.store import Store as Store
    from byheart.training import Episode as Episode, Recipe as Recipe, train as train

_NAMES = {
    "backbone": ["Backbone"],
    "decoding": ["Decoding", "generate"],
    "errors": ["ByheartError"],
    "memory": ["Memory", "State"],
    "reading": ["KV", "DenseDelta", "LowRankDelta", "Reading"],
    "session": ["Session", "ask_many", "load", "open_state"],
    "store": ["Store"],
    "training": ["Episode", "Recipe", "train"],
}
_HOME = {name: f"byheart.{home}" for home, names in _NAMES.items() for name in names}
__all__ = list(_HOME)
__dir__ = _HOME.keys


def __getattr__(name: str) -> object:
    """A public name, imported when it is first used: PyTorch takes seconds, and ``byheart --help`` needs none of it."""
    if name not in _HOME:
        raise AttributeError(f"module 'byheart' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
