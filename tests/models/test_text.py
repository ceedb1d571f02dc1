"""Text to image: the published network's numbers, captions as a condition, and what learns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.parallel import DistributedDataParallel

import pixelwright as pw
from pixelwright.diffusion import flow
from pixelwright.models.conditions import drop, join
from pixelwright.models.config import SamplerSettings
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.folder import skeleton
from pixelwright.models.presets import preset
from tests.recordings import difference, recording, weights

TINY = {"depth": 2, "hidden_size": 24, "num_heads": 2, "text_size": 6, "text_length": 16}


def tiny(name: str = "pixeldit-t2i-ti", **more: object) -> PixelDenoiser:
    """A small network in which every path matters: nothing starts at zero."""
    torch.manual_seed(0)
    model = pw.create(name, **(TINY | more))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def captions(count: int, length: int, seed: int = 0, **more: object) -> pw.TextCondition:
    features = torch.randn(count, length, 6, generator=torch.Generator().manual_seed(seed))
    return pw.TextCondition(features, **more)


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 8, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_published_velocity_in_our_time_and_sign(dtype: torch.dtype) -> None:
    recorded, _ = recording("pixeldit_t2i")
    model = pw.hub.from_public(weights("pixeldit_t2i")).to(dtype)
    t = 1 - recorded["input.t"].double() / 1000  # theirs: 1000·σ
    with torch.no_grad():
        velocity = model(recorded["input.x"].to(dtype), t, pw.TextCondition(recorded["input.y"].to(dtype)))
    assert difference(-velocity, recorded["output"].to(dtype)) < 1e-5


@pytest.mark.parametrize(("name", "count"), [("pixeldit-t2i", 1_302_470_787), ("dip-t2i", 1_204_580_099)])
def test_parameters_are_counted_to_the_digit(name: str, count: int) -> None:
    assert sum(p.numel() for p in skeleton(preset(name)).parameters()) == count


@pytest.mark.parametrize("name", ["pixeldit-t2i-ti", "dip-t2i-ti"])
@pytest.mark.parametrize("patch_size", [4, 8])
def test_small_models_run_with_features_of_any_width(name: str, patch_size: int) -> None:
    model = pw.create(name, patch_size=patch_size, text_size=20)
    x = torch.randn(2, 3, 2 * patch_size, 3 * patch_size)
    text = pw.TextCondition(torch.randn(2, 5, 20))
    assert model(x, torch.tensor([0.2, 0.7]), text).shape == x.shape


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 6), st.integers(0, 10), st.integers(0, 1000))
def test_padding_changes_nothing(length: int, padding: int, seed: int) -> None:
    model, short = tiny(), captions(2, length, seed)
    real = torch.ones(2, length, dtype=torch.bool)
    real[1, length // 2 + 1 :] = False
    short = pw.TextCondition(short.features, real)
    rubbish = 5 * captions(2, padding, seed + 1).features
    mask = torch.cat((real, torch.zeros(2, padding, dtype=torch.bool)), dim=1)
    long = pw.TextCondition(torch.cat((short.features, rubbish), dim=1), mask)
    t = torch.tensor([0.3, 0.8])
    with torch.no_grad():
        a, b = model(images(2), t, short), model(images(2), t, long)
        c = model(images(2), t, pw.TextCondition(long.features))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()))
    if padding:
        assert difference(c, a) > 1e-3  # without the mask the rubbish is seen


def test_the_published_network_sees_padding() -> None:
    model, text = tiny(mask_padding=False), captions(1, 4)
    masked = pw.TextCondition(text.features, torch.tensor([[True, True, False, False]]))
    t = torch.tensor([0.3])
    assert torch.equal(model(images(1), t, text), model(images(1), t, masked))


@torch.no_grad()
def test_no_caption_at_all_is_a_condition_too() -> None:
    model, text = tiny(), captions(2, 5)
    t = torch.tensor([0.3, 0.8])
    nothing = model(images(2), t, text.empty())
    assert nothing.isfinite().all()
    torch.testing.assert_close(nothing, model(images(2), t, captions(2, 5, seed=9).empty()))
    assert difference(model(images(2), t, text), nothing) > 1e-3


def test_branches_of_different_length_share_a_batch() -> None:
    model, t = tiny(), torch.tensor([0.3, 0.8])
    null = captions(1, 3, seed=5)
    text = captions(2, 5, null=null)
    both = model(torch.cat((images(2),) * 2), torch.cat((t, t)), join(text, text.empty()))
    torch.testing.assert_close(both[:2], model(images(2), t, text), rtol=1e-4, atol=1e-5)
    alone = pw.TextCondition(null.features.expand(2, -1, -1))
    torch.testing.assert_close(both[2:], model(images(2), t, alone), rtol=1e-4, atol=1e-5)


def test_dropped_captions_become_the_empty_one() -> None:
    null = captions(1, 3, seed=5)
    text = captions(3, 5, null=null)
    found = drop(text, torch.tensor([False, True, False]), 0)
    assert torch.equal(found.features[::2], text.features[::2])
    assert torch.equal(found.features[1, :3], null.features[0])
    assert found.mask is not None and found.mask.sum(1).tolist() == [5, 3, 5]
    assert found[1:].null is null


def test_training_draws_drop_captions_and_the_loss_takes_them() -> None:
    text = captions(64, 4)
    x = torch.zeros(64, 3, 8, 12)
    config = flow.FlowConfig(null_probability=0.5)
    t, noise, condition = flow.draw(config, x, text, tiny().config, seed=1, step=2)
    classes = preset("dip-n-4", num_classes=1)
    labels = flow.draw(config, x, torch.zeros(64, dtype=torch.long), classes, seed=1, step=2)[2]
    assert condition.mask is not None
    assert torch.equal(~condition.mask.any(1), labels == 1) and 0 < labels.sum() < 64
    loss = flow.loss(tiny("dip-t2i-ti"), x[:4], t[:4], noise[:4], condition[:4])
    assert loss.shape == (4,) and loss.isfinite().all()


@pytest.mark.parametrize("null", [None, captions(1, 3, seed=7)])
def test_samples_do_not_depend_on_the_batch(null: pw.TextCondition | None) -> None:
    model, text = tiny(), captions(3, 5, null=null)
    sampler = SamplerSettings("dpmpp-2m", 3, 3.0, time_shift=3.0)
    whole = pw.sample(model, text, sampler, size=(8, 12))
    parts = pw.sample(model, text, sampler, size=(8, 12), batch_size=1)
    assert whole.shape == (3, 8, 12, 3)
    assert (whole.int() - parts.int()).abs().max() <= 1
    unguided = pw.sample(model, text, sampler, size=(8, 12), guidance=1.0)
    assert (unguided != whole).any()


def test_the_wrong_condition_is_named() -> None:
    text_model, class_model = tiny(), pw.create("dip-ti-4", 3, depth=1, hidden_size=24, num_heads=2)
    for model, condition in ((text_model, [0]), (class_model, captions(1, 2))):
        with pytest.raises(pw.UserError, match="draws from"):
            pw.sample(model, condition, size=(8, 8))
    x, t = images(1), torch.tensor([0.5])
    with pytest.raises(pw.UserError, match="TextCondition instead of labels"):
        text_model(x, t, torch.tensor([0]))
    with pytest.raises(pw.UserError, match="labels instead of captions"):
        class_model(x, t, captions(1, 2))
    with pytest.raises(pw.UserError, match=r"\[1, 17, 6\].*up to 16"):
        text_model(x, t, captions(1, 17))
    with pytest.raises(pw.UserError, match="has no classes"):
        pw.create("dip-t2i-ti", num_classes=10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": torch.zeros(2, 3)}, r"\[2, 3\]"),
        ({"features": torch.zeros(2, 3, 4), "mask": torch.ones(2, 3)}, "bool"),
        ({"features": torch.zeros(2, 3, 4), "null": captions(1, 3)}, r"\[1, tokens, 4\]"),
    ],
)
def test_captions_that_do_not_fit_together(fields: dict, message: str) -> None:
    with pytest.raises(pw.UserError, match=message):
        pw.TextCondition(**fields)


# --- What learns: the last block's text has weights that nothing reads -------------------------------------


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'group'}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("name", ["pixeldit-t2i-ti", "dip-t2i-ti"])
def test_every_weight_that_learns_has_a_gradient(name: str) -> None:
    model = tiny(name)
    model(images(2), torch.tensor([0.3, 0.8]), captions(2, 5)).square().mean().backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    frozen = {key.split(".")[-2] for key, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"q_norm", "proj", "norm2", "w13", "w2"}
    assert all(".1.text." in key for key, p in model.named_parameters() if not p.requires_grad)


def test_the_frozen_weights_are_read_by_nothing() -> None:
    model, t = tiny(), torch.tensor([0.3, 0.8])
    before = model(images(2), t, captions(2, 5))
    for parameter in model.parameters():
        if not parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    assert torch.equal(model(images(2), t, captions(2, 5)), before)


@pytest.mark.filterwarnings("ignore")
def test_ddp_waits_for_no_gradient_that_never_comes(tmp_path: Path) -> None:
    with alone(tmp_path):
        model = DistributedDataParallel(tiny())
        for _ in range(2):  # DDP notices a missing gradient when the next step begins
            model(images(2), torch.tensor([0.3, 0.8]), captions(2, 5)).square().mean().backward()


def test_what_is_frozen_stays_so_in_a_saved_model(tmp_path: Path) -> None:
    model = tiny()
    pw.save(model, tmp_path / "m")
    again = pw.load(tmp_path / "m")
    assert again.config == model.config
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]


def test_captions_of_half_precision_are_joined_under_autocast() -> None:
    """MiniLM's features are float16, for which the autocast of CPUs has no rule."""
    one = pw.TextCondition(torch.zeros(1, 2, 4, dtype=torch.float16))
    with torch.autocast("cpu", torch.bfloat16):
        joined = join(one, one)
    assert isinstance(joined, pw.TextCondition) and joined.features.dtype == torch.float16
