"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): momentum with its singular values made equal.

    B ← μ·B + (1 − μ)·G,   U = orthogonal((1 − μ)·G + μ·B),   W ← W − lr·rms·√max(m, n)·U

for the hidden matrices [m, n] of blocks and detailers, convolutions flattened to [out, in·k·k]. An orthogonal
matrix has the RMS 1/√max(m, n), so every entry moves by lr·rms, as much as AdamW moves it (Moonlight,
arXiv 2502.16982, section 2.2). All else (embeddings, adaLN, output layers, biases, norms) is left to AdamW.

torch.optim.Muon takes one matrix at a time, no convolutions, no sharded weights, and leaves no step out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pixelwright.distributed.parallel import local
from pixelwright.distributed.shares import by_shares

# Of the steps of Newton-Schulz: the odd quintics that bring singular values from 0.005 to 1, and what they
# became in the step before, nearest to 1 (Polar Express, arXiv 2505.16932), with room for rounding in bf16.
# Values from 0.005 on end between 0.88 and 1.12.
COEFFICIENTS = (
    (8.0629, -22.3795, 15.6215),
    (3.8259, -2.6918, 0.4850),
    (3.1770, -2.2524, 0.4395),
    (2.2387, -1.5438, 0.3691),
)
# Parts of a name that make a weight one of AdamW.
_NOT_HIDDEN = ("adaLN", "out", "norm", "positions")


def is_hidden(name: str, p: nn.Parameter) -> bool:
    """Whether a weight is a hidden matrix or convolution of a block or detailer, by its name in the model."""
    path = name.split(".")
    inside = "blocks" in path or "detailer" in path or "middle" in path
    other = any(part in _NOT_HIDDEN or part.endswith("embedder") for part in path)
    return p.ndim >= 2 and inside and not other


def parts_of(name: str, named: Mapping[str, Tensor]) -> int:
    """How many matrices of equal size are stored, one above the other, as this weight of a model's `named`:
    queries, keys and values of each head, whose size `q_norm` tells."""
    owner, _, kind = name.removesuffix(".weight").rpartition(".")
    if kind != "qkv":
        return 1
    norm = named.get(f"{owner}.q_norm.weight")
    return 3 if norm is None else len(named[name]) // len(norm)


def orthogonal(x: Tensor) -> Tensor:
    """The nearest matrices with equal singular values, about 1: [k, m, n] -> [k, m, n], by four steps of
    Newton-Schulz X ← P·X, P = a + b·G + c·G², G = XXᵀ, in the dtype of x, for which bf16 is exact enough.

    Two steps at a time multiply X once, by P₂·P₁: after a step G is P·G·P, and these are small matrices.
    (More than two would amplify the rounding of G's smallest eigenvalues.) The steps need singular values σ
    up to 1, and small ones grow 219 times in all: the first divides by (Σσ⁸)^⅛ = |G²|^¼, nearer to the
    largest than the usual (Σσ²)^½.
    """
    wide = x.mT if x.shape[-2] > x.shape[-1] else x
    least = torch.finfo(torch.float32).tiny
    # By the largest entry first: squares of tiny gradients would be 0.
    y = wide / (wide.abs().amax((1, 2), keepdim=True) + least)
    gram = torch.bmm(y, y.mT)
    square = torch.bmm(gram, gram)
    norm = torch.linalg.vector_norm(square, dim=(1, 2), keepdim=True, dtype=torch.float32)
    scale = ((norm + least) ** -0.25).to(x.dtype)
    y, gram, square = y * scale, gram * scale**2, square * scale**4
    for i, (a, b, c) in enumerate(COEFFICIENTS[::2]):
        if i:
            gram = torch.bmm(y, y.mT)
            square = torch.bmm(gram, gram)
        first = torch.add(b * gram, square, alpha=c)
        first.diagonal(dim1=1, dim2=2).add_(a)
        gram = torch.bmm(torch.bmm(first, gram), first)
        a, b, c = COEFFICIENTS[2 * i + 1]
        second = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        y = torch.bmm(torch.baddbmm(first, second, first, beta=a), y)
    return y.mT if x.shape[-2] > x.shape[-1] else y


class Muon(torch.optim.AdamW):
    """Muon for the parameter groups in which `parts` is a number, fused AdamW for the others.

    Weights of a group with `parts` have one shape. `found_inf`, 1 or 0, leaves a step out, as in AdamW.
    """

    found_inf: Tensor

    def __init__(
        self, groups: Sequence[dict[str, Any]], rms: float, compute: torch.dtype | None, **settings: Any
    ) -> None:
        super().__init__(groups, fused=True, **settings)
        self.rms, self.compute = rms, compute

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step with the gradients there are; those of Muon's weights are used up."""
        for group in self.param_groups:
            if group["parts"]:
                self._move([p for p in group["params"] if p.grad is not None], group)
        return super().step(closure)

    def _means(self, parameters: list[nn.Parameter]) -> list[Tensor]:
        return [self.state[p]["momentum"] for p in parameters]

    def _move(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return
        taken, momentum = self.found_inf == 0, group["momentum"]
        weights, means = ([local(x) for x in each] for each in (parameters, self._means(parameters)))
        # Where the step is left out the gradient may be no number, and the mean stays.
        gradient = torch.stack([local(g) for g in gradients]).masked_fill_(~taken, 0)  # [k, ...]
        each = gradient.unbind()
        torch._foreach_mul_(means, torch.where(taken, momentum, 1.0))
        torch._foreach_add_(means, each, alpha=1 - momentum)
        torch._foreach_lerp_(each, means, momentum)
        step = group["lr"] * taken

        def update(x: Tensor) -> Tensor:
            x = x.unflatten(1, (group["parts"], -1)).flatten(0, 1)
            moved = orthogonal(x) * (step * self.rms * max(x.shape[1:]) ** 0.5)
            return moved.reshape(-1, group["parts"] * x.shape[1], x.shape[2])

        stack = gradient.flatten(2).to(self.compute or gradient.dtype)  # [k, m, n]
        gradient.copy_(by_shares(update, stack, parameters[0]).view_as(gradient))
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - step * group["weight_decay"])
        torch._foreach_sub_(weights, each)
        for p in parameters:
            p.grad = None  # which AdamW passes over
