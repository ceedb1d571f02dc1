"""Training: configs, the trainer, checkpoints and the alignment loss."""

from pixelwright.training.config import (
    ModelConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
)
from pixelwright.training.config_file import load_config, save_config
from pixelwright.training.trainer import Interrupted, Trainer, train

__all__ = [
    "Interrupted",
    "ModelConfig",
    "OptimConfig",
    "SampleConfig",
    "TrainConfig",
    "Trainer",
    "load_config",
    "save_config",
    "train",
]
