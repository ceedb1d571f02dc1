"""FlowEdit beside SDEdit on Shapes: a change of colour, the background kept.

    python benchmarks/editing.py MODEL --out docs/results/editing

For each strength or n_max, and guidance: the share of images whose object is nearest to the colour of the
target, and the root mean square change of the background in levels of 0 to 255; curves of one against the
other. The object is where a scene differs from itself without objects.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot
from torch import Tensor

import pixelwright as pw
from pixelwright.data import Shapes, open_source
from pixelwright.data.config import DataConfig
from pixelwright.data.shapes import COLOURS, render


def drawn(shapes: Shapes, index: int, size: int) -> tuple[Tensor, Tensor, int, int]:
    """An image, the mask of its object, its label, and that of the same shape in the next colour."""
    scene, label = shapes.scene(index), shapes[index].label
    image = torch.from_numpy(render(scene, size))
    empty = torch.from_numpy(render(dataclasses.replace(scene, objects=()), size))
    shape, colours = scene.objects[0].shape, list(COLOURS)
    colour = colours[(colours.index(scene.objects[0].colour) + 3) % len(colours)]
    return image, (image != empty).any(-1), label, shapes.class_names.index(f"{colour} {shape}")


def agreement(images: Tensor, masks: Tensor, targets: list[str]) -> float:
    """Share of images whose object's mean colour is nearest to the target's."""
    table = torch.tensor([COLOURS[name][0] for name in COLOURS], dtype=torch.float32)
    means = torch.stack([image[mask].float().mean(0) for image, mask in zip(images, masks, strict=True)])
    nearest = torch.cdist(means, table).argmin(1).tolist()
    names = list(COLOURS)
    hits = [names[found] == target.split()[0] for found, target in zip(nearest, targets, strict=True)]
    return float(np.mean(hits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--variation", type=float, default=0.25, help="that of the training set")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model = pw.load(options.model)
    size = (model.config.image_size or (32, 32))[0]
    data = DataConfig(path="shapes", size=size, shapes_variation=options.variation, shapes_seed=1)
    shapes = open_source(data)
    assert isinstance(shapes, Shapes)
    found = [drawn(shapes, i, size) for i in range(options.count)]
    images, masks = torch.stack([each[0] for each in found]), torch.stack([each[1] for each in found])
    source, target = ([each[place] for each in found] for place in (2, 3))
    names = [shapes.class_names[label] for label in target]
    own = [shapes.class_names[label] for label in source]
    print(json.dumps({"own colour found in the pictures": agreement(images, masks, own)}))
    rows = []
    for method, more in runs(source):
        start = time.process_time()
        edited = pw.edit(model, images, target, method=method, **more)
        seconds = (time.process_time() - start) / len(images)
        change = (edited.float() - images.float()).square().mean(-1)
        kept = [each[~mask].mean().sqrt() for each, mask in zip(change, masks, strict=True)]
        row = {"method": method, **{name: value for name, value in more.items() if name != "source"}}
        row |= {"agreement": agreement(edited, masks, names), "background": float(torch.stack(kept).mean())}
        rows.append({**row, "seconds": seconds})
        print(json.dumps(rows[-1]), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "editing.json").write_text(json.dumps(rows, indent=1) + "\n")
    plot(rows, options.out / "editing-curve.png")


def runs(source: list[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Methods and settings that are compared."""
    for guidance in (1.0, 2.0, 4.0):
        for strength in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
            yield "sdedit", {"strength": strength, "guidance_scale": guidance}
        for n_max in (15, 25, 33, 40, 45, 50):
            scales = {"source_guidance_scale": 1.0, "guidance_scale": guidance}
            yield "flowedit", {"source": source, "n_max": n_max, **scales}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """A curve over strength or n_max for each guidance scale."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        curves.setdefault(f"{row['method']}, guidance {row['guidance_scale']:g}", []).append(row)
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name, points in curves.items():
        style = "--" if name.startswith("sdedit") else "-"
        x, y = ([point[axis] for point in points] for axis in ("background", "agreement"))
        axes.plot(x, y, style, marker="o", label=name)
    axes.set(xlabel="change of the background, levels of 255", ylabel="share with the target's colour")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
