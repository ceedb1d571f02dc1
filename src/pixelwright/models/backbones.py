"""Global stage: a transformer over large patches, one token per patch (DiP and PixelDiT, section 3.2)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.config import Config, NonNegativeInt, PositiveInt
from pixelwright.errors import UserError
from pixelwright.models.conditions import Condition
from pixelwright.models.layers import (
    ClassEmbedder,
    Context,
    DiTBlock,
    GlobalState,
    Grid,
    Rope,
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
class ClassBackboneConfig(Config):
    """What the class-conditional backbones share: N blocks of width D over P×P patches."""

    hidden_size: PositiveInt
    depth: PositiveInt
    num_heads: PositiveInt
    patch_size: PositiveInt
    num_classes: PositiveInt
    in_context_length: NonNegativeInt = 0
    """In-context class tokens: so many stand in front of the patches (JiT)."""
    in_context_start: NonNegativeInt = 0
    """The block, counted from 0, before which they come in."""
    takes_text: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self, self.hidden_size, self.num_heads)
        if self.in_context_start and not 0 < self.in_context_start < self.depth:
            raise UserError(
                f"in_context_start is {self.in_context_start}: give a block from 0 to {self.depth - 1}"
            )
        if self.in_context_start and not self.in_context_length:
            raise UserError(
                f"in_context_start is {self.in_context_start}, but there are no in-context tokens: give "
                "in_context_length"
            )


@dataclass(frozen=True)
class PatchDiTConfig(ClassBackboneConfig):
    """The class-conditional global stage of both papers."""

    vanilla: bool = False
    """Blocks and absolute positions of the first DiT, from which PixelDiT's ablation starts."""


class InContext(nn.Module):
    """In-context class tokens: n times the class embedding, each with a learned position (JiT).

    y_emb [B, 1, D] -> [B, n, D].
    """

    def __init__(self, length: int, size: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(1, length, size))
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, y: Tensor) -> Tensor:
        return y + self.positions


def in_context(config: ClassBackboneConfig) -> InContext | None:
    """The in-context tokens of a backbone, where it has some."""
    return InContext(config.in_context_length, config.hidden_size) if config.in_context_length else None


def run_blocks(
    blocks: nn.ModuleList, state: GlobalState, rope: Rope | None, start: int, after_block: AfterBlock | None
) -> GlobalState:
    """The state after all blocks. The tokens of `state.context` come in before block `start`, counted from 0,
    in front of the patches and not rotated; `after_block` and the result see the patches alone."""
    x, condition, n = state.tokens, state.condition, 0
    for number, block in enumerate(blocks):
        if state.context is not None and number == start:
            n = state.context.tokens.shape[1]
            x = torch.cat((state.context.tokens.to(x.dtype), x), dim=1)  # [B, n + L, D]
            if condition.shape[1] > 1:  # a condition for each patch
                condition = torch.cat((state.context.condition.expand(-1, n, -1), condition), dim=1)
            if rope is not None:
                rope = F.pad(rope[0], (0, 0, n, 0), value=1.0), F.pad(rope[1], (0, 0, n, 0))
        x = block(x, condition, rope)
        state = state._replace(tokens=x[:, n:])
        if after_block is not None:
            state = after_block(number + 1, state)
            x = torch.cat((x[:, :n], state.tokens), dim=1) if n else state.tokens
    return state


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
        self.in_context, self.in_context_start = in_context(config), config.in_context_start
        self.init_weights()

    def init_weights(self) -> None:
        """Patch embedding Xavier-uniform, bias 0; time and class embeddings N(0, 0.02²); every adaLN zero.
        The other Linears start as PyTorch makes them, the norms at one."""
        init_embedders(self.patch_embedder, self.time_embedder)
        nn.init.normal_(self.class_embedder.table.weight, std=0.02)
        zero_(*(block.adaLN for block in self.blocks))

    def embed(self, x: Tensor, t: Tensor, labels: Condition) -> GlobalState:
        """The state before the first block; arguments as in `forward`."""
        labels = check_labels(labels)
        tokens = self.patch_embedder(patchify(x, self.patch_size))  # [B, L, D]
        grid = grid_of(x, self.patch_size)
        if self.vanilla:
            positions = positions_2d(*grid, tokens.shape[-1], x.device)  # [D, rows, columns]
            tokens = tokens + positions.flatten(1).T.to(tokens.dtype)
        time = self.time_embedder(t)[:, None]  # [B, 1, D]
        y = self.class_embedder(labels)[:, None]  # [B, 1, D]
        condition = F.silu(time + y)
        context = None if self.in_context is None else Context(self.in_context(y), condition)
        return GlobalState(tokens, time, condition, grid, context)

    def forward(
        self, x: Tensor, t: Tensor, labels: Condition, after_block: AfterBlock | None = None
    ) -> GlobalState:
        """x [B,3,H,W], t [B] in [0,1], labels [B] in 0 … num_classes -> the state after the last block.

        Raises:
            UserError: captions instead of labels.
        """
        state = self.embed(x, t, labels)
        rope = None if self.vanilla else rope_2d(state.grid, self.head_size, x.device)
        return run_blocks(self.blocks, state, rope, self.in_context_start, after_block)


def check_labels(labels: Condition) -> Tensor:
    """Labels [B]. Raises UserError: captions instead."""
    if not isinstance(labels, Tensor):
        raise UserError("this model draws from classes; give labels instead of captions")
    return labels


def grid_of(x: Tensor, patch_size: int) -> Grid:
    """(rows, columns) of the patches of x [B,3,H,W]."""
    return x.shape[-2] // patch_size, x.shape[-1] // patch_size


def init_embedders(patches: nn.Linear, time: TimeEmbedder) -> None:
    """How every backbone of the two papers starts its embedding of patches and times."""
    xavier_(patches)
    init_time(time)


def init_time(time: TimeEmbedder) -> None:
    """The weights of both layers N(0, 0.02²), as in all papers."""
    for weight in (time.mlp[0].weight, time.mlp[2].weight):
        assert isinstance(weight, Tensor)
        nn.init.normal_(weight, std=0.02)
