"""Our denoisers in diffusers: a model component, a pipeline, and their flow-matching schedulers on our path.

The two libraries describe the same straight path from opposite ends. diffusers: σ = 1 is noise, σ = 0 data,
and the velocity is dx/dσ = noise − data. Here: t = 1 − σ and dx/dt = data − noise, the negative. That is
translated in two places only: `schedulers.lay_grid` (times) and the loop of `PixelDenoiserPipeline`
(velocity). The model itself speaks our convention.

Importing this module needs the extra: `pip install "pixelwright[diffusers]"`.
"""

import inspect
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pixelwright.acceleration import drawing
from pixelwright.diffusion.guidance import Branch, IntervalCFG
from pixelwright.diffusion.sample import as_condition
from pixelwright.diffusion.solvers import Velocity
from pixelwright.errors import UserError, nearest
from pixelwright.hub.adapters import LoraPipeline
from pixelwright.hub.card import upload, write_card
from pixelwright.hub.checkpoint import announce_licence
from pixelwright.images import to_uint8
from pixelwright.models.conditions import Condition, TextCondition, null_like
from pixelwright.models.config import DenoiserConfig, GuidanceEnds, from_dict, to_dict
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.folder import listing
from pixelwright.text import encode_for

try:
    from diffusers import (
        ConfigMixin,
        DiffusionPipeline,
        FlowMatchEulerDiscreteScheduler,
        ImagePipelineOutput,
        ModelMixin,
    )
    from diffusers.configuration_utils import register_to_config
    from diffusers.utils import BaseOutput
    from diffusers.utils.torch_utils import randn_tensor

    from pixelwright.hub.schedulers import Scheduler, check_scheduler, lay_grid
except ImportError as error:
    raise UserError(
        f'diffusers is missing or too old ({error}): pip install "pixelwright[diffusers]"'
    ) from None

_ASKED = ("class_labels", "prompt", "negative_prompt", "num_images_per_prompt")
StepEnd = Callable[[Any, int, Tensor, dict[str, Tensor]], "dict[str, Tensor] | None"]


@dataclass
class PixelDenoiserOutput(BaseOutput):  # type: ignore[misc]  # diffusers' classes are Any here
    """What `PixelDenoiserModel` gives."""

    sample: Tensor  # dx/dt, [B,3,H,W]


class PixelDenoiserModel(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers' classes are Any here
    """A `PixelDenoiser` as a diffusers component.

    It is saved as diffusers does, in `config.json` and `diffusion_pytorch_model.safetensors`. `denoiser` is
    the `PixelDenoiser` inside: train it, or `pixelwright.save` it in our own folder format.

    Args:
        architecture: the denoiser's config in its JSON form, as from `pixelwright.models.config.to_dict`.

    Raises:
        UserError: unknown, missing or impossible settings.
    """

    # The embedders bring their input to the dtype of their weights, which must be one to compute in.
    _skip_layerwise_casting_patterns = ["time_embedder", "text_embedder", "norm"]  # noqa: RUF012  # diffusers' name and type

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, *, architecture: dict[str, Any]) -> None:
        super().__init__()
        self.denoiser = PixelDenoiser(from_dict(architecture, "PixelDenoiserModel.architecture"))
        blocks = (*self.denoiser.backbone.blocks, *getattr(self.denoiser.detailer, "blocks", ()))
        self._no_split_modules = self._repeated_blocks = sorted({type(block).__name__ for block in blocks})

    @classmethod
    def from_denoiser(cls, model: PixelDenoiser) -> "PixelDenoiserModel":
        """The component around `model` itself: its weights are shared, not copied."""
        with torch.device("meta"):
            component = cls(architecture=to_dict(model.config))
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
        announce_licence(model.denoiser.config)
        return (model, info) if wants_info else model

    def forward(self, x: Tensor, t: Tensor, labels: Condition, return_dict: bool = True) -> Any:
        """As `PixelDenoiser`: x [B,3,H,W], t [B] with 0 = noise, 1 = data, labels or captions -> dx/dt.

        Returns:
            a `PixelDenoiserOutput` (`.sample`), or a tuple of one where `return_dict` is off.
        """
        velocity = self.denoiser(x, t, labels)
        return PixelDenoiserOutput(velocity) if return_dict else (velocity,)


