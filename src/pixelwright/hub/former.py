"""Model folders of the first layout: SwiGLU in three matrices, MMDiT's attention unnamed, "recipe"."""

import re
from pathlib import Path

from pixelwright.hub.checkpoint import Checkpoint, any_config, open_file
from pixelwright.hub.presets import with_notes
from pixelwright.hub.public import joined, shapes, swiglu_parts
from pixelwright.models.config import from_dict
from pixelwright.models.folder import CONFIG, WEIGHTS, check_weights, skeleton

FORMAT = 1
_ATTENTION = re.compile(r"\.(image|text)\.attn\.")


def is_former(folder: Path) -> bool:
    """Whether this is a model folder of the first layout."""
    return any_config(folder).get("format") == FORMAT


def open_former(folder: Path, sampler: str | None = None) -> Checkpoint:
    """A model folder of the first layout, for conversion; `sampler` as for `open_checkpoint`. Raises
    UserError: anything missing, unknown or mis-shaped, naming file and key."""
    data = {"sampler" if key == "recipe" else key: value for key, value in any_config(folder).items()}
    del data["format"]
    config, file = from_dict(data, str(folder / CONFIG)), open_file(folder / WEIGHTS)
    config = config if sampler is None else with_notes(config, "", sampler)
    tensors = skeleton(config).state_dict()
    names = {name: swiglu_parts(_ATTENTION.sub(r".\1.", name)) for name in tensors}
    check_weights(shapes(names, tensors), file.specs, str(file.path))
    specs = {name: joined(theirs, file.specs.__getitem__) for name, theirs in names.items()}
    read = lambda name: joined(names[name], file.read)  # noqa: E731
    return Checkpoint(config, str(folder), file.files, "all tensors", specs, read)
