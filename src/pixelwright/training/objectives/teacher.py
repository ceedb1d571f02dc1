"""REPA's teacher: the patch tokens of a frozen DINOv2, computed on the fly or kept on the disk."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.data.loader import as_floats
from pixelwright.errors import UserError
from pixelwright.files import raw_bytes
from pixelwright.models.vision import load_dinov2, normalised, weights_digest

STRIDE = 16  # pixels of the image for each patch of the teacher: with its 14, 256² is shown as 224²


class Teacher(nn.Module):
    """DINOv2 by a hub name or a local folder, in eval mode and without gradients.

    Images [B,3,H,W] in [-1,1] -> tokens [B, H/stride·W/stride, size], float16-rounded float32 (as they are
    kept).

    Raises UserError: transformers is not installed, or the name cannot be read.
    """

    def __init__(self, name: str, setting: str = "repa.teacher", stride: int = STRIDE) -> None:
        super().__init__()
        self.model: Any = load_dinov2(name, setting, "repa")
        settings: Any = self.model.config
        self.size, self.patch_size = int(settings.hidden_size), int(settings.patch_size)
        self.stride = stride
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in eval mode."""
        return super().train(False)

    def checksum(self) -> str:
        """Digest of all weights."""
        return weights_digest(self.model, hashlib.blake2b(digest_size=16))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.tokens(images).half().float()

    def tokens(self, images: Tensor) -> Tensor:
        """The tokens as they are, through which gradients flow to the images."""
        if images.device != self.model.device:
            self.to(images.device)
        rows, columns = teacher_grid(images.shape[-2:], self.stride)
        size = (rows * self.patch_size, columns * self.patch_size)
        shown = F.interpolate(normalised((images + 1) / 2), size, mode="bicubic", align_corners=False)
        tokens: Tensor = self.model(shown).last_hidden_state[:, 1:]  # without the class token
        return tokens


def teacher_grid(size: tuple[int, int] | torch.Size, stride: int) -> tuple[int, int]:
    """(rows, columns) of the teacher's tokens for images of (height, width) pixels."""
    return size[0] // stride, size[1] // stride


def check_stride(size: tuple[int, int], setting: str, stride: int = STRIDE) -> None:
    """Raise UserError unless images of (height, width) pixels cut into the teacher's patches."""
    if size[0] % stride or size[1] % stride:
        shape = f"{size[0]}x{size[1]}"
        raise UserError(f"images are {shape}: with {setting} both sides must be multiples of {stride}")


class Cache:
    """The teacher's tokens on the disk, one file an image, by the teacher's digest and that of the image.

    A flipped or otherwise cropped image is another one. Files appear whole; several processes may share them.
    """

    def __init__(self, teacher: Teacher, folder: str | Path) -> None:
        self.teacher, self.size = teacher, teacher.size
        self.folder = Path(folder) / f"{teacher.checksum()}-{teacher.stride}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"repa.cache {folder} cannot be made ({error}); name another folder") from None

    def __call__(self, images: Tensor, flipped: Tensor, device: torch.device) -> Tensor:
        """The teacher's tokens of images [b,3,H,W] uint8, mirrored where flipped [b], on the CPU; those that
        are missing are computed on `device`."""
        files = [self._file(*pair) for pair in zip(images, flipped, strict=True)]
        known = [_read(file) for file in files]
        missing = [i for i, tokens in enumerate(known) if tokens is None]
        if missing:
            floats = as_floats(images[missing].to(device), flipped[missing].to(device))
            for i, tokens in zip(missing, self.teacher(floats).cpu(), strict=True):
                _write(files[i], tokens)
                known[i] = tokens
        return torch.stack([tokens for tokens in known if tokens is not None])

    def _file(self, image: Tensor, flipped: Tensor) -> Path:
        kind = b"flipped" if flipped else b""
        name = hashlib.blake2b(raw_bytes(image), digest_size=16, person=kind).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"


def _read(file: Path) -> Tensor | None:
    """The tokens of a file, float32; None where there is none or it is damaged (it is written again)."""
    try:
        return load_file(file)["tokens"].float()
    except (OSError, SafetensorError, KeyError):
        return None


def _write(file: Path, tokens: Tensor) -> None:
    try:
        file.parent.mkdir(exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.tmp")  # another process may be writing the same one
        part.write_bytes(save({"tokens": tokens.half().contiguous()}))
        os.replace(part, file)
    except OSError as error:
        raise UserError(f"{file} could not be written ({error}); make room or leave out repa.cache") from None
