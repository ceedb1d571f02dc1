"""The optimisers and the course of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pixelwright.errors import UserError
from pixelwright.training.config import OptimConfig

# What CAME notes down but never reads: no part of its state.
_NOTES = ("step", "RMS")


def build_optimizer(parameters: list[nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser, with its whole state from the start, so that a checkpoint always holds the same tensors.

    Raises:
        UserError: CAME for sharded weights, or without the package it comes from.
    """
    return _adamw(parameters, config) if config.name == "adamw" else _came(parameters, config)


def _adamw(parameters: list[nn.Parameter], config: OptimConfig) -> torch.optim.AdamW:
    optimizer = torch.optim.AdamW(
        parameters,
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),  # type: ignore[index]
        eps=config.eps,  # type: ignore[arg-type]
        weight_decay=config.weight_decay,
        fused=True,
    )
    for p in parameters:
        optimizer.state[p] = {
            "step": torch.zeros((), device=p.device),
            "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
        }
    return optimizer


def _came(parameters: list[nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    """CAME (arXiv 2307.02047), which keeps rows and columns of the squares instead of all of them."""
    if any(isinstance(p, DTensor) for p in parameters):
        raise UserError(
            "optim.name is came, which needs whole matrices, but parallel.mode fsdp cuts them: "
            "give --parallel.mode ddp or --optim.name adamw"
        )
    try:
        from came_pytorch import CAME
    except ImportError:
        raise UserError('optim.name is came, which needs: pip install "pixelwright[came]"') from None
    optimizer: torch.optim.Optimizer = CAME(
        parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
    )
    for p in parameters:
        state: dict[str, Any] = {"step": 0, "RMS": 0, "exp_avg": torch.zeros_like(p)}
        if p.ndim < 2:
            state["exp_avg_sq"] = torch.zeros_like(p)
        else:
            for kind in ("sq", "res"):
                state[f"exp_avg_{kind}_row"] = p.new_zeros(p.shape[:-1])
                state[f"exp_avg_{kind}_col"] = p.new_zeros(p.shape[:-2] + p.shape[-1:])
        optimizer.state[p] = state
    return optimizer


def optimizer_state(
    optimizer: torch.optim.Optimizer, named: Iterable[tuple[str, nn.Parameter]]
) -> dict[str, Tensor]:
    """Every tensor of the optimiser that a later step depends on, by reference, as "weight.slot"."""
    return {
        f"{name}.{key}": value
        for name, p in named
        for key, value in optimizer.state.get(p, {}).items()
        if isinstance(value, Tensor) and (isinstance(optimizer, torch.optim.AdamW) or key not in _NOTES)
    }


def update(optimizer: torch.optim.Optimizer, lr: float, taken: Tensor) -> None:
    """One step with the gradients there are, without effect where `taken`, a 0-d bool, is false."""
    optimizer.param_groups[0]["lr"] = lr
    if isinstance(optimizer, torch.optim.AdamW):
        # The fused kernel reads this flag where the weights are, so that an accelerator is never waited for.
        optimizer.found_inf = 1 - taken.float()  # type: ignore[attr-defined]
        optimizer.step()
    elif taken:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The learning rate of step `step` of `steps`, counted from 0: a linear rise, then the schedule."""
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    return rise * _scheduled(config, step, steps)


def _scheduled(config: OptimConfig, step: int, steps: int) -> float:
    end = config.lr_end or 0.0
    match config.schedule:
        case "cosine":
            progress = max(0, step - config.warmup) / max(1, steps - config.warmup)
            return end + (config.lr - end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
        case "step-down":
            return config.lr if step < (config.drop_at or 0) else end
    return config.lr * min(1.0, (steps - step) / (config.cooldown + 1))
