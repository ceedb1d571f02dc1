"""References: the statistics that samples are compared with, in an .npz; reading and making them.

Ours have the arrays of ADM's files (`mu`, `sigma`, `mu_s`, `sigma_s`), and `features`, `labels`, `numbers` of
some of the images (for precision and recall and KID) and `meta`, a JSON text: what they were made of.
"""

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixelwright.config import read
from pixelwright.errors import UserError
from pixelwright.evaluation import images as image_sets
from pixelwright.evaluation.features import Extractor, ExtractorInfo
from pixelwright.evaluation.features.extractor import check_finite
from pixelwright.evaluation.images import BATCH, IMAGES, ArrayFile, ImageBatch, ImageSet, Progress, SourceInfo
from pixelwright.evaluation.metrics import Gaussian, Moments
from pixelwright.files import replacing, sha256
from pixelwright.rng import generator

FORMAT = 2
TOLERANCE = 1e-6  # how far a covariance may be from symmetric, relative to its largest entry
KEEP = 10_000
"""Images whose features are kept, for precision, recall and KID: ADM's protocol has 10,000 of them."""
UNFINISHED = ".unfinished"  # at the end of the name of a reference that is being made
KEPT = ("features", "labels", "numbers")
SECONDS = 30.0  # between two times that the work is written down


@dataclass(frozen=True)
class Reference:
    """What samples are compared with."""

    path: str
    checksum: str  # SHA-256 of the file
    features: Gaussian
    spatial: Gaussian | None = None
    kept: Tensor | None = None  # float32 [M,D]: the features of some images; None where the file has none
    labels: Tensor | None = None  # int64 [M]: their classes
    numbers: Tensor | None = None  # int64 [M]: which images of the source they are of
    extractor: ExtractorInfo | None = None
    """What made the features; None where the file does not say, as those of others do not."""
    source: SourceInfo | None = None
    has_images: bool = False
    """Whether the file holds images (`arr_0`), as ADM's do, from which features can be made."""
    image_size: tuple[int, int] | None = None  # of its images, where that is known


# ---------------------------------------------------------------- files
def read_reference(path: str | Path) -> Reference:
    """A reference: one of ours, of ADM's, or any .npz with `mu` and `sigma`. Raises UserError: no such file,
    a damaged one, or arrays that are not a mean and a covariance."""
    if str(path).lower().endswith((".pkl", ".pickle")):
        remedy = "convert it to an .npz with mu and sigma"
        raise UserError(f'"{path}" is a pickle, which could run code when read: {remedy}')
    file = ArrayFile(path)
    meta = _meta(file)
    source = read(SourceInfo, meta["source"], str(path)) if "source" in meta else None
    count = None if source is None else source.count
    features = _gaussian(file, "mu", "sigma", count)
    if features is None:
        found = ", ".join(file.names) or "no arrays"
        hint = f" (make a reference of its images with `pixelwright reference {path} OUT`)"
        raise file.error(f"no reference: it holds {found}, not mu and sigma{hint if IMAGES in found else ''}")
    spatial = _gaussian(file, "mu_s", "sigma_s", count)
    kept = _tensor(file, "features", torch.float32, (None, len(features.mean)))
    labels, numbers = (_tensor(file, name, torch.int64, (None,)) for name in ("labels", "numbers"))
    made_by = read(ExtractorInfo, meta["extractor"], str(path)) if "extractor" in meta else None
    size = None if source is None else source.image_size
    if has_images := IMAGES in file.names:
        height, width = file.header(IMAGES)[0][1:3]
        size = (height, width)
    rest = (spatial, kept, labels, numbers, made_by, source, has_images, size)
    return Reference(str(path), sha256(file.path), features, *rest)


def _meta(file: ArrayFile) -> dict[str, Any]:
    if "meta" not in file.names:
        return {}
    try:
        meta = json.loads(str(file.read("meta")))
        number = meta.pop("format")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise file.error(f"meta is damaged ({error}): make the reference anew") from None
    if number != FORMAT:
        raise file.error(f"format is {number!r}; this version reads format {FORMAT}: make it anew")
    return dict(meta)


