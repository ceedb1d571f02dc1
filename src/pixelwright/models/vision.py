"""DINOv2 and DINOv3 through transformers: REPA's teacher, features to evaluate with, and grounding."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwright.errors import UserError, nearest
from pixelwright.files import raw_bytes

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, over [0,1]
OFFSET = 0.1  # which DINOv2 adds to a grid before it interpolates its position table


class VisionSize(NamedTuple):
    """The size of a vision transformer."""

    hidden: int  # D
    depth: int
    parameters: int
    extra: int = 1  # tokens that are no patches: of the class, and registers

    def flops(self, patches: int) -> int:
        """Of one image: each parameter meets each token once, and attention."""
        tokens = patches + self.extra
        return 2 * self.parameters * tokens + 4 * self.depth * tokens**2 * self.hidden


SIZES = {
    "facebook/dinov2-small": VisionSize(384, 12, 22_056_576),
    "facebook/dinov2-base": VisionSize(768, 12, 86_580_480),
    "facebook/dinov2-large": VisionSize(1024, 24, 304_368_640),
    "facebook/dinov2-giant": VisionSize(1536, 40, 1_136_480_768),
    "facebook/dinov3-vits16-pretrain-lvd1689m": VisionSize(384, 12, 21_596_160, 5),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": VisionSize(768, 12, 85_659_648, 5),
}
"""Of the published DINOv2 and DINOv3."""


def size_of(name: str, setting: str) -> VisionSize:
    """Size of a vision transformer, from the table or the config.json of its folder, which is not read
    further. Raises UserError otherwise, naming `setting`."""
    if name in SIZES:
        return SIZES[name]
    try:
        values = json.loads((Path(name) / "config.json").read_text())
        hidden, depth = int(values["hidden_size"]), int(values["num_hidden_layers"])
        inner = int(values.get("intermediate_size") or values["mlp_ratio"] * hidden)
        extra = 1 + int(values.get("num_register_tokens", 0))
    except (OSError, ValueError, KeyError, TypeError):
        unknown = f"{setting} is {name}, whose size is not known"
        raise UserError(f"{unknown}{nearest(name, SIZES)}; or give its folder") from None
    return VisionSize(hidden, depth, (4 * hidden + 2 * inner) * hidden * depth, extra)


def load_dinov2(name: str, setting: str, extra: str) -> Any:
    """A `Dinov2Model` by a hub name or a local folder, in eval mode, without gradients, in float32.

    Its position table is interpolated as its authors do it.

    Raises:
        UserError: naming `setting`, if transformers (of the `extra`) is not installed or the name cannot be
            read.
    """
    model = _load("Dinov2Model", name, setting, extra, "a DINOv2", "facebook/dinov2-base")
    patch_size = int(model.config.patch_size)
    embeddings: Any = model.embeddings
    embeddings.interpolate_pos_encoding = lambda tokens, height, width: positions(
        embeddings.position_embeddings, height // patch_size, width // patch_size
    )
    return model


def _load(kind: str, name: str, setting: str, extra: str, what: str, such: str) -> Any:
    """A model of transformers, in eval mode, without gradients. Raises UserError: see `load_dinov2`."""
    try:
        import transformers
    except ImportError:
        raise UserError(f'{setting} needs transformers: pip install "pixelwright[{extra}]"') from None
    try:
        model: Any = getattr(transformers, kind).from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{setting} {name} cannot be read ({reason}): give a folder with {what} in the format "
            f"of transformers, or a hub name such as {such}"
        ) from None
    return model.requires_grad_(False).eval()


class DINOv3:
    """A frozen DINOv3 that is read when it is first called. No module: it is neither trained nor saved.

    Called as (noisy images [B,3,H,W], (rows, columns)) -> its normed patch tokens [B, rows·columns, size] in
    float32. On the meta device, tokens without contents. Gradients go back to the images where these ask for
    them, as restoration does.

    Raises UserError: it cannot be read, or has tokens of another width.
    """

    def __init__(self, name: str, size: int, setting: str) -> None:
        self.name, self.size, self.setting = name, size, setting
        self.model: Any = None
        """The `DINOv3ViTModel`; one that is put here takes the place of the named one."""

    def __call__(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        rows, columns = grid
        if x.device.type == "meta":
            return x.new_empty(len(x), rows * columns, self.size)
        if self.model is None:
            such = "facebook/dinov3-vits16-pretrain-lvd1689m"
            self.model = _load("DINOv3ViTModel", self.name, self.setting, "repa", "a DINOv3", such)
        config = self.model.config
        if config.hidden_size != self.size:
            has = f"has tokens of {config.hidden_size} channels, the model needs {self.size}"
            raise UserError(f"{self.setting} {self.name} {has}: give another one")
        if self.model.device != x.device:
            self.model.to(x.device)
        shown = normalised((x.float() + 1) / 2)
        if shown.shape[-2:] != (side := (rows * config.patch_size, columns * config.patch_size)):
            shown = F.interpolate(shown, side, mode="bicubic", align_corners=False)
        return self.model(shown).last_hidden_state[:, 1 + config.num_register_tokens :]


def normalised(images: Tensor) -> Tensor:
    """[B,3,H,W] in [0,1] -> with the mean and spread of ImageNet taken out."""
    # Number by number: a table made here would be copied to the device, and waited for, at each call.
    planes = [(plane - mean) / std for plane, mean, std in zip(images.unbind(1), MEAN, STD, strict=True)]
    return torch.stack(planes, dim=1)


def weights_digest(model: Any, digest: Any) -> str:
    """Digest of all weights, with their names, by an algorithm of hashlib; in hexadecimal."""
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + bytes(raw_bytes(tensor)))
    return str(digest.hexdigest())


def positions(table: Tensor, rows: int, columns: int) -> Tensor:
    """DINOv2's position table [1, 1 + n², C] for another grid, [1, 1 + rows·columns, C].

    As its authors do it, bicubic by the factor (grid + 0.1) / n; the offset moves the sampling points a
    little, unlike interpolation to the exact size.
    """
    side = round((table.shape[1] - 1) ** 0.5)
    if (rows, columns) == (side, side):
        return table
    plane = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()  # [1, C, n, n]
    factor = ((rows + OFFSET) / side, (columns + OFFSET) / side)
    plane = F.interpolate(plane, scale_factor=factor, mode="bicubic")  # [1, C, rows, columns]
    assert plane.shape[-2:] == (rows, columns)
    return torch.cat((table[:, :1], plane.flatten(2).transpose(1, 2).to(table.dtype)), dim=1)
