"""Part training of gpu.py: a training in a given time, and what it leaves: weights, a sample sheet, FID."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

import pixelwright as pw
from pixelwright.config import steps_of
from pixelwright.data import DataConfig
from pixelwright.data.config import PROCEDURAL, SHAPES, SHAPES_CAPTIONS
from pixelwright.diffusion.labels import balanced_labels
from pixelwright.evaluation.evaluate import Scorer
from pixelwright.evaluation.images import open_images
from pixelwright.files import write_safetensors, write_text
from pixelwright.images import save_grid
from pixelwright.models.config import from_dict, to_dict
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.folder import with_weights
from pixelwright.training import Callback, Interrupted, TrainConfig, Trainer, build_trainer, load_config

FILE_LIMIT = 15.9 * 2**20  # bytes


class Pace(Callback):
    """Ends a run when its time is over, however fast it is: the learning rate falls to zero over the last
    `share` of the time instead of the steps."""

    every, share = 20, 0.4

    def __init__(self, seconds: float) -> None:
        self.seconds, self.end = seconds, time.monotonic() + seconds

    def on_step(self, trainer: Trainer) -> None:
        left = self.end - time.monotonic()
        if left <= 0:
            trainer.request_stop()
        factor = min(1.0, max(left, 0.0) / (self.share * self.seconds))
        optim = replace(self.optim, lr=max(self.optim.lr * factor, 1e-6))
        trainer.config = replace(trainer.config, optim=optim)

    def on_start(self, trainer: Trainer) -> None:
        self.optim = trainer.config.optim


def train(job: Any, settings: Path, seconds: float) -> tuple[str, dict[str, Any]]:
    """Train, draw, measure and write the weights, in about so many seconds."""
    options, name, begun = job.options, settings.stem, time.monotonic()
    config = timed_config(job, settings)
    trainer = build_trainer(config, callbacks=[Pace(seconds - min(90.0, seconds / 5))])
    with suppress(Interrupted):
        trainer.run()
    trained = time.monotonic() - begun
    model = trainer.averaged()
    assert model is not None
    files = write_weights(model, options.out, name)
    draw_sheet(model, config, options.out / f"{name}.png")
    log = Path(config.run, "log.jsonl").read_text()
    write_text(options.out / f"{name}.jsonl", log)
    lines = [json.loads(line) for line in log.splitlines()]
    rate = median(line["images_per_second"] for line in lines)
    losses = [line["loss"] for line in lines if line["loss"] is not None]
    figures: dict[str, Any] = {"steps": trainer.step, "seconds": trained, "files": files}
    figures |= {"loss": losses[-1] if losses else None, "images_per_second": rate}
    text = f"{trainer.step:,} steps of {config.batch_size} in {trained:.0f} s, {rate:,.0f} images/s"
    text += f", loss {losses[-1]:.4g}" if losses else ""
    if options.features and not model.config.takes_text:
        figures["fid"] = fid(job, model, config)
        text += f", in-domain FID {figures['fid']:.4g} of {job.plan.measured:,} samples"
    return text, figures


def timed_config(job: Any, settings: Path) -> TrainConfig:
    """The settings of a file for this machine, with more steps than there is time for."""
    config, cuda, dry = load_config(settings), job.device.type == "cuda", job.options.dry_run
    data, captioned = config.data, config.text is not None
    if dry:
        path = SHAPES_CAPTIONS if captioned else SHAPES
        data = DataConfig(path=path, size=data.size, shapes_count=64, flip=not captioned)
    elif data.path not in PROCEDURAL:
        data = replace(data, path=str(getattr(job.options, data.path.split("/")[0])))
    return replace(
        config,
        run=str(job.options.out / "runs" / settings.stem),
        model=replace(config.model, depth=1) if dry else config.model,
        data=data,
        text=replace(config.text, cache=None) if config.text else None,
        steps=3 if dry else 1_000_000,
        batch_size=4 if dry else config.batch_size,
        optim=replace(config.optim, cooldown=0, warmup=steps_of(config.optim.warmup, config.steps)),
        device=job.device.type,
        compile=cuda,
        precision="auto" if cuda else "fp32",
        sample=replace(config.sample, count=10, steps=3) if dry else config.sample,
        sample_every=0,
        checkpoint_every=1_000_000,
        loggers=(),
    )


def draw_sheet(model: PixelDenoiser, config: TrainConfig, path: Path) -> None:
    """Eight samples of each class, or three of each prompt, unselected: a column each."""
    prompts = config.sample.prompts
    wanted: list[Any] = [*prompts] * 3 if model.config.takes_text else [i % 10 for i in range(80)]
    images = pw.sample(model, wanted, config.sample, batch_size=len(wanted))
    save_grid(images, path, columns=len(prompts) if model.config.takes_text else 10, scale=3)


def fid(job: Any, model: PixelDenoiser, config: TrainConfig) -> float:
    """Fréchet distance of samples without guidance, the classes in turn."""
    scorer = Scorer.open(job.options.reference, job.options.features, job.device)
    labels = balanced_labels(job.plan.measured, model.config.num_classes)
    images = pw.sample(model, labels, config.sample, guidance=1.0, batch_size=1000)
    file = Path(config.run) / "samples.npz"
    np.savez(file, arr_0=images.numpy(), arr_1=labels.numpy())
    return scorer.measure(config.model.preset, open_images(str(file))).metrics["fid"].value


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
    for first in sorted(out.glob("*-1-of-*.safetensors")):
        name, count = re.fullmatch(r"(.*)-1-of-(\d+)\.safetensors", first.name).groups()  # type: ignore[union-attr]
        weights: dict[str, Tensor] = {}
        for number in range(1, int(count) + 1):
            with safe_open(out / f"{name}-{number}-of-{count}.safetensors", "pt") as file:
                weights |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                config = from_dict(json.loads(file.metadata()["config"]), str(first))
        pw.save(with_weights(config, weights, str(first)), folder / name)
        yield folder / name
