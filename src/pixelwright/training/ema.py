"""The averaged weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from pixelwright.models.denoiser import PixelDenoiser


class EMA:
    """An exponential moving average of a model's weights, kept in `EMA.model` (eval mode, without gradients).

    The decay warms up, min(decay, (1 + n) / (10 + n)) at step n, so that the first random weights are soon
    forgotten. It is a function of the step alone, so nothing but the weights has to be saved.
    """

    def __init__(self, model: PixelDenoiser, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._average: list[Tensor] = list(self.model.parameters())
        self._current: list[Tensor] = list(model.parameters())
        self._buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the model after optimiser step `step` (counted from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, self._current, 1 - decay)
        for average, current in self._buffers:
            average.copy_(current)
