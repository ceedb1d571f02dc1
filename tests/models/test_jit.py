"""JiT against the recordings of its public code, and what its paper says of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pixelwright as pw
from pixelwright.diffusion import flow
from pixelwright.diffusion.guidance import IntervalCFG
from pixelwright.diffusion.solvers import solve, timesteps
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.folder import skeleton
from pixelwright.models.layers import RMSNorm, has_dropout
from pixelwright.models.prediction import to_velocity
from pixelwright.models.presets import PRESETS, preset
from tests.recordings import recording, weights

#           all, of which the table of positions is fixed, and trained: as counted from the public class
COUNTS = {
    "jit-b-16": (131_320_320, 131_123_712),
    "jit-l-16": (459_139_808, 458_877_664),
    "jit-h-16": (952_842_048, 952_514_368),
    "jit-g-16": (2_007_555_984, 2_007_130_000),
    "jit-b-32": (133_387_008, 133_190_400),
    "jit-l-32": (461_796_320, 461_534_176),
    "jit-h-32": (956_383_296, 956_055_616),
    "jit-g-32": (2_011_981_968, 2_011_555_984),
    "jit-b-64": (141_653_760, 141_457_152),
}


def recorded(name: str, dtype: torch.dtype = torch.float32) -> tuple[PixelDenoiser, dict[str, Tensor]]:
    """The network of a recording, and its inputs and outputs."""
    tensors, metadata = recording(name)
    config = metadata["config"]
    start = {"in_context_start": config["in_context_start"]} if config["in_context_len"] else {}
    model = pw.hub.from_public({key: value.to(dtype) for key, value in weights(name).items()}, **start)
    return model, {key: value for key, value in tensors.items() if not key.startswith("weights.")}


def error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference as a share of the standard deviation."""
    return float((ours - theirs).abs().max() / theirs.std())


def outputs(model: PixelDenoiser) -> list[Tensor]:
    """What the network itself gives, which is x̂, in every call to come."""
    found: list[Tensor] = []
    model.detailer.register_forward_hook(lambda module, inputs, output: found.append(output))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["jit", "jit_nocontext"])
def test_the_network_is_the_recorded_one(name: str, dtype: torch.dtype) -> None:
    model, tensors = recorded(name, dtype)
    x, t, found = tensors["input.x"].to(dtype), tensors["input.t"], outputs(model)
    with torch.no_grad():
        velocity, taps = model(x, t, tensors["input.y"], taps=(2, 3))
        embedded = model.backbone.embed(x, t, tensors["input.y"]).tokens
    assert error(found[0], tensors["output"]) < 1e-5
    assert error(velocity, to_velocity(tensors["output"].to(dtype), x, t, "x")) < 1e-5
    assert error(taps[2], tensors["block_2_output"]) < 1e-5
    if "block_3_output" in tensors:  # there with the in-context tokens in front
        assert error(taps[3], tensors["block_3_output"][:, 5:]) < 1e-5
    positions = weights(name)["pos_embed"]
    assert error(embedded, tensors["patch_embedding"] + positions) < 1e-5


@pytest.mark.parametrize("name", ["jit", "jit_nocontext", "jit_train"])
def test_files_come_back_bit_for_bit(name: str) -> None:
    model, _ = recorded(name)
    found, expected = pw.hub.to_public(model), weights(name)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert model.config.image_size == (32, 32)


def test_the_training_step_is_the_recorded_one() -> None:
    model, tensors = recorded("jit_train")
    _, metadata = recording("jit_train")
    trainer = metadata["trainer"]
    x, noise = tensors["input.x"], tensors["input.noise"]
    t = torch.sigmoid(tensors["input.normal_t"] * trainer["P_std"] + trainer["P_mean"])
    assert torch.equal(tensors["output.labels"] == 10, tensors["input.drop_uniform"] < 0.1)
    torch.testing.assert_close(t, tensors["output.t"], rtol=0, atol=1e-7)
    assert t.max() > 0.95  # where both sides of the loss are clamped
    model.train()
    loss = flow.loss(model, x, t, noise, tensors["output.labels"]).mean()
    assert abs(float(loss.detach() - tensors["output.loss"])) < 1e-6 * float(tensors["output.loss"])
    target = model.velocity_target(x, noise, flow.interpolate(x, noise, t), t)
    assert error(target, tensors["output.v_target"]) < 1e-5
    loss.backward()
    gradients = pw.hub.to_public(with_gradients(model))
    wanted = {key[5:]: value for key, value in tensors.items() if key.startswith("grad.")}
    assert gradients.keys() - {"pos_embed"} == wanted.keys()
    for key, value in wanted.items():
        assert float((gradients[key] - value).norm() / value.norm()) < 1e-5, key


def with_gradients(model: PixelDenoiser) -> PixelDenoiser:
    """A model whose weights are the gradients of another."""
    copy = skeleton(model.config)
    copy.load_state_dict({name: p.grad for name, p in model.named_parameters()}, assign=True)
    return copy


