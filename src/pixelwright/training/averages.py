"""Another average of a run than the one in its `model/`."""

import os
from pathlib import Path

import torch

from pixelwright.distributed import checkpoint as checkpoints
from pixelwright.errors import UserError, nearest
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.folder import read_config, skeleton


def group(name: str) -> str:
    """Where a checkpoint keeps an average other than the main one."""
    return f"ema-{name}"


def load_average(run: str | os.PathLike[str], name: str) -> PixelDenoiser:
    """The model with the average called `name`, such as "power-0.05", of a run's newest checkpoint. Raises
    UserError: no run, no whole checkpoint, or no such average (naming those there)."""
    run = Path(run)
    if (found := checkpoints.newest(run) if run.is_dir() else None) is None:
        raise UserError(f"{run} holds no checkpoint: --ema takes a run folder")
    main, more = str(found.config["ema_decay"]), [str(each) for each in found.config.get("ema_more", ())]
    if name not in (main, *more):
        raise UserError(f'{run} keeps no average "{name}"{nearest(name, (main, *more))}')
    model = skeleton(read_config(run / "model")).to_empty(device="cpu")
    weights = {key: torch.empty_like(value) for key, value in model.state_dict().items()}
    checkpoints.load(found, {"ema" if name == main else group(name): weights})
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(False).eval()
