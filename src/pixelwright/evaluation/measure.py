"""Measuring: one pass over images gives their activations, from which come all metrics a reference allows."""

import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy
import PIL
import torch
from torch import Tensor
from tqdm import tqdm

from pixelwright import __version__
from pixelwright.config import Config, NonNegativeInt, PositiveInt
from pixelwright.errors import UserError
from pixelwright.evaluation import images as image_sets
from pixelwright.evaluation import metrics
from pixelwright.evaluation.features import Activations, Extractor, ExtractorInfo
from pixelwright.evaluation.features.extractor import check_finite
from pixelwright.evaluation.images import BATCH, ArrayFile, ArrayImages, ImageBatch, Progress, SourceInfo
from pixelwright.evaluation.metrics import Coverage, Estimate, Memorisation
from pixelwright.evaluation.references import Reference
from pixelwright.files import cache_folder, replacing

METRICS = {"fid": "FID", "sfid": "sFID", "inception_score": "Inception Score"}
METRICS |= {"precision": "precision", "recall": "recall", "kid": "KID"}
"""Names of the metrics in files, in their order, and what people call them. "fid" is the Fréchet distance of
the extractor's features, whatever that is called with it."""

ROUNDING = "images are uint8; a sample is rounded to the nearest level and clipped"
VERSIONS = {"pixelwright": __version__, "torch": torch.__version__, "numpy": numpy.__version__}
VERSIONS |= {"pillow": PIL.__version__, "python": platform.python_version()}


@dataclass(frozen=True)
class Settings(Config, where=""):
    """Of the metrics; the defaults are those of ADM's protocol, and of KID's authors."""

    neighbours: PositiveInt = metrics.NEIGHBOURS
    """k of precision and recall."""
    split: PositiveInt = metrics.SPLIT
    """Images in a split of the Inception Score."""
    kid_subsets: PositiveInt = metrics.SUBSETS
    """Random subsets over which KID is averaged."""
    kid_size: PositiveInt = metrics.SUBSET_SIZE
    """Images in each of them."""
    seed: NonNegativeInt = 0
    """Of these subsets."""


class Collected(NamedTuple):
    """The activations of all images, and what is known of these."""

    activations: Activations
    labels: Tensor | None  # int64 [N]
    numbers: Tensor  # int64 [N]: which images of their set they are
    checksum: str  # of the pixels, in order; the same for the same images in any container
    image_size: tuple[int, int]


@dataclass(frozen=True)
class ReferenceInfo:
    """Which reference something was compared with."""

    path: str
    checksum: str  # SHA-256 of the file
    source: SourceInfo | None = None


@dataclass(frozen=True)
class Report:
    """What was measured, with all that makes it comparable: the content of a report.json."""

    metrics: Mapping[str, Estimate]  # by the names in `METRICS`
    left_out: Mapping[str, str]  # metrics that could not be computed, and why
    distance: str  # what the Fréchet distance "fid" is called with these features
    images: SourceInfo
    extractor: ExtractorInfo
    reference: ReferenceInfo
    settings: Settings
    per_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Precision and recall of each class, where samples and reference have labels."""
    memorisation: Memorisation | None = None  # None where the reference keeps no features of images
    name: str = ""
    generation: Mapping[str, Any] | None = None  # the recipe, of images that `pixelwright evaluate` made
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
    settings: Settings = Settings(),
    progress: Progress | None = None,
) -> Report:
    """All metrics of some images against a reference; `progress` is called with the size of each batch.

    Raises UserError: features that the reference cannot be compared with, no image, or features that are NaN.
    """
    check_comparable(extractor, reference)
    return compare(collect(batches, extractor, progress), reference, extractor, settings)


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
    batches: Iterable[ImageBatch], extractor: Extractor, progress: Progress | None = None, expected: int = 0
) -> Collected:
    """The activations of all images, whose pixels are not kept; `expected` is their number, where known.
    Raises UserError: no image, images of several sizes, or activations that are not finite."""
    checksum, columns = "", [_Table(expected) for _ in Activations._fields]
    labels: list[Tensor | None] = []
    numbers: list[Tensor] = []
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
        if progress is not None:
            progress(len(batch.images))
    if not numbers:
        raise UserError("there is no image to measure")
    features, spatial, probabilities = (column.rows() for column in columns)
    assert features is not None
    known = [part for part in labels if part is not None]
    joined, classes = torch.cat(numbers), torch.cat(known) if len(known) == len(labels) else None
    activations = Activations(features, spatial, probabilities)
    return Collected(activations, classes, joined, checksum, (shape[0], shape[1]))


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
    collected: Collected, reference: Reference, extractor: Extractor, settings: Settings = Settings()
) -> Report:
    """The metrics of activations; what cannot be computed is named with its reason."""
    check_comparable(extractor, reference)
    reference = with_features(reference, extractor)
    features, spatial, probabilities = collected.activations
    found: dict[str, Estimate] = {"fid": metrics.frechet_estimate(features, reference.features)}
    left_out: dict[str, str] = {}
    if spatial is not None and reference.spatial is not None:
        found["sfid"] = metrics.frechet_estimate(spatial, reference.spatial)
    else:
        whose = "the reference" if spatial is not None else extractor.info.kind
        left_out["sfid"] = f"{whose} has no spatial features"
    if probabilities is not None:
        found["inception_score"] = metrics.inception_score(probabilities, settings.split)
    else:
        left_out["inception_score"] = f"{extractor.info.kind} knows no classes"
    per_class: dict[str, dict[str, float]] = {}
    fewest = min(len(features), 0 if reference.kept is None else len(reference.kept))
    if reference.kept is None:
        left_out |= dict.fromkeys(("precision", "recall", "kid"), "the reference holds no features of images")
    elif fewest <= settings.neighbours:
        left_out |= dict.fromkeys(("precision", "recall", "kid"), f"{fewest} images are too few")
    else:
        coverage = metrics.precision_recall(reference.kept, features, settings.neighbours)
        found |= {"precision": coverage.precision, "recall": coverage.recall}
        subsets = (settings.kid_subsets, settings.kid_size, settings.seed)
        found["kid"] = metrics.kid(reference.kept, features, *subsets)
        per_class = _per_class(coverage, collected.labels, reference.labels)
    memorised = None
    if reference.kept is not None and len(reference.kept) > 1:
        numbers = torch.arange(len(reference.kept)) if reference.numbers is None else reference.numbers
        memorised = metrics.memorisation(features, collected.numbers, reference.kept, numbers)
    return Report(
        metrics={name: found[name] for name in METRICS if name in found},
        left_out=left_out,
        distance=extractor.distance,
        images=SourceInfo("", len(features), collected.checksum, collected.image_size),
        extractor=extractor.info,
        reference=ReferenceInfo(reference.path, reference.checksum, reference.source),
        settings=settings,
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
    coverage: Coverage, labels: Tensor | None, reference_labels: Tensor | None
) -> dict[str, dict[str, float]]:
    """Precision of the samples and recall of the reference images of each class; {} for a single class."""
    if labels is None or reference_labels is None:
        return {}
    classes = sorted(set(labels.tolist()) & set(reference_labels.tolist()))
    if len(classes) < 2:
        return {}
    parts = {"precision": (coverage.realistic, labels), "recall": (coverage.covered, reference_labels)}
    return {
        str(label): {name: float(flags[of == label].double().mean()) for name, (flags, of) in parts.items()}
        for label in classes
    }
