"""Text as extra keys: the recorded networks of PixNerd, DeCo and PixelGen for text, and what learns."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import pixelwright as pw
from pixelwright.diffusion import flow
from pixelwright.models.config import DenoiserConfig
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.detailers.linear import LinearConfig
from pixelwright.models.detailers.nerf import NerfConfig
from pixelwright.models.detailers.pixel_mlp import PixelMLPConfig
from pixelwright.models.folder import skeleton
from pixelwright.models.layers import positions_2d
from pixelwright.models.presets import preset
from pixelwright.models.text_dit import TextDiTConfig
from tests.recordings import recording, weights

RECORDED: dict[str, tuple[int, dict[str, Any], Any]] = {
    "pixnerd_t2i": (2, {}, NerfConfig(2, 8, 2, "rotary", False, False)),
    "pixnerd_t2i_heavydecoder": (2, {}, NerfConfig(2, 8, 2, "rotary-16", False, False)),
    "deco_t2i": (2, {}, PixelMLPConfig(2, 8, "rotary")),
    "pixelgen_t2i": (
        3,
        {"bottleneck": 16, "absolute_positions": True},
        LinearConfig("layer", modulation=False),
    ),
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
    return pw.create(name, detailer=SMALL[name], **(TINY | more))


def captions(count: int) -> pw.TextCondition:
    return pw.TextCondition(torch.randn(count, 5, 6, generator=torch.Generator().manual_seed(0)))


def close(found: Tensor, recorded: Tensor) -> bool:
    return float((found - recorded).abs().max() / recorded.std()) < 1e-5


@pytest.mark.parametrize("name", RECORDED)
@torch.no_grad()
def test_the_published_networks(name: str) -> None:
    tensors, _ = recording(name)
    depth, more, detailer = RECORDED[name]
    model = PixelDenoiser(DenoiserConfig(TextDiTConfig(32, depth, 4, 8, 20, 7, 1, **more), detailer)).eval()
    model.load_state_dict(ours(weights(name), depth))
    x, t, features = (tensors[f"input.{key}"] for key in "xty")
    state = model.backbone.embed(x, t, features)
    assert close(model.backbone.embed_text(features, state.condition), tensors["text_tokens"])
    output, tokens = model(x, t, pw.TextCondition(features), (2,))
    assert close(output, tensors["output"])
    if "block_2_output" in tensors:
        assert close(tokens[2], tensors["block_2_output"])


def ours(tensors: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    return {name: x for key, x in tensors.items() if (name := _name(key, depth))}


@pytest.mark.parametrize(
    ("name", "count"),
    [("pixnerd-t2i", 1_171_518_019), ("deco-t2i", 1_133_759_395), ("pixelgen-t2i", 1_121_739_520)],
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


def _name(key: str, depth: int) -> str:
    """Ours of a published name; "" for the table of positions."""
    if key == "pos_embed":
        return ""
    if match := re.fullmatch(r"blocks\.(\d+)\.(param_generator1\.0|norm)\.(.*)", key):
        part = "norm" if match[2] == "norm" else "generator"
        return f"detailer.blocks.{int(match[1]) - depth}.{part}.{match[3]}"
    table = {
        "y_pos_embedding": "backbone.text_embedder.positions",
        "y_embedder.": "backbone.text_embedder.",
        "s_embedder.proj.": "backbone.patch_embedder.",
        "x_embedder.proj1.": "backbone.bottleneck.",
        "x_embedder.proj2.": "backbone.patch_embedder.",
        "t_embedder.": "backbone.time_embedder.",
        "text_refine_blocks.": "backbone.text_blocks.",
        "blocks.": "backbone.blocks.",
        "x_embedder.embedder.0.": "detailer.pixel_embedder.linear.",
        "final_layer.linear.": "detailer.out.",
        "dec_net.input_proj.": "detailer.proj.",
        "dec_net.cond_embed.": "detailer.token_to_pixels.",
        "dec_net.final_layer.linear.": "detailer.out.",
        "dec_net.res_blocks.": "detailer.blocks.",
    }
    begin = next(each for each in table if key.startswith(each))
    name = re.sub(r"adaLN_modulation\.\d", "adaLN", table[begin] + key.removeprefix(begin))
    pairs = {
        "qkv_x": "qkv",
        "attn.kv_y": "text_kv",
        "mlp.w3": "mlp.w2",
        "mlp.w12": "mlp.w13",
        "in_ln": "norm",
    }
    for theirs, new in pairs.items():
        name = name.replace(f".{theirs}.", f".{new}.")
    return name
