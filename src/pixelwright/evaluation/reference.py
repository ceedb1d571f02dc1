"""References: the statistics that samples are compared with, in an .npz.

Ours have the arrays of ADM's files (`mu`, `sigma`, `mu_s`, `sigma_s`), and `features`, `labels`, `numbers` of
some of the images (for precision and recall and KID) and `meta`, a JSON text: what they were made of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.evaluation.arrays import ArrayFile
from pixelwright.evaluation.extractors import ExtractorInfo, file_checksum
from pixelwright.evaluation.images import IMAGES
from pixelwright.evaluation.statistics import Gaussian
from pixelwright.files import replacing

FORMAT = 1
TOLERANCE = 1e-6  # how far a covariance may be from symmetric, relative to its largest entry


@dataclass(frozen=True)
class Source:
    """Where the images of a reference, or those measured, came from."""

    place: str
    count: int
    """Images that were used."""
    checksum: str
    """Of the pixels, in order; the same for the same images in any container."""
    image_size: tuple[int, int]
    """Rows and columns."""
    skipped: Mapping[str, str]
    """Images that were not used, and why."""
    converted: Mapping[str, int]
    """Images that were not RGB, by their mode in the file."""


@dataclass(frozen=True)
class Reference:
    """What samples are compared with."""

    place: str
    checksum: str
    """SHA-256 of the file."""
    features: Gaussian
    spatial: Gaussian | None
    kept: Tensor | None
    """float32 [M,D]: the features of some images; None where the file has none."""
    labels: Tensor | None
    """int64 [M]: their classes."""
    numbers: Tensor | None
    """int64 [M]: which images of the source they are of."""
    extractor: ExtractorInfo | None
    """What made the features; None where the file does not say, as those of others do not."""
    source: Source | None
    has_images: bool
    """Whether the file holds images (`arr_0`), as ADM's do, from which features can be made."""


def read_reference(path: str | Path) -> Reference:
    """A reference: one of ours, of ADM's, or any .npz with `mu` and `sigma`.

    Raises:
        UserError: no such file, a damaged one, or arrays that are not a mean and a covariance.
    """
    if str(path).lower().endswith((".pkl", ".pickle")):
        raise UserError(
            f'"{path}" is a pickle, which could run code when read: convert it to an .npz with mu and sigma'
        )
    file = ArrayFile(path)
    features = _gaussian(file, "mu", "sigma")
    if features is None:
        found = ", ".join(file.names) or "no arrays"
        hint = f"; it holds images: make a reference of them with `pixelwright reference {path} OUT`"
        raise UserError(
            f'"{path}" is no reference: it holds {found}, not mu and sigma'
            f"{hint if IMAGES in file.names else ''}"
        )
    meta = _meta(file)
    source = meta.get("source")
    count = None if source is None else int(source["count"])
    spatial = _gaussian(file, "mu_s", "sigma_s")
    return Reference(
        place=str(path),
        checksum=file_checksum(file.path),
        features=replace(features, count=count),
        spatial=None if spatial is None else replace(spatial, count=count),
        kept=_tensor(file, "features", torch.float32, (None, len(features.mean))),
        labels=_tensor(file, "labels", torch.int64, (None,)),
        numbers=_tensor(file, "numbers", torch.int64, (None,)),
        extractor=None if "extractor" not in meta else ExtractorInfo(**meta["extractor"]),
        source=None if source is None else Source(**{**source, "image_size": tuple(source["image_size"])}),
        has_images=IMAGES in file.names,
    )


def _meta(file: ArrayFile) -> dict[str, Any]:
    if "meta" not in file.names:
        return {}
    try:
        meta = json.loads(str(file.read("meta")))
        number = meta.pop("format")
        if number == FORMAT:
            return dict(meta)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f'"{file.path}": meta is damaged ({error}): make the reference anew') from None
    raise UserError(f'"{file.path}": format is {number!r}; this version reads format {FORMAT}')


def _gaussian(file: ArrayFile, mean_name: str, covariance_name: str) -> Gaussian | None:
    """Mean and covariance under these names; None where neither is there."""
    names = (mean_name, covariance_name)
    present = [name for name in names if name in file.names]
    if not present:
        return None
    if len(present) == 1:
        raise UserError(
            f'"{file.path}" holds {present[0]} but not both of {" and ".join(names)}: fetch it anew'
        )
    mean, covariance = (file.read(name) for name in names)
    if mean.dtype.kind != "f" or covariance.dtype.kind != "f" or covariance.shape != (mean.size, mean.size):
        raise UserError(
            f'"{file.path}": {mean_name} is {mean.dtype} {list(mean.shape)}, {covariance_name} '
            f"{covariance.dtype} {list(covariance.shape)}; a mean [D] and a covariance [D,D] are expected"
        )
    mean, covariance = mean.reshape(-1).astype(np.float64), covariance.astype(np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(
            f'"{file.path}": {mean_name} or {covariance_name} holds NaN or infinite numbers: make it anew'
        )
    if np.abs(covariance - covariance.T).max() > TOLERANCE * np.abs(covariance).max():
        raise UserError(
            f'"{file.path}": {covariance_name} is not symmetric, so it is no covariance: fetch it anew'
        )
    return Gaussian(torch.from_numpy(mean), torch.from_numpy((covariance + covariance.T) / 2))


def _tensor(file: ArrayFile, name: str, dtype: torch.dtype, shape: tuple[int | None, ...]) -> Tensor | None:
    """An array of a reference of ours, of this shape where it is not None."""
    if name not in file.names:
        return None
    array = file.read(name)
    wrong = array.ndim != len(shape) or any(
        side not in (None, found) for side, found in zip(shape, array.shape, strict=True)
    )
    if wrong or array.dtype.kind not in "fiu":
        raise UserError(
            f'"{file.path}": {name} is {array.dtype} {list(array.shape)}: make the reference anew'
        )
    return torch.from_numpy(array).to(dtype)


def write_reference(path: Path, reference: Reference) -> None:
    """Write a reference in one step; `place` and `checksum` are those it gets, and are not looked at."""
    meta = {
        "format": FORMAT,
        "extractor": None if reference.extractor is None else asdict(reference.extractor),
        "source": None if reference.source is None else asdict(reference.source),
    }
    text = json.dumps({key: value for key, value in meta.items() if value is not None})
    arrays: dict[str, Any] = {
        "mu": reference.features.mean,
        "sigma": reference.features.covariance,
        "mu_s": None if reference.spatial is None else reference.spatial.mean,
        "sigma_s": None if reference.spatial is None else reference.spatial.covariance,
        "features": reference.kept,
        "labels": reference.labels,
        "numbers": reference.numbers,
    }
    with replacing(path) as part, part.open("wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            meta=np.array(text),
            **{name: array.numpy() for name, array in arrays.items() if array is not None},
        )
