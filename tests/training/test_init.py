"""`init`: a new run starts from the weights of another model, and only a new one."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

import pixelwright as pw
from pixelwright.distributed.checkpoint import checkpoint_folders
from pixelwright.errors import UserError
from pixelwright.models.folder import save
from pixelwright.training import ModelConfig, build_trainer, train

from .conftest import Tiny, log_of, same_state

pytestmark = pytest.mark.usefixtures("no_extras")


def test_model_averages_and_all_that_is_new_start_from_the_weights(tiny: Tiny) -> None:
    first = train(tiny("first", steps=5, ema_more=(0.5,)))
    weights = pw.load(first).state_dict()
    larger = dataclasses.replace(tiny().data, size=16)  # the size of the image is no part of a model
    trainer = build_trainer(tiny("second", init=str(first), data=larger, ema_more=(0.5,)))
    state = trainer.state()
    for group in ("model", "ema", "ema-0.5"):
        same_state({"": state[group]}, {"": weights})
    assert trainer.step == 0
    assert not any(float(v.abs().max()) for k, v in state["optimizer"].items() if k.endswith("exp_avg"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_folder_in_any_dtype_is_trained_in_float32(
    tiny: Tiny, tmp_path: Path, dtype: torch.dtype
) -> None:
    source = build_trainer(tiny("source", seed=3)).model.to(dtype)
    preset = pw.hub.SAMPLER_PRESETS["dip-imagenet256"]  # says nothing of the network
    source.config = dataclasses.replace(source.config, sampler=preset)
    save(source, tmp_path / "model")
    model = build_trainer(tiny("new", init=str(tmp_path / "model"))).model
    for name, p in model.named_parameters():
        assert p.dtype == torch.float32
        assert torch.equal(p.detach(), source.state_dict()[name].float())


def test_a_run_that_is_continued_keeps_its_own_weights(tiny: Tiny) -> None:
    first = str(train(tiny("first", steps=5)))
    straight, stopped = tiny("straight", steps=10, init=first), tiny("stopped", steps=5, init=first)
    train(straight)
    train(stopped)
    shutil.rmtree(first)  # not needed any more
    longer = dataclasses.replace(stopped, steps=10)
    train(longer)
    same_state(build_trainer(straight).state(), build_trainer(longer).state())
    assert [line["step"] for line in log_of(Path(longer.run))] == list(range(1, 11))


def test_what_a_run_started_from_is_one_of_its_settings(tiny: Tiny) -> None:
    first = str(train(tiny("first", steps=5)))
    config = tiny("second", steps=5, init=first)
    train(config)
    with pytest.raises(UserError, match=r"init: '.*first' -> None"):
        train(dataclasses.replace(config, init=None, steps=9))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_size": 24}, "backbone.hidden_size: 16 -> 24"),
        ({"prediction": "noise"}, "prediction: 'velocity' -> 'noise'"),
        ({"preset": "pixeldit-ti-4"}, "detailer.type: 'linear' -> 'pit'"),
    ],
)
def test_another_model_is_refused_before_anything_is_written(
    tiny: Tiny, changes: dict[str, object], told: str
) -> None:
    first = train(tiny("first", steps=5))
    model = dataclasses.replace(ModelConfig("dit-ti-4", hidden_size=16, depth=2, num_heads=2), **changes)  # type: ignore[arg-type]
    config = tiny("second", model=model, init=str(first))
    with pytest.raises(UserError) as error:
        train(config)
    assert told in str(error.value) and str(first) in str(error.value) and "\n" not in str(error.value)
    assert not Path(config.run).exists()


def test_a_checkpoint_is_no_model(tiny: Tiny) -> None:
    first = train(tiny("first", steps=5))
    with pytest.raises(UserError, match=r"init: .*step-0000005"):
        train(tiny("second", init=str(checkpoint_folders(first)[0])))
