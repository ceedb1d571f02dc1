"""PixelDiT2 against the recordings of its public code: network, training step, trajectories, files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import pixelwright as pw
from pixelwright.diffusion import flow
from pixelwright.diffusion.guidance import Branch, IntervalCFG
from pixelwright.diffusion.solvers import solve
from pixelwright.models.conditions import null_like
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.folder import skeleton
from pixelwright.models.prediction import to_velocity
from pixelwright.models.presets import PRESETS, preset
from pixelwright.training.objectives.repa import Projector, alignment_loss
from tests.hub.published import prefixed
from tests.models.dinov3 import dinov3_from_timm
from tests.models.test_jit import error, outputs, with_gradients
from tests.recordings import recording, weights

COUNTS = {  # of what is trained, as counted from the public class
    "pixeldit2-b-16": 143_729_024,
    "pixeldit2-l-16": 480_843_648,
    "pixeldit2-h-16": 986_193_568,
    "pixeldit2-h-16-512": 988_036_768,
    "pixeldit2-h-32": 992_094_112,
    "pixeldit2-g-32": 2_071_297_232,
}
ENCODER = "dino_conditioner.encoder."


def recorded(name: str) -> tuple[PixelDenoiser, dict[str, Tensor]]:
    """The network of a recording with its encoder, and its inputs and outputs."""
    tensors, metadata = recording(name)
    public, config = weights(name), metadata["config"]
    told = {"in_context_start": config["in_context_start"], "single_silu": config["single_silu_cond"]}
    model = pw.hub.from_public(public, **told)
    timm = {key.removeprefix(ENCODER): value for key, value in public.items() if key.startswith(ENCODER)}
    model.backbone.encoder.model = dinov3_from_timm(timm, metadata["encoder"]["num_heads"])
    return model, {key: value for key, value in tensors.items() if not key.startswith("weights.")}


def test_the_network_is_the_recorded_one() -> None:
    model, tensors = recorded("pixeldit2")
    x, t, y, found = tensors["input.x"], tensors["input.t"], tensors["input.y"], outputs(model)
    without = model.config.num_classes + 1
    with torch.no_grad():
        features = model.backbone.encoder(x, (x.shape[2] // 16, x.shape[3] // 16))
        _, taps = model(x, t, y, taps=(2, 3))
        model(x, t, y + without)
        model(x, t, y + without * tensors["input.skip_mask"])
    assert error(features, tensors["encoder_features"][:, 5:]) < 1e-5
    for output, name in zip(found, ("output", "output_skip_grounding", "output_masked"), strict=True):
        assert error(output, tensors[name]) < 1e-5, name
    assert error(taps[2], tensors["block_2_output"]) < 1e-5
    assert error(taps[3], tensors["block_3_output"][:, -taps[3].shape[1] :]) < 1e-5


def test_the_training_step_is_the_recorded_one() -> None:
    model, tensors = recorded("pixeldit2_train")
    trainer = recording("pixeldit2_train")[1]["trainer"]
    x, noise = tensors["input.x"], tensors["input.noise"]
    t = torch.sigmoid(tensors["input.normal_t"] * trainer["p_std"] + trainer["p_mean"])
    labels = torch.where(
        tensors["input.drop_uniform_class"] < trainer["null_condition_p"], 10, tensors["input.y"]
    )
    dropped = tensors["input.drop_uniform_grounding"] < trainer["grounding_drop_p"]
    assert torch.equal(labels, tensors["output.labels"])
    assert torch.equal(dropped, tensors["output.grounding_drop"])
    x_t = flow.interpolate(x, noise, t)
    velocity, taps = model.train()(x_t, t, labels + 11 * dropped, taps=(trainer["repa_align_layer"],))
    fm = flow.velocity_loss(velocity, model.velocity_target(x, noise, x_t, t)).mean()
    projector = Projector(32, 20, trainer["proj_hidden_dim"])
    projector.load_state_dict({k[5:]: v for k, v in tensors.items() if k.startswith("proj.")})
    cosine = alignment_loss(projector(taps[2]), tensors["input.teacher"], (4, 4)).mean()
    loss = fm + trainer["repa_weight"] * cosine
    for value, name in ((fm, "fm_loss"), (cosine, "cos_loss"), (loss, "loss")):
        wanted = float(tensors[f"output.{name}"])
        assert abs(float(value.detach()) - wanted) < 1e-6 * wanted, name
    loss.backward()
    gradients = pw.hub.to_public(with_gradients(model))
    wanted_gradients = {key[5:]: value for key, value in tensors.items() if key.startswith("grad.")}
    assert gradients.keys() == wanted_gradients.keys()
    for key, value in wanted_gradients.items():
        assert float((gradients[key] - value).norm() / value.norm()) < 1e-5, key
    for key, parameter in projector.named_parameters():
        value = tensors[f"grad_proj.{key}"]
        assert parameter.grad is not None
        assert float((parameter.grad - value).norm() / value.norm()) < 1e-5, key


@pytest.mark.parametrize("number", range(5))
def test_trajectories_are_the_recorded_ones(number: int) -> None:
    """The null branch has neither label nor grounding."""
    tensors, metadata = recording("pixeldit2_samplers")
    case, classes = metadata["cases"][number], len(tensors["net.w"]) - 1

    def network(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        w, b = (tensors[key][labels % (classes + 1)][:, None, None, None] for key in ("net.w", "net.b"))
        output = (w * x + b) * torch.cos(3 * t)[:, None, None, None] - 0.5 * x * t[:, None, None, None]
        grounding = 0.25 * x.mean((1, 2, 3), keepdim=True)
        output = output + torch.where((labels > classes)[:, None, None, None], 0, grounding)
        return to_velocity(output, x, t, "x", case["t_eps"])

    config = preset("pixeldit2-b-16", num_classes=classes)
    null = null_like(tensors["labels"], config.null_label)
    assert null.tolist() == [2 * classes + 1] * len(null)
    guidance = IntervalCFG(case["guidance"], tuple(case["interval"]), "zero")
    velocity = guidance(Branch(network, tensors["labels"]), Branch(network, null))
    states: list[Tensor] = []
    noise, times = case["noise_scale"] * tensors["noise"], tensors[f"{case['key']}.timesteps"]
    x = solve(velocity, noise, times, case["sampler"], lambda step: states.append(step.x))
    expected = tensors[f"{case['key']}.trajectory"]
    assert (torch.stack([*states, x]) - expected).abs().max() < 1e-10 * expected.abs().max()


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_to_the_digit(name: str) -> None:
    assert sum(p.numel() for p in skeleton(PRESETS[name]).parameters()) == COUNTS[name]


@pytest.mark.parametrize("form", ["lightning", "safetensors"])
def test_files_come_back_bit_for_bit(form: str, tmp_path: Path) -> None:
    """Published ones hold no encoder; one that is there is not part of the network's weights."""
    public = {key: value for key, value in weights("pixeldit2").items() if not key.startswith(ENCODER)}
    if form == "lightning":
        path = tmp_path / "x.ckpt"
        torch.save({"state_dict": prefixed("ema_denoiser.", weights("pixeldit2"))}, path)
    else:
        save_file(public, path := tmp_path / "x.safetensors")
    model = pw.load(path, in_context_start=2, encoder="dinov3")
    found = pw.hub.to_public(model)
    assert found.keys() == public.keys() and all(torch.equal(found[key], public[key]) for key in public)
    pw.save(model, tmp_path / "model")
    assert pw.load(tmp_path / "model").config == model.config


