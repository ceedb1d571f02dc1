"""`pixelwright bench`: how fast, beside what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from pixelwright import __version__
from pixelwright.benchmark.machine import machine_name, measure_machine
from pixelwright.benchmark.page import write_page
from pixelwright.benchmark.peer import Peer
from pixelwright.benchmark.ratios import check_machine, compare, read_ratios, store_ratios
from pixelwright.benchmark.rows import Report, Row, load_average
from pixelwright.benchmark.running import Effort, measure
from pixelwright.benchmark.suites import SUITES, suite
from pixelwright.benchmark.work import Work, usual_recipe
from pixelwright.cli.parsing import new_parser
from pixelwright.device import resolve_device
from pixelwright.errors import UserError
from pixelwright.models.presets import preset
from pixelwright.training.summary import human

DESCRIPTION = """Time forward passes, training steps and sampling of presets, beside another implementation.

Without --peer that is the plain reading of the papers: eager modules, guidance evaluated at every step. Both
run in turn in one process, so that their ratio holds on a busy machine. OUT gets bench.json, bench.md and
charts, anew after every work. Every combination of models, works, batch sizes, sizes and precisions is one
work; --suite is a list of them with a name."""

EXAMPLES = """  pixelwright bench dip-b-16 pixeldit-b-16 --work forward --batch-size 1 2 4
  pixelwright bench dip-ti-4 --work training --batch-size 64 --compile both --out runs/bench-dip
  pixelwright bench dip-xl-16 --work sampling --steps 100 --device cuda
  pixelwright bench dip-b-16 --peer ../other:models.dip:build
  pixelwright bench --suite performance --out docs/results/performance --overwrite
  pixelwright bench --suite check --check benchmarks/ratios.json"""


def parser() -> ArgumentParser:
    """What is measured, how long, beside what, and where the figures go."""
    parser = new_parser("bench", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("models", nargs="*", type=str, metavar="MODEL", help="presets of classes, such as dip-b-16")
    add("--suite", type=str | None, help=f"a list of works instead: {' or '.join(SUITES)}")
    add("--work", nargs="+", type=str, default=["forward"], help="forward, training, sampling")
    add("--batch-size", nargs="+", type=int, default=[1], help="images at a time")
    add(
        "--size",
        nargs="+",
        type=int | None,
        default=[None],
        help="sides of images (default: the model's own)",
    )
    add("--precision", nargs="+", type=str, default=["bf16"], help="bf16 (autocast), fp32")
    add("--compile", choices=["no", "yes", "both"], default="no", help="whether our blocks are compiled")
    add("--apart", action="store_true", help="each side in a process of its own, ours set up as by `train`")
    add("--recipe", type=str | None, help="sampling: whose guidance and solver (default: the paper's)")
    add("--steps", type=int, default=100, help="sampling: steps of the solver")
    add("--device", type=str, default="cpu", help="cpu, cuda, cuda:1 or mps")
    add("--threads", type=int | None, help="threads of a CPU (default: as PyTorch has them)")
    add("--peer", type=str | None, metavar="PATH:module:factory", help="measure beside this checkout instead")
    add("--repeats", type=int, default=20, help="most runs of each side of a work")
    add("--warm-up", type=int, default=2, help="runs before that are not counted; sampling: of two steps")
    add("--seconds", type=float, default=60.0, help="time for each work; one run is always made")
    add("--memory", type=bool, default=True, help="measure peak memory too, each side in its own process")
    add("--out", type=str | None, metavar="DIR", help="folder for bench.json, bench.md and charts")
    add("--overwrite", action="store_true", help="replace the figures in a folder that holds some")
    add("--check", type=str | None, metavar="FILE", help="compare with stored ratios; exit code 1: slower")
    add("--store", type=str | None, metavar="FILE", help="store the ratios as those of this machine")
    return parser


def run(options: Namespace) -> int:
    """Measure, write, compare. Returns 1 if something became slower."""
    _check(options)
    device = resolve_device(options.device)
    peer = Peer.parse(options.peer) if options.peer else None
    effort = Effort(options.repeats, options.warm_up, options.seconds, options.memory)
    works = list(_works(options))
    if peer is not None:
        peer.load()  # so that a mistake is found before anything is measured
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    stored = read_ratios(Path(options.check)) if options.check else {}
    if options.check:
        check_machine(stored, machine_name(device), Path(options.check))
    load = load_average()
    report = Report(measure_machine(device), __version__, load)
    with tqdm(works, unit="work", disable=None) as bar:
        for work in bar:
            bar.set_description(work.title)
            report = replace(report, rows=(*report.rows, measure(work, effort, peer)))
            tqdm.write(_line(report.rows[-1]))
            _write(report, options.out)
    if options.store:
        store_ratios(Path(options.store), report)
    changes = list(compare(stored, report))
    for change in changes:
        verdict = "SLOWER" if change.slower else "as before"
        print(
            f"{change.title}: {change.now.median:.2f} times the plain one, was {change.before:.2f}: {verdict}"
        )
    return int(any(change.slower for change in changes))


def _check(options: Namespace) -> None:
    if bool(options.models) == bool(options.suite):
        raise UserError("give the names of models, or --suite with the name of a list; not both, not neither")
    if options.threads is not None and options.threads < 1:
        raise UserError(f"--threads is {options.threads}; it must be at least 1")
    out = options.out and Path(options.out)
    if out and out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    if out and (out / "bench.json").exists() and not options.overwrite:
        raise UserError(f"--out {out} holds figures already; give another folder, or --overwrite")
    if options.peer and (options.check or options.store):
        raise UserError(
            "stored ratios are those to the plain baseline; leave out --peer, or --check and --store"
        )


def _works(options: Namespace) -> Iterator[Work]:
    compiled = {"no": (False,), "yes": (True,), "both": (False, True)}[options.compile]
    if options.suite:
        if options.apart:
            raise UserError("--apart goes with names of models; a --suite says itself what runs apart")
        for compile in compiled:
            yield from suite(options.suite, options.device, compile)
        return
    axes = (options.models, options.work, options.size, options.batch_size, options.precision, compiled)
    for model, kind, size, batch_size, precision, compile in product(*axes):
        own = preset(model).image_size
        more: dict[str, Any] = {"apart": options.apart}
        if kind == "sampling":
            more |= {"recipe": options.recipe or usual_recipe(model), "steps": options.steps}
        side = size if size is not None else own[0] if own else 0
        yield Work(kind, model, batch_size, side, precision, options.device, compile, **more)


def _write(report: Report, out: str | None) -> None:
    if out is None:
        return
    report.write(Path(out) / "bench.json")
    try:
        write_page(report, Path(out))
    except ImportError:
        raise UserError('the page needs matplotlib: pip install "pixelwright[train]"') from None


def _line(row: Row) -> str:
    """A row for the terminal."""
    ours, other, quotient = row.ours.time, row.other.time, row.ratio
    text = (
        f"{row.work.title}: {ours.median:.3g} s, {row.against} {other.median:.3g} s: "
        f"{quotient.median:.2f} times faster ({quotient.low:.2f} to {quotient.high:.2f} in "
        f"{len(row.ours.seconds)} pairs)"
    )
    if row.ours.peak_bytes and row.other.peak_bytes:
        ours_peak, other_peak = (human(side.peak_bytes or 0, "B", 1024) for side in (row.ours, row.other))
        text += f"; peak {ours_peak}, {row.against} {other_peak}"
    if (share := row.ours.share("optimiser", "ema")) is not None:
        text += f"; optimiser + EMA {share:.1%}"
    return text
