"""Measurement operators: linear A with adjoint and pseudo-inverse, and quantisation.

Images are float [B,3,H,W] in [-1,1]; all images of a batch are measured alike. Every linear operator here has
an A·Aᵀ that is a number, or diagonal in Fourier space, so that `solve` is exact and cheap and
A⁺ = Aᵀ(A·Aᵀ)⁻¹. Where A·Aᵀ has zeros (masked pixels, lost frequencies), they stay zero in the inverse.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwright.errors import UserError
from pixelwright.rng import generator

GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode L


class Operator(ABC):
    """A linear operator: y = A x. A class of your own needs `A`, `adjoint`, `size` and, where A·Aᵀ is no
    number, `solve`."""

    linear: ClassVar[bool] = True

    @property
    def gram(self) -> float:
        """A·Aᵀ, or a bound on it where it is no number: the square of A's norm."""
        return 1.0

    @abstractmethod
    def A(self, x: Tensor) -> Tensor:  # the symbol of the papers
        """The measurement of images [B,3,H,W]."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y, [B,3,H,W]: ⟨A x, y⟩ = ⟨x, Aᵀ y⟩."""

    @abstractmethod
    def size(self, y: Tensor) -> tuple[int, int]:
        """(height, width) of the images of a measurement. Raises UserError: it is none of this operator."""

    def solve(self, y: Tensor, ridge: float = 0.0) -> Tensor:
        """(A·Aᵀ + ridge)⁻¹ y."""
        return y / (self.gram + ridge)

    def pinv(self, y: Tensor) -> Tensor:
        """A⁺ y, [B,3,H,W]: the smallest images that are measured as y, where y is a measurement."""
        return self.adjoint(self.solve(y))

    def correction(self, x: Tensor, y: Tensor, ridge: float = 0.0) -> Tensor:
        """Aᵀ(A·Aᵀ + ridge)⁻¹(y − A x), which makes x agree with y where `ridge` is 0."""
        return self.adjoint(self.solve(y - self.A(x), ridge))


