"""The eager model beside the baseline: what people get first, without compiling and without preparation.

    python benchmarks/eager.py                                # every row; about four minutes
    python benchmarks/eager.py dip-b-16 --kinds forward --rounds 20

One thread, float32, seconds of the processor, the two in turn with the same weights; the ratio is the median
over pairs. Training is the loss and its gradients: the optimiser is left out, as it is the same for both.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from time import process_time

import torch
from baseline import BaselineDenoiser
from timing import interleave, ratio, spread
from torch import Tensor, nn
from work import Work, inputs_of, random_weights

from pixelwright.models.denoiser import PixelDenoiser

ROWS = {"dip-b-16": (1, 256), "pixeldit-b-16": (1, 256), "dip-ti-4": (16, 32), "pixeldit-ti-4": (16, 32)}
"""preset -> (images, their side)"""
KINDS = ("forward", "training")


def pair(work: Work) -> dict[str, nn.Module]:
    """Both models with the same weights, none of them zero."""
    weights = random_weights(work)
    with torch.device("meta"):
        ours, baseline = PixelDenoiser(work.config()), BaselineDenoiser(work.config())
    ours.load_state_dict(weights, assign=True)
    return {"ours": ours, "baseline": baseline.load_from(weights)}


def runner(kind: str, model: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """One forward pass, or a loss and its gradients."""
    x, t, noise, labels = inputs

    @torch.no_grad()
    def forward() -> Tensor:
        return model(x, t, labels)

    def training() -> None:
        model.zero_grad()
        time = t[:, None, None, None]
        velocity = model(time * x + (1 - time) * noise, t, labels)
        nn.functional.mse_loss(velocity, x - noise).backward()

    return forward if kind == "forward" else training


def main() -> None:
    """Print a line for each model and kind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=list(ROWS), help=", ".join(ROWS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--rounds", type=int, default=40, help="most pairs of each row")
    parser.add_argument("--seconds", type=float, default=25.0, help="of the processor, for each row")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | work | ours, ms | baseline, ms | times as fast (quartiles) | pairs |")
    print("|---|---|---|---|---|---|")
    for name in options.models:
        batch, size = ROWS[name]
        for kind in options.kinds:
            work = Work(kind, name, batch, size, "fp32")
            inputs = inputs_of(work, torch.device("cpu"))
            runs = {side: runner(kind, model, inputs) for side, model in pair(work).items()}
            interleave(runs, 2)
            times = interleave(runs, options.rounds, options.seconds, clock=process_time)
            ours, baseline = (f"{1000 * spread(times[side]).median:.4g}" for side in runs)
            gain = ratio(times["baseline"], times["ours"])
            print(
                f"| {name} {size}², batch {batch} | {kind} | {ours} | {baseline} | "
                f"{gain.median:.3f} ({gain.low:.3f} to {gain.high:.3f}) | {len(times['ours'])} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
