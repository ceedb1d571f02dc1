"""Making a reference: one pass over a data set, in constant memory, that goes on where it was interrupted."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.evaluation.arrays import ArrayFile
from pixelwright.evaluation.extractors import Extractor
from pixelwright.evaluation.images import ImageBatch, ImageSet
from pixelwright.evaluation.measure import BATCH, PixelDigest, checked
from pixelwright.evaluation.reference import Reference, Source, write_reference
from pixelwright.evaluation.statistics import Moments
from pixelwright.files import replacing
from pixelwright.rng import generator

KEEP = 10_000
"""Images whose features are kept, for precision, recall and KID: ADM's protocol has 10,000 of them."""
UNFINISHED = ".unfinished"  # at the end of the name of a reference that is being made
SECONDS = 30.0  # between two times that the work is written down


@dataclass
class _Work:
    """All that is known after some images."""

    position: int
    """Images looked at, in the order of the set."""
    features: Moments | None
    spatial: Moments | None
    kept: list[Tensor]
    labels: list[Tensor]
    numbers: list[Tensor]
    digest: PixelDigest
    image_size: tuple[int, int]

    @staticmethod
    def begin() -> _Work:
        return _Work(0, None, None, [], [], [], PixelDigest(), (0, 0))

    def add(self, batch: ImageBatch, extractor: Extractor, chosen: Tensor) -> None:
        """Take a batch in; `chosen` bool [N] says whose features are kept."""
        features, spatial, _ = checked(extractor(batch.images), batch.numbers)
        self.features = _grown(self.features, features)
        self.spatial = None if spatial is None else _grown(self.spatial, spatial)
        picks = chosen[batch.numbers]
        self.kept.append(features[picks])
        self.numbers.append(batch.numbers[picks])
        if batch.labels is not None:
            self.labels.append(batch.labels[picks])
        self.digest.update(batch.images)
        self.image_size = (batch.images.shape[1], batch.images.shape[2])


def _grown(moments: Moments | None, rows: Tensor) -> Moments:
    found = Moments.of(rows)
    return found if moments is None else moments.merged(found)


def build_reference(
    images: ImageSet,
    extractor: Extractor,
    out: Path,
    keep: int = KEEP,
    progress: Callable[[int], object] = lambda images: None,
) -> Reference:
    """Make the reference of all images and write it to `out`.

    The features of `keep` images, drawn evenly at random, are kept in it. The work is written down every half
    minute beside `out`; the same call goes on from there and ends with the same file.

    Raises:
        UserError: `out` exists, the unfinished work is of other images or features, fewer than two images, or
            features that are not finite.
    """
    if out.exists():
        raise UserError(f'"{out}" exists already: give another name or remove it')
    if out.suffix.lower() != ".npz":
        raise UserError(f'"{out}" does not end in .npz: give such a name')
    if keep < 0:
        raise UserError(f"--keep is {keep}: give a whole number, 0 to keep no features")
    unfinished = out.with_name(out.name + UNFINISHED)
    job = json.dumps([images.place, len(images), asdict(replace(extractor.info, place="")), keep])
    work = _restore(unfinished, job, images)
    progress(work.position)
    chosen = torch.zeros(len(images), dtype=torch.bool)
    chosen[torch.randperm(len(images), generator=generator(0, "reference"))[:keep]] = True
    written = time.monotonic()
    for batch in images.batches(BATCH, work.position):
        work.add(batch, extractor, chosen)
        before, work.position = work.position, int(batch.numbers[-1]) // BATCH * BATCH + BATCH
        progress(min(work.position, len(images)) - before)
        if time.monotonic() - written > SECONDS:
            _keep(unfinished, job, work, images)
            written = time.monotonic()
    reference = _finish(work, images, extractor, out)
    write_reference(out, reference)
    unfinished.unlink(missing_ok=True)
    return reference


def _finish(work: _Work, images: ImageSet, extractor: Extractor, out: Path) -> Reference:
    if work.features is None or work.features.count < 2:
        raise UserError(
            f'"{images.place}" holds fewer than two images that can be read: a reference needs more'
        )
    source = Source(
        images.place,
        work.features.count,
        work.digest.state,
        work.image_size,
        dict(images.skipped),
        dict(images.converted),
    )
    kept, numbers = torch.cat(work.kept), torch.cat(work.numbers)
    labels = torch.cat(work.labels) if work.labels else None
    return Reference(
        place=str(out),
        checksum="",
        features=work.features.gaussian(),
        spatial=None if work.spatial is None else work.spatial.gaussian(),
        kept=kept if len(kept) else None,
        labels=labels if labels is not None and len(labels) == len(kept) else None,
        numbers=numbers if len(kept) else None,
        extractor=extractor.info,
        source=source,
        has_images=False,
    )


def _keep(path: Path, job: str, work: _Work, images: ImageSet) -> None:
    """Write the work down, in one step."""
    notes = {
        "job": job,
        "position": work.position,
        "digest": work.digest.state,
        "image_size": work.image_size,
        "skipped": images.skipped,
        "converted": images.converted,
    }
    arrays: dict[str, Any] = {
        "kept": torch.cat(work.kept),
        "numbers": torch.cat(work.numbers),
        "labels": torch.cat(work.labels) if work.labels else None,
    }
    for name, moments in (("features", work.features), ("spatial", work.spatial)):
        if moments is not None:
            arrays |= {f"{name}_mean": moments.mean, f"{name}_scatter": moments.scatter}
            notes[f"{name}_count"] = moments.count
    plain = {name: array.numpy() for name, array in arrays.items() if array is not None}
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, notes=np.array(json.dumps(notes)), **plain)


def _restore(path: Path, job: str, images: ImageSet) -> _Work:
    """The work that was written down, or the beginning of it."""
    work = _Work.begin()
    if not path.exists():
        return work
    file = ArrayFile(path)
    notes = json.loads(str(file.read("notes")))
    if notes["job"] != job:
        raise UserError(
            f'"{path}" is unfinished work on other images or features: finish it as it was or remove it'
        )

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(file.read(name))

    def moments(name: str) -> Moments | None:
        if f"{name}_count" not in notes:
            return None
        return Moments(notes[f"{name}_count"], tensor(f"{name}_mean"), tensor(f"{name}_scatter"))

    images.skipped.update(notes["skipped"])
    images.converted.update(Counter(notes["converted"]))
    return _Work(
        notes["position"],
        moments("features"),
        moments("spatial"),
        [tensor("kept")],
        [tensor("labels")] if "labels" in file.names else [],
        [tensor("numbers")],
        PixelDigest(notes["digest"]),
        (notes["image_size"][0], notes["image_size"][1]),
    )
