"""Memory and time of a whole evaluation on a CPU: images generated, written as .npz, read again and measured.

    python benchmarks/evaluation_memory.py OUT                          # 50,000 images of 256x256; an hour
    python benchmarks/evaluation_memory.py OUT --count 500 --size 64    # a minute

What a model would draw is a stand-in, coloured noise by index, enlarged. The features are a stand-in as well,
random projections of the pixels, but as many as those of the Inception network: 2048, 2023 spatial ones and
1008 classes. Writes OUT/result.json, prints it, removes the images; ends with an error if the peak of the
process is above --limit GiB.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import pixelwright as pw
from pixelwright.diffusion.labels import balanced_labels
from pixelwright.distributed.config import ParallelConfig
from pixelwright.distributed.parallel import Layout
from pixelwright.evaluation import generate
from pixelwright.evaluation.evaluate import FORMS, Evaluation, Scorer
from pixelwright.evaluation.features.extractor import Activations, ExtractorInfo
from pixelwright.evaluation.generate import Generation, checksum
from pixelwright.evaluation.images import open_images
from pixelwright.evaluation.references import build_reference, read_reference
from pixelwright.images import to_uint8
from pixelwright.rng import normal

REFERENCE_IMAGES = 10_000


class StandIn:
    """Features of the size of Inception's, without its cost."""

    distance = "Fréchet distance of random features"
    info = ExtractorInfo("stand-in", "none", 16, "mean of areas")

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._weights = [torch.randn(768, width) / 768**0.5 for width in (2048, 2023, 1008)]

    def __call__(self, images: Tensor) -> Activations:
        small = F.adaptive_avg_pool2d(images.permute(0, 3, 1, 2).float() / 127.5 - 1, 16).flatten(
            1
        )  # [B,768]
        features, spatial, logits = (small @ weight for weight in self._weights)
        return Activations(features.relu(), spatial.relu(), logits.softmax(1))


def draw(model: object, generation: Generation, labels: Tensor, batch: int, callback: object) -> Tensor:
    """In place of a model: noise of 16x16 that depends on seed and index, enlarged; uint8 [b,H,W,3]."""
    height, width = generation.size
    small = normal(torch.tensor(generation.indices(batch)), (3, 16, 16), generation.seed)
    return to_uint8(F.interpolate(small / 2, (height, width)))


def peak() -> float:
    """The largest resident memory of this process so far, in GiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--limit", type=float, default=3.0, help="GiB")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    size = (options.size, options.size)
    model = pw.create("dit-n-8", patch_size=16, hidden_size=16, depth=1, num_heads=1, image_size=size)
    generate.draw = draw
    pw.save(model, options.out / "model")
    layout = Layout(ParallelConfig(), torch.device("cpu"))
    result = {"count": options.count, "size": options.size, "threads": torch.get_num_threads()}

    def evaluation(count: int, seed: int) -> Generation:
        return Generation(
            "stand-in", checksum(options.out / "model"), count, size, "balanced", "euler", 1, 1.0, (0.0, 1.0),
            1.0, seed, 64, "fp32",
        )  # fmt: skip

    start = time.perf_counter()
    reference = options.out / "reference.npz"
    if not reference.exists():
        few = min(options.count, REFERENCE_IMAGES)
        subject = Evaluation("reference", model, balanced_labels(few, 1000), layout, None, "npz")
        images = subject.generate(evaluation(few, 1), options.out / "reference-images")
        build_reference(open_images(str(images)), StandIn(), reference)
        images.unlink()
    result |= {"seconds_reference": round(time.perf_counter() - start), "gib_after_reference": peak()}

    start = time.perf_counter()
    judge = Scorer(read_reference(reference), StandIn())
    subject = Evaluation("stand-in", model, balanced_labels(options.count, 1000), layout, judge, "npz")
    images = subject.generate(evaluation(options.count, 0), options.out)
    result |= {"seconds_generating": round(time.perf_counter() - start), "gib_after_generating": peak()}
    result["images_gib"] = round(images.stat().st_size / 2**30, 2)

    start = time.perf_counter()
    report = subject.evaluate(evaluation(options.count, 0), options.out)
    assert report is not None
    result |= {"seconds_measuring": round(time.perf_counter() - start), "peak_gib": peak(), **report.values}
    (options.out / FORMS["npz"]).unlink()
    text = json.dumps(result, indent=1)
    (options.out / "result.json").write_text(text + "\n")
    print(text)
    if peak() > options.limit:
        sys.exit(f"the peak of {peak()} GiB is above {options.limit} GiB")


if __name__ == "__main__":
    main()
