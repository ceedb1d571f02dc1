"""Training on captions: what the model is given, exact continuation, pictures of prompts, mistakes."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import pixelwright as pw
from pixelwright.data import DataConfig
from pixelwright.diffusion.flow import FlowConfig
from pixelwright.errors import UserError
from pixelwright.models.conditions import TextCondition
from pixelwright.models.config import SamplerSettings, TextNote
from pixelwright.text import TextConfig, open_encoder
from pixelwright.training import Interrupted, ModelConfig, SampleConfig, TrainConfig, build_trainer, train
from pixelwright.training.inputs import Inputs
from pixelwright.training.objectives import FrequencyConfig

from .conftest import Tiny, log_of, same_state

pytestmark = pytest.mark.usefixtures("no_extras")
MODEL = ModelConfig("pixeldit-t2i-ti", hidden_size=16, depth=2, num_heads=2)


@pytest.fixture
def captioned(tiny: Tiny, bert: Path) -> Any:
    def make(run: str = "run", **changes: Any) -> TrainConfig:
        settings = {"model": MODEL, "text": TextConfig("minilm", path=str(bert))}
        return tiny(run, **{**settings, **changes})

    return make


def inputs_of(config: TrainConfig, steps: int) -> list[Inputs]:
    found = []
    for inputs in build_trainer(config)._inputs():
        found.append(inputs)
        if len(found) == steps:
            return found
    raise AssertionError


def test_the_model_gets_the_features_of_the_captions(captioned: Any, bert: Path) -> None:
    config = captioned(flow=FlowConfig(null_probability=0.0), data=DataConfig(path="shapes", size=8))
    trainer = build_trainer(config)
    encoder = open_encoder(config.text, trainer.model.config)
    source = pw.data.open_source(config.data)
    batch = next(iter(pw.data.Batches(source, config.data, 4, config.seed, captions=True)))
    assert [source[i].caption for i in batch.indices.tolist()] == list(batch.captions)
    (inputs,) = inputs_of(config, 1)
    rows, (null,) = (encoder.features(texts, same=True) for texts in (batch.captions, [""]))
    condition, expected = inputs.condition, encoder.join(rows, null)
    assert isinstance(condition, TextCondition)
    length = expected.features.shape[1]
    assert torch.equal(condition.features[:, :length], expected.features)
    assert condition.mask is not None and torch.equal(condition.mask[:, :length], expected.mask)
    assert trainer.model.config.backbone.text_size == 24  # of the encoder, not of the preset
    note = TextNote("minilm", str(bert.resolve()), "", encoder.checksum())
    assert trainer.model.config.text == note


@pytest.mark.parametrize("name", ["pixnerd-t2i", "deco-t2i", "pixelgen-t2i"])
def test_models_with_text_as_extra_keys_are_trained_and_drawn_with(captioned: Any, name: str) -> None:
    """Every caption is padded to one length, since they attend to padding."""
    model = ModelConfig(name, hidden_size=16, depth=2, num_heads=2, patch_size=4)
    config = captioned(model=model, steps=2, objectives=(FrequencyConfig(),))
    (inputs,) = inputs_of(config, 1)
    assert isinstance(inputs.condition, TextCondition) and inputs.condition.features.shape == (4, 64, 24)
    run = train(config)
    assert all(line["frequency_loss"] > 0 for line in log_of(run))
    assert pw.sample(pw.load(run), ["a red star"], SamplerSettings(steps=2)).shape == (1, 8, 8, 3)


def test_captions_are_dropped_as_often_as_told(captioned: Any) -> None:
    config = captioned(batch_size=32, flow=FlowConfig(null_probability=0.25))
    null = build_trainer(config).text.encode([""]).features[0]  # type: ignore[union-attr]
    dropped = 0
    for inputs in inputs_of(config, 20):
        assert isinstance(inputs.condition, TextCondition) and inputs.condition.mask is not None
        for features, mask in zip(inputs.condition.features, inputs.condition.mask, strict=True):
            dropped += int(mask.sum()) == len(null) and torch.equal(features[: len(null)], null)
    assert 0.19 < dropped / 640 < 0.31


def test_interrupted_and_continued_with_and_without_a_cache(captioned: Any, tmp_path: Path) -> None:
    whole = captioned("whole", steps=12)
    train(whole)
    cached = dataclasses.replace(whole.text, cache=str(tmp_path / "features"))
    config = captioned("stopped", steps=12, text=cached)
    trainer = build_trainer(config)
    step = trainer.train_step

    def stop(inputs: Inputs) -> None:
        step(inputs)
        if trainer.step == 7:
            trainer.request_stop()

    trainer.train_step = stop  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        trainer.run()
    train(config)
    again = build_trainer(config)
    same_state(build_trainer(whole).state(), again.state())
    losses = [[line["loss"] for line in log_of(Path(c.run))] for c in (whole, config)]
    assert losses[0] == losses[1]
    again.text.encode(["red circle"])  # type: ignore[union-attr]
    train(dataclasses.replace(config, text=whole.text, steps=13))  # the cache is no part of the result


def test_pictures_are_of_the_prompts_in_turn(captioned: Any, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red star\n\n a blue circle \n")
    sample = SampleConfig(count=3, steps=2, prompts=str(file), guidance_scale=2.0)
    folder = train(captioned(steps=2, sample=sample))
    assert (folder / "samples" / "prompts.txt").read_text() == "a red star\na blue circle\na red star\n"
    model = pw.load(folder)
    drawn = pw.sample(
        model, ["a red star", "a blue circle", "a red star"], SamplerSettings(steps=2, guidance_scale=2.0)
    )
    grid = Image.open(folder / "samples" / "step-0000002.png")
    scale = 96 // 8
    for i, image in enumerate(drawn):
        left, top = 2 + i % 2 * (8 * scale + 2), 2 + i // 2 * (8 * scale + 2)
        pixels = [grid.getpixel((left + x * scale, top + y * scale)) for y in range(8) for x in range(8)]
        assert (torch.tensor(pixels).view(8, 8, 3).int() - image.int()).abs().max() <= 1


def test_without_prompts_pictures_are_of_the_first_captions(captioned: Any) -> None:
    folder = train(captioned(steps=1))
    shapes = pw.data.open_source(DataConfig(path="shapes", size=8, shapes_count=24))
    expected = [shapes[i].caption for i in range(4)]
    assert (folder / "samples" / "prompts.txt").read_text().splitlines() == expected


def test_a_set_without_captions_is_told(captioned: Any, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.size = len(buffer.getvalue())
        archive.addfile(member, io.BytesIO(buffer.getvalue()))
    with pytest.raises(UserError, match=r"1 of 1 images of .*set\.tar have no caption: give each one"):
        train(captioned(data=DataConfig(path=str(tmp_path / "set.tar"), size=8)))


def test_class_names_are_captions_where_asked_for(
    captioned: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("red star", "blue circle"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name / f"{i}.png")
    (tmp_path / "photos" / "red star" / "0.txt").write_text("a red star on the left")
    data = DataConfig(path=str(tmp_path / "photos"), size=8)
    build_trainer(captioned(data=data))
    told = capsys.readouterr().err
    assert "3 of 4 images" in told and "are passed over" in told and "--data.class-captions true" in told
    with_names = dataclasses.replace(data, class_captions=True)
    source = pw.data.open_source(with_names)
    expected = ["blue circle", "blue circle", "a red star on the left", "red star"]
    assert [source[i].caption for i in range(4)] == expected
    build_trainer(captioned(data=with_names))
    assert "no caption" not in capsys.readouterr().err
    (tmp_path / "photos" / "red star" / "0.txt").unlink()
    with pytest.raises(UserError, match=r"4 of 4 images .* have no caption: .*--data\.class-captions true"):
        build_trainer(captioned(data=data))
    with pytest.raises(UserError, match="have no names"):
        pw.data.open_source(dataclasses.replace(with_names, path=str(tmp_path / "photos" / "red star")))


def test_settings_that_do_not_go_together(tiny: Tiny, captioned: Any) -> None:
    with pytest.raises(UserError, match="draws from captions: say which encoder reads them"):
        captioned(text=None)
    with pytest.raises(UserError, match=r"^text is given, but dit-ti-4 draws from classes"):
        tiny(text=TextConfig("minilm"))
    with pytest.raises(UserError, match=r"sample.prompts is given, but dit-ti-4 draws from classes"):
        tiny(sample=SampleConfig(prompts=["a"]))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"sample.prompts is \[\]: give a list of texts"):
        SampleConfig(prompts=())
    with pytest.raises(UserError, match=r"sample.prompts: .nothing.txt. cannot be read"):
        SampleConfig(prompts="nothing.txt").read_prompts()


def test_what_a_run_wrote_is_read_again(captioned: Any) -> None:
    config = captioned(sample=SampleConfig(count=1, steps=1, prompts=("a", "b")))
    train(dataclasses.replace(config, steps=1))
    again = pw.training.load_config(Path(config.run) / "config.yaml")
    assert again == dataclasses.replace(config, steps=1)
    assert json.loads((Path(config.run) / "model" / "config.json").read_text())["text"]["encoder"] == "minilm"
