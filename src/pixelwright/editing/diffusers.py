"""Image-to-image and inpainting as diffusers pipelines, with that library's argument names.

They are made as the text-to-image pipeline is (`from_model`, `from_pretrained`), or from one (`from_pipe`).
`image` and `mask_image` are whatever diffusers takes: PIL images, arrays and tensors, lists of them.

Importing this module needs the extra: `pip install "pixelwright[diffusers]"`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pixelwright.diffusion.sample import Labels
from pixelwright.editing.inputs import as_masks, cut_out, put_back
from pixelwright.editing.methods import keep, noised
from pixelwright.errors import UserError
from pixelwright.hub.diffusers import PixelDenoiserPipeline, StepEnd
from pixelwright.hub.schedulers import lay_grid
from pixelwright.images import from_uint8, to_uint8
from pixelwright.models.config import GuidanceEnds


class PixelDenoiserImg2ImgPipeline(PixelDenoiserPipeline):
    """Images noised and drawn again (SDEdit), with a `PixelDenoiserModel` and its scheduler."""

    @torch.no_grad()
    def __call__(  # type: ignore[override]  # as diffusers' image-to-image pipelines, which take an image
        self,
        prompt: Sequence[str] | str | None = None,
        image: Any = None,
        strength: float = 0.6,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_ends: GuidanceEnds = "open",
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        class_labels: Labels | None = None,
        negative_prompt: Sequence[str] | str | None = None,
        num_images_per_prompt: int = 1,
        precision: str = "auto",
        compile: bool = False,
        attention: str = "auto",
    ) -> Any:
        """Edit images towards prompts or labels. Raises UserError for settings that cannot be.

        Args:
            image: one for all prompts, or one each, with sides that are multiples of the patch size.
            strength: above 0 to 1: the last part of the steps that is taken, from the noised image on.
            The others are those of `PixelDenoiserPipeline`.
        """
        return self._edit(dict(locals()))

    def _edit(self, options: dict[str, Any], mask: Tensor | None = None) -> Any:
        """Inside of a mask [b,1,H,W], or everywhere."""
        device, conditions = self._start(options)
        count, steps, strength = len(conditions[0]), options["num_inference_steps"], options["strength"]
        image = self._expanded(self._pixels(options["image"], device), count, options)
        times = lay_grid(self.scheduler, steps, device)
        if not 0 < strength <= 1 or int(steps * strength) < 1:
            raise UserError(
                f"strength is {strength}, of {steps} steps; it must leave a step and be at most 1"
            )
        first = int(max(steps - min(steps * strength, steps), 0)) * self.scheduler.order
        noise = self._noise(tuple(image.shape), options["generator"], device)
        x = noise if first == 0 else noised(image, noise, times[first].to(device, torch.float32))
        if mask is None:
            return self._result(self._integrate(x, times, conditions, options, first), options)
        inside = self._expanded(mask.to(device), count, options)
        x = self._integrate(
            x, times, conditions, options, first, lambda velocity: keep(velocity, image, noise, inside)
        )
        return self._result(torch.where(inside, x, image), options)

    def _pixels(self, image: Any, device: torch.device) -> Tensor:
        """Float [b,3,H,W] in [-1,1]."""
        if image is None:
            raise UserError("image is missing; give a PIL image, an array or a tensor")
        pixels: Tensor = _processor().preprocess(image).to(device, torch.float32)
        self.transformer.denoiser.config.check_size(pixels.shape[2], pixels.shape[3])
        return pixels

    def _expanded(self, given: Tensor, count: int, options: dict[str, Any]) -> Tensor:
        """One of `given` for each of `count` images that are drawn."""
        prompts = count // options["num_images_per_prompt"]
        if len(given) not in (1, prompts):
            raise UserError(
                f"{len(given)} images or masks are given for {prompts} prompts; give one or one each"
            )
        return given.repeat_interleave(count // len(given), dim=0)


class PixelDenoiserInpaintPipeline(PixelDenoiserImg2ImgPipeline):
    """Images drawn anew where a mask is white; elsewhere they keep their bytes."""

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: Sequence[str] | str | None = None,
        image: Any = None,
        mask_image: Any = None,
        padding_mask_crop: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_ends: GuidanceEnds = "open",
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        class_labels: Labels | None = None,
        negative_prompt: Sequence[str] | str | None = None,
        num_images_per_prompt: int = 1,
        precision: str = "auto",
        compile: bool = False,
        attention: str = "auto",
    ) -> Any:
        """Repaint images inside of a mask. Raises UserError for settings that cannot be.

        Args:
            mask_image: one for all images, or one each, of their size; white (1) = repaint.
            padding_mask_crop: edit what is masked with so many pixels around it alone, at the model's size.
            The others are those of `PixelDenoiserImg2ImgPipeline`.
        """
        options, device = dict(locals()), torch.device("cpu")
        images = to_uint8(self._pixels(image, device))
        if mask_image is not None:
            mask_image = _processor(mask=True).preprocess(mask_image)[:, 0] > 0.5
        mask = as_masks(mask_image, images)
        if padding_mask_crop is None:
            return self._edit(options, mask[:, None])
        size = self.transformer.denoiser.config.image_size or (images.shape[1], images.shape[2])
        parts, inside, boxes = cut_out(images, mask, padding_mask_crop, size)
        part = {"image": parts.permute(0, 3, 1, 2) / 255, "output_type": "latent", "return_dict": True}
        drawn = to_uint8(self._edit({**options, **part}, inside[:, None]).images).cpu()
        rows = torch.arange(len(images)).repeat_interleave(len(drawn) // len(images))
        x = put_back(drawn, images[rows], mask[rows], [boxes[row] for row in rows])
        return self._result(from_uint8(x), options)


def _processor(mask: bool = False) -> Any:
    """diffusers' reader of images (which drops alpha), or of masks, without resizing."""
    from diffusers.image_processor import VaeImageProcessor

    own = {"do_normalize": False, "do_binarize": True, "do_convert_grayscale": True}
    return VaeImageProcessor(do_resize=False, **(own if mask else {"do_convert_rgb": True}))
