"""REPA's teacher: the patch tokens of a frozen DINOv2, computed on the fly or kept on the disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.errors import UserError
from pixelwright.files import raw_bytes

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, over [0,1]
STRIDE = 16  # pixels of the image for each patch of the teacher, which has 14: 256² is shown as 224²
OFFSET = 0.1  # which DINOv2 adds to a grid before it interpolates its position table


class Teacher(nn.Module):
    """DINOv2 by a hub name or a local folder, in eval mode and without gradients.

    Images [B,3,H,W] in [-1,1] -> tokens [B, H/16·W/16, size], float16-rounded float32 (as they are kept).

    Raises:
        UserError: transformers is not installed, or the name cannot be read.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            from transformers import Dinov2Model
        except ImportError:
            raise UserError('repa.teacher needs transformers: pip install "pixelwright[repa]"') from None
        try:
            self.model: Any = Dinov2Model.from_pretrained(name)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"repa.teacher {name} cannot be read ({reason}): give a folder with a DINOv2 in the format "
                "of transformers, or a hub name such as facebook/dinov2-base"
            ) from None
        settings: Any = self.model.config
        self.size, self.patch_size = int(settings.hidden_size), int(settings.patch_size)
        embeddings: Any = self.model.embeddings
        embeddings.interpolate_pos_encoding = lambda tokens, height, width: positions(
            embeddings.position_embeddings, height // self.patch_size, width // self.patch_size
        )
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode."""
        return super().train(False)

    def checksum(self) -> str:
        """Digest of all weights."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + bytes(raw_bytes(tensor)))
        return digest.hexdigest()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        rows, columns = teacher_grid(images.shape[-2:])
        mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (MEAN, STD))
        shown = ((images + 1) / 2 - mean) / std
        size = (rows * self.patch_size, columns * self.patch_size)
        shown = F.interpolate(shown, size, mode="bicubic", align_corners=False)
        tokens = self.model(shown).last_hidden_state[:, 1:]  # without the class token
        return tokens.half().float()


def teacher_grid(size: tuple[int, int] | torch.Size) -> tuple[int, int]:
    """(rows, columns) of the teacher's tokens for images of (height, width) pixels."""
    return size[0] // STRIDE, size[1] // STRIDE


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


class Cache:
    """The teacher's tokens on the disk, one file an image, by the teacher's digest and that of the image.

    A flipped or otherwise cropped image is another one. Files appear whole; several processes may share them.
    """

    def __init__(self, teacher: Teacher, folder: str | Path) -> None:
        self.teacher, self.folder = teacher, Path(folder) / teacher.checksum()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"repa.cache {folder} cannot be made ({error}); name another folder") from None

    def __call__(self, images: Tensor) -> Tensor:
        """The same as the teacher gives."""
        files = [self._file(image) for image in images.cpu()]
        known = [_read(file) for file in files]
        missing = [i for i, tokens in enumerate(known) if tokens is None]
        if missing:
            for i, tokens in zip(missing, self.teacher(images[missing]).cpu(), strict=True):
                _write(files[i], tokens)
                known[i] = tokens
        return torch.stack([tokens for tokens in known if tokens is not None]).to(images.device)

    def _file(self, image: Tensor) -> Path:
        name = hashlib.blake2b(raw_bytes(image), digest_size=16).hexdigest()
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
