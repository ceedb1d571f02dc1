"""What only a GPU can show; `benchmarks/gpu.py` runs these first. Without CUDA all are skipped."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

import pixelwright as pw
from pixelwright.data import DataConfig
from pixelwright.training import ModelConfig, OptimConfig, TrainConfig, build_trainer
from pixelwright.training.config import HealthConfig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
MODELS = ("dip-n-4", "pixeldit-n-4")


def model_of(name: str) -> Any:
    """A model whose weights are all set: a new one draws nothing."""
    torch.manual_seed(0)
    model = pw.create(name, num_classes=10)
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=0.02)
    return model.eval()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # is a prototype, it says
@pytest.mark.parametrize("name", MODELS)
def test_training_steps_on_cuda_wait_for_nothing(name: str, tmp_path: Path) -> None:
    config = TrainConfig(
        run=str(tmp_path / "run"),
        model=ModelConfig(name),
        data=DataConfig(path="shapes", size=32, flip=True),
        optim=OptimConfig(warmup=2),
        health=HealthConfig(2, "clip"),
        batch_size=8,
        device="cuda",
        loggers=(),
    )
    trainer = build_trainer(config)
    inputs = list(islice(trainer._inputs(), 5))
    for each in inputs[:3]:  # the first steps make the state of the optimiser
        trainer.train_step(each)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for each in inputs[3:]:
            trainer.train_step(each)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.meter.read().skipped == 0


@pytest.mark.parametrize("name", MODELS)
def test_images_on_cuda_are_those_of_the_cpu(name: str) -> None:
    model, sampler = model_of(name), pw.SamplerSettings(steps=4)
    here = pw.sample(model, [0, 1], sampler, precision="fp32")
    there = pw.sample(model.cuda(), [0, 1], sampler, precision="fp32")
    assert (here.int() - there.int()).abs().max() <= 1  # rounding to 8 bits


@pytest.mark.parametrize("attention", ["sdpa", "flash", "math"])
def test_every_kernel_of_attention_draws_alike_on_cuda(attention: str) -> None:
    model, sampler = model_of("pixeldit-n-4").cuda(), pw.SamplerSettings(steps=4)
    exact = pw.sample(model, [0, 1], sampler, precision="fp32", attention="math")
    drawn = pw.sample(model, [0, 1], sampler, precision="bf16", attention=attention)
    assert (exact.float() - drawn.float()).abs().mean() < 2  # of 255
