"""`edit`, `invert`, `interpolate` and `restore` on tiny models of every family."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import pixelwright as pw
from pixelwright.diffusion.sample import as_condition
from pixelwright.editing import operators as ops
from pixelwright.editing.inputs import as_images, crop_box
from pixelwright.models.backbones import PatchDiTConfig
from pixelwright.models.conditions import TextCondition
from pixelwright.models.config import DenoiserConfig, TextNote
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.detailers.linear import LinearConfig
from pixelwright.models.jit import JiTConfig
from pixelwright.models.mmdit import MMDiTConfig
from pixelwright.models.pixeldit2 import PixelDiT2Config
from pixelwright.models.text_dit import TextDiTConfig
from tests.editing.gaussian import GaussianModel
from tests.encoders import tiny_bert

CLASSES, SIDE, PATCH = 3, 16, 4
RESTORED = {
    "sr4": ops.AveragePool(4),
    "grey": ops.Grey(),
    "blur": ops.Blur.gaussian(0.8),
    "mask": ops.Mask.random((SIDE, SIDE), 0.6),
    "projection": ops.RandomProjection((SIDE, SIDE), 0.3),
}


def randomised(config: DenoiserConfig) -> PixelDenoiser:
    model = PixelDenoiser(config)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.2, generator=random)
    return model.eval()


def tiny(backbone: Any, name: str, **more: Any) -> PixelDenoiser:
    return randomised(DenoiserConfig(backbone, LinearConfig(), name=name, image_size=(SIDE, SIDE), **more))


def grounded() -> PixelDenoiser:
    """PixelDiT2, with an encoder of random weights."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": PATCH}
    model = tiny(
        PixelDiT2Config(16, 1, 2, PATCH, num_classes=CLASSES, encoder_size=16, grounding_heads=2),
        "pixeldit2",
        prediction="x",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = DINOv3ViTModel(DINOv3ViTConfig(hidden_size=16, **sizes))
    model.backbone.encoder.model = encoder.requires_grad_(False).eval()
    return model


MODELS = {
    "patch-dit": tiny(PatchDiTConfig(16, 1, 2, PATCH, num_classes=CLASSES), "patch-dit"),
    "mmdit": tiny(MMDiTConfig(16, 1, 2, PATCH, text_size=8, text_length=4), "mmdit"),
    "text-dit": tiny(TextDiTConfig(16, 1, 2, PATCH, text_size=8, text_length=4, text_depth=1), "text-dit"),
    "jit": tiny(JiTConfig(16, 1, 2, PATCH, num_classes=CLASSES), "jit", prediction="x", noise_scale=2.0),
    "pixeldit2": grounded(),
}
FAMILIES = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
DIT = MODELS["patch-dit"]


def words(model: PixelDenoiser, *which: int) -> Any:
    """Conditions: labels, or captions of random features."""
    if not model.config.takes_text:
        return list(which)
    features = torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(1))
    return TextCondition(features[list(which)], torch.ones(len(which), 4, dtype=torch.bool))


def pictures(count: int = 2, height: int = SIDE, width: int = SIDE, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, height, width, 3), dtype=torch.uint8, generator=random)


def half(count: int = 2, height: int = SIDE, width: int = SIDE) -> Tensor:
    mask = torch.zeros(count, height, width, dtype=torch.bool)
    mask[:, : height // 2] = True
    return mask


@FAMILIES
def test_strength_0_is_the_input_and_strength_1_is_sampling(model: PixelDenoiser) -> None:
    images, target = pictures(), words(model, 1, 2)
    assert torch.equal(pw.edit(model, images, target, strength=0, steps=5), images)
    drawn = pw.sample(model, target, pw.SamplerSettings(steps=5), seed=3, start_index=7)
    assert torch.equal(pw.edit(model, images, target, strength=1, steps=5, seed=3, start_index=7), drawn)
    sampler = pw.SamplerSettings(steps=5, time_start=0.1, time_shift=2.0, last_step=0.1)
    assert torch.equal(
        pw.edit(model, images, target, strength=1, sampler=sampler), pw.sample(model, target, sampler)
    )
    between = pw.edit(model, images, target, steps=5)  # strength 0.6
    assert not torch.equal(between, images) and not torch.equal(between, drawn)
    assert torch.equal(between, pw.edit(model, images, target, method="sdedit", strength=0.6, steps=5))


@FAMILIES
@pytest.mark.parametrize("more", [{}, {"strength": 0.5}, {"resampling": 2}, {"padding_mask_crop": 2}])
def test_inpainting_keeps_the_bytes_outside_of_the_mask(model: PixelDenoiser, more: dict[str, Any]) -> None:
    images, mask, target = pictures(), half(), words(model, 1, 2)
    edited = pw.edit(model, images, target, method="inpaint", mask_image=mask, steps=4, **more)
    assert torch.equal(edited[~mask], images[~mask])
    assert (edited[mask] != images[mask]).float().mean() > 0.5


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    seed=st.integers(0, 999),
    share=st.floats(0.02, 0.98),
    crop=st.none() | st.integers(0, 9),
)
@settings(max_examples=20)
def test_unmasked_pixels_are_the_same_bytes_for_any_mask_and_size(
    rows: int, columns: int, seed: int, share: float, crop: int | None
) -> None:
    images = pictures(2, rows * PATCH, columns * PATCH, seed)
    mask = torch.rand(images.shape[:3], generator=torch.Generator().manual_seed(seed)) < share
    mask[:, 0, 0], mask[:, -1, -1] = True, False
    edited = pw.edit(
        DIT, images, 1, method="inpaint", mask_image=mask, steps=2, padding_mask_crop=crop, seed=seed
    )
    assert edited.shape == images.shape and torch.equal(edited[~mask], images[~mask])


