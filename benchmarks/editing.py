"""FlowEdit beside SDEdit on Shapes: a change of colour, the background kept.

    python benchmarks/editing.py MODEL --count 48 --out docs/results/editing

For each strength and n_max: the share of images whose object is nearest to the colour of the target, and the
root mean square change of the background in levels of 0 to 255. The object is where a scene differs from
itself without objects.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import pixelwright as pw
from pixelwright.data import Shapes, open_source
from pixelwright.data.config import DataConfig
from pixelwright.data.shapes import COLOURS, render
from pixelwright.images import save_grid


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
    parser.add_argument("--variation", type=float, default=0.6, help="that of the training set")
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
    runs: list[tuple[str, dict[str, object]]] = [
        (f"sdedit {strength}", {"method": "sdedit", "strength": strength, "guidance_scale": 2.0})
        for strength in (0.3, 0.5, 0.6, 0.7, 0.8)
    ]
    for scale in (2.0, 4.0):
        for n_max in (20, 33, 42, 50):
            more = {"method": "flowedit", "source": source, "n_max": n_max, "guidance_scale": scale}
            runs.append((f"flowedit {n_max}, {scale:g}", more))
    rows, columns = [], [images]
    for name, more in runs:
        edited = pw.edit(model, images, target, **more)  # type: ignore[arg-type]
        change = (edited.float() - images.float()).square().mean(-1)
        background = torch.stack(
            [each[~mask].mean().sqrt() for each, mask in zip(change, masks, strict=True)]
        )
        row = {
            "run": name,
            "agreement": agreement(edited, masks, names),
            "background": float(background.mean()),
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
        columns.append(edited)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    chosen = [0, 2, 4, 5, 7, 11, 12]
    sheet = torch.stack([columns[i][row] for row in range(8) for i in chosen])
    titles = [
        "source",
        *(runs[i - 1][0].replace("sdedit", "SDE").replace("flowedit", "FE") for i in chosen[1:]),
    ]
    save_grid(sheet, options.out / "editing.png", len(chosen), 3, titles)


if __name__ == "__main__":
    main()
