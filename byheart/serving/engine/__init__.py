"""One thread that owns the models, and the jobs that it does."""

from byheart.serving.engine.local import LocalEngine

__all__ = ["LocalEngine"]
