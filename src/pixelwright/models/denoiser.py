"""The denoiser: global stage × local stage, both papers on one page.

- Pixel space throughout: no VAE. Images in [-1,1], t = 0 noise, t = 1 data, x_t = t·x + (1−t)·ε.
- Global stage (`backbones`, `mmdit`, `text_dit`): one token per P×P patch, N blocks of width D; RMSNorm,
  adaLN-Zero, rotary attention with RMSNorm on q and k, SwiGLU. Conditioned on time and class, or on text.
- It hands each patch its token s_cond = SiLU(s_N + t_emb).
- Local stage (`detailers`): from a patch's noisy pixels and its token to the prediction of those pixels.
  U-Net = DiP, PiT = PixelDiT, Linear = the DiT-only baseline; others are a file each.
- The output is a velocity v = x − ε, whatever the network predicts (`prediction`).
"""

from typing import overload

import torch
from torch import Tensor, nn

from pixelwright.errors import UserError
from pixelwright.models.backbones import BACKBONES
from pixelwright.models.conditions import Condition
from pixelwright.models.config import DenoiserConfig
from pixelwright.models.detailers import DETAILERS
from pixelwright.models.detailers.linear import LinearConfig
from pixelwright.models.layers import GlobalState, patchify, unpatchify
from pixelwright.models.prediction import Project, column, to_velocity, velocity_target


class PixelDenoiser(nn.Module):
    """Backbone × detailer: predicts the velocity of noisy images, [B,3,H,W] -> [B,3,H,W].

    Placement of the detailer (DiP section 3.4):
    - `post-hoc`: after the last block, and its output is the prediction (both papers' models);
    - `intermediate`: after block N//2; its output, cut into patches and projected by a linear layer, is added
      to the tokens, and the DiT-only output layer makes the prediction;
    - `hybrid`: one detailer in each of the two places.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        hidden_size, patch_size = config.backbone.hidden_size, config.patch_size
        self.backbone = BACKBONES.build(config.backbone)
        last = LinearConfig() if config.placement == "intermediate" else config.detailer
        self.detailer = DETAILERS.build(last, hidden_size, patch_size)
        self.middle: nn.Module | None = None
        if config.placement != "post-hoc":
            self.middle = DETAILERS.build(config.detailer, hidden_size, patch_size)
            self.middle_to_tokens = nn.Linear(3 * patch_size**2, hidden_size)
        self.subspace: nn.Parameter | None = None
        if config.rank is not None:  # found before training, see `prediction.principal_patches`
            self.subspace = nn.Parameter(torch.zeros(config.rank, 3 * patch_size**2), requires_grad=False)

    @overload
    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor: ...
    @overload
    def forward(
        self, x: Tensor, t: Tensor, condition: Condition, taps: tuple[int, ...]
    ) -> tuple[Tensor, dict[int, Tensor]]: ...
    def forward(
        self, x: Tensor, t: Tensor, condition: Condition, taps: tuple[int, ...] | None = None
    ) -> Tensor | tuple[Tensor, dict[int, Tensor]]:
        """Predict the velocity dx/dt of noisy images.

        Args:
            x: noisy images [B,3,H,W]; data lies in [-1,1]. H and W are multiples of the patch size.
            t: times [B] in [0,1], 0 = noise, 1 = data.
            condition: classes [B], 0 … num_classes, where `num_classes` is the null class; or a
                `TextCondition` of B captions.
            taps: also return the tokens [B, L, D] after these global blocks, counted from 1 (REPA's hook).

        Returns:
            velocity [B,3,H,W] in the dtype of x, whatever the model predicts; with `taps`, (velocity, tokens
            by block).

        Raises:
            UserError: x is not [B,3,H,W] or does not cut into patches; a tap is not a block; a condition
                of the other kind.
        """
        self._check(x, taps or ())
        state, tokens = self.global_stage(x, t, condition, taps or ())
        velocity = self.local_stage(x, t, state)
        return velocity if taps is None else (velocity, tokens)

    def global_stage(
        self, x: Tensor, t: Tensor, condition: Condition, taps: tuple[int, ...] = ()
    ) -> tuple[GlobalState, dict[int, Tensor]]:
        """The state after the last block, and the tokens after the blocks `taps`; see `forward`."""
        tapped: dict[int, Tensor] = {}
        pixels = self._pixels(x)

        def after_block(number: int, state: GlobalState) -> GlobalState:
            if self.middle is not None and number == self.config.backbone.depth // 2:
                patches = patchify(self.middle(pixels, state), self.config.patch_size)
                state = state._replace(tokens=state.tokens + self.middle_to_tokens(patches))
            if number in taps:
                tapped[number] = state.tokens
            return state

        return self.backbone(pixels, t, condition, after_block), tapped

    def local_stage(self, x: Tensor, t: Tensor, state: GlobalState) -> Tensor:
        """The velocity [B,3,H,W] from the state after the last block."""
        output = self.detailer(self._pixels(x), state).to(x.dtype)
        return to_velocity(output, x, t, *self._meaning())

    def velocity_target(self, x: Tensor, noise: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The velocity [B,3,H,W] that training compares with, of images and noise [B,3,H,W] at x_t and t [B];
        see `prediction.velocity_target`."""
        return velocity_target(x, noise, x_t, t, *self._meaning())

    def _meaning(self) -> tuple[str, float, Project | None]:
        """What the output means, as `to_velocity` takes it."""
        return self.config.prediction, self.config.t_eps, None if self.subspace is None else self.project

    def project(self, x: Tensor) -> Tensor:
        """The part of images [B,3,H,W] whose patches are in the subspace (AsymFlow)."""
        assert self.subspace is not None
        basis = self.subspace.to(x.dtype)  # [r, 3·P·P]
        patches = patchify(x, self.config.patch_size) @ basis.T @ basis
        grid = x.shape[-2] // self.config.patch_size, x.shape[-1] // self.config.patch_size
        return unpatchify(patches, grid, self.config.patch_size)

    def denoised(self, velocity: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean image [B,3,H,W] that a velocity at x_t and t [B] means; the output itself of a model that
        predicts x."""
        least = self.config.t_eps if self.config.prediction == "x" else 0.0
        return x_t + column((1 - t).clamp(min=least)) * velocity

    def units(self) -> list[nn.Module]:
        """What is compiled, recomputed and sharded as one: blocks, and detailers that have none."""
        stages = [stage for stage in (self.backbone, self.middle, self.detailer) if stage is not None]
        text = getattr(self.backbone, "text_blocks", [])
        return [*text, *(unit for stage in stages for unit in getattr(stage, "blocks", [stage]))]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.backbone.patch_embedder.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the patch embedding, which pixels are brought to."""
        return self.backbone.patch_embedder.weight.dtype

    def _pixels(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)

    def _check(self, x: Tensor, taps: tuple[int, ...]) -> None:
        if x.ndim != 4 or x.shape[1] != 3:
            raise UserError(f"x has the shape {list(x.shape)}; expected [batch, 3, height, width]")
        self.config.check_size(int(x.shape[2]), int(x.shape[3]))
        for tap in taps:
            if not 1 <= tap <= self.config.backbone.depth:
                raise UserError(f"tap {tap} is not a block; there are 1 to {self.config.backbone.depth}")
