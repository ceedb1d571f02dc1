"""Published key names in and out."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import pixelwright as pw
from pixelwright.models.backbones import PatchDiTConfig
from pixelwright.models.config import DenoiserConfig
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.detailers.linear import LinearConfig
from pixelwright.models.detailers.pit import PiTConfig
from pixelwright.models.detailers.unet import UNetConfig
from tests.recordings import NETWORKS, weights

MODULATION = "pixel_blocks.1.adaLN_modulation.0.weight"

BACKBONE = PatchDiTConfig(hidden_size=24, depth=2, num_heads=2, patch_size=4, num_classes=5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("prefix", ["", "denoiser.", "ema_denoiser.", "core."])
def test_the_round_trip_is_exact(name: str, prefix: str) -> None:
    public = weights(name)
    model = pw.hub.from_public({prefix + key: value for key, value in public.items()})
    back = pw.hub.to_public(model)
    assert back.keys() == public.keys()
    assert all(torch.equal(back[key], value) for key, value in public.items())


@pytest.mark.parametrize(
    ("patch", "detailer"),
    [
        (4, PiTConfig(3, 4, 16, 2)),
        (4, PiTConfig(1, 8, 24, 3, post_modulation=True)),
        (16, UNetConfig((8, 12, 16, 20))),
        (32, UNetConfig((8, 12, 16, 20))),
    ],
    ids=str,
)
def test_the_architecture_is_read_from_names_and_shapes(patch: int, detailer: object) -> None:
    backbone = PatchDiTConfig(24, 2, 2, patch, 5)
    model = PixelDenoiser(DenoiserConfig(backbone, detailer)).to(torch.bfloat16)
    again = pw.hub.from_public(pw.hub.to_public(model))
    assert (again.config.backbone, again.config.detailer) == (backbone, detailer)
    ours, theirs = model.state_dict(), again.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) and theirs[key].dtype == torch.bfloat16 for key in ours)


def test_the_ema_weights_are_preferred_and_the_projector_left_out() -> None:
    public = weights("dip")
    file = {"denoiser." + key: torch.zeros_like(value) for key, value in public.items()}
    file |= {"ema_denoiser." + key: value for key, value in public.items()}
    file |= {"diffusion_trainer.proj.0.0.weight": torch.zeros(2)}
    assert torch.equal(
        pw.hub.to_public(pw.hub.from_public(file))["s_embedder.proj.bias"], public["s_embedder.proj.bias"]
    )


def test_the_model_does_not_share_memory_with_the_file() -> None:
    public = weights("dip")
    model = pw.hub.from_public(public)
    with torch.no_grad():
        model.backbone.patch_embedder.bias.add_(1)
    assert torch.equal(
        pw.hub.from_public(public).backbone.patch_embedder.bias, public["s_embedder.proj.bias"]
    )


def without(key: str) -> dict[str, torch.Tensor]:
    return {k: v for k, v in weights("pixeldit_c2i").items() if not k.startswith(key)}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "of no known network"),
        ({"a.b": torch.zeros(1)}, "a.b"),
        (weights("pixeldit_c2i") | weights("dip"), "both PixelDiT and DiP"),
        (without("patch_blocks.1"), "patch_blocks.1"),
        (without("s_embedder"), "s_embedder.proj.weight"),
        (without("pixel_blocks.1.mlp.fc1.bias"), 'missing "pixel_blocks.1.mlp.fc1.bias"'),
        (
            weights("pixeldit_c2i") | {"final_layer.linear.bais": torch.zeros(3)},
            'did you mean|unexpected "final_layer',
        ),
        (weights("pixeldit_c2i") | {"final_layer.linear.bias": torch.zeros(4)}, r"\[4\], expected \[3\]"),
        (weights("pixeldit_c2i") | {"final_layer.linear.bias": torch.zeros(3, dtype=torch.int8)}, "int8"),
        (weights("pixeldit_c2i") | {"y_pos_embedding": torch.zeros(1)}, "q_norm_x"),
        (
            weights("pixeldit_c2i") | {MODULATION: weights("pixeldit_c2i_postmod")[MODULATION]},
            r"\[2048, 48\], expected \[3072, 48\]",
        ),
        (
            {f"denoiser.{k}": v for k, v in weights("dip").items()} | {"optimizer.x": torch.zeros(1)},
            "optimizer.x",
        ),
    ],
)  # fmt: skip
def test_what_is_no_published_network_is_refused(state: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(pw.UserError, match=message):
        pw.hub.from_public(state)


IN_CONTEXT = {"in_context_length": 2}


@pytest.mark.parametrize(
    "change",
    [
        {"placement": "hybrid"},
        {"detailer": LinearConfig()},
        {"detailer": UNetConfig((8,), whole_image=True)},
        {"prediction": "x"},
        {"prediction": "asymmetric", "rank": 2},
        {"backbone": dataclasses.replace(BACKBONE, **IN_CONTEXT)},
        {"backbone": dataclasses.replace(BACKBONE, vanilla=True)},
    ],
)
def test_models_without_a_published_layout_say_so(change: dict) -> None:
    model = PixelDenoiser(DenoiserConfig(**{"backbone": BACKBONE, "detailer": UNetConfig((8,)), **change}))
    with pytest.raises(pw.UserError, match="no published layout"):
        pw.hub.to_public(model)
