"""The frozen model: opened, measured and run, and what one pass of it sees."""

from byheart.model.backbone import Backbone
from byheart.model.loading import DEFAULT, open_model, open_tokenizer
from byheart.model.reading import KV, DenseDelta, LowRankDelta, Reading
from byheart.model.stock_attention import generate_inputs, stock_cache

__all__ = [
    "DEFAULT",
    "KV",
    "Backbone",
    "DenseDelta",
    "LowRankDelta",
    "Reading",
    "generate_inputs",
    "open_model",
    "open_tokenizer",
    "stock_cache",
]
