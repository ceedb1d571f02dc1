"""The optimisers and the course of the learning rate."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pixelwright.config import steps_of
from pixelwright.errors import UserError
from pixelwright.training.config import OptimConfig
from pixelwright.training.muon import Muon, is_hidden, parts_of
from pixelwright.training.weights import matching

# What CAME notes down but never reads: no part of its state.
_UNREAD = ("step", "RMS")


def build_optimizer(
    named: Sequence[tuple[str, nn.Parameter]], config: OptimConfig, compute: torch.dtype | None = None
) -> torch.optim.Optimizer:
    """The optimiser of parameters by name, with its whole state from the start, so that a checkpoint always
    holds the same tensors. `compute` is the dtype of Muon's products, None: that of the weights.

    Raises UserError: a pattern of `optim.groups` that no name matches; CAME for sharded weights, or without
    the package it comes from.
    """
    groups = _grouped(named, config)
    if config.name == "muon":
        return _muon(groups, dict(named), config, compute)
    return _adamw(groups, config) if config.name == "adamw" else _came(groups, config)


def _grouped(named: Sequence[tuple[str, nn.Parameter]], config: OptimConfig) -> list[dict[str, Any]]:
    """Parameter groups: each parameter is in that of the first pattern that its name, or the end of its name
    after a point, matches; the others are in the last one. `factor` is what multiplies the learning rate."""
    found: list[dict[str, Any]] = []
    rest = dict(named)
    for wish in config.groups:
        taken = [rest.pop(name) for name in matching(wish.pattern, rest, "optim.groups")]
        factor = wish.lr_factor if wish.lr is None else wish.lr / config.lr
        decay = config.weight_decay if wish.weight_decay is None else wish.weight_decay
        found.append({"params": taken, "factor": factor, "weight_decay": decay})
    if rest:
        found.append({"params": [*rest.values()], "factor": 1.0, "weight_decay": config.weight_decay})
    return found


def _adamw(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.AdamW:
    settings: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    return _with_state(torch.optim.AdamW(groups, fused=True, **settings), _parameters(groups))


def _muon(
    groups: list[dict[str, Any]],
    named: dict[str, nn.Parameter],
    config: OptimConfig,
    compute: torch.dtype | None,
) -> Muon:
    """Each group in two: its hidden matrices, of one shape and use each, and the rest."""
    assert config.betas is not None and config.update_rms is not None
    names, found = {p: name for name, p in named.items()}, dict[tuple[Any, ...], dict[str, Any]]()
    for number, group in enumerate(groups):
        for p in group["params"]:
            parts = parts_of(names[p], named) if is_hidden(names[p], p) else None
            more: dict[str, Any] = {"parts": parts, "momentum": config.betas[2], "params": []}
            key = (number, parts, *p.shape) if parts else (number,)
            found.setdefault(key, {**group, **more})["params"].append(p)
    settings: dict[str, Any] = {"lr": config.lr, "betas": config.betas[:2], "eps": config.eps}
    optimizer = Muon(list(found.values()), config.update_rms, compute, **settings)
    for p in _parameters([group for group in found.values() if group["parts"]]):
        optimizer.state[p] = {"momentum": torch.zeros_like(p, memory_format=torch.contiguous_format)}
    _with_state(optimizer, _parameters([group for group in found.values() if not group["parts"]]))
    return optimizer


def _with_state(optimizer: torch.optim.AdamW, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
    for p in parameters:
        optimizer.state[p] = {
            "step": torch.zeros((), device=p.device),
            "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
        }
    return optimizer


def _parameters(groups: list[dict[str, Any]]) -> list[nn.Parameter]:
    return [p for group in groups for p in group["params"]]


def _came(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    """CAME (arXiv 2307.02047), which keeps rows and columns of the squares instead of all of them."""
    if any(hasattr(p, "full_tensor") for p in _parameters(groups)):
        cut = "optim.name is came, which needs whole matrices, but parallel.mode fsdp cuts them"
        raise UserError(f"{cut}: give --parallel.mode ddp or --optim.name adamw")
    try:
        from came_pytorch import CAME
    except ImportError:
        raise UserError('optim.name is came, which needs: pip install "pixelwright[came]"') from None
    optimizer: torch.optim.Optimizer = CAME(groups, lr=config.lr, betas=config.betas)
    for p in _parameters(groups):
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
    unread = () if isinstance(optimizer, torch.optim.AdamW) else _UNREAD
    slots = ((f"{name}.{key}", key, x) for name, p in named for key, x in optimizer.state.get(p, {}).items())
    return {name: x for name, key, x in slots if isinstance(x, Tensor) and key not in unread}


def update(optimizer: torch.optim.Optimizer, lr: float, taken: Tensor) -> None:
    """One step with the gradients there are, without effect where `taken`, a 0-d bool, is false."""
    for each in optimizer.param_groups:
        each["lr"] = lr * each["factor"]
    if isinstance(optimizer, torch.optim.AdamW):
        # The fused kernel reads this flag where the weights are, so that an accelerator is never waited for.
        optimizer.found_inf = 1 - taken.float()  # type: ignore[attr-defined]
        optimizer.step()
    else:
        _step_where(optimizer, taken)
    optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def _step_where(optimizer: torch.optim.Optimizer, taken: Tensor) -> None:
    """A step of an optimiser without such a flag: parameter by parameter, with all put back as it was where
    `taken` is false. No accelerator is waited for, and little is copied at a time."""
    groups = optimizer.param_groups
    for each, p in [(group, p) for group in groups for p in group["params"]]:
        kept = [p.detach(), *(x for key, x in optimizer.state[p].items() if key not in _UNREAD)]
        before = [x.clone() for x in kept]
        optimizer.param_groups = [{**each, "params": [p]}]
        optimizer.step()
        for x, old in zip(kept, before, strict=True):
            x.copy_(torch.where(taken, x, old))
    optimizer.param_groups = groups


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The learning rate of step `step` of `steps`, counted from 0: a linear rise, then the schedule."""
    warmup = steps_of(config.warmup, steps)
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return rise * _scheduled(config, step, steps, warmup)


def _scheduled(config: OptimConfig, step: int, steps: int, warmup: int) -> float:
    end = config.lr_end or 0.0
    match config.schedule:
        case "cosine":
            progress = max(0, step - warmup) / max(1, steps - warmup)
            return end + (config.lr - end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
        case "step-down":
            return config.lr if step < steps_of(config.drop_at or 0, steps) else end
    return config.lr * min(1.0, (steps - step) / (steps_of(config.cooldown, steps) + 1))


def peak_note(config: OptimConfig, steps: int) -> str | None:
    """A line about a schedule that does not reach `optim.lr` within a run, and the peak that results, or that
    does not reach its drop."""
    if (drop := steps_of(config.drop_at or 0, steps)) >= steps:
        never = f"the learning rate never drops: optim.drop_at is {drop}, the run has {steps} steps"
        return f"{never}; give a share, --optim.drop-at 75%"
    warmup, cooldown = steps_of(config.warmup, steps), steps_of(config.cooldown, steps)
    tried = {min(warmup, steps) - 1, *range(0, steps, max(1, steps // 1000))}
    peak = max(learning_rate(config, step, steps) for step in tried if step >= 0)
    if peak > 0.98 * config.lr:
        return None
    return (
        f"the learning rate peaks at {peak:.2g} instead of {config.lr:g}: {steps} steps are few for a warm-up"
        f" of {warmup} and a cooldown of {cooldown}; give shares, --optim.warmup 3% --optim.cooldown 25%"
    )
