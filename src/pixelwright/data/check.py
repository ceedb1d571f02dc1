"""A look at a data set: what is broken in it, how many images of which class and shape, how they look."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pixelwright.data.sources import Source
from pixelwright.data.transforms import UnreadableImage, centre_crop

CHUNK = 64  # images a worker looks at in one go


@dataclass
class Findings:
    """What a look at every image of a source gave."""

    images: int = 0
    captions: int = 0
    broken: dict[str, str] = field(default_factory=dict)  # name and reason of each image that cannot be read
    damaged: dict[str, str] = field(default_factory=dict)  # likewise of files that hold many images
    labels: Counter[int] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height) of the readable images

    @property
    def whole(self) -> bool:
        return not self.broken and not self.damaged


def check(source: Source, workers: int = 1, seen: Callable[[int], object] | None = None) -> Findings:
    """Read every image of `source`; `seen` is told how many more are done."""
    total = Findings(damaged=dict(getattr(source, "damaged", {})))
    starts, look = range(0, len(source), CHUNK), partial(_look, source)
    pool = ProcessPoolExecutor(workers) if workers > 1 else None
    try:
        for part in pool.map(look, starts) if pool else map(look, starts):
            total.images += part.images
            total.captions += part.captions
            total.broken |= part.broken
            total.labels += part.labels
            total.sizes += part.sizes
            if seen:
                seen(part.images)
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    return total


def _look(source: Source, start: int) -> Findings:
    found = Findings()
    for index in range(start, min(start + CHUNK, len(source))):
        found.images += 1
        try:
            sample = source[index]
        except UnreadableImage as error:
            found.broken[source.name(index)] = str(error)
            continue
        found.labels[sample.label] += 1
        found.sizes[sample.image.size] += 1
        found.captions += sample.caption is not None
    return found


def contact_sheet(source: Source, count: int, side: int) -> Tensor:
    """Up to `count` readable images, spread evenly over the source, uint8 [n, side, side, 3]."""
    tiles = []
    for index in np.unique(np.linspace(0, len(source) - 1, count).round().astype(int)):
        with suppress(UnreadableImage):
            tiles.append(np.asarray(centre_crop(source[int(index)].image, side)))
    return torch.from_numpy(np.stack(tiles))


def describe(found: Findings, source: Source) -> str:
    """The findings as text."""
    readable = found.images - len(found.broken)
    lines = [f"{found.images} images, {readable} readable, {found.captions} with a caption"]
    counts = [found.labels[label] for label in range(source.num_classes)]
    named = " with names" if source.class_names else ""
    lines.append(f"{source.num_classes} classes{named}, {min(counts)} to {max(counts)} images in each")
    if empty := [label for label, n in enumerate(counts) if not n]:
        lines.append(f"  {len(empty)} classes without an image, such as {empty[0]}")
    if source.num_classes <= 20:
        names = source.class_names or [f"class {label}" for label in range(source.num_classes)]
        lines += [f"  {n:>8}  {name}" for name, n in zip(names, counts, strict=True)]
    lines.append(f"sizes (width x height), {len(found.sizes)} different:")
    lines += [f"  {n:>8}  {w}x{h}" for (w, h), n in found.sizes.most_common(8)]
    if aspects := sorted(width / height for width, height in found.sizes.elements()):
        middle = aspects[len(aspects) // 2]
        lines.append(f"width / height: {aspects[0]:.3g} to {aspects[-1]:.3g}, median {middle:.3g}")
    for title, reasons in (("damaged files", found.damaged), ("unreadable images", found.broken)):
        if reasons:
            lines.append(f"{title}: {len(reasons)}")
            lines += [f"  {name}: {reason}" for name, reason in list(reasons.items())[:20]]
            lines += [f"  and {len(reasons) - 20} more"] if len(reasons) > 20 else []
    return "\n".join([*lines, "nothing is broken" if found.whole else "broken: see above"])