def _gaussian(file: ArrayFile, mean_name: str, covariance_name: str, count: int | None) -> Gaussian | None:
    """Mean and covariance under these names; None where neither is there."""
    names = (mean_name, covariance_name)
    present = [name for name in names if name in file.names]
    if not present:
        return None
    if len(present) == 1:
        raise file.error(f"it holds {present[0]} but not both of {' and '.join(names)}: fetch it anew")
    mean, covariance = (file.read(name) for name in names)
    if mean.dtype.kind != "f" or covariance.dtype.kind != "f" or covariance.shape != (mean.size, mean.size):
        found = [f"{n} is {a.dtype} {list(a.shape)}" for n, a in zip(names, (mean, covariance), strict=True)]
        raise file.error(f"{', '.join(found)}; a mean [D] and a covariance [D,D] are expected")
    mean, covariance = mean.reshape(-1).astype(np.float64), covariance.astype(np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise file.error(f"{mean_name} or {covariance_name} holds NaN or infinite numbers: make it anew")
    if np.abs(covariance - covariance.T).max() > TOLERANCE * np.abs(covariance).max():
        raise file.error(f"{covariance_name} is not symmetric, so it is no covariance: fetch it anew")
    return Gaussian(torch.from_numpy(mean), torch.from_numpy((covariance + covariance.T) / 2), count)


def _tensor(file: ArrayFile, name: str, dtype: torch.dtype, shape: tuple[int | None, ...]) -> Tensor | None:
    """An array of a reference of ours, of this shape where it is not None."""
    if name not in file.names:
        return None
    array = file.read(name)
    fits = len(shape) == array.ndim and all(a in (None, b) for a, b in zip(shape, array.shape, strict=True))
    if not fits or array.dtype.kind not in "fiu":
        raise file.error(f"{name} is {array.dtype} {list(array.shape)}: make the reference anew")
    return torch.from_numpy(array).to(dtype)


def write_reference(path: Path, reference: Reference) -> None:
    """Write a reference in one step; `path` and `checksum` in it are not looked at."""
    described = {"extractor": reference.extractor, "source": reference.source}
    meta = {key: asdict(value) for key, value in described.items() if value is not None}
    arrays = {"mu": reference.features.mean, "sigma": reference.features.covariance}
    if reference.spatial is not None:
        arrays |= {"mu_s": reference.spatial.mean, "sigma_s": reference.spatial.covariance}
    kept = {"features": reference.kept, "labels": reference.labels, "numbers": reference.numbers}
    _write_arrays(path, meta, arrays | {name: rows for name, rows in kept.items() if rows is not None})


def _write_arrays(path: Path, meta: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """An .npz of these tensors, and `meta` as a JSON text, in one step."""
    arrays: dict[str, Any] = {name: rows.numpy() for name, rows in tensors.items()}
    with replacing(path) as part, part.open("wb") as file:
        text = json.dumps({"format": FORMAT, **meta})
        np.savez(file, allow_pickle=False, meta=np.array(text), **arrays)


# ---------------------------------------------------------------- making one
def build_reference(
    images: ImageSet,
    extractor: Extractor,
    out: Path,
    keep: int = KEEP,
    progress: Progress = lambda images: None,
) -> Reference:
    """Make the reference of all images and write it to `out`, in one pass and constant memory.

    The features of `keep` images, drawn evenly at random, are kept in it. The work is written down every half
    minute beside `out`; the same call goes on from there and ends with the same file.

    Raises UserError: `out` exists, the unfinished work is of other images or features, fewer than two images,
    or features that are not finite.
    """
    if out.exists():
        raise UserError(f'"{out}" exists already: give another name or remove it')
    if out.suffix.lower() != ".npz":
        raise UserError(f'"{out}" does not end in .npz: give such a name')
    if keep < 0:
        raise UserError(f"--keep is {keep}: give a whole number, 0 to keep no features")
    unfinished = out.with_name(out.name + UNFINISHED)
    job = json.dumps([images.path, len(images), asdict(replace(extractor.info, path="")), keep])
    work = _Work.restore(unfinished, job, images) if unfinished.exists() else _Work()
    progress(work.position)
    chosen = torch.zeros(len(images), dtype=torch.bool)
    chosen[torch.randperm(len(images), generator=generator(0, "reference"))[:keep]] = True
    written = time.monotonic()
    for batch in images.batches(BATCH, work.position):
        work.add(batch, extractor, chosen)
        before, work.position = work.position, int(batch.numbers[-1]) // BATCH * BATCH + BATCH
        progress(min(work.position, len(images)) - before)
        if time.monotonic() - written > SECONDS:
            work.save(unfinished, job, images)
            written = time.monotonic()
    reference = work.reference(images, extractor, out)
    write_reference(out, reference)
    unfinished.unlink(missing_ok=True)
    return reference


@dataclass
class _Work:
    """All that is known after some images."""

    position: int = 0  # images looked at, in the order of the set
    moments: dict[str, Moments] = field(default_factory=dict)
    """Of "features", and of "spatial" where the extractor has such."""
    kept: dict[str, list[Tensor]] = field(default_factory=lambda: {name: [] for name in KEPT})
    """Of the chosen images."""
    checksum: str = ""  # of their pixels
    image_size: tuple[int, int] = (0, 0)

    def add(self, batch: ImageBatch, extractor: Extractor, chosen: Tensor) -> None:
        """Take a batch in; `chosen` bool [N] says whose features are kept."""
        activations = extractor(batch.images)
        check_finite(activations, batch.numbers)
        for name, rows in (("features", activations.features), ("spatial", activations.spatial)):
            if rows is not None:
                found = Moments.of(rows)
                self.moments[name] = self.moments[name].merged(found) if name in self.moments else found
        picks = chosen[batch.numbers]
        rows_of = {"features": activations.features, "labels": batch.labels, "numbers": batch.numbers}
        for name, values in rows_of.items():
            if values is not None:
                self.kept[name].append(values[picks])
        self.checksum = image_sets.pixel_digest(self.checksum, batch.images)
        self.image_size = (batch.images.shape[1], batch.images.shape[2])

    def tables(self) -> dict[str, Tensor]:
        """What is kept, joined; only what every image has."""
        joined = {name: torch.cat(parts) for name, parts in self.kept.items() if parts}
        return {name: rows for name, rows in joined.items() if len(rows) == len(joined["features"])}

    def reference(self, images: ImageSet, extractor: Extractor, out: Path) -> Reference:
        """The reference of what was taken in."""
        moments = self.moments.get("features")
        if moments is None or moments.count < 2:
            raise UserError(f'"{images.path}" holds fewer than two readable images: a reference needs more')
        source = images.info(moments.count, self.checksum, self.image_size)
        spatial = self.moments["spatial"].gaussian() if "spatial" in self.moments else None
        kept = {name: rows for name, rows in self.tables().items() if len(rows)}
        features, labels, numbers = map(kept.get, KEPT)
        rest = (spatial, features, labels, numbers, extractor.info, source)
        return Reference(str(out), "", moments.gaussian(), *rest)

    def save(self, path: Path, job: str, images: ImageSet) -> None:
        """Write the work down, in one step."""
        arrays = self.tables()
        for name, moments in self.moments.items():
            arrays |= {f"{name}_mean": moments.mean, f"{name}_scatter": moments.scatter}
        meta: dict[str, Any] = {name: getattr(self, name) for name in ("position", "checksum", "image_size")}
        meta |= {"job": job, "counts": {name: moments.count for name, moments in self.moments.items()}}
        meta |= {"skipped": images.skipped, "converted": images.converted, "jpeg": images.jpeg}
        _write_arrays(path, meta, arrays)

    @staticmethod
    def restore(path: Path, job: str, images: ImageSet) -> "_Work":
        """The work that was written down. Raises UserError if it is another job's."""
        file = ArrayFile(path)
        meta = _meta(file)
        if meta.get("job") != job:
            raise file.error("unfinished work on other images or features: finish it as it was or remove it")
        images.skipped.update(meta["skipped"])
        images.converted.update(Counter(meta["converted"]))
        images.jpeg += meta["jpeg"]
        tensors = {name: torch.from_numpy(file.read(name)) for name in file.names if name != "meta"}
        counts, (height, width) = meta["counts"].items(), meta["image_size"]
        moments = {n: Moments(count, tensors[f"{n}_mean"], tensors[f"{n}_scatter"]) for n, count in counts}
        kept = {name: [tensors[name]] if name in tensors else [] for name in KEPT}
        return _Work(meta["position"], moments, kept, meta["checksum"], (height, width))
