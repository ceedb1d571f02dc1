"""pixelwright: pixel-space diffusion transformers (DiP and PixelDiT), from training to images."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixelwright import diffusion, hub, models, text
    from pixelwright.diffusion.sample import sample
    from pixelwright.errors import UserError
    from pixelwright.hub.checkpoint import load
    from pixelwright.models.conditions import TextCondition
    from pixelwright.models.denoiser import PixelDenoiser
    from pixelwright.models.folder import create, save

__version__ = "0.1.0"

__all__ = [
    "PixelDenoiser",
    "TextCondition",
    "UserError",
    "create",
    "diffusion",
    "hub",
    "load",
    "models",
    "sample",
    "save",
    "text",
]

# Where the public names live; imported when first used, so that `pixelwright --help` need not wait for torch.
_ROOMS = ("diffusion", "hub", "models", "text")
_HOMES = {
    "PixelDenoiser": "models.denoiser",
    "TextCondition": "models.conditions",
    "UserError": "errors",
    "create": "models.folder",
    "load": "hub.checkpoint",
    "sample": "diffusion.sample",
    "save": "models.folder",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"pixelwright.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'pixelwright' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"pixelwright.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
