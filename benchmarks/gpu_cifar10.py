"""Part cifar10 of gpu.py: a training in a given time, and what it leaves: weights, a sample sheet, FID."""

import json
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from timing import waiting
from torch import Tensor

import pixelwright as pw
from pixelwright.diffusion.labels import balanced_labels
from pixelwright.evaluation.evaluate import Scorer
from pixelwright.evaluation.images import open_images
from pixelwright.files import write_safetensors
from pixelwright.images import save_grid
from pixelwright.models.config import from_dict, to_dict
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.folder import with_weights
from pixelwright.training import (
    Callback,
    Interrupted,
    ModelConfig,
    TrainConfig,
    Trainer,
    build_trainer,
    load_config,
)

FILE_LIMIT = 15.9 * 2**20  # bytes


class Deadline(Callback):
    """Stops a run that is slower than was foreseen."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def on_step(self, trainer: Trainer) -> None:
        if time.monotonic() > self.end:
            trainer.request_stop()


def train(job: Any, name: str, settings: Path, seconds: float) -> tuple[str, dict[str, Any]]:
    """Train, draw, measure and write the weights, in about so many seconds."""
    options, plan = job.options, job.plan
    begun, drawing = time.monotonic(), seconds / 6  # of samples, for the sheet and FID
    config = cifar10_config(job, name, settings)
    with tempfile.TemporaryDirectory() as folder:
        start, step = step_seconds(replace(config, run=f"{folder}/trial"), options.dry_run)
        left = seconds - (time.monotonic() - begun) - drawing
        steps = 3 if options.dry_run else max(100, int(0.95 * (left - start) / step))
        config = replace(config, run=f"{folder}/run", steps=steps, checkpoint_every=steps)
        trainer = build_trainer(config, callbacks=[Deadline(max(left, 1.0))])
        with suppress(Interrupted):
            trainer.run()
        model = trainer.averaged()
        assert model is not None
        files = write_weights(model, options.out, f"cifar10-{name}")
        images = pw.sample(model, [i % 10 for i in range(80)], config.sample, batch_size=80)
        save_grid(images, options.out / f"cifar10-{name}.png", columns=10, scale=3)
        rate = config.batch_size / step
        figures: dict[str, Any] = {
            "steps": trainer.step,
            "of": steps,
            "images_per_second": rate,
            "files": files,
        }
        figures["loss"] = last_loss(Path(config.run))
        text = f"{trainer.step:,} of {steps:,} steps of {config.batch_size}, {rate:,.0f} images/s"
        text += f", loss {figures['loss']:.4g}" if figures["loss"] is not None else ""
        if options.features:
            figures["fid"] = fid(job, model, config, Path(folder))
            text += f", in-domain FID {figures['fid']:.4g} of {plan.measured:,} samples"
    return text, figures


def cifar10_config(job: Any, name: str, settings: Path) -> TrainConfig:
    """The settings of the small runs on CPUs, for a larger model and batch; a shorter average of the weights
    in a short run would be noisier, so that stays."""
    config, cuda, dry = load_config(settings), job.device.type == "cuda", job.options.dry_run
    path = "shapes" if dry else str(job.options.cifar10)
    data = replace(config.data, path=path, workers=job.plan.workers, shapes_count=64 if dry else None)
    return replace(
        config,
        model=ModelConfig(name, depth=min(job.options.depth, 2) if dry else job.options.depth),
        data=data,
        optim=replace(config.optim, lr=1e-3),
        batch_size=job.plan.batch,
        device=job.device.type,
        compile=cuda,
        precision="auto" if cuda else "fp32",
        sample=replace(config.sample, count=10, steps=3) if dry else config.sample,
        sample_every=0,
        loggers=(),
    )


def step_seconds(config: TrainConfig, dry: bool) -> tuple[float, float]:
    """Seconds until steps run at full speed, and of one step; nothing is written."""
    begun = time.monotonic()
    trainer = build_trainer(config)
    inputs, wait = trainer._inputs(), waiting(trainer.device)
    for _ in range(1 if dry else 20):
        trainer.train_step(next(inputs))
    wait()
    start, count = time.monotonic(), 2 if dry else 60
    for _ in range(count):
        trainer.train_step(next(inputs))
    wait()
    return start - begun, (time.monotonic() - start) / count


def last_loss(run: Path) -> float | None:
    """The last loss in a run's log."""
    lines = (run / "log.jsonl").read_text().splitlines()
    losses = [value for line in lines if (value := json.loads(line).get("loss")) is not None]
    return losses[-1] if losses else None


def fid(job: Any, model: PixelDenoiser, config: TrainConfig, folder: Path) -> float:
    """Fréchet distance of samples without guidance, the classes in turn."""
    scorer = Scorer.open(job.options.reference, job.options.features, job.device)
    labels = balanced_labels(job.plan.measured, model.config.num_classes)
    images = pw.sample(model, labels, config.sample, guidance=1.0, batch_size=1000)
    np.savez(folder / "samples.npz", arr_0=images.numpy(), arr_1=labels.numpy())
    return scorer.measure(config.model.preset, open_images(str(folder / "samples.npz"))).metrics["fid"].value


def write_weights(model: PixelDenoiser, out: Path, name: str) -> list[str]:
    """The weights in bf16 as files below 16 MiB, each with the config; their names."""
    for old in out.glob(f"{name}-*-of-*.safetensors"):
        old.unlink()
    files: list[dict[str, Tensor]] = [{}]
    for key, value in model.state_dict().items():
        half = value.detach().to("cpu", torch.bfloat16)
        if sum(x.nbytes for x in files[-1].values()) + half.nbytes > FILE_LIMIT:
            files.append({})
        files[-1][key] = half
    names = [f"{name}-{number}-of-{len(files)}.safetensors" for number in range(1, len(files) + 1)]
    for file, tensors in zip(names, files, strict=True):
        write_safetensors(
            out / file, tensors, tensors.__getitem__, {"config": json.dumps(to_dict(model.config))}
        )
    return names


def join(out: Path, folder: Path) -> Iterator[Path]:
    """Make a model folder of the files of each model."""
    for first in sorted(out.glob("cifar10-*-1-of-*.safetensors")):
        name, count = re.fullmatch(r"(.*)-1-of-(\d+)\.safetensors", first.name).groups()  # type: ignore[union-attr]
        weights: dict[str, Tensor] = {}
        for number in range(1, int(count) + 1):
            with safe_open(out / f"{name}-{number}-of-{count}.safetensors", "pt") as file:
                weights |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                config = from_dict(json.loads(file.metadata()["config"]), str(first))
        pw.save(with_weights(config, weights, str(first)), folder / name)
        yield folder / name