@given(
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    margins=st.tuples(*[st.integers(0, 9)] * 4).filter(any),
)
@settings(max_examples=20)
def test_outpainting_grows_the_canvas_around_the_same_bytes(
    size: tuple[int, int], margins: tuple[int, ...]
) -> None:
    images, (left, top, right, bottom) = pictures(2, *size), margins
    edited = pw.edit(DIT, images, 1, method="outpaint", margins=margins, steps=2)
    assert edited.shape == (2, size[0] + top + bottom, size[1] + left + right, 3)
    assert torch.equal(edited[:, top : top + size[0], left : left + size[1]], images)


@FAMILIES
def test_flowedit_to_the_source_is_the_input_and_to_another_is_not(model: PixelDenoiser) -> None:
    images, target, other = pictures(), words(model, 1, 2), words(model, 2, 0)
    same = {"guidance_scale": 2.0, "source_guidance_scale": 2.0, "steps": 6, "method": "flowedit"}
    assert torch.equal(pw.edit(model, images, target, target, **same), images)  # type: ignore[arg-type]
    edited = pw.edit(model, images, target, other, "flowedit", steps=6, n_max=5, n_min=1, n_avg=2)
    assert not torch.equal(edited, images)


@FAMILIES
def test_results_do_not_depend_on_the_batch(model: PixelDenoiser) -> None:
    images, mask, target, source = pictures(3), half(3), words(model, 0, 1, 2), words(model, 2, 0, 1)
    settings: list[dict[str, Any]] = [
        {"method": "sdedit"},
        {"method": "inpaint", "mask_image": mask, "resampling": 2},
        {"method": "flowedit", "source": source},
        {"method": "outpaint", "margins": (4, 0, 0, 4)},
    ]
    for more in settings:
        whole = pw.edit(model, images, target, steps=4, start_index=5, **more)
        parts = pw.edit(model, images, target, steps=4, start_index=5, batch_size=2, **more)
        assert (whole.int() - parts.int()).abs().max() <= 1  # products of other shapes round differently
        alone = {
            key: value[2:] if isinstance(value, (Tensor, list, TextCondition)) else value
            for key, value in more.items()
        }
        last = pw.edit(model, images[2:], target[2:], steps=4, start_index=7, **alone)
        assert (whole[2:].int() - last.int()).abs().max() <= 1
    between = [pw.interpolate(model, target[:1], target[1:2], 3, batch_size=size) for size in (3, 2)]
    assert (between[0].int() - between[1].int()).abs().max() <= 1
    inverted = [pw.invert(model, images, target, 4, batch_size=size) for size in (3, 2)]
    assert (inverted[0] - inverted[1]).abs().max() < 1e-3
    for method in ("ddnm", "pigdm", "pnp", "dps"):
        y = ops.AveragePool(4).A(torch.rand(3, 3, SIDE, SIDE))
        whole = pw.restore(model, y, ops.AveragePool(4), method, target, 4, "float")
        parts = pw.restore(model, y, ops.AveragePool(4), method, target, 4, "float", batch_size=2)
        assert (whole - parts).abs().max() < 1e-3


