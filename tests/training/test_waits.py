"""A training step waits for nothing that the device computes, and all of it happens on one device.

The device is PyTorch's `meta`, whose tensors have no values: what reads one (`.item()`, `bool(tensor)`,
`.cpu()`, a mask as an index) raises. Two modes see the rest: constants, and copies from the CPU.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pixelwright.data import Batches, DataConfig, open_source
from pixelwright.distributed.parallel import Layout
from pixelwright.models.conditions import TextCondition
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.training import ModelConfig, OptimConfig, RepaConfig, Trainer, build_trainer
from pixelwright.training import health as health_module
from pixelwright.training.config import HealthConfig
from pixelwright.training.objectives import (
    FlowMatching,
    Forward,
    FrequencyConfig,
    Objective,
    PerceptualConfig,
)

from .conftest import Tiny

META = torch.device("meta")
MODELS = {
    "dit": ModelConfig("dit-ti-4", hidden_size=16, depth=2, num_heads=2),
    "dip": ModelConfig("dip-ti-4", hidden_size=16, depth=2, num_heads=2),
    "pixeldit": ModelConfig("pixeldit-ti-4", hidden_size=16, depth=2, num_heads=2, placement="hybrid"),
}
ROLLBACK = HealthConfig(2, "rollback", window=10, patience=2)
CASES: dict[str, dict[str, Any]] = {
    **{name: {"model": model} for name, model in MODELS.items()},
    "accumulate": {"accumulate": 2},
    "averages": {"ema_more": (0.99, "power-0.1")},
    "came": {"optim": OptimConfig(name="came", weight_decay=0.1)},
    "muon": {"model": MODELS["dip"], "optim": OptimConfig(name="muon", weight_decay=0.1)},
    "clip": {"health": HealthConfig(2, "clip")},
    "skip": {"health": HealthConfig(0, "skip")},
    "rollback": {"health": ROLLBACK},
    "all": {"health": ROLLBACK, "optim": OptimConfig(name="came"), "accumulate": 2},
}


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of the CPU together with others."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        assert len({x.device for x in tensors}) < 2, f"{function} moves or mixes {[x.shape for x in tensors]}"
        return result


class NoConstants(TorchFunctionMode):
    """Refuses tensors made of numbers, which the CPU makes and copies over."""

    made = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, Tensor.new_tensor)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function not in self.made or (
            isinstance(args[0], Tensor) and function is not Tensor.new_tensor
        )
        return function(*args, **(kwargs or {}))


class Later:
    """Stands for a number that comes from the device by the time it is read."""

    def __init__(self, number: Tensor) -> None:
        assert number.device == META

    def value(self) -> int:
        return 0


@pytest.fixture(autouse=True)
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "Later", Later)


def steps(trainer: Trainer, count: int = 6) -> None:
    """Take training steps as `run` does, without its log and checkpoints; the first may move a teacher."""
    batches = iter(trainer.data(0))
    trainer.detector._looked = 0, Later(trainer.detector.looked)  # type: ignore[assignment]
    for number in range(count):
        staged = trainer.prepare.stage(next(batches), number).map(lambda x: x.to(META))
        with ExitStack() as modes:
            for mode in (OneDevice(), NoConstants()) if number else ():
                modes.enter_context(mode)
            trainer.train_step(trainer.prepare.draw(staged, number))
            trainer.detector.persisting(trainer.step)
    assert trainer.step == count


def meta_trainer(tiny: Tiny, **changes: Any) -> Trainer:
    config = tiny(**changes)
    return build_trainer(config, layout=Layout(config.parallel, META))


@pytest.mark.parametrize("name", list(CASES))
def test_no_step_waits(tiny: Tiny, name: str) -> None:
    steps(meta_trainer(tiny, **CASES[name]))


@pytest.mark.parametrize("kept", [False, True])
def test_no_step_waits_with_repa(tiny: Tiny, dino: Path, tmp_path: Path, kept: bool) -> None:
    repa = RepaConfig(teacher=str(dino), depth=1, cache=str(tmp_path / "kept") if kept else None)
    data = DataConfig(path="shapes", size=16, shapes_count=24, flip=True)
    settings: Any = {"data": data, "objectives": (repa,), "accumulate": 2, "health": ROLLBACK}
    filling = build_trainer(tiny(**settings))  # `meta` holds no tokens that could be written
    for number, batch in zip(range(6), filling.data(0)):  # noqa: B905
        assert set(filling.prepare.stage(batch, number).targets) == ({"repa"} if kept else set())
    steps(meta_trainer(tiny, **settings))


def test_no_step_waits_with_the_frequency_aware_loss(tiny: Tiny) -> None:
    data = DataConfig(path="shapes", size=12, shapes_count=24)  # 4 pixels are padded
    steps(meta_trainer(tiny, data=data, objectives=(FrequencyConfig(),), accumulate=2))


def test_no_step_waits_with_perceptual_losses(tiny: Tiny, dino: Path) -> None:
    lpips = Path(__file__).parents[1] / "data" / "lpips.safetensors"
    tensors = {key[6:]: x for key, x in load_file(lpips).items() if key.startswith("lpips.")}
    save_file(tensors, file := dino.parent / "lpips.safetensors")
    losses = PerceptualConfig(lpips=(str(file),), teacher=str(dino), adapt_from=1, adapt_every=2)
    data = DataConfig(path="shapes", size=16, shapes_count=24)
    steps(meta_trainer(tiny, data=data, objectives=(losses,), accumulate=2))


class Captions:
    """Features of captions, on the CPU as those of a cache are."""

    def encode(self, captions: Sequence[str]) -> TextCondition:
        null = TextCondition(torch.zeros(1, 2, 12), torch.ones(1, 2) > 0)
        return TextCondition(torch.zeros(len(captions), 5, 12), torch.ones(len(captions), 5) > 0, null)

    def flush(self) -> None: ...


@pytest.mark.parametrize("health", [HealthConfig(2), ROLLBACK])
def test_no_step_waits_with_captions(tiny: Tiny, health: HealthConfig) -> None:
    data = DataConfig(path="shapes-captions", size=8, shapes_count=24)
    config = tiny(accumulate=2, health=health)
    settings = ModelConfig("pixeldit-t2i-ti", hidden_size=16, depth=2, num_heads=2, patch_size=4)
    model = PixelDenoiser(settings.denoiser(image_size=(8, 8), text_size=12)).to(META)
    source, layout = open_source(data), Layout(config.parallel, META)
    batches = lambda start: Batches(source, data, 4, 0, start, captions=True)  # noqa: E731
    steps(Trainer(model, batches, config, text=Captions(), layout=layout))  # type: ignore[arg-type]


class Waiting(Objective):
    """What the test is there to find."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, model: PixelDenoiser, batch: Forward) -> tuple[Tensor, dict[str, Tensor]]:
        loss = batch.velocity.square().mean((1, 2, 3))
        waits = {
            "item": lambda: loss * loss.sum().item(),
            "bool": lambda: loss if loss.sum() > 0 else -loss,
            "cpu": lambda: loss + loss.cpu().to(META),
            "mask": lambda: loss[loss > 0],
            "constant": lambda: loss * torch.tensor([2.0], device=META),
            "new_tensor": lambda: loss * loss.new_tensor(2.0),
            "numpy": lambda: loss + torch.ones(len(loss)).to(META),
        }
        return waits[self.how](), {}


@pytest.mark.parametrize("how", ["item", "bool", "cpu", "mask", "constant", "new_tensor", "numpy"])
def test_waits_are_found(tiny: Tiny, how: str) -> None:
    config = tiny()
    model = PixelDenoiser(config.model.denoiser(num_classes=10, image_size=(8, 8))).to(META)
    layout, source = Layout(config.parallel, META), open_source(config.data)
    batches = lambda start: Batches(source, config.data, 4, 0, start)  # noqa: E731
    trainer = Trainer(model, batches, config, [FlowMatching(), Waiting(how)], layout=layout)
    with pytest.raises((RuntimeError, AssertionError, NotImplementedError)):
        steps(trainer)
