"""byheart gives open-weight language models a memory.

Write text once, keep it as a small state, read it in any later conversation:

    session = byheart.load("smollm2", memory="full")
    session.write("The cat is called Muck.")
    session.ask("What is the cat called?")
"""

from byheart.backbone import Backbone
from byheart.decoding import Decoding, generate
from byheart.errors import ByheartError
from byheart.memory import Memory
from byheart.reading import KV, DenseDelta, LowRankDelta, Reading
from byheart.session import Session, ask_many, load, open_state
from byheart.state import State

__all__ = [
    "KV",
    "Backbone",
    "ByheartError",
    "Decoding",
    "DenseDelta",
    "LowRankDelta",
    "Memory",
    "Reading",
    "Session",
    "State",
    "ask_many",
    "generate",
    "load",
    "open_state",
]
