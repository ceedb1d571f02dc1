"""What drawing on the page costs beside the command line, previews, HTTP and all.

    python benchmarks/studio.py MODEL --count 16 --steps 50

Each side is a process with the model in memory, which draws the same pictures and writes them; they take
turns. Medians over the rounds are compared: seconds by the clock, and of the processor, which other jobs
disturb less. Before that a page is started as the command line starts it, and its first picture drawn.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from gradio_client import Client

from pixelwright.diffusion.sample import as_condition, sample
from pixelwright.images import save_png
from pixelwright.studio.drawing import TOGETHER
from pixelwright.studio.jobs import Form, Jobs
from pixelwright.studio.models import Models
from pixelwright.studio.page import serve


@cache
def opened(source: str, out: Path) -> Jobs:
    """The jobs of this process, with the model in memory."""
    jobs = Jobs(Models([source], (), torch.device("cpu")), out / "runs", out / "pictures")
    jobs.models.get(source)
    return jobs


@cache
def address(source: str, out: Path) -> str:
    """Of the page of this process."""
    return serve(opened(source, out), None)[1]


def command_line(form: Form, out: Path) -> None:
    """Draw and write as `pixelwright sample` does."""
    models = opened(str(form.model), out).models
    model, drawing = models.get(str(form.model)), form.drawing(False)
    condition = as_condition(drawing.words(model.config), model)
    for number, image in enumerate(sample(model, condition, drawing.sampler, batch_size=TOGETHER)):
        save_png(image, out / f"{number}.png", {"note": "as long as that of the page" * 20})


def seconds(draw: Callable[[], Any], pool: ProcessPoolExecutor) -> tuple[float, float]:
    """What `draw` takes, by the clock and of the processor in the process of the pool."""
    wall, processor = time.perf_counter(), pool.submit(time.process_time).result()
    draw()
    return time.perf_counter() - wall, pool.submit(time.process_time).result() - processor


def fresh(form: Form, out: Path) -> None:
    """Print what a page takes to start, and its first pictures."""
    command = [sys.executable, "-m", "pixelwright", "studio", "--model", str(form.model), "--device", "cpu"]
    began = time.perf_counter()
    with subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[2]
        print(f"the page is there after {time.perf_counter() - began:.1f} s")
        client = Client(address, verbose=False, download_files=False)
        for which in ("first", "second"):
            began = time.perf_counter()
            client.predict(*astuple(form), api_name="/draw")
            print(f"its {which} {form.count:.0f} after {time.perf_counter() - began:.2f} s")
        process.terminate()


def main() -> None:
    """Print the medians of both sides and their ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    form, spawn = Form(options.model, count=options.count, steps=options.steps), get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        fresh(form, Path(folder))
        with ProcessPoolExecutor(1, spawn) as plain, ProcessPoolExecutor(1, spawn) as page:
            out = Path(folder) / "page"
            browser = Client(
                page.submit(address, options.model, out).result(), verbose=False, download_files=False
            )
            rounds = [
                {
                    "command line": seconds(
                        lambda: plain.submit(command_line, form, Path(folder)).result(), plain
                    ),
                    "page": seconds(lambda: browser.predict(*astuple(form), api_name="/draw"), page),
                }
                for _ in range(options.rounds + 1)
            ][1:]
    for place, kind in enumerate(("clock", "processor")):
        found = {side: statistics.median(each[side][place] for each in rounds) for side in rounds[0]}
        ratio = statistics.median(each["page"][place] / each["command line"][place] for each in rounds)
        text = ", ".join(f"{side} {value:.2f} s" for side, value in found.items())
        print(f"{kind}: {text}; the page takes {ratio - 1:+.1%}")


if __name__ == "__main__":
    main()
