"""Published checkpoints in and out."""

from pixelwright.hub.checkpoint import Checkpoint, load, load_config, open_checkpoint
from pixelwright.hub.convert import convert
from pixelwright.hub.presets import SAMPLER_PRESETS
from pixelwright.hub.public import from_public, to_public

__all__ = [
    "SAMPLER_PRESETS",
    "Checkpoint",
    "convert",
    "from_public",
    "load",
    "load_config",
    "open_checkpoint",
    "to_public",
]
