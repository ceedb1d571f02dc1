"""What of a model a run trains, averages and exports."""

import shlex
from pathlib import Path

from torch import Tensor

from pixelwright.hub import runs
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.folder import save, skeleton


class Weights:
    """All of a model."""

    def __init__(self, model: PixelDenoiser) -> None:
        self.model = model

    def tensors(self) -> dict[str, Tensor]:
        """What is trained, by reference: saved in checkpoints, and averaged."""
        return self.model.state_dict()

    def plain(self, weights: dict[str, Tensor]) -> PixelDenoiser:
        """A plain model that holds these, tensors as `tensors` gives them: an average."""
        model = skeleton(self.model.config, self.model)
        model.load_state_dict(weights, assign=True)
        return model.eval()  # with gradients: autocast keeps casts of such weights alone

    def export(self, checkpoint: Path, run: Path) -> None:
        """Write the average in a checkpoint's folder where `pixelwright sample` finds it."""
        save(runs.read(checkpoint, self.model.config, "ema"), run / "model")

    def named(self, run: Path) -> str:
        """How `pixelwright sample` is told of what is exported."""
        return shlex.quote(str(run))
