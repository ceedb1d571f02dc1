"""The model that is made ready for sampling equals the one it is made of."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from pixelwright.acceleration import fast, fused
from pixelwright.acceleration.fast import FastDenoiser
from pixelwright.diffusion.sample import sample
from pixelwright.errors import UserError
from pixelwright.models.conditions import Condition, TextCondition
from pixelwright.models.config import (
    DenoiserConfig,
    LinearConfig,
    MMDiTConfig,
    PatchDiTConfig,
    PiTConfig,
    Placement,
    UNetConfig,
)
from pixelwright.models.denoiser import PixelDenoiser
from tests.recordings import difference

CLASSES = PatchDiTConfig(hidden_size=24, depth=2, num_heads=2, patch_size=8, num_classes=3)
TEXT = MMDiTConfig(24, 2, 2, 8, text_size=16, text_length=5)
DETAILERS = [
    UNetConfig((8, 12, 16)),
    UNetConfig((8,)),
    PiTConfig(1, 8, 16, 2),
    PiTConfig(1, 8, 16, 2, True),
    LinearConfig(),
]
CONFIGS = [
    *(DenoiserConfig(CLASSES, detailer, placement=p) for detailer in DETAILERS for p in get_args(Placement)),
    *(DenoiserConfig(TEXT, detailer) for detailer in DETAILERS[1:3]),
]


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


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.detailer}, {c.placement}, {c.takes_text}")
@torch.no_grad()
def test_it_equals_the_model(config: DenoiserConfig) -> None:
    """To rounding in float32; in bfloat16 its error is at most twice that of autocast."""
    model = network(config)
    before = {key: (value.data_ptr(), value.clone()) for key, value in model.state_dict().items()}
    exact = model(*inputs(config))
    assert difference(FastDenoiser(model, torch.float32)(*inputs(config)), exact) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        errors = [
            (each(*inputs(config)) - exact).norm() for each in (model, FastDenoiser(model, torch.bfloat16))
        ]
    assert errors[1] <= 2 * errors[0]
    for key, value in model.state_dict().items():  # the model is untouched
        assert value.data_ptr() == before[key][0] and torch.equal(value, before[key][1])


@torch.no_grad()
def test_patches_in_slices_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """18 patches, five at a time; no patch knows of another in a U-Net."""
    model = network(CONFIGS[0])
    whole = FastDenoiser(model, torch.float32)
    monkeypatch.setattr(fast, "AT_ONCE", 5)
    sliced = FastDenoiser(model, torch.float32)
    assert sliced.detailer.at_once == 5
    assert FastDenoiser(network(CONFIGS[0]).to("meta"), torch.float32).detailer.at_once == 64 * 256
    assert difference(sliced(*inputs(CONFIGS[0])), whole(*inputs(CONFIGS[0]))) < 1e-6


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch_in_bfloat16() -> None:
    for config in (CONFIGS[0], DenoiserConfig(CLASSES, DETAILERS[2])):
        model = FastDenoiser(network(config), torch.bfloat16)
        x, t, y = inputs(config)
        with torch.autocast("cpu", torch.bfloat16):
            together, alone = (
                model(x, t, y),
                torch.cat([model(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(3)]),
            )
        assert difference(together, alone) < 1e-2


def test_samples_follow_the_weights_of_the_model() -> None:
    """What is prepared for one call is not used in the next one, and a prepared model may be given."""
    model = network(DenoiserConfig(CLASSES, DETAILERS[2], image_size=(16, 16)))
    first = sample(model, [0, 1], steps=3, autocast=torch.bfloat16)
    assert torch.equal(
        sample(FastDenoiser(model, torch.bfloat16), [0, 1], steps=3, autocast=torch.bfloat16), first
    )
    with torch.no_grad():
        model.detailer.out.weight.mul_(-1)
    assert not torch.equal(sample(model, [0, 1], steps=3, autocast=torch.bfloat16), first)


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
    product = fast.Int8Product(weight, bias)
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
@pytest.mark.parametrize("config", [CONFIGS[0], *CONFIGS[6:8], CONFIGS[-1]], ids=str)
@torch.no_grad()
def test_int8_is_in_the_blocks_alone_and_near_the_model(config: DenoiserConfig) -> None:
    model = network(config)
    quick = FastDenoiser(model, torch.int8)
    places = [name for name, part in quick.named_modules() if isinstance(part, fast.Int8Product)]
    assert places and all(".blocks." in name and ".mlp.fc" not in name for name in places)
    assert not any(isinstance(part, nn.Linear) for part in quick.modules())
    exact = model(*inputs(config))
    with torch.autocast("cpu", torch.bfloat16):
        assert (quick(*inputs(config)) - exact).norm() < 0.05 * exact.norm()
    condition = inputs(config)[2]
    images = [sample(each, condition, (16, 24), steps=2, autocast=torch.int8) for each in (model, quick)]
    assert torch.equal(*images)


def test_int8_is_refused_where_it_would_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="int8 needs a CPU with AVX-512 VNNI, which cuda:1 is not"):
        fast.check_int8(torch.device("cuda:1"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": False})
    with pytest.raises(UserError, match="use bf16"):
        sample(network(CONFIGS[0]), [0], (16, 16), steps=1, autocast=torch.int8)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_chain_is_compiled_for_more_shapes_than_eight() -> None:
    counters.clear()
    with fused.compiled():
        for width in range(2, 24, 2):
            fused.silu_product(torch.ones(3, width))
    assert counters["stats"]["unique_graphs"] == 11


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@torch.no_grad()
def test_compiled_chains_equal_eager_ones() -> None:
    for config in (CONFIGS[0], DenoiserConfig(CLASSES, DETAILERS[2]), CONFIGS[-1]):
        model = FastDenoiser(network(config), torch.float32)
        with fused.compiled():
            compiled = model(*inputs(config))
        assert difference(compiled, model(*inputs(config))) < 1e-5
