"""The weights that a run keeps at its checkpoints: the raw ones, and every average."""

from pathlib import Path
from typing import NamedTuple

from pixelwright.distributed import checkpoint as checkpoints
from pixelwright.errors import UserError, nearest
from pixelwright.models.config import DenoiserConfig
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.folder import CONFIG, read_config, skeleton


class Kept(NamedTuple):
    """Weights in a checkpoint."""

    config: DenoiserConfig
    folder: Path  # of the checkpoint
    group: str  # of its tensors
    text: str  # which these are, in words


def group(name: str) -> str:
    """Where a checkpoint keeps an average other than the main one."""
    return f"ema-{name}"


def is_checkpoint(path: Path) -> bool:
    """Whether this is the folder of a checkpoint that a run has written."""
    return (path / checkpoints.INDEX).is_file()


def model_of(checkpoint: Path) -> Path:
    """The `model/` of the run that a checkpoint stands in. Raises UserError: there is none."""
    folder = checkpoint.resolve().parent.parent / "model"
    if not (folder / CONFIG).is_file():
        raise UserError(f"{checkpoint} is a checkpoint without its run: {folder} must say what it is of")
    return folder


def find(path: Path, weights: str | None) -> Kept | None:
    """The weights called `weights`: "raw", "ema" for the main average, or an average such as "power-0.05",
    of a checkpoint's folder (by default its main average) or of the newest of a run.

    None: this is neither, or a run of which no weights are called by name. Raises UserError: no such average,
    or no whole checkpoint.
    """
    if is_checkpoint(path):
        found: checkpoints.Checkpoint | None = checkpoints.inspect(path)
    elif weights is None or not (path / "checkpoints").is_dir():
        return None
    elif (found := checkpoints.newest(path)) is None:
        raise UserError(f'{path} holds no checkpoint, of which weights "{weights}" could be taken')
    assert found is not None
    main, more = str(found.config["ema_decay"]), [str(each) for each in found.config.get("ema_more", ())]
    groups = {"ema": "ema", "raw": "model", main: "ema", **{name: group(name) for name in more}}
    name = weights or "ema"
    if name not in groups:
        raise UserError(f'{found.path} keeps no weights "{name}"{nearest(name, groups)}')
    text = {"model": "raw", "ema": "EMA"}.get(groups[name], f"average {name}:")
    return Kept(
        read_config(model_of(found.path)), found.path, groups[name], f"{text} weights of step {found.step}"
    )


def read(folder: Path, config: DenoiserConfig, group: str) -> PixelDenoiser:
    """The model with the weights that a checkpoint's folder has under `group`."""
    model = skeleton(config).to_empty(device="cpu")
    weights = model.state_dict()
    checkpoints.load(folder, {group: weights})
    return model.requires_grad_(False).eval()