@FAMILIES
@pytest.mark.parametrize("method", ["ddnm", "pigdm", "pnp", "dps"])
@pytest.mark.parametrize("task", RESTORED)
def test_restored_images_agree_with_the_measurement(model: PixelDenoiser, method: str, task: str) -> None:
    operator = RESTORED[task]
    y = operator.A(torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    before = next(model.parameters()).grad
    x = pw.restore(model, y, operator, method=method, labels=words(model, 1, 2), steps=4, output="float")
    assert x.shape == (2, 3, SIDE, SIDE) and x.dtype == torch.float32 and not x.requires_grad
    assert (operator.A(x) - y).abs().max() < 1e-5 * max(1.0, float(x.abs().max()))
    assert next(model.parameters()).grad is before
    shown = pw.restore(model, y, operator, method=method, labels=words(model, 1, 2), steps=4)
    assert shown.dtype == torch.uint8 and shown.shape == (2, SIDE, SIDE, 3)


@FAMILIES
def test_gradients_of_restoration_go_through_the_whole_model(model: PixelDenoiser) -> None:
    random = torch.Generator().manual_seed(0)
    x, along, weight = torch.randn(3, 2, 3, SIDE, SIDE, generator=random)
    condition = as_condition(words(model, 1, 2), model)

    def output(x: Tensor) -> Tensor:
        return (model(x, torch.full((2,), 0.4), condition).double() * weight).sum()

    (g,) = torch.autograd.grad(output(x.requires_grad_()), x)
    with torch.no_grad():
        expected = (output(x + 1e-2 * along) - output(x - 1e-2 * along)) / 2e-2
    assert float((g * along).sum()) == pytest.approx(float(expected), rel=0.01)


def test_ddnm_agrees_below_a_hundred_thousandth_in_float32() -> None:
    means = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model = GaussianModel(means)
    for operator in RESTORED.values():
        y = operator.A(means[:1])
        x = pw.restore(model, y, operator, "ddnm", [0], 20, "float")
        assert (operator.A(x) - y).abs().max() < 1e-5


def test_quantised_images_are_restored_inside_of_their_bins() -> None:
    means = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    operator = ops.Quantise(4)
    y = operator.A(means[:1])
    for method in ("ddnm", "pigdm"):
        x = pw.restore(GaussianModel(means), y, operator, method, [0], 20, "float")
        assert (operator.A(x) == y).float().mean() > 0.999
    with pytest.raises(pw.UserError, match="dps needs a linear operator, which Quantise is not"):
        pw.restore(GaussianModel(means), y, operator, "dps")


def test_a_noisy_measurement_is_not_fitted_to_its_noise() -> None:
    random = torch.Generator().manual_seed(0)
    means = torch.rand(2, 3, SIDE, SIDE, generator=random) * 2 - 1
    model, operator = GaussianModel(means, spread=1.0), ops.AveragePool(2)
    clean = means[:1] + torch.randn(1, 3, SIDE, SIDE, generator=random)
    y = operator.A(clean) + torch.randn(1, 3, SIDE // 2, SIDE // 2, generator=random)
    known = pw.restore(model, y, operator, "pigdm", [0], 40, "float", noise=1.0)
    naive = pw.restore(model, y, operator, "pigdm", [0], 40, "float")
    distance = [float((operator.A(x - clean)).square().mean()) for x in (known, naive)]
    assert distance[0] < 0.8 * distance[1]


@FAMILIES
def test_inversion_and_sampling_give_the_image_back(model: PixelDenoiser) -> None:
    labels = words(model, 1, 2)
    images = pw.sample(model, labels, pw.SamplerSettings(steps=64))
    errors = []
    for steps in (8, 32):
        noise, drawn, error = pw.editing.round_trip(model, images, labels, steps)
        assert noise.shape == (2, 3, SIDE, SIDE) and drawn.shape == images.shape
        assert torch.equal(noise, pw.invert(model, images, labels, steps))
        again = pw.sample(model, labels, pw.SamplerSettings(steps=steps), noise=noise)
        assert torch.equal(again, drawn)
        errors.append(float(error.max()))
    fall = 10 if model.config.prediction == "velocity" else 1.5  # second order: 16 times, to rounding; x-
    assert errors[1] < errors[0] / fall, errors  # prediction ends with what the network makes of 0.95·image


@FAMILIES
def test_interpolation_begins_and_ends_with_what_sampling_draws(model: PixelDenoiser) -> None:
    first, last, sampler = words(model, 0), words(model, 1), pw.SamplerSettings(steps=4, guidance_scale=1.5)
    between = pw.interpolate(model, first, last, 5, seeds=(3, 4), sampler=sampler)
    assert between.shape == (5, SIDE, SIDE, 3)
    for place, labels, seed in ((0, first, 3), (4, last, 4)):
        drawn = pw.sample(model, labels, sampler, seed=seed)
        assert (between[place].int() - drawn[0].int()).abs().max() <= 1
    assert len({tuple(image.flatten().tolist()) for image in between}) == 5


def test_pictures_and_masks_of_pil_are_those_of_their_tensors() -> None:
    images, mask = pictures(), half()
    shown = [Image.fromarray(image.numpy()) for image in images]
    white = Image.fromarray(mask[0].numpy()).convert("L")
    plain = pw.edit(DIT, images, [1, 2], method="inpaint", mask_image=mask, steps=3)
    assert torch.equal(pw.edit(DIT, shown, [1, 2], method="inpaint", mask_image=white, steps=3), plain)
    assert torch.equal(pw.edit(DIT, shown, [1, 2], method="inpaint", mask_image=mask[0], steps=3), plain)
    grey = Image.fromarray(images[0, :, :, 0].numpy())
    assert torch.equal(as_images(grey), images[:1, :, :, :1].expand(-1, -1, -1, 3))


@given(
    size=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    seed=st.integers(0, 99),
    padding=st.integers(0, 20),
)
def test_the_crop_holds_the_mask_and_lies_in_the_image(
    size: tuple[int, int], seed: int, padding: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(size, generator=random) < 0.05
    mask[tuple(int(torch.randint(side, (), generator=random)) for side in size)] = True
    top, left, height, width = crop_box(mask, padding, (16, 16))
    assert top >= 0 and left >= 0 and top + height <= size[0] and left + width <= size[1]
    assert mask[top : top + height, left : left + width].sum() == mask.sum()
    if height < min(size) and width < min(size):
        assert abs(height - width) <= 1  # as square as the images of the model


RGBA = Image.new("RGBA", (SIDE, SIDE))
BAD: list[tuple[dict[str, Any], str]] = [
    ({"method": "inpant"}, 'unknown method "inpant", did you mean "inpaint"?'),
    ({"image": pictures().float()}, r"image is torch.float32 \[2, 16, 16, 3\]; give uint8 \[B, H, W, 3\]"),
    ({"image": "photo.png"}, "image is neither uint8"),
    ({"image": []}, "image is neither uint8"),
    ({"image": RGBA}, "image has the mode RGBA; give one of 8 bits without alpha: convert to RGB"),
    ({"image": [Image.new("RGB", (16, 16)), Image.new("RGB", (16, 8))]}, r"several sizes \(16x16, 8x16\)"),
    ({"image": pictures(2, 16, 18)}, "size 16x18 does not divide into patches of 4: give multiples of 4"),
    ({"image": pictures(2, 3, 3)}, "size 3x3 does not divide into patches of 4"),
    ({"target": "dog"}, 'unknown class "dog"; the model has no class names, give numbers'),
    ({"target": 9}, "label 9 is outside 0 to 2"),
    ({"target": [0, 1, 2]}, "3 labels are given for 2 images; give one each, or one for all"),
    ({"strength": 1.5}, r"strength is 1.5; it must be 0 \(the input\) to 1 \(all new\)"),
    ({"steps": 0}, "steps"),
    ({"n_max": 3}, "n_max is given, which sdedit does not have; it goes with flowedit"),
    ({"mask_image": half()}, "mask_image is given, which sdedit does not have; it goes with inpaint"),
    (
        {"method": "flowedit", "strength": 0.5},
        "which flowedit does not have; it goes with sdedit and inpaint",
    ),
    ({"method": "flowedit", "n_max": 60}, r"0 <= n_min < n_max <= steps \(50\)"),
    ({"method": "inpaint"}, "mask_image is missing"),
    ({"method": "inpaint", "mask_image": half().float()}, r"mask_image is torch.float32 \[2, 16, 16\]"),
    ({"method": "inpaint", "mask_image": half(2, 8)}, r"mask_image is \[2, 8, 16\]; give \[2, 16, 16\]"),
    ({"method": "inpaint", "mask_image": Image.new("L", (8, 16))}, "mask_image is 16x8, the image 16x16"),
    ({"method": "inpaint", "mask_image": half() & False}, "black all over, nothing is to be repainted"),
    ({"method": "inpaint", "mask_image": half() | True}, "white all over, nothing is kept"),
    ({"method": "inpaint", "mask_image": half(), "padding_mask_crop": -1}, "padding_mask_crop is -1"),
    ({"method": "inpaint", "mask_image": half(), "resampling": 0}, "resampling is 0; give a whole number"),
    ({"method": "outpaint"}, r"margins is \[\]; give pixels to add left, top, right and bottom"),
    ({"method": "outpaint", "margins": (0, 0, 0, 0)}, "margins is"),
    ({"start_index": -1}, "start_index is -1; it must be at least 0"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_is_told_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(pw.UserError, match=message) as caught:
        pw.edit(DIT, **{"image": pictures(), "target": [1, 2], **change})
    assert "\n" not in str(caught.value)


def test_prompts_for_a_model_of_classes_and_the_other_way_are_told() -> None:
    with pytest.raises(pw.UserError, match="patch-dit draws from labels, not from captions"):
        pw.edit(DIT, pictures(), words(MODELS["mmdit"], 0, 1))
    with pytest.raises(pw.UserError, match="mmdit draws from prompts, not from labels"):
        pw.edit(MODELS["mmdit"], pictures(), [0, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "dnm"}, 'unknown method "dnm", did you mean "ddnm"?'),
        ({"output": "png"}, 'output is "png"; give uint8 or float'),
        ({"measurement": torch.rand(2, 1, 4, 4)}, r"the measurement is .*; give floats \[B, 3, H, W\]"),
        (
            {"measurement": torch.rand(2, 3, 5, 4), "operator": ops.AveragePool(2)},
            "size 10x8 does not divide",
        ),
        ({"operator": ops.Mask.random((8, 8), 0.5)}, "images of 4x4 do not fit the mask of 8x8"),
        ({"noise": -1.0}, "noise is -1.0"),
        ({"eta": 2.0}, "eta is 2.0"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"labels": [0]}, None),
        ({"labels": [0, 1, 2]}, "3 labels are given for 2 images"),
        ({"model": pw.accelerate(DIT), "method": "pigdm"}, "pigdm takes a gradient, which an accelerated"),
    ],
)
def test_restoration_tells_what_does_not_fit(change: dict[str, Any], message: str | None) -> None:
    plain = {"model": DIT, "measurement": torch.rand(2, 3, 4, 4), "operator": ops.AveragePool(4), "steps": 2}
    if message is None:
        pw.restore(**{**plain, **change})
        return
    with pytest.raises(pw.UserError, match=message):
        pw.restore(**{**plain, **change})


def test_interpolation_and_inversion_tell_what_does_not_fit() -> None:
    with pytest.raises(pw.UserError, match="count is 1; give a whole number of at least 2"):
        pw.interpolate(DIT, 0, 1, 1)
    with pytest.raises(pw.UserError, match="size 16x18 does not divide"):
        pw.invert(DIT, pictures(2, 16, 18), 0)
    with pytest.raises(pw.UserError, match=r"give floats \[2, 3, H, W\], one an image"):
        pw.sample(DIT, [0, 1], noise=torch.zeros(1, 3, 16, 16))
    with pytest.raises(pw.UserError, match="noise is given together with a size or a seed"):
        pw.sample(DIT, [0], noise=torch.zeros(1, 3, 16, 16), seed=1)


@FAMILIES
def test_weights_mode_and_input_stay_as_they_were(model: PixelDenoiser) -> None:
    images, before = pictures(), {name: value.clone() for name, value in model.state_dict().items()}
    kept = images.clone()
    pw.edit(model, images, words(model, 1, 2), method="inpaint", mask_image=half(), steps=2)
    assert torch.equal(images, kept) and not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_prompts_go_through_every_method(tmp_path: Path) -> None:
    note = TextNote("minilm", str(tiny_bert(tmp_path / "bert")))
    model = tiny(MMDiTConfig(16, 1, 2, PATCH, text_size=24, text_length=4), "text", text=note)
    images, red, blue = pictures(), "a red star", "a blue star"
    methods: list[dict[str, Any]] = [
        {"method": "sdedit"},
        {"method": "inpaint", "mask_image": half()},
        {"method": "outpaint", "margins": (0, 0, 4, 0)},
        {"method": "flowedit", "source": blue},
    ]
    for more in methods:
        edited = pw.edit(model, images, red, steps=3, guidance_scale=4.0, **more)
        each = pw.edit(model, images, as_condition([red, red], model), steps=3, guidance_scale=4.0, **more)
        assert torch.equal(edited, each)
        other = pw.edit(model, images, blue, steps=3, guidance_scale=4.0, **more)
        assert not torch.equal(edited, other), more
    y = ops.Grey().A(torch.rand(2, 3, SIDE, SIDE))
    for method in pw.editing.RESTORATION:
        restored = [pw.restore(model, y, ops.Grey(), method, text, 3) for text in ([red, blue], red)]
        assert torch.equal(restored[0][0], restored[1][0]) and not torch.equal(restored[0], restored[1])
    assert not torch.equal(pw.invert(model, images, red, 3), pw.invert(model, images, blue, 3))
    assert len(pw.interpolate(model, red, blue, 3)) == 3
