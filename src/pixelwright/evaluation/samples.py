"""What a few samples show without a reference: noise that is left, a grid of patches, one picture for all."""

from torch import Tensor

from pixelwright.evaluation.metrics import patch_grid, patch_steps

LOOKS = ("noise", "patch_grid", "variety")  # what `look` tells
FEWEST_PATCHES = 4  # along a side; in fewer, what is in the pictures looks like a grid


def look(images: Tensor, patch: int) -> dict[str, float]:
    """What can be told of uint8 images [N,H,W,3] of a model with this patch size, by name."""
    count, height, width, _ = images.shape
    found = {"noise": noise_left(images)} if min(height, width) > 2 else {}
    if min(height, width) >= FEWEST_PATCHES * patch and patch > 1:
        found["patch_grid"] = patch_grid(patch_steps(images, patch)).value
    if count > 1:
        found["variety"] = variety(images)
    return {name: round(value, 4) for name, value in found.items()}


def noise_left(images: Tensor) -> float:
    """Standard deviation of white noise in uint8 images [N,H,W,3], as a share of that of their pixels: 1 for
    noise alone, about 0.1 for photographs. From the median response to a Laplacian, which edges hardly move
    (after Immerkær, 1996)."""
    x = images.permute(0, 3, 1, 2).float()
    second = lambda y, dim: y.diff(dim=dim).diff(dim=dim)  # noqa: E731
    response = second(second(x, 2), 3)  # of unit noise: sqrt(1 + 4 + 1)² = 6
    return float(response.abs().median() / 0.6745 / 6 / x.std().clamp_min(1e-6))


def variety(images: Tensor) -> float:
    """Share of the variance of uint8 images [N,H,W,3] that is between images: 0 where all are the same, near
    1 where they have nothing in common."""
    x = images.float()
    return float(x.var(0).mean() / x.var().clamp_min(1e-6))
