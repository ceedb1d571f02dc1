"""What drawing on the page costs beside the command line, previews, HTTP and all.

    python benchmarks/studio.py MODEL --count 16 --steps 50

Both sides have the model in memory, draw the same pictures and write them; they take turns. Medians over the
rounds are compared: seconds by the clock, and of the processor, which other jobs disturb less.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import torch
from gradio_client import Client

from pixelwright.diffusion.sample import as_condition, sample
from pixelwright.images import save_png
from pixelwright.studio.drawing import TOGETHER
from pixelwright.studio.jobs import Form, Jobs
from pixelwright.studio.models import Models
from pixelwright.studio.page import serve


def seconds(draw: Callable[[], None]) -> tuple[float, float]:
    """Seconds that `draw` takes by the clock, and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    draw()
    return time.perf_counter() - wall, time.process_time() - processor


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
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        jobs = Jobs(Models([options.model], (), torch.device("cpu")), out / "runs", out / "pictures")
        model, form = (
            jobs.models.get(options.model),
            Form(options.model, count=options.count, steps=options.steps),
        )
        drawing = form.drawing(False)
        words = drawing.words(model.config)
        page, address = serve(jobs, None)
        client = Client(address, verbose=False, download_files=False)

        def command_line() -> None:
            images = sample(model, as_condition(words, model), drawing.sampler, batch_size=TOGETHER)
            for number, image in enumerate(images):
                save_png(image, out / f"{number}.png", {"note": "as long as that of the page" * 20})

        def on_page() -> None:
            client.predict(*astuple(form), api_name="/draw")

        sides = {"command line": command_line, "page": on_page}
        for draw in sides.values():
            draw()
        rounds = [{name: seconds(draw) for name, draw in sides.items()} for _ in range(options.rounds)]
        page.close()
    for place, kind in enumerate(("clock", "processor")):
        found = {name: statistics.median(each[name][place] for each in rounds) for name in sides}
        ratio = statistics.median(each["page"][place] / each["command line"][place] for each in rounds)
        text = ", ".join(f"{name} {value:.2f} s" for name, value in found.items())
        print(f"{kind}: {text}; the page takes {ratio - 1:+.1%}")


if __name__ == "__main__":
    main()
