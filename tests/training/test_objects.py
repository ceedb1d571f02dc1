"""Trainers built from objects: objectives, callbacks and loggers of one's own."""

import dataclasses
import json
import logging
import os
import signal
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pixelwright.cli.main import main
from pixelwright.data import Batches, DataConfig, Shapes
from pixelwright.distributed.checkpoint import checkpoint_folders
from pixelwright.errors import UserError
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.training import (
    Callback,
    FlowMatching,
    Interrupted,
    JsonLines,
    Logger,
    LoopConfig,
    ModelConfig,
    Objective,
    ObjectiveConfig,
    OptimConfig,
    SampleConfig,
    SampleGrid,
    Trainer,
    build_trainer,
    register_objective,
    train,
)
from pixelwright.training.loggers import WandbConfig, numbers
from pixelwright.training.objectives import OBJECTIVES, Forward

from .conftest import Tiny, log_of, same_state

pytestmark = pytest.mark.usefixtures("no_extras")
MODEL = ModelConfig("dit-ti-4", hidden_size=16, depth=2, num_heads=2)


def model() -> PixelDenoiser:
    torch.manual_seed(0)
    return PixelDenoiser(MODEL.denoiser(num_classes=24, image_size=(8, 8)))


def loop(run: Path, **changes: Any) -> LoopConfig:
    settings: dict[str, Any] = {"steps": 6, "batch_size": 4, "device": "cpu", "precision": "fp32"}
    settings |= {"log_every": 2, "checkpoint_every": 3, "optim": OptimConfig(lr=1e-3), "ema_decay": 0.9}
    return LoopConfig(run=str(run), **{**settings, **changes})


class Notes(Callback, Logger):
    """Keeps what it is called with."""

    def __init__(self) -> None:
        self.hooks: list[tuple[str, int]] = []
        self.logged: dict[int, dict[str, float]] = {}
        self.images: dict[int, Tensor] = {}

    def on_start(self, trainer: Trainer) -> None:
        self.hooks.append(("start", trainer.step))

    def on_step(self, trainer: Trainer) -> None:
        self.hooks.append(("step", trainer.step))

    def on_checkpoint(self, trainer: Trainer, folder: Path) -> None:
        self.hooks.append((folder.name, trainer.step))

    def on_end(self, trainer: Trainer) -> None:
        self.hooks.append(("end", trainer.step))

    def log(self, step: int, values: Any) -> None:
        self.logged[step] = dict(values)

    def image(self, step: int, name: str, image: Tensor) -> None:
        self.images[step] = image


def test_a_trainer_of_objects_trains_draws_logs_and_continues(tmp_path: Path) -> None:
    notes, source = Notes(), Shapes(size=8, count=24)
    grid = SampleGrid(torch.arange(4), SampleConfig(count=4, steps=2), every=4)

    def make(run: str, **changes: Any) -> Trainer:
        data = partial(Batches, source, DataConfig(size=8, flip=True), 4, 0)
        return Trainer(
            model(),
            data,
            loop(tmp_path / run, **changes),
            [FlowMatching()],
            callbacks=[grid, notes],
            loggers=[JsonLines(), notes],
        )

    whole = make("whole")
    folder = whole.run()
    assert notes.hooks == [
        ("start", 0),
        ("step", 1),
        ("step", 2),
        ("step-0000003", 3),
        *(("step", step) for step in (3, 4, 5)),
        ("step-0000006", 6),
        ("step", 6),
        ("end", 6),
    ]
    assert list(notes.logged) == [2, 4, 6]
    assert {"loss", "images_per_second", "images_per_second_wall", "lr"} <= set(notes.logged[2])
    assert all(isinstance(value, (int, float)) for value in notes.logged[6].values())
    assert list(notes.images) == [4, 6] and notes.images[4].dtype == torch.uint8
    assert (folder / "samples" / "step-0000004.png").is_file()
    make("parts", steps=3).run()
    parts = make("parts")
    parts.run()
    same_state(whole.state(), parts.state())
    with pytest.raises(UserError, match=r"other settings \(batch_size: 4 -> 8\)"):
        make("parts", batch_size=8, steps=9)


