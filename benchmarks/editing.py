"""FlowEdit beside SDEdit: agreement with the target against change of the source, over strength and n_max.

    python benchmarks/editing.py runs/demo/pixeldit --data shapes --out results
    python benchmarks/editing.py pixelwright/shapes --data shapes-captions --guidance 1:3 --out results
    python benchmarks/editing.py pixelwright/cifar10-pixeldit --data cifar10/test.zip --classifier FOLDER \\
        --guidance 1:4 1:8 --out results

Shapes change their colour, photographs go to a class near their own. What judges: for classes of Shapes the
mean colour of where the object was, for captions the judge of ShapesBench (the target and nothing else), for
photographs an in-domain classifier. The change is the root mean square in levels of 255: of the background
(where a scene does not differ from itself without objects), of photographs the whole. Called again, it goes
on with what is not yet in editing.json.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot
from torch import Tensor

import pixelwright as pw
from pixelwright.data import CaptionedShapes, Shapes, open_source
from pixelwright.data.captioned import Claim, Thing, caption, held_out
from pixelwright.data.config import DataConfig
from pixelwright.data.shapes import COLOURS, Scene, render
from pixelwright.evaluation.features import open_extractor
from pixelwright.evaluation.prompts.shapesbench import assess, find_shapes
from pixelwright.images import load_png, save_grid, save_png

STRENGTHS, N_MAX = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8), (15, 25, 33, 40, 45, 50)
NEAR = (("cat", "dog"), ("automobile", "truck"), ("deer", "horse"), ("airplane", "ship"), ("bird", "frog"))
SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Edits:
    """Images and what they are to become."""

    images: Tensor  # uint8 [B,H,W,3]
    objects: Tensor  # bool [B,H,W], where a change is no fault
    source: Sequence[Any]  # labels or prompts
    target: Sequence[Any]
    judge: Callable[[Tensor, Sequence[Any]], list[bool]]  # edited images, what they should show


def drawn(scene: Scene, size: int) -> tuple[Tensor, Tensor]:
    """An image and the mask of its objects."""
    image, empty = (render(each, size) for each in (scene, dataclasses.replace(scene, objects=())))
    return torch.from_numpy(image), torch.from_numpy((image != empty).any(-1))


def further(colour: str, steps: int) -> str:
    colours = list(COLOURS)
    return colours[(colours.index(colour) + steps) % len(colours)]


def shapes(size: int, count: int, variation: float) -> Edits:
    """Classes: each shape in the colour three further in the list."""
    data = Shapes(size, seed=1, variation=variation)
    scenes = [data.scene(i) for i in range(count)]
    images, objects = map(torch.stack, zip(*(drawn(scene, size) for scene in scenes), strict=True))
    source = [data.class_names[data[i].label] for i in range(count)]
    target = [f"{further(name.split()[0], 3)} {name.split()[1]}" for name in source]
    table = torch.tensor([COLOURS[name][0] for name in COLOURS], dtype=torch.float32)

    def judge(edited: Tensor, expected: Sequence[str]) -> list[bool]:
        means = torch.stack(
            [image[mask].float().mean(0) for image, mask in zip(edited, objects, strict=True)]
        )
        nearest = torch.cdist(means, table).argmin(1).tolist()
        return [list(COLOURS)[i] == name.split()[0] for i, name in zip(nearest, expected, strict=True)]

    return Edits(images, objects, source, target, judge)


def captions(size: int, count: int) -> Edits:
    """Prompts: each single shape in the colour three further, or the next that is not held out."""
    data = CaptionedShapes(size, seed=1, count=100 * count)
    described = (data.describe(i) for i in range(len(data)))
    scenes = [scene for claim, _, scene in described if claim.category == "colours"][:count]
    things = [Thing(scene.objects[0].shape, scene.objects[0].colour) for scene in scenes]
    before = [Claim("colours", (thing,)) for thing in things]
    after = [next(filter(lambda claim: not held_out(claim), recoloured(thing))) for thing in things]
    images, objects = map(torch.stack, zip(*(drawn(scene, size) for scene in scenes), strict=True))
    claims = {caption(claim): claim for claim in (*before, *after)}

    def judge(edited: Tensor, expected: Sequence[str]) -> list[bool]:
        found = [find_shapes(image.numpy()) for image in edited]
        return [assess(claims[text], seen).exact for text, seen in zip(expected, found, strict=True)]

    return Edits(images, objects, [*map(caption, before)], [*map(caption, after)], judge)


def recoloured(thing: Thing) -> Iterator[Claim]:
    for steps in (3, 4, 5):
        yield Claim("colours", (dataclasses.replace(thing, colour=further(thing.colour or "", steps)),))


def photographs(path: str, size: int, count: int, classifier: str) -> Edits:
    """Classes of CIFAR-10: each to the other of its pair in NEAR."""
    data, extractor = open_source(DataConfig(path=path, size=size)), open_extractor(classifier)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count].tolist()
    samples = [data[i] for i in order]
    images = torch.stack([torch.from_numpy(np.array(sample.image)) for sample in samples])
    names = data.class_names or ()
    other = {a: b for pair in NEAR for a, b in (pair, pair[::-1])}
    source = [names[sample.label] for sample in samples]

    def judge(edited: Tensor, expected: Sequence[str]) -> list[bool]:
        found = extractor(edited).probabilities.argmax(1).tolist()
        return [names[i] == name for i, name in zip(found, expected, strict=True)]

    objects = torch.zeros(images.shape[:3], dtype=torch.bool)
    return Edits(images, objects, source, [other[name] for name in source], judge)


def points(own: float, scale: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is compared at guidance scales of source and target: a title and settings."""
    for strength in STRENGTHS:
        yield f"SDEdit {strength}", {"method": "sdedit", "strength": strength, "guidance_scale": scale}
    for n_max in N_MAX:
        both = {"source_guidance_scale": own, "guidance_scale": scale}
        yield f"n_max {n_max}", {"method": "flowedit", "n_max": n_max, **both}