class PixelDenoiserPipeline(DiffusionPipeline, LoraPipeline):  # type: ignore[misc]
    """Images of classes or prompts with a `PixelDenoiserModel` and any of four flow-matching schedulers.

    `from_model` makes one from a `PixelDenoiser`; `from_pretrained`, `save_pretrained`, `push_to_hub`, `to`,
    `enable_model_cpu_offload` and `set_progress_bar_config` are diffusers'.

    Raises UserError: an unsupported scheduler, naming the supported ones.
    """

    model_cpu_offload_seq = "transformer"
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012  # diffusers' name and type
    _interrupt = False
    _num_timesteps = 0
    _guidance_scale = 1.0

    def __init__(self, transformer: PixelDenoiserModel, scheduler: Scheduler) -> None:
        super().__init__()
        check_scheduler(scheduler)
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @classmethod
    def from_model(cls, model: PixelDenoiser, scheduler: Any = None) -> "PixelDenoiserPipeline":
        """A pipeline around `model`, sharing its weights; by default with diffusers' Euler scheduler."""
        scheduler = FlowMatchEulerDiscreteScheduler() if scheduler is None else scheduler
        return cls(PixelDenoiserModel.from_denoiser(model), scheduler)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *args: Any,
        samples: Sequence[Image.Image] = (),
        **kwargs: Any,
    ) -> None:
        """diffusers' `save_pretrained`, with a model card (recipe, source, licence, samples) where there is
        none yet. `samples` are images to show on it."""
        push, repository = kwargs.pop("push_to_hub", False), kwargs.pop("repo_id", None)
        folder = Path(save_directory)
        super().save_pretrained(folder, *args, **kwargs)
        denoiser = self.transformer.denoiser
        parameters = sum(p.numel() for p in denoiser.parameters())
        write_card(folder, denoiser.config, parameters, repository or folder.name, samples)
        if push:
            upload(folder, repository or folder.name, **kwargs)

    def push_to_hub(
        self, repo_id: str, *, variant: str | None = None, samples: Sequence[Image.Image] = (), **kwargs: Any
    ) -> Any:
        """Save the pipeline with its model card and send it to the hub; a card that is there stays.

        Args:
            variant, samples: as for `save_pretrained`.
            kwargs: private, token, commit_message, create_pr.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, variant=variant, samples=samples, repo_id=repo_id)
            return upload(Path(folder), repo_id, **kwargs)

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` to True in a callback to stop after the step."""
        return self._interrupt

    @property
    def num_timesteps(self) -> int:
        """Evaluations of the run: the steps, or 2·steps − 1 with Heun."""
        return self._num_timesteps

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Does not apply; `None` (off) is accepted. Raises UserError: any other value."""
        if slice_size is not None:
            fused = "they use PyTorch's fused attention, which saves that memory already"
            raise UserError(
                f"attention slicing does not apply to pixel denoisers: {fused}; leave the call out"
            )

    @property
    def guidance_scale(self) -> float:
        """That of the run; a callback may set it for the steps that follow."""
        return self._guidance_scale

    @guidance_scale.setter
    def guidance_scale(self, scale: float) -> None:
        self._guidance_scale = scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the next step is guided, where it is inside the interval."""
        return self._guidance_scale != 1

    @torch.no_grad()
    def __call__(
        self,
        class_labels: TextCondition | Tensor | Sequence[int | str] | int | str | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_ends: GuidanceEnds = "open",
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        prompt: Sequence[str] | str | None = None,
        negative_prompt: Sequence[str] | str | None = None,
        num_images_per_prompt: int = 1,
        precision: str = "auto",
        compile: bool = False,
        attention: str = "auto",
    ) -> Any:
        """Draw images of labels or prompts. Raises UserError for settings that cannot be.

        Args:
            class_labels: class indices, or names where the model has them; or captions, as features or texts.
            prompt, negative_prompt: for models of captions, whose encoder is read, used and freed: what to
                draw, and what guidance leads away from, one for all or one each.
            height, width: multiples of the patch size; by default those of `latents` or the model.
            guidance_scale, guidance_interval, guidance_ends: see `diffusion.guidance.IntervalCFG`.
            generator: of the noise; one per image makes an image independent of its batch.
            latents: the start instead, [B,3,H,W] in pixels, of the model's `noise_scale`.
            output_type: "pil", "np" ([B,H,W,3] in [0,1]), "pt" ([B,3,H,W] in [0,1]) or "latent" (the state).
            callback_on_step_end: called as (pipeline, index, 1000·σ, {"latents": state}) after an evaluation;
                it may return {"latents": …}, and set `pipeline.guidance_scale` or `._interrupt`.
            num_images_per_prompt: images of each label or prompt, one after the other.
            precision, compile, attention: as in `pixelwright.sample`.
        """
        options = dict(locals())
        device, conditions = self._start(options)
        shape = self._shape(len(conditions[0]), height, width, latents)
        times = lay_grid(self.scheduler, num_inference_steps, device)
        x = self._noise(shape, generator, device) if latents is None else latents.to(device, torch.float32)
        return self._result(self._integrate(x, times, conditions, options), options)

    def _start(self, options: dict[str, Any]) -> tuple[torch.device, tuple[Condition, Condition]]:
        """Where the arguments of a call are computed, and what they ask for."""
        _check_names(options["output_type"], options["callback_on_step_end_tensor_inputs"])
        return (device := self._execution_device), self._conditions(options, device)

    def _integrate(
        self,
        x: Tensor,
        times: Tensor,
        conditions: tuple[Condition, Condition],
        options: dict[str, Any],
        first: int = 0,
        around: Callable[[Velocity], Velocity] = lambda velocity: velocity,
    ) -> Tensor:
        """The state at the data, from x at evaluation `first` of `times`, with the arguments of a call;
        `around` makes of the guided velocity what is integrated."""
        scheduler, on_end = self.scheduler, options["callback_on_step_end"]
        timesteps = scheduler.timesteps[first:]
        stochastic = "generator" in inspect.signature(scheduler.step).parameters
        extra = {"generator": options["generator"]} if stochastic else {}
        scheduler.set_begin_index(first)  # lay_grid has set 0
        self._interrupt, self._num_timesteps = False, len(timesteps)
        self._guidance_scale = options["guidance_scale"]
        where = options["guidance_interval"], options["guidance_ends"]
        speed = (options[name] for name in ("precision", "compile", "attention"))
        bar = self.progress_bar(total=-(-len(timesteps) // scheduler.order))
        with self._drawing(conditions, *speed, x.device) as branches, bar:
            for i, (t, timestep) in enumerate(zip(times[first:], timesteps, strict=True)):
                v = around(IntervalCFG(self._guidance_scale, *where)(*branches))(x, t)
                x = scheduler.step(-v, timestep, x, return_dict=False, **extra)[0]
                tensors = {"latents": x} if options["callback_on_step_end_tensor_inputs"] else {}
                if on_end is not None:
                    x = (on_end(self, i, timestep, tensors) or {}).get("latents", x)
                if (i + 1) % scheduler.order == 0 or i + 1 == len(timesteps):
                    bar.update()
                if self._interrupt:
                    break
        return x

    def _result(self, x: Tensor, options: dict[str, Any]) -> Any:
        self.maybe_free_model_hooks()
        result = ImagePipelineOutput(images=_convert(x, options["output_type"]))
        return result if options["return_dict"] else result.to_tuple()

    @contextmanager
    def _drawing(self, conditions: tuple[Condition, Condition], *speed: Any) -> Iterator[list[Branch]]:
        """The network with each condition, see `acceleration.drawing`."""
        denoiser = self.transformer.denoiser
        with drawing(denoiser, *speed) as fast:
            network = self._network if fast is denoiser else fast
            yield [Branch(network, condition) for condition in conditions]

    def _network(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The model with its hooks, such as those of offloading."""
        velocity: Tensor = self.transformer(x, t, condition, return_dict=False)[0]
        return velocity

    def _conditions(self, options: dict[str, Any], device: torch.device) -> tuple[Condition, Condition]:
        """What is to be drawn, so many times as is asked for, and what guidance leads away from."""
        class_labels, prompt, negative_prompt, each = (options[name] for name in _ASKED)
        denoiser = self.transformer.denoiser
        config: DenoiserConfig = denoiser.config
        if (prompt is None) == (class_labels is None):
            raise UserError("give either prompt (models of captions) or class_labels (models of classes)")
        first = class_labels[0] if isinstance(class_labels, (list, tuple)) and class_labels else class_labels
        if config.takes_text and prompt is None and isinstance(first, str):
            class_labels, prompt = None, class_labels  # pipe("a fox")
        if prompt is not None and not config.takes_text:
            raise UserError(f"{config.name} draws from classes; give class_labels instead of prompt")
        if negative_prompt is not None and prompt is None:
            raise UserError("negative_prompt goes with prompt alone; leave it out")
        if isinstance(each, bool) or not isinstance(each, int) or each < 1:
            raise UserError(f"num_images_per_prompt is {each!r}; it must be a whole number of at least 1")
        condition: Any
        if prompt is None:
            condition = as_condition(class_labels, denoiser).to(device)
            null = null_like(condition, config.null_label)
        else:
            prompts, negatives = _texts(prompt), _texts(negative_prompt or "")
            if (count := len(negatives)) not in (1, len(prompts)):
                both = f"{count} negative prompts are given for {len(prompts)} prompts"
                raise UserError(f"{both}; give one for all or one each")
            condition = encode_for(config, prompts, negatives[0], device).to(device)
            null = condition.empty()
            if len(negatives) > 1:
                null = encode_for(config, negatives, "", device).to(device)
        rows = torch.arange(len(condition), device=device).repeat_interleave(each)
        return condition[rows], null[rows]

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
        if isinstance(generator, list) and (given := len(generator)) != shape[0]:
            raise UserError(f"{given} generators are given for {shape[0]} images; give one or one each")
        noise = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        return noise * float(self.transformer.denoiser.config.noise_scale)


def _texts(prompt: Sequence[str] | str) -> list[str]:
    return [prompt] if isinstance(prompt, str) else list(prompt)


def _check_names(output_type: str, tensor_inputs: Sequence[str]) -> None:
    if output_type not in (types := ("pil", "np", "pt", "latent")):
        raise UserError(f'output_type is "{output_type}"{nearest(output_type, types)}')
    for name in tensor_inputs:
        if name not in PixelDenoiserPipeline._callback_tensor_inputs:
            raise UserError(f'callback_on_step_end_tensor_inputs holds "{name}"; it can only hold "latents"')


def _convert(x: Tensor, output_type: str) -> Any:
    """The state [B,3,H,W] in [-1,1] as what was asked for; "pil" gives the levels of `pixelwright.sample`."""
    if output_type == "latent":
        return x
    if output_type == "pil":
        return [Image.fromarray(image.numpy()) for image in to_uint8(x).cpu()]
    unit = (x / 2 + 0.5).clamp(0, 1)  # [B,3,H,W]
    return unit if output_type == "pt" else unit.permute(0, 2, 3, 1).cpu().numpy()  # np: [B,H,W,3]
