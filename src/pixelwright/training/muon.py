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

# Of the steps of Newton-Schulz: the odd quintics, and at last the cubic, that bring singular values from
# 0.005 to 1, and what they became in the step before, nearest to 1 (Polar Express, arXiv 2505.16932), with
# room for rounding in bf16. Values from 0.005 on end between 0.76 and 1.24.
COEFFICIENTS = (
    (8.0629, -22.3795, 15.6215),
    (3.8259, -2.6918, 0.4850),
    (3.1770, -2.2524, 0.4395),
    (1.7665, -0.5301, 0.0),
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


def orthogonal(x: Tensor, size: Tensor | float = 1.0) -> Tensor:
    """`size` times the nearest matrices with equal singular values, about 1: [k, m, n] -> [k, m, n], by four
    steps of Newton-Schulz X ← P·X, P = a + b·G + c·G², G = XXᵀ (X·P and XᵀX where X is tall), in the dtype
    of x, for which bf16 is exact enough.

    Two steps at a time multiply X once, by P₂·P₁: after a step G is P·G·P, and these are small matrices.
    (More than two would amplify the rounding of G's smallest eigenvalues.) The steps need singular values σ
    up to 1, and small ones grow 173 times in all: the first divides by (Σσ⁸)^⅛ = |G²|^¼, nearer to the
    largest than the usual (Σσ²)^½. Below 1e-15 and beyond 1e18 entries fade to 0, as below AdamW's eps.
    """
    tall = x.shape[-2] > x.shape[-1]
    gram = torch.bmm(x.mT, x) if tall else torch.bmm(x, x.mT)
    # By the largest entry first, which stands on the diagonal: squares of small gradients would be 0.
    largest = gram.diagonal(dim1=1, dim2=2).amax(1)[:, None, None] + 1e-30
    gram = (gram / largest).nan_to_num_(0)
    square = torch.bmm(gram, gram)
    norm = torch.linalg.vector_norm(square, dim=(1, 2), keepdim=True).clamp(min=1)
    gram, square = gram * norm**-0.5, square / norm
    factor: Tensor | float = norm**-0.25 * largest**-0.5
    for i, (a, b, c) in enumerate(COEFFICIENTS[::2]):
        if i:
            gram = torch.bmm(x.mT, x) if tall else torch.bmm(x, x.mT)
            square, factor = torch.bmm(gram, gram), size
        first = torch.add(b * gram, square, alpha=c)
        first.diagonal(dim1=1, dim2=2).add_(a)
        gram = torch.bmm(torch.bmm(first, gram), first)
        a, b, c = COEFFICIENTS[2 * i + 1]
        second = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) if c else b * gram
        both = torch.baddbmm(first, second, first, beta=a) * factor
        x = torch.bmm(x, both) if tall else torch.bmm(both, x)
    return x


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
        taken = self.found_inf == 0
        for group in self.param_groups:
            if group["parts"]:
                self._move([p for p in group["params"] if p.grad is not None], group, taken)
        return super().step(closure)

    def _means(self, parameters: list[nn.Parameter]) -> list[Tensor]:
        return [self.state[p]["momentum"] for p in parameters]

    def _move(self, parameters: list[nn.Parameter], group: dict[str, Any], taken: Tensor) -> None:
        gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return
        weights, means = ([local(x) for x in each] for each in (parameters, self._means(parameters)))
        gradient = torch.stack([local(g).contiguous() for g in gradients])  # [k, ...]
        # Where the step is left out the gradient may be NaN: its bits are made 0, as no factor would.
        gradient.view(torch.uint8).bitwise_and_(255 * taken.to(torch.uint8))
        each = gradient.unbind()
        torch._foreach_lerp_(means, each, [(1 - group["momentum"]) * taken] * len(means))
        torch._foreach_lerp_(each, means, group["momentum"])
        step = group["lr"] * taken

        def update(x: Tensor) -> Tensor:
            each = x.unflatten(1, (group["parts"], -1)).flatten(0, 1)
            size = step * self.rms * max(each.shape[1:]) ** 0.5
            return orthogonal(each, size).reshape(x.shape)

        stack = gradient.flatten(2).to(self.compute or gradient.dtype)  # [k, m, n]
        gradient.copy_(by_shares(update, stack, parameters[0]).view_as(gradient))
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - step * group["weight_decay"])
        torch._foreach_sub_(weights, each)
        for p in parameters:
            p.grad = None  # which AdamW passes over
