"""Our denoisers in diffusers: a model component, a pipeline, and their flow-matching schedulers on our path.

The two libraries describe the same straight path from opposite ends. diffusers: σ = 1 is noise, σ = 0 data,
and the velocity is dx/dσ = noise − data. Here: t = 1 − σ and dx/dt = data − noise, the negative. That is
translated in two places of this file only: `lay_grid` (times) and the loop of `PixelDenoiserPipeline`
(velocity). The model itself speaks our convention.

Importing this module needs the extra: `pip install "pixelwright[diffusers]"`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from pixelwright.diffusion.guidance import Branch, IntervalCFG
from pixelwright.diffusion.sample import as_condition
from pixelwright.diffusion.solvers import timesteps
from pixelwright.errors import UserError, nearest
from pixelwright.hub.checkpoint import announce
from pixelwright.images import to_uint8
from pixelwright.models.conditions import Condition, TextCondition, null_like
from pixelwright.models.config import from_dict, to_dict
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.folder import listing

try:
    from diffusers import (
        ConfigMixin,
        DiffusionPipeline,
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        FlowMatchHeunDiscreteScheduler,
        ImagePipelineOutput,
        ModelMixin,
        UniPCMultistepScheduler,
    )
    from diffusers.configuration_utils import register_to_config
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise UserError(
        f'diffusers is missing or too old ({error}): pip install "pixelwright[diffusers]"'
    ) from None

Scheduler: TypeAlias = (
    FlowMatchEulerDiscreteScheduler
    | FlowMatchHeunDiscreteScheduler
    | DPMSolverMultistepScheduler
    | UniPCMultistepScheduler
)
StepEnd = Callable[[Any, int, Tensor, dict[str, Tensor]], "dict[str, Tensor] | None"]

# --- The model ---------------------------------------------------------------------------------------------


class PixelDenoiserModel(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers' classes are Any here
    """A `PixelDenoiser` as a diffusers component.

    It is saved as diffusers does, in `config.json` and `diffusion_pytorch_model.safetensors`. `denoiser` is
    the `PixelDenoiser` inside: train it, or `pixelwright.save` it in our own folder format.

    Args:
        architecture: the denoiser's config in its JSON form, as from `pixelwright.models.config.to_dict`.

    Raises:
        UserError: unknown, missing or impossible settings.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, architecture: dict[str, Any]) -> None:
        super().__init__()
        self.denoiser = PixelDenoiser(from_dict(architecture, "PixelDenoiserModel.architecture"))

    @classmethod
    def from_denoiser(cls, model: PixelDenoiser) -> PixelDenoiserModel:
        """The component around `model` itself: its weights are shared, not copied."""
        with torch.device("meta"):
            component = cls(to_dict(model.config))
        component.denoiser = model
        return component.train(model.training)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """diffusers' `from_pretrained`, but missing and unexpected tensors are an error, not a warning.

        A licence notice of the weights goes to stderr, once.

        Raises:
            UserError: missing or unexpected tensors, at most ten of them named.
            ValueError: mis-shaped tensors (diffusers' own check).
        """
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        problems = [f'missing "{key}"' for key in sorted(info["missing_keys"])]
        problems += [f'unexpected "{key}"' for key in sorted(info["unexpected_keys"])]
        if problems:
            raise UserError(f"{args[0] if args else cls.__name__}: {listing(problems)}")
        announce(model.denoiser.config)
        return (model, info) if wants_info else model

    @property
    def backbone(self) -> Any:
        """The global stage, which knows the null condition."""
        return self.denoiser.backbone

    def forward(self, x: Tensor, t: Tensor, labels: Condition) -> Tensor:
        """As `PixelDenoiser`: x [B,3,H,W], t [B] with 0 = noise, 1 = data, labels or captions -> dx/dt."""
        return self.denoiser(x, t, labels)


# --- Schedulers --------------------------------------------------------------------------------------------

