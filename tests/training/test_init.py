"""`init`: a new run starts from the weights of another model, and only a new one."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

import pixelwright as pw
from pixelwright.data import DataConfig
from pixelwright.data.shapes import Shapes
from pixelwright.data.sources import Sample
from pixelwright.distributed.checkpoint import checkpoint_folders
from pixelwright.errors import UserError
from pixelwright.models.folder import save
from pixelwright.text.config import TextConfig
from pixelwright.training import ModelConfig, build_trainer, load_config, train

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


def test_the_architecture_is_that_of_the_weights_where_none_is_named(tiny: Tiny, tmp_path: Path) -> None:
    first = train(tiny("first", model=ModelConfig("dip-n-8", depth=1)))
    settings = {"run": str(tmp_path / "second"), "data": {"path": "shapes", "size": 16}, "init": str(first)}
    config = load_config(changes=settings)
    assert config.model.preset == str(first) and config.model.denoiser().backbone.depth == 1
    other = load_config(changes={**settings, "model": {"preset": "dip-n-4"}})
    assert other.model == ModelConfig("dip-n-4")


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


class Named(Shapes):
    """The images of "shapes", of classes with other names in turn."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(8, 0, 24)
        self.class_names, self.num_classes = names, len(names)

    def __getitem__(self, index: int) -> Sample:
        return super().__getitem__(index)._replace(label=index % self.num_classes)


@pytest.mark.parametrize("named", [True, False])
def test_classes_keep_their_rows_by_name_and_new_ones_start_at_the_mean(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], named: bool
) -> None:
    first = train(tiny("first", steps=3))
    old = pw.load(first)
    if not named:
        old.config = dataclasses.replace(old.config, class_names=None)
        save(old, first / "model")
    table = "backbone.class_embedder.table.weight"
    before = old.state_dict()[table]
    names = ("wug", "green circle", "red circle")
    trainer = build_trainer(tiny("second", init=str(first)), source=Named(names))
    after = trainer.model.state_dict()[table]
    mean = before[:-1].mean(0)
    rows = (mean, before[3], before[0]) if named else (mean,) * 3
    assert torch.allclose(after[0], mean) and torch.equal(after, torch.stack([*rows, before[-1]]))
    for name, value in trainer.model.state_dict().items():
        assert name == table or torch.equal(value, old.state_dict()[name])
    kept, new = ("2", "wug") if named else ("0", "wug, green circle, red circle")
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("init ")]
    assert len(told) == 1 and f"{kept} of 3 keep their row" in told[0] and f"({new})" in told[0]


def test_the_features_of_another_text_encoder_are_refused(tiny: Tiny, bert: Path) -> None:
    model = ModelConfig("pixeldit-t2i-ti", hidden_size=16, depth=2, num_heads=2)
    text = TextConfig("minilm", path=str(bert))
    captions = DataConfig(path="shapes-captions", size=8, shapes_count=24)
    first = train(tiny("first", model=model, text=text, data=captions, steps=2))
    known = pw.load(first)
    assert known.config.text is not None
    note = dataclasses.replace(known.config.text, checksum="0" * 64)
    known.config = dataclasses.replace(known.config, text=note)
    save(known, first / "model")
    with pytest.raises(UserError, match=r"another text encoder \(checksum: 000"):
        train(tiny("second", model=model, text=text, data=captions, init=str(first)))


def test_a_checkpoint_stands_for_the_averages_in_it(tiny: Tiny) -> None:
    first = train(tiny("first", steps=5))
    trainer = build_trainer(tiny("second", init=str(checkpoint_folders(first)[0])))
    same_state({"": trainer.state()["model"]}, {"": pw.load(first).state_dict()})
