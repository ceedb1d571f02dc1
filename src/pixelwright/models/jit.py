"""JiT, Just image Transformers (arXiv 2511.13720): a plain transformer over patches that predicts the image.

- Patches go through a bottleneck of two linear maps, as convolutions; fixed positions are added.
- Blocks as in `layers.DiTBlock`, with biases; rotary embedding by whole rows and columns.
- In-context class tokens stand in front of the patches from an early block on.
- Dropout in the middle half of the blocks.
- Its output layer is the detailer `linear` with `channels_last`; its loss and its sampling are those of
  `prediction: x` (`prediction.velocity_target`, `SamplerSettings`).
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.config import Decay, PositiveInt
from pixelwright.models.backbones import (
    AfterBlock,
    ClassBackboneConfig,
    check_labels,
    grid_of,
    in_context,
    init_time,
    register_backbone,
    run_blocks,
)
from pixelwright.models.conditions import Condition
from pixelwright.models.layers import (
    ClassEmbedder,
    Context,
    DiTBlock,
    GlobalState,
    TimeEmbedder,
    positions_2d,
    rope_index,
    xavier_,
    zero_,
)


@dataclass(frozen=True)
class JiTConfig(ClassBackboneConfig):
    """JiT's global stage."""

    bottleneck: PositiveInt | None = None
    """Width between the two maps that embed a patch; None: a single one (PixelGen-XL)."""
    mlp_size: PositiveInt | None = None
    """Hidden width of the MLP; None: 2/3 of 4 times the width."""
    dropout: Decay = 0.0
    """Of what attention gives and of the hidden channels of the MLP, in the middle half of the blocks."""
    attention_dropout: Decay = 0.0
    """Of the attention weights, in the middle half of the blocks."""


def in_the_middle(block: int, depth: int) -> bool:
    """Whether a block, counted from 0, is one of those with dropout."""
    return depth // 4 <= block < depth // 4 * 3


@register_backbone("jit", JiTConfig)
class JiT(nn.Module):
    """JiT's backbone; used as `PatchDiT` is."""

    def __init__(self, config: JiTConfig) -> None:
        super().__init__()
        size, p = config.hidden_size, config.patch_size
        self.head_size, self.patch_size = size // config.num_heads, p
        self.bottleneck: nn.Module = nn.Identity()
        if config.bottleneck is None:
            self.patch_embedder = nn.Conv2d(3, size, p, stride=p)
        else:
            self.bottleneck = nn.Conv2d(3, config.bottleneck, p, stride=p, bias=False)
            self.patch_embedder = nn.Conv2d(config.bottleneck, size, 1)
        self.time_embedder = TimeEmbedder(size, max_period=10_000)
        self.class_embedder = ClassEmbedder(config.num_classes, size)
        self.blocks = nn.ModuleList(_block(config, number) for number in range(config.depth))
        self.in_context, self.in_context_start = in_context(config), config.in_context_start
        self.init_weights()

    def init_weights(self) -> None:
        """Every layer Xavier-uniform, its bias 0; time and class embeddings and in-context positions
        N(0, 0.02²); every adaLN zero."""
        xavier_(*(layer for layer in self.modules() if isinstance(layer, nn.Linear)))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight.flatten(1))
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        init_time(self.time_embedder)
        nn.init.normal_(self.class_embedder.table.weight, std=0.02)
        zero_(*(block.adaLN for block in self.blocks))

    def embed(self, x: Tensor, t: Tensor, labels: Condition) -> GlobalState:
        """The state before the first block; arguments as in `forward`."""
        labels = check_labels(labels)
        grid = grid_of(x, self.patch_size)
        tokens = self.patch_embedder(self.bottleneck(x))  # [B, D, rows, columns]
        tokens = tokens + positions_2d(*grid, tokens.shape[1], x.device).to(tokens.dtype)
        time = self.time_embedder(t)[:, None]  # [B, 1, D]
        y = self.class_embedder(labels)[:, None]  # [B, 1, D]
        condition = F.silu(time + y)
        context = None if self.in_context is None else Context(self.in_context(y), condition)
        return GlobalState(tokens.flatten(2).transpose(1, 2), time, condition, grid, context)

    def forward(
        self, x: Tensor, t: Tensor, labels: Condition, after_block: AfterBlock | None = None
    ) -> GlobalState:
        """As `PatchDiT.forward`."""
        state = self.embed(x, t, labels)
        rope = rope_index(state.grid, self.head_size, x.device)
        return run_blocks(self.blocks, state, rope, self.in_context_start, after_block)


def _block(config: JiTConfig, number: int) -> DiTBlock:
    """A block, counted from 0."""
    dropout = (config.dropout, config.attention_dropout) if in_the_middle(number, config.depth) else ()
    return DiTBlock(config.hidden_size, config.num_heads, False, config.mlp_size, True, *dropout)
