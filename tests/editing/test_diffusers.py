"""The image-to-image and inpainting pipelines against `pw.edit`, with every scheduler."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import pixelwright as pw
from pixelwright.diffusion.sample import noise_of
from tests.editing.test_edit import MODELS, PATCH, half, pictures, words

diffusers = pytest.importorskip("diffusers")
from pixelwright.editing.diffusers import PixelDenoiserImg2ImgPipeline, PixelDenoiserInpaintPipeline  # noqa: E402  # it needs diffusers
from pixelwright.hub.diffusers import PixelDenoiserPipeline  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
DIT = MODELS["patch-dit"]
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SCHEDULERS = {
    "euler": diffusers.FlowMatchEulerDiscreteScheduler,
    "heun": diffusers.FlowMatchHeunDiscreteScheduler,
    "dpm": lambda: diffusers.DPMSolverMultistepScheduler(**FLOW),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(**FLOW),
}


def shown(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.numpy()) for image in images]


def arrays(found: list[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in found]))


def pipe(kind: Any, scheduler: str = "euler") -> Any:
    made = kind.from_model(DIT, SCHEDULERS[scheduler]())
    made.set_progress_bar_config(disable=True)
    return made


class Ours(PixelDenoiserImg2ImgPipeline):
    """With the noise of `pw.edit` in place of a generator's."""

    def _noise(self, shape: tuple[int, ...], generator: Any, device: torch.device) -> Tensor:
        return noise_of(range(shape[0]), (shape[2], shape[3]), 0)


class OursInside(Ours, PixelDenoiserInpaintPipeline):
    """Likewise."""


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
def test_the_images_are_those_of_edit(strength: float) -> None:
    images, mask, euler = pictures(), half(), pw.SamplerSettings(solver="euler", steps=10, guidance_scale=1.5)
    common = {"num_inference_steps": 10, "guidance_scale": 1.5, "strength": strength, "class_labels": [1, 2]}
    drawn = arrays(pipe(Ours)(image=shown(images), **common).images)
    expected = pw.edit(DIT, images, [1, 2], strength=strength, sampler=euler)
    assert (drawn.int() - expected.int()).abs().max() <= 1
    masks = [Image.fromarray(each.numpy()).convert("L") for each in mask]
    inside = arrays(pipe(OursInside)(image=shown(images), mask_image=masks, **common).images)
    expected = pw.edit(
        DIT, images, [1, 2], method="inpaint", mask_image=mask, strength=strength, sampler=euler
    )
    assert (inside.int() - expected.int()).abs().max() <= 1
    assert torch.equal(inside[~mask], images[~mask])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@given(seed=st.integers(0, 99), rows=st.integers(1, 4), columns=st.integers(1, 4), share=st.floats(0.1, 0.9))
