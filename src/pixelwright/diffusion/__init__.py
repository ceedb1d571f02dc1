"""The path from noise to data and its loss, solvers, guidance, and sampling a model."""

from pixelwright.diffusion.guidance import AutoGuidance, CFGPlusPlus, Guidance, IntervalCFG
from pixelwright.diffusion.solvers import SOLVERS, Step, solve, timesteps

__all__ = ["SOLVERS", "AutoGuidance", "CFGPlusPlus", "Guidance", "IntervalCFG", "Step", "solve", "timesteps"]
