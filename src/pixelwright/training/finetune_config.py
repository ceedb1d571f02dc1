"""The settings of a fine-tuning: its adapter, and its subject."""

from dataclasses import dataclass
from typing import Any, Literal

from pixelwright.config import Config, Decay, NonNegativeInt, PositiveFloat, PositiveInt, Text, UnitInterval
from pixelwright.errors import UserError


@dataclass(frozen=True)
class AdapterConfig(Config, where="adapter"):
    """A LoRA adapter (arXiv 2106.09685), trained in place of the weights of `init`."""

    rank: PositiveInt = 16
    """Rank of the matrices."""
    alpha: PositiveFloat = 16.0
    """Their product is multiplied by alpha / rank."""
    targets: tuple[Text, ...] = ()
    """Linear layers and convolutions that get matrices: their names, or the ends of their names after a
    point, such as [qkv, proj, detailer.*]. Empty: attention and MLP of the backbone's blocks."""
    detailer: bool = False
    """Matrices in the detailer as well, for what the model has never drawn, such as a new colour."""
    modules_to_save: tuple[Text, ...] = ()
    """Modules that are trained as a whole and saved with the adapter, named in the same way. Empty: the class
    table, where the run has other classes than init."""
    dropout: Decay = 0.0
    """Share of the inputs of the matrices that is left out in training."""
    dora: bool = False
    """Train the norms of the weights' rows apart from their directions (DoRA, arXiv 2402.09353)."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead (rank-stabilised LoRA, arXiv 2312.03732)."""
    frozen_dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the frozen matrices in the blocks; bf16 takes half the memory and needs precision bf16."""

    def check(self, run: Any) -> None:
        """Raise UserError where it does not fit the other settings of a run."""
        if run.init is None:
            raise UserError("adapter is given without init: say which model it is for, such as --init MODEL")
        if run.train_only or run.freeze:
            raise UserError("adapter freezes all weights itself: leave out train_only and freeze")
        if self.detailer and self.targets:
            raise UserError('adapter.detailer is given beside targets: add "detailer.*" to these')
        if self.frozen_dtype == "bf16" and run.precision == "fp32":
            raise UserError("adapter.frozen_dtype is bf16, precision fp32: give --precision bf16")


@dataclass(frozen=True)
class SubjectConfig(Config, where="subject"):
    """What the images of a fine-tuning show, and what the model of init is to keep."""

    class_name: Text | None = None
    """The class of all images: one of init's, or a new one after them. None: the folders are classes, new
    ones after those of init."""
    prompt: Text | None = None
    """Models of captions: the caption of images that have none."""
    prior_images: NonNegativeInt = 0
    """So many images are drawn from init before training and mixed in, that it keeps what it knew."""
    prior_share: UnitInterval = 0.5
    """About this share of the batches are prior images."""
    prior_prompts: tuple[str, ...] = ()
    """Models of captions: what prior images and the measure of forgetting are drawn from, as [a dog]."""
    samples: NonNegativeInt = 32
    """Images drawn to measure what is learned and forgotten, as often as the grid is drawn; 0: none."""
    features: Text = "pixels"
    """What these are compared by, as `pixelwright evaluate --features` takes it."""

    def check(self, run: Any) -> None:
        """Raise UserError where it does not fit the other settings of a run."""
        if run.init is None:
            raise UserError("subject is given without init: say which model is tuned, such as --init MODEL")
        text = run.model.denoiser().takes_text
        for name in ("prompt", "prior_prompts") if not text else ("class_name",):
            if getattr(self, name):
                kind = "captions" if text else "classes"
                raise UserError(f"subject.{name} is given, but the model draws from {kind}: leave it out")
        used = {"prior_share": self.prior_images, "prior_prompts": self.prior_images or self.samples}
        for name, images in used.items():
            if not images:
                self.unused(name, why="but there are no prior images: give subject.prior_images")
