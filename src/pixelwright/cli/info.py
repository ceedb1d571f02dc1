"""`pixelwright info`: what a model is made of and what it costs."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from pixelwright.cli.parsing import Parser, add_imports, image_size
from pixelwright.config import PositiveFloat, PositiveInt, Share
from pixelwright.errors import UserError
from pixelwright.hub.checkpoint import load_config
from pixelwright.hub.convert import DTYPES
from pixelwright.models.presets import PRESETS, preset
from pixelwright.remote import is_address
from pixelwright.training import TrainConfig
from pixelwright.training import load_config as load_run_config
from pixelwright.training.cost import PEAK_TFLOPS, Memory, cost, gpu_hours, peak_tflops
from pixelwright.training.summary import Info, describe, human, stored

DESCRIPTION = """Parts of a model, their parameters and FLOPs, and the memory to sample and to train.

Nothing is allocated. FLOPs count a multiply and an add as two.
The memory is that of tensors, on top of what PyTorch itself takes; see --batch-size, --dtype, --autocast.

With --config: what a training run takes, before it is started, on --gpus GPUs. Activations are those of the
run's own micro-batch; "recomputed" is with parallel.checkpointing.

models:
"""

EXAMPLES = """  pixelwright info pixeldit-xl-16
  pixelwright info dip-xl-16 --size 512 --batch-size 8
  pixelwright info runs/first
  pixelwright info --config configs/imagenet256-pixeldit-xl-16.yaml --gpus 8 --gpu h100 --mfu 0.4"""


def parser() -> Parser:
    """One model, the image size and the batch size."""
    parser = Parser("info", DESCRIPTION + _names(), EXAMPLES)
    add = parser.add_argument
    about = "a preset, a model, a run, a published file or hf://OWNER/NAME; without it, presets are listed"
    add("model", nargs="?", metavar="NAME|MODEL", help=about)
    about = "image size, N or ROWS COLUMNS (default: the model's own)"
    add("--size", type=int, nargs="+", metavar="N", help=about)
    about = "dtype of the weights, for the memory to sample"
    add("--dtype", choices=list(DTYPES), default="fp32", help=about)
    about = "dtype of the products, where that is not the weights', as in `train`; for the memory"
    add("--autocast", choices=["none", "bf16"], default="none", help=about)
    add("--batch-size", type=PositiveInt, default=1, help="images at a time, for the memory")
    add = parser.section("a training run")
    add("--config", type=str, nargs="+", metavar="FILE", help="its configuration; later files override")
    add("--gpus", type=PositiveInt, default=1, help="how many")
    add("--gpu", type=str | None, metavar="NAME", help=f"{', '.join(PEAK_TFLOPS)} (default: h100)")
    add("--peak-tflops", type=PositiveFloat | None, help="of another GPU: dense bf16 products")
    add("--mfu", type=Share, default=0.4, help="share of the peak that the run makes use of")
    add_imports(parser.add_argument)
    return parser


def run(options: Namespace) -> None:
    """Print the table of a model, or the names of all presets."""
    if options.config is not None:
        if options.model is not None:
            raise UserError(f"give a model ({options.model}) or --config, not both")
        if options.gpu is not None and options.peak_tflops is not None:
            raise UserError("give --gpu or --peak-tflops, not both")
        tflops = options.peak_tflops or peak_tflops(options.gpu or "h100")
        print(run_report(load_run_config(*options.config), options.gpus, tflops, options.mfu))
        return
    if options.model is None:
        print(_names())
        return
    autocast = torch.bfloat16 if options.autocast == "bf16" else None
    settings = (image_size(options.size), options.batch_size, DTYPES[options.dtype], autocast)
    name = options.model  # of a file or folder that exists, a hub address, or else a preset
    if name in PRESETS and settings == (None, 1, torch.float32, None):
        print(report(stored(name)))
        return
    model = name not in PRESETS and (Path(name).exists() or is_address(name))
    print(report(describe(load_config(name) if model else preset(name), *settings)))


def run_report(config: TrainConfig, gpus: int, tflops: float, mfu: float) -> str:
    """The costs of a run as text."""
    costs = cost(config, gpus)
    hours = gpu_hours(config, costs, tflops, mfu)
    long = f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"
    speed = tflops * 1e12 * mfu * gpus / costs.image_flops
    notes = {"optimizer": f" ({config.optim.name})", "activations": f" ({costs.batch} images)"}
    columns = [f"{mode}{', recomputed' if recomputed else ''}" for mode, recomputed in costs.memory]
    lines = [
        f"{config.model.preset} at {config.data.size}²: {config.steps:,} steps of {config.batch_size} images",
        "",
        f"parameters {costs.parameters:>18,}"
        + (f" and {costs.projector:,} of REPA" if costs.projector else ""),
        f"FLOPs of an image {human(costs.image_flops, ''):>11}  (one pass {human(costs.forward_flops, '')}"
        + (f", frozen networks {human(costs.frozen_flops, '')})" if costs.frozen_flops else ")"),
        f"FLOPs of a step {human(costs.image_flops * config.batch_size, ''):>13}",
        "",
        f"{'GiB on each GPU':<26}" + "".join(f"{column:>20}" for column in columns),
    ]
    for name in (*(field.name for field in fields(Memory)), "total"):
        sizes = [getattr(memory, name) for memory in costs.memory.values()]
        if any(sizes):
            label = name + notes.get(name, "")
            lines.append(f"  {label:<24}" + "".join(f"{size / 2**30:>20.2f}" for size in sizes))
    plural = "s" if gpus > 1 else ""
    lines += [
        "",
        f"at {mfu:.0%} of {tflops:g} TFLOPs on {gpus} GPU{plural}: {speed:,.0f} images/s, "
        f"{config.batch_size / speed:.3g} s a step, {long} GPU-hours, {hours / gpus / 24:.3g} days",
        "an estimate; not counted: CUDA's own memory, NCCL's, fragments, networks of objectives other than "
        "REPA, time for data and between GPUs",
    ]
    return "\n".join(lines)


def _names() -> str:
    rows = [name for name in PRESETS if not name.endswith(("-postmod", "-vanilla"))]
    groups = (rows[i : i + 5] for i in range(0, len(rows), 5))
    lines = ["  " + "  ".join(f"{name:<16}" for name in group).rstrip() for group in groups]
    variants = "  and pixeldit-…-postmod, with post-modulation; dit-…-vanilla, with blocks of the first DiT"
    return "\n".join([*lines, variants])


def report(info: Info) -> str:
    """The table as text."""
    config, (rows, columns) = info.config, info.size
    condition = f"{config.num_classes} classes" + (" with names" if config.class_names else "")
    if config.name in PRESETS and config.num_classes == 1000:
        condition += " (a run's model: those of its images)"
    if config.takes_text:
        backbone: Any = config.backbone
        condition = f"captions of up to {backbone.text_length} tokens of {backbone.text_size}"
    low = info.dtype != torch.float32
    dtypes = f"{str(info.dtype)[6:]} to sample, float32 to train" if low else "float32"
    lines = [
        f"{config.name}: {config.placement} detailer, predicts {config.prediction}",
        f"{rows}x{columns} pixels, {info.tokens} patches of {config.patch_size}x{config.patch_size}; "
        f"{condition}",
        "",
        f"{'part':<16} {'':<10} {'parameters':>15} {'FLOPs per image':>16}",
    ]
    for part in info.parts:
        flops = human(part.flops, "")
        lines.append(f"{part.name:<16} {part.kind:<10} {part.parameters:>15,} {flops:>16}")
    lines += [
        f"{'total':<16} {'':<10} {info.parameters:>15,} {human(info.flops, ''):>16}",
        "",
        f"memory at batch size {info.batch_size}, {dtypes}{', bf16 autocast' if info.autocast else ''}:",
        f"  weights    {human(info.weight_bytes, 'B', 1024):>9}",
        f"  to sample  {human(info.sampling_bytes, 'B', 1024):>9}  (weights, activations of a guided step)",
        f"  to train   {human(info.training_bytes, 'B', 1024):>9}  (and EMA, gradients, AdamW)",
    ]
    return "\n".join(lines)
