"""Run by `test_kernels.py` with TRITON_INTERPRET=1: Triton's interpreter computes on a CPU."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from pixelwright.acceleration import fast, fused, kernels
from pixelwright.acceleration.fast import FastDenoiser
from pixelwright.models.config import DenoiserConfig, PiTConfig, UNetConfig
from tests.acceleration.test_fast import CLASSES, TEXT, inputs, network
from tests.recordings import difference

TOKENS = [(2, 5, 1152), (3, 1, 40), (1, 130, 3), (5, 7, 129)]
PIXELS = [(2, 3, 16, 16), (1, 5, 49, 8), (3, 2, 9, 24), (1, 1, 1, 2)]


def arguments(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, ...]:
    """x, gate, y, weight, shift, scale; the parts of a modulation lie side by side, as adaLN leaves them."""
    g = torch.Generator().manual_seed(sum(shape))
    *rows, size = shape
    modulated = rows if len(rows) == 3 else (rows[0], 1)  # pixel by pixel, or image by image
    x, y, weight, six = (torch.randn(s, generator=g) for s in (shape, shape, (size,), (*modulated, 6 * size)))
    _, _, gate, shift, scale, _ = six.to(device, dtype).chunk(6, -1)
    return x.to(device, dtype), gate, y.to(device, dtype), weight.to(device), shift, scale


def formula(
    x: Tensor, gate: Tensor, y: Tensor, weight: Tensor, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What both kernels should give: of x alone, and the two results of the gated one."""
    total = fused.gated_add(x, gate, y)
    norm_modulate = fused.norm_modulate
    return norm_modulate(x, weight, shift, scale), total, norm_modulate(total, weight, shift, scale)


def check(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> None:
    """float32: to 1e-5; bfloat16: within twice the error of the formula in bfloat16."""
    given = x, _, _, weight, shift, scale = arguments(shape, dtype, device)
    found = (kernels.norm_modulate(x, weight, shift, scale), *kernels.gated_norm_modulate(*given))
    exact = formula(*(tensor.float() for tensor in given))
    for ours, theirs, truth in zip(found, formula(*given), exact, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape) and ours.is_contiguous()
        if dtype == torch.float32:
            assert difference(ours, theirs) < 1e-5
        else:
            assert (ours - truth).norm() <= 2 * (theirs - truth).norm()


@pytest.mark.parametrize("shape", [*TOKENS, *PIXELS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_formulas(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(shape, dtype)


def test_mixed_dtypes_widen_as_in_the_formula() -> None:
    x, gate, y, weight, shift, scale = arguments((2, 3, 16), torch.bfloat16)
    for mixed in (
        (x, gate, y.float(), weight, shift, scale),
        (x.float(), gate, y, weight, shift, scale),
        (x, gate, y, weight, shift.float(), scale.float()),
    ):
        found = (kernels.norm_modulate(mixed[0], *mixed[3:]), *kernels.gated_norm_modulate(*mixed))
        for ours, theirs in zip(found, formula(*mixed), strict=True):
            assert ours.dtype == theirs.dtype and difference(ours.float(), theirs.float()) < 1e-2


def test_the_compiler_is_told_the_truth() -> None:
    """Shapes, dtypes and strides without data; nothing is written into an input."""
    x, gate, y, weight, shift, scale = arguments((2, 3, 9, 16), torch.float32)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for layout in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):
        torch.library.opcheck(kernels.norm_modulate, (layout, weight, shift, scale), test_utils=tests)
        given = (layout, gate, y, weight, shift, scale)
        torch.library.opcheck(kernels.gated_norm_modulate, given, test_utils=tests)


def counted_launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets a 1 for each launch of a kernel."""
    calls: list[int] = []
    launch = kernels._launch

    def counted(*given: Any) -> Any:
        calls.append(1)
        return launch(*given)

    monkeypatch.setattr(kernels, "_launch", counted)
    return calls


@pytest.mark.parametrize(
    ("config", "kernels_run"),
    [
        (DenoiserConfig(CLASSES, PiTConfig(2, 8, 16, 2)), 4 + 4),
        (DenoiserConfig(CLASSES, PiTConfig(1, 8, 16, 2, True)), 4),  # after the sub-layers: nothing to fuse
        (DenoiserConfig(CLASSES, UNetConfig((8,)), placement="hybrid"), 4),
        (DenoiserConfig(TEXT, PiTConfig(1, 8, 16, 2)), 4 + 3 + 2),  # the last text is only attended to
    ],
)
@torch.no_grad()
def test_a_model_with_the_kernels_equals_the_model(
    config: DenoiserConfig, kernels_run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every norm with a modulation is a kernel; the interpreter is content with a CPU."""
    monkeypatch.setattr(fast, "check_triton", lambda _: None)
    calls = counted_launches(monkeypatch)
    model = network(config)
    exact = model(*inputs(config))
    assert difference(FastDenoiser(model, torch.float32, triton=True)(*inputs(config)), exact) < 1e-5
    assert sum(calls) == kernels_run
    with torch.autocast("cpu", torch.bfloat16):
        errors = [
            (each(*inputs(config)) - exact).norm()
            for each in (model, FastDenoiser(model, torch.bfloat16, triton=True))
        ]
    assert errors[1] <= 2 * errors[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@torch.no_grad()
def test_compiled_blocks_hold_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block is one graph of the compiler, with the kernels in it."""
    monkeypatch.setattr(fast, "check_triton", lambda _: None)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    config = DenoiserConfig(CLASSES, PiTConfig(1, 8, 16, 2))
    model = network(config)
    compiled = FastDenoiser(model, torch.float32, compile_blocks=True, triton=True)
    compiled(*inputs(config))
    calls = counted_launches(monkeypatch)
    assert difference(compiled(*inputs(config)), model(*inputs(config))) < 1e-5
    assert sum(calls) == 4 + 2
