"""Restoration of test images beside classical methods: PSNR, SSIM, distance to y, processor time.

    python benchmarks/restoration.py MODEL cifar10/test.zip --count 100 --out docs/results/restoration

Super-resolution beside bicubic, deblurring beside Richardson-Lucy, colourisation beside the grey picture,
random masks beside biharmonic interpolation. Needs scikit-image, which is no dependency.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from skimage.restoration import inpaint_biharmonic, richardson_lucy
from torch import Tensor
from torch.nn import functional as F

import pixelwright as pw
from pixelwright.data import open_source
from pixelwright.data.config import DataConfig
from pixelwright.editing import operators as ops
from pixelwright.images import from_uint8, save_grid, to_uint8

METHODS = ("ddnm", "pigdm", "pnp", "dps")


def tasks(size: tuple[int, int]) -> dict[str, ops.Operator]:
    return {
        "super-resolution ×4": ops.AveragePool(4),
        "deblurring, σ 1.5": ops.Blur.gaussian(1.5),
        "colourisation": ops.Grey(),
        "random mask, 70 % lost": ops.Mask.random(size, 0.7),
    }


def classical(task: str, operator: ops.Operator, y: Tensor) -> tuple[str, Tensor]:
    """What does without a model, float [B,3,H,W]."""
    if isinstance(operator, ops.AveragePool):
        return "bicubic", F.interpolate(y, scale_factor=operator.factor, mode="bicubic").clamp(-1, 1)
    if isinstance(operator, ops.Blur):
        kernel, reach = operator.kernel.numpy(), len(operator.kernel)
        unit = F.pad(y / 2 + 0.5, [reach] * 4, mode="circular").clamp(1e-4, 1).numpy()  # as the blur goes on
        found = [[richardson_lucy(plane, kernel, num_iter=30) for plane in image] for image in unit]
        inside = np.array(found)[..., reach:-reach, reach:-reach]
        return "Richardson-Lucy", torch.from_numpy(inside).float() * 2 - 1
    if isinstance(operator, ops.Grey):
        return "grey", y.expand(-1, 3, -1, -1)
    assert isinstance(operator, ops.Mask)
    hole = operator.missing.numpy()
    found = [inpaint_biharmonic(image.permute(1, 2, 0).numpy(), hole, channel_axis=-1) for image in y]
    return "biharmonic", torch.from_numpy(np.array(found)).permute(0, 3, 1, 2).float().clamp(-1, 1)


def score(task: str, name: str, x: Tensor, truth: Tensor, y: Tensor, seconds: float) -> dict[str, object]:
    operator = tasks((truth.shape[1], truth.shape[2]))[task]
    pairs = [(a.numpy(), b.numpy()) for a, b in zip(truth, to_uint8(x), strict=True)]
    return {
        "task": task,
        "method": name,
        "psnr": float(np.mean([peak_signal_noise_ratio(a, b) for a, b in pairs])),
        "ssim": float(np.mean([structural_similarity(a, b, channel_axis=-1) for a, b in pairs])),
        "distance": float((operator.A(x.clamp(-1, 1)) - y).square().mean().sqrt()),
        "seconds": seconds / len(truth),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", help="images by class: a folder or zip, or shapes")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model = pw.load(options.model)
    size = model.config.image_size or (32, 32)
    source = open_source(DataConfig(path=options.data, size=size[0]))
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[: options.count].tolist()
    samples = [source[i] for i in order]
    truth = torch.stack([torch.from_numpy(np.array(sample.image)) for sample in samples])
    labels = torch.tensor([sample.label for sample in samples])
    rows, shown = [], []
    for task, operator in tasks(size).items():
        y = operator.A(from_uint8(truth))
        start = time.process_time()
        name, x = classical(task, operator, y)
        rows.append(score(task, name, x, truth, y, time.process_time() - start))
        columns = [truth[0], to_uint8(operator.pinv(y))[0], to_uint8(x)[0]]
        for method in METHODS:
            start = time.process_time()
            x = pw.restore(model, y, operator, method, labels, options.steps, "float", batch_size=25)
            rows.append(score(task, method, x, truth, y, time.process_time() - start))
            columns.append(to_uint8(x)[0])
        print("\n".join(json.dumps(row, ensure_ascii=False) for row in rows[-5:]), flush=True)
        shown += columns
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    titles = ["original", "measured", "classical", *METHODS]
    save_grid(torch.stack(shown), options.out / "restoration.png", len(titles), 3, titles)


if __name__ == "__main__":
    main()
