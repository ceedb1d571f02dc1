"""The relatives written again from what is published of them, in float64 and without any of our layers.

Recordings hold each network at one size; here are others: patches of 1 to 16 pixels, one patch, a row of
patches, a single class, a batch of one. Weights go by their published names.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pixelwright as pw
from pixelwright.models.backbones import PatchDiTConfig
from pixelwright.models.conditions import Condition, TextCondition
from pixelwright.models.config import DenoiserConfig
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.detailers.dit_decoder import DiTDecoderConfig
from pixelwright.models.detailers.linear import LinearConfig
from pixelwright.models.detailers.nerf import NerfConfig
from pixelwright.models.detailers.pixel_mlp import PixelMLPConfig
from pixelwright.models.jit import JiTConfig
from pixelwright.models.pixeldit2 import PixelDiT2Config
from pixelwright.models.text_dit import TextDiTConfig

Grid = tuple[int, int]


class Facts:
    """A network of published names: what siblings of the papers compute, step by step."""

    def __init__(self, weights: dict[str, Tensor], config: DenoiserConfig) -> None:
        self.w, self.config = weights, config
        self.heads, self.p, self.depth = config.backbone.num_heads, config.patch_size, config.backbone.depth

    def linear(self, x: Tensor, key: str) -> Tensor:
        y = x @ self.w[f"{key}.weight"].flatten(1).T
        return y + self.w[f"{key}.bias"] if f"{key}.bias" in self.w else y

    def rms(self, x: Tensor, key: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.w[f"{key}.weight"]

    def layer(self, x: Tensor, key: str = "") -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return x * self.w[f"{key}.weight"] + self.w[f"{key}.bias"] if key else x

    def time(self, t: Tensor, period: float, key: str = "t_embedder") -> Tensor:
        angle = t[:, None] * period ** -(torch.arange(128).double() / 128)
        waves = torch.cat((angle.cos(), angle.sin()), 1)
        return self.linear(F.silu(self.linear(waves, f"{key}.mlp.0")), f"{key}.mlp.2")[:, None]

    def label(self, y: Tensor) -> Tensor:
        return self.w["y_embedder.embedding_table.weight"][y][:, None]

    def patches(self, x: Tensor) -> Tensor:
        return F.unfold(x, self.p, stride=self.p).transpose(1, 2)

    def angles(self, rows: Tensor, columns: Tensor, width: int) -> Tensor:
        """[L, d/2]: of pairs in turn the column's and the row's."""
        f = 10000.0 ** -(4 * torch.arange(width // 4).double() / width)
        table = torch.empty(len(rows), len(columns), width // 2, dtype=torch.float64)
        table[..., 0::2] = (columns[:, None] * f)[None]
        table[..., 1::2] = (rows[:, None] * f)[:, None]
        return table.flatten(0, 1)

    def attention(self, x: Tensor, key: str, angle: Tensor | None, heads: int, qkv: str = "qkv") -> Tensor:
        """`angle` [n, d/2]; keys and values of a text stand behind the image's."""
        b, n, size = x.shape
        q, k, v = self.linear(x, f"{key}.{qkv}").view(b, n, 3, heads, -1).unbind(2)
        q, k = self.rms(q, f"{key}.q_norm"), self.rms(k, f"{key}.k_norm")
        if angle is not None:
            turn = torch.polar(torch.ones_like(angle), angle)[:, None]
            q, k = (torch.view_as_real(torch.view_as_complex(z.unflatten(-1, (-1, 2))) * turn).flatten(-2)
                    for z in (q.contiguous(), k.contiguous()))  # fmt: skip
        if qkv == "qkv_x":
            text_k, text_v = (
                self.linear(self.text, f"{key}.kv_y").view(b, -1, 2, heads, q.shape[-1]).unbind(2)
            )
            k, v = torch.cat((k, self.rms(text_k, f"{key}.k_norm")), 1), torch.cat((v, text_v), 1)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        return self.linear(
            torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).reshape(b, n, size), f"{key}.proj"
        )

    def mlp(self, x: Tensor, key: str) -> Tensor:
        if f"{key}.w12.weight" in self.w:
            first, second = self.linear(x, f"{key}.w12").chunk(2, -1)
            return self.linear(F.silu(first) * second, f"{key}.w3")
        return self.linear(F.silu(self.linear(x, f"{key}.w1")) * self.linear(x, f"{key}.w3"), f"{key}.w2")

    def block(
        self, x: Tensor, key: str, c: Tensor, angle: Tensor | None, heads: int = 0, **more: Any
    ) -> Tensor:
        """Where the modulation has a SiLU in front, `c` has not been through it."""
        last = f"{key}.adaLN_modulation.1" if f"{key}.adaLN_modulation.1.weight" in self.w else ""
        c = self.linear(F.silu(c), last) if last else self.linear(c, f"{key}.adaLN_modulation.0")
        s1, c1, g1, s2, c2, g2 = c.chunk(6, -1)
        heads = heads or self.heads
        x = x + g1 * self.attention(
            self.rms(x, f"{key}.norm1") * (1 + c1) + s1, f"{key}.attn", angle, heads, **more
        )
        return x + g2 * self.mlp(self.rms(x, f"{key}.norm2") * (1 + c2) + s2, f"{key}.mlp")

    def span(self, grid: Grid, ends: tuple[float, float] = (16, 16), heads: int = 0) -> Tensor:
        width = self.config.backbone.hidden_size // (heads or self.heads)
        rows, columns = (torch.linspace(0, end, n).double() for n, end in zip(grid, ends, strict=True))
        return self.angles(rows, columns, width)

    def image(self, pixels: Tensor, grid: Grid) -> Tensor:
        """[B, L, P², 3] -> [B,3,H,W]."""
        b, (r, q), p = len(pixels), grid, self.p
        return pixels.view(b, r, q, p, p, 3).permute(0, 5, 1, 3, 2, 4).reshape(b, 3, r * p, q * p)

    # ------------------------------------------------------------ PixNerd, DeCo, DDT, the baseline
    def patch_dit(
        self, x: Tensor, t: Tensor, y: Tensor, embedder: str = "s_embedder"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """s_N, t_emb, c."""
        time = self.time(t, 10)
        c, tokens = F.silu(time + self.label(y)), self.linear(self.patches(x), f"{embedder}.proj")
        for n in range(self.depth):
            tokens = self.block(tokens, f"blocks.{n}", c, self.span(self.grid(x)))
        return tokens, time, c

    def grid(self, x: Tensor) -> Grid:
        return x.shape[2] // self.p, x.shape[3] // self.p

    def pixels(self, x: Tensor) -> Tensor:
        """Each pixel with the features of its place, embedded."""
        p, kind = self.p, self.config.detailer.positions
        if kind == "dct":
            u, f = (
                torch.linspace(0, 1, p).double() if p > 1 else torch.zeros(1).double(),
                torch.linspace(0, 8, 8).double(),
            )
            feature = torch.empty(p, p, 8, 8, dtype=torch.float64)
            for row in range(p):
                for column in range(p):
                    product = torch.outer(torch.cos(math.pi * u[column] * f), torch.cos(math.pi * u[row] * f))
                    feature[row, column] = product / (1 + torch.outer(f, f))
            feature = feature.flatten(2).flatten(0, 1)
        else:
            at = torch.linspace(0, 16 if kind == "rotary-16" else p, p).double()
            feature = self.angles(at, at, 128).cos()
        z = self.patches(x).unflatten(-1, (3, -1)).transpose(-1, -2)  # [B, L, P², 3]
        return self.linear(torch.cat((z, feature.expand(*z.shape[:2], -1, -1)), -1), "x_embedder.embedder.0")

    def nerf(self, x: Tensor, s: Tensor) -> Tensor:
        head, h = self.config.detailer, self.pixels(x)
        w, r = head.pixel_size, head.mlp_ratio
        for n in range(self.depth, self.depth + head.depth):
            g = self.linear(s, f"blocks.{n}.param_generator1.0")
            w1, w2 = (
                g[..., : w * w * r].unflatten(-1, (w, w * r)),
                g[..., w * w * r :].unflatten(-1, (w * r, w)),
            )
            w1 = w1 / w1.square().sum(-2, keepdim=True).sqrt()
            w2 = w2 if self.config.takes_text else w2 / w2.square().sum(-2, keepdim=True).sqrt()
            h = h + F.silu(self.rms(h, f"blocks.{n}.norm") @ w1) @ w2
        h = h if self.config.takes_text else self.rms(h, "final_layer.norm")
        return self.image(self.linear(h, "final_layer.linear"), self.grid(x))

    def decoder(self, x: Tensor, s: Tensor) -> Tensor:
        h = self.linear(self.pixels(x), "dec_net.input_proj")
        y = F.silu(self.linear(s, "dec_net.cond_embed").view_as(h))
        for n in range(self.config.detailer.depth):
            key = f"dec_net.res_blocks.{n}"
            shift, scale, gate = self.linear(y, f"{key}.adaLN_modulation.1").chunk(3, -1)
            z = self.layer(h, f"{key}.in_ln") * (1 + scale) + shift
            h = h + gate * self.linear(F.silu(self.linear(z, f"{key}.mlp.0")), f"{key}.mlp.2")
        return self.image(self.linear(self.layer(h), "dec_net.final_layer.linear"), self.grid(x))

    def output(self, h: Tensor, grid: Grid, last: bool) -> Tensor:
        """Patches in the order of pixel, colour if `last`, or colour, pixel."""
        patches = self.linear(h, "final_layer.linear")
        order = (-1, 3) if last else (3, -1)
        pixels = patches.unflatten(-1, order)
        return self.image(pixels if last else pixels.transpose(-1, -2), grid)

    def pixnerd(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        tokens, time, _ = self.patch_dit(x, t, y)
        return self.nerf(x, F.silu(time + tokens))

    def deco(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        tokens, time, _ = self.patch_dit(x, t, y)
        return self.decoder(x, F.silu(time + tokens))

    def ddt(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        tokens, time, _ = self.patch_dit(x, t, y)
        s, h = F.silu(time + tokens), self.linear(self.patches(x), "x_embedder.proj")
        for n in range(self.depth, self.depth + self.config.detailer.depth):
            h = self.block(h, f"blocks.{n}", s, self.span(self.grid(x)))
        shift, scale = self.linear(s, "final_layer.adaLN_modulation.0").chunk(2, -1)
        return self.output(self.layer(h) * (1 + scale) + shift, self.grid(x), last=False)

    def flattendit(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        tokens, _, c = self.patch_dit(x, t, y, "x_embedder")
        shift, scale = self.linear(c, "final_layer.adaLN_modulation.0").chunk(2, -1)
        return self.output(self.layer(tokens) * (1 + scale) + shift, self.grid(x), last=False)

    # ------------------------------------------------------------ JiT, PixelDiT2
    def table(self, grid: Grid) -> Tensor:
        size = self.config.backbone.hidden_size
        f = 10000.0 ** -(torch.arange(size // 4).double() / (size // 4))
        rows, columns = (torch.arange(n).double()[:, None] * f for n in grid)
        half = [torch.cat((a.sin(), a.cos()), 1) for a in (columns, rows)]
        return torch.cat((half[0].repeat(grid[0], 1), half[1].repeat_interleave(grid[1], 0)), 1)

    def with_context(self, tokens: Tensor, c: Tensor, y_emb: Tensor, angle: Tensor, blocks: str) -> Tensor:
        n, start = self.config.backbone.in_context_length, self.config.backbone.in_context_start
        for number in range(self.depth):
            if n and number == start:
                tokens = torch.cat((y_emb + self.w["in_context_posemb"], tokens), 1)
                angle = torch.cat((torch.zeros(n, angle.shape[1]).double(), angle))
                if c.shape[1] > 1:
                    c = torch.cat((c.mean(1, keepdim=True).expand(-1, n, -1), c), 1)
            tokens = self.block(tokens, f"{blocks}.{number}", c, angle)
        return tokens[:, n:]

    def jit(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        grid, width = self.grid(x), self.config.backbone.hidden_size // self.heads
        tokens = self.linear(self.patches(x), "x_embedder.proj1")
        tokens = self.linear(tokens, "x_embedder.proj2") if "x_embedder.proj2.weight" in self.w else tokens
        y_emb = self.label(y)
        c = self.time(t, 10000) + y_emb
        f = 10000.0 ** -(4 * torch.arange(width // 4).double() / width)
        rows, columns = (torch.arange(n).double()[:, None] * f for n in grid)
        angle = torch.cat((rows.repeat_interleave(grid[1], 0), columns.repeat(grid[0], 1)), 1)
        tokens = self.with_context(tokens + self.table(grid), c, y_emb, angle, "blocks")
        shift, scale = self.linear(F.silu(c), "final_layer.adaLN_modulation.1").chunk(2, -1)
        return self.output(self.rms(tokens, "final_layer.norm_final") * (1 + scale) + shift, grid, last=True)

    def pixeldit2(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        grid, rows, backbone = self.grid(x), self.config.num_classes + 1, self.config.backbone
        key, heads = "dino_conditioner.dino_proj", backbone.grounding_heads
        g = self.linear(seen(x, grid), f"{key}.input_proj")
        for n in range(backbone.grounding_depth):
            time = self.time(t, 10, f"{key}.t_embedder")
            g = self.block(g, f"{key}.blocks.{n}", time, self.span(grid, heads=heads), heads)
        g = self.linear(g, f"{key}.output_proj") * (y < rows)[:, None, None]
        y_emb = self.label(y % rows)
        c = g + self.time(t, 10) + y_emb
        c = c if backbone.single_silu else F.silu(c)
        tokens = self.linear(self.patches(x), "s_embedder.proj")
        tokens = self.with_context(tokens, c, y_emb, self.span(grid), "patch_blocks")
        shift, scale = self.linear(F.silu(c), "final_layer.adaLN_modulation.1").chunk(2, -1)
        return self.output(self.rms(tokens, "final_layer.norm") * (1 + scale) + shift, grid, last=True)

    # ------------------------------------------------------------ text as extra keys
    def text_dit(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and s."""
        grid, time = self.grid(x), self.time(t, 10)
        self.text = self.rms(self.linear(y, "y_embedder.proj"), "y_embedder.norm") + self.w["y_pos_embedding"]
        for n in range(self.config.backbone.text_depth):
            self.text = self.block(self.text, f"text_refine_blocks.{n}", F.silu(time), None)
        if "x_embedder.proj1.weight" in self.w:
            tokens = self.linear(
                self.linear(self.patches(x), "x_embedder.proj1"), "x_embedder.proj2"
            ) + self.table(grid)
        else:
            tokens = self.linear(self.patches(x), "s_embedder.proj")
        angle = self.span(grid, (grid[1], grid[0]))
        for n in range(self.depth):
            tokens = self.block(tokens, f"blocks.{n}", F.silu(time), angle, qkv="qkv_x")
        return tokens, F.silu(time + tokens)

    def pixnerd_t2i(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.nerf(x, self.text_dit(x, t, y)[1])

    def deco_t2i(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.decoder(x, self.text_dit(x, t, y)[1])

    def pixelgen_t2i(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.output(self.layer(self.text_dit(x, t, y)[0]), self.grid(x), last=False)


def seen(x: Tensor, grid: Grid) -> Tensor:
    """Stands in for DINOv3: 10 numbers of each patch."""
    return F.adaptive_avg_pool2d(x, (grid[0], grid[1] * 10)).mean(1).view(len(x), -1, 10).tanh()


def classes(patch: int, count: int = 3, heads: int = 2) -> PatchDiTConfig:
    return PatchDiTConfig(24, 2, heads, patch, count)


def captions(patch: int, **more: Any) -> TextDiTConfig:
    return TextDiTConfig(24, 2, 3, patch, text_size=10, text_length=5, text_depth=2, **more)


def jit(patch: int, *context: int, **more: Any) -> JiTConfig:
    return JiTConfig(24, 3, 2, patch, 3, *context, **more)


LAST = LinearConfig(channels_last=True)
PLAIN = LinearConfig("layer", modulation=False)
#        family, backbone, detailer, rows and columns of patches, batch
CASES: list[tuple[str, Any, Any, Grid, int]] = [
    ("pixnerd", classes(4), NerfConfig(2, 8, 3), (2, 3), 3),
    ("pixnerd", classes(1, 1), NerfConfig(1, 5, 1), (3, 2), 1),
    ("pixnerd", classes(16), NerfConfig(1, 8), (1, 1), 2),
    ("deco", classes(5), PixelMLPConfig(2, 6), (1, 4), 3),
    ("deco", classes(8, 1, 1), PixelMLPConfig(1, 4), (2, 1), 1),
    ("ddt", classes(4), DiTDecoderConfig(2, 2), (3, 2), 3),
    ("ddt", classes(16, 7), DiTDecoderConfig(1, 2), (1, 1), 1),
    ("flattendit", classes(2), LinearConfig("layer"), (2, 5), 3),
    ("jit", jit(4, 5, 1, bottleneck=7), LAST, (3, 3), 3),
    ("jit", jit(2, 3, 0, mlp_size=17), LAST, (1, 4), 1),
    ("jit", jit(8, bottleneck=40), LAST, (4, 2), 2),
    ("pixeldit2", PixelDiT2Config(24, 3, 2, 4, 3, 4, 1, "x", 10, 2, 3), LAST, (2, 3), 3),
    ("pixeldit2", PixelDiT2Config(24, 2, 3, 16, 1, 0, 0, "x", 10, 1, 2, True, 20), LAST, (1, 2), 1),
    ("pixnerd_t2i", captions(4), NerfConfig(1, 8, 3, "rotary", False, False), (2, 4), 3),
    ("pixnerd_t2i", captions(8), NerfConfig(2, 4, 2, "rotary-16", False, False), (3, 1), 1),
    ("deco_t2i", captions(4), PixelMLPConfig(2, 6, "rotary"), (4, 2), 2),
    ("pixelgen_t2i", captions(4, bottleneck=9, absolute_positions=True), PLAIN, (2, 3), 3),
]  # fmt: skip


@pytest.mark.parametrize(("family", "backbone", "detailer", "grid", "batch"), CASES)
@torch.no_grad()
def test_the_network_computes_what_is_published(
    family: str, backbone: Any, detailer: Any, grid: Grid, batch: int
) -> None:
    torch.manual_seed(0)
    side = (grid[0] * backbone.patch_size, grid[1] * backbone.patch_size)
    prediction = "x" if detailer in (LAST, PLAIN) else "velocity"
    config = DenoiserConfig(backbone, detailer, prediction=prediction, image_size=side)
    model = PixelDenoiser(config).double().eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    if family == "pixeldit2":
        model.backbone.encoder = seen
    x, t, c = torch.randn(batch, 3, *side).double(), torch.rand(batch).double(), torch.arange(batch)
    condition: Condition = c
    if config.takes_text:
        c = torch.randn(batch, 5, 10).double()
        condition = TextCondition(c, torch.ones(batch, 5, dtype=torch.bool))
    if family == "pixeldit2":
        condition = c = (c + config.num_classes * (c > 0)) % (2 * config.num_classes + 2)
    expected: Callable[..., Tensor] = getattr(Facts(pw.hub.to_public(model), config), family)
    found: list[Tensor] = []
    model.detailer.register_forward_hook(lambda module, inputs, output: found.append(output))
    model(x, t, condition)
    wanted = expected(x, t, c)
    # Sinusoids and norms compute in float32 whatever the weights.
    assert (found[0] - wanted).abs().max() < 1e-5 * wanted.std()
