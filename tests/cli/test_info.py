"""Parameters, FLOPs and memory, against formulas written out here and against a real run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import accumulate

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import pixelwright as pw
from pixelwright.diffusion import flow
from pixelwright.diffusion.sample import model_velocity
from pixelwright.errors import UserError
from pixelwright.files import read_json
from pixelwright.models.config import SamplerSettings
from pixelwright.models.folder import skeleton
from pixelwright.models.presets import PRESETS, preset
from pixelwright.training.summary import FIGURES, PeakMemory, describe, flops_by_part, human, stored

TINY = {"depth": 3, "hidden_size": 24, "num_heads": 2, "image_size": (16, 8)}


def linear(rows: int, inputs: int, outputs: int) -> int:
    """FLOPs of a linear layer: a multiply and an add for each weight and row."""
    return 2 * rows * inputs * outputs


def backboneflops_by_part(width: int, depth: int, patch: int, tokens: int) -> int:
    """Papers' global stage: embeddings, then per block qkv, attention, projection, SwiGLU and adaLN."""
    hidden = int(2 / 3 * 4 * width)
    block = linear(tokens, width, 3 * width) + linear(tokens, width, width)
    block += 2 * linear(tokens, width, tokens)  # queries by keys, weights by values
    block += 3 * linear(tokens, width, hidden) + linear(1, width, 6 * width)
    time = linear(1, 256, width) + linear(1, width, width)
    return linear(tokens, 3 * patch**2, width) + time + depth * block


def linearflops_by_part(width: int, patch: int, tokens: int) -> int:
    return linear(1, width, 2 * width) + linear(tokens, width, 3 * patch**2)


def pitflops_by_part(width: int, patch: int, tokens: int, depth: int, pixel: int) -> int:
    """PixelDiT's pixel stage, attention as wide as the backbone."""
    area = patch**2
    block = linear(tokens, width, 6 * area * pixel)  # a modulation for every pixel
    block += linear(tokens, area * pixel, width) + linear(tokens, width, area * pixel)
    block += linear(tokens, width, 4 * width) + 2 * linear(tokens, width, tokens)
    block += 2 * linear(tokens * area, pixel, 4 * pixel)
    return linear(tokens * area, 3, pixel) + depth * block + linear(tokens * area, pixel, 3)