def measure(model: pw.PixelDenoiser, edits: Edits, settings: dict[str, Any], picture: Path) -> dict[str, Any]:
    """One point of a curve; the first edited images go to `picture`."""
    more = {"source": edits.source} if settings["method"] == "flowedit" else {}
    start = time.process_time()
    edited = pw.edit(model, edits.images, edits.target, **more, **settings)
    seconds = (time.process_time() - start) / len(edited)
    save_png(edited[:SHOWN].flatten(0, 1), picture)
    change = (edited.float() - edits.images.float()).square().mean(-1)
    kept = [each[~mask].mean().sqrt() for each, mask in zip(change, edits.objects, strict=True)]
    row = {**settings, "target": float(np.mean(edits.judge(edited, edits.target)))}
    row |= {"source": float(np.mean(edits.judge(edited, edits.source)))}
    return {**row, "change": float(torch.stack(kept).mean()), "seconds": seconds}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """A curve over strength or n_max for each guidance."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        own = f"{row['source_guidance_scale']:g} and " if row["method"] == "flowedit" else ""
        curves.setdefault(f"{row['method']}, guidance {own}{row['guidance_scale']:g}", []).append(row)
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name, along in curves.items():
        style = "--" if name.startswith("sdedit") else "-"
        along.sort(key=lambda point: point.get("strength") or point["n_max"])  # one may have come in later
        x, y = ([point[axis] for point in along] for axis in ("change", "target"))
        axes.plot(x, y, style, marker="o", label=name)
    axes.set(xlabel="change of what is kept, levels of 255", ylabel="share judged as the target")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def pair(text: str) -> tuple[float, float]:
    source, target = text.split(":")
    return float(source), float(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True, help="shapes, shapes-captions, or photographs by class")
    parser.add_argument("--classifier", default="", help="folder of `pixelwright evaluation train-features`")
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--variation", type=float, default=0.25, help="shapes: that of the training set")
    default = [(1.0, 1.0), (1.0, 2.0), (1.0, 4.0)]
    parser.add_argument("--guidance", type=pair, nargs="+", default=default, metavar="SOURCE:TARGET")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model = pw.load(options.model)
    size, count = (model.config.image_size or (32, 32))[0], options.count
    if options.data == "shapes":
        edits = shapes(size, count, options.variation)
    elif options.data == "shapes-captions":
        edits = captions(size, count)
    else:
        edits = photographs(options.data, size, count, options.classifier)
    options.out.mkdir(parents=True, exist_ok=True)
    before = float(np.mean(edits.judge(edits.images, edits.source)))
    print(json.dumps({"judged as the source before any edit": before}))
    results = options.out / "editing.json"
    rows = json.loads(results.read_text()) if results.exists() else []
    for own, scale in options.guidance:
        columns = {"input": edits.images[:SHOWN]}
        for title, settings in points(own, scale):
            picture = options.out / f"{'-'.join(map(str, settings.values()))}.png"
            if not any({**settings, "count": count}.items() <= row.items() for row in rows):
                rows.append({"count": count, **measure(model, edits, settings, picture)})
                results.write_text(json.dumps(rows, indent=1) + "\n")
                print(json.dumps(rows[-1]), flush=True)
            columns[title] = load_png(picture).view(-1, size, size, 3)
        shown = torch.stack([*columns.values()], 1).flatten(0, 1)
        save_grid(shown, options.out / f"sheet-{own:g}-{scale:g}.png", len(columns), 2, [*columns])
    plot(rows, options.out / "editing-curve.png")


if __name__ == "__main__":
    main()
