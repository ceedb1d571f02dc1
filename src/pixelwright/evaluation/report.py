"""What an evaluation tells: report.json for machines, report.html for people.

The numbers stand beside everything that makes them comparable, and beside what they are the numbers of: a
sheet of samples, and the training images nearest to those that look most like copies.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import torch

from pixelwright import html
from pixelwright.config import read
from pixelwright.errors import UserError
from pixelwright.evaluation.images import ImageSet, open_images
from pixelwright.evaluation.measure import METRICS, Report
from pixelwright.evaluation.metrics import Estimate
from pixelwright.evaluation.neighbours import PAIRS
from pixelwright.files import make_folder, read_json, write_text
from pixelwright.images import save_grid

FORMAT = 3
JSON, HTML = "report.json", "report.html"
SHEET, NEIGHBOURS = "sheet.png", "neighbours.png"
SHEET_IMAGES = 64
SHEET_PIXELS = 1024  # side of the sheet, about
FEWEST, USUAL = 100, 50_000  # images of which a Fréchet distance says something, and is published
POOR = 0.7  # share of test images named rightly, below which a classifier's features say little
MOST_CLASSES = 50  # in the table; of more, the worst are shown


# ---------------------------------------------------------------- files
def read_report(path: Path) -> Report:
    """A report.json, or that of a folder. Raises UserError if there is none or it cannot be read."""
    file = path / JSON if path.is_dir() or not path.exists() else path
    if not file.is_file():
        raise UserError(f"{file} does not exist; give a folder that `pixelwright evaluate` made")
    found = read_json(file)
    if not isinstance(found, dict) or "format" not in found:
        raise UserError(f"{file} is no report of an evaluation")
    if (number := found.pop("format")) != FORMAT:
        raise UserError(f"{file}: format is {number!r}; this version reads format {FORMAT}")
    return read(Report, found, f"{file} is no report of an evaluation")


def write_report(report: Report, folder: Path, images: ImageSet) -> None:
    """Write the report and its pictures into `folder`; report.json, which vouches for the rest, last."""
    make_folder(folder)
    sheet = next(images.batches(SHEET_IMAGES)).images
    scale = max(1, SHEET_PIXELS // 8 // sheet.shape[1])
    save_grid(sheet, folder / SHEET, columns=8, scale=scale)
    drawn = _draw_neighbours(report, images, folder / NEIGHBOURS)
    write_text(folder / HTML, page(report, folder / SHEET, folder / NEIGHBOURS if drawn else None))
    write_text(folder / JSON, as_json(report))


def as_json(report: Report) -> str:
    """The content of report.json."""
    return json.dumps({"format": FORMAT, **asdict(report)}, indent=1)


def _draw_neighbours(report: Report, images: ImageSet, path: Path) -> bool:
    """Samples above the training images nearest to them; False where these cannot be found any more."""
    source = report.reference.source
    if report.memorisation is None or source is None or not Path(source.path).exists():
        return False
    pairs = report.memorisation.pairs
    height, width = source.image_size
    real = open_images(source.path, height if height == width else None)
    places = [(images, pair.sample) for pair in pairs] + [(real, pair.image) for pair in pairs]
    tiles = [next(found.batches(1, number)).images[0] for found, number in places]
    if len({tile.shape for tile in tiles}) > 1:
        return False
    scale = max(1, SHEET_PIXELS // PAIRS // tiles[0].shape[0])
    save_grid(torch.stack(tiles), path, columns=len(pairs), scale=scale)
    return True


# ---------------------------------------------------------------- for people
HEADER = ("metric", "value", "standard error", "without the bias of few images")


def metric_rows(report: Report) -> list[tuple[Any, ...]]:
    """Name, value, error and extrapolated value of each metric, or why it is left out."""
    rows: list[tuple[Any, ...]] = []
    for name in METRICS:
        if name in report.metrics:
            found = report.metrics[name]
            beyond = f"left out: {found.reason}" if found.reason else found.extrapolated
            more = ("" if value is None else value for value in (found.error, beyond))
            rows.append((report.title(name), found.value, *more))
        elif name in report.left_out:
            rows.append((report.title(name), f"left out: {report.left_out[name]}", "", ""))
    return rows


def provenance(report: Report) -> list[tuple[str, Any]]:
    """What another report must share to be compared with this one, and how the images were made."""
    images, extractor, reference = report.images, report.extractor, report.reference
    settings = asdict(report.settings)
    rows: list[tuple[str, Any]] = [
        ("images", f"{images.count:,} of {images.image_size[0]} x {images.image_size[1]} pixels"),
        ("checksum of their pixels", images.checksum),
        ("features", extractor.kind),
        ("SHA-256 of their weights", extractor.checksum),
        ("resizing", f"to {extractor.size}²: {extractor.resize}"),
        ("rounding", report.rounding),
        ("reference", reference.path),
        ("SHA-256 of the reference", reference.checksum),
    ]
    if source := reference.source:
        rows.append(("images of the reference", f"{source.count:,} of {source.path}"))
    rows.append(("settings of the metrics", ", ".join(f"{key} {value}" for key, value in settings.items())))
    if (made := report.generation) is not None:
        rows += [(f"drawn with: {name.replace('_', ' ')}", str(value)) for name, value in made.items()]
    rows.append(("software", ", ".join(f"{name} {version}" for name, version in report.versions.items())))
    return rows


def warnings(report: Report) -> list[str]:
    """What a reader should know before the numbers."""
    images, reference, found = report.images, report.reference, []
    if reasons := doubts(report):
        least, features = max(FEWEST, 2 * report.width), f"{report.width:,} features"
        text = f"{report.distance} of {images.count:,} images: not a measurement ({', '.join(reasons)})"
        found.append(f"{text}; {least:,} are the least with {features}, {USUAL:,} usual")
    elif images.count < USUAL:
        few = f"{images.count:,} images: published figures are of {USUAL:,}"
        found.append(f"{few}; fewer make {report.distance} higher")
    if images.jpeg:
        text = f"{images.jpeg:,} of the images are JPEG files: compression alone changes every number"
        found.append(f"{text}; save samples as PNG")
    if reference.image_size not in (None, images.image_size):
        ours, theirs = (f"{w} x {h}" for h, w in (images.image_size, reference.image_size or (0, 0)))
        text = f"the images are {ours} pixels, those of the reference {theirs}"
        found.append(f"{text}: resizing alone changes every number")
    if skipped := images.skipped:
        found.append(f"{len(skipped)} images skipped, such as {next(iter(skipped.items()))}")
    if converted := images.converted:
        modes = ", ".join(f"{n} of mode {mode}" for mode, n in converted.items())
        found.append(f"converted to RGB: {modes}")
    if reason := report.left_out.get("per_class"):
        found.append(f"precision and recall by class: {reason}")
    memorised = report.memorisation
    if memorised is not None and memorised.identical:
        found.append(f"{memorised.identical} samples have the very features of a training image")
    return found


def doubts(report: Report) -> list[str]:
    """Why a Fréchet distance says nothing: of few images its bias is larger than what it measures, and the
    features of a poor classifier are not of what is in the images."""
    accuracy, few = report.extractor.accuracy, report.images.count < max(FEWEST, 2 * report.width)
    poor = accuracy is not None and accuracy < POOR
    texts = {"too few images": few, f"features of a classifier that is right on {accuracy or 0:.0%}": poor}
    return [text for text, there in texts.items() if there]


def page(report: Report, sheet: Path | None = None, neighbours: Path | None = None) -> str:
    """The page of a report, its pictures inside."""
    worst = sorted(report.per_class, key=lambda name: sum(report.per_class[name].values()))[:MOST_CLASSES]
    per_class = [(name, *found.values()) for name, found in report.per_class.items() if name in worst]
    memorised = report.memorisation
    pairs = () if memorised is None else memorised.pairs
    return html.render(
        "evaluation",
        title=f"Evaluation of {report.name}",
        note=summary(report),
        warnings=warnings(report),
        metrics=(HEADER, metric_rows(report)),
        provenance=provenance(report),
        samples=None if sheet is None else html.image_data(sheet),
        memorisation=memorised,
        neighbours=None if neighbours is None else html.image_data(neighbours),
        pairs=[(pair.sample, pair.image, pair.distance, pair.own, pair.ratio) for pair in pairs],
        classes=len(report.per_class),
        per_class=per_class,
    )


def summary(report: Report) -> str:
    """The numbers in one line, behind what must be said first."""
    numbers = [f"{report.title(name)} {html.number_text(value)}" for name, value in report.values.items()]
    reasons = doubts(report)
    doubt = f", not a measurement ({', '.join(reasons)})" if reasons else ""
    return f"{report.images.count:,} images{doubt}: {', '.join(numbers)}"


# ---------------------------------------------------------------- several reports
DECISIVE: Mapping[str, Callable[[Report], Any]] = {
    "features": lambda r: (r.extractor.kind, r.extractor.checksum, r.extractor.size, r.extractor.resize),
    "reference": lambda r: r.reference.checksum,
    "number of images": lambda r: r.images.count,
    "image size": lambda r: r.images.image_size,
    "settings of the metrics": lambda r: astuple(r.settings),
}
"""What must be equal for numbers to be compared."""


def incomparable(reports: Sequence[Report]) -> list[str]:
    """What differs among reports whose numbers are set side by side, and must not."""
    return [
        f"{what} differ: " + "; ".join(f"{report.name}: {_short(read(report))}" for report in reports)
        for what, read in DECISIVE.items()
        if len({read(report) for report in reports}) > 1
    ]


def _short(value: Any) -> str:
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return " ".join(part[:12] if isinstance(part, str) else str(part) for part in parts)


def comparison(reports: Sequence[Report]) -> str:
    """The page of several reports: a table, what they do not share, and curves over the checkpoints."""
    names = [metric for metric in METRICS if any(metric in report.metrics for report in reports)]
    header = ("", *(reports[0].title(name) for name in names), "images")
    note, rows = ", ".join(report.name for report in reports), comparison_rows(reports, names)
    shown: dict[str, Any] = {"title": "Evaluations compared", "note": note, "header": header, "rows": rows}
    charts = list(_curves(reports, names))
    shown["drawn"] = (("drawn with", *(report.name for report in reports)), drawn_differently(reports))
    return html.render("comparison", **shown, differences=incomparable(reports), charts=charts)


def comparison_rows(reports: Iterable[Report], names: Sequence[str]) -> list[tuple[Any, ...]]:
    """A row for each report: its name, its metrics with their standard errors, its number of images."""
    return [
        (report.name, *(_with_error(report.metrics.get(name)) for name in names), report.images.count)
        for report in reports
    ]


def _with_error(found: Estimate | None) -> Any:
    if found is None or found.error is None:
        return "" if found is None else found.value
    return f"{html.number_text(found.value)} ± {found.error:.2g}"


def drawn_differently(reports: Sequence[Report]) -> list[tuple[Any, ...]]:
    """The settings of the images that are not the same in all reports: name, and value in each."""
    made = [report.generation or {} for report in reports]
    rows = (
        (name, *(each.get(name, "") for each in made)) for name in dict.fromkeys(k for m in made for k in m)
    )
    return [
        (name.replace("_", " "), *map(_short, row)) for name, *row in rows if any(v != row[0] for v in row)
    ]


def _curves(reports: Sequence[Report], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(chart, caption) of every metric over the checkpoints."""
    places = checkpoints([report.name for report in reports])
    for metric in names:
        series: dict[str, tuple[list[float], list[float]]] = {}
        for (line, x), report in zip(places, reports, strict=True):
            if metric in report.values:
                xs, ys = series.setdefault(line, ([], []))
                xs.append(x)
                ys.append(report.values[metric])
        title = reports[0].title(metric)
        yield html.line_chart(series, "checkpoint", title), title


def checkpoints(names: Sequence[str]) -> list[tuple[str, float]]:
    """The line of a chart and the place on it that each name means. "dip step-2000" is at 2000 on the line
    "dip step-"; where some name ends in no number, all are on one line in their order."""
    found = [re.fullmatch(r"(.*?)(\d+)\D*", name) for name in names]
    if any(match is None for match in found):
        return [("", float(place)) for place in range(1, len(names) + 1)]
    return [(match[1].strip(" -_/="), float(match[2])) for match in found if match is not None]
