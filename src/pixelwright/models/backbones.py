"""Global stage: a transformer over large patches, one token per patch (DiP and PixelDiT, section 3.2)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.config import Config, PositiveInt
from pixelwright.errors import UserError
from pixelwright.models.conditions import Condition
from pixelwright.models.layers import (
    ClassEmbedder,
    DiTBlock,
    GlobalState,
    Grid,
    TimeEmbedder,
    check_heads,
    patchify,
    positions_2d,
    rope_2d,
    xavier_,
    zero_,
)
from pixelwright.registry import Registry

AfterBlock = Callable[[int, GlobalState], GlobalState]
"""Called after each block with its number, counted from 1, and the state; returns the state to go on with."""


class BackboneConfig(Protocol):
    """What every backbone's config has."""

    hidden_size: int
    depth: int
    num_heads: int
    patch_size: int
    takes_text: ClassVar[bool]


BACKBONES: Registry[Any] = Registry("backbone")


def register_backbone(name: str, config: type) -> Callable[[type], type]:
    """A decorator for a backbone: built as `(config)`, called as `PatchDiT.forward`; see `registry`."""
    return BACKBONES.register(name, config)


@dataclass(frozen=True)
class PatchDiTConfig(Config):
    """The class-conditional global stage: N blocks of width D over P×P patches."""

    hidden_size: PositiveInt
    depth: PositiveInt
    num_heads: PositiveInt
    patch_size: PositiveInt
    num_classes: PositiveInt
    vanilla: bool = False
    """Blocks and absolute positions of the first DiT, from which PixelDiT's ablation starts."""
    takes_text: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self, self.hidden_size, self.num_heads)


@register_backbone("patch-dit", PatchDiTConfig)
class PatchDiT(nn.Module):
    """The class-conditional backbone of both papers."""

    def __init__(self, config: PatchDiTConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.head_size = size // config.num_heads
        self.patch_size = config.patch_size
        self.vanilla = config.vanilla
        self.patch_embedder = nn.Linear(3 * config.patch_size**2, size)
        self.time_embedder = TimeEmbedder(size)
        self.class_embedder = ClassEmbedder(config.num_classes, size)
        self.blocks = nn.ModuleList(
            DiTBlock(size, config.num_heads, config.vanilla) for _ in range(config.depth)
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Patch embedding Xavier-uniform, bias 0; time and class embeddings N(0, 0.02²); every adaLN zero.
        The other Linears start as PyTorch makes them, the norms at one."""
        init_embedders(self.patch_embedder, self.time_embedder)
        nn.init.normal_(self.class_embedder.table.weight, std=0.02)
        zero_(*(block.adaLN for block in self.blocks))

    def embed(self, x: Tensor, t: Tensor, labels: Condition) -> GlobalState:
        """The state before the first block; arguments as in `forward`."""
        if not isinstance(labels, Tensor):
            raise UserError("this model draws from classes; give labels instead of captions")
        tokens = self.patch_embedder(patchify(x, self.patch_size))  # [B, L, D]
        grid = grid_of(x, self.patch_size)
        if self.vanilla:
            positions = positions_2d(*grid, tokens.shape[-1], x.device)  # [D, rows, columns]
            tokens = tokens + positions.flatten(1).T.to(tokens.dtype)
        time = self.time_embedder(t)[:, None]  # [B, 1, D]
        condition = F.silu(time + self.class_embedder(labels)[:, None])  # [B, 1, D]
        return GlobalState(tokens, time, condition, grid)

    def forward(
        self, x: Tensor, t: Tensor, labels: Condition, after_block: AfterBlock | None = None
    ) -> GlobalState:
        """x [B,3,H,W], t [B] in [0,1], labels [B] in 0 … num_classes -> the state after the last block.

        Raises:
            UserError: captions instead of labels.
        """
        state = self.embed(x, t, labels)
        rope = None if self.vanilla else rope_2d(state.grid, self.head_size, x.device)
        for number, block in enumerate(self.blocks, start=1):
            state = state._replace(tokens=block(state.tokens, state.condition, rope))
            state = after_block(number, state) if after_block else state
        return state


def grid_of(x: Tensor, patch_size: int) -> Grid:
    """(rows, columns) of the patches of x [B,3,H,W]."""
    return x.shape[-2] // patch_size, x.shape[-1] // patch_size


def init_embedders(patches: nn.Linear, time: TimeEmbedder) -> None:
    """How every backbone of the two papers starts its embedding of patches and times."""
    xavier_(patches)
    for weight in (time.mlp[0].weight, time.mlp[2].weight):
        assert isinstance(weight, Tensor)
        nn.init.normal_(weight, std=0.02)
