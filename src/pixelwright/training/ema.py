"""The averaged weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pixelwright.training.parallel import local


class EMA:
    """An exponential moving average of a model's weights, kept in `EMA.weights` under the names of the model.

    Sharded weights have sharded averages. The decay warms up, min(decay, (1 + n) / (10 + n)) at step n, so
    that the first random weights are soon forgotten. It is a function of the step alone, so nothing but the
    weights has to be saved.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        current = model.state_dict()  # by reference
        self.weights: dict[str, Tensor] = {name: tensor.clone() for name, tensor in current.items()}
        self._average = [local(tensor) for tensor in self.weights.values()]
        self._current = [local(tensor) for tensor in current.values()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the model after optimiser step `step` (counted from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, self._current, 1 - decay)
