"""PixelDiT2 (arXiv 2609.24919): JiT with PixelDiT's blocks, grounded by a frozen DINOv3 of the noisy image.

- The features of the noisy image, one per patch, pass through a small transformer: grounding g [B, L, D].
- Every patch has its own condition c = g + t_emb + y_emb; without grounding c = t_emb + y_emb.
- In-context class tokens as in JiT, modulated by the mean of c over the patches.
- Its output layer is the detailer `linear` with `channels_last`, its loss that of `prediction: x`.

A label y + K + 1 is class y without grounding, where K is the null class: the null branch of guidance has
neither (`DenoiserConfig.null_label`).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.config import Decay, PositiveInt, Text
from pixelwright.models.backbones import (
    AfterBlock,
    ClassBackboneConfig,
    check_labels,
    grid_of,
    in_context,
    init_embedders,
    init_time,
    register_backbone,
    run_blocks,
)
from pixelwright.models.conditions import Condition
from pixelwright.models.jit import in_the_middle
from pixelwright.models.layers import (
    ClassEmbedder,
    Context,
    DiTBlock,
    GlobalState,
    Grid,
    TimeEmbedder,
    check_heads,
    patchify,
    rope_2d,
    zero_,
)
from pixelwright.models.vision import DINOv3

SMALL, BASE = (f"facebook/dinov3-vit{size}16-pretrain-lvd1689m" for size in "sb")


@dataclass(frozen=True)
class PixelDiT2Config(ClassBackboneConfig):
    """PixelDiT2's global stage."""

    encoder: Text = SMALL
    """DINOv3 in the format of transformers: a folder, or a hub name. No part of the saved weights."""
    encoder_size: PositiveInt = 384
    """Channels of its tokens."""
    grounding_depth: PositiveInt = 1
    """Blocks between its tokens and the grounding."""
    grounding_heads: PositiveInt = 12
    """Attention heads of these blocks."""
    single_silu: bool = False
    """Whether the condition passes through one SiLU (512²), or two (256²)."""
    mlp_size: PositiveInt | None = None
    """Hidden width of the MLP; None: 2/3 of 4 times the width."""
    dropout: Decay = 0.0
    """Of what attention gives and of the hidden channels of the MLP, in the middle half of the blocks."""
    grounded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self, self.hidden_size, self.grounding_heads)


class Grounding(nn.Module):
    """From the encoder's tokens [B, L, C] at time t [B] to g [B, L, D]."""

    def __init__(self, config: PixelDiT2Config) -> None:
        super().__init__()
        size, heads = config.hidden_size, config.grounding_heads
        self.head_size = size // heads
        self.input = nn.Linear(config.encoder_size, size)
        self.time_embedder = TimeEmbedder(size)
        self.blocks = nn.ModuleList(DiTBlock(size, heads) for _ in range(config.grounding_depth))
        self.output = nn.Linear(size, size)

    def forward(self, tokens: Tensor, t: Tensor, grid: Grid) -> Tensor:
        x, condition = self.input(tokens), F.silu(self.time_embedder(t))[:, None]  # [B, L, D], [B, 1, D]
        rope = rope_2d(grid, self.head_size, x.device)
        for block in self.blocks:
            x = block(x, condition, rope)
        return self.output(x)


@register_backbone("pixeldit2", PixelDiT2Config)
class PixelDiT2(nn.Module):
    """PixelDiT2's backbone; used as `PatchDiT` is."""

    def __init__(self, config: PixelDiT2Config) -> None:
        super().__init__()
        size = config.hidden_size
        self.config, self.head_size = config, size // config.num_heads
        self.encoder = DINOv3(config.encoder, config.encoder_size, "encoder")  # no part of the weights
        self.patch_embedder = nn.Linear(3 * config.patch_size**2, size)
        self.time_embedder = TimeEmbedder(size)
        self.class_embedder = ClassEmbedder(config.num_classes, size)
        self.grounding = Grounding(config)
        self.blocks = nn.ModuleList(_block(config, number) for number in range(config.depth))
        self.in_context = in_context(config)
        self.init_weights()

    def init_weights(self) -> None:
        """As `PatchDiT.init_weights`, for the grounding's blocks and times too."""
        init_embedders(self.patch_embedder, self.time_embedder)
        init_time(self.grounding.time_embedder)
        nn.init.normal_(self.class_embedder.table.weight, std=0.02)
        zero_(*(block.adaLN for block in (*self.blocks, *self.grounding.blocks)))

    def embed(self, x: Tensor, t: Tensor, labels: Condition) -> GlobalState:
        """The state before the first block; arguments as in `forward`."""
        labels, rows = check_labels(labels), self.config.num_classes + 1
        grid = grid_of(x, self.config.patch_size)
        tokens = self.patch_embedder(patchify(x, self.config.patch_size))  # [B, L, D]
        time = self.time_embedder(t)[:, None]  # [B, 1, D]
        y = self.class_embedder(labels % rows)[:, None]  # [B, 1, D]
        g = self.grounding(self.encoder(x, grid).to(tokens.dtype), t, grid)  # [B, L, D]
        g = torch.where(labels[:, None, None] < rows, g, torch.zeros_like(g))
        c = g + time + y
        c = c if self.config.single_silu else F.silu(c)
        context = None
        if self.in_context is not None:
            context = Context(self.in_context(y), F.silu(c.mean(1, keepdim=True)))
        return GlobalState(tokens, time, F.silu(c), grid, context)

    def forward(
        self, x: Tensor, t: Tensor, labels: Condition, after_block: AfterBlock | None = None
    ) -> GlobalState:
        """As `PatchDiT.forward`; labels above `num_classes` are without grounding, see above.

        Raises:
            UserError: captions instead of labels, or an encoder that cannot be read.
        """
        state = self.embed(x, t, labels)
        rope = rope_2d(state.grid, self.head_size, x.device)
        return run_blocks(self.blocks, state, rope, self.config.in_context_start, after_block)


def _block(config: PixelDiT2Config, number: int) -> DiTBlock:
    """A block, counted from 0."""
    dropout = config.dropout if in_the_middle(number, config.depth) else 0.0
    return DiTBlock(config.hidden_size, config.num_heads, mlp_size=config.mlp_size, dropout=dropout)
