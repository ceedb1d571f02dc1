"""Training and sampling on a device that is not the CPU: nothing of one step is on two devices."""

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

import pixelwright as pw
from pixelwright.distributed.config import ParallelConfig
from pixelwright.distributed.parallel import Layout
from pixelwright.text import TextConfig, open_encoder
from pixelwright.training import ModelConfig, TrainConfig, build_trainer
from pixelwright.training.config import HealthConfig, OptimConfig
from pixelwright.training.inputs import Preparation
from tests.far import FAR, Far

from .conftest import Tiny

SMALL = {"hidden_size": 16, "depth": 2, "num_heads": 2}
CLASSES = ["dit-ti-4", "dip-ti-8", "pixeldit-ti-4"]


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Another device than the CPU, and nothing in threads, of which each would need a `Far` of its own."""
    monkeypatch.setattr(Preparation, "ahead", lambda own, batches, start: map(own, batches, count(start)))
    with Far():
        yield FAR


def test_tensors_of_two_devices_do_not_meet(far: torch.device) -> None:
    here, there = torch.ones(2), torch.ones(2, device=far)
    assert (there + 1).device == far and (there * torch.tensor(2.0)).cpu().tolist() == [2, 2]
    with pytest.raises(RuntimeError, match="on the CPU"):
        here + there


@pytest.mark.parametrize("name", [*CLASSES, "dip-t2i-ti", "pixeldit-t2i-ti"])
@pytest.mark.parametrize("solver", ["euler", "heun", "ab2"])
def test_images_are_drawn_on_another_device(name: str, solver: str, bert: Path, far: torch.device) -> None:
    text = name in ("dip-t2i-ti", "pixeldit-t2i-ti")
    own = {"text_size": 24, "text_length": 8} if text else {"num_classes": 3}
    model = pw.create(name, image_size=(16, 16), **SMALL, **own)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    sampler = pw.SamplerSettings(solver, 3, guidance_scale=2.0, guidance_interval=(0.2, 0.9))
    labels: Any = [0, 2, 1]
    if text:
        labels = open_encoder(TextConfig("minilm", path=str(bert)), model.config).encode(
            ["a star", "red", "a"]
        )
    here = pw.sample(model, labels, sampler, batch_size=2)
    there = pw.sample(model.to(far), labels, sampler, batch_size=2)
    assert there.device.type == "cpu" and (here.int() - there.int()).abs().max() <= 1
    assert model.device == far


@pytest.mark.parametrize("name", [*CLASSES, "dip-t2i-ti"])
def test_a_run_trains_on_another_device_as_on_the_cpu(
    name: str, tiny: Tiny, bert: Path, far: torch.device, tmp_path: Path, no_extras: None
) -> None:
    def losses(device: torch.device) -> list[float]:
        changes: dict[str, Any] = {"model": ModelConfig(name, **SMALL), "steps": 4, "checkpoint_every": 2}
        changes |= {"sample_every": 2, "accumulate": 2, "optim": OptimConfig(lr=1e-3, clip=1.0)}
        changes |= {"health": HealthConfig(measure_every=2)}
        if name == "dip-t2i-ti":
            changes["text"] = TextConfig("minilm", path=str(bert))
        config: TrainConfig = tiny(device.type, **changes)
        folder = build_trainer(config, layout=Layout(ParallelConfig(), device)).run()
        assert (folder / "samples" / "step-0000004.png").is_file()
        lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if "loss" in line]

    here, there = losses(torch.device("cpu")), losses(far)
    assert len(there) == 4 and there == pytest.approx(here, rel=1e-4)
