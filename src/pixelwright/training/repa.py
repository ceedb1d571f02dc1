"""REPA, representation alignment: the model's tokens after an early block learn to agree with a vision model.

The teacher's tokens are given. The projector trains with the model and is not part of the denoiser.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelwright.errors import UserError


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
    projector: nn.Module,
    tokens: Tensor,
    teacher: Tensor,
    grid: tuple[int, int],
    teacher_grid: tuple[int, int] | None = None,
) -> Tensor:
    """1 − cosine between projected tokens and the teacher's, mean over the tokens of each sample, [B].

    Args:
        tokens: the model's tokens after the aligned block, [B, h·w, D].
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
    projected = match_grid(projector(tokens), grid, teacher_grid)
    cosine = F.cosine_similarity(projected.float(), teacher.detach().float(), dim=-1)  # [B, h'·w']
    return (1 - cosine).mean(dim=1)


def total_loss(flow_loss: Tensor, alignment: Tensor, weight: float = 0.5) -> Tensor:
    """Both papers' training loss: flow matching + weight · alignment, mean over the batch, []."""
    return torch.mean(flow_loss + weight * alignment)