@pytest.mark.parametrize("number", range(9))
def test_trajectories_are_the_recorded_ones(number: int) -> None:
    tensors, metadata = recording("jit_samplers")
    case = metadata["cases"][number]

    def network(labels: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The analytic one of the recordings, as a velocity."""
        w, b = (tensors[key][labels][:, None, None, None] for key in ("net.w", "net.b"))
        output = (w * x + b) * torch.cos(3 * t) - 0.5 * x * t
        return to_velocity(output, x, t.expand(len(x)), "x", case["t_eps"])

    labels = tensors["labels"]
    null = torch.full_like(labels, len(tensors["net.w"]) - 1)
    guidance = IntervalCFG(case["guidance"], tuple(case["interval"]), "zero")
    velocity = guidance(lambda x, t: network(labels, x, t), lambda x, t: network(null, x, t))
    states: list[Tensor] = []
    # The recorded grid: in float64 its 0.3 is above 0.3, and guided.
    noise, times = case["noise_scale"] * tensors["noise"], tensors[f"{case['key']}.timesteps"]
    x = solve(velocity, noise, times, case["sampler"], lambda step: states.append(step.x))
    expected = tensors[f"{case['key']}.trajectory"]
    torch.testing.assert_close(times, timesteps(case["num_steps"]), rtol=0, atol=1e-15)
    assert (torch.stack([*states, x]) - expected).abs().max() < 1e-10 * expected.abs().max()


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_to_the_digit(name: str) -> None:
    everything, trained = COUNTS[name]
    config = PRESETS[name]
    assert sum(p.numel() for p in skeleton(config).parameters()) == trained
    assert config.image_size is not None
    patches = (config.image_size[0] // config.patch_size) ** 2
    assert trained + patches * config.backbone.hidden_size == everything
    assert config.noise_scale == config.image_size[0] / 256


def test_initial_weights() -> None:
    model = tiny(depth=1)
    for name, module in model.named_modules():
        zero = name.endswith(("adaLN", "detailer.out"))
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert module.bias is None or not module.bias.any(), name
            fan = module.weight.flatten(1).shape
            std = 0.02 if "time_embedder" in name else 0 if zero else (2 / sum(fan)) ** 0.5
            assert abs(float(module.weight.detach().std()) - std) <= 0.12 * std, name
        elif isinstance(module, RMSNorm):
            assert bool((module.weight == 1).all())
    for table in (model.backbone.class_embedder.table.weight, model.backbone.in_context.positions):
        assert abs(float(table.detach().std()) - 0.02) < 0.003


def test_dropout_is_in_the_middle_half() -> None:
    model = tiny(depth=9, dropout=0.1)
    assert [has_dropout(block) for block in model.backbone.blocks] == [False] * 2 + [True] * 4 + [False] * 3
    x, t, labels = torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([0, 1])
    for part in model.parameters():
        nn.init.normal_(part, std=0.1)
    assert torch.equal(model.eval()(x, t, labels), model(x, t, labels))
    assert not torch.equal(model.train()(x, t, labels), model(x, t, labels))


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout"])
def test_each_dropout_acts(rate: str) -> None:
    model = tiny(depth=4, **{rate: 0.5}).train()
    for part in model.parameters():
        nn.init.normal_(part, std=0.2)
    x, t, labels = torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([0, 1])
    assert not torch.equal(model(x, t, labels), model(x, t, labels))


def tiny(**changes: Any) -> PixelDenoiser:
    settings = {"hidden_size": 48, "num_heads": 4, "in_context_start": 0, "image_size": (8, 8), **changes}
    return pw.create("jit-n-4", num_classes=3, **settings)


@pytest.mark.parametrize("detailer", ["unet", "pit", "linear", "nerf"])
@pytest.mark.parametrize("backbone", ["dip-n-4", "jit-n-4"])
def test_in_context_tokens_go_with_every_backbone_and_detailer(backbone: str, detailer: str) -> None:
    parts = {
        "unet": {"type": "unet", "channels": [8]},
        "pit": {"type": "pit", "depth": 1, "pixel_size": 8, "attention_size": 24, "num_heads": 2},
        "nerf": {"type": "nerf", "depth": 1, "pixel_size": 8},
    }
    part = parts.get(detailer, {"type": detailer})
    sizes = {"depth": 3, "hidden_size": 24, "num_heads": 2, "detailer": part, "prediction": "velocity"}
    context = {"in_context_length": 5, "in_context_start": 1}
    model = pw.create(backbone, num_classes=3, **sizes, **context)
    plain = pw.create(backbone, num_classes=3, **sizes, in_context_length=0, in_context_start=0)
    for module in (model, plain):
        torch.manual_seed(0)
        for p in module.parameters():
            nn.init.normal_(p, std=0.2)
    left = plain.load_state_dict(model.state_dict(), strict=False)
    assert left.unexpected_keys == ["backbone.in_context.positions"]
    x, t, labels = torch.randn(2, 3, 8, 12), torch.rand(2), torch.tensor([0, 3])
    v, taps = model(x, t, labels, taps=(1, 3))
    without, plain_taps = plain(x, t, labels, taps=(1, 3))
    assert v.shape == x.shape and taps[3].shape == (2, 6, 24)
    assert torch.equal(taps[1], plain_taps[1])  # they come in after the first block
    assert not torch.allclose(taps[3], plain_taps[3]) and not torch.allclose(v, without)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_context_start": 9}, "in_context_start is 9: give a block from 0 to 1"),
        ({"in_context_length": 0, "in_context_start": 1}, "give in_context_length"),
        ({"prediction": "velocity", "t_eps": 0.1}, "t_eps is 0.1"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(pw.UserError, match=message):
        tiny(depth=2, **changes)


def test_the_least_denominator_and_the_noise_are_settings() -> None:
    config = dataclasses.replace(preset("jit-n-4", 3), t_eps=0.2, noise_scale=3.0)
    model = skeleton(config)
    x, t = torch.ones(1, 3, 4, 4), torch.tensor([0.95])
    assert torch.allclose(model.velocity_target(x, 0 * x, 0 * x, t), x / 0.2)
    _, noise, _ = flow.draw(flow.FlowConfig(), torch.zeros(4, 3, 32, 32), torch.zeros(4).long(), config, 0, 0)
    assert abs(float(noise.std()) - 3) < 0.1
