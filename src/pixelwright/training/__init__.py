"""Training: the trainer, objectives, callbacks and loggers, and runs from a config."""

from pixelwright.training.build import build_trainer, train
from pixelwright.training.callbacks import Callback, Report, SampleGrid
from pixelwright.training.config import LoopConfig, OptimConfig, SampleConfig, TrainConfig
from pixelwright.training.config_file import load_config, save_config
from pixelwright.training.control import Interrupted
from pixelwright.training.loggers import (
    JsonLines,
    Logger,
    Progress,
    TensorBoard,
    Wandb,
    WandbConfig,
    register_logger,
)
from pixelwright.training.model_config import ModelConfig
from pixelwright.training.objectives import (
    FlowMatching,
    Objective,
    ObjectiveConfig,
    Repa,
    RepaConfig,
    register_objective,
)
from pixelwright.training.trainer import Trainer

__all__ = ["Callback", "FlowMatching", "Interrupted", "JsonLines", "Logger", "LoopConfig", "ModelConfig"]
__all__ += ["Objective", "ObjectiveConfig", "OptimConfig", "Progress", "Repa", "RepaConfig", "Report"]
__all__ += ["SampleConfig", "SampleGrid", "TensorBoard", "TrainConfig", "Trainer", "Wandb", "WandbConfig"]
__all__ += ["build_trainer", "load_config", "register_logger", "register_objective", "save_config", "train"]
