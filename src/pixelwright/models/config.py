"""What a denoiser is made of, as data: frozen dataclasses, checked once, and their JSON form."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pixelwright.config import (
    Config,
    Decay,
    FiniteFloat,
    Line,
    PositiveFloat,
    PositiveInt,
    UnitInterval,
    read,
    real,
)
from pixelwright.config import to_dict as plain
from pixelwright.errors import UserError
from pixelwright.models.backbones import BACKBONES
from pixelwright.models.detailers import DETAILERS
from pixelwright.models.jit import JiTConfig  # noqa: F401 (registers the backbone)
from pixelwright.models.mmdit import MMDiTConfig  # noqa: F401 (registers the backbone)
from pixelwright.models.pixeldit2 import PixelDiT2Config  # noqa: F401 (registers the backbone)
from pixelwright.models.prediction import T_EPS, Prediction
from pixelwright.models.text_dit import TextDiTConfig  # noqa: F401 (registers the backbone)

Placement = Literal["post-hoc", "intermediate", "hybrid"]
GuidanceEnds = Literal["open", "zero", "high"]
LONGEST_PREFIX = 20_000


@dataclass(frozen=True)
class SamplerSettings(Config, where="sampler"):
    """How images are drawn: solver, timesteps and guidance."""

    solver: Line = "ab2"
    """Solver: euler, heun, heun-inexact, ab2, ab2-fixed, ab3, ab4 or dpmpp-2m."""
    steps: PositiveInt = 50
    """Steps of the solver."""
    guidance_scale: FiniteFloat = 1.0
    """Classifier-free guidance; 1 is without."""
    guidance_interval: tuple[UnitInterval, UnitInterval] | None = None
    """Guidance is on where LO < t < HI (0 is noise, 1 data); without an interval everywhere, at t = 0 too."""
    time_shift: PositiveFloat = 1.0
    """Shift of the timesteps; above 1 spends more steps near the noise."""
    time_start: Decay = 0.0
    """First timestep, before the shift, at which the noise is taken as it is; 0 is pure noise."""
    guidance_ends: GuidanceEnds = "open"
    """Ends that the interval holds: open, neither; zero, LO where it is 0 (JiT); high, HI, and the time is
    that of the step's start (DeCo, PixelGen)."""
    last_step: Annotated[float, real(above=0, below=1)] | None = None
    """Length of the last step, before the shift; without it, that of the others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        interval = self.guidance_interval
        if interval is not None and interval[0] > interval[1]:
            raise UserError(f"{self.key('guidance_interval')} is {list(interval)}: it needs LO <= HI")


@dataclass(frozen=True)
class SamplerPreset(SamplerSettings, where="sampler"):
    """The settings of a published result, and where they come from."""

    name: Line = ""
    seed_rule: Line = ""
    """How the noise of an image is found."""
    origin: Line = ""
    """Where these settings are published."""


@dataclass(frozen=True)
class Provenance(Config, where="provenance"):
    """Where weights come from. No date, so that converting twice gives the same bytes."""

    files: tuple[Line, ...]
    """Names of the files that were read, or their hf:// addresses."""
    sha256: tuple[Line, ...]
    """Digest of each file; empty where a model was loaded without being converted."""
    read: Line
    """What of the files was used, such as which of several sets of weights."""
    licence: Line | None = None
    """What the source says about the use of its weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sha256 and len(self.sha256) != len(self.files):
            raise UserError(f"Provenance has {len(self.sha256)} sha256 for {len(self.files)} files")


@dataclass(frozen=True)
class TextNote(Config, where="text"):
    """The text encoder whose features a model was trained with; see `pixelwright.text`."""

    encoder: Line
    """Its kind, such as gemma."""
    path: Line | None = None
    """The folder or hub name it was read from, where that is not the kind's own."""
    prefix: str = ""
    """What was put before each prompt, but not before the empty one."""
    checksum: Line | None = None
    """Digest of its files, where a training run found it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.prefix) > LONGEST_PREFIX:
            raise UserError(f"text.prefix is {self.prefix[:40]!r}: give at most {LONGEST_PREFIX} characters")


@dataclass(frozen=True)
class DenoiserConfig(Config, where=""):
    """One denoiser = backbone × detailer, each the config of a registered part.

    `placement` is where the detailer sits (DiP section 3.4), `prediction` what the network's output means,
    `rank` the dimensions of the subspace that keeps its noise where that is asymmetric (AsymFlow),
    `t_eps` the least denominator where that is the clean image or the noise, `noise_scale` the standard
    deviation of the noise at t = 0, in training and sampling alike (JiT: side/256),
    `image_size` (rows, columns) the resolution it was made for, used when none is asked for. `text` is
    the encoder of its captions, `sampler` the settings it is best sampled with, `provenance` where its
    weights come from. These three do not change the network.
    """

    backbone: Annotated[Any, BACKBONES]
    detailer: Annotated[Any, DETAILERS]
    name: str = "custom"
    placement: Placement = "post-hoc"
    prediction: Prediction = "velocity"
    rank: PositiveInt | None = None
    t_eps: PositiveFloat = T_EPS
    noise_scale: PositiveFloat = 1.0
    image_size: tuple[PositiveInt, PositiveInt] | None = None
    class_names: tuple[str, ...] | None = field(default=None, repr=False)
    sampler: SamplerPreset | None = None
    provenance: Provenance | None = None
    text: TextNote | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text is not None and not self.takes_text:
            raise UserError("DenoiserConfig.text is given, but the model draws from classes; leave it out")
        if (self.rank is None) == (self.prediction == "asymmetric"):
            raise UserError(
                f'DenoiserConfig.rank is {self.rank}, the prediction "{self.prediction}": a rank goes with '
                '"asymmetric" alone, which needs one'
            )
        if self.rank is not None and self.rank > 3 * self.patch_size**2:
            raise UserError(
                f"rank is {self.rank}: a patch has {3 * self.patch_size**2} numbers, give no more"
            )
        if self.t_eps != T_EPS and self.prediction not in ("x", "noise", "asymmetric"):
            raise UserError(
                f'DenoiserConfig.t_eps is {self.t_eps}, but the prediction "{self.prediction}" divides by no '
                "time: leave it out"
            )
        if hasattr(self.detailer, "check"):
            self.detailer.check(self.patch_size)
        if self.placement != "post-hoc" and self.backbone.depth < 2:
            raise UserError(
                f'placement "{self.placement}" needs at least 2 blocks, depth is {self.backbone.depth}'
            )
        if self.image_size is not None:
            self.check_size(*self.image_size)
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise UserError(f"{len(self.class_names)} class_names are given for {self.num_classes} classes")

    @property
    def patch_size(self) -> int:
        """P: side of the square patches of the global stage, in pixels."""
        return self.backbone.patch_size

    @property
    def num_classes(self) -> int:
        """Number of classes; label `num_classes` is the null class. 0 where the condition is text."""
        return 0 if self.takes_text else self.backbone.num_classes

    @property
    def grounded(self) -> bool:
        """Whether a frozen encoder's view of the noisy image is a condition, too (PixelDiT2)."""
        return getattr(self.backbone, "grounded", False)

    @property
    def null_label(self) -> int:
        """The label of guidance's null branch: the null class, and with grounding that class without it."""
        return self.num_classes + self.grounded * (self.num_classes + 1)

    @property
    def takes_text(self) -> bool:
        """Whether the condition is a `TextCondition` rather than labels."""
        return self.backbone.takes_text

    def check_size(self, height: int, width: int) -> None:
        """Raise `UserError` unless an image of height × width cuts into whole patches."""
        for side in (height, width):
            if isinstance(side, bool) or not isinstance(side, int) or side < 1 or side % self.patch_size:
                low = max(1, int(side) // self.patch_size) * self.patch_size if math.isfinite(side) else 0
                raise UserError(
                    f"size {height}x{width} does not divide into patches of {self.patch_size}: "
                    f"give multiples of {self.patch_size}, such as {low} for {side}"
                )


def to_dict(config: DenoiserConfig) -> dict[str, Any]:
    """The JSON form of a config; `from_dict` reads it back."""
    return {key: value for key, value in plain(config).items() if value is not None}


def from_dict(data: Any, place: str = "config") -> DenoiserConfig:
    """A config from its JSON form. Unknown, missing and mistyped keys raise `UserError` naming `place`."""
    return read(DenoiserConfig, data, place)
