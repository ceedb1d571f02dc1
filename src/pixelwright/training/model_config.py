"""Which model a run trains."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from pixelwright.config import Config, PositiveFloat, PositiveInt, Text
from pixelwright.errors import UserError
from pixelwright.hub.checkpoint import is_model, load_config
from pixelwright.models.config import DenoiserConfig, Placement
from pixelwright.models.detailers import DETAILERS
from pixelwright.models.prediction import Prediction
from pixelwright.models.presets import PRESETS, preset, varied


@dataclass(frozen=True)
class ModelConfig(Config, where="model"):
    """Which model: a preset, and what to change in it. None keeps the value of the preset."""

    preset: Text
    """Name of a preset, such as dip-ti-4 or pixeldit-xl-16 (`pixelwright info` lists them), or a model folder
    or published file that is built alike."""
    placement: Placement | None = None
    """Where the detailer stands: after the last block, between the blocks, or both."""
    prediction: Prediction | None = None
    """What the network predicts: velocity, the image (x), the noise, or asymmetric, which needs a rank."""
    rank: PositiveInt | None = None
    """asymmetric only: dimensions of the subspace that keeps noise, found in the first training images."""
    t_eps: PositiveFloat | None = None
    """Least denominator of the velocity where the image or the noise is predicted."""
    noise_scale: PositiveFloat | None = None
    """Standard deviation of the noise, in training and sampling."""
    depth: PositiveInt | None = None
    """Number of transformer blocks of the global stage."""
    hidden_size: PositiveInt | None = None
    """Width of the tokens of the global stage."""
    num_heads: PositiveInt | None = None
    """Attention heads of the global stage; hidden_size must be divisible by it."""
    patch_size: PositiveInt | None = None
    """Pixels on the side of a patch; the image size must be divisible by it."""
    backbone: Mapping[str, Any] | None = None
    """Further fields of the backbone: {in_context_length: 32, in_context_start: 4, dropout: 0.1}."""
    detailer: Annotated[Any, DETAILERS] | None = None
    """Another detailer: {type: unet, channels: [64, 128]}, or one of your own (see imports)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self.denoiser()
        except UserError as error:
            raise UserError(f"model: {error}") from None

    def denoiser(self, num_classes: int | None = None, **more: Any) -> DenoiserConfig:
        """The config of the denoiser: the preset with what is changed here and with `more`. A model of
        captions takes no `num_classes`; one of classes has those of a model folder, or 1000, where none are
        given."""
        names = [f.name for f in fields(self) if f.name not in ("preset", "backbone")]
        changed = {name: value for name in names if (value := getattr(self, name)) is not None}
        if twice := changed.keys() & (inner := self.backbone or {}).keys():
            raise UserError(f"backbone.{min(twice)} is given beside {min(twice)}: leave one out")
        changed |= {**inner, **more}
        if self.preset not in PRESETS and (Path(self.preset).exists() or is_model(self.preset)):
            return varied(load_config(self.preset), num_classes, **changed)
        return preset(self.preset, num_classes=num_classes, **changed)
