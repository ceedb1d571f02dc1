"""What a network's output means: velocity, clean image, noise, or the image less a part of the noise."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from pixelwright.errors import UserError, nearest

Prediction = Literal["velocity", "x", "noise", "reverse-velocity", "asymmetric"]
Project = Callable[[Tensor], Tensor]
"""P of AsymFlow: images [B,3,H,W] -> their part in the subspace of patches."""
T_EPS = 0.05
"""x- and noise-prediction divide by 1−t or t; nearer to 0 the network's error would grow without bound."""


def column(t: Tensor) -> Tensor:
    """[B] -> [B,1,1,1], to multiply images."""
    return t[:, None, None, None]


def to_velocity(
    output: Tensor,
    x_t: Tensor,
    t: Tensor,
    prediction: str,
    t_eps: float = T_EPS,
    project: Project | None = None,
) -> Tensor:
    """The velocity that a network's output means. output, x_t [B,3,H,W], t [B].

    `velocity`: v itself. `reverse-velocity`: −v = ε − x, as in the published text-to-image network.
    `x`: v = (x̂ − x_t)/(1−t). `noise`: v = (x_t − ε̂)/t. Denominators are `t_eps` at least. `asymmetric`
    (AsymFlow, arXiv 2605.12964): of a = x − P·ε, which is the velocity inside the subspace of `project` and
    the image outside of it, v = P·a + (1−P)·(a − x_t)/(1−t).
    """
    match prediction:
        case "velocity":
            return output
        case "x":
            return (output - x_t) / column((1 - t).clamp(min=t_eps)).to(x_t.dtype)
        case "reverse-velocity":
            return -output
        case "noise":
            return (x_t - output) / column(t.clamp(min=t_eps)).to(x_t.dtype)
        case "asymmetric":
            assert project is not None, "the asymmetric prediction needs its subspace"
            as_x = to_velocity(output, x_t, t, "x", t_eps)
            return as_x + project(output - as_x)
    known = ("velocity", "x", "noise", "reverse-velocity", "asymmetric")
    raise UserError(f'unknown prediction "{prediction}"{nearest(prediction, known)}')


def velocity_target(
    x: Tensor,
    noise: Tensor,
    x_t: Tensor,
    t: Tensor,
    prediction: str,
    t_eps: float = T_EPS,
    project: Project | None = None,
) -> Tensor:
    """The velocity that training compares with: x − ε, or what the perfect output of `prediction` means.

    Where the denominator of `to_velocity` is clamped, the target's is clamped alike (JiT's loss), so that the
    loss of a perfect network is zero at every t.
    """
    perfect = {"x": x, "noise": noise}.get(prediction)
    if project is not None:
        perfect = x - project(noise)
    return x - noise if perfect is None else to_velocity(perfect, x_t, t, prediction, t_eps, project)


def principal_patches(patches: Tensor, rank: int) -> Tensor:
    """The subspace of `rank` dimensions in which patches [N, C] vary most: an orthonormal basis [rank, C], by
    principal component analysis in float64."""
    patches = patches.double() - patches.double().mean(0)
    _, vectors = torch.linalg.eigh(patches.T @ patches)  # eigenvalues rise
    return vectors[:, -rank:].flip(1).T.contiguous().float()
