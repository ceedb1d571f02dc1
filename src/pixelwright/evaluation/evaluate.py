"""From images or a model to a report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.evaluation import sweep
from pixelwright.evaluation.extractors import Extractor
from pixelwright.evaluation.generate import (
    UNSAID,
    Generation,
    generate,
    progress_bar,
    recipe,
    recipe_file,
)
from pixelwright.evaluation.images import ImageSet, open_images
from pixelwright.evaluation.measure import BATCH, check_comparable, collect, compare
from pixelwright.evaluation.opening import open_extractor
from pixelwright.evaluation.reference import Reference, read_reference
from pixelwright.evaluation.report import JSON, Report, make_report, read_report, write_report
from pixelwright.files import write_text
from pixelwright.models.denoiser import PixelDenoiser

if TYPE_CHECKING:
    from pixelwright.distributed.parallel import Layout

FORMS = {"npz": "samples.npz", "zip": "samples.zip", "folder": "samples"}
"""How generated images are kept, and under which name in the folder of an evaluation."""
POINTS = "points"
"""Sub-folder of a sweep that holds an evaluation for each point."""


@dataclass(frozen=True)
class Judge:
    """What images are measured with."""

    reference: Reference
    extractor: Extractor

    @staticmethod
    def open(reference: str, features: str | None, device: Any) -> Judge:
        """Read both; without `features`, those that the reference was made with.

        Raises:
            UserError: either is not there or damaged, or they do not belong together.
        """
        read = read_reference(reference)
        return Judge(read, open_extractor(features_of(features, read), device))

    def __post_init__(self) -> None:
        check_comparable(self.extractor, self.reference)


def features_of(given: str | None, reference: Reference) -> str:
    """What `--features` says, or else what the reference was made with."""
    if given is not None:
        return given
    if reference.extractor is None:
        return "inception"
    if reference.extractor.place == "":
        return reference.extractor.kind
    return f"{reference.extractor.kind}:{reference.extractor.place}"


def measure_images(
    name: str, images: ImageSet, judge: Judge, generation: Mapping[str, Any] | None = None
) -> Report:
    """Measure images that exist, with a progress bar. `generation` is the recipe they were made by."""
    with progress_bar("measuring", len(images)) as bar:
        collected = collect(images.batches(BATCH), judge.extractor, bar.update, len(images))
    found = compare(collected, judge.reference, judge.extractor)
    return make_report(name, found, collected, images, generation)


@dataclass(frozen=True)
class Subject:
    """A model that is evaluated, in every process; its judge is in the main one."""

    name: str
    model: PixelDenoiser
    labels: Tensor
    """int64 [num_samples]."""
    layout: Layout
    judge: Judge | None
    form: str = "npz"
    """A key of `FORMS`."""

    def generate(self, generation: Generation, folder: Path) -> Path:
        """Draw the images of an evaluation, or go on."""
        return generate(self.model, generation, self.labels, folder / FORMS[self.form], self.layout)

    def evaluate(self, generation: Generation, folder: Path, name: str | None = None) -> Report | None:
        """Generate or go on, measure and report in `folder`; the report, in the main process."""
        out = self.generate(generation, folder)
        if not self.layout.main:
            return None
        assert self.judge is not None
        images = open_images(str(out))
        report = measure_images(name or self.name, images, self.judge, recipe(generation, self.labels))
        write_report(report, folder, images)
        return report

    def sweep(
        self, points: Mapping[str, Generation], folder: Path, keep: bool, tell: Callable[[Report], object]
    ) -> list[Report]:
        """Evaluate every point in a folder of its own, or take over what is there; the reports, in the main
        process.

        All points have the same noise and labels. The images of a point are removed when it is measured,
        unless they are to be kept.
        """
        reports = []
        for name, generation in points.items():
            place = folder / POINTS / name
            if not self.layout.first(lambda p=place, g=generation: self._finished(p, g)):  # type: ignore[misc]
                self.evaluate(generation, place, name)
            if self.layout.main:
                reports.append(read_report(place))
                tell(reports[-1])
                if not keep:
                    _remove(place / FORMS[self.form])
        return reports

    def _finished(self, folder: Path, generation: Generation) -> bool:
        """Whether the report of a point is there, and of these very settings."""
        if not (folder / JSON).exists():
            return False
        assert self.judge is not None
        found, info = read_report(folder), self.judge.extractor.info
        wanted = {
            "recipe": ({**UNSAID, **(found.generation or {})}, recipe(generation, self.labels)),
            "reference": (found.reference["checksum"], self.judge.reference.checksum),
            "features": (found.extractor["checksum"], info.checksum),
        }
        for what, (old, new) in wanted.items():
            if old != new:
                raise UserError(f"{folder} holds an evaluation with another {what}: give another --out")
        return True


def _remove(images: Path) -> None:
    recipe_file(images).unlink(missing_ok=True)
    if images.is_dir():
        shutil.rmtree(images)
    else:
        images.unlink(missing_ok=True)


def write_sweep(title: str, reports: Sequence[Report], folder: Path) -> None:
    """sweep.html (with matplotlib, of the extra `train`) and sweep.md."""
    write_text(folder / "sweep.md", sweep.markdown(title, reports))
    write_text(folder / "sweep.html", sweep.page(title, reports))
