"""Parts models and kernels of gpu.py: latency, training steps, attention and norms."""

import re
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from baseline import BaselineDenoiser, BaselineTraining
from baseline import RMSNorm as PlainRMSNorm
from host import Pictures
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from work import BASELINE, OURS, Work, build, inputs_of, random_weights

from pixelwright.acceleration import accelerate, kernels
from pixelwright.data import Batches, DataConfig
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.layers import RMSNorm, attend
from pixelwright.training import LoopConfig, OptimConfig, Trainer

WAYS = {
    "eager": {},
    "eager, graphs": {"graphs": True},
    "compiled": {"compile": True, "graphs": False},
    "compiled, graphs": {"compile": True, "graphs": True},
}
"""How our model is sampled: settings of `accelerate`."""
GOALS = {
    ("latency", "dip-xl-16"): "below 0.35 s",
    ("latency", "pixeldit-xl-16"): "below 0.6 s",
    "training": "MFU above 50 %, idle below 3 %",
}  # on an H100
Found = tuple[str, dict[str, Any]]
"""What a row says, and its figures."""


# --- 2. models ----------------------------------------------------------------------------------------------
def models(job: Any) -> None:
    """The rows with goals first, for both models; then what tells where the time goes."""
    plan = job.plan
    for name in plan.models:
        draw = Work("sampling", name, 1, plan.size, job.precision, job.device.type, steps=plan.steps)  # type: ignore[arg-type]
        best = list(WAYS)[-1] if job.device.type == "cuda" else "eager"  # graphs need CUDA
        latency(job, draw, OURS, best)
        latency(job, draw, BASELINE, "eager")
        training(job, replace(draw, kind="training", batch_size=plan.batches[0]), OURS)
        training(job, replace(draw, kind="training", batch_size=plan.plain_batch), BASELINE)
    for name in plan.models:
        draw = Work("sampling", name, 1, plan.size, job.precision, job.device.type, steps=plan.steps)  # type: ignore[arg-type]
        training(job, replace(draw, kind="training", batch_size=plan.batches[1]), OURS)
        for way in ("compiled", "eager, graphs", "eager"):
            if "graphs" in way and job.device.type != "cuda":
                continue  # they need it
            latency(job, draw, OURS, way)


def latency(job: Any, work: Work, side: str, way: str) -> None:
    """One image from noise to pixels; compiled and recorded before the clock starts."""

    def measure() -> Found:
        with torch.device(job.device):
            weights = random_weights(work)
        ready = build(work, side, None, weights, partial(accelerate, precision=work.precision, **WAYS[way]))
        ready.warm()
        seconds = job.seconds(ready.run)
        share = work.flops / seconds / job.machine.ceiling(work.precision)
        return f"{seconds:.3g} s", {"seconds": seconds, "share_of_ceiling": share, **memory(job)}

    goal = GOALS.get(("latency", work.model), "") if side == OURS else ""
    job.row(f"{work.model}, one image, {work.steps} steps, {side}, {way}", measure, goal)


def training(job: Any, work: Work, side: str) -> None:
    """Whole training steps, with all that their data need."""

    def measure() -> Found:
        with tempfile.TemporaryDirectory() as folder:
            step = (our_steps if side == OURS else plain_steps)(job, work, folder)
            step()
            seconds = job.seconds(step)
            mfu = work.flops / seconds / job.machine.ceiling(work.precision)
            figures = {"seconds": seconds, "images_per_second": work.batch_size / seconds, "mfu": mfu}
            text = f"{seconds:.3g} s a step, {figures['images_per_second']:.4g} images/s, MFU {mfu:.0%}"
            if job.device.type == "cuda":
                figures["kernels"], figures["longest_kernels"] = busy, _ = kernel_seconds(step, 3)
                text += f", idle {max(0.0, 1 - busy / seconds):.1%}" if busy else ", idle unknown"
        return text, figures | memory(job)

    way = "compiled" if side == OURS else "eager"
    goal = GOALS["training"] if side == OURS else ""
    job.row(f"{work.model}, training, batch {work.batch_size}, {side}, {way}", measure, goal)


