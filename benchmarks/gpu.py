"""What a GPU has to show, in one call: tests, speed of the XL models, kernels, and small trainings.

    export PYTHONPATH=src                                        # or pixelwright installed
    python benchmarks/gpu.py --out gpu --minutes 9 --cifar10 cifar10/train.zip --emoji emoji
    python benchmarks/gpu.py --out gpu --parts models,kernels    # these alone, and all the time for them
    python benchmarks/gpu.py --out dry --dry-run                 # toy sizes, on any machine: seconds
    python benchmarks/gpu.py --out gpu --join models             # afterwards: model folders from the weights

Parts, the most wanted first; of several, each runs in a process of its own and has its share of the time:

- tests: the tests that need CUDA; 2 minutes at most;
- models: DiP-XL/16 and PixelDiT-XL/16 at 256² beside the plain eager baseline (baseline.py); 4 minutes. One
  image of 100 steps with the published guidance; training steps with their data. MFU is three forward passes
  of the model's arithmetic over the time, against the fastest bf16 matrix product of the same run; idle is
  the share of a step in which no kernel runs (kernels by the profiler, steps timed without it);
- kernels: attention by sdpa, flash and math, and RMSNorm plain, ours and compiled; 1 minute;
- training: the runs of configs/*-gpu.yaml (CIFAR-10 with PixelDiT and DiP, captioned Shapes, emoji), each
  as many steps as fit into its share of what is left; a sample sheet each, and the FID of those on CIFAR-10
  where --features and --reference are given (see docs/evaluation.md). --only NAME,NAME picks some of them.

OUT/gpu.json and OUT/gpu.md are written anew after every row. A row or part that fails is there with its
traceback, and the next goes on. A part that does not end is ended 45 seconds after its time.

Nothing is installed: benchmarks/gpu-requirements.txt lists what is needed beside torch. To a machine without
a network travel: this repository; a folder of wheels of that list, installed before by
`pip install --no-index --find-links WHEELS -r benchmarks/gpu-requirements.txt`; CIFAR-10 as a zip (49 MB, a
folder a class); the folder of features with its reference. Back come gpu.json, gpu.md and of each training a
sample sheet, its log and the averaged weights in bf16, in files below 16 MiB.
"""

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gpu_speed import attention_and_norms, models
from gpu_training import join, train
from machine import Machine, machine_name, measure_machine
from timing import interleave, spread, waiting

import pixelwright as pw
from pixelwright.errors import UserError
from pixelwright.files import write_text
from pixelwright.html import markdown_table

ROOT = Path(__file__).parents[1]
TESTS = ("tests/test_cuda.py", "tests/test_rng.py", "tests/acceleration/test_graphs.py")
SHARES = {"tests": 2.0, "models": 4.0, "kernels": 1.0}  # minutes; training has what is left
GRACE = 45.0  # seconds over its time after which a part is ended


class Plan(NamedTuple):
    """What differs between a real run and a dry one."""

    models: tuple[str, ...]
    size: int
    steps: int
    batches: tuple[int, int]  # of training: ours, and a larger one
    plain_batch: int
    workers: int
    repeats: int
    seconds: float  # for the runs of a row, after its first
    matrix: int  # side of the largest matrix
    attention: Mapping[str, tuple[int, int, int, int]]  # [B, L, heads, d]
    trained: tuple[str, ...]  # files of settings in configs/
    measured: int  # samples for FID


TRAINED = ("cifar10-pixeldit-gpu", "cifar10-dip-gpu", "t2i-shapes-gpu", "t2i-emoji-gpu")
SHAPES = {
    "XL/16, one image with guidance": (2, 256, 16, 72),
    "XL/16, 64 images": (64, 256, 16, 72),
    "T2I at 1024²": (2, 4096, 24, 64),
}
REAL = Plan(
    models=("dip-xl-16", "pixeldit-xl-16"), size=256, steps=100, batches=(64, 128), plain_batch=32, workers=8,
    repeats=10, seconds=5.0, matrix=8192, attention=SHAPES, measured=10_000, trained=TRAINED,
)  # fmt: skip
DRY = Plan(
    models=("dip-n-8", "pixeldit-n-8"), size=32, steps=3, batches=(2, 4), plain_batch=2, workers=0,
    repeats=1, seconds=0.1, matrix=64, attention={"toy": (1, 16, 2, 8)}, measured=16, trained=TRAINED,
)  # fmt: skip
Found = tuple[str, dict[str, Any]]
"""What a row says, and its figures."""


