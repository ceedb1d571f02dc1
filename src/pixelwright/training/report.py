"""report.html of a run: how it goes, what it draws, what happened, from its folder alone; and several runs on
one page: curves over one another, samples side by side, settings that differ."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from pixelwright.errors import UserError
from pixelwright.evaluation.metrics import LOOKS
from pixelwright.files import write_text
from pixelwright.html import image_data, line_chart, render
from pixelwright.images import read_notes
from pixelwright.training.config import LoopConfig, TrainConfig
from pixelwright.training.config_file import read_settings
from pixelwright.training.diagnosis import Finding, diagnose
from pixelwright.training.health import describe_rollback, describe_spike
from pixelwright.training.loggers import LOG, read_log, smooth

NAME = "report.html"
NEAREST = "nearest.png"  # of a fine-tuning, beside the sample grids
WORDS = {
    "ok": "Nothing to worry about, by these rules.",
    "look": "Worth a look.",
    "bad": "Something is wrong.",
}
TITLES = {
    "grad_norm": "gradient norm",
    "lr": "learning rate",
    "images_per_second": "images per second of training",
    "images_per_second_wall": "images per second, pauses included",
    "finetuning": "learned and forgotten (KID), memorised (share of the samples)",
    "repa_loss": "alignment loss (REPA)",
    "frequency_loss": "frequency-aware loss (DeCo)",
    "lpips_loss": "LPIPS of the denoised image (PixelGen)",
    "dino_loss": "P-DINO of the denoised image (PixelGen)",
    "perceptual_factor": "factor of the perceptual losses",
    "loss_by_time": "loss by time t",
    "activation_rms": "activations of the last blocks, RMS",
    "update_ratio": "size of an update / of the weights",
    "samples": "samples: noise left, grid of patches, variety",
}
METRICS = {
    "fid": "Fréchet distance (FID)",
    "sfid": "sFID",
    "inception_score": "Inception Score",
    "kid": "KID",
    "patch_grid": "patch grid (seams)",
}
LOGARITHMIC = {"loss", "grad_norm", "loss_by_time", "activation_rms", "update_ratio"}
NOT_DRAWN = {"step", "seconds", "skipped", "loss", "event", "rollbacks", "evaluation"}
FIRST = ("grad_norm", "loss_by_time", "lr", "images_per_second")
OLDER = 12  # sample grids beside the newest
CURVES = ("loss", "evaluation", "grad_norm", "lr", "images_per_second", "samples")
HEADER = ("run", "state", "step", "images", "time of training", "images/s", "loss, smoothed")


def write_report(run: Path) -> Path:
    """Write report.html into a run folder, also of a run under way or dead. Returns its path.

    Pictures of samples are linked, so the page belongs beside them; all else is inside.

    Raises:
        UserError: no run folder, or a config.yaml that cannot be read.
        ImportError: matplotlib is not installed.
    """
    config, lines = read_run(run)
    findings = diagnose(lines, config.optim.clip)
    metrics_note, metrics = _evaluations(lines, config)
    page = render(
        "run",
        title=f"Run {run.resolve().name}",
        note=_summary(config, lines),
        state=findings[0].kind,
        headline=headline(findings, lines),
        findings=[finding.text for finding in findings],
        samples=_samples(run),
        charts=list(_charts(lines, config)),
        metrics=metrics,
        metrics_note=metrics_note,
        events=list(events_of(lines)),
        settings=list(changed(config)),
    )
    write_text(run / NAME, page)
    return run / NAME


def read_run(run: Path) -> tuple[LoopConfig, list[dict[str, Any]]]:
    """Settings and log of a run folder, and behind it a record `samples` for each sample grid, of what it is
    noted to show. Raises UserError: it is none."""
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is no run folder: it has no config.yaml")
    lines: list[dict[str, Any]] = read_log(run / LOG)
    for step, grid in grids_of(run).items():
        notes = read_notes(grid)
        if found := {name: float(notes[name]) for name in LOOKS if name in notes}:
            lines.append({"step": step, "samples": found})
    return read_settings(run / "config.yaml"), lines


def headline(findings: Sequence[Finding], lines: Sequence[dict[str, Any]]) -> str:
    """The findings in one line; of a run whose samples were not looked at, all is never well."""
    if findings[0].kind == "ok" and not any("samples" in line for line in lines):
        return "The log shows nothing to worry about; no samples were looked at."
    return WORDS[findings[0].kind]


def _summary(config: LoopConfig, lines: Sequence[dict[str, Any]]) -> str:
    name = f"{config.model.preset} at {config.data.size}²" if isinstance(config, TrainConfig) else "A run"
    lines = [line for line in lines if "seconds" in line]  # not those of metrics alone
    if not lines:
        return f"{name}: {config.steps:,} steps planned; nothing was logged yet."
    last = lines[-1]
    images, seconds = last["step"] * config.batch_size, last["seconds"]
    return (
        f"{name}: step {last['step']:,} of {config.steps:,}, "
        f"{images:,} images in {timedelta(seconds=round(seconds))} of training, "
        f"{images / max(seconds, 1e-9):,.1f} images/s over all."
    )


# ---------------------------------------------------------------- curves
def _charts(lines: Sequence[dict[str, Any]], config: LoopConfig) -> Iterator[tuple[str, str]]:
    """(chart, caption) of the loss and of everything else that is a number or a group of numbers."""
    if "loss" in (found := series_of(lines, "loss")):
        steps, losses = found["loss"]
        series = {"mean between two lines": (steps, losses), "smoothed": (steps, smooth(losses))}
        drawn = line_chart(series, "step", "loss", log=True, faint=["mean between two lines"])
        yield drawn, "loss (flow matching)"
    for name in dict.fromkeys((*FIRST, *(name for line in lines for name in line))):
        if series := {} if name in NOT_DRAWN else series_of(lines, name):
            title, clip = TITLES.get(name, name.replace("_", " ")), config.optim.clip
            marks = {"optim.clip": clip} if name == "grad_norm" and clip is not None else None
            yield line_chart(series, "step", title, log=name in LOGARITHMIC, marks=marks), title


def _evaluations(lines: Sequence[dict[str, Any]], config: LoopConfig) -> tuple[str, list[tuple[str, str]]]:
    """A note, and (chart, caption) of each metric that was measured on the way."""
    if not isinstance(config, TrainConfig) or config.evaluation is None:
        return "", []
    sample = config.evaluation.sample
    note = (
        f"{sample.count:,} samples of the averaged weights, guidance {sample.guidance_scale:g}, against "
        f"{config.evaluation.reference}. Numbers of few samples are comparable with one another alone."
    )
    titled = [(METRICS.get(name, name), points) for name, points in series_of(lines, "evaluation").items()]
    return note, [(line_chart({title: points}, "step", title), title) for title, points in titled]


def series_of(lines: Sequence[dict[str, Any]], name: str) -> dict[str, tuple[list[float], list[float]]]:
    """Every curve under a name: one for a number, one for each part of a group or list."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for line in lines:
        for part, value in _parts(name, line.get(name)):
            xs, ys = found.setdefault(part, ([], []))  # also without a value yet: they stay in order
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                xs.append(line["step"])
                ys.append(value)
    return {part: points for part, points in found.items() if points[0]}


