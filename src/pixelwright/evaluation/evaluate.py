"""From images or a model to a report; and sweeps, one setting of the sampler after another of the same noise.

Every point of a sweep is an evaluation in a folder of its own; one that is there already is not made again.
"""

import itertools
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pixelwright.distributed.config import ParallelConfig
from pixelwright.distributed.parallel import Layout, connect, together
from pixelwright.errors import UserError, nearest
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
from pixelwright.evaluation.report import JSON, comparison_rows, incomparable, read_report, write_report
from pixelwright.files import write_text
from pixelwright.html import escape_markdown, line_chart, markdown_table, render
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


# ---------------------------------------------------------------- sweeps
MOST_POINTS = 1000
SWEPT = ("guidance_scale", "guidance_interval", "time_shift", "steps", "solver")
"""What can be varied."""
AXIS = "give LOW:HIGH:STEP, or values with commas between (an interval as LOW:HIGH, or all)"


def parse_axis(text: str) -> tuple[str, list[Any]]:
    """`guidance_scale=1:4:0.25`, both ends included, or `guidance_interval=all,0.1:0.9`: name and values.
    Raises UserError: an unknown name, or values that cannot be read."""
    name, _, values = text.partition("=")
    if name not in SWEPT:
        raise UserError(f'--sweep "{text}": unknown setting "{name}"{nearest(name, SWEPT)}')
    words = [word for word in values.split(",") if word]
    if not words:
        raise UserError(f'--sweep "{text}" names no value; {AXIS}')
    try:
        if len(words) == 1 and words[0].count(":") == 2:
            low, high, step = map(float, words[0].split(":"))
            if not (math.isfinite(low + high + step) and step > 0 and low <= high):
                raise ValueError
            count = math.floor((high - low) / step + 1e-9) + 1
            words = [f"{round(low + i * step, 10):g}" for i in range(min(count, MOST_POINTS + 1))]
        found = [_value(name, word) for word in words]
    except ValueError:
        raise UserError(f'--sweep "{text}" cannot be read; {AXIS}') from None
    if len(found) > MOST_POINTS:
        raise UserError(f"--sweep {text} names too many values; at most {MOST_POINTS} are made")
    return name, found


def _value(name: str, word: str) -> Any:
    if name == "guidance_interval":
        low, high = (0, 0) if word == "all" else map(float, word.split(":"))
        return None if word == "all" else (low, high)
    return word if name == "solver" else int(word) if name == "steps" else float(word)


def sweep_points(base: Generation, axes: Sequence[tuple[str, Sequence[Any]]]) -> dict[str, Generation]:
    """Every combination of the values, by a name that serves as a folder.

    Without guidance its interval says nothing, so that points that differ in it alone are one.

    Raises UserError: a setting named twice, or a combination that cannot be.
    """
    names = [name for name, _ in axes]
    if len(set(names)) < len(names):
        raise UserError(f"--sweep names {max(names, key=names.count)} twice: give all its values at once")
    points: dict[str, Generation] = {}
    for values in itertools.product(*(values for _, values in axes)):
        point = replace(base, **dict(zip(names, values, strict=True)))
        if point.guidance_scale == 1:
            point = replace(point, guidance_interval=None)
        points[",".join(f"{name}={_text(getattr(point, name))}" for name in names)] = point
    return points


def _text(value: Any) -> str:
    if value is None:
        return "all"
    if isinstance(value, tuple):
        return "-".join(f"{part:g}" for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------- what came of it
COLUMNS = ("fid", "inception_score", "precision", "recall", "density", "coverage")


def best(reports: Sequence[Report]) -> Report:
    """The report of the smallest Fréchet distance."""
    return min(reports, key=lambda report: report.values["fid"])


def write_sweep(title: str, reports: Sequence[Report], folder: Path) -> None:
    """sweep.md, a table of all points, and sweep.html (with matplotlib, of the extra `train`)."""
    names = [name for name in COLUMNS if name in reports[0].values]
    header = ("point", *map(reports[0].title, names), "images")
    rows = comparison_rows(reports, names)
    write_text(folder / "sweep.md", f"# {escape_markdown(title)}\n\n{markdown_table(header, rows)}")
    winner, distance = best(reports), reports[0].title("fid")
    note = f"Smallest {distance}: {winner.values['fid']:.4g} at {winner.name}; {len(reports)} points."
    shown = {"title": title, "note": note, "charts": list(_charts(reports, names))}
    page = render("sweep", **shown, differences=incomparable(reports), header=header, rows=rows)
    write_text(folder / "sweep.html", page)


def _charts(reports: Sequence[Report], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(chart, caption): FID against the other metrics, and over the first setting that varies. A line has the
    points that differ in that setting alone, each with its value."""
    lines: dict[str, list[tuple[str, Report]]] = {}
    for report in reports:
        first, _, rest = report.name.partition(",")
        lines.setdefault(rest, []).append((first.partition("=")[2], report))
    labels = {line: [text for text, _ in points] for line, points in lines.items()}
    fid = {line: [report.values["fid"] for _, report in points] for line, points in lines.items()}
    distance, setting = reports[0].title("fid"), reports[0].name.partition("=")[0].replace("_", " ")
    for name in names[1:]:
        title = reports[0].title(name)
        other = {line: [report.values[name] for _, report in points] for line, points in lines.items()}
        series = {line: (other[line], fid[line]) for line in lines}
        chart = line_chart(series, title, distance, labels=labels)
        yield chart, f"{distance} against {title}; at the points: {setting}"
    over = {line: (_numbers(labels[line]), fid[line]) for line in lines}
    yield line_chart(over, setting, distance), f"{distance} over {setting}"


def _numbers(texts: Sequence[str]) -> list[float]:
    """The values of a setting; their places where they are no numbers."""
    try:
        return [float(text) for text in texts]
    except ValueError:
        return [float(place) for place in range(len(texts))]
