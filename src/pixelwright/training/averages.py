"""Another average of a run than the one in its `model/`."""

import os
from pathlib import Path

from pixelwright.distributed import checkpoint as checkpoints
from pixelwright.errors import UserError, nearest
from pixelwright.models.config import DenoiserConfig
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
    return read_average(found.path, read_config(run / "model"), "ema" if name == main else group(name))


def read_average(folder: Path, config: DenoiserConfig, group: str) -> PixelDenoiser:
    """The model with the average that a checkpoint's folder has under `group`."""
    model = skeleton(config).to_empty(device="cpu")
    weights = model.state_dict()
    checkpoints.load(folder, {group: weights})
    return model.requires_grad_(False).eval()
