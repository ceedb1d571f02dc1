"""Speed of both XL models on one GPU, in one call of at most nine minutes, as JSON and Markdown.

    python benchmarks/gpu.py --out gpu                  # gpu.json and gpu.md, in bf16 at 256²
    python benchmarks/gpu.py --out gpu --parts latency  # whether compiling and graphs pay
    python benchmarks/gpu.py --out dry --dry-run        # the same code with tiny models, on any machine;
                                                        # on a CPU without compiling

Parts, for DiP-XL/16 and PixelDiT-XL/16, each beside the eager baseline (baseline.py):

- latency: one image, 100 steps, guidance in its interval as published; eager, compiled per block, and
  with CUDA graphs (`WAYS`). The model is prepared and recorded before the clock starts;
- training: whole steps (forward, backward, clipping, AdamW, EMA) at batch 64 and at the largest power of two
  that `pixelwright info` expects to fit, compiled per block; the baseline at batch 32. MFU is three forward
  passes of the model's arithmetic over the time, against the fastest bf16 matrix product of the same run;
- throughput: the same sampling at growing batches.

Medians. Files are written after every row; rows for which there is no time are named as such.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from machine import Machine, measure_machine
from timing import interleave, spread, waiting
from torch import Tensor
from work import BASELINE, OURS, Side, Work, build, random_weights

import pixelwright as pw
from pixelwright.acceleration import accelerate
from pixelwright.errors import UserError
from pixelwright.files import write_text
from pixelwright.html import markdown_table
from pixelwright.training.summary import describe

PARTS = ("latency", "training", "throughput")
EAGER, COMPILED, GRAPHS = "eager", "compiled", "compiled, graphs"
WAYS = {EAGER: {}, COMPILED: {"compile": True, "graphs": False}, GRAPHS: {"compile": True, "graphs": True}}
"""How our model is sampled: the settings of `accelerate`."""
GOALS = {
    ("latency", "dip-xl-16"): "below 0.35 s",
    ("latency", "pixeldit-xl-16"): "below 0.6 s",
    ("training", "dip-xl-16"): "above 50 % of the ceiling",
    ("training", "pixeldit-xl-16"): "above 50 % of the ceiling",
}


class Plan(NamedTuple):
    """What differs between a real run and a dry one."""

    models: tuple[str, ...]
    size: int
    steps: int
    plain_batch: int
    batches: tuple[int, ...]  # of training, smallest to largest
    drawn: tuple[int, ...]  # images at a time, for throughput
    repeats: int
    seconds: float  # for the runs of a row, after its first
    largest_matrix: int


REAL = Plan(("dip-xl-16", "pixeldit-xl-16"), 256, 100, 32, (64, 128, 256, 512), (16, 64, 128), 10, 6.0, 8192)
DRY = Plan(("dip-n-8", "pixeldit-n-8"), 32, 3, 2, (2, 4), (2,), 1, 0.1, 64)


@dataclass(frozen=True)
class Row:
    """One side of a work."""

    part: str
    work: Work
    side: str
    way: str
    """A key of `WAYS`; in training, `EAGER` or `COMPILED`."""
    note: str = ""
    """Why there are no figures."""
    seconds: float | None = None
    images_per_second: float | None = None
    share_of_ceiling: float | None = None
    peak_gib: float | None = None
    phases: dict[str, float] | None = None

    @property
    def done(self) -> bool:
        return self.seconds is not None


def rows(plan: Plan, parts: list[str], device: str, memory: float) -> Iterator[Row]:
    """What is to be measured, the most wanted first."""
    precision = "fp32" if device == "cpu" else "bf16"  # a dry run needs no autocast
    for part in parts:
        for model in plan.models:
            draw = Work("sampling", model, 1, plan.size, precision, device, steps=plan.steps)
            train = Work("training", model, plan.plain_batch, plan.size, precision, device)
            if part == "latency":
                yield Row(part, draw, BASELINE, EAGER)
                yield from [Row(part, draw, OURS, way) for way in WAYS]
            elif part == "training":
                yield Row(part, train, BASELINE, EAGER)
                for batch in batches(plan, train, memory):
                    yield Row(part, replace(train, batch_size=batch, compile=True), OURS, COMPILED)
            else:
                yield Row(part, replace(draw, batch_size=plan.drawn[0]), BASELINE, EAGER)
                yield from [Row(part, replace(draw, batch_size=n), OURS, GRAPHS) for n in plan.drawn]


def batches(plan: Plan, work: Work, memory: float) -> list[int]:
    """The smallest batch, and the largest that should fit into nine tenths of the memory."""
    size = (work.size, work.size)
    one, two = (describe(work.config(), size, n, autocast=work.autocast).training_bytes for n in (8, 16))
    each = (two - one) / 8
    fitting = [n for n in plan.batches if one + (n - 8) * each < 0.9 * memory]
    return sorted({plan.batches[0], (fitting or plan.batches)[-1 if fitting else 0]})


Known = dict[str, Mapping[str, Tensor]]
"""The weights of the model that is sampled, by its name: making them takes longer than a run."""


def ready(row: Row, known: Known) -> Side:
    """The side of a row, with weights that are known."""
    work = row.work
    prepare = partial(accelerate, precision=work.precision, **WAYS[row.way])
    if work.kind == "training":
        known.clear()
    elif work.model not in known:
        known.clear()
        known[work.model] = {k: w.to(work.device) for k, w in random_weights(work).items()}
    return build(work, row.side, weights=known.get(work.model), prepare=prepare)


def measure(machine: Machine, plan: Plan, row: Row, known: Known) -> Row:
    """The row with its figures, or with the reason why there are none: no memory, no GPU."""
    work = row.work
    device = torch.device(work.device)
    wait = waiting(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        side = ready(row, known)
        for _ in range(2):
            side.warm()
        times = interleave({"": side.run}, plan.repeats, plan.seconds, wait)[""]
        phases = side.phases() if side.phases else None
    except torch.OutOfMemoryError:
        return replace(row, note="does not fit")
    except UserError as error:
        return replace(row, note=str(error))
    finally:
        torch.compiler.reset()
        gc.collect()
    seconds = spread(times).median
    ceiling = machine.ceiling(work.precision)
    return replace(
        row,
        seconds=seconds,
        images_per_second=work.batch_size / seconds,
        share_of_ceiling=work.flops / seconds / ceiling,
        peak_gib=torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
        phases=phases,
    )


def write(out: Path, machine: Machine, results: list[Row], dry: bool) -> None:
    """Replace OUT.json and OUT.md."""
    data = {"pixelwright": pw.__version__, "dry_run": dry, **asdict(machine), "rows": [*map(asdict, results)]}
    write_text(out.with_suffix(".json"), json.dumps(data, indent=1) + "\n")
    header = ["part", "model", "batch", "side", "seconds", "images/s", "of the ceiling", "peak, GiB", "goal"]
    text = (
        f"{'A dry run with tiny models: its figures mean nothing. ' if dry else ''}{machine}. "
        f"pixelwright {pw.__version__}.\n\n{markdown_table(header, map(_cells, results))}"
    )
    write_text(out.with_suffix(".md"), text)


def _cells(row: Row) -> list[Any]:
    work = row.work
    side = f"{row.side}, {row.way}"
    goal = GOALS.get((row.part, work.model), "") if row.side == OURS else ""
    cells: list[Any] = [row.part, work.model, work.batch_size, side]
    if not row.done:
        return [*cells, row.note, "", "", "", goal]
    share = f"{row.share_of_ceiling:.0%}"
    peak = "" if row.peak_gib is None else f"{row.peak_gib:.1f}"
    return [*cells, f"{row.seconds:.3g}", f"{row.images_per_second:.3g}", share, peak, goal]


def main(arguments: list[str] | None = None) -> int:
    """Measure until all is done or the time is over."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="OUT.json and OUT.md are written")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=8.0, help="no row begins after this time")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    cuda = torch.cuda.is_available()
    if not cuda and not options.dry_run:
        raise SystemExit("no CUDA device here: --dry-run tries the script with tiny models")
    device, plan = "cuda" if cuda else "cpu", DRY if options.dry_run else REAL
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    machine = measure_machine(torch.device(device), plan.largest_matrix)
    memory = torch.cuda.mem_get_info()[1] if cuda else 2**30
    results: list[Row] = []
    known: Known = {}
    # A CPU takes minutes to compile even tiny models, which shows nothing.
    with torch.compiler.set_stance("default" if cuda else "force_eager"):
        for row in rows(plan, options.parts, device, memory):
            late = time.monotonic() - begun > 60 * options.minutes
            row = replace(row, note="no time left") if late else measure(machine, plan, row, known)
            results.append(row)
            print(" | ".join(map(str, _cells(row))), flush=True)
            write(options.out, machine, results, options.dry_run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
