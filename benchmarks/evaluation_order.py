"""Do the metrics put blurred, recompressed and noised copies of a data set in the right order?

    python benchmarks/evaluation_order.py train.zip test.zip --features features/cifar10 --out order.md

The reference is a random half of the first set. Measured against it: the other half, the test set, and
degraded copies of the other half at rising strengths; the same number of images in each row, so that the bias
of that number is in all.

JPEG files hold traces of their own blocks, which a second compression meets: `--roll 4` moves all images by
half a block first, so that it does not.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from pixelwright.evaluation.features import open_extractor
from pixelwright.evaluation.images import ImageBatch, open_images
from pixelwright.evaluation.measure import METRICS, Report, measure
from pixelwright.evaluation.references import build_reference, read_reference
from pixelwright.rng import generator

Change = Callable[[Image.Image, int], Image.Image]


def blurred(radius: float) -> Change:
    """Gaussian blur, radius in pixels."""
    return lambda image, _: image.filter(ImageFilter.GaussianBlur(radius))


def recompressed(quality: int) -> Change:
    """Through a JPEG file."""

    def change(image: Image.Image, _: int) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return change


def noised(spread: float) -> Change:
    """Gaussian noise, its standard deviation in levels of 255."""

    def change(image: Image.Image, number: int) -> Image.Image:
        noise = torch.randn((*image.size[::-1], 3), generator=generator(0, "noise", number))
        levels = np.asarray(image) + spread * noise.numpy()
        return Image.fromarray(np.rint(levels).clip(0, 255).astype(np.uint8))

    return change


def unchanged(image: Image.Image, number: int) -> Image.Image:
    """As it is."""
    return image


ROWS: dict[str, Change] = {
    "the other half": unchanged,
    **{f"blurred, radius {r}": blurred(r) for r in (0.4, 0.7, 1.2)},
    **{f"JPEG, quality {q}": recompressed(q) for q in (60, 30, 20, 10)},
    **{f"noise, {s} levels": noised(s) for s in (4, 12, 32)},
}


def batches(images: Tensor, change: Change) -> Iterator[ImageBatch]:
    """A set in memory, each image changed."""
    for numbers in torch.arange(len(images)).split(256):
        changed = [change(Image.fromarray(images[n].numpy()), int(n)) for n in numbers]
        yield ImageBatch(torch.stack([torch.from_numpy(np.array(image)) for image in changed]), numbers)


def read(path: str, roll: int) -> Tensor:
    """All images of a set, uint8 [N,H,W,3], moved by some pixels in both directions."""
    images = torch.cat([batch.images for batch in open_images(path).batches(512)])
    return images.roll((roll, roll), dims=(1, 2))


def line(name: str, found: Report) -> str:
    """A row of the table."""
    cells = []
    for metric in METRICS:
        estimate = found.metrics[metric]
        digits = "{:.4f}" if metric in ("precision", "recall", "kid") else "{:.3g}"
        cells.append(f"{digits.format(estimate.value)} ± {estimate.error:.1g}")
    beyond = found.metrics["fid"].extrapolated
    return f"| {name} | {' | '.join(cells)} | {'' if beyond is None else f'{beyond:.3g}'} |"


def main() -> None:
    """Print the table, and write it to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--features", required=True)
    parser.add_argument("--count", type=int, default=10_000, help="images measured in each row")
    parser.add_argument("--roll", type=int, default=0, help="move all images by so many pixels")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose names hold one of these alone")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    extractor = open_extractor(options.features)
    train, test = (read(path, options.roll) for path in (options.train, options.test))
    order = torch.randperm(len(train), generator=generator(0, "halves"))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    titles = list(METRICS.values())
    table = [f"| | {' | '.join(titles)} | FID without bias |", "|---" * (len(titles) + 2) + "|"]
    print("\n".join(table), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/half.npz", arr_0=train[first].numpy())
        reference = Path(folder) / "reference.npz"
        build_reference(open_images(f"{folder}/half.npz"), extractor, reference)
        half = read_reference(reference)
        sets = {name: batches(train[second[: options.count]], change) for name, change in ROWS.items()}
        sets["the test set"] = batches(test[: options.count], unchanged)
        for name, images in sets.items():
            if not any(word in name for word in options.only):
                continue
            table.append(line(name, measure(images, half, extractor)))
            print(table[-1], flush=True)
    if options.out is not None:
        options.out.write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
