"""Editing and restoration: img2img, inpainting, FlowEdit, inversion, inverse problems."""

from pixelwright.editing import operators
from pixelwright.editing.edits import FLOWEDIT, METHODS, edit
from pixelwright.editing.inversion import interpolate, invert, round_trip
from pixelwright.editing.restoration import RESTORATION, restore

__all__ = [
    "FLOWEDIT",
    "METHODS",
    "RESTORATION",
    "edit",
    "interpolate",
    "invert",
    "operators",
    "restore",
    "round_trip",
]
