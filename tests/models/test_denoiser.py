"""The denoiser's parts and their places."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import pixelwright as pw
from pixelwright.models.backbones import PatchDiTConfig
from pixelwright.models.config import DenoiserConfig, Placement
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.detailers.dit_decoder import DiTDecoderConfig
from pixelwright.models.detailers.linear import LinearConfig
from pixelwright.models.detailers.mlp import MLPConfig
from pixelwright.models.detailers.nerf import NerfConfig
from pixelwright.models.detailers.patch_attention import PatchAttentionConfig
from pixelwright.models.detailers.pit import PiTConfig
from pixelwright.models.detailers.pixel_mlp import PixelMLPConfig
from pixelwright.models.detailers.unet import UNetConfig
from pixelwright.models.layers import patchify, rope_2d, rotate, unpatchify

BACKBONE = PatchDiTConfig(hidden_size=16, depth=2, num_heads=2, patch_size=4, num_classes=3)
DETAILERS = [
    UNetConfig((8, 12)),
    PiTConfig(1, 8, 16, 2),
    PiTConfig(1, 8, 16, 2, True),
    LinearConfig(),
    NerfConfig(2, 6),
    NerfConfig(1, 6, mlp_ratio=1, positions="rotary", unit_w2=False, final_norm=False),
    PixelMLPConfig(2, 6),
    MLPConfig(12),
    DiTDecoderConfig(1, 2),
    PatchAttentionConfig(2, 8, 2),
    LinearConfig("layer"),
    UNetConfig((8, 16), whole_image=True),
    PiTConfig(1, 8, 16, 2, modulation="patch", attention="none"),
    PiTConfig(1, 8, 16, 2, post_modulation=True, attention="pixels"),
]


def randomised(config: DenoiserConfig) -> PixelDenoiser:
    """A model without zeros, so that every path matters."""
    torch.manual_seed(0)
    model = PixelDenoiser(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model.eval()


def inputs(batch: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 8, 12, generator=g), torch.rand(batch, generator=g), torch.arange(batch) % 4


@pytest.mark.parametrize("detailer", DETAILERS, ids=str)
@pytest.mark.parametrize("placement", get_args(Placement))
def test_an_image_does_not_depend_on_its_batch(detailer: object, placement: str) -> None:
    model = randomised(DenoiserConfig(BACKBONE, detailer, placement=placement))
    x, t, y = inputs()
    with torch.no_grad():
        together = model(x, t, y)
        alone = torch.cat([model(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("detailer", DETAILERS, ids=str)
@pytest.mark.parametrize("placement", get_args(Placement))
def test_every_parameter_has_a_part_in_the_velocity(detailer: object, placement: str) -> None:
    model = randomised(DenoiserConfig(BACKBONE, detailer, placement=placement))
    model(*inputs()).square().sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert idle == []


def test_the_three_placements_differ_as_described() -> None:
    def parts(placement: str) -> tuple[str, str | None]:
        model = PixelDenoiser(DenoiserConfig(BACKBONE, UNetConfig((8,)), placement=placement))
        return type(model.detailer).__name__, model.middle and type(model.middle).__name__

    assert parts("post-hoc") == ("UNet", None)
    assert parts("intermediate") == ("Linear", "UNet")
    assert parts("hybrid") == ("UNet", "UNet")


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 2, 4]), st.integers(1, 3))
def test_patches_go_back_to_the_image(rows: int, columns: int, patch: int, batch: int) -> None:
    x = torch.randn(batch, 3, rows * patch, columns * patch)
    patches = patchify(x, patch)
    assert torch.equal(unpatchify(patches, (rows, columns), patch), x)
    last = x[-1, :, -patch:, -patch:].flatten()  # channel, then row, then column
    assert torch.equal(patches[-1, -1], last)


@settings(max_examples=20)
@given(st.integers(1, 5), st.integers(1, 5))
def test_rotation_keeps_lengths_and_ends_at_16(rows: int, columns: int) -> None:
    cos, sin = rope_2d((rows, columns), 8, torch.device("cpu"))
    q = torch.randn(1, rows * columns, 2, 8)
    torch.testing.assert_close(rotate(q, (cos, sin)).norm(dim=-1), q.norm(dim=-1))
    x, y = 16.0 * (columns > 1), 16.0 * (rows > 1)
    expected = torch.tensor([x, y]).sin()  # first pairs: frequency 1
    torch.testing.assert_close(sin[-1, :2], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prediction", ["velocity", "x", "noise"])
def test_the_model_gives_a_velocity_whatever_it_predicts(prediction: str) -> None:
    """The same network output stands for three things; each must become the velocity that goes with it."""
    plain = randomised(DenoiserConfig(BACKBONE, UNetConfig((8,))))
    model = PixelDenoiser(dataclasses.replace(plain.config, prediction=prediction)).eval()
    model.load_state_dict(plain.state_dict())
    x, _, y = inputs()
    t = torch.tensor([0.1, 0.4, 0.6, 0.9])
    with torch.no_grad():
        output, velocity = plain(x, t, y), model(x, t, y)
    rest = {"velocity": output, "x": x + (1 - t)[:, None, None, None] * velocity}
    rest["noise"] = x - t[:, None, None, None] * velocity
    torch.testing.assert_close(rest[prediction], output, rtol=1e-4, atol=1e-5)


def test_a_new_model_predicts_zero_velocity_where_the_paper_starts_from_zero() -> None:
    model = pw.create("pixeldit-ti-4", num_classes=3)
    assert model(torch.randn(1, 3, 8, 8), torch.tensor([0.5]), torch.tensor([0])).abs().max() == 0


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 3, 10, 8), "10x8.*multiples of 4"), ((1, 1, 8, 8), r"\[1, 1, 8, 8\]"), ((3, 8, 8), r"\[3, 8, 8\]")],
)
def test_wrong_shapes_are_named(shape: tuple[int, ...], message: str) -> None:
    model = PixelDenoiser(DenoiserConfig(BACKBONE, LinearConfig()))
    with pytest.raises(pw.UserError, match=message):
        model(torch.zeros(shape), torch.zeros(1), torch.zeros(1, dtype=torch.long))


def test_impossible_configs_are_refused() -> None:
    with pytest.raises(pw.UserError, match="3 levels"):
        DenoiserConfig(BACKBONE, UNetConfig((8, 8, 8)))
    with pytest.raises(pw.UserError, match="multiple of 4"):
        PatchDiTConfig(18, 2, 3, 4, 3)
    with pytest.raises(pw.UserError, match="at least 1"):
        PatchDiTConfig(16, 0, 2, 4, 3)
    with pytest.raises(pw.UserError, match="post-hoc"):
        DenoiserConfig(BACKBONE, LinearConfig(), placement="posthoc")  # type: ignore[arg-type]


# --- nothing is kept between calls -------------------------------------------------------------------------
@pytest.mark.parametrize("detailer", DETAILERS, ids=str)
def test_a_forward_in_inference_mode_leaves_training_as_it_was(detailer: object) -> None:
    model = randomised(DenoiserConfig(BACKBONE, detailer))
    with torch.inference_mode():
        model(*inputs())
    model(*inputs()).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("detailer", DETAILERS, ids=str)
def test_a_forward_of_fake_tensors_leaves_real_ones_real(detailer: object) -> None:
    model = randomised(DenoiserConfig(BACKBONE, detailer))
    before = model(*inputs())
    with FakeTensorMode(allow_non_fake_inputs=True):
        model(*inputs())
    after = model(*inputs())
    assert type(after) is torch.Tensor and torch.equal(after, before)


@pytest.mark.parametrize("detailer", DETAILERS, ids=str)
def test_no_copy_of_a_weight_is_kept_for_the_backward_pass(detailer: object) -> None:
    """Weights are stored as they are multiplied: autograd keeps the parameters themselves."""
    model = randomised(DenoiserConfig(BACKBONE, detailer))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {tuple(sorted(p.shape)) for p in model.parameters() if p.ndim > 1}
    copies: list[torch.Size] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tuple(sorted(tensor.shape)) in shapes and tensor.untyped_storage().data_ptr() not in own:
            copies.append(tensor.shape)
        return tensor

    x, t, y = inputs(3)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x, t, y)
    assert copies == []
