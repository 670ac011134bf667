"""Training a method's learned parts."""

from byheart.training.config import TrainingConfig
from byheart.training.loop import Step, TrainResult, train
from byheart.training.recipe import Recipe

__all__ = ["Recipe", "Step", "TrainResult", "TrainingConfig", "train"]
