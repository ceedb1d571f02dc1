"""What a run measures of itself. Nothing here changes a weight.

All numbers stay in tensors of fixed sizes on the device, which no step waits for, and are part of a
checkpoint: the log of a continued run holds what that of an uninterrupted one does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.models.backbones import GlobalState
from pixelwright.training import parallel
from pixelwright.training.config import HealthConfig

BUCKETS = 10  # of t in [0,1]
NOT_MEASURED = -1.0


def by_time(losses: Tensor, t: Tensor) -> Tensor:
    """Sum and number of the losses in each tenth of t. losses [b], t [b] -> [2, BUCKETS]."""
    bucket = (t * BUCKETS).long().clamp(max=BUCKETS - 1)  # t = 1 belongs to the last one
    rows = torch.stack((losses, torch.ones_like(losses)), dim=1)  # [b, 2]
    return (rows[:, :, None] * F.one_hot(bucket, BUCKETS)[:, None]).sum(0)  # [b, 2, BUCKETS] -> [2, BUCKETS]


class Health:
    """Loss by time; and every `measure_every` steps, of each stage of the model (its children: backbone,
    detailer ...), the RMS of what its last block puts out and the size of its update.

    In many processes each has the numbers of the whole batch and of all weights; all must call it alike.
    """

    def __init__(self, config: HealthConfig, model: nn.Module, layout: parallel.Layout) -> None:
        self.config, self.layout = config, layout
        self.stages = dict(model.named_children())
        self.by_time = torch.zeros(2, BUCKETS, device=layout.device)
        self.measured = torch.full((2, len(self.stages)), NOT_MEASURED, device=layout.device)

    def tensors(self) -> dict[str, Tensor]:
        """What belongs into a checkpoint, by reference."""
        return {"by_time": self.by_time, "measured": self.measured}

    def add(self, totals: Tensor, finite: Tensor) -> None:
        """Count the losses of a step, `by_time` [2, BUCKETS], unless it is not finite."""
        self.by_time += torch.where(finite, totals, 0.0)

    def read(self) -> dict[str, Any]:
        """What was measured since the last reading, as entries of a log line; None where there is nothing."""
        if not self.config.measure_every:
            return {}
        sums, counts = self.by_time.tolist()
        line: dict[str, Any] = {
            "loss_by_time": [s / n if n else None for s, n in zip(sums, counts, strict=True)]
        }
        for name, row in zip(("activation_rms", "update_ratio"), self.measured.tolist(), strict=True):
            if any(value != NOT_MEASURED for value in row):
                found = (value if math.isfinite(value) else None for value in row)
                line[name] = dict(zip(self.stages, found, strict=True))
        self.by_time.zero_()
        self.measured.fill_(NOT_MEASURED)
        return line

    def _due(self, step: int) -> bool:
        return self.config.measure_every > 0 and step % self.config.measure_every == 0

    @contextmanager
    def activations(self, step: int) -> Iterator[None]:
        """Around forward and backward of `step`, counted from 1: measure the root mean square of outputs."""
        if not self._due(step):
            yield
            return
        squares: dict[str, list[Tensor]] = {name: [] for name in self.stages}
        hooks = [
            last_block(stage).register_forward_hook(
                lambda module, inputs, output, found=squares[name]: found.append(mean_square(output))
            )
            for name, stage in self.stages.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        means = torch.stack([torch.stack(found).mean() for found in squares.values()])  # over micro-batches
        self.measured[0] = self.layout.mean(means).sqrt()

    @contextmanager
    def updates(self, step: int) -> Iterator[None]:
        """Around the optimiser's `step`, counted from 1: measure ‖change of the weights‖ / ‖weights‖.

        It copies the weights, at a time when no activations are held.
        """
        if not self._due(step):
            yield
            return
        before = [[p.detach().clone() for p in stage.parameters()] for stage in self.stages.values()]
        yield
        for column, (stage, old) in enumerate(zip(self.stages.values(), before, strict=True)):
            change = [p.detach() - q for p, q in zip(stage.parameters(), old, strict=True)]
            self.measured[1, column] = parallel.norm(change) / parallel.norm(old)


def last_block(stage: nn.Module) -> nn.Module:
    """The last block of a stage, or the stage where it has none."""
    blocks = getattr(stage, "blocks", None)
    return blocks[-1] if isinstance(blocks, nn.ModuleList) else stage


def mean_square(output: Tensor | GlobalState) -> Tensor:
    """Mean of the squares of what a module puts out, in float32, []; of a backbone's block, of its tokens."""
    tokens = output.tokens if isinstance(output, GlobalState) else output
    return tokens.detach().float().square().mean()
