"""Time of encoding 32 captions with a small random Gemma: one by one, and together.

    python benchmarks/text.py                # on the CPU, one thread
    python benchmarks/text.py --device cuda

Median of the repeats of each, in one run; captions are padded to `--length` tokens, as published models want.
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from timing import interleave, spread, waiting

from pixelwright.text.encoders import Gemma

sys.path.append(str(Path(__file__).parents[1]))
from tests.encoders import WORDS, tiny_gemma

CAPTIONS = [" ".join(WORDS[(i + k) % len(WORDS)] for k in range(1 + i % 9)) for i in range(32)]


def main(arguments: list[str] | None = None) -> float:
    """Measure and print; how many times as fast they are together."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        encoder = Gemma(str(tiny_gemma(Path(folder))), options.length, padded=True, device=options.device)
        ways = {
            "one by one": lambda: [encoder.features([caption]) for caption in [*CAPTIONS, ""]],
            "together": lambda: encoder.encode(CAPTIONS),
            "together, same bits in any company": lambda: encoder.features(CAPTIONS, same=True),
        }
        for way in ways.values():
            way()
        times = interleave(ways, options.repeats, 30.0, waiting(torch.device(options.device)))
    medians = {name: spread(found).median for name, found in times.items()}
    one = medians["one by one"]
    for name, seconds in medians.items():
        print(f"{name:<36} {1000 * seconds:8.1f} ms   {one / seconds:5.1f} times as fast")
    return one / medians["together"]


if __name__ == "__main__":
    main()
