"""The frozen model: opened, measured and run, and what one pass of it sees."""

from byheart.model.backbone import Backbone
from byheart.model.loading import DEFAULT, open_model, open_tokenizer
from byheart.model.reading import KV, DenseDelta, LowRankDelta, Reading

__all__ = ["DEFAULT", "KV", "Backbone", "DenseDelta", "LowRankDelta", "Reading", "open_model", "open_tokenizer"]