def test_a_source_is_enough(tmp_path: Path) -> None:
    lines = log_of(Trainer(model(), Shapes(size=8, count=24), loop(tmp_path / "run")).run())
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert all(line["images_per_second_wall"] > 0 for line in lines)


# ---------------------------------------------------------------- an objective of one's own
@dataclasses.dataclass(frozen=True)
class PairConfig(ObjectiveConfig):
    weight: float = 0.25
    width: int = 3


class Pair(Objective):
    """Tokens of two blocks, a parameter and a buffer of its own, and a second evaluation of the network."""

    taps = (1, 2)
    logged = ("pair", "again")

    def __init__(self, config: PairConfig, model: PixelDenoiser) -> None:
        super().__init__()
        self.weight = config.weight
        self.head = torch.nn.Linear(model.config.backbone.hidden_size, config.width)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, model: PixelDenoiser, batch: Forward) -> tuple[Tensor, dict[str, Tensor]]:
        self.calls += 1  # type: ignore[operator]
        pair = (self.head(batch.tokens[1]) - self.head(batch.tokens[2])).square().mean((1, 2))
        again = model(batch.x_t, batch.t, batch.condition)
        assert torch.equal(again, batch.velocity)
        return pair, {"pair": pair, "again": again.square().mean((1, 2, 3))}


def test_an_objective_of_ones_own_is_as_good_as_ours(tiny: Tiny) -> None:
    register_objective("test-pair", PairConfig)(Pair)
    objectives: Any = [{"type": "test-pair", "width": 5}]
    try:
        whole, parts = tiny("whole", objectives=objectives), tiny("parts", objectives=objectives)
        assert whole.objectives == (PairConfig(width=5),)
        train(whole)
        train(dataclasses.replace(parts, steps=7))
        train(parts)
        states = [build_trainer(config).state() for config in (whole, parts)]
        same_state(*states)
        assert set(states[0]["objectives"]) == {"1.head.weight", "1.head.bias", "1.calls"}
        assert states[0]["objectives"]["1.calls"] == 20
        logs = [log_of(Path(config.run)) for config in (whole, parts)]
        for name in Pair.logged:
            assert [line[name] for line in logs[0]] == [line[name] for line in logs[1]]
            assert all(line[name] > 0 for line in logs[0][3:])
        assert not any("head" in name for name in states[0]["model"])
        with pytest.raises(UserError, match=r"objectives\.test-pair\.width: 5 -> 6"):
            train(dataclasses.replace(parts, objectives=(PairConfig(width=6),), steps=30))
    finally:
        del OBJECTIVES._configs["test-pair"]


