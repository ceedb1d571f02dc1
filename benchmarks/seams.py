"""Where seams between patches come from: `patch_grid` of samples by sampler, and of denoised images by time.

    python benchmarks/seams.py runs/demo/dip shapes 192
    python benchmarks/seams.py runs/cifar10-pixeldit-ti cifar10/test.zip 500
    python benchmarks/seams.py runs/t2i-emoji emoji 96

Arguments: a model, real images ("shapes": those of the demo with another seed), how many of each. A model of
captions draws those of the images, and denoises none.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

import pixelwright as pw
from pixelwright.data import DataConfig, open_source
from pixelwright.diffusion.flow import interpolate
from pixelwright.evaluation.features.classifier import read_labelled
from pixelwright.evaluation.metrics import patch_grid, patch_steps
from pixelwright.images import from_uint8, to_uint8
from pixelwright.models.config import SamplerSettings

SAMPLERS = [
    ("ab2", 25, 1.0),
    ("ab2", 25, 2.0),
    ("ab2", 20, 3.0),
    ("ab2", 50, 1.0),
    ("euler", 25, 1.0),
    ("ab2", 10, 1.0),
]
TIMES = (0.05, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98)
BATCH = 64


@torch.no_grad()
def denoised(model: pw.PixelDenoiser, x: Tensor, labels: Tensor, t: float) -> Tensor:
    """Images [N,3,H,W] made noisy to time t and denoised once, uint8 [N,H,W,3]."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) * model.config.noise_scale
    x_t = interpolate(x, noise, torch.full((len(x),), t))
    parts = zip(x_t.split(BATCH), labels.split(BATCH), strict=True)
    v = torch.cat([model(part, torch.full((len(part),), t), y) for part, y in parts])
    return to_uint8(x_t + (1 - t) * v)


def main() -> None:
    run, path, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    model = pw.load(run)
    size = (model.config.image_size or (32, 32))[0]
    more = {"shapes_variation": 0.25, "shapes_seed": 1} if path == "shapes" else {}
    source = open_source(DataConfig(path=path, size=size, **more))
    indices = [i * len(source) // count for i in range(count)]
    real = read_labelled(source, indices, size, lambda number: None)

    def show(name: str, images: Tensor) -> None:
        found = patch_grid(patch_steps(images, model.config.patch_size))
        print(f"{name:40} {found.value:+.3f} ± {found.error:.3f}", flush=True)

    show("real images", real.images)
    takes_text = model.config.takes_text
    labels: Any = torch.arange(count) % max(1, model.config.num_classes)
    if takes_text:
        labels = pw.as_condition([source[i].caption or "" for i in indices], model)
    for solver, steps, guidance in SAMPLERS:
        settings = SamplerSettings(solver=solver, steps=steps, guidance_scale=guidance)
        show(
            f"samples, {solver}, {steps} steps, guidance {guidance:g}",
            pw.sample(model, labels, settings, seed=0),
        )
    for t in () if takes_text else TIMES:
        show(f"denoised from t = {t}", denoised(model, from_uint8(real.images), real.labels, t))


if __name__ == "__main__":
    main()