@settings(max_examples=5)
def test_unmasked_pixels_keep_their_bytes(
    scheduler: str, seed: int, rows: int, columns: int, share: float
) -> None:
    images = pictures(1, PATCH * rows, PATCH * columns, seed)
    mask = torch.rand(images.shape[1:3], generator=torch.Generator().manual_seed(seed)) < share
    drawn = pipe(PixelDenoiserInpaintPipeline, scheduler)(
        image=shown(images)[0],
        mask_image=Image.fromarray(mask.numpy()),
        class_labels=1,
        num_inference_steps=4,
        strength=0.8,
        generator=torch.Generator().manual_seed(seed),
    )
    assert torch.equal(arrays(drawn.images)[0][~mask], images[0][~mask])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_less_strength_stays_nearer_and_steps_are_counted(scheduler: str) -> None:
    images, seen = pictures(1), []

    def on_end(pipeline: Any, index: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((index, float(timestep)))
        return tensors

    distances = []
    for strength in (0.1, 0.5, 1.0):
        seen.clear()
        drawn = pipe(PixelDenoiserImg2ImgPipeline, scheduler)(
            image=shown(images)[0],
            class_labels=2,
            strength=strength,
            num_inference_steps=10,
            generator=torch.Generator().manual_seed(0),
            callback_on_step_end=on_end,
        )
        steps = round(10 * strength)
        assert len(seen) == (2 * steps - 1 if scheduler == "heun" else steps)
        assert seen[0][1] == pytest.approx(1000 * strength, abs=0.01)
        distances.append(float((arrays(drawn.images).float() - images.float()).abs().mean()))
    assert distances[0] < distances[1] < distances[2]


def test_strength_1_is_the_text_to_image_pipeline() -> None:
    common: dict[str, Any] = {"class_labels": [1, 2], "num_inference_steps": 5}
    plain = pipe(PixelDenoiserPipeline)(generator=torch.Generator().manual_seed(3), **common)
    edited = pipe(PixelDenoiserImg2ImgPipeline)(
        image=shown(pictures()), strength=1.0, generator=torch.Generator().manual_seed(3), **common
    )
    assert torch.equal(arrays(plain.images), arrays(edited.images))


def test_a_cropped_mask_is_edited_as_edit_does_and_the_rest_keeps_its_bytes() -> None:
    images, sampler = pictures(2, 32, 24), pw.SamplerSettings(solver="euler", steps=4)
    mask = torch.zeros(2, 32, 24, dtype=torch.bool)
    mask[0, 3:9, 5:9], mask[1, 20:31, 2:20] = True, True
    masks = [Image.fromarray(each.numpy()).convert("L") for each in mask]
    common = {"class_labels": [1, 2], "num_inference_steps": 4, "padding_mask_crop": 3}
    drawn = arrays(pipe(OursInside)(image=shown(images), mask_image=masks, **common).images)
    more = {"mask_image": mask, "padding_mask_crop": 3}
    expected = pw.edit(DIT, images, [1, 2], method="inpaint", sampler=sampler, **more)
    assert (drawn.int() - expected.int()).abs().max() <= 1
    assert torch.equal(drawn[~mask], images[~mask]) and not torch.equal(drawn[mask], images[mask])
    several = pipe(OursInside)(
        image=shown(images), mask_image=masks, num_images_per_prompt=2, output_type="np", **common
    ).images
    assert several.shape == (4, 32, 24, 3)
    assert torch.equal(
        (torch.from_numpy(several[2:]) * 255).round()[:, ~mask[1]],
        images[1:].float().expand(2, -1, -1, -1)[:, ~mask[1]],
    )


def test_images_may_be_arrays_and_tensors_and_one_goes_for_all() -> None:
    images = pictures(1)
    forms = (shown(images)[0], images.numpy() / 255, images.permute(0, 3, 1, 2).float() / 255)
    drawn = [
        arrays(
            pipe(PixelDenoiserImg2ImgPipeline)(
                image=image,
                class_labels=[1, 2],
                num_images_per_prompt=2,
                num_inference_steps=4,
                generator=torch.Generator().manual_seed(0),
            ).images
        )
        for image in forms
    ]
    assert drawn[0].shape[0] == 4
    assert all((other.int() - drawn[0].int()).abs().max() <= 1 for other in drawn[1:])


def test_captions_are_edited_and_a_pipeline_is_made_of_another() -> None:
    model = MODELS["mmdit"]
    plain = PixelDenoiserPipeline.from_model(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        edited = PixelDenoiserImg2ImgPipeline.from_pipe(plain)
    edited.set_progress_bar_config(disable=True)
    drawn = edited(image=shown(pictures()), class_labels=words(model, 1, 2), num_inference_steps=3)
    assert len(drawn.images) == 2


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (PixelDenoiserImg2ImgPipeline, {"image": None}, "image is missing"),
        (
            PixelDenoiserImg2ImgPipeline,
            {"strength": 0.0},
            "strength is 0.0, of 4 steps; it must leave a step",
        ),
        (PixelDenoiserImg2ImgPipeline, {"strength": 1.2}, "strength is 1.2"),
        (PixelDenoiserImg2ImgPipeline, {"image": Image.new("RGB", (18, 16))}, "size 16x18 does not divide"),
        (PixelDenoiserImg2ImgPipeline, {"image": shown(pictures(3))}, "3 images or masks are given for 2"),
        (PixelDenoiserImg2ImgPipeline, {"class_labels": None}, "give either prompt"),
        (PixelDenoiserInpaintPipeline, {}, "mask_image is missing"),
        (
            PixelDenoiserInpaintPipeline,
            {"mask_image": Image.new("L", (8, 16))},
            r"mask_image is \[1, 16, 8\]; give \[2, 16, 16\]",
        ),
        (PixelDenoiserInpaintPipeline, {"mask_image": Image.new("L", (16, 16))}, "black all over"),
        (
            PixelDenoiserInpaintPipeline,
            {"mask_image": Image.fromarray(half(1)[0].numpy()), "padding_mask_crop": -1},
            "padding_mask_crop is -1; give a whole number",
        ),
    ],
)
def test_mistakes_are_named(kind: Any, change: dict[str, Any], message: str) -> None:
    plain: dict[str, Any] = {"image": shown(pictures()), "class_labels": [1, 2], "num_inference_steps": 4}
    with pytest.raises(pw.UserError, match=message):
        pipe(kind)(**{**plain, **change})
