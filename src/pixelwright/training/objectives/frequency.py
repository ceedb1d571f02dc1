"""DeCo's frequency-aware loss (arXiv 2511.19365): errors of the velocity, weighted as JPEG would.

    velocity -> YCbCr -> 8x8 blocks -> DCT -> mean of weight · difference²

The weights are those of JPEG's quantisation tables: fine steps, which belong to what eyes see well, weigh
most.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwright.config import PositiveFloat, whole
from pixelwright.errors import UserError
from pixelwright.models.config import DenoiserConfig
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.training.objectives.base import Forward, Logs, Objective, ObjectiveConfig, register_objective

Mode = Literal["inv_gamma", "inv"]
BLOCK = 8  # pixels on the side of a block
# JPEG's quantisation tables (ITU T.81, Annex K), and the four rows in which that of colours is not 99.
LUMINANCE = (
    *((16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55)),
    *((14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62)),
    *((18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92)),
    *((49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99)),
)
CHROMINANCE = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))
# R, G, B -> Y, Cb, Cr, without offsets.
YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


@dataclass(frozen=True)
class FrequencyConfig(ObjectiveConfig, where="frequency"):
    """DeCo's frequency-aware loss: errors of the velocity weighted by frequency and colour, as JPEG does."""

    quality: Annotated[int, whole(1, 100)] = 85
    """Of the JPEG whose quantisation tables give the weights; 100 weighs all frequencies alike."""
    mode: Mode = "inv_gamma"
    """Weights: inv_gamma, (mean of the table / table)^gamma; inv, 1 / table. Either has the mean 1."""
    gamma: PositiveFloat = 1.0
    """inv_gamma only: above 1 stresses what weighs most, below 1 evens out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "inv":
            self.unused("gamma", why="which mode inv has no use for: give mode inv_gamma")

    def check(self, model: DenoiserConfig, size: tuple[int, int]) -> None:
        if any(-side % BLOCK >= side for side in size):  # a side is reflected once at most
            shape = f"{size[0]}x{size[1]}"
            raise UserError(f"images are {shape}: with frequency both sides need at least {BLOCK // 2 + 1}")


def frequency_weights(quality: int = 85, mode: Mode = "inv_gamma", gamma: float = 1.0) -> Tensor:
    """The weights of the frequencies of Y, Cb and Cr, float32 [3,8,8], of mean 1; see `FrequencyConfig`."""
    colours = torch.full((BLOCK, BLOCK), 99.0)
    colours[:4, :4] = torch.tensor(CHROMINANCE)
    base = torch.stack((torch.tensor(LUMINANCE).float(), colours, colours))
    scale = 200 - 2 * quality if quality >= 50 else 5000 / quality
    table = ((base * scale + 50) / 100).floor().clamp(1, 255)
    mean = table.mean((1, 2), keepdim=True)
    weights = 1 / table if mode == "inv" else (mean / table) ** gamma
    return weights / weights.mean((1, 2), keepdim=True)


def dct_matrix() -> Tensor:
    """The orthonormal DCT-II of 8 values, float32 [8,8]: row k holds the cosine of frequency k."""
    k, n = torch.arange(BLOCK, dtype=torch.float64)[:, None], torch.arange(BLOCK, dtype=torch.float64)
    waves = torch.cos(torch.pi * (2 * n + 1) * k / (2 * BLOCK)) * (2 / BLOCK) ** 0.5
    waves[0] /= 2**0.5
    return waves.float()


def spectrum(planes: Tensor, dct: Tensor) -> Tensor:
    """DCT of the 8x8 blocks of planes [B,C,H,W] -> [B, C, rows, columns, 8, 8]. Sides that are no multiple of
    8 are padded by reflection at the right and at the bottom."""
    height, width = planes.shape[-2:]
    if height % BLOCK or width % BLOCK:
        planes = F.pad(planes, (0, -width % BLOCK, 0, -height % BLOCK), mode="reflect")
    blocks = planes.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).transpose(3, 4)
    return dct @ blocks @ dct.T


@register_objective("frequency", FrequencyConfig)
class FrequencyLoss(Objective):
    """The mean of weight · (difference of the spectra)² over colours, blocks and frequencies; DeCo trains
    with weight 1 beside flow matching."""

    logged = ("frequency_loss",)
    dct: Tensor
    ycbcr: Tensor
    weights: Tensor

    def __init__(self, config: FrequencyConfig, model: PixelDenoiser | None = None) -> None:
        super().__init__()
        self.weight = config.weight
        tables = {"dct": dct_matrix(), "ycbcr": torch.tensor(YCBCR)}
        tables["weights"] = frequency_weights(config.quality, config.mode, config.gamma)[:, None, None]
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, model: PixelDenoiser, batch: Forward) -> tuple[Tensor, Logs]:
        target = model.velocity_target(batch.x, batch.noise, batch.x_t, batch.t)
        device = target.device.type
        known = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if known else nullcontext():  # in full float32
            loss = self.compare(batch.velocity.float(), target.float())
        return loss, {"frequency_loss": loss}

    def compare(self, velocity: Tensor, target: Tensor) -> Tensor:
        """The loss of each image [B] of two velocities [B,3,H,W] in float32. All before the square is linear,
        so the difference alone is transformed."""
        planes = torch.einsum("pc,bchw->bphw", self.ycbcr, velocity - target)
        return (self.weights * spectrum(planes, self.dct).square()).flatten(1).mean(1)
