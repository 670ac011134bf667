"""Text in, text out: sessions, alone and many at once."""

from byheart.session.batch import ask_many, write_many
from byheart.session.opening import load, open_state
from byheart.session.session import Session

__all__ = ["Session", "ask_many", "load", "open_state", "write_many"]
