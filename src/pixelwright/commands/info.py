"""`pixelwright info`: what a model is made of and what it costs."""

from __future__ import annotations

from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace

from pixelwright.commands.parsing import image_size, new_parser
from pixelwright.hub.checkpoint import load_config
from pixelwright.hub.convert import DTYPES
from pixelwright.hub.remote import SCHEME
from pixelwright.info import Info, describe, human
from pixelwright.models.config import DenoiserConfig, MMDiTConfig
from pixelwright.models.presets import PRESETS, preset

DESCRIPTION = """Parts of a model, their parameters and FLOPs, and the memory to sample and to train.

Nothing is allocated: the largest preset takes a few seconds. FLOPs count a multiply and an add as two.
The memory is that of tensors, on top of what PyTorch itself takes; see --batch-size, --dtype, --autocast.

models:
"""

EXAMPLES = """  pixelwright info pixeldit-xl-16
  pixelwright info dip-xl-16 --size 512 --batch-size 8
  pixelwright info runs/first"""


def parser() -> ArgumentParser:
    """One model, the image size and the batch size."""
    parser = new_parser("info", DESCRIPTION + _names(), EXAMPLES)
    parser.add_argument(
        "model",
        nargs="?",
        metavar="NAME|MODEL",
        help="a preset, a model, a run, a published file or hf://OWNER/NAME; without it, presets are listed",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        metavar="N",
        help="image size, N or ROWS COLUMNS (default: the model's own)",
    )
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default="fp32", help="dtype of the weights, for the memory to sample"
    )
    parser.add_argument(
        "--autocast",
        choices=["none", "bf16"],
        default="none",
        help="dtype of the products, where that is not the weights', as in `train`; for the memory",
    )
    parser.add_argument("--batch-size", type=int, default=1, help="images at a time, for the memory")
    return parser


def run(options: Namespace) -> None:
    """Print the table of a model, or the names of all presets."""
    if options.model is None:
        print(_names())
        return
    size, dtype = image_size(options.size), DTYPES[options.dtype]
    autocast = torch.bfloat16 if options.autocast == "bf16" else None
    print(report(describe(_config(options.model), size, options.batch_size, dtype, autocast)))


def _config(name: str) -> DenoiserConfig:
    """A file or folder that exists, or a hub address, is a model; anything else must be a preset's name."""
    if name in PRESETS or not (Path(name).exists() or name.startswith(SCHEME)):
        return preset(name)
    return load_config(name)


def _names() -> str:
    rows = [name for name in PRESETS if not name.endswith("-postmod")]
    lines = [
        "  " + "  ".join(f"{name:<16}" for name in rows[i : i + 5]).rstrip() for i in range(0, len(rows), 5)
    ]
    return "\n".join([*lines, "  and pixeldit-…-postmod, the post-modulation variant of each pixeldit"])


def report(info: Info) -> str:
    """The table as text."""
    config, (rows, columns) = info.config, info.size
    named = " with names" if config.class_names else ""
    condition = f"{config.num_classes} classes{named}"
    if isinstance(config.backbone, MMDiTConfig):
        condition = f"captions of up to {config.backbone.text_length} tokens of {config.backbone.text_size}"
    dtypes = (
        "float32" if info.dtype == torch.float32 else f"{str(info.dtype)[6:]} to sample, float32 to train"
    )
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
