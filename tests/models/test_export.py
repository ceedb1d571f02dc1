"""The plain model leaves PyTorch: torch.export and ONNX, before and after it has been called."""

import warnings
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pixelwright as pw
from pixelwright.models.conditions import TextCondition
from pixelwright.models.denoiser import PixelDenoiser

FAMILIES = ["dip-ti-8", "pixeldit-ti-8", "dit-ti-8"]
RELATIVES = ["jit-ti-8", "pixnerd-ti-8", "deco-ti-8", "ddt-ti-8"]
SIDE = 32


def make(name: str) -> PixelDenoiser:
    torch.manual_seed(0)
    more = {"in_context_start": 0} if name.startswith("jit") else {}
    model = pw.create(name, num_classes=4, image_size=(SIDE, SIDE), depth=1, **more).eval()
    model.requires_grad_(False)
    for parameter in model.parameters():  # nothing that starts at zero stays there
        torch.nn.init.normal_(parameter, std=0.05)
    return model


def inputs(batch: int, side: int = SIDE) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(batch, 3, side, side), torch.rand(batch), torch.arange(batch) % 4


@pytest.mark.parametrize(
    ("name", "warm"), [*product(FAMILIES, (False, True)), *((name, True) for name in RELATIVES)]
)
def test_torch_export_of_any_batch(name: str, warm: bool) -> None:
    model, batch = make(name), torch.export.Dim("batch", min=1, max=64)
    if warm:
        model(*inputs(1, 2 * SIDE))
        model(*inputs(3))
    exported = torch.export.export(model, inputs(2), dynamic_shapes=({0: batch}, {0: batch}, {0: batch}))
    for count in (1, 2, 5):
        given = inputs(count)
        torch.testing.assert_close(exported.module()(*given), model(*given), rtol=0, atol=1e-6)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in RELATIVES]


@pytest.mark.parametrize("name", ["pixeldit-ti-8", "dip-ti-8", *SLOW])
def test_onnx_gives_the_same(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime: Any = pytest.importorskip("onnxruntime")
    model, given = make(name), inputs(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own
        program = torch.onnx.export(model, given, dynamo=True, verbose=False)
    assert program is not None
    program.save(str(tmp_path / "model.onnx"))
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    fed = {port.name: tensor.numpy() for port, tensor in zip(session.get_inputs(), given, strict=True)}
    found = torch.from_numpy(session.run(None, fed)[0])
    torch.testing.assert_close(found, model(*given), rtol=0, atol=1e-5)


def test_torch_export_of_captions() -> None:
    backbone = {"depth": 1, "text_size": 16, "text_length": 5}
    model = pw.create("pixeldit-t2i-ti", image_size=(SIDE, SIDE), **backbone).eval().requires_grad_(False)
    caption = TextCondition(torch.randn(2, 5, 16))

    class Called(torch.nn.Module):
        """With tensors alone, as exported programs are called."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, t: Tensor, features: Tensor) -> Tensor:
            return self.model(x, t, TextCondition(features))

    given = (*inputs(2)[:2], caption.features)
    exported = torch.export.export(Called(), given)
    torch.testing.assert_close(exported.module()(*given), model(*given[:2], caption), rtol=0, atol=1e-6)
