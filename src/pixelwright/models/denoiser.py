"""The one denoiser of both papers: a global stage over patches, then a local stage inside each patch.

DiP-XL/16      = PatchDiT + UNet      (Patch Detailer Head, convolutional)
PixelDiT-XL/16 = PatchDiT + PiT       (pixel-level transformer blocks)
PixelDiT-T2I   = MMDiT    + PiT       (captions instead of classes)
DiP-T2I        = MMDiT    + UNet
DiT-XL/16      = PatchDiT + Linear    (the baseline without a local stage)
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor, nn

from pixelwright.errors import UserError
from pixelwright.models.backbones import GlobalState, PatchDiT
from pixelwright.models.conditions import Condition
from pixelwright.models.config import DenoiserConfig, LinearConfig, MMDiTConfig
from pixelwright.models.detailers import build_detailer
from pixelwright.models.layers import patchify
from pixelwright.models.mmdit import MMDiT
from pixelwright.models.prediction import to_velocity


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
        backbone, patch_size = config.backbone, config.patch_size
        hidden_size = backbone.hidden_size
        self.backbone = MMDiT(backbone) if isinstance(backbone, MMDiTConfig) else PatchDiT(backbone)
        last = LinearConfig() if config.placement == "intermediate" else config.detailer
        self.detailer = build_detailer(last, hidden_size, patch_size)
        self.middle: nn.Module | None = None
        if config.placement != "post-hoc":
            self.middle = build_detailer(config.detailer, hidden_size, patch_size)
            self.middle_to_tokens = nn.Linear(3 * patch_size**2, hidden_size)

    @overload
    def forward(self, x: Tensor, t: Tensor, condition: Condition, tap: None = None) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, t: Tensor, condition: Condition, tap: int) -> tuple[Tensor, Tensor]: ...
    def forward(
        self, x: Tensor, t: Tensor, condition: Condition, tap: int | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Predict the velocity dx/dt of noisy images.

        Args:
            x: noisy images [B,3,H,W]; data lies in [-1,1]. H and W are multiples of the patch size.
            t: times [B] in [0,1], 0 = noise, 1 = data.
            condition: classes [B], 0 … num_classes, where `num_classes` is the null class; or a
                `TextCondition` of B captions.
            tap: also return the tokens [B, L, D] after this global block, counted from 1 (REPA's hook).

        Returns:
            velocity [B,3,H,W] in the dtype of x, whatever the model predicts; with `tap`, (velocity, tokens).

        Raises:
            UserError: x is not [B,3,H,W] or does not cut into patches; `tap` is not a block; a condition
                of the other kind.
        """
        self._check(x, tap)
        state, tapped = self.global_stage(x, t, condition, tap)
        velocity = self.local_stage(x, t, state)
        return velocity if tapped is None else (velocity, tapped)

    def embed(self, x: Tensor, t: Tensor, condition: Condition) -> GlobalState:
        """The state before the first block."""
        return self.backbone.embed(self._pixels(x), t, condition)

    def global_stage(
        self, x: Tensor, t: Tensor, condition: Condition, tap: int | None = None
    ) -> tuple[GlobalState, Tensor | None]:
        """The state after the last block, and the tokens after block `tap`; see `forward`."""
        tapped = None
        pixels = self._pixels(x)
        state = self.embed(x, t, condition)
        for number, block in enumerate(self.backbone.blocks, start=1):
            state = block(state)
            if self.middle is not None and number == len(self.backbone.blocks) // 2:
                patches = patchify(self.middle(pixels, state), self.config.patch_size)
                state = state._replace(tokens=state.tokens + self.middle_to_tokens(patches))
            if number == tap:
                tapped = state.tokens
        return state, tapped

    def local_stage(self, x: Tensor, t: Tensor, state: GlobalState) -> Tensor:
        """The velocity [B,3,H,W] from the state after the last block."""
        output = self.detailer(self._pixels(x), state).to(x.dtype)
        return to_velocity(output, x, t, self.config.prediction)

    def units(self) -> list[nn.Module]:
        """What is compiled, recomputed and sharded as one: blocks, and detailers that have none."""
        stages = [stage for stage in (self.backbone, self.middle, self.detailer) if stage is not None]
        return [unit for stage in stages for unit in getattr(stage, "blocks", [stage])]

    def _pixels(self, x: Tensor) -> Tensor:
        return x.to(self.backbone.patch_embedder.weight.dtype)

    def _check(self, x: Tensor, tap: int | None) -> None:
        if x.ndim != 4 or x.shape[1] != 3:
            raise UserError(f"x has the shape {list(x.shape)}; expected [batch, 3, height, width]")
        self.config.check_size(int(x.shape[2]), int(x.shape[3]))
        if tap is not None and not 1 <= tap <= len(self.backbone.blocks):
            raise UserError(f"tap is {tap}; the backbone has blocks 1 to {len(self.backbone.blocks)}")


def device_of(model: PixelDenoiser) -> torch.device:
    """Where the weights of a model are."""
    return model.backbone.patch_embedder.weight.device
