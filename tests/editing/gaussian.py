"""A model whose velocity is known: data N(mean, spread²·I), classes that are means."""

import torch
from torch import Tensor

from pixelwright.diffusion.solvers import Velocity
from pixelwright.models.conditions import Condition
from pixelwright.models.config import DenoiserConfig
from pixelwright.models.presets import preset


def velocity_of(mean: Tensor, spread: float = 1.0, noise_scale: float = 1.0) -> Velocity:
    """E[x − noise | x_t] of data N(mean, spread²) and noise N(0, noise_scale²), in closed form."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        variance = t**2 * spread**2 + (1 - t) ** 2 * noise_scale**2  # of x_t
        centred = x - t * mean
        x0 = mean + t * spread**2 / variance * centred
        noise = (1 - t) * noise_scale**2 / variance * centred
        return x0 - noise

    return velocity


class GaussianModel:
    """A denoiser of `classes` means [C+1,3,H,W], the last of which is the null class's."""

    def __init__(self, means: Tensor, spread: float = 0.3) -> None:
        self.means, self.spread, self.device = means, spread, torch.device("cpu")
        size = (means.shape[2], means.shape[3])
        self.config: DenoiserConfig = preset("pixeldit-n-4", len(means) - 1, image_size=size)

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        assert isinstance(condition, Tensor)
        return velocity_of(self.means[condition].to(x), self.spread)(x, t[:, None, None, None].to(x))