def _parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """(name, value) of each number in a value of the log; the parts of a list divide [0, 1] among them."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, list):
        count = len(value)
        return [(f"{i / count:g} to {(i + 1) / count:g}", v) for i, v in enumerate(value)]
    return [(name, value)]


# ---------------------------------------------------------------- the rest
def _samples(run: Path) -> list[tuple[str, str]]:
    """(address, caption) of the sample grids, the newest first; of many older ones, some over the run."""
    grids = list(reversed(grids_of(run).values()))
    if len(grids) > OLDER + 1:
        grids = [grids[0], *(grids[1 + round(i * (len(grids) - 2) / (OLDER - 1))] for i in range(OLDER))]
    found = [(f"samples/{grid.name}", f"step {int(grid.stem.removeprefix('step-')):,}") for grid in grids]
    if (run / "samples" / NEAREST).is_file():
        found.append((f"samples/{NEAREST}", "samples, and beside each the training image nearest to it"))
    return found


def grids_of(run: Path) -> dict[int, Path]:
    """The sample grids of a run by step, oldest first."""
    found = sorted((run / "samples").glob("step-*.png"))
    return {int(grid.stem.removeprefix("step-")): grid for grid in found}


def events_of(lines: Sequence[dict[str, Any]]) -> Iterator[tuple[int, str]]:
    """(step, what happened)."""
    skipped = known = 0
    for line in lines:
        if line.get("skipped", 0) > skipped:
            more, skipped = line["skipped"] - skipped, line["skipped"]
            steps = "step" if more == 1 else "steps"
            yield line["step"], f"{more} {steps} skipped, whose loss or gradient was not finite"
        if event := line.get("event"):
            yield line["step"], describe_spike(event)
        for rollback in (rollbacks := line.get("rollbacks", ()))[known:]:
            yield line["step"], describe_rollback(*rollback)
        known = max(known, len(rollbacks))


def changed(config: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(key, value) of every setting without a default or with another value."""
    has_default = (f.default is not MISSING or f.default_factory is not MISSING for f in fields(config))
    default = type(config)() if all(has_default) else None  # it may fill in what is None
    for field in fields(config):
        value, name = getattr(config, field.name), f"{where}{field.name}"
        if is_dataclass(value):
            yield from changed(value, f"{name}.")
        elif value != getattr(default, field.name, field.default):
            yield name, str(list(value) if isinstance(value, tuple) else value)