@dataclass(frozen=True)
class AveragePool(Operator):
    """Means of `factor` × `factor` pixels: what super-resolution undoes. A·Aᵀ = 1/factor²."""

    factor: int

    def __post_init__(self) -> None:
        if not isinstance(self.factor, int) or self.factor < 1:
            raise UserError(f"factor is {self.factor!r}; give a whole number of at least 1")

    @property
    def gram(self) -> float:
        return 1 / self.factor**2

    def A(self, x: Tensor) -> Tensor:
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise UserError(
                f"images of {x.shape[-2]}x{x.shape[-1]} do not divide by {self.factor}: crop or pad them"
            )
        return F.avg_pool2d(x, self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        k = self.factor
        return y.repeat_interleave(k, dim=-2).repeat_interleave(k, dim=-1) / k**2

    def size(self, y: Tensor) -> tuple[int, int]:
        height, width = _image_like(y, 3)
        return height * self.factor, width * self.factor


@dataclass(frozen=True)
class Grey(Operator):
    """The luminance [B,1,H,W]: what colourisation undoes. A·Aᵀ is the sum of the squared weights."""

    weights: tuple[float, float, float] = GREY

    @property
    def gram(self) -> float:
        return sum(weight**2 for weight in self.weights)

    def A(self, x: Tensor) -> Tensor:
        return (x * self._column(x)).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return y * self._column(y)

    def size(self, y: Tensor) -> tuple[int, int]:
        return _image_like(y, 1)

    def _column(self, like: Tensor) -> Tensor:
        return torch.tensor(self.weights, dtype=like.dtype, device=like.device)[:, None, None]


@dataclass(frozen=True, eq=False)
class Mask(Operator):
    """Pixels where `missing` [H,W] is false; the others are 0 in the measurement [B,3,H,W]. A = Aᵀ = A⁺."""

    missing: Tensor

    def __post_init__(self) -> None:
        if self.missing.dtype != torch.bool or self.missing.ndim != 2:
            shape = list(self.missing.shape)
            raise UserError(f"missing is {self.missing.dtype} {shape}; give bool [H, W], true = lost")

    @classmethod
    def box(cls, size: tuple[int, int], top: int, left: int, height: int, width: int) -> "Mask":
        """All pixels but those of a box. Raises UserError: a box that is not inside of the image."""
        inside = min(top, left) >= 0 and min(height, width) > 0
        if not (inside and top + height <= size[0] and left + width <= size[1]):
            box = f"top {top}, left {left}, {height}x{width}"
            raise UserError(f"the box ({box}) is not inside of an image of {size[0]}x{size[1]}")
        missing = torch.zeros(size, dtype=torch.bool)
        missing[top : top + height, left : left + width] = True
        return cls(missing)

    @classmethod
    def random(cls, size: tuple[int, int], share: float, seed: int = 0) -> "Mask":
        """Without a `share` of the pixels, drawn by `seed`. Raises UserError: not 0 < share < 1."""
        count = round(_share(share) * size[0] * size[1])
        order = torch.randperm(size[0] * size[1], generator=generator(seed, "mask"))
        missing = torch.zeros(size[0] * size[1], dtype=torch.bool)
        missing[order[:count]] = True
        return cls(missing.view(size))

    def A(self, x: Tensor) -> Tensor:
        return x.masked_fill(self.missing.to(x.device), 0)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.A(y)

    def size(self, y: Tensor) -> tuple[int, int]:
        return _same_size(_image_like(y, 3), tuple(self.missing.shape), "mask")


class Blur(Operator):
    """Convolution with a kernel [h,w], by FFT: images go on at the opposite edge.

    Frequencies that the kernel damps below `floor` are lost altogether, so that the inverse enlarges the
    rounding of a measurement no more than 1/floor times.
    """

    def __init__(self, kernel: Tensor, floor: float = 0.03) -> None:
        if kernel.ndim != 2 or not kernel.is_floating_point() or not kernel.isfinite().all():
            raise UserError(f"the kernel is {kernel.dtype} {list(kernel.shape)}; give finite floats [h, w]")
        if not 0 <= floor < 1:
            raise UserError(f"floor is {floor}; it must be at least 0 and below 1")
        self.kernel, self.floor = kernel.double(), floor

    @property
    def gram(self) -> float:
        return float(self.kernel.abs().sum()) ** 2

    @classmethod
    def gaussian(cls, sigma: float, floor: float = 0.03) -> "Blur":
        """A Gaussian of standard deviation `sigma` in pixels, cut off at 4·sigma. Raises UserError: sigma is
        no positive number."""
        if not (math.isfinite(sigma) and sigma > 0):
            raise UserError(f"sigma is {sigma}; give a number of pixels above 0")
        reach = math.ceil(4 * sigma)
        line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma) ** 2)
        kernel = line[:, None] * line
        return cls(kernel / kernel.sum(), floor)

    @classmethod
    def motion(cls, length: int, angle: float = 0.0, floor: float = 0.03) -> "Blur":
        """A line of `length` pixels at `angle` degrees from the horizontal, anticlockwise. Raises UserError:
        a length below 2."""
        if length < 2 or not math.isfinite(angle):
            raise UserError(f"motion of {length} pixels at {angle} degrees: give at least 2 and a number")
        kernel = torch.zeros(2 * (length // 2) + 1, 2 * (length // 2) + 1, dtype=torch.float64)
        for place in torch.linspace(-(length - 1) / 2, (length - 1) / 2, 8 * length).tolist():
            row = round(length // 2 - place * math.sin(math.radians(angle)))
            kernel[row, round(length // 2 + place * math.cos(math.radians(angle)))] += 1
        return cls(kernel / kernel.sum(), floor)

    def A(self, x: Tensor) -> Tensor:
        return self._filter(x, self._spectrum(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._filter(y, self._spectrum(y).conj())

    def solve(self, y: Tensor, ridge: float = 0.0) -> Tensor:
        power = self._spectrum(y).abs().square()
        return self._filter(y, torch.where(power > 0, 1 / (power + ridge).clamp(min=1e-30), 0))

    def size(self, y: Tensor) -> tuple[int, int]:
        height, width = _image_like(y, 3)
        if height < self.kernel.shape[0] or width < self.kernel.shape[1]:
            kernel = f"{self.kernel.shape[0]}x{self.kernel.shape[1]}"
            raise UserError(f"the kernel of {kernel} is larger than images of {height}x{width}")
        return height, width

    def _spectrum(self, like: Tensor) -> Tensor:
        size = self.size(like)
        padded = torch.zeros(size, dtype=torch.float64)
        padded[: self.kernel.shape[0], : self.kernel.shape[1]] = self.kernel
        centre = tuple(-(side // 2) for side in self.kernel.shape)
        spectrum = torch.fft.rfft2(padded.roll(centre, (0, 1)))
        spectrum[spectrum.abs() < self.floor] = 0
        dtype = torch.complex128 if like.dtype == torch.float64 else torch.complex64
        return spectrum.to(like.device, dtype)

    @staticmethod
    def _filter(x: Tensor, spectrum: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * spectrum, s=x.shape[-2:])


@dataclass(frozen=True)
class RandomProjection(Operator):
    """A `share` of the coefficients of images of `image_size` whose signs are flipped at random: as good as
    random projections, orthonormal (A·Aᵀ = 1), and without a matrix. The measurement is [B, m].

    The transform is Hartley's, cas = cos + sin, which is its own inverse.
    """

    image_size: tuple[int, int]
    share: float
    seed: int = 0

    def __post_init__(self) -> None:
        _share(self.share)

    def A(self, x: Tensor) -> Tensor:
        _same_size(_image_like(x, 3), self.image_size, "projection")
        signs, kept = self._draws(x)
        return _hartley(x * signs).flatten(1)[:, kept]

    def adjoint(self, y: Tensor) -> Tensor:
        signs, kept = self._draws(y)
        full = torch.zeros(len(y), signs.numel(), dtype=y.dtype, device=y.device)
        full[:, kept] = y
        return _hartley(full.view(-1, *signs.shape)) * signs

    def size(self, y: Tensor) -> tuple[int, int]:
        count = len(self._draws(y)[1])
        if y.ndim != 2 or y.shape[1] != count:
            raise UserError(f"the measurement is {list(y.shape)}; this projection gives [B, {count}]")
        return self.image_size

    def _draws(self, like: Tensor) -> tuple[Tensor, Tensor]:
        random, shape = generator(self.seed, "projection"), (3, *self.image_size)
        signs = torch.randint(2, shape, generator=random) * 2 - 1
        kept = torch.randperm(signs.numel(), generator=random)[: max(1, round(self.share * signs.numel()))]
        return signs.to(like.device, like.dtype), kept.to(like.device)


@dataclass(frozen=True)
class Quantise(Operator):
    """`levels` evenly spaced values from -1 to 1: the one operator that is not linear. A⁺ y = y."""

    levels: int
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.levels, int) or self.levels < 2:
            raise UserError(f"levels is {self.levels!r}; give a whole number of at least 2")

    def A(self, x: Tensor) -> Tensor:
        steps = self.levels - 1
        return ((x.clamp(-1, 1) + 1) / 2 * steps).round() / steps * 2 - 1

    def adjoint(self, y: Tensor) -> Tensor:
        raise UserError("quantisation is not linear and has no adjoint: use method ddnm or pigdm")

    def pinv(self, y: Tensor) -> Tensor:
        return y

    def correction(self, x: Tensor, y: Tensor, ridge: float = 0.0) -> Tensor:
        """A⁺ y − A⁺ A x, over 1 + ridge."""
        return (y - self.A(x)) / (1 + ridge)

    def size(self, y: Tensor) -> tuple[int, int]:
        return _image_like(y, 3)


def _hartley(x: Tensor) -> Tensor:
    """The orthonormal Hartley transform over channels, rows and columns of [B,3,H,W]."""
    spectrum = torch.fft.fftn(x, dim=(1, 2, 3), norm="ortho")
    return spectrum.real - spectrum.imag


def _share(share: float) -> float:
    if not 0 < share < 1:
        raise UserError(f"share is {share}; it must be above 0 and below 1")
    return share


def _image_like(y: Tensor, channels: int) -> tuple[int, int]:
    if y.ndim != 4 or y.shape[1] != channels or not y.is_floating_point() or 0 in y.shape:
        raise UserError(f"the measurement is {y.dtype} {list(y.shape)}; give floats [B, {channels}, H, W]")
    return int(y.shape[2]), int(y.shape[3])


def _same_size(found: tuple[int, int], own: tuple[int, ...], what: str) -> tuple[int, int]:
    if found != own:
        raise UserError(f"images of {found[0]}x{found[1]} do not fit the {what} of {own[0]}x{own[1]}")
    return found
