"""A memory for language models: write text once, keep it as a small state, read it in any later conversation.

session = byheart.load("smollm2")
session.write("The cat is called Muck.")
session.ask("What is the cat called?")
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from byheart import published as published
    from byheart.errors import ByheartError as ByheartError
    from byheart.evaluation import Result as Result, Task as Task, search as search, tasks as tasks
    from byheart.evaluation.evaluate import evaluate as evaluate
    from byheart.generation import Decoding as Decoding, generate as generate
    from byheart.model import KV as KV, Backbone as Backbone, Reading as Reading
    from byheart.model.reading import DenseDelta as DenseDelta, LowRankDelta as LowRankDelta
    from byheart.protocol import Episode as Episode, Method as Method, State as State
    from byheart.reports import compare as compare
    from byheart.serving.client import Client as Client
    from byheart.session import Session as Session, ask_many as ask_many, load as load, open_state as open_state
    from byheart.store import Store as Store
    from byheart.training import Recipe as Recipe, train as train

_PATHS = """errors.ByheartError evaluation.Result evaluation.Task evaluation.evaluate evaluation.search
evaluation.tasks generation.Decoding generation.generate model.KV model.Backbone model.DenseDelta model.LowRankDelta
model.Reading protocol.Episode protocol.Method protocol.State reports.compare serving.client.Client session.Session
session.ask_many session.load session.open_state store.Store training.Recipe training.train"""
_HOME = {name: f"byheart.{home}" for home, name in (path.rsplit(".", 1) for path in _PATHS.split())}
__all__ = [*_HOME, "published"]
__dir__ = __all__.copy


def __getattr__(name: str) -> object:
    """A public name, imported when it is first used: PyTorch takes seconds, and ``byheart --help`` needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module 'byheart' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name) if name in _HOME else import_module(f"byheart.{name}")
