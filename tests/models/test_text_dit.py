"""Text as extra keys: the recorded networks of PixNerd, DeCo and PixelGen for text, and what learns."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import pixelwright as pw
from pixelwright.diffusion import flow
from pixelwright.hub.presets import with_notes
from pixelwright.models.config import TextNote
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.detailers.linear import LinearConfig
from pixelwright.models.detailers.nerf import NerfConfig
from pixelwright.models.detailers.pixel_mlp import PixelMLPConfig
from pixelwright.models.folder import skeleton
from pixelwright.models.layers import positions_2d
from pixelwright.models.presets import preset
from tests.recordings import recording, weights

RECORDED = {
    "pixnerd_t2i": {"positions": "rotary"},
    "pixnerd_t2i_heavydecoder": {},
    "deco_t2i": {},
    "pixelgen_t2i": {},
}
TINY = {"depth": 2, "hidden_size": 24, "num_heads": 2, "text_size": 6, "text_length": 5, "patch_size": 4}
SMALL = {
    "pixnerd-t2i": NerfConfig(1, 6, 2, "rotary", False, False),
    "deco-t2i": PixelMLPConfig(2, 6, "rotary"),
    "pixelgen-t2i": LinearConfig("layer", modulation=False),
}


def tiny(name: str, **more: Any) -> PixelDenoiser:
    """A small network of the family."""
    torch.manual_seed(0)
    return pw.create(name, **({"detailer": SMALL[name]} | TINY | more))


def captions(count: int) -> pw.TextCondition:
    return pw.TextCondition(torch.randn(count, 5, 6, generator=torch.Generator().manual_seed(0)))


def close(found: Tensor, recorded: Tensor) -> bool:
    return float((found - recorded).abs().max() / recorded.std()) < 1e-5


@pytest.mark.parametrize("name", RECORDED)
@torch.no_grad()
def test_the_published_networks(name: str) -> None:
    tensors, _ = recording(name)
    public = weights(name)
    model = pw.hub.from_public(public, **RECORDED[name])
    x, t, features = (tensors[f"input.{key}"] for key in "xty")
    state = model.backbone.embed(x, t, features)
    assert close(model.backbone.embed_text(features, state.condition), tensors["text_tokens"])
    output, tokens = model(x, t, pw.TextCondition(features), (2,))
    output = model.denoised(output, x, t) if name == "pixelgen_t2i" else output
    assert close(output, tensors["output"])
    if "block_2_output" in tensors:
        assert close(tokens[2], tensors["block_2_output"])


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("name", RECORDED)
def test_weights_go_in_and_out_bit_for_bit(name: str, suffix: str, tmp_path: Path) -> None:
    public, told = weights(name), RECORDED[name]
    save_file(public, tmp_path / "theirs.safetensors")
    pw.hub.convert(tmp_path / "theirs.safetensors", tmp_path / "ours", settings=told)
    pw.hub.convert(tmp_path / "ours", tmp_path / f"again{suffix}", to="public")
    again = tmp_path / f"again{suffix}"
    if suffix == ".safetensors":
        found = load_file(again)
    else:
        content = torch.load(again, weights_only=True)["state_dict"]
        found = {key.removeprefix("ema_denoiser."): value for key, value in content.items()}
    assert found.keys() == public.keys()
    for key, value in public.items():
        if key == "pos_embed":  # a table that is computed anew
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6)
        else:
            assert torch.equal(found[key], value)
    assert pw.load(again, **told).config.detailer == pw.load(tmp_path / "ours").config.detailer


def test_files_that_are_no_such_network_are_named() -> None:
    public = weights("pixnerd_t2i")
    half = {key: value for key, value in public.items() if not key.startswith("text_refine_blocks")}
    with pytest.raises(pw.UserError, match="those of no known network"):
        pw.hub.from_public(half)
    field = {key: value for key, value in public.items() if not key.startswith("blocks.3.")}
    with pytest.raises(pw.UserError, match=r"blocks.3|missing|gap"):
        pw.hub.from_public({**field, "blocks.3.norm.weight": public["blocks.3.norm.weight"]})
    with pytest.raises(pw.UserError, match='unknown setting "position"'):
        pw.hub.from_public(public, position="rotary")
    with pytest.raises(pw.UserError, match="no published layout"):
        pw.hub.to_public(tiny("pixnerd-t2i", detailer=NerfConfig(1, 6)))  # with the settings for classes


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("pixnerd-t2i", 1_171_518_019),
        ("deco-t2i", 1_133_759_395),
        ("pixelgen-t2i", 1_121_739_520),
        ("pixelgen-xl-16", 676_699_200),
    ],
)
def test_parameters_are_counted_to_the_digit(name: str, count: int) -> None:
    assert sum(p.numel() for p in skeleton(preset(name)).parameters()) == count


def test_the_table_of_positions_is_the_published_one() -> None:
    table = positions_2d(4, 4, 32, torch.device("cpu")).flatten(1).T[None]
    torch.testing.assert_close(table, weights("pixelgen_t2i")["pos_embed"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_initial_weights(name: str) -> None:
    """Modulations are not zero, the output is; positions of the text are large unless there is a table."""
    model = tiny(name, hidden_size=96, text_length=40)
    assert model.backbone.blocks[0].adaLN.weight.std() > 0.01
    assert not model.detailer.out.weight.any()
    std = 0.02 if name == "pixelgen-t2i" else 1.0
    assert float(model.backbone.text_embedder.positions.detach().std()) == pytest.approx(std, rel=0.1)
    assert float(model.backbone.time_embedder.mlp[0].weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert not model.backbone.patch_embedder.bias.any()


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_learns_and_the_caption_matters(name: str) -> None:
    model = tiny(name)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, noise = torch.randn(2, 2, 3, 8, 12)
    t = torch.tensor([0.3, 0.8])
    flow.loss(model, x, t, noise, captions(2)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    with torch.no_grad():
        other = pw.TextCondition(captions(2).features.flip(1))
        assert not torch.equal(model(x, t, captions(2)), model(x, t, other))


@pytest.mark.parametrize("name", SMALL)
def test_blocks_and_text_blocks_are_units_of_their_own(name: str) -> None:
    model = tiny(name, text_depth=3)
    units = {id(unit) for unit in model.units()}
    assert {id(block) for block in (*model.backbone.blocks, *model.backbone.text_blocks)} <= units
    with torch.no_grad():
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.2)
        x, t = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 0.8])
        fast = pw.accelerate(model, "fp32")(x, t, captions(2))
        torch.testing.assert_close(fast, model(x, t, captions(2)), rtol=1e-5, atol=1e-5)


def test_models_are_saved_and_drawn_with(tmp_path: Any) -> None:
    model = tiny("deco-t2i", image_size=(8, 12))
    pw.save(model, tmp_path / "m")
    again = pw.load(tmp_path / "m")
    assert again.config == model.config
    condition = pw.TextCondition(captions(2).features, null=captions(1))
    how = {"sampler": pw.SamplerSettings(steps=2, guidance_scale=2.0)}
    assert torch.equal(pw.sample(again, condition, **how), pw.sample(model, condition, **how))


def test_labels_are_refused() -> None:
    with pytest.raises(pw.UserError, match="this model draws from captions"):
        tiny("deco-t2i")(torch.randn(1, 3, 8, 8), torch.tensor([0.5]), torch.tensor([1]))
    with pytest.raises(pw.UserError, match=r"features are \[2, 9, 6\]; the model needs \[2, up to 5, 6\]"):
        long = pw.TextCondition(torch.randn(2, 9, 6))
        tiny("deco-t2i")(torch.randn(2, 3, 8, 8), torch.rand(2), long)


def test_published_files_bring_their_encoder_and_sampler() -> None:
    config = with_notes(preset("deco-t2i"), "t2i_DeCo")
    assert config.text == TextNote("qwen3")
    assert config.sampler is not None and (config.sampler.name, config.sampler.solver) == ("deco-t2i", "ab2")
    sampler = with_notes(preset("pixelgen-xl-16"), "PixelGen_XL_160ep").sampler
    assert sampler is not None and (sampler.solver, sampler.guidance_ends) == ("heun", "high")
