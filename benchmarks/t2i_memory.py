"""Memory and time of PixelDiT-T2I on a CPU with random weights: peak of this process, seconds a step.

    python benchmarks/t2i_memory.py                       # 1024x1024, bf16, 2 guided steps; minutes
    python benchmarks/t2i_memory.py --preset pixeldit-t2i-ti --size 32

Prints JSON; ends with an error if the peak is above --limit GiB.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from itertools import pairwise

import torch

import pixelwright as pw
from pixelwright.models.config import SamplerSettings
from pixelwright.models.mmdit import MMDiTConfig
from pixelwright.models.presets import preset
from pixelwright.training.summary import describe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", default="pixeldit-t2i")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--guidance-scale", type=float, default=3.5)
    parser.add_argument("--limit", type=float, default=14.0, help="GiB")
    options = parser.parse_args()
    size = (options.size, options.size)
    config = preset(options.preset)
    assert isinstance(config.backbone, MMDiTConfig)
    predicted = describe(config, size, dtype=torch.bfloat16)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = pw.create(options.preset)
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    text = pw.TextCondition(torch.randn(1, config.backbone.text_length, config.backbone.text_size))
    text = pw.TextCondition(text.features, null=text)
    times = [time.perf_counter()]
    pw.sample(
        model,
        text,
        SamplerSettings("dpmpp-2m", options.steps, options.guidance_scale, time_shift=4.0),
        size=size,
        callback=lambda step: times.append(time.perf_counter()),
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
    result = {
        "preset": options.preset,
        "size": options.size,
        "dtype": "bf16",
        "threads": torch.get_num_threads(),
        "seconds_per_step": [round(b - a, 1) for a, b in pairwise(times)],
        "tflops_per_forward_of_one_image": round(predicted.flops / 1e12, 2),
        "peak_gib": round(peak, 2),
        "predicted_gib": round(predicted.sampling_bytes / 2**30, 2),
        "predicted_weights_gib": round(predicted.weight_bytes / 2**30, 2),
    }
    print(json.dumps(result, indent=2))
    if peak > options.limit:
        sys.exit(f"the peak of {peak:.2f} GiB is above {options.limit} GiB")


if __name__ == "__main__":
    main()
