"""Published checkpoints in and out."""

from pixelwright.hub.checkpoint import Checkpoint, load, load_config, open_checkpoint
from pixelwright.hub.convert import convert
from pixelwright.hub.public import from_public, to_public
from pixelwright.hub.recipes import RECIPES

__all__ = [
    "RECIPES",
    "Checkpoint",
    "convert",
    "from_public",
    "load",
    "load_config",
    "open_checkpoint",
    "to_public",
]
