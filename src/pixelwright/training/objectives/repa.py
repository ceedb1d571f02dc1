"""REPA, representation alignment: the model's tokens after an early block learn to agree with a vision model.

The projector trains with the model and is not part of the denoiser.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, device, nn

from pixelwright.config import PositiveFloat, PositiveInt, Text
from pixelwright.errors import UserError
from pixelwright.models.config import DenoiserConfig
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.training.objectives.base import Forward, Logs, Objective, ObjectiveConfig, register_objective
from pixelwright.training.objectives.teacher import STRIDE, Cache, Teacher, check_stride, teacher_grid


@dataclass(frozen=True, kw_only=True)
class RepaConfig(ObjectiveConfig, where="repa"):
    """REPA: the tokens after an early block learn to agree with those of a vision model."""

    weight: PositiveFloat = 0.5
    """Its factor in the sum that is minimised."""
    teacher: Text
    """DINOv2 in the format of transformers: a folder, or a hub name such as facebook/dinov2-base."""
    stride: PositiveInt = STRIDE
    """Pixels of the image for each token of the teacher; both papers show it 256² as 224², 14 for 16."""
    depth: PositiveInt = 8
    """The block whose tokens are aligned, counted from 1."""
    until: PositiveInt | None = None
    """The step at which alignment ends; None: it stays to the end of the run."""
    projector_size: PositiveInt | None = None
    """Width of the projector between tokens and teacher; None: the width of the tokens."""
    cache: str | None = None
    """Folder in which the teacher's tokens are kept, float16, one file an image (and flip); None: none."""

    FREE = ("cache",)  # what may differ when a run is continued

    def check(self, model: DenoiserConfig, size: tuple[int, int]) -> None:
        if self.depth > (blocks := model.backbone.depth):
            raise UserError(f"repa.depth is {self.depth}, but the model has {blocks} global blocks")
        check_stride(size, "repa", self.stride)


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
    """Bring tokens [B, h·w, C] on `grid` to `teacher_grid`, giving [B, h'·w', C]. Where the teacher has fewer
    tokens they are averaged, where it has more they are interpolated bilinearly."""
    if grid == teacher_grid:
        return tokens
    planes = tokens.transpose(1, 2).unflatten(2, grid)  # [B, h·w, C] -> [B, C, h, w]
    if teacher_grid[0] * teacher_grid[1] < grid[0] * grid[1]:
        planes = F.adaptive_avg_pool2d(planes, teacher_grid)
    else:
        planes = F.interpolate(planes, teacher_grid, mode="bilinear", align_corners=False)
    return planes.flatten(2).transpose(1, 2)  # [B, C, h', w'] -> [B, h'·w', C]


def alignment_loss(
    tokens: Tensor, teacher: Tensor, grid: tuple[int, int], teacher_grid: tuple[int, int] | None = None
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
        if (count := value.shape[1]) != rows * columns:
            raise UserError(f"the {name} gives {count} tokens, which is not a grid of {rows}x{columns}")
    matched = match_grid(tokens, grid, teacher_grid)
    cosine = F.cosine_similarity(matched.float(), teacher.detach().float(), dim=-1)  # [B, h'·w']
    return (1 - cosine).mean(dim=1)


class _Tokens(Protocol):
    """What gives the teacher's tokens [b, h'·w', size] of images [b,3,H,W]."""

    @property
    def size(self) -> int: ...

    def __call__(self, images: Tensor) -> Tensor: ...


@register_objective("repa", RepaConfig)
class Repa(Objective):
    """1 − cosine between projected tokens and the teacher's; both papers train with weight 0.5."""

    logged = ("repa_loss",)

    def __init__(self, config: RepaConfig, model: PixelDenoiser, teacher: _Tokens | None = None) -> None:
        """`teacher` replaces the one that the config names."""
        super().__init__()
        self.config, self.weight, self.taps = config, config.weight, (config.depth,)
        self.patch_size = model.config.patch_size
        self.cache: Cache | None = None
        if teacher is None:
            teacher = own = Teacher(config.teacher, stride=config.stride)
            self.cache = None if config.cache is None else Cache(own, config.cache)
        self.projector = Projector(model.config.backbone.hidden_size, teacher.size, config.projector_size)
        # In a function, so that it is no sub-module: it is neither trained nor sharded nor saved.
        self.teach: Callable[[Tensor], Tensor] = lambda images: teacher(images)

    def targets(self, images: Tensor, flipped: Tensor, number: int, device: device) -> dict[str, Tensor]:
        """The teacher's tokens, where they are kept on the disk."""
        if self.cache is None or self._ended(number):
            return {}
        return {"repa": self.cache(images, flipped, device)}

    def _ended(self, step: int) -> bool:
        return self.config.until is not None and step >= self.config.until

    def forward(self, model: PixelDenoiser, batch: Forward) -> tuple[Tensor, Logs]:
        projected = self.projector(batch.tokens[self.config.depth])
        if self._ended(batch.step):
            # The projector stays in the graph, which DDP wants to be the same at each step.
            return 0 * projected.flatten(1).sum(1), {}
        rows, columns = batch.x.shape[-2:]
        grid = (rows // self.patch_size, columns // self.patch_size)
        teacher = batch.targets["repa"] if "repa" in batch.targets else self.teach(batch.x)
        loss = alignment_loss(projected, teacher, grid, teacher_grid((rows, columns), self.config.stride))
        return loss, {"repa_loss": loss}
