"""CUDA graphs: on a CPU by a recorder that treats memory as CUDA does, and itself where there is a GPU."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pixelwright as pw
from pixelwright.acceleration import fast, graphs
from pixelwright.acceleration.fast import FastDenoiser, prepared
from pixelwright.acceleration.graphs import CannotRecord, CudaRecord, Graphs
from pixelwright.errors import UserError
from pixelwright.models.conditions import TextCondition
from pixelwright.models.config import DenoiserConfig, PiTConfig, UNetConfig
from pixelwright.models.layers import rope_2d
from tests.acceleration.test_fast import CLASSES, TEXT, inputs, network

PIT = PiTConfig(1, 8, 16, 2)
GUIDED: dict[str, Any] = {
    "size": (16, 24),
    "steps": 6,
    "guidance_scale": 2.5,
    "guidance_interval": (0.2, 0.7),
}
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


def model_with(record: graphs.Record, detailer: Any = PIT, text: bool = False) -> FastDenoiser:
    model = FastDenoiser(network(DenoiserConfig(TEXT if text else CLASSES, detailer)), torch.float32)
    model.graphs = Graphs(record)
    return model


def draw(model: FastDenoiser, condition: Any, **settings: Any) -> Tensor:
    """Samples before they are rounded to 8 bits."""
    seen: list[Tensor] = []

    def look(step: pw.diffusion.sample.Step) -> None:
        seen.extend((step.x, step.velocity))

    pw.sample(model, condition, callback=look, **GUIDED, **settings)
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
    model.graphs = None
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
    model.graphs = None
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
    model.graphs = None
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


def test_gradients_and_taps_need_the_model_itself() -> None:
    recorder = Recorder()
    model = model_with(recorder)
    x, t, labels = inputs(model.config)
    assert model(x.requires_grad_(), t, labels).sum().requires_grad
    _, tokens = model(x.detach(), t, labels, tap=1)
    assert tokens.shape == (3, 6, 24) and not recorder.results


@torch.no_grad()
def test_a_model_that_moves_is_recorded_anew() -> None:
    recorder = Recorder()
    model = model_with(recorder)
    x, t, labels = inputs(model.config)
    model(x, t, labels)
    model.to("cpu")(x, t, labels)
    assert recorder.replays == [0, 1]


@torch.no_grad()
def test_tables_live_as_long_as_what_reads_them() -> None:
    model = model_with(Recorder())
    x, t, labels = inputs(model.config)
    model(x, t, labels)
    cosines = weakref.ref(rope_2d((2, 3), 12, torch.device("cpu"))[0])
    for columns in range(100, 170):  # more than the cache remembers
        rope_2d((1, columns), 12, torch.device("cpu"))
    assert cosines() is not None
    assert model.graphs is not None
    model.graphs.forget()
    gc.collect()
    assert cosines() is None


@pytest.mark.parametrize(
    ("device", "dtype", "compile", "triton", "made"),
    [
        ("cpu", None, True, False, None),
        ("cpu", torch.bfloat16, True, False, (torch.bfloat16, False, False, False)),
        ("mps", torch.bfloat16, True, False, (torch.bfloat16, True, False, False)),
        ("cuda", None, False, False, None),
        ("cuda", None, True, False, (torch.float32, True, True, False)),
        ("cuda", None, False, True, (torch.float32, False, False, True)),
        ("cuda", torch.bfloat16, True, True, (torch.bfloat16, True, True, True)),
    ],
)
def test_what_is_prepared_where(
    device: str,
    dtype: torch.dtype | None,
    compile: bool,
    triton: bool,
    made: tuple[Any, ...] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Made:
        def __init__(self, _: Any, *settings: Any) -> None:
            self.settings = settings

    model = network(DenoiserConfig(CLASSES, PIT))
    monkeypatch.setattr(fast, "device_of", lambda _: torch.device(device))
    monkeypatch.setattr(fast, "FastDenoiser", Made)
    result: Any = prepared(model, dtype, compile, triton)
    assert result is model if made is None else result.settings == made


def test_settings_that_cannot_be_honoured_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(DenoiserConfig(CLASSES, PIT))
    for setting in ("graphs", "triton"):
        with pytest.raises(UserError, match=f"{setting} is true, but the device is cpu: use cuda, or leave"):
            FastDenoiser(model, torch.float32, **{setting: True})
    with pytest.raises(UserError, match="triton is true, but the device is cpu"):
        pw.sample(model, [0], size=(16, 16), triton=True)
    with pytest.raises(UserError, match="made without"):
        pw.sample(FastDenoiser(model, torch.float32), [0], size=(16, 16), triton=True)
    monkeypatch.setattr(fast, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install triton"):
        fast.check_triton(torch.device("cuda"))


# --- with a GPU --------------------------------------------------------------------------------------------
@on_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("detailer", [PIT, UNetConfig((8, 12))], ids=["pit", "unet"])
def test_cuda_graphs_change_nothing(detailer: Any, text: bool, dtype: torch.dtype) -> None:
    config = DenoiserConfig(TEXT if text else CLASSES, detailer)
    model = network(config).cuda()
    settings: dict[str, Any] = {"batch_size": 2, "autocast": None if dtype == torch.float32 else dtype}
    without, replayed = (
        draw(FastDenoiser(model, dtype, graphs=on), inputs(config)[2], **settings) for on in (False, True)
    )
    assert torch.equal(without, replayed)


@on_cuda
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_samples_on_cuda_are_those_without_graphs() -> None:
    model = network(DenoiserConfig(CLASSES, PIT)).cuda()
    bf16 = torch.bfloat16
    without = pw.sample(FastDenoiser(model, bf16, compile_blocks=True), [0, 1], autocast=bf16, **GUIDED)
    assert torch.equal(pw.sample(model, [0, 1], autocast=bf16, compile=True, **GUIDED), without)


@on_cuda
def test_reading_back_cannot_be_recorded_and_harms_nothing() -> None:
    x, t, labels = (tensor.cuda() for tensor in (torch.randn(2, 3, 8, 8), torch.rand(2), torch.arange(2)))

    def evaluate(x: Tensor, t: Tensor, _: Any) -> Tensor:
        return x * float(t.sum())

    evaluations = Graphs(CudaRecord(x.device))
    with pytest.warns(UserWarning, match="without a CUDA graph"):
        assert torch.equal(evaluations(evaluate, x, t, labels), evaluate(x, t, labels))
    assert torch.equal(evaluations(lambda x, t, _: x + t, x, x, labels), x + x)  # another shape, as ever
