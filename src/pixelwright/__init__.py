"""pixelwright: pixel-space diffusion transformers (DiP and PixelDiT), from training to images."""

from pixelwright import flow, hub, models, sampling
from pixelwright.errors import UserError
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.folder import create, load, save
from pixelwright.sampling import sample

__version__ = "0.1.0"

__all__ = ["PixelDenoiser", "UserError", "create", "flow", "hub", "load", "models", "sample", "sampling", "save"]
