"""Published figures: with which files and settings they were measured, and how near is near enough.

Sources: PixelDiT (arXiv 2511.20645, v2) and DiP (arXiv 2511.18822, v3), ADM's protocol with 50,000 images.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pixelwright.errors import UserError, nearest
from pixelwright.hub.presets import SAMPLER_PRESETS
from pixelwright.models.config import SamplerPreset

SAMPLES = 50_000
TOLERANCES = {"fid": 0.05, "sfid": 0.1, "inception_score": 5.0, "precision": 0.01, "recall": 0.01}
"""Our judgement, not the papers': a few times what another seed changes at 50,000 images."""
REFERENCES = {256: "VIRTUAL_imagenet256_labeled.npz", 512: "VIRTUAL_imagenet512.npz"}
"""ADM's reference files by image size."""
INCEPTION = "inception-2015-12-05.pt"


@dataclass(frozen=True)
class Target:
    """A published result."""

    sampler: SamplerPreset
    weights: str  # the file of the weights
    origin: str  # who published them
    expected: Mapping[str, float]  # by the names of `measure.METRICS`
    size: int = 256
    reference: str | None = None  # the file to compare with; None: ADM's for the size
    features: str = f"inception:{INCEPTION}"  # KIND:FILE of the extractor
    num_samples: int = SAMPLES
    tolerances: Mapping[str, float] = field(default_factory=lambda: TOLERANCES)

    @property
    def reference_file(self) -> str:
        return self.reference or REFERENCES[self.size]


def _pixeldit(name: str, file: str, fid: float, size: int = 256) -> Target:
    return Target(SAMPLER_PRESETS[name], file, "NVIDIA, with PixelDiT (arXiv 2511.20645)", {"fid": fid}, size)


def _dip(epochs: int, steps: int, *figures: float) -> Target:
    names = ("fid", "sfid", "inception_score", "precision", "recall")
    sampler = replace(SAMPLER_PRESETS["dip-imagenet256"], steps=steps)
    origin = "the authors of DiP (arXiv 2511.18822)"
    return Target(sampler, f"dip-xl-16-epoch{epochs}.ckpt", origin, dict(zip(names, figures, strict=True)))


TARGETS: dict[str, Target] = {
    "pixeldit-xl-epoch80": _pixeldit("pixeldit-xl-epoch80", "imagenet256_pixeldit_xl_epoch80.ckpt", 2.36),
    "pixeldit-xl-epoch160": _pixeldit("pixeldit-xl-epoch160", "imagenet256_pixeldit_xl_epoch160.ckpt", 1.97),
    "pixeldit-xl-epoch320": _pixeldit("pixeldit-xl-epoch320", "imagenet256_pixeldit_xl_epoch320.ckpt", 1.61),
    "pixeldit-xl-512": _pixeldit("pixeldit-xl-512", "imagenet512_pixeldit_xl.ckpt", 1.81, 512),
    "dip-xl-epoch160": _dip(160, 100, 2.16, 4.79, 276.8, 0.82, 0.61),
    "dip-xl-epoch320": _dip(320, 75, 1.98, 4.57, 282.9, 0.80, 0.62),
    "dip-xl-epoch600": _dip(600, 100, 1.79, 4.59, 281.9, 0.80, 0.63),
}
"""By the name that `pixelwright reproduce` takes."""


def find_target(name: str) -> Target:
    """The target of a name. Raises UserError for an unknown one."""
    if name not in TARGETS:
        raise UserError(f'no published result is called "{name}"{nearest(name, TARGETS)}')
    return TARGETS[name]


def find_files(target: Target, folder: Path, given: Mapping[str, str | None]) -> dict[str, str]:
    """Weights, reference and features: those that are `given`, the others in `folder`. Raises UserError:
    naming the file that is missing, where it comes from and where to put it."""
    kind, _, network = target.features.partition(":")
    adm = "github.com/openai/guided-diffusion, evaluations: ADM's batches"
    published = {
        "weights": (target.weights, f"published by {target.origin}"),
        "reference": (target.reference_file, adm),
        "features": (network, "the Inception network of 2015 as TorchScript, with StyleGAN3 and EDM"),
    }
    found: dict[str, str] = {}
    for what, (name, origin) in published.items():
        if (path := given.get(what)) is None:
            if not (folder / name).exists():
                remedy = f"get it ({origin}) and put it there, or give --{what}"
                raise UserError(f"{folder / name} is not there: {remedy}")
            path = f"{kind}:{folder / name}" if what == "features" else str(folder / name)
        found[what] = path
    return found


HEADER = ("metric", "expected", "measured", "difference", "tolerance", "")
MET = "as published"


def rows(target: Target, measured: Mapping[str, float]) -> list[tuple[Any, ...]]:
    """A row of `HEADER` for each published figure; it ends in `MET` where that was met."""
    found: list[tuple[Any, ...]] = []
    for name, expected in target.expected.items():
        tolerance, value = target.tolerances[name], measured.get(name)
        if value is None:
            found.append((name, expected, "not measured", "", tolerance, "missing"))
        else:
            outcome = MET if abs(value - expected) <= tolerance else "differs"
            found.append((name, expected, value, value - expected, tolerance, outcome))
    return found
