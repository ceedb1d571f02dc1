"""From images or a model to a report."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pixelwright.distributed.config import ParallelConfig
from pixelwright.distributed.parallel import Layout, connect, together
from pixelwright.errors import UserError
from pixelwright.evaluation.features import Extractor, open_extractor
from pixelwright.evaluation.generate import (
    Generation,
    checksum,
    generate,
    progress_bar,
    settings_file,
    settings_of,
)
from pixelwright.evaluation.images import BATCH, ImageSet, open_images
from pixelwright.evaluation.measure import DEFAULT, Report, Settings, check_comparable, collect, compare
from pixelwright.evaluation.references import Reference, read_reference
from pixelwright.evaluation.report import JSON, read_report, write_report
from pixelwright.hub.adapters import Adapters
from pixelwright.hub.checkpoint import load
from pixelwright.models.denoiser import PixelDenoiser

FORMS = {"npz": "samples.npz", "zip": "samples.zip", "folder": "samples"}
"""How generated images are kept, and under which name in the folder of an evaluation."""
TIMEOUT = 6 * 3600.0  # seconds that processes wait for the main one, which measures
POINTS = "points"  # sub-folder of a sweep that holds an evaluation for each point


@dataclass(frozen=True)
class Scorer:
    """What images are measured with. Raises UserError if the two do not belong together."""

    reference: Reference
    extractor: Extractor
    settings: Settings = DEFAULT

    @staticmethod
    def open(reference: str, features: str | None, device: Any, settings: Settings = DEFAULT) -> "Scorer":
        """Read both; without `features`, those that the reference was made with. Raises UserError: either is
        not there or damaged, or they do not belong together."""
        found = read_reference(reference)
        known = "inception" if found.extractor is None else found.extractor.spec
        return Scorer(found, open_extractor(known if features is None else features, device), settings)

    def __post_init__(self) -> None:
        check_comparable(self.extractor, self.reference)

    def measure(self, name: str, images: ImageSet, generation: Mapping[str, Any] | None = None) -> Report:
        """Measure images, with a progress bar. `generation` are the settings they were made with."""
        with progress_bar("measuring", len(images)) as bar:
            size = self.settings.patch_size
            collected = collect(images.batches(BATCH), self.extractor, bar.update, len(images), size)
        collected = collected._replace(class_names=images.class_names)
        found = compare(collected, self.reference, self.extractor, self.settings)
        shown = images.info(found.images.count, collected.checksum, collected.image_size)
        return replace(found, name=name, images=shown, generation=generation)


@dataclass(frozen=True)
class Evaluation:
    """A model that is evaluated, in every process; the scorer is in the main one."""

    name: str
    model: PixelDenoiser
    labels: Tensor  # int64 [num_samples]
    layout: Layout
    scorer: Scorer | None
    form: str = "npz"  # a key of `FORMS`
    weights: str = ""  # what the settings of the images say of the weights: their checksum
    compile: bool = False
    attention: str = "auto"  # both as in `accelerate`

    def run(self, generation: Generation, folder: Path, name: str | None = None) -> Report | None:
        """Generate or go on, measure and report in `folder`; the report, in the main process."""
        generation = replace(generation, weights=self.weights or generation.weights)
        place, how = folder / FORMS[self.form], (self.compile, self.attention)
        out = generate(self.model, generation, self.labels, place, self.layout, *how)
        if not self.layout.main:
            return None
        images = open_images(str(out))
        images.class_names = self.model.config.class_names
        report = self._scorer().measure(name or self.name, images, settings_of(generation, self.labels))
        write_report(report, folder, images)
        return report

    def sweep(
        self, points: Mapping[str, Generation], folder: Path, keep: bool, done: Callable[[Report], object]
    ) -> list[Report]:
        """Evaluate every point in a folder of its own, or take over what is there; the reports, in the main
        process. `done` is called with each.

        All points have the same noise and labels. The images of a point are removed when it is measured,
        unless they are to be kept.
        """
        reports = []
        for name, generation in points.items():
            place = folder / POINTS / name
            generation = replace(generation, weights=self.weights or generation.weights)
            if not self.layout.first(lambda p=place, g=generation: self._finished(p, g)):  # type: ignore[misc]
                self.run(generation, place, name)
            if self.layout.main:
                reports.append(read_report(place))
                done(reports[-1])
                if not keep:
                    images = place / FORMS[self.form]
                    settings_file(images).unlink(missing_ok=True)
                    shutil.rmtree(images) if images.is_dir() else images.unlink(missing_ok=True)
        return reports

    def _scorer(self) -> Scorer:
        """With the patches of the model, unless others are asked for."""
        assert self.scorer is not None
        settings = self.scorer.settings
        size = settings.patch_size or self.model.config.patch_size
        return replace(self.scorer, settings=replace(settings, patch_size=size))

    def _finished(self, folder: Path, generation: Generation) -> bool:
        """Whether the report of a point is there, and of these very settings."""
        if not (folder / JSON).exists():
            return False
        assert self.scorer is not None
        found, info = read_report(folder), self.scorer.extractor.info
        pairs = {
            "settings": (found.generation, settings_of(generation, self.labels)),
            "reference": (found.reference.checksum, self.scorer.reference.checksum),
            "features": (found.extractor.checksum, info.checksum),
        }
        for what, (old, new) in pairs.items():
            if old != new:
                raise UserError(f"{folder} holds an evaluation with other {what}: give another --out")
        return True


@contextmanager
def opened(
    source: str,
    name: str,
    labels: Tensor,
    device: str,
    reference: str,
    features: str | None,
    settings: Settings = DEFAULT,
    form: str = "npz",
    compile: bool = False,
    attention: str = "auto",
    weights: str | None = None,
    adapter: Adapters | None = None,
) -> Iterator[Evaluation]:
    """The model of `source` with what it is measured with, in every process. Reference and features are read
    by the main process, which alone needs them; a UserError of one process is raised in all. `weights` and
    `adapter`: as in `pixelwright.load`."""
    with together(lambda: connect(device, ParallelConfig(timeout=TIMEOUT))) as layout:
        scorers: list[Scorer] = []
        layout.first(lambda: scorers.append(Scorer.open(reference, features, layout.device, settings)))
        digest = layout.first(lambda: checksum(source, weights, adapter))
        scorer = scorers[0] if scorers else None
        model = load(source, weights, adapter).to(layout.device)
        yield Evaluation(name, model, labels, layout, scorer, form, digest, compile, attention)
