"""An accelerated model equals the one it was made of, and owns what it computes with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import pixelwright as pw
from pixelwright.acceleration import accelerate, accelerated, parts
from pixelwright.acceleration.convolutions import use_products
from pixelwright.errors import UserError
from pixelwright.models.backbones import PatchDiTConfig
from pixelwright.models.conditions import Condition, TextCondition
from pixelwright.models.config import DenoiserConfig, Placement
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.detailers.dit_decoder import DiTDecoderConfig
from pixelwright.models.detailers.linear import LinearConfig
from pixelwright.models.detailers.mlp import MLPConfig
from pixelwright.models.detailers.nerf import NerfConfig
from pixelwright.models.detailers.patch_attention import PatchAttentionConfig
from pixelwright.models.detailers.pit import PiTConfig
from pixelwright.models.detailers.pixel_mlp import PixelMLPConfig
from pixelwright.models.detailers.unet import UNetConfig, UNetUp
from pixelwright.models.jit import JiTConfig
from pixelwright.models.layers import SHORT, attend, attention_at_once
from pixelwright.models.mmdit import MMDiTConfig
from pixelwright.models.pixeldit2 import PixelDiT2Config
from pixelwright.models.text_dit import TextDiTConfig
from pixelwright.models.vision import DINOv3
from tests.recordings import difference

CLASSES = PatchDiTConfig(hidden_size=24, depth=2, num_heads=2, patch_size=8, num_classes=3)
TEXT = MMDiTConfig(24, 2, 2, 8, text_size=16, text_length=5)
JIT = JiTConfig(24, 2, 2, 8, 3, 4, 1, bottleneck=12)
DETAILERS = [
    UNetConfig((8, 12, 16)),
    UNetConfig((8,)),
    PiTConfig(1, 8, 16, 2),
    PiTConfig(1, 8, 16, 2, True),
    LinearConfig(),
]
RELATIVES = [
    NerfConfig(2, 8),
    PixelMLPConfig(2, 8),
    MLPConfig(12),
    PatchAttentionConfig(1, 8, 2),
    DiTDecoderConfig(1, 2),
    LinearConfig("layer"),
    UNetConfig((8, 12, 16), whole_image=True),
    PiTConfig(1, 8, 16, 2, modulation="patch", attention="none"),
    PiTConfig(1, 8, 16, 2, attention="pixels"),
]
CONFIGS = [
    *(DenoiserConfig(CLASSES, detailer, placement=p) for detailer in DETAILERS for p in get_args(Placement)),
    *(DenoiserConfig(CLASSES, detailer) for detailer in RELATIVES),
    DenoiserConfig(dataclasses.replace(CLASSES, vanilla=True), LinearConfig("layer")),
    *(
        DenoiserConfig(JIT, detailer, prediction="x")
        for detailer in (LinearConfig(channels_last=True), UNetConfig((8,)))
    ),
    *(DenoiserConfig(TEXT, detailer) for detailer in (*RELATIVES, *DETAILERS[1:3])),
]
KEYS = TextDiTConfig(24, 2, 2, 8, text_size=16, text_length=5, text_depth=1)
GROUNDED = PixelDiT2Config(24, 2, 2, 8, 3, 4, 1, encoder_size=6, grounding_heads=2)
OTHERS = [  # kept apart: a model of classes comes last above
    *(
        DenoiserConfig(KEYS, detailer)
        for detailer in (NerfConfig(1, 8, 2, "rotary", False, False), RELATIVES[1])
    ),
    DenoiserConfig(
        dataclasses.replace(KEYS, bottleneck=6, absolute_positions=True),
        LinearConfig("layer", modulation=False),
        prediction="x",
    ),
    DenoiserConfig(GROUNDED, LinearConfig(channels_last=True), prediction="x"),
    DenoiserConfig(JIT, RELATIVES[0], prediction="asymmetric", rank=5),
]


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of DINOv3: the six numbers of each patch's colours, mean and spread."""

    def features(self: DINOv3, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        patches = x.unflatten(3, (grid[1], -1)).unflatten(2, (grid[0], -1)).transpose(3, 4).flatten(4)
        found = torch.cat((patches.mean(-1), patches.std(-1)), 1)  # [B, 6, rows, columns]
        return found.flatten(2).transpose(1, 2)

    monkeypatch.setattr(DINOv3, "__call__", features)


def network(config: DenoiserConfig) -> PixelDenoiser:
    """A model in which no weight is zero, of sizes that keep activations near 1."""
    torch.manual_seed(0)
    model = PixelDenoiser(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


def inputs(config: DenoiserConfig) -> tuple[torch.Tensor, torch.Tensor, Condition]:
    g = torch.Generator().manual_seed(1)
    x, t = torch.randn(3, 3, 16, 24, generator=g), torch.rand(3, generator=g)
    if config.takes_text:
        return (
            x,
            t,
            TextCondition(
                torch.randn(3, 5, 16, generator=g), torch.arange(5) < torch.tensor([[5], [2], [3]])
            ),
        )
    return x, t, torch.arange(3)


@pytest.mark.parametrize(
    "config", [*CONFIGS, *OTHERS], ids=lambda c: f"{c.detailer}, {c.placement}, {c.takes_text}"
)
@torch.no_grad()
def test_it_equals_the_model(config: DenoiserConfig) -> None:
    """To rounding in float32; in bfloat16 its error is at most twice that of autocast."""
    model = network(config)
    before = {key: (value.data_ptr(), value.clone()) for key, value in model.state_dict().items()}
    exact = model(*inputs(config))
    assert difference(accelerate(model, "fp32")(*inputs(config)), exact) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        allowed = (model(*inputs(config)) - exact).norm()
    assert (accelerate(model, "bf16")(*inputs(config)) - exact).norm() <= 2 * allowed
    for key, value in model.state_dict().items():  # the model is untouched
        assert value.data_ptr() == before[key][0] and torch.equal(value, before[key][1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@torch.no_grad()
def test_it_keeps_its_weights_when_the_model_trains_on(precision: str) -> None:
    for config in (CONFIGS[0], CONFIGS[6], CONFIGS[-1]):
        model = network(config)
        fast = accelerate(model, precision)
        before = fast(*inputs(config))
        for p in model.parameters():
            p.mul_(-1.5)
        assert torch.equal(fast(*inputs(config)), before)


def test_it_cannot_be_taken_for_a_model(tmp_path: Path) -> None:
    fast = accelerate(network(CONFIGS[0]), "fp32")
    assert not isinstance(fast, nn.Module) and not hasattr(fast, "state_dict")
    with pytest.raises(UserError, match="save the model it was made of"):
        pw.save(fast, tmp_path / "m")  # type: ignore[arg-type]
    assert not (tmp_path / "m").exists()
    assert accelerate(fast) is fast


@torch.no_grad()
def test_patches_in_slices_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """18 patches, five at a time; no patch knows of another in a U-Net."""
    model = network(CONFIGS[0])
    whole = accelerate(model, "fp32")(*inputs(CONFIGS[0]))
    monkeypatch.setattr(parts, "AT_ONCE", 5)
    assert difference(accelerate(model, "fp32")(*inputs(CONFIGS[0])), whole) < 1e-6


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch_in_bfloat16() -> None:
    for config in (CONFIGS[0], DenoiserConfig(CLASSES, DETAILERS[2])):
        model = accelerate(network(config), "bf16")
        x, t, y = inputs(config)
        alone = torch.cat([model(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(3)])
        assert difference(model(x, t, y).float(), alone.float()) < 1e-2


def test_no_gradient_comes_through_it() -> None:
    x, t, y = inputs(CONFIGS[0])
    assert not accelerate(network(CONFIGS[0]), "fp32")(x.requires_grad_(), t, y).requires_grad


COMPILED: list[Any] = [
    *((CONFIGS[0], "bf16"), (DenoiserConfig(CLASSES, DETAILERS[2]), "bf16"), (CONFIGS[-1], "fp32")),
    *((DenoiserConfig(CLASSES, detailer), "fp32") for detailer in RELATIVES[:5]),
    *(pytest.param(config, "fp32", marks=pytest.mark.slow) for config in OTHERS),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("config", "precision"), COMPILED, ids=str)
@torch.no_grad()
def test_compiled_blocks_equal_eager_ones(config: DenoiserConfig, precision: str) -> None:
    model = network(config)
    compiled, eager = (accelerate(model, precision, compile=on) for on in (True, False))
    allowed = 1e-5 if precision == "fp32" else 2e-2
    assert difference(compiled(*inputs(config)).float(), eager(*inputs(config)).float()) < allowed
    for p in model.parameters():
        p.mul_(0.9)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled.load(model)
        again = compiled(*inputs(config)).float()
    assert difference(again, accelerate(model, precision)(*inputs(config)).float()) < allowed


VNNI = pytest.mark.skipif(
    not torch.cpu.get_capabilities().get("avx512_vnni"), reason="no products of 8 bits on this machine"
)


@VNNI
@torch.no_grad()
def test_a_product_of_8_bits_is_the_sum_of_its_levels() -> None:
    """Against integers in float64, to the rounding of the result; a token does not depend on the others."""
    g = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(40, 24, generator=g), torch.randn(40, generator=g)
    x = torch.randn(2, 7, 24, generator=g) * torch.logspace(-4, 4, 7)[:, None]
    x[0, 3] = 0
    product = parts.Int8Product(weight, bias)
    found = product(x.bfloat16())

    def levels(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        level = rows.double().abs().amax(-1, keepdim=True) / 127
        return (rows.double() / level.clamp(min=1e-30)).round(), level

    (x_levels, x_level), (w_levels, w_level) = levels(x.bfloat16()), levels(weight)
    expected = (x_levels @ w_levels.T) * x_level * w_level.T
    rounding = 2**-7 * expected.abs() + 2**-8 * bias.abs()
    assert ((found - (expected + bias)).abs() <= rounding + 1e-9).all()
    exact = x.double() @ weight.double().T
    assert (expected - exact).norm() < 0.02 * exact.norm()
    assert torch.equal(product(x[1:, 2:3].bfloat16()), found[1:, 2:3])


@VNNI
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_products_of_8_bits_are_compiled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerated, "SHORTEST", 16)
    model = network(DenoiserConfig(CLASSES, LinearConfig()))
    compiled, eager = (accelerate(model, "int8", compile=on) for on in (True, False))
    assert difference(compiled(*inputs(model.config)), eager(*inputs(model.config))) < 2e-2


@VNNI
@pytest.mark.parametrize("config", [CONFIGS[0], *CONFIGS[6:8], *CONFIGS[15:25], CONFIGS[-1]], ids=str)
@torch.no_grad()
def test_int8_is_near_the_model(config: DenoiserConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerated, "SHORTEST", 16)  # the layers of tokens here, which are narrow
    model = network(config)
    exact = model(*inputs(config))
    assert (accelerate(model, "int8")(*inputs(config)) - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("tokens", [5, SHORT + 1])
@pytest.mark.parametrize("masked", [False, True])
def test_short_attention_in_bfloat16_equals_the_fused_one(tokens: int, masked: bool) -> None:
    """Its error against float32, forward and backward, is at most twice that of the fused one."""
    g = torch.Generator().manual_seed(0)
    exact = [torch.randn(2, tokens, 3, 8, generator=g) for _ in range(3)]
    mask = torch.rand(2, 1, 1, tokens, generator=g) < 0.7 if masked else None
    errors = []
    for product in (attention_at_once, F.scaled_dot_product_attention):
        outs = []
        for dtype, function in ((torch.float32, F.scaled_dot_product_attention), (torch.bfloat16, product)):
            q, k, v = (x.to(dtype).transpose(1, 2).requires_grad_() for x in exact)
            out = function(q, k, v, attn_mask=mask)
            out.sum().backward()
            outs.append(torch.cat([x.detach().float().flatten() for x in (out, q.grad, k.grad, v.grad)]))
        errors.append((outs[1] - outs[0]).norm())
    assert errors[0] <= 2 * errors[1]
    q, k, v = (x.bfloat16() for x in exact)
    chosen = (attention_at_once if tokens <= SHORT else F.scaled_dot_product_attention)(
        *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask
    )
    assert torch.equal(attend(q, k, v, mask), chosen.transpose(1, 2).flatten(2))


def test_settings_that_cannot_be_honoured_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(CONFIGS[0])
    with pytest.raises(UserError, match="graphs is true on cpu; it needs CUDA"):
        accelerate(model, graphs=True)
    with pytest.raises(UserError, match='"bf61", did you mean "bf16"'):
        accelerate(model, "bf61")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": False})
    with pytest.raises(UserError, match="int8 needs a CPU with AVX-512 VNNI, which cpu is not; use bf16"):
        accelerate(model, "int8")


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
def test_convolutions_as_products_are_exact(
    height: int, width: int, before: int, after: int, batch: int
) -> None:
    """Forward and backward, in float64, against PyTorch's convolutions, and those of an accelerated U-Net."""
    up = UNetUp(before, after).double()  # its convolution takes 2·before channels
    use_products(up)
    for size in ((2 * height, 2 * width), (2, 2)):
        wide, x = (
            torch.randn(batch, n * before, *size, dtype=torch.float64, requires_grad=True) for n in (2, 1)
        )
        for module, inputs_, exact in (
            (up.conv, wide, F.conv2d(wide, up.conv.weight, up.conv.bias, padding=1)),
            (up.upsample, x, F.conv_transpose2d(x, up.upsample.weight, up.upsample.bias, stride=2)),
        ):
            found = module(inputs_)
            torch.testing.assert_close(found, exact)
            sources = (inputs_, *module.parameters())
            for pair in zip(
                *(torch.autograd.grad(y.square().sum(), sources) for y in (found, exact)), strict=True
            ):
                torch.testing.assert_close(*pair)
        fast = parts.FastConv3x3(up.conv, 2 if size == (2, 2) else 0, torch.float64)
        torch.testing.assert_close(fast(wide), F.silu(up.conv(wide)))