def test_the_gradient_is_that_of_the_weighted_sum(tiny: Tiny) -> None:
    trainer = build_trainer(tiny())
    inputs = next(trainer._inputs())

    class Double(Objective):
        weight = 2.0

        def forward(self, model: PixelDenoiser, batch: Forward) -> tuple[Tensor, dict[str, Tensor]]:
            return (batch.velocity - (batch.x - batch.noise)).square().mean((1, 2, 3)), {}

    other = Trainer(build_trainer(tiny()).model, trainer.data, trainer.config, [FlowMatching(), Double()])
    trainer.gradients(inputs), other.gradients(inputs)
    for p, q in zip(trainer.parameters, other.parameters, strict=True):
        assert p.grad is not None and q.grad is not None
        torch.testing.assert_close(q.grad, 3 * p.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("objectives", "told"),
    [
        ([{"type": "rep"}], r'objectives\.type is "rep", did you mean "repa"'),
        (
            [{"type": "flow-matching", "wieght": 2}],
            r'unknown key "objectives\.wieght", did you mean "objectives\.weight"',
        ),
        ([{"type": "flow-matching"}] * 2, "flow-matching is listed twice"),
        ("repa", "give a list"),
    ],
)
def test_objectives_that_are_refused(tiny: Tiny, objectives: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        tiny(objectives=objectives)


@pytest.mark.parametrize(
    ("option", "now"),
    [("--repa.depth", "repa is called objectives"), ("--health.answer", "is called health.on_spike")],
)
def test_former_options_name_those_of_today(
    option: str, now: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", option, "3"]) == 2
    assert now in capsys.readouterr().err


def test_a_block_that_is_not_there(tiny: Tiny) -> None:
    class Deep(Objective):
        taps = (3,)

    with pytest.raises(UserError, match="asks for block 3: the model has 2 global blocks"):
        Trainer(model(), Shapes(size=8, count=24), tiny(), [FlowMatching(), Deep()])


# ---------------------------------------------------------------- checkpoint first; failures are logged
def test_a_checkpoint_is_there_though_drawing_runs_out_of_memory(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At step 4 the first grid and the first checkpoint are due."""
    seen = []

    def full(*arguments: Any, **more: Any) -> None:
        seen.append([folder.name for folder in checkpoint_folders(Path(config.run))])
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("pixelwright.training.callbacks.sample", full)
    config = tiny(steps=8, checkpoint_every=4, sample_every=4)
    with caplog.at_level(logging.ERROR):
        train(config)
    assert seen == [["step-0000004"], ["step-0000004", "step-0000008"]]
    assert caplog.text.count("SampleGrid.on_step failed at step") == 2
    assert "Traceback" in caplog.text and "CUDA out of memory" in caplog.text
    assert build_trainer(config).step == 8
    monkeypatch.undo()
    undisturbed = tiny("undisturbed", steps=8, checkpoint_every=4, sample_every=4)
    train(undisturbed)
    same_state(build_trainer(undisturbed).state(), build_trainer(config).state())


def test_a_callback_may_end_a_run(tiny: Tiny) -> None:
    class Patience(Callback):
        every = 3

        def on_step(self, trainer: Trainer) -> None:
            trainer.request_stop()

    trainer = build_trainer(tiny(), callbacks=[Patience()])
    with pytest.raises(Interrupted, match="step 3"):
        trainer.run()
    assert [folder.name for folder in checkpoint_folders(trainer.folder)] == ["step-0000003"]


def test_a_signal_while_a_callback_fails_is_heard(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Callback):
        every = 2

        def on_step(self, trainer: Trainer) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            raise RuntimeError("no ink")

    trainer = build_trainer(tiny(), callbacks=[Failing()])
    with caplog.at_level(logging.ERROR), pytest.raises(Interrupted, match="step 2"):
        trainer.run()
    assert "no ink" in caplog.text


def test_the_wall_clock_counts_what_the_net_one_leaves_out(tiny: Tiny) -> None:
    class Slow(Callback):
        def on_step(self, trainer: Trainer) -> None:
            sleep(0.05)

    from time import sleep as sleep

    last = log_of(build_trainer(tiny(steps=8, log_every=4), callbacks=[Slow()]).run())[-1]
    # Seconds of a step: the pause is in those of the clock on the wall alone, however slow the machine is.
    assert 4 / last["images_per_second_wall"] - 4 / last["images_per_second"] > 0.03
    assert last["images_per_second_wall"] < last["images_per_second"]


# ---------------------------------------------------------------- loggers
def test_numbers_are_named_by_their_groups() -> None:
    values = {"loss": 0.5, "grad_norm": None, "by": [1.0, None], "on": {"a": 2, "b": float("nan")}, "x": "y"}
    assert numbers(values) == {"loss": 0.5, "by/0": 1.0, "on/a": 2}


def test_loggers_that_are_refused(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r'loggers\.type is "wand", did you mean "wandb"'):
        tiny(loggers=("wand",))
    with pytest.raises(UserError, match=r"loggers\.mode is 'of'"):
        tiny(loggers=({"type": "wandb", "mode": "of"},))


def test_weights_and_biases_offline(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = tiny(steps=4, sample_every=4, loggers=({"type": "wandb", "project": "test", "mode": "offline"},))
    assert config.loggers == (WandbConfig(project="test", mode="offline"),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = train(config)
        train(dataclasses.replace(config, steps=6))
    runs = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(runs) == 2 and all(list(run.glob("*.wandb")) for run in runs)
    identity = (folder / "wandb-id.txt").read_text()
    assert all(identity in run.name for run in runs)
    assert list(runs[0].glob("files/media/images/samples*.png"))


def test_without_wandb_it_is_told_before_anything_is_written(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match=r"pixelwright\[wandb\]"):
        train(tiny(loggers=("wandb",)))
    assert not Path(tiny().run).exists()


def test_tensorboard_has_numbers_and_pictures(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # TensorBoard is there
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = train(tiny(steps=4, sample_every=2))
    events = reading.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    names = events.Tags()["scalars"]
    assert {"train/loss", "train/lr"} <= set(names) and any(n.startswith("loss_by_time/") for n in names)
    assert [event.step for event in events.Images("samples")] == [2, 4]


# ---------------------------------------------------------------- parameter groups and averages
def test_parameters_have_the_settings_of_the_first_group_they_match(tiny: Tiny) -> None:
    groups: Any = [
        {"pattern": "*.bias", "weight_decay": 0.0, "lr_factor": 2.0},
        {"pattern": "backbone.blocks.0.*", "lr_factor": 0.5},
    ]
    from pixelwright.training.config import OptimGroup

    optim = OptimConfig(
        lr=1e-3, warmup=2, weight_decay=0.1, groups=tuple(OptimGroup(**group) for group in groups)
    )
    trainer = build_trainer(tiny(optim=optim))
    names = {id(p): name for name, p in trainer.losses.named()}
    found = trainer.optimizer.param_groups
    assert sum(len(group["params"]) for group in found) == len(names)
    assert all(names[id(p)].endswith(".bias") for p in found[0]["params"])
    assert all(names[id(p)].startswith("backbone.blocks.0.") for p in found[1]["params"])
    assert [group["weight_decay"] for group in found] == [0.0, 0.1, 0.1]
    inputs = next(trainer._inputs())
    for expected in ([1e-3, 2.5e-4, 5e-4], [2e-3, 5e-4, 1e-3]):
        trainer.train_step(inputs)
        assert [group["lr"] for group in found] == pytest.approx(expected)
    train(tiny("whole", optim=optim))
    train(tiny("parts", optim=optim, steps=7))
    train(tiny("parts", optim=optim))
    same_state(*(build_trainer(tiny(name, optim=optim)).state() for name in ("whole", "parts")))


def test_a_pattern_that_nothing_matches_names_what_is_near(tiny: Tiny) -> None:
    from pixelwright.training.config import OptimGroup

    optim = OptimConfig(groups=(OptimGroup("backbone.patch_embeder.weight"),))
    with pytest.raises(UserError, match=r'nothing matches .* did you mean "backbone.patch_embedder.weight"'):
        build_trainer(tiny(optim=optim))
    with pytest.raises(UserError, match="lr and lr_factor are both given"):
        OptimGroup("*", lr=1e-3, lr_factor=2.0)


def test_the_average_of_trained_weights_does_not_warm_up(tiny: Tiny) -> None:
    first = train(tiny("first", steps=5))
    trainer = build_trainer(tiny("second", init=str(first), ema_decay=0.9))
    before = {name: tensor.clone() for name, tensor in trainer.ema.weights.items()}
    trainer.train_step(next(trainer._inputs()))
    for name, tensor in trainer.model.state_dict().items():
        expected = 0.9 * before[name] + 0.1 * tensor
        torch.testing.assert_close(trainer.ema.weights[name], expected, rtol=1e-5, atol=1e-7)


def test_what_a_run_of_objects_wrote_down(tmp_path: Path) -> None:
    folder = Trainer(model(), Shapes(size=8, count=24), loop(tmp_path / "run")).run()
    assert "model:" not in (folder / "config.yaml").read_text()
    assert json.loads((folder / "model" / "config.json").read_text())["image_size"] == [8, 8]
