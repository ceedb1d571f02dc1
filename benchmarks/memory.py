"""Predicted beside measured peak memory, sampling and training: how far `pixelwright info` can be trusted.

    python benchmarks/memory.py                             # ti, s and b of both models, fp32 and bf16; CPU
    python benchmarks/memory.py --models dip-ti-4 --batch-size 8

Measured is what PyTorch allocates for tensors, each figure in a process of its own (see
process.py).
"""

from __future__ import annotations

import argparse

from process import measure_peak
from work import OURS, Work

from pixelwright.models.presets import preset
from pixelwright.training.summary import describe, human

BATCHES = {"ti-4": 64, "s-8": 8, "b-16": 1}


def main() -> None:
    """Print one line for each model, kind of work and precision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = [f"{family}-{size}" for size in BATCHES for family in ("dip", "pixeldit")]
    parser.add_argument("--models", nargs="+", default=models)
    parser.add_argument("--kinds", nargs="+", default=["sampling", "training"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--batch-size", type=int, help="(default: by the size of the model)")
    options = parser.parse_args()
    print("| model | work | precision | batch | predicted | measured | predicted / measured |")
    print("|---|---|---|---|---|---|---|")
    for name in options.models:
        batch = options.batch_size or BATCHES.get(name.split("-", 1)[1], 1)
        side = (preset(name).image_size or (256, 256))[0]
        for kind in options.kinds:
            for precision in options.precisions:
                work = Work(kind, name, batch, side, precision, steps=2)
                measured = measure_peak(work, OURS, resident=False)
                info = describe(work.config(), (side, side), batch, autocast=work.autocast)
                predicted = info.sampling_bytes if kind == "sampling" else info.training_bytes
                assert measured is not None, "this system does not tell a process its peak"
                sizes = " | ".join(human(x, "B", 1024) for x in (predicted, measured))
                print(
                    f"| {name} {side}² | {kind} | {precision} | {batch} | {sizes} | "
                    f"{predicted / measured:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