def our_steps(job: Any, work: Work, folder: str) -> Callable[[], object]:
    """The trainer's steps, from images in memory through workers and copies to new weights."""
    settings = DataConfig(size=work.size, flip=True, workers=job.plan.workers, cache="none")
    pinned = job.device.type == "cuda"
    source = Pictures(work.size)

    def data(start: int) -> Batches:
        return Batches(source, settings, work.batch_size, 0, start, pinned=pinned)

    with torch.device(job.device):
        model = PixelDenoiser(replace(work.config(), image_size=(work.size, work.size)))
    how: dict[str, Any] = {"precision": work.precision, "device": work.device, "compile": True}
    config = LoopConfig(run=folder, batch_size=work.batch_size, optim=OptimConfig(lr=1e-4), **how)
    trainer = Trainer(model, data, config, loggers=())
    inputs = trainer._inputs()
    return lambda: trainer.train_step(next(inputs))


def plain_steps(job: Any, work: Work, folder: str) -> Callable[[], object]:
    """The baseline's steps, on a batch that is on the device already."""
    with torch.device(job.device):
        model = BaselineDenoiser(work.config())
    plain, inputs = BaselineTraining(model, autocast=work.autocast), inputs_of(work, job.device)
    return lambda: plain.step(*inputs)


def memory(job: Any) -> dict[str, float]:
    return {"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if job.device.type == "cuda" else {}


def kernel_seconds(step: Callable[[], object], count: int) -> tuple[float, dict[str, float]]:
    """Seconds of a step in which at least one kernel runs; copies from and to the CPU are none. 0 where the
    profiler sees nothing. And the seconds of the kernels that take the longest, by name."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(count):
            step()
        torch.cuda.synchronize()
    events = [
        e for e in found.events() or () if e.device_type == DeviceType.CUDA and not e.is_user_annotation
    ]
    events = [e for e in events if not re.search("HtoD|DtoH", e.name)]
    spans, by_name = [(e.time_range.start, e.time_range.end) for e in events], Counter[str]()
    for event, (start, end) in zip(events, spans, strict=True):
        by_name[event.name[:80]] += (end - start) / 1e6 / count
    return covered(spans) / 1e6 / count, dict(by_name.most_common(20))


def covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of spans (start, end)."""
    total, last = 0.0, -float("inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, last))
        last = max(last, end)
    return total


# --- 3. kernels ---------------------------------------------------------------------------------------------
def attention_and_norms(job: Any) -> None:
    """Kernels of attention at the shapes of the models, and norms at that of a training step."""
    dtype = torch.bfloat16 if job.precision == "bf16" else torch.float32
    for shape_name, shape in job.plan.attention.items():
        for kernel in ("sdpa", "flash", "math"):
            job.row(f"attention {kernel}, {shape_name}", partial(attention, job, kernel, shape, dtype))
    batch, length, heads, size = list(job.plan.attention.values())[min(1, len(job.plan.attention) - 1)]
    x = torch.randn(batch * length, heads * size, device=job.device, dtype=dtype)
    ours, plain = RMSNorm(heads * size).to(job.device), PlainRMSNorm(heads * size).to(job.device)
    for name, norm in {"plain": plain, "ours": ours, "ours, compiled": torch.compile(ours)}.items():
        job.row(f"RMSNorm {name}, {list(x.shape)}", partial(rms_norm, job, norm, x))


def attention(job: Any, kernel: str, shape: tuple[int, ...], dtype: torch.dtype) -> Found:
    """Forward, and forward with backward."""
    q, k, v, gradient = torch.randn(4, *shape, device=job.device, dtype=dtype)
    parts = [x.requires_grad_() for x in (q, k, v)]

    def both() -> object:
        return torch.autograd.grad(attend(*parts), parts, gradient.flatten(2))

    with kernels(job.device, job.precision, kernel):
        with torch.no_grad():
            forward = job.seconds(lambda: attend(q, k, v), 10)
        whole = job.seconds(both, 10)
    text = f"{1000 * forward:.3g} ms, with backward {1000 * whole:.3g} ms"
    return text, {"forward": forward, "with_backward": whole}


@torch.no_grad()
def rms_norm(job: Any, norm: Callable[[Tensor], Tensor], x: Tensor) -> Found:
    seconds = job.seconds(lambda: norm(x), 10)
    rate = 2 * x.nbytes / seconds
    text = f"{1000 * seconds:.3g} ms, {rate / job.machine.copy:.0%} of the speed of a copy"
    return text, {"seconds": seconds, "bytes_per_second": rate}
