"""REPA, representation alignment: the model's tokens after an early block learn to agree with a vision model.

The projector trains with the model and is not part of the denoiser.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelwright.diffusion import flow
from pixelwright.distributed.parallel import Layout
from pixelwright.errors import UserError
from pixelwright.models.conditions import Condition
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.training.config import RepaConfig
from pixelwright.training.teacher import Cache, Teacher, teacher_grid


class Projector(nn.Sequential):
    """Three linear layers with SiLU between them: token [.., D] -> teacher's token [.., teacher_size]."""

    def __init__(self, hidden_size: int, teacher_size: int, projector_size: int | None = None) -> None:
        width = projector_size or hidden_size
        super().__init__(
            nn.Linear(hidden_size, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, teacher_size),
        )


def match_grid(tokens: Tensor, grid: tuple[int, int], teacher_grid: tuple[int, int]) -> Tensor:
    """Bring tokens [B, h·w, C] on `grid` to `teacher_grid`, giving [B, h'·w', C].

    Where the teacher has fewer tokens they are averaged, where it has more they are interpolated bilinearly.
    """
    if grid == teacher_grid:
        return tokens
    planes = tokens.transpose(1, 2).unflatten(2, grid)  # [B, h·w, C] -> [B, C, h, w]
    if teacher_grid[0] * teacher_grid[1] < grid[0] * grid[1]:
        planes = F.adaptive_avg_pool2d(planes, teacher_grid)
    else:
        planes = F.interpolate(planes, teacher_grid, mode="bilinear", align_corners=False)
    return planes.flatten(2).transpose(1, 2)  # [B, C, h', w'] -> [B, h'·w', C]


def alignment_loss(
    tokens: Tensor,
    teacher: Tensor,
    grid: tuple[int, int],
    teacher_grid: tuple[int, int] | None = None,
) -> Tensor:
    """1 − cosine between projected tokens and the teacher's, mean over the tokens of each sample, [B].

    Args:
        tokens: the model's tokens after the aligned block, projected, [B, h·w, C].
        teacher: the teacher's tokens, [B, h'·w', C]; no gradient flows into them.
        grid: (h, w). teacher_grid: (h', w'), by default the same.

    Raises:
        UserError: the numbers of tokens are not those of the grids.
    """
    teacher_grid = teacher_grid or grid
    for name, value, (rows, columns) in (("model", tokens, grid), ("teacher", teacher, teacher_grid)):
        if value.shape[1] != rows * columns:
            raise UserError(
                f"the {name} gives {value.shape[1]} tokens, which is not a grid of {rows}x{columns}"
            )
    matched = match_grid(tokens, grid, teacher_grid)
    cosine = F.cosine_similarity(matched.float(), teacher.detach().float(), dim=-1)  # [B, h'·w']
    return (1 - cosine).mean(dim=1)


def objective(flow_loss: Tensor, alignment: Tensor, weight: float = 0.5) -> Tensor:
    """What both papers minimise the mean of: flow matching + weight · alignment, [B]."""
    return flow_loss + weight * alignment


class Student(nn.Module):
    """A denoiser with the projector of its tokens after block `depth`: one module to share out and call."""

    def __init__(self, model: PixelDenoiser, projector: Projector) -> None:
        super().__init__()
        self.model, self.projector = model, projector

    def forward(self, x: Tensor, t: Tensor, condition: Condition, tap: int) -> tuple[Tensor, Tensor]:
        """The velocity [B,3,H,W], and the projected tokens [B, L, teacher's size]."""
        velocity, tokens = self.model(x, t, condition, tap)
        return velocity, self.projector(tokens)


class Alignment:
    """REPA in a training run: the teacher, the student, and the mean of the alignment loss for the log."""

    def __init__(self, config: RepaConfig, model: PixelDenoiser, seed: int, layout: Layout) -> None:
        self.config, self.layout = config, layout
        self.patch_size = model.config.patch_size
        teacher = Teacher(config.teacher).to(layout.device)
        self.teacher = teacher if config.cache is None else Cache(teacher, config.cache)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            projector = Projector(model.config.backbone.hidden_size, teacher.size, config.projector_size)
        self.student = Student(model, projector.to(layout.device))
        self.sums = torch.zeros(2, device=layout.device)  # alignment loss, steps
        self._seen: list[Tensor] = []

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The groups that belong into a checkpoint, by reference."""
        return {"projector": self.student.projector.state_dict(), "repa": {"sums": self.sums}}

    def ended(self, step: int) -> bool:
        """Whether the steps with alignment are over at `step`, counted from 0."""
        return self.config.until is not None and step >= self.config.until

    def losses(
        self, step: int, student: nn.Module, x: Tensor, t: Tensor, noise: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor]:
        """(flow-matching loss, what is minimised), both [b]. `student`: `self.student`, shared out."""
        losses, projected = flow.loss(student, x, t, noise, condition, tap=self.config.depth)
        if self.ended(step):  # the projector stays in the graph, which DDP wants to be the same at each step
            return losses, losses + 0 * projected.flatten(1).sum(1)
        grid = (x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size)
        tokens = self.teacher(x)
        alignment = alignment_loss(projected, tokens, grid, teacher_grid(x.shape[-2:]))
        self._seen.append(alignment.detach())
        return losses, objective(losses, alignment, self.config.weight)

    def add(self, finite: Tensor) -> None:
        """Count the step, unless it is not finite. All processes call it."""
        if self._seen:
            mean = self.layout.mean(torch.cat(self._seen).mean())
            self.sums += torch.where(finite, torch.stack((mean, torch.ones_like(mean))), 0.0)
            self._seen.clear()

    def read(self) -> dict[str, float]:
        """The mean since the last reading, for a line of the log; nothing once alignment has ended."""
        total, steps = self.sums.tolist()
        self.sums.zero_()
        return {"repa_loss": total / steps} if steps else {}