# What a scheduler's settings have to be, where it has them: the straight path, and no time grid of its own.
_REQUIRED: dict[str, Any] = {
    "use_flow_sigmas": True,
    "prediction_type": "flow_prediction",
    "final_sigmas_type": "zero",
    "predict_x0": True,
    "solver_p": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_dynamic_shifting": False,
    "shift_terminal": None,
    "invert_sigmas": False,
}
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
    wrong = [key for key, value in required.items() if key in found and found[key] != value]
    if wrong:
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
    flow_match = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    shift = (
        scheduler.shift if flow_match else scheduler.config.get("shift", scheduler.config.get("flow_shift"))
    )
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


# --- The pipeline ------------------------------------------------------------------------------------------


class PixelDenoiserPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Images of classes or prompts with a `PixelDenoiserModel` and any of four flow-matching schedulers.

    `from_model` makes one from a `PixelDenoiser`; `from_pretrained`, `save_pretrained`, `push_to_hub`, `to`,
    `enable_model_cpu_offload` and `set_progress_bar_config` are diffusers'.

    Raises:
        UserError: an unsupported scheduler, naming the supported ones.
    """

    model_cpu_offload_seq = "transformer"
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012  # diffusers' name and type
    _interrupt = False
    _num_timesteps = 0

    def __init__(self, transformer: PixelDenoiserModel, scheduler: Scheduler) -> None:
        super().__init__()
        check_scheduler(scheduler)
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @classmethod
    def from_model(cls, model: PixelDenoiser, scheduler: Any = None) -> PixelDenoiserPipeline:
        """A pipeline around `model`, sharing its weights; by default with diffusers' Euler scheduler."""
        scheduler = FlowMatchEulerDiscreteScheduler() if scheduler is None else scheduler
        return cls(PixelDenoiserModel.from_denoiser(model), scheduler)

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` to True in a callback to stop after the step."""
        return self._interrupt

    @property
    def num_timesteps(self) -> int:
        """Evaluations of the run: the steps, or 2·steps − 1 with Heun."""
        return self._num_timesteps

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Does not apply; `None` (off) is accepted.

        Raises:
            UserError: any other value.
        """
        if slice_size is not None:
            raise UserError(
                "attention slicing does not apply to pixel denoisers: they use PyTorch's fused attention, "
                "which saves that memory already; leave the call out"
            )

    @torch.no_grad()
    def __call__(
        self,
        class_labels: TextCondition | Tensor | Sequence[int | str] | int | str | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        prompt: Sequence[str] | str | None = None,
        negative_prompt: str | None = None,
    ) -> Any:
        """Draw one image per label or prompt.

        Args:
            class_labels: class indices, or names where the model has them; or captions as features.
            prompt, negative_prompt: for models of captions: what to draw, and what guidance leads away from.
                The text encoder that the model names is read, used and freed at each call.
            height, width: in pixels, multiples of the patch size; by default those of `latents` or the model.
            num_inference_steps: steps of the scheduler on `pixelwright.diffusion.solvers.timesteps`.
            guidance_scale, guidance_interval: classifier-free guidance and where in t ∈ [0,1] (0 = noise) it
                acts; 1 switches it off. The null branch runs inside the interval only.
            generator: of the noise; a list of one per image makes an image independent of its batch. Without
                one, torch's global generator is used, as everywhere in diffusers.
            latents: the noise to start from, [B,3,H,W], in place of `generator`'s. There is no latent space:
                the name is diffusers' for the state, which here is pixels.
            output_type: "pil" (list of images), "np" ([B,H,W,3] in [0,1]), "pt" ([B,3,H,W] in [0,1]) or
                "latent" (the state as it is, [B,3,H,W], data in [-1,1]).
            return_dict: return an `ImagePipelineOutput` (`.images`) rather than a tuple of one.
            callback_on_step_end: called as (pipeline, index, timestep = 1000·σ, {"latents": state}) after
                each evaluation; it may return {"latents": …} to replace the state, and set
                `pipeline._interrupt = True` to stop there.
            callback_on_step_end_tensor_inputs: "latents", or nothing.

        Raises:
            UserError: impossible labels, size, steps, guidance, generators, noise, output type or scheduler.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            choices = nearest(output_type, ("pil", "np", "pt", "latent"))
            raise UserError(f'output_type is "{output_type}"{choices}')
        for name in callback_on_step_end_tensor_inputs:
            if name not in self._callback_tensor_inputs:
                raise UserError(
                    f'callback_on_step_end_tensor_inputs holds "{name}"; it can only hold "latents"'
                )
        device = self._execution_device
        denoiser = self.transformer.denoiser
        if (prompt is None) == (class_labels is None):
            raise UserError("give either prompt (models of captions) or class_labels (models of classes)")
        if prompt is not None and not denoiser.config.takes_text:
            raise UserError(f"{denoiser.config.name} draws from classes; give class_labels instead of prompt")
        wanted = class_labels if prompt is None else prompt
        assert wanted is not None
        labels = as_condition(wanted, denoiser, negative_prompt).to(device)
        shape = self._shape(len(labels), height, width, latents)
        times = lay_grid(self.scheduler, num_inference_steps, device)
        null = null_like(labels, denoiser.config.num_classes)
        branches = (Branch(self.transformer, condition) for condition in (labels, null))
        velocity = IntervalCFG(guidance_scale, guidance_interval)(*branches)
        x = self._noise(shape, generator, device) if latents is None else latents.to(device, torch.float32)
        stochastic = "generator" in inspect.signature(self.scheduler.step).parameters
        extra = {"generator": generator} if stochastic else {}
        self._interrupt, self._num_timesteps = False, len(times)
        with self.progress_bar(total=num_inference_steps) as bar:
            for i, (t, timestep) in enumerate(zip(times, self.scheduler.timesteps, strict=True)):
                x = self.scheduler.step(-velocity(x, t), timestep, x, return_dict=False, **extra)[0]
                if callback_on_step_end is not None:
                    tensors = {"latents": x} if callback_on_step_end_tensor_inputs else {}
                    x = (callback_on_step_end(self, i, timestep, tensors) or {}).get("latents", x)
                if (i + 1) % self.scheduler.order == 0 or i + 1 == len(times):
                    bar.update()
                if self._interrupt:
                    break
        self.maybe_free_model_hooks()
        images = _convert(x, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _shape(
        self, count: int, height: int | None, width: int | None, latents: Tensor | None
    ) -> tuple[int, int, int, int]:
        config = self.transformer.denoiser.config
        default = tuple(latents.shape[2:]) if latents is not None and latents.ndim == 4 else config.image_size
        if default is None and (height is None or width is None):
            raise UserError("the model's config has no image_size; give height and width")
        height = default[0] if height is None else height
        width = default[1] if width is None else width
        config.check_size(height, width)
        shape = (count, 3, height, width)
        if latents is not None and tuple(latents.shape) != shape:
            raise UserError(f"latents has the shape {list(latents.shape)}; expected {list(shape)}")
        return shape

    def _noise(self, shape: tuple[int, ...], generator: Any, device: torch.device) -> Tensor:
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise UserError(
                f"{len(generator)} generators are given for {shape[0]} images; give one or one each"
            )
        return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)


def _convert(x: Tensor, output_type: str) -> Any:
    """The state [B,3,H,W] in [-1,1] as what was asked for; "pil" gives the levels of `pixelwright.sample`."""
    if output_type == "latent":
        return x
    if output_type == "pil":
        return [Image.fromarray(image.numpy()) for image in to_uint8(x).cpu()]
    unit = (x / 2 + 0.5).clamp(0, 1)  # [B,3,H,W]
    return unit if output_type == "pt" else unit.permute(0, 2, 3, 1).cpu().numpy()  # np: [B,H,W,3]
