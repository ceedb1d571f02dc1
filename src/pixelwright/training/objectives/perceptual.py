"""PixelGen's perceptual losses (arXiv 2602.02493): LPIPS and P-DINO of the denoised image.

    weight · a · (lpips_weight · LPIPS(x̂, x) + dino_weight · PDINO(x̂, x))

The gate leaves out images that are mostly noise. Late in training, a brings the gradients of these losses to
the size of that of flow matching.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwright.config import NonNegativeInt, PositiveFloat, PositiveInt, Text, UnitInterval
from pixelwright.diffusion import flow
from pixelwright.distributed import parallel
from pixelwright.errors import UserError
from pixelwright.hub.checkpoint import open_file
from pixelwright.models.config import DenoiserConfig
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.lpips import LPIPS
from pixelwright.training.objectives.base import Forward, Logs, Objective, ObjectiveConfig, register_objective
from pixelwright.training.objectives.teacher import Teacher, check_stride

PATCH = 16  # of the images that LPIPS sees: those of a model with other patches are resized
KEPT, LARGEST = 0.8, 100.0  # of the factor before, at each change; the largest factor


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig(ObjectiveConfig, where="perceptual"):
    """PixelGen's perceptual losses: LPIPS and P-DINO between the denoised image and the real one."""

    lpips: tuple[Text, ...] | None = None
    """Files with the weights of VGG-16 and of LPIPS, one or two (safetensors, pth); None: without LPIPS."""
    lpips_weight: PositiveFloat = 0.1
    """Factor of LPIPS."""
    teacher: Text | None = None
    """DINOv2 in the format of transformers, a folder or a hub name; None: without P-DINO."""
    dino_weight: PositiveFloat = 0.01
    """Factor of P-DINO, 1 - cosine between the last tokens of the two images."""
    gate: UnitInterval = 0.3
    """LPIPS is the mean over images with t >= gate; P-DINO over all, or 0 where no image has such a t."""
    adapt_from: NonNegativeInt | None = None
    """Step from which the losses are brought to the gradient of flow matching; PixelGen: 400000. None: never.
    Not with parallel.mode fsdp."""
    adapt_every: PositiveInt = 50
    """Steps between two changes of that factor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lpips and self.teacher is None:
            raise UserError("perceptual: give the files of lpips, the teacher of P-DINO, or both")
        for part, network in (("lpips_weight", self.lpips), ("dino_weight", self.teacher)):
            if not network:
                self.unused(part, why="but its network is not given")
        if self.adapt_from is None:
            self.unused("adapt_every", why="but adapt_from is not given: give it too")

    def check(self, model: DenoiserConfig, size: tuple[int, int]) -> None:
        if self.teacher is not None:
            check_stride(size, "perceptual.teacher")


def read_lpips(files: tuple[str, ...]) -> LPIPS:
    """LPIPS from files of weights; see `LPIPS`. Raises UserError: naming the files."""
    tensors: dict[str, Tensor] = {}
    for name in files:
        file = open_file(Path(name).expanduser())
        tensors |= {key: file.read(key).clone() for key in file.specs}
    try:
        return LPIPS(tensors)
    except UserError as error:
        raise UserError(f"perceptual.lpips {', '.join(files)}: {error}") from None


@register_objective("perceptual", PerceptualConfig)
class Perceptual(Objective):
    """Perceptual losses of the denoised image; PixelGen trains with them beside flow matching and REPA."""

    logged = ("lpips_loss", "dino_loss", "perceptual_factor")
    factor: Tensor

    def __init__(
        self,
        config: PerceptualConfig,
        model: PixelDenoiser,
        lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
        encoder: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """`lpips` (two images -> [b]) and `encoder` (images -> tokens [b, L, C], with gradients) replace the
        networks that the config names."""
        super().__init__()
        self.config, self.weight = config, config.weight
        if config.lpips and lpips is None:
            network = read_lpips(config.lpips)
            lpips = lambda one, other: network.to(one.device)(one, other)  # noqa: E731
        if config.teacher is not None and encoder is None:
            encoder = Teacher(config.teacher, "perceptual.teacher").tokens
        # Functions are no sub-modules: they are neither trained nor sharded nor saved.
        self.lpips, self.encoder = lpips, encoder
        if config.adapt_from is not None and not hasattr(model.detailer, "out"):
            kind = type(model.detailer).__name__
            raise UserError(f"perceptual.adapt_from: the detailer {kind} has no output layer `out`")
        self.register_buffer("factor", torch.ones(()))  # a, in checkpoints
        self.next_factor: Tensor | None = None

    def forward(self, model: PixelDenoiser, batch: Forward) -> tuple[Tensor, Logs]:
        denoised = model.denoised(batch.velocity, batch.x_t, batch.t)
        kept = (batch.t >= self.config.gate).float()  # [b]
        share = parallel.mean(kept.mean())  # of the images, in all processes
        loss, logs = torch.zeros_like(kept), {}
        if self.lpips is not None:
            pair = (_resized(image, model.config.patch_size) for image in (denoised, batch.x))
            found = kept / share.clamp(min=1e-9) * self.lpips(*pair)
            loss, logs["lpips_loss"] = loss + self.config.lpips_weight * found, found
        if self.encoder is not None:
            # As in the public code, the gate does not choose among images here.
            found = self._dino(self.encoder, denoised, batch) * (share > 0)
            loss, logs["dino_loss"] = loss + self.config.dino_weight * found, found
        self._adapt(model, batch, loss)
        factor = (self.factor if self.next_factor is None else self.next_factor).clone()
        return factor * loss, {**logs, "perceptual_factor": factor.expand_as(loss)}

    @staticmethod
    def _dino(encoder: Callable[[Tensor], Tensor], denoised: Tensor, batch: Forward) -> Tensor:
        """1 − cosine between the tokens of both images, mean over the tokens, [b]."""
        with torch.no_grad():
            expected = encoder(batch.x).float()
        return (1 - F.cosine_similarity(encoder(denoised).float(), expected, dim=-1)).mean(1)

    def _adapt(self, model: PixelDenoiser, batch: Forward, loss: Tensor) -> None:
        """Find the factor for this step and those that follow, from the first of its micro-batches."""
        first, step = self.config.adapt_from, batch.step
        if first is None or self.next_factor is not None or not loss.requires_grad:
            return
        if hasattr(next(model.backbone.blocks.parameters()), "to_local"):
            raise UserError("perceptual.adapt_from goes with one process or parallel.mode ddp, not with fsdp")
        if step < first or step % self.config.adapt_every:
            return
        weight = model.detailer.out.weight
        target = model.velocity_target(batch.x, batch.noise, batch.x_t, batch.t)
        matching = flow.velocity_loss(batch.velocity, target)
        norms = [_gradient_norm(each.mean(), weight) for each in (matching, loss)]
        ratio = (norms[0] / (norms[1] + 1e-4)).clamp(0, LARGEST)
        self.next_factor = KEPT * self.factor + (1 - KEPT) * ratio

    def update(self) -> None:
        if self.next_factor is not None:
            self.factor.copy_(self.next_factor)
            self.next_factor = None


def _gradient_norm(loss: Tensor, weight: Tensor) -> Tensor:
    """The norm [] of the gradient of a loss, its mean over the processes."""
    (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
    return parallel.mean(gradient).norm()


def _resized(images: Tensor, patch_size: int) -> Tensor:
    """Images [b,3,H,W] so that the model's patches have 16 pixels on each side."""
    if patch_size == PATCH:
        return images
    size = [side * PATCH // patch_size for side in images.shape[-2:]]
    return F.interpolate(images, size, mode="bilinear", antialias=True)
