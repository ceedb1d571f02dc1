"""One pass over the images, then every metric that the extractor and the reference allow."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy
import PIL
import torch
from torch import Tensor
from tqdm import tqdm

from pixelwright import __version__
from pixelwright.errors import UserError
from pixelwright.evaluation import metrics
from pixelwright.evaluation.arrays import ArrayFile
from pixelwright.evaluation.extractors import Activations, Extractor, ExtractorInfo
from pixelwright.evaluation.images import ArrayImages, ImageBatch
from pixelwright.evaluation.metrics import Coverage, Estimate
from pixelwright.evaluation.reference import Reference
from pixelwright.files import cache_folder, replacing

BATCH = 64
"""Images that the extractor sees at a time, however they come."""
METRICS = ("fid", "sfid", "inception_score", "precision", "recall", "kid")
"""In the order in which they are told. "fid" is the Fréchet distance of the extractor's features, whatever it
is called with it."""


LABELS = {
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "Inception Score",
    "precision": "precision",
    "recall": "recall",
    "kid": "KID",
}
"""What they are called where people read them."""


@dataclass(frozen=True)
class Settings:
    """Of the metrics; the defaults are those of ADM's protocol, and of KID's authors."""

    neighbours: int = metrics.NEIGHBOURS
    """k of precision and recall."""
    split: int = metrics.SPLIT
    """Images in a split of the Inception Score."""
    kid_subsets: int = metrics.SUBSETS
    """Random subsets over which KID is averaged."""
    kid_size: int = metrics.SUBSET_SIZE
    """Images in each of them."""
    seed: int = 0
    """Of these subsets."""

    def __post_init__(self) -> None:
        for name, least in (("neighbours", 1), ("split", 1), ("kid_subsets", 1), ("kid_size", 2)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}: give a whole number of at least {least}")


class Collected(NamedTuple):
    """The activations of all images, and what is known of these."""

    activations: Activations
    labels: Tensor | None
    """int64 [N]."""
    numbers: Tensor
    """int64 [N]: which images of their set they are."""
    checksum: str
    """Of the pixels, in order; the same for the same images in any container."""
    image_size: tuple[int, int]


@dataclass(frozen=True)
class Measurement:
    """What was measured, with all that makes it comparable."""

    metrics: Mapping[str, Estimate]
    """By the names in `METRICS`."""
    left_out: Mapping[str, str]
    """Metrics that could not be computed, and why."""
    distance: str
    """What the Fréchet distance "fid" is called with these features."""
    count: int
    image_size: tuple[int, int]
    checksum: str
    """Of the pixels."""
    extractor: ExtractorInfo
    reference: Reference
    settings: Settings
    per_class: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """Precision and recall of each class, where samples and reference have labels."""
    coverage: Coverage | None = None


def measure(
    batches: Iterable[ImageBatch],
    reference: Reference,
    extractor: Extractor,
    settings: Settings = Settings(),
    progress: Callable[[int], object] | None = None,
) -> Measurement:
    """All metrics of some images against a reference; `progress` is called with the size of each batch.

    Raises:
        UserError: features that the reference cannot be compared with, no image, or features that are NaN.
    """
    check_comparable(extractor, reference)
    return compare(collect(batches, extractor, progress), reference, extractor, settings)


def to_dict(found: Measurement) -> dict[str, Any]:
    """A measurement as plain data, ready for JSON: numbers, and all that makes them comparable."""
    reference = found.reference
    return {
        "metrics": {name: asdict(estimate) for name, estimate in found.metrics.items()},
        "left_out": dict(found.left_out),
        "distance": found.distance,
        "count": found.count,
        "image_size": list(found.image_size),
        "checksum": found.checksum,
        "extractor": asdict(found.extractor),
        "reference": {
            "place": reference.place,
            "checksum": reference.checksum,
            "source": None if reference.source is None else asdict(reference.source),
        },
        "settings": asdict(found.settings),
        "per_class": {str(label): dict(numbers) for label, numbers in found.per_class.items()},
        "versions": {
            "pixelwright": __version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "pillow": PIL.__version__,
            "python": platform.python_version(),
        },
    }


def check_comparable(extractor: Extractor, reference: Reference) -> None:
    """Raise UserError if the reference was made with another extractor.

    Files that do not say so are of the Inception network, as those of ADM and EDM are.
    """
    info, other = extractor.info, reference.extractor
    if other is not None and not info.same_network(other):
        raise UserError(
            f'"{reference.place}" was made with {other} (read from {other.place}), not {info}: '
            "give --features of that, or make a reference with these features"
        )
    if other is None and info.kind != "inception":
        raise UserError(
            f'"{reference.place}" does not say what made its features, so inception is taken to have, '
            f"not {info.kind}: make a reference with `pixelwright reference`"
        )


class PixelDigest:
    """Checksum of a sequence of images; `state` suffices to go on with it."""

    def __init__(self, state: str = "") -> None:
        self.state = state

    def update(self, images: Tensor) -> None:
        """Add uint8 [B,H,W,3]; how a sequence is cut into batches makes no difference."""
        for image in images.contiguous().numpy():
            one = hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()
            self.state = hashlib.sha256(f"{self.state}{one}".encode()).hexdigest()


def collect(
    batches: Iterable[ImageBatch],
    extractor: Extractor,
    progress: Callable[[int], object] | None = None,
    expected: int = 0,
) -> Collected:
    """The activations of all images, whose pixels are not kept; where their number is known, say it.

    Raises:
        UserError: no image, images of several sizes, or activations that are not finite.
    """
    digest = PixelDigest()
    columns = [_Rows(expected) for _ in Activations._fields]
    labels: list[Tensor | None] = []
    numbers: list[Tensor] = []
    shape: tuple[int, ...] | None = None
    for batch in _in_batches(batches, BATCH):
        shape = shape or tuple(batch.images.shape[1:])
        if tuple(batch.images.shape[1:]) != shape:
            raise UserError(
                f"images of {shape[:2]} and {tuple(batch.images.shape[1:3])} pixels: give one size"
            )
        digest.update(batch.images)
        for column, part in zip(columns, checked(extractor(batch.images), batch.numbers), strict=True):
            column.add(part)
        labels.append(batch.labels)
        numbers.append(batch.numbers)
        if progress is not None:
            progress(len(batch.images))
    if shape is None:
        raise UserError("there is no image to measure")
    features, spatial, probabilities = (column.table for column in columns)
    assert features is not None
    activations = Activations(features, spatial, probabilities)
    return Collected(activations, _joined(labels), torch.cat(numbers), digest.state, (shape[0], shape[1]))


class _Rows:
    """Rows that come in pieces, in a table that is made once: to join pieces takes their memory twice."""

    def __init__(self, expected: int) -> None:
        self._expected, self._count, self._complete = expected, 0, True
        self._all: Tensor | None = None

    def add(self, part: Tensor | None) -> None:
        """Further rows, [b,C]; None where there are none, and then there is no table."""
        if part is None:
            self._complete = False
            return
        end = self._count + len(part)
        if self._all is None:
            self._all = part.new_empty(max(self._expected, end), *part.shape[1:])
        elif end > len(self._all):
            self._all = torch.cat((self._all, part.new_empty(end, *part.shape[1:])))
        self._all[self._count : end] = part
        self._count = end

    @property
    def table(self) -> Tensor | None:
        """All rows, [N,C]."""
        return None if self._all is None or not self._complete else self._all[: self._count]


def checked(activations: Activations, numbers: Tensor) -> Activations:
    """The same activations. Raises UserError naming the first image if they are not finite."""
    for part in activations:
        if part is not None and not bool(torch.isfinite(part).all()):
            broken = numbers[~torch.isfinite(part).all(1)]
            raise UserError(
                f"the features of image {int(broken[0])} are NaN or infinite ({len(broken)} of "
                f"{len(numbers)} in its batch): the extractor's weights are damaged"
            )
    return activations


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    """All rows; None where some part has none. The parts are let go."""
    known = [part for part in parts if part is not None]
    complete = len(known) == len(parts)
    parts.clear()
    return torch.cat(known) if complete else None


def _in_batches(batches: Iterable[ImageBatch], size: int) -> Iterator[ImageBatch]:
    """The same images, `size` at a time, so that the features do not depend on how they come."""
    rest: ImageBatch | None = None
    for batch in batches:
        joined = batch if rest is None else _both(rest, batch)
        for start in range(0, len(joined.images) - size + 1, size):
            yield _rows(joined, start, start + size)
        whole = len(joined.images) // size * size
        rest = _rows(joined, whole, None) if whole < len(joined.images) else None
    if rest is not None:
        yield rest


def _rows(batch: ImageBatch, start: int, stop: int | None) -> ImageBatch:
    return ImageBatch(*(None if part is None else part[start:stop] for part in batch))  # type: ignore[arg-type]


def _both(first: ImageBatch, second: ImageBatch) -> ImageBatch:
    if first.images.shape[1:] != second.images.shape[1:]:
        sizes = [tuple(batch.images.shape[1:3]) for batch in (first, second)]
        raise UserError(f"images of {sizes[0]} and {sizes[1]} pixels: give one size")
    pairs = zip(first, second, strict=True)
    return ImageBatch(*(None if a is None or b is None else torch.cat((a, b)) for a, b in pairs))  # type: ignore[arg-type]


def compare(
    collected: Collected,
    reference: Reference,
    extractor: Extractor,
    settings: Settings = Settings(),
) -> Measurement:
    """The metrics of activations; what cannot be computed is named with its reason."""
    check_comparable(extractor, reference)
    reference = completed(reference, extractor)
    features, spatial, probabilities = collected.activations
    found: dict[str, Estimate] = {"fid": metrics.frechet_estimate(features, reference.features)}
    left_out: dict[str, str] = {}
    if spatial is not None and reference.spatial is not None:
        found["sfid"] = metrics.frechet_estimate(spatial, reference.spatial)
    else:
        whose = "the reference" if spatial is not None else f"{extractor.info.kind}"
        left_out["sfid"] = f"{whose} has no spatial features"
    if probabilities is not None:
        found["inception_score"] = metrics.inception_score(probabilities, settings.split)
    else:
        left_out["inception_score"] = f"{extractor.info.kind} knows no classes"
    coverage = None
    fewest = min(len(features), 0 if reference.kept is None else len(reference.kept))
    if reference.kept is None:
        left_out |= dict.fromkeys(("precision", "recall", "kid"), "the reference holds no features of images")
    elif fewest <= settings.neighbours:
        left_out |= dict.fromkeys(("precision", "recall", "kid"), f"{fewest} images are too few")
    else:
        coverage = metrics.precision_recall(reference.kept, features, settings.neighbours)
        found |= {"precision": coverage.precision, "recall": coverage.recall}
        found["kid"] = metrics.kid(
            reference.kept, features, settings.kid_subsets, settings.kid_size, settings.seed
        )
    return Measurement(
        metrics={name: found[name] for name in METRICS if name in found},
        left_out=left_out,
        distance=extractor.distance,
        count=len(features),
        image_size=collected.image_size,
        checksum=collected.checksum,
        extractor=extractor.info,
        reference=reference,
        settings=settings,
        per_class={} if coverage is None else _per_class(coverage, collected.labels, reference.labels),
        coverage=coverage,
    )


def completed(reference: Reference, extractor: Extractor) -> Reference:
    """ADM's files hold images instead of features: with those of their images, for precision, recall and KID.

    They are kept in the cache, so that they are computed once.
    """
    if reference.kept is not None or not reference.has_images:
        return reference
    name = f"{reference.checksum[:24]}-{extractor.info.checksum[:24]}.npz"
    kept = cache_folder() / "references" / name
    if not kept.is_file():
        images = ArrayImages(reference.place)
        with tqdm(total=len(images), unit="image", desc="the reference's images", disable=None) as bar:
            rows = collect(images.batches(BATCH), extractor, bar.update, len(images)).activations.features
        with replacing(kept) as part, part.open("wb") as file:
            numpy.savez(file, features=rows.numpy())
    return replace(reference, kept=torch.from_numpy(ArrayFile(kept).read("features")))


def _per_class(
    coverage: Coverage, labels: Tensor | None, reference_labels: Tensor | None
) -> dict[int, dict[str, float]]:
    """Precision of the samples and recall of the reference images of each class; {} for a single class."""
    if labels is None or reference_labels is None:
        return {}
    classes = sorted(set(labels.tolist()) & set(reference_labels.tolist()))
    if len(classes) < 2:
        return {}

    def share(flags: Tensor, of: Tensor, label: int) -> float:
        return float(flags[of == label].double().mean())

    return {
        label: {
            "precision": share(coverage.realistic, labels, label),
            "recall": share(coverage.covered, reference_labels, label),
        }
        for label in classes
    }
