"""diffusers' flow-matching schedulers on our timesteps.

The two libraries describe the same straight path from opposite ends. diffusers: σ = 1 is noise, σ = 0 data.
Here: t = 1 − σ. `lay_grid` translates.
"""

from typing import Any, TypeAlias

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from pixelwright.diffusion.solvers import timesteps
from pixelwright.errors import UserError

Scheduler: TypeAlias = (
    FlowMatchEulerDiscreteScheduler
    | FlowMatchHeunDiscreteScheduler
    | DPMSolverMultistepScheduler
    | UniPCMultistepScheduler
)

# What a scheduler's settings have to be, where it has them: the straight path, and no time grid of its own.
_OFF = ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas", "dynamic_shifting")
_REQUIRED: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
_REQUIRED |= {"final_sigmas_type": "zero", "predict_x0": True, "solver_p": None}
_REQUIRED |= {f"use_{name}": False for name in _OFF} | {"shift_terminal": None, "invert_sigmas": False}
_REQUIRED_UNIPC = {"solver_type": "bh2", "lower_order_final": True}  # the others make NaN at σ = 0
_FLOW_SETTINGS = 'use_flow_sigmas=True, prediction_type="flow_prediction"'
_UNIPC_FIRST_SIGMA = 1 - 1e-6  # its formulas hold log(1 − σ), which they cannot take at σ = 1


def check_scheduler(scheduler: Any) -> None:
    """Raise `UserError` unless a scheduler is one of the four supported, set for the straight path."""
    name = type(scheduler).__name__
    if not isinstance(scheduler, Scheduler):
        raise UserError(
            f"the scheduler is {name}; use FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, "
            f"or DPMSolverMultistepScheduler or UniPCMultistepScheduler with {_FLOW_SETTINGS}"
        )
    required = _REQUIRED | (_REQUIRED_UNIPC if isinstance(scheduler, UniPCMultistepScheduler) else {})
    found = scheduler.config
    if wrong := [key for key, value in required.items() if key in found and found[key] != value]:
        has = ", ".join(f"{key}={found[key]!r}" for key in wrong)
        needs = ", ".join(f"{key}={required[key]!r}" for key in wrong)
        raise UserError(f"{name} has {has}; pixel denoisers need {needs}")


def lay_grid(scheduler: Any, steps: int, device: torch.device | str = "cpu") -> Tensor:
    """Put a scheduler on `pixelwright.diffusion.solvers.timesteps`, not on a grid of its own.

    Their own grids differ from it: Euler and Heun spend the last step on the σ from about 1/1000 (shifted
    twice) to 0, the other two are a little off and round their timesteps to whole numbers. The shift, `shift`
    or `flow_shift` in their settings, means the same as ours.

    Returns:
        times t = 1 − σ of the evaluations in order, float64: [steps], and [2·steps − 1] for Heun, which
        evaluates twice at each time between the ends.

    Raises:
        UserError: an unsupported scheduler, settings that do not fit, fewer than one step.
    """
    check_scheduler(scheduler)
    shift = scheduler.config.get("shift", scheduler.config.get("flow_shift"))
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        shift = scheduler.shift  # it can be set
    times = timesteps(steps, shift)  # [steps+1]
    if scheduler.order == 2:
        times = torch.cat((times[:1], times[1:-1].repeat_interleave(2), times[-1:]))  # [2·steps]
    sigmas = 1 - times
    if isinstance(scheduler, UniPCMultistepScheduler):
        sigmas[0] = _UNIPC_FIRST_SIGMA
    scheduler.set_timesteps(steps, device=device)  # clears what an earlier run left
    scheduler.sigmas = sigmas.float()
    scheduler.timesteps = (sigmas[:-1] * scheduler.config.num_train_timesteps).float().to(device)
    scheduler.set_begin_index(0)  # count the steps, instead of looking for a timestep among doubled ones
    return times[:-1]
