"""Measuring: one pass over images gives their activations, from which come all metrics a reference allows."""

import platform
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy
import PIL
import torch
from torch import Tensor
from tqdm import tqdm

from pixelwright import __version__
from pixelwright.config import Config, NonNegativeInt
from pixelwright.errors import UserError
from pixelwright.evaluation import images as image_sets
from pixelwright.evaluation import metrics, neighbours
from pixelwright.evaluation.features import Activations, Extractor, ExtractorInfo
from pixelwright.evaluation.features.extractor import check_finite
from pixelwright.evaluation.images import BATCH, ArrayFile, ArrayImages, ImageBatch, Progress, SourceInfo
from pixelwright.evaluation.metrics import Estimate
from pixelwright.evaluation.neighbours import NEIGHBOURS, Memorisation, Neighbourhood
from pixelwright.evaluation.references import Reference
from pixelwright.files import cache_folder, replacing

METRICS = {"fid": "FID", "sfid": "sFID", "inception_score": "Inception Score"}
METRICS |= {name: name for name in ("precision", "recall", "density", "coverage")} | {"kid": "KID"}
METRICS["patch_grid"] = "patch grid"
"""Names of the metrics in files, in their order, and what people call them. "fid" is the Fréchet distance of
the extractor's features, whatever that is called with it."""

ROUNDING = "images are uint8; a sample is rounded to the nearest level and clipped"
VERSIONS = {"pixelwright": __version__, "torch": torch.__version__, "numpy": numpy.__version__}
VERSIONS |= {"pillow": PIL.__version__, "python": platform.python_version()}


@dataclass(frozen=True)
class Settings(Config, where=""):
    """Of the metrics; all else is as in ADM's protocol, and as KID's authors have it."""

    adm_float16: bool = False
    """Precision and recall from float16 distances, as ADM's evaluator has them."""
    patch_size: NonNegativeInt = 0
    """Side in pixels of the patches whose seams are measured; 0: that of the model, of given images none."""


DEFAULT = Settings()


class Collected(NamedTuple):
    """The activations of all images, and what is known of these."""

    activations: Activations
    labels: Tensor | None  # int64 [N]
    numbers: Tensor  # int64 [N]: which images of their set they are
    checksum: str  # of the pixels, in order; the same for the same images in any container
    image_size: tuple[int, int]
    class_names: tuple[str, ...] | None = None  # those that the labels number
    steps: Tensor | None = None  # [N,2], of `metrics.patch_steps`


@dataclass(frozen=True)
class ReferenceInfo:
    """Which reference something was compared with."""

    path: str
    checksum: str  # SHA-256 of the file
    source: SourceInfo | None = None
    image_size: tuple[int, int] | None = None  # of its images, where that is known