def test_a_missing_encoder_is_one_line() -> None:
    model = skeleton(
        preset(
            "pixeldit2-b-16",
            3,
            depth=1,
            hidden_size=16,
            num_heads=2,
            grounding_heads=2,
            in_context_start=0,
            encoder="no/such/folder",
        )
    ).to_empty(device="cpu")
    with pytest.raises(pw.UserError, match="encoder no/such/folder cannot be read") as caught:
        model(torch.zeros(1, 3, 32, 32), torch.zeros(1), torch.tensor([0]))
    assert "\n" not in str(caught.value)
    model, _ = recorded("pixeldit2")
    model.backbone.encoder.size = 16
    with pytest.raises(pw.UserError, match="has tokens of 32 channels, the model needs 16"):
        model(torch.zeros(1, 3, 32, 32), torch.zeros(1), torch.tensor([0]))


def test_grounding_is_dropped_as_the_settings_say() -> None:
    config, labels = preset("pixeldit2-b-16", 10), torch.zeros(8000, dtype=torch.long)
    images = torch.zeros(8000, 1, 1, 1)
    settings = flow.FlowConfig(null_probability=0.2, ungrounded_probability=0.3)
    drawn = flow.draw(settings, images, labels, config, 0, 0)[2]
    null, ungrounded = drawn % 11 == 10, drawn > 10
    for found, share in ((null, 0.2), (ungrounded, 0.3), (null & ungrounded, 0.06)):
        assert abs(float(found.float().mean()) - share) < 0.02
    coupled = flow.FlowConfig(null_probability=0, ungrounded_probability=0, null_ungrounded_probability=0.25)
    assert set(flow.draw(coupled, images, labels, config, 0, 0)[2].tolist()) == {0, 21}
    usual = flow.draw(flow.FlowConfig(), images, labels, config, 0, 0)[2]
    assert abs(float((usual > 10).float().mean()) - 0.1) < 0.02


def test_initial_weights() -> None:
    sizes = {"depth": 2, "hidden_size": 48, "num_heads": 4, "grounding_heads": 4, "in_context_start": 1}
    model = pw.create("pixeldit2-b-16", 3, **sizes)
    blocks = (*model.backbone.blocks, *model.backbone.grounding.blocks)
    for layer in (*(block.adaLN for block in blocks), model.detailer.adaLN, model.detailer.out):
        assert isinstance(layer, nn.Linear) and not layer.weight.any() and not layer.bias.any()
    for embedder in (model.backbone.time_embedder, model.backbone.grounding.time_embedder):
        assert abs(float(embedder.mlp[2].weight.detach().std()) - 0.02) < 0.003
