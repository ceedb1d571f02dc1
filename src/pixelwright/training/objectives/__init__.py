"""What training minimises: flow matching, and what is added to it, a file each."""

from pixelwright.training.objectives.base import (
    OBJECTIVES,
    FlowMatching,
    FlowMatchingConfig,
    Forward,
    Logs,
    Losses,
    Objective,
    ObjectiveConfig,
    build_objectives,
    check_objectives,
    register_objective,
)
from pixelwright.training.objectives.frequency import FrequencyConfig, FrequencyLoss
from pixelwright.training.objectives.perceptual import Perceptual, PerceptualConfig
from pixelwright.training.objectives.repa import Repa, RepaConfig

__all__ = ["OBJECTIVES", "FlowMatching", "FlowMatchingConfig", "Forward", "FrequencyConfig"]
__all__ += ["FrequencyLoss", "Logs", "Losses", "Objective", "ObjectiveConfig", "Perceptual"]
__all__ += ["PerceptualConfig", "Repa", "RepaConfig", "build_objectives", "check_objectives"]
__all__ += ["register_objective"]