@dataclass(frozen=True)
class Report:
    """What was measured, with all that makes it comparable: the content of a report.json."""

    metrics: Mapping[str, Estimate]  # by the names in `METRICS`
    left_out: Mapping[str, str]  # what could not be computed, and why
    distance: str  # what the Fréchet distance "fid" is called with these features
    images: SourceInfo
    extractor: ExtractorInfo
    reference: ReferenceInfo
    settings: Settings
    width: int  # numbers in a feature
    per_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Precision and recall of each class that samples and reference share, by its name, or by its number
    where neither names its classes."""
    memorisation: Memorisation | None = None  # None where the reference keeps no features of images
    name: str = ""
    generation: Mapping[str, Any] | None = None  # the settings of images that `pixelwright evaluate` made
    rounding: str = ROUNDING
    versions: Mapping[str, str] = field(default_factory=lambda: dict(VERSIONS))  # of the software

    @property
    def values(self) -> dict[str, float]:
        """The metrics alone."""
        return {name: estimate.value for name, estimate in self.metrics.items()}

    def title(self, metric: str) -> str:
        """What a metric is called."""
        return self.distance if metric == "fid" else METRICS[metric]


def measure(
    batches: Iterable[ImageBatch],
    reference: Reference,
    extractor: Extractor,
    settings: Settings = DEFAULT,
    progress: Progress | None = None,
) -> Report:
    """All metrics of some images against a reference; `progress` is called with the size of each batch.

    Raises UserError: features that the reference cannot be compared with, no image, or features that are NaN.
    """
    check_comparable(extractor, reference)
    collected = collect(batches, extractor, progress, patch_size=settings.patch_size)
    return compare(collected, reference, extractor, settings)


def check_comparable(extractor: Extractor, reference: Reference) -> None:
    """Raise UserError if the reference was made with another extractor. Files that do not say so are of the
    Inception network, as those of ADM and EDM are."""
    info, other = extractor.info, reference.extractor
    if other is not None and not info.same_network(other):
        text = f'"{reference.path}" was made with {other} (read from {other.path}), not {info}'
        raise UserError(f"{text}: give --features of that, or make a reference with these features")
    if other is None and info.kind != "inception":
        text = f'"{reference.path}" does not say what made its features, so inception is taken to have'
        raise UserError(f"{text}, not {info.kind}: make a reference with `pixelwright reference`")


# ---------------------------------------------------------------- images to activations
def collect(
    batches: Iterable[ImageBatch],
    extractor: Extractor,
    progress: Progress | None = None,
    expected: int = 0,
    patch_size: int = 0,
) -> Collected:
    """The activations of all images, whose pixels are not kept; `expected` is their number, where known, and
    `patch_size` the side of the patches whose seams are looked at, 0: of none.
    Raises UserError: no image, images of several sizes, or activations that are not finite."""
    checksum, columns = "", [_Table(expected) for _ in Activations._fields]
    labels: list[Tensor | None] = []
    numbers: list[Tensor] = []
    steps: list[Tensor] = []
    shape: tuple[int, ...] = ()
    for batch in _in_batches(batches, BATCH):
        shape = tuple(batch.images.shape[1:3])
        checksum = image_sets.pixel_digest(checksum, batch.images)
        activations = extractor(batch.images)
        check_finite(activations, batch.numbers)
        for column, part in zip(columns, activations, strict=True):
            if part is not None:
                column.add(part)
        labels.append(batch.labels)
        numbers.append(batch.numbers)
        if 1 < patch_size < max(shape):
            steps.append(metrics.patch_steps(batch.images, patch_size))
        if progress is not None:
            progress(len(batch.images))
    if not numbers:
        raise UserError("there is no image to measure")
    features, spatial, probabilities = (column.rows() for column in columns)
    assert features is not None
    known = [part for part in labels if part is not None]
    joined, classes = torch.cat(numbers), torch.cat(known) if len(known) == len(labels) else None
    activations = Activations(features, spatial, probabilities)
    seams = torch.cat(steps) if steps else None
    return Collected(activations, classes, joined, checksum, (shape[0], shape[1]), steps=seams)


class _Table:
    """Rows that come in pieces, in a table that is made once: to join pieces takes their memory twice."""

    def __init__(self, expected: int) -> None:
        self._expected, self._count = expected, 0
        self._table: Tensor | None = None

    def add(self, part: Tensor) -> None:
        """Further rows, [b,C]."""
        end = self._count + len(part)
        if self._table is None:
            self._table = part.new_empty(max(self._expected, end), *part.shape[1:])
        elif end > len(self._table):
            self._table = torch.cat((self._table, part.new_empty(end, *part.shape[1:])))
        self._table[self._count : end] = part
        self._count = end

    def rows(self) -> Tensor | None:
        """All rows, [N,C]; None if none came."""
        return None if self._table is None else self._table[: self._count]


def _in_batches(batches: Iterable[ImageBatch], size: int) -> Iterator[ImageBatch]:
    """The same images, `size` at a time, so that the features do not depend on how they come."""
    left: Any = None
    for batch in batches:
        if left is not None and left.images.shape[1:] != batch.images.shape[1:]:
            sizes = [tuple(each.images.shape[1:3]) for each in (left, batch)]
            raise UserError(f"images of {sizes[0]} and {sizes[1]} pixels: give one size")
        pairs: Any = zip(left or batch, batch, strict=True)
        joined = (None if a is None or b is None else torch.cat((a, b)) for a, b in pairs)
        left = batch if left is None else ImageBatch._make(joined)
        while len(left.images) >= size:
            yield ImageBatch._make(None if part is None else part[:size] for part in left)
            left = ImageBatch._make(None if part is None else part[size:] for part in left)
    if left is not None and len(left.images):
        yield left


# ---------------------------------------------------------------- activations to metrics
def compare(
    collected: Collected, reference: Reference, extractor: Extractor, settings: Settings = DEFAULT
) -> Report:
    """The metrics of activations; what cannot be computed is named with its reason."""
    check_comparable(extractor, reference)
    reference = with_features(reference, extractor)
    features, spatial, probabilities = collected.activations
    labels, kept = collected.labels, reference.kept
    found = {"fid": metrics.frechet_estimate(features, reference.features, labels)}
    left_out: dict[str, str] = {}
    if spatial is not None and reference.spatial is not None:
        found["sfid"] = metrics.frechet_estimate(spatial, reference.spatial, labels)
    else:
        whose = "the reference" if spatial is not None else extractor.info.kind
        left_out["sfid"] = f"{whose} has no spatial features"
    if probabilities is not None:
        found["inception_score"] = metrics.inception_score(probabilities)
    else:
        left_out["inception_score"] = f"{extractor.info.kind} knows no classes"
    if collected.steps is not None:
        found["patch_grid"] = metrics.patch_grid(collected.steps)
    else:
        left_out["patch_grid"] = "it needs a patch size below that of the images (--patch-size)"
    per_class: dict[str, dict[str, float]] = {}
    memorised = None
    few = "the reference holds no features of images"
    if kept is not None and (fewest := min(len(features), len(kept))) <= NEIGHBOURS:
        few = f"{fewest} images are too few"
    elif kept is not None:
        around = neighbours.neighbourhood(kept, features)
        if settings.adm_float16:
            realistic, recalled = neighbours.adm_neighbourhood(kept, features)
            around = replace(around, realistic=realistic, recalled=recalled)
        found |= {**around.estimates(), "kid": metrics.kid(kept, features)}
        per_class, reason = _per_class(around, collected, reference)
        left_out |= {"per_class": reason} if reason else {}
    left_out |= {name: few for name in METRICS if name not in found and name not in left_out}
    if kept is not None and len(kept) > 1:
        numbers = torch.arange(len(kept)) if reference.numbers is None else reference.numbers
        memorised = neighbours.memorisation(features, collected.numbers, kept, numbers)
    return Report(
        metrics={name: found[name] for name in METRICS if name in found},
        left_out=left_out,
        distance=extractor.distance,
        images=SourceInfo("", len(features), collected.checksum, collected.image_size),
        extractor=extractor.info,
        reference=ReferenceInfo(reference.path, reference.checksum, reference.source, reference.image_size),
        settings=settings,
        width=features.shape[1],
        per_class=per_class,
        memorisation=memorised,
    )


def with_features(reference: Reference, extractor: Extractor) -> Reference:
    """ADM's files hold images instead of features: with those of their images, for precision, recall and KID.
    They are kept in the cache, so that they are computed once."""
    if reference.kept is not None or not reference.has_images:
        return reference
    name = f"{reference.checksum[:24]}-{extractor.info.checksum[:24]}.npz"
    cached = cache_folder() / "references" / name
    if not cached.is_file():
        images = ArrayImages(reference.path)
        with tqdm(total=len(images), unit="image", desc="the reference's images", disable=None) as bar:
            rows = collect(images.batches(BATCH), extractor, bar.update, len(images)).activations.features
        with replacing(cached) as part, part.open("wb") as file:
            numpy.savez(file, features=rows.numpy())
    return replace(reference, kept=torch.from_numpy(ArrayFile(cached).read("features")))


def _per_class(
    around: Neighbourhood, collected: Collected, reference: Reference
) -> tuple[dict[str, dict[str, float]], str]:
    """Precision of the samples and recall of the reference images of each class that both have, {} for a
    single class; and why classes are left out. Numbers mean the same where neither side names them."""
    labels, others = collected.labels, reference.labels
    names = None if reference.source is None else reference.source.class_names
    if labels is None or others is None or max(len(labels.unique()), len(others.unique())) < 2:
        return {}, ""
    if (names is None) != (collected.class_names is None):
        named = "samples have" if names is None else "reference has"
        return {}, f"classes are paired by name, and only the {named} class names"
    ours, theirs = _named(labels, collected.class_names), _named(others, names)
    shares = {
        name: {
            "precision": float(around.realistic[labels == label].double().mean()),
            "recall": float(around.recalled[others == theirs[name]].double().mean()),
        }
        for name, label in ours.items()
        if name in theirs
    }
    alone = sorted(ours.keys() ^ theirs.keys())
    reason = f"{len(alone)} classes are not in both sets, such as {alone[0]}" if alone else ""
    return shares, reason


def _named(labels: Tensor, names: tuple[str, ...] | None) -> dict[str, int]:
    """The classes that occur among labels, by name in NFC, or by number where they have no names."""
    known = labels.unique().tolist()
    return {str(i) if names is None else unicodedata.normalize("NFC", names[i]): i for i in known}
