"""Local stage: from the noisy pixels of a patch and the patch's token to that patch's prediction."""

from pixelwright.models.detailers.base import DETAILERS, register_detailer
from pixelwright.models.detailers.linear import Linear, LinearConfig
from pixelwright.models.detailers.pit import PiT, PiTConfig
from pixelwright.models.detailers.unet import UNet, UNetConfig

__all__ = [
    "DETAILERS",
    "Linear",
    "LinearConfig",
    "PiT",
    "PiTConfig",
    "UNet",
    "UNetConfig",
    "register_detailer",
]