# --- running and writing ------------------------------------------------------------------------------------
@dataclass
class Job:
    """One part that is running."""

    part: str
    options: argparse.Namespace
    plan: Plan
    device: torch.device
    rows: list[dict[str, Any]]
    begun: float

    @property
    def left(self) -> float:
        """Seconds."""
        return 60 * self.options.minutes - (time.monotonic() - self.begun)

    @property
    def precision(self) -> str:
        return "bf16" if self.device.type == "cuda" else "fp32"

    @cached_property
    def machine(self) -> Machine:
        return measure_machine(self.device, self.plan.matrix)

    def row(self, what: str, measure: Callable[[], Found], goal: str = "") -> None:
        """Measure, and write what is found, or why there is nothing."""
        row: dict[str, Any] = {"what": what, "goal": goal, "figures": {}}
        try:
            row["result"], row["figures"] = measure() if self.left > 0 else ("no time left", {})
        except torch.OutOfMemoryError:
            row["result"] = "does not fit into memory"
        except UserError as error:
            row["result"] = f"cannot be: {error}"
        except Exception as error:
            row["result"] = (
                f"FAILED: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )
            row["traceback"] = traceback.format_exc()
        self.rows.append(row)
        print(f"{self.part}: {what}: {row['result']}", flush=True)
        self.write()
        torch.compiler.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def write(self, error: str = "") -> None:
        """Replace what OUT has of this part."""
        seconds = round(time.monotonic() - self.begun, 1)
        machine = f"{machine_name(self.device)}, torch {torch.__version__}, pixelwright {pw.__version__}"
        more = {"ceilings": asdict(self.machine)} if "machine" in vars(self) else {}
        found = {"machine": machine, "dry_run": self.options.dry_run, "seconds": seconds, **more}
        record(self.options.out, self.part, found | {"rows": self.rows, "error": error})

    def seconds(self, function: Callable[[], object], calls: int = 1) -> float:
        """The median time of a call; `calls` of them are timed at once."""

        def run() -> None:
            for _ in range(calls):
                function()

        function()
        times = interleave({"": run}, self.plan.repeats, self.plan.seconds, waiting(self.device))[""]
        return spread(times).median / calls


def record(out: Path, part: str, found: Mapping[str, Any]) -> None:
    """Put what a part found into OUT/gpu.json, and all of that as a table into OUT/gpu.md."""
    path = out / "gpu.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known = {name: found if name == part else known[name] for name in PARTS if name in (part, *known)}
    write_text(path, json.dumps(known, indent=1) + "\n")
    cells, notes = [], []
    for name, each in known.items():
        cells += [[name, row["what"], row["result"], row["goal"]] for row in each["rows"]]
        dry = "a dry run, whose figures mean nothing; " if each["dry_run"] else ""
        notes.append(f"- {name}: {dry}{each['machine']}; {each['seconds']:.0f} s")
        if each["error"]:
            cells.append([name, "", f"FAILED: {each['error'].splitlines()[-1]}", ""])
    table = markdown_table(["part", "what", "result", "goal on an H100"], cells)
    write_text(out / "gpu.md", "\n".join([table, *notes]) + "\n")


def run_part(options: argparse.Namespace, part: str) -> int:
    """Run one part here; 1 if anything in it failed."""
    plan, device = DRY if options.dry_run else REAL, torch.device("cuda" if has_cuda() else "cpu")
    job, error = Job(part, options, plan, device, [], time.monotonic()), ""
    # A CPU takes minutes to compile even toy models, which shows nothing.
    with torch.compiler.set_stance("default" if device.type == "cuda" else "force_eager"):
        try:
            PARTS[part](job)
        except Exception:
            error = traceback.format_exc()
            print(error, flush=True)
    job.write(error)
    return int(bool(error) or any("traceback" in row for row in job.rows))


def run_apart(arguments: list[str], options: argparse.Namespace) -> int:
    """Run each part in a process of its own, so that none can take the others with it."""
    begun, failed = time.monotonic(), 0
    for part in options.parts:
        left = options.minutes - (time.monotonic() - begun) / 60
        minutes = max(0.0, min(left, SHARES.get(part, left)))
        nothing = {"machine": "unknown", "dry_run": options.dry_run, "seconds": 60 * minutes, "rows": []}
        record(options.out, part, nothing | {"error": "has not ended"})
        command = [sys.executable, __file__, *arguments, "--parts", part, "--minutes", f"{minutes:.3f}"]
        process = subprocess.Popen(command, start_new_session=True)
        try:
            code = process.wait(60 * minutes + GRACE)
            error = f"the process of this part ended with code {code}" if code not in (0, 1) else ""
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its loaders too
            code, error = 1, f"ended from outside, {GRACE:.0f} s over its time"
        if error:
            known = json.loads((options.out / "gpu.json").read_text())
            record(options.out, part, known[part] | {"error": error})
        failed += code != 0
    return int(failed > 0)


# --- 1. tests -----------------------------------------------------------------------------------------------
def tests(job: Job) -> None:
    """The tests that need CUDA, and those around them."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-rfs", "--tb=short", "-p", "hypothesispytest"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    files = TESTS[:1] if job.options.dry_run else TESTS

    def run() -> Found:
        how: dict[str, Any] = {"cwd": ROOT, "env": environment, "timeout": max(1.0, job.left)}
        command = [*pytest, "-m", "slow or not slow", *files]
        run = subprocess.run(command, capture_output=True, text=True, **how)
        lines = (run.stdout.strip() or run.stderr).splitlines()
        if run.returncode:
            raise RuntimeError("\n".join([lines[-1], *lines[-400:]]))
        return lines[-1].strip("= "), {"lines": lines[-20:]}

    job.row("pytest " + " ".join(files), run, "all pass")


# --- 4. training --------------------------------------------------------------------------------------------
def training(job: Job) -> None:
    """Train each model in its share of what is left."""
    names = job.options.only or job.plan.trained
    for kind in ("cifar10", "emoji"):
        if any(kind in name for name in names) and not (getattr(job.options, kind) or job.options.dry_run):
            raise UserError(f"part training needs --{kind} PATH, or --only without it")
    for number, name in enumerate(names):
        seconds = job.left / (len(names) - number)
        job.row(name, partial(train, job, ROOT / "configs" / f"{name}.yaml", seconds))


# --- command line -------------------------------------------------------------------------------------------
PARTS: dict[str, Callable[[Job], None]] = {
    "tests": tests,
    "models": models,
    "kernels": attention_and_norms,
    "training": training,
}


def has_cuda() -> bool:
    return torch.cuda.is_available()


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder that all is written to")
    parser.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts (default: %(default)s)")
    parser.add_argument("--cifar10", type=Path, help="zip or folder of CIFAR-10's training images")
    parser.add_argument("--emoji", type=Path, help="folder of the emoji's shards")
    parser.add_argument("--only", type=lambda x: x.split(","), help=f"trainings of {', '.join(TRAINED)}")
    parser.add_argument("--features", help="folder of an in-domain classifier, for FID")
    parser.add_argument("--reference", help="statistics made with it, by pixelwright reference")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes, on any machine")
    parser.add_argument("--join", type=Path, metavar="FOLDER", help="make model folders of OUT's weights")
    options = parser.parse_args(arguments)
    options.parts = options.parts.split(",")
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"--parts names {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if unknown := [name for name in options.only or () if name not in TRAINED]:
        parser.error(f"--only names {', '.join(unknown)}; there are {', '.join(TRAINED)}")
    if bool(options.features) != bool(options.reference):
        parser.error("give --features and --reference together, or neither")
    return options


def main(arguments: list[str]) -> int:
    """Run what is asked for; 1 if anything failed."""
    options = parse(arguments)
    if options.join:
        print(*join(options.out, options.join), sep="\n")
        return 0
    if not has_cuda() and not options.dry_run:
        raise SystemExit("no CUDA device here: --dry-run tries the script with toy sizes")
    options.out.mkdir(parents=True, exist_ok=True)
    return run_part(options, options.parts[0]) if len(options.parts) == 1 else run_apart(arguments, options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