def unetflops_by_part(width: int, patch: int, tokens: int, channels: tuple[int, ...]) -> int:
    """DiP's head: 3x3 convolutions down, one 1x1 in the middle, 2x2 transposed and 3x3 convolutions up."""

    def conv3x3(side: int, inputs: int, outputs: int) -> int:
        return linear(tokens * side**2, 9 * inputs, outputs)

    total, inputs, side = 0, 3, patch
    for outputs in channels:
        total += conv3x3(side, inputs, outputs)
        inputs, side = outputs, side // 2
    total += linear(tokens * side**2, inputs + width, inputs)
    for skip in reversed(channels):
        total += linear(tokens * side**2, inputs, 4 * inputs)
        side *= 2
        outputs = max(skip // 2, channels[0])
        total += conv3x3(side, inputs + skip, outputs)
        inputs = outputs
    return total + linear(tokens * side**2, inputs, 3)


@pytest.mark.parametrize("name", ["dit-ti-4", "pixeldit-ti-4", "dip-ti-4"])
def test_flops_of_every_part_equal_the_formulas(name: str) -> None:
    config = preset(name, **TINY)
    info = describe(config)
    width, patch, tokens = 24, 4, 4 * 2
    head = {
        "dit-ti-4": lambda: linearflops_by_part(width, patch, tokens),
        "pixeldit-ti-4": lambda: pitflops_by_part(width, patch, tokens, depth=2, pixel=8),
        "dip-ti-4": lambda: unetflops_by_part(width, patch, tokens, (32, 64)),
    }[name]()
    assert info.tokens == tokens
    assert [part.flops for part in info.parts] == [backboneflops_by_part(width, 3, patch, tokens), head]
    assert info.flops == backboneflops_by_part(width, 3, patch, tokens) + head


@pytest.mark.parametrize(
    ("attention", "parameters", "cost"), [("patches", 797_383_203, "311"), ("pixels", None, "82247")]
)
def test_pixeldit_xl_has_the_published_cost(attention: str, parameters: int | None, cost: str) -> None:
    """PixelDiT at 256²: 797M parameters and 311 GFLOPs; 82,247 GFLOPs with attention among all pixels."""
    config = preset("pixeldit-xl-16")
    detailer = dataclasses.replace(config.detailer, attention=attention)
    model = skeleton(dataclasses.replace(config, detailer=detailer))
    assert parameters in (None, sum(p.numel() for p in model.parameters()))
    assert f"{sum(flops_by_part(model, (256, 256)).values()) / 1e9:.0f}" == cost


def test_the_encoder_of_pixeldit2_is_counted() -> None:
    """As in the published count with the frozen DINOv3; its FLOPs by the formula of a ViT-S/16."""
    info = describe(preset("pixeldit2-b-16"), dtype=torch.bfloat16)
    assert info.parameters == 165_325_184 and info.weight_bytes == 2 * 143_729_024 + 4 * 21_596_160
    block = linear(261, 384, 12 * 384) + 2 * linear(261, 384, 261)  # 256 patches, class, registers
    encoder = next(part for part in info.parts if part.name == "encoder")
    assert encoder.flops == pytest.approx(12 * block + linear(256, 768, 384), rel=0.005)
    plain = describe(preset("pixeldit2-b-16"))
    assert plain.sampling_bytes > plain.weight_bytes == 4 * 165_325_184


def test_parts_between_the_blocks_are_counted_too() -> None:
    after = describe(preset("dip-ti-4", **TINY))
    both = describe(preset("dip-ti-4", placement="hybrid", **TINY))
    detailer = after.parts[1]
    assert both.flops - after.flops == detailer.flops + linear(8, 3 * 4**2, 24)
    assert {part.name for part in both.parts} == {"backbone", "detailer", "middle", "middle_to_tokens"}


def test_peak_memory_counts_what_is_alive_at_one_time() -> None:
    kilobyte = 1024
    model = nn.Linear(8, 8, device="meta")
    with PeakMemory(model) as memory:
        kept = torch.empty(kilobyte, dtype=torch.uint8, device="meta")
        for _ in range(5):
            kept.add(1)  # freed at once
        view = kept.view(32, 32).t()
        _ = model.weight.t()  # the weights are not counted
    assert memory.peak == 2 * kilobyte
    assert memory.now == kilobyte and view.shape == (32, 32)


def test_memory_grows_with_the_batch_and_training_needs_more() -> None:
    config = preset("dit-ti-4", **TINY)
    # At batch 1 a weight that is made ready for its product outweighs the activations.
    one, two, four = (describe(config, batch_size=n) for n in (8, 16, 32))
    weights = 4 * one.parameters
    assert four.sampling_bytes - two.sampling_bytes == 2 * (two.sampling_bytes - one.sampling_bytes) > 0
    assert four.training_bytes > two.training_bytes > one.training_bytes > 5 * weights
    assert one.sampling_bytes > weights


def allocated(function: Callable[[], object], model: nn.Module, autocast: torch.dtype | None) -> int:
    """Bytes that PyTorch allocates in a call at the highest.

    In float32 as its profiler saw it. In bf16, and of convolutions, the tensors of the real call are
    followed: a processor without bf16 instructions computes on float32 copies inside its kernels, and
    convolutions bring weights into the order of the processor there.
    """
    if autocast is not None or any(isinstance(module, nn.Conv2d) for module in model.modules()):
        with PeakMemory(model) as memory:
            function()
        return memory.peak
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["dit-ti-4", "pixeldit-ti-4", "dip-ti-4"])
def test_memory_is_within_15_percent_of_what_is_allocated(name: str, autocast: torch.dtype | None) -> None:
    batch, size = 1, (96, 96)  # 576 tokens: of shorter sequences a CPU keeps the scores in bf16
    info = describe(preset(name), size, batch, autocast=autocast)
    model = pw.create(name)
    x, noise = torch.randn(2, batch, 3, *size)
    t, labels = torch.rand(batch), torch.arange(batch)

    def step() -> None:
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss = flow.loss(model, x, t, noise, labels).mean()
        loss.backward()

    def draw() -> None:
        velocity = model_velocity(model, labels, SamplerSettings(guidance_scale=2.0))
        with torch.no_grad(), torch.autocast("cpu", autocast, enabled=autocast is not None):
            velocity(x, torch.tensor(0.5))

    step()  # tables are made once
    expected = {
        step: info.training_bytes - 4 * info.weight_bytes,
        draw: info.sampling_bytes - info.weight_bytes,
    }
    for function, predicted in expected.items():
        model.zero_grad()
        assert predicted == pytest.approx(allocated(function, model, autocast), rel=0.15), function.__name__


def test_mistakes_are_named() -> None:
    config = preset("dit-ti-4", patch_size=2)
    with pytest.raises(UserError, match="has no image_size"):
        describe(config)
    with pytest.raises(UserError, match="7x8"):
        describe(config, (7, 8))
    with pytest.raises(UserError, match="batch size 0"):
        describe(config, (8, 8), batch_size=0)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (999_600, "1.00 MB"),
        (12_345, "12.3 kB"),
        (311.2e9, "311 GB"),
    ],
)
def test_numbers_for_people(number: float, text: str) -> None:
    assert human(number, "B") == text


SMALL = ["dip-n-4", "pixeldit-n-8", "jit-n-8", "ddt-ti-8", "dip-t2i-ti"]


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(n, marks=pytest.mark.slow) for n in PRESETS)])
def test_what_is_stored_of_presets_is_what_would_be_found(name: str) -> None:
    """If not: python benchmarks/figures.py."""
    assert stored(name) == describe(preset(name))


def test_every_preset_is_stored() -> None:
    assert list(read_json(FIGURES)) == list(PRESETS)