# ---------------------------------------------------------------- several runs
class _Run(NamedTuple):
    folder: Path
    config: LoopConfig
    lines: list[dict[str, Any]]


def write_comparison(folders: Mapping[str, Path], page: Path) -> None:
    """Write one page, with everything inside, of run folders by what each is to be called.

    Raises:
        UserError: no run folder, or a config.yaml that cannot be read.
        ImportError: matplotlib is not installed.
    """
    runs = {name: _Run(folder, *read_run(folder)) for name, folder in folders.items()}
    note, samples = _newest(runs)
    text = render(
        "runs",
        title="Runs compared",
        note=", ".join(runs),
        header=HEADER,
        rows=[_row(name, run) for name, run in runs.items()],
        samples_note=note,
        samples=samples,
        charts=list(_curves(runs)),
        settings=(("setting", *runs), _differences(runs)),
    )
    write_text(page, text)


def _row(name: str, run: _Run) -> tuple[Any, ...]:
    """A row of `HEADER`."""
    state = headline(diagnose(run.lines, run.config.optim.clip), run.lines)
    lines = [line for line in run.lines if "seconds" in line]
    if not lines:
        return (name, state, 0, 0, "", "", "")
    images, seconds = lines[-1]["step"] * run.config.batch_size, lines[-1]["seconds"]
    losses = [line["loss"] for line in lines if line["loss"] is not None]
    time, rate = str(timedelta(seconds=round(seconds))), images / max(seconds, 1e-9)
    return (name, state, lines[-1]["step"], images, time, rate, smooth(losses)[-1] if losses else "")


def _newest(runs: Mapping[str, _Run]) -> tuple[str, list[tuple[str, str]]]:
    """A note, and (picture, caption) of each run: of the newest step that all have drawn, else the newest."""
    grids = {name: found for name, run in runs.items() if (found := grids_of(run.folder))}
    common = set.intersection(*map(set, grids.values())) if grids else set()
    steps = {name: max(common or found) for name, found in grids.items()}
    note = "Averaged weights" + ("" if common else "; there is no step at which all runs drew samples")
    shown = [(image_data(grids[name][step]), f"{name}, step {step:,}") for name, step in steps.items()]
    return f"{note}.", shown


def _curves(runs: Mapping[str, _Run]) -> Iterator[tuple[str, str]]:
    """(chart, caption): a line for each run, over images where the batches differ in size."""
    alike = len({run.config.batch_size for run in runs.values()}) == 1
    for name in CURVES:
        parts: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]] = {}
        for label, run in runs.items():
            scale = 1 if alike else run.config.batch_size
            for part, (steps, values) in series_of(run.lines, name).items():
                shown = smooth(values) if name == "loss" else values
                parts.setdefault(part, {})[label] = ([step * scale for step in steps], shown)
        for part, series in parts.items():
            title = TITLES.get(part) or METRICS.get(part, part.replace("_", " "))
            title = {"loss": "loss, smoothed", "samples": f"samples: {title}"}.get(name, title)
            chart = line_chart(series, "step" if alike else "images", title, log=name in LOGARITHMIC)
            yield chart, title


def _differences(runs: Mapping[str, _Run]) -> list[tuple[str, ...]]:
    """A row for each setting that is not the same in all runs."""
    found = [dict(changed(run.config)) for run in runs.values()]
    names = dict.fromkeys(key for each in found for key in each if key != "run")
    rows = ((name, *(each.get(name, "default") for each in found)) for name in names)
    return [row for row in rows if len(set(row[1:])) > 1]
