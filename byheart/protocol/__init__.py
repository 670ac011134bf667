"""What every method is: states, readings of them, their files, and the loss that trains."""

from byheart.protocol.episode import Batch, Episode, collate
from byheart.protocol.kv_method import KVMethod, NewKV
from byheart.protocol.method import Method
from byheart.protocol.size import Size
from byheart.protocol.state import Header, State, Written

__all__ = ["Batch", "Episode", "Header", "KVMethod", "Method", "NewKV", "Size", "State", "Written", "collate"]
