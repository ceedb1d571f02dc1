"""How often the judge of ShapesBench is right, on pictures of Captioned Shapes whose scenes are known.

    python benchmarks/shapesbench_judge.py --size 32 64 --images 3000

Real: pictures judged by their own caption; right is correct and nothing else seen. Noisy: the same
pictures, blurred by half a pixel and with Gaussian noise of 12 levels. Other: pictures judged by the caption
of the next picture; right is the answer that the exact scene gives, which is mostly "wrong".
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from pixelwright.data import CaptionedShapes
from pixelwright.data.captioned import CATEGORIES
from pixelwright.data.shapes import Scene, render
from pixelwright.evaluation.prompts.shapesbench import ShapeDetection, assess, find_shapes
from pixelwright.html import markdown_table

SEED = 2  # of the set; that of training is 0


def truth(scene: Scene) -> Iterator[ShapeDetection]:
    """What a perfect reader would see."""
    for thing in scene.objects:
        (x, y), r = thing.centre, thing.radius
        yield ShapeDetection(thing.shape, thing.colour, (x - r, y - r, x + r, y + r), 1.0)


def spoil(image: np.ndarray, index: int) -> np.ndarray:
    """Blurred a little, and noisy."""
    soft = (
        image.astype(float) + np.roll(image, 1, 0) + np.roll(image, 1, 1) + np.roll(image, (1, 1), (0, 1))
    ) / 4
    noise = np.random.default_rng(index).normal(0, 12, image.shape)
    return np.clip(soft + noise, 0, 255).round().astype(np.uint8)


def rates(size: int, count: int) -> dict[str, dict[str, list[bool]]]:
    """For each kind of picture and category, whether the judge was right."""
    source = CaptionedShapes(size, SEED, count + 1)
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for index in tqdm(range(count), desc=f"{size} pixels", unit="image"):
        (claim, _, scene), (other, _, _) = source.describe(index), source.describe(index + 1)
        image = render(scene, size)
        seen = find_shapes(image)
        right["real"][claim.category].append(assess(claim, seen).exact)
        right["noisy"][claim.category].append(assess(claim, find_shapes(spoil(image, index))).exact)
        expected = assess(other, list(truth(scene))).correct
        right["other"][other.category].append(assess(other, seen).correct == expected)
        right["of these wrong"][other.category].append(not expected)
    return right


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--images", type=int, default=3000)
    options = parser.parse_args()
    for size in options.size:
        found = rates(size, options.images)
        rows = [[name, *(f"{np.mean(found[kind][name]):.2%}" for kind in found)] for name in CATEGORIES]
        print(f"\n{options.images} pictures of {size} pixels\n")
        print(markdown_table(["category", *found], rows))


if __name__ == "__main__":
    main()
