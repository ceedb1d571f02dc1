"""Is a run healthy? A few plain rules over its log and samples, each with its threshold in its text."""

import math
from collections.abc import Iterator, Sequence
from statistics import mean, median
from typing import Any, NamedTuple

RISE = 1.05  # loss of the last tenth against the tenth before
CLIPPED = 0.5  # share of the lines in the last quarter above the clipping norm
SKIPPED = 0.01  # share of all steps
SLOW = 0.7  # of the median speed
NORM = 5.0  # gradient norm of the last tenth against the median
NOISE = 0.3  # white noise in the samples as a share of their contrast; photographs have 0.03 to 0.1
GRID = 1.0  # by how much squared steps across borders of patches are larger; photographs: -0.5 to 0.6
SAME = 0.2  # share of the samples' variance that is between them; photographs have about 1
FEWEST = 20  # lines below which trends are not looked at


class Finding(NamedTuple):
    """What a rule found."""

    kind: str  # "ok", "look" (look into it) or "bad"
    text: str


def diagnose(lines: Sequence[dict[str, Any]], clip: float | None) -> list[Finding]:
    """Findings about a log, the worst first; all is well if every one is "ok"."""
    samples = [line["samples"] | {"step": line["step"]} for line in lines if "samples" in line]
    lines = [line for line in lines if "loss" in line]  # not those of metrics alone
    if not lines:
        return [Finding("look", "nothing was logged yet")]
    if len(lines) >= FEWEST:
        trends = [_loss(lines), *_norm(lines, clip), _speed(lines)]
    else:
        trends = [Finding("ok", f"{len(lines)} lines of log: trends are looked at from {FEWEST} on")]
    found = [*_events(lines), *trends, *(_samples(samples[-1]) if samples else ())]
    return sorted(found, key=lambda found: ("bad", "look", "ok").index(found.kind))


def _last(values: Sequence[float], share: float) -> Sequence[float]:
    return values[-max(1, round(len(values) * share)) :]


def _column(lines: Sequence[dict[str, Any]], name: str) -> list[float]:
    values = (line.get(name) for line in lines)
    return [value for value in values if value is not None and math.isfinite(value)]


def _events(lines: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """Skipped steps, spikes and rollbacks."""
    skipped, steps = lines[-1].get("skipped", 0), lines[-1]["step"]
    if skipped:
        kind = "bad" if skipped > SKIPPED * steps else "look"
        yield Finding(kind, f"{skipped} of {steps} steps were skipped (bad above {SKIPPED:.0%})")
    else:
        yield Finding("ok", "every step had a finite loss and gradient")
    if spikes := sum(1 for line in lines if line.get("event")):
        yield Finding("look", f"{spikes} event{'s' if spikes > 1 else ''} in the log; see below")
    if count := max(len(line.get("rollbacks", ())) for line in lines):
        times = "once" if count == 1 else f"{count} times"
        yield Finding("look", f"spikes persisted, and the run rolled back {times}; see below")


def _samples(found: dict[str, float]) -> Iterator[Finding]:
    """Noise, a grid of patches, and one picture for all, in the newest samples (see `evaluation.metrics`)."""
    rules = {
        "noise": (NOISE, False, "noise in them", "full of noise, as early in a run"),
        "patch_grid": (GRID, False, "larger steps between patches", "show the grid of patches"),
        "variety": (SAME, True, "their variety", "nearly one picture"),
    }
    for name, (limit, below, ok, look) in rules.items():
        if name in found:
            value = found[name]
            odd = value < limit if below else value > limit
            text = f"samples of step {found['step']:,}: {look if odd else ok}, {value:.2f}"
            yield Finding("look" if odd else "ok", f"{text} (look {'below' if below else 'above'} {limit:g})")


def _loss(lines: Sequence[dict[str, Any]]) -> Finding:
    losses = _column(lines, "loss")
    if len(losses) < FEWEST:
        return Finding("bad", "most lines of the log have no finite loss")
    size = max(1, len(losses) // 10)
    now, before = mean(losses[-size:]), mean(losses[-2 * size : -size])
    text = f"loss over the last tenth of the log {now:.4g}, over the tenth before {before:.4g}"
    return Finding("look" if now > RISE * before else "ok", f"{text} (rising if more than {RISE:g} times)")


def _norm(lines: Sequence[dict[str, Any]], clip: float | None) -> Iterator[Finding]:
    norms = _column(lines, "grad_norm")
    if norms:
        ratio = mean(_last(norms, 0.1)) / max(median(norms), 1e-30)
        text = f"gradient norm over the last tenth is {ratio:.3g} times the median (look above {NORM:g})"
        yield Finding("look" if ratio > NORM else "ok", text)
    else:
        yield Finding("bad", "no finite gradient norm was logged")
    if clip is not None:
        last = _last(norms, 0.25)
        share = sum(norm > clip for norm in last) / max(1, len(last))
        text = f"gradient norm above optim.clip {clip:g} in {share:.0%} of the last quarter"
        yield Finding("look" if share > CLIPPED else "ok", f"{text} (look above {CLIPPED:.0%})")


def _speed(lines: Sequence[dict[str, Any]]) -> Finding:
    rates = _column(lines, "images_per_second")
    now, usual = mean(_last(rates, 0.1)), median(rates)
    text = f"speed over the last tenth {now:.4g} images/s, median {usual:.4g} (look below {SLOW:.0%})"
    return Finding("look" if now < SLOW * usual else "ok", text)
