"""DeCo's frequency-aware loss against the recorded training step, and in a run."""

import dataclasses
from pathlib import Path

import pytest
import torch

from pixelwright.data import DataConfig
from pixelwright.errors import UserError
from pixelwright.training import build_trainer, load_config, train
from pixelwright.training.config_file import save_config
from pixelwright.training.loggers import read_log
from pixelwright.training.objectives.frequency import (
    FrequencyConfig,
    FrequencyLoss,
    dct_matrix,
    frequency_weights,
    spectrum,
)
from tests.recordings import recording

from .conftest import Tiny, same_state

pytestmark = pytest.mark.usefixtures("no_extras")
TENSORS, METADATA = recording("deco_loss")
TABLES = [key for key in TENSORS if key.startswith("weights_table.")]


@pytest.mark.parametrize("key", TABLES)
def test_weights_are_the_recorded_ones(key: str) -> None:
    _, quality, mode, gamma = key.split(".", 3)
    found = frequency_weights(int(quality), mode, float(gamma))  # type: ignore[arg-type]
    torch.testing.assert_close(found, TENSORS[key], rtol=1e-6, atol=0)


def test_each_part_is_the_recorded_one() -> None:
    loss = FrequencyLoss(FrequencyConfig())
    target = TENSORS["input.x"] - TENSORS["input.noise"]
    planes = torch.einsum("pc,bchw->bphw", loss.ycbcr, target)
    torch.testing.assert_close(dct_matrix(), TENSORS["dct_matrix"], rtol=0, atol=1e-6)
    torch.testing.assert_close(planes, TENSORS["ycbcr_of_target"])
    torch.testing.assert_close(spectrum(planes, loss.dct), TENSORS["dct_of_target"], rtol=0, atol=1e-5)
    found = loss.compare(TENSORS["output.velocity"], target).mean()
    torch.testing.assert_close(found, TENSORS["output.fm_loss_freq"], rtol=1e-6, atol=0)


def test_equal_weights_give_the_error_of_the_pixels() -> None:
    """At quality 100 all weights are 1, and the DCT changes no length: what is left is that of YCbCr."""
    loss = FrequencyLoss(FrequencyConfig(quality=100))
    one, other = torch.randn(2, 2, 3, 16, 24)
    expected = torch.einsum("pc,bchw->bphw", loss.ycbcr, one - other).square().mean((1, 2, 3))
    torch.testing.assert_close(loss.compare(one, other), expected)


def test_odd_sides_are_reflected() -> None:
    planes = torch.randn(1, 2, 5, 14)
    padded = torch.cat((planes, planes[..., [12, 11]]), dim=3)
    padded = torch.cat((padded, padded[:, :, [3, 2, 1]]), dim=2)
    torch.testing.assert_close(spectrum(planes, dct_matrix()), spectrum(padded, dct_matrix()))


def test_low_frequencies_weigh_most_and_gamma_says_how_much() -> None:
    even, usual, steep = (frequency_weights(50, gamma=gamma) for gamma in (0.5, 1.0, 2.0))
    for weights in (even, usual, steep):
        torch.testing.assert_close(weights.mean((1, 2)), torch.ones(3))
    assert (even[:, 0, 0] < usual[:, 0, 0]).all() and (usual[:, 0, 0] < steep[:, 0, 0]).all()


def test_a_continued_run_ends_alike(tiny: Tiny, tmp_path: Path) -> None:
    changes = {"objectives": (FrequencyConfig(weight=0.5, quality=50),), "checkpoint_every": 2}
    changes["data"] = DataConfig(path="shapes", size=12, shapes_count=24)
    train(tiny("whole", steps=4, **changes))
    train(tiny("parts", steps=2, **changes))
    train(tiny("parts", steps=4, **changes))
    whole, parts = (build_trainer(tiny(name, steps=4, **changes)) for name in ("whole", "parts"))
    same_state(whole.state(), parts.state())
    log = read_log(tmp_path / "whole" / "log.jsonl")
    assert all(line["frequency_loss"] > 0 for line in log)
    plain = build_trainer(tiny("plain", steps=4, data=changes["data"]))
    batch = next(plain._inputs())
    fresh = build_trainer(tiny("fresh", steps=4, **changes))
    assert torch.equal(plain.gradients(batch)[0], fresh.gradients(batch)[0])  # the log's loss is the same
    name = "detailer.out.weight"
    grads = [dict(each.model.named_parameters())[name].grad for each in (plain, fresh)]
    assert not torch.equal(*grads)


def test_settings_are_read_and_mistakes_named(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(objectives=(FrequencyConfig(quality=30, gamma=0.5),))
    save_config(config, tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml") == config
    with pytest.raises(UserError, match=r"frequency.quality is 0: give a whole number of at least 1"):
        FrequencyConfig(quality=0)
    with pytest.raises(UserError, match=r"frequency.gamma is 0.5, which mode inv has no use for"):
        FrequencyConfig(mode="inv", gamma=0.5)
    with pytest.raises(UserError, match="images are 4x4: with frequency both sides need at least 5"):
        dataclasses.replace(config, data=DataConfig(path="shapes", size=4))
