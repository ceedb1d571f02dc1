"""Time forward passes, training steps and sampling of presets, beside the baseline or another implementation.

    python benchmarks/bench.py dip-b-16 pixeldit-b-16 --work forward --batch-size 1 2 4
    python benchmarks/bench.py dip-ti-4 --work training --batch-size 64 --compile both --out runs/bench-dip
    python benchmarks/bench.py dip-xl-16 --work sampling --steps 100 --device cuda
    python benchmarks/bench.py dip-b-16 --peer ../other:models.dip:build
    python benchmarks/bench.py --suite performance --compile yes --out docs/results/performance --overwrite
    python benchmarks/bench.py --suite check --compile yes --check benchmarks/ratios.json

The baseline (baseline.py) is the plain reading of the papers: eager modules, guidance evaluated at every
step. Both sides run in turn in one process, so that their ratio holds on a busy machine. Every combination of
models, works, batch sizes, sizes and precisions is one work; --suite is a list of them. OUT gets bench.json
and bench.md, anew after every work.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from machine import machine_name, measure_machine
from process import apart, measure_peak
from report import Measured, Report, Row, compare, read_ratios, store_ratios
from timing import interleave, waiting
from tqdm import tqdm
from work import BASELINE, KINDS, OURS, PEER, PRECISIONS, SUITES, Side, Work, build, load_peer

from pixelwright.device import resolve_device
from pixelwright.errors import UserError
from pixelwright.models.presets import preset

PHASE_REPEATS = 5


class Effort(NamedTuple):
    """How much time a work is given."""

    repeats: int = 20
    """Most rounds that are counted."""
    warm_up: int = 2
    seconds: float = 60.0
    """No new round begins after this time; one there always is."""
    memory: bool = True
    """Whether peak memory is measured too."""


def measure(work: Work, effort: Effort, peer: str | None = None) -> Row:
    """Both sides of a work in turn, in this process or `apart`; their memory each in a process of its own."""
    against = BASELINE if peer is None else PEER
    names = (OURS, against)
    peaks = {name: measure_peak(work, name, peer) if effort.memory else None for name in names}
    with _sides(work, against, peer) as sides:
        for side in [*sides.values()] * max(1, effort.warm_up):
            side.warm()
        runs = {name: side.run for name, side in sides.items()}
        wait = waiting(resolve_device(work.device))
        times = interleave(runs, max(1, effort.repeats), effort.seconds, wait)
        ours, other = (Measured(tuple(times[name]), peaks[name], _phases(sides[name])) for name in names)
    return Row(work, work.flops, ours, other, against)


@contextmanager
def _sides(work: Work, against: str, peer: str | None) -> Iterator[dict[str, Side]]:
    if not work.apart:
        ours = build(work, OURS)
        yield {OURS: ours, against: build(work, against, peer, ours.weights)}
        return
    with apart(work, OURS) as ours, apart(work, against, peer) as other:
        yield {OURS: ours, against: other}


def _phases(side: Side) -> dict[str, float] | None:
    if side.phases is None:
        return None
    runs = [side.phases() for _ in range(PHASE_REPEATS)]
    return {name: median(run[name] for run in runs) for name in runs[0]}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """What is measured, how long, beside what, and where the figures go."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help="presets of classes, such as dip-b-16")
    add("--suite", choices=SUITES, help="a list of works instead")
    add("--work", nargs="+", choices=KINDS, default=["forward"])
    add("--batch-size", nargs="+", type=int, default=[1], help="images at a time")
    add("--size", nargs="+", type=int, default=[None], help="sides of images (default: the model's own)")
    add("--precision", nargs="+", choices=PRECISIONS, default=["bf16"])
    add("--compile", choices=("no", "yes", "both"), default="no", help="whether our blocks are compiled")
    add("--apart", action="store_true", help="each side in a process of its own, ours set up as by `train`")
    add("--steps", type=int, default=100, help="sampling: steps of the solver")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 or mps")
    add("--threads", type=int, help="threads of a CPU (default: as PyTorch has them)")
    add("--peer", metavar="PATH:module:factory", help="measure beside this checkout instead")
    add("--repeats", type=int, default=20, help="most runs of each side of a work")
    add("--warm-up", type=int, default=2, help="runs before that are not counted; sampling: of two steps")
    add("--seconds", type=float, default=60.0, help="time for each work; one run is always made")
    add("--no-memory", action="store_true", help="leave out peak memory (each side in its own process)")
    add("--out", type=Path, metavar="DIR", help="folder for bench.json and bench.md")
    add("--overwrite", action="store_true", help="replace the figures in a folder that holds some")
    add("--check", type=Path, metavar="FILE", help="compare with stored ratios; exit code 1: slower")
    add("--store", type=Path, metavar="FILE", help="store the ratios as those of this machine")
    options = parser.parse_args(arguments)
    if bool(options.models) == bool(options.suite):
        parser.error("give the names of models, or --suite; not both, not neither")
    if options.apart and options.suite:
        parser.error("--apart goes with names of models; some works of a --suite run apart already")
    if options.out and (options.out / "bench.json").exists() and not options.overwrite:
        parser.error(f"{options.out} holds figures already; give another folder, or --overwrite")
    if options.peer and (options.check or options.store):
        parser.error("stored ratios are those to the baseline; leave out --peer, or --check and --store")
    return options


def works(options: argparse.Namespace) -> Iterator[Work]:
    """The list of a suite, or every combination."""
    for compile in {"no": (False,), "yes": (True,), "both": (False, True)}[options.compile]:
        if options.suite:
            for work in SUITES[options.suite]():
                yield replace(work, device=options.device, compile=compile)
            continue
        axes = (options.models, options.work, options.size, options.batch_size, options.precision)
        for model, kind, size, batch_size, precision in product(*axes):
            side = size or (preset(model).image_size or (0, 0))[0]
            yield Work(
                kind,
                model,
                batch_size,
                side,
                precision,
                options.device,
                compile,
                options.steps,
                options.apart,
            )


def run(options: argparse.Namespace) -> int:
    """Measure, write, compare. Returns 1 if something became slower."""
    device, planned = resolve_device(options.device), list(works(options))
    if options.peer:
        load_peer(options.peer)  # so that a mistake is found before anything is measured
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    stored = read_ratios(options.check) if options.check else {}
    if options.check and machine_name(device) not in stored:
        known = "; ".join(stored) or "none"
        raise UserError(
            f"{options.check} holds nothing for {machine_name(device)} (machines: {known}); --store adds it"
        )
    effort = Effort(options.repeats, options.warm_up, options.seconds, not options.no_memory)
    report = Report(measure_machine(device), round(os.getloadavg()[0], 2))
    for work in tqdm(planned, unit="work", disable=None):
        report = replace(report, rows=(*report.rows, measure(work, effort, options.peer)))
        tqdm.write(str(report.rows[-1]))
        if options.out:
            report.write(options.out)
    if options.store:
        store_ratios(options.store, report)
    changes = compare(stored, report)
    print(*changes, sep="\n")
    return int(any(change.slower for change in changes))


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, 1 where something became slower, 2 for a mistake."""
    try:
        return run(parse(arguments))
    except UserError as error:
        print(f"bench.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
