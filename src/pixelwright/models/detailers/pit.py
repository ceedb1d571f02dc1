"""PixelDiT's pixel-level stage (section 3.3): M PiT blocks over one token per pixel."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from pixelwright.config import Config, PositiveInt
from pixelwright.errors import UserError
from pixelwright.models.detailers.base import register_detailer
from pixelwright.models.layers import (
    MLP,
    Attention,
    GlobalState,
    RMSNorm,
    Rope,
    check_heads,
    from_pixels,
    modulate,
    positions_2d,
    rope_2d,
    to_pixels,
    zero_,
)


@dataclass(frozen=True)
class PiTConfig(Config):
    """PixelDiT's pixel-level blocks: M blocks of width D_pix per pixel, attention of width A over patches."""

    depth: PositiveInt
    pixel_size: PositiveInt
    attention_size: PositiveInt
    num_heads: PositiveInt
    post_modulation: bool = False
    """The authors' remedy for loss spikes: see `PostModPiTBlock`."""
    modulation: Literal["pixel", "patch"] = "pixel"
    """adaLN with values for each pixel, or the same for all pixels of a patch (ablation)."""
    attention: Literal["patches", "pixels", "none"] = "patches"
    """Among patches, whose pixels are compacted to one token; among all pixels, or none (ablations)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self, self.attention_size, self.num_heads)
        if self.pixel_size % 4:
            raise UserError(
                f"PiTConfig.pixel_size is {self.pixel_size}; the 2-D position table needs a multiple of 4"
            )


class PiTBlock(nn.Module):
    """Pixel-wise adaLN and pixel token compaction, pre-modulation. x [B, L, P², D_pix] -> the same."""

    parts = 3  # shift, scale and gate of each sub-layer

    def __init__(self, config: PiTConfig, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        pixels, size, self.attention = patch_size**2, config.pixel_size, config.attention
        self.chunks = self.parts * (1 if self.attention == "none" else 2)
        if self.attention != "none":
            token = size * (pixels if self.attention == "patches" else 1)
            self.norm1 = RMSNorm(size)
            self.compress = nn.Linear(token, config.attention_size)
            self.attn = Attention(config.attention_size, config.num_heads)
            self.expand = nn.Linear(config.attention_size, token)
        self.norm2 = RMSNorm(size)
        self.mlp = MLP(size)
        self.modulated = pixels if config.modulation == "pixel" else 1
        self.adaLN = nn.Linear(hidden_size, self.modulated * self.chunks * size)

    def modulation(self, s_cond: Tensor) -> tuple[Tensor, ...]:
        """Every pixel's own modulation: [B, L, D] -> `chunks` of [B, L, P² (patch-wise: 1), D_pix]."""
        return self.adaLN(s_cond).unflatten(-1, (self.modulated, -1)).chunk(self.chunks, -1)

    def attend(self, x: Tensor, rope: Rope) -> Tensor:
        """Token compaction: attention over the L patches instead of the L·P² pixels."""
        tokens = x.flatten(2) if self.attention == "patches" else x.flatten(1, 2)
        tokens = self.compress(tokens)  # [B, L, P²·D_pix] -> [B, L, A]
        return self.expand(self.attn(tokens, rope)).view_as(x)

    def forward(self, x: Tensor, s_cond: Tensor, rope: Rope) -> Tensor:
        *modulation1, shift2, scale2, gate2 = self.modulation(s_cond)
        if modulation1:
            shift1, scale1, gate1 = modulation1
            x = x + gate1 * self.attend(modulate(self.norm1(x), shift1, scale1), rope)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class PostModPiTBlock(PiTBlock):
    """The authors' remedy for loss spikes: sub-layer *outputs* are modulated, inputs normed; no gates."""

    parts = 2

    def forward(self, x: Tensor, s_cond: Tensor, rope: Rope) -> Tensor:
        *modulation1, scale2, shift2 = self.modulation(s_cond)
        if modulation1:
            scale1, shift1 = modulation1
            x = x + modulate(self.attend(self.norm1(x), rope), shift1, scale1)
        return x + modulate(self.mlp(self.norm2(x)), shift2, scale2)


@register_detailer("pit", PiTConfig)
class PiT(nn.Module):
    """Pixel embedding and positions, M blocks, RMSNorm and a linear layer to RGB."""

    def __init__(self, config: PiTConfig, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size, self.attention = patch_size, config.attention
        self.head_size = config.attention_size // config.num_heads
        self.pixel_embedder = nn.Linear(3, config.pixel_size)
        block = PostModPiTBlock if config.post_modulation else PiTBlock
        self.blocks = nn.ModuleList(block(config, hidden_size, patch_size) for _ in range(config.depth))
        self.norm = RMSNorm(config.pixel_size)
        self.out = nn.Linear(config.pixel_size, 3)
        self.init_weights()

    def init_weights(self) -> None:
        """Every adaLN and the output start at zero; the other Linears as PyTorch makes them."""
        zero_(*(block.adaLN for block in self.blocks), self.out)

    def forward(self, x: Tensor, state: GlobalState) -> Tensor:
        height, width = x.shape[-2:]
        h = self.pixel_embedder(to_pixels(x, self.patch_size))  # [B, L, P², D_pix]
        positions = positions_2d(height, width, h.shape[-1], x.device)
        h = h + to_pixels(positions[None], self.patch_size).to(h.dtype)
        s_cond, rope = state.s_cond, self.rope(x, state)
        for block in self.blocks:
            h = block(h, s_cond, rope)
        return from_pixels(self.out(self.norm(h)), state.grid, self.patch_size)

    def rope(self, x: Tensor, state: GlobalState) -> Rope:
        """Of the patches, or of all pixels patch by patch."""
        if self.attention != "pixels":
            return rope_2d(state.grid, self.head_size, x.device)
        size = x.shape[-2:]
        cos, sin = (
            to_pixels(table.T.unflatten(1, size)[None], self.patch_size).flatten(0, 2)
            for table in rope_2d((size[0], size[1]), self.head_size, x.device)
        )
        return cos, sin
