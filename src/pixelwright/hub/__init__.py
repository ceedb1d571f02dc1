"""Published checkpoints in and out."""

from pixelwright.hub.public import from_public, to_public

__all__ = ["from_public", "to_public"]
