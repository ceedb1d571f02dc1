"""pixelwright: pixel-space diffusion transformers (DiP and PixelDiT), from training to images."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixelwright import data, diffusion, editing, evaluation, hub, models, text, training
    from pixelwright.acceleration import AcceleratedDenoiser, accelerate
    from pixelwright.diffusion.sample import as_condition, sample
    from pixelwright.editing import edit, interpolate, invert, restore
    from pixelwright.errors import UserError
    from pixelwright.hub.checkpoint import load
    from pixelwright.models.backbones import register_backbone
    from pixelwright.models.conditions import TextCondition
    from pixelwright.models.config import SamplerPreset, SamplerSettings
    from pixelwright.models.denoiser import PixelDenoiser
    from pixelwright.models.detailers import register_detailer
    from pixelwright.models.folder import create, save
    from pixelwright.training import Trainer, load_config, train
    from pixelwright.training.callbacks import Callback
    from pixelwright.training.loggers import Logger, register_logger
    from pixelwright.training.objectives import Objective, register_objective

__version__ = "0.2.0.dev0"

__all__ = ["AcceleratedDenoiser", "Callback", "Logger", "Objective", "PixelDenoiser", "SamplerPreset"]
__all__ += ["SamplerSettings", "TextCondition", "Trainer", "UserError", "accelerate", "as_condition"]
__all__ += ["create", "data", "diffusion", "edit", "editing", "evaluation", "hub", "interpolate", "invert"]
__all__ += ["load", "load_config", "models", "register_backbone", "register_detailer", "register_logger"]
__all__ += ["register_objective", "restore", "sample", "save", "text", "train", "training"]

# Where the public names live; imported when first used, so that `pixelwright --help` need not wait for torch.
_PACKAGES = ("data", "diffusion", "editing", "evaluation", "hub", "models", "text", "training")
_HOMES = {
    "acceleration": "AcceleratedDenoiser accelerate",
    "diffusion.sample": "as_condition sample",
    "editing": "edit interpolate invert restore",
    "errors": "UserError",
    "hub.checkpoint": "load",
    "models.backbones": "register_backbone",
    "models.conditions": "TextCondition",
    "models.config": "SamplerPreset SamplerSettings",
    "models.denoiser": "PixelDenoiser",
    "models.detailers": "register_detailer",
    "models.folder": "create save",
    "training": "Trainer load_config train",
    "training.callbacks": "Callback",
    "training.loggers": "Logger register_logger",
    "training.objectives": "Objective register_objective",
}
_PLACES = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"pixelwright.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'pixelwright' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"pixelwright.{_PLACES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
