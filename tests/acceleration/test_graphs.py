"""CUDA graphs: on a CPU by a recorder that treats memory as CUDA does, and itself where there is a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pixelwright as pw
from pixelwright.acceleration import AcceleratedDenoiser, accelerate, graphs
from pixelwright.acceleration.graphs import CannotRecord, CudaRecord, Graphs
from pixelwright.diffusion.solvers import Step
from pixelwright.errors import UserError
from pixelwright.models.conditions import TextCondition
from pixelwright.models.config import DenoiserConfig, SamplerSettings
from pixelwright.models.detailers.pit import PiTConfig
from pixelwright.models.detailers.unet import UNetConfig
from tests.acceleration.test_accelerate import CLASSES, TEXT, inputs, network

PIT = PiTConfig(1, 8, 16, 2)
GUIDED: dict[str, Any] = {"steps": 6, "guidance_scale": 2.5, "guidance_interval": (0.2, 0.7)}
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Recorder:
    """A replay reads the very memory the recording read, and spoils the results of all recordings."""

    def __init__(self) -> None:
        self.replays: list[int] = []
        self.results: list[Tensor] = []

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        self.results.append(torch.full_like(function(), torch.nan))  # recording computes nothing
        number = len(self.results) - 1

        def replay() -> None:
            self.replays.append(number)
            for result in self.results:
                result.fill_(torch.nan)
            self.results[number].copy_(function())

        return self.results[number], replay


def model_with(record: graphs.Record, detailer: Any = PIT, text: bool = False) -> AcceleratedDenoiser:
    model = accelerate(network(DenoiserConfig(TEXT if text else CLASSES, detailer)), "fp32")
    model._graphs = Graphs(record)
    return model


def draw(model: AcceleratedDenoiser, condition: Any, solver: str = "ab2", **more: Any) -> Tensor:
    """Samples before they are rounded to 8 bits."""
    seen: list[Tensor] = []

    def look(step: Step) -> None:
        seen.extend((step.x, step.velocity))

    pw.sample(model, condition, SamplerSettings(solver, **GUIDED), size=(16, 24), callback=look, **more)
    return torch.cat(seen)


@pytest.mark.parametrize("solver", ["ab2", "heun", "dpmpp-2m"])
@pytest.mark.parametrize("detailer", [PIT, UNetConfig((8, 12))], ids=["pit", "unet"])
def test_samples_are_the_same_to_the_bit(detailer: Any, solver: str) -> None:
    """Five images in batches of 2, 2 and 1, two of six steps of which are guided."""
    recorder = Recorder()
    model = model_with(recorder, detailer)
    settings: dict[str, Any] = {"solver": solver, "batch_size": 2}
    replayed = draw(model, [0, 1, 2, 0, 1], **settings)
    assert len(recorder.results) == 3  # 2 images, 4 for both branches of 2, and 1: 2 are both branches of 1
    evaluations = 3 * (11 if solver == "heun" else 6)
    assert len(recorder.replays) == evaluations
    model._graphs = None
    assert torch.equal(replayed, draw(model, [0, 1, 2, 0, 1], **settings))


def test_captions_of_another_length_are_another_recording() -> None:
    recorder = Recorder()
    model = model_with(recorder, text=True)
    g = torch.Generator().manual_seed(3)
    captions = [
        TextCondition(torch.randn(2, 5, 16, generator=g), torch.arange(5) < torch.tensor([[5], [2]])),
        TextCondition(torch.randn(2, 5, 16, generator=g), torch.arange(5) < torch.tensor([[1], [4]])),
        TextCondition(torch.randn(2, 3, 16, generator=g)),
    ]
    counts, drawn = [], []
    for caption in captions:
        drawn.append(draw(model, caption))
        counts.append(len(recorder.results))
    assert counts == [2, 2, 4]
    model._graphs = None
    assert all(torch.equal(draw(model, c), x) for c, x in zip(captions, drawn, strict=True))


@torch.no_grad()
def test_the_dtype_of_autocast_is_part_of_the_shape() -> None:
    recorder = Recorder()
    model = model_with(recorder)
    x, t, labels = inputs(model.config)
    exact = model(x, t, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(model(x, t, labels), exact)
    assert torch.equal(model(x, t, labels), exact) and recorder.replays == [0, 1, 0]


def test_what_cannot_be_recorded_is_evaluated_and_said_once() -> None:
    def record(_: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        raise CannotRecord("operation not permitted when stream is capturing")

    model = model_with(record)
    with pytest.warns(UserWarning, match="without a CUDA graph: operation not permitted") as warned:
        drawn = draw(model, [0, 1])
    assert len(warned) == 2  # with guidance and without
    model._graphs = None
    assert torch.equal(drawn, draw(model, [0, 1]))


def test_mistakes_are_those_of_the_model() -> None:
    model = model_with(Recorder())
    x, t, labels = inputs(model.config)
    with pytest.raises(UserError, match="multiples"):
        model(x[..., :-1], t, labels)


@torch.no_grad()
def test_only_so_many_recordings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST", 2)
    recorder = Recorder()
    model = model_with(recorder)
    x, t, labels = inputs(model.config)
    for count in (1, 2, 3, 2, 1):
        model(x[:count], t[:count], labels[:count])
    assert recorder.replays == [0, 1, 2, 1, 3]


# --- with a GPU --------------------------------------------------------------------------------------------
@on_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("detailer", [PIT, UNetConfig((8, 12))], ids=["pit", "unet"])
def test_cuda_graphs_change_nothing(detailer: Any, text: bool, precision: str) -> None:
    config = DenoiserConfig(TEXT if text else CLASSES, detailer)
    model, condition = network(config).cuda(), inputs(config)[2]
    without, replayed = (
        draw(accelerate(model, precision, graphs=on), condition, batch_size=2) for on in (False, True)
    )
    assert torch.equal(without, replayed)


@on_cuda
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_samples_on_cuda_are_those_without_graphs() -> None:
    model = network(DenoiserConfig(CLASSES, PIT)).cuda()
    without, replayed = (
        draw(accelerate(model, "bf16", compile=True, graphs=on), [0, 1]) for on in (False, True)
    )
    assert torch.equal(without, replayed)


@on_cuda
def test_reading_back_cannot_be_recorded_and_harms_nothing() -> None:
    x, t, labels = (tensor.cuda() for tensor in (torch.randn(2, 3, 8, 8), torch.rand(2), torch.arange(2)))

    def evaluate(x: Tensor, t: Tensor, _: Any) -> Tensor:
        return x * float(t.sum())

    evaluations = Graphs(CudaRecord(x.device))
    with pytest.warns(UserWarning, match="without a CUDA graph"):
        assert torch.equal(evaluations(evaluate, x, t, labels), evaluate(x, t, labels))
    assert torch.equal(evaluations(lambda x, t, _: x + t, x, x, labels), x + x)  # another shape, as ever
