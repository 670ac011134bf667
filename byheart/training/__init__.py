"""Training a method's learned parts."""

from typing import TYPE_CHECKING

from byheart.training.config import TrainingConfig
from byheart.training.recipe import Recipe

if TYPE_CHECKING:
    from byheart.training.loop import Step as Step, TrainResult as TrainResult, train as train

__all__ = ["Recipe", "Step", "TrainResult", "TrainingConfig", "train"]


def __getattr__(name: str) -> object:
    """A name that needs PyTorch, imported when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from byheart.training import loop

    return getattr(loop, name)
