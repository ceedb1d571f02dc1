"""Interrupted and continued runs end as if nothing had happened; what cannot be continued is told."""

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from pixelwright.cli import main as cli
from pixelwright.data import DataConfig
from pixelwright.distributed.checkpoint import checkpoint_folders
from pixelwright.errors import UserError
from pixelwright.training import (
    Interrupted,
    OptimConfig,
    SampleConfig,
    TrainConfig,
    Trainer,
    build_trainer,
    load_config,
    save_config,
    train,
)
from pixelwright.training.finetune_config import AdapterConfig, SubjectConfig

from .conftest import Tiny, log_of, same_state

SLOW_TO_IMPORT = ["matplotlib.figure", "torch.utils.tensorboard"]
pytestmark = pytest.mark.usefixtures("no_extras")


def final_state(config: TrainConfig):  # type: ignore[no-untyped-def]
    trainer = build_trainer(config)
    assert trainer.step == config.steps
    return trainer.state()


def same_log(one: Path, other: Path) -> None:
    """Equal but for the measured times."""
    keys = ("step", "loss", "grad_norm", "lr", "skipped")
    first, second = ([{k: line[k] for k in keys} for line in log_of(folder)] for folder in (one, other))
    assert first == second


@pytest.fixture(scope="module")
def processes():  # type: ignore[no-untyped-def]
    """Starts processes from one that has imported everything already, which takes no time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pixelwright.training.trainer", "torch.distributed.checkpoint", "matplotlib.figure"]
    )
    return context


def test_killed_at_random_and_continued(tiny: Tiny, processes) -> None:  # type: ignore[no-untyped-def]
    undisturbed, config = tiny("undisturbed", steps=40), tiny("killed", steps=40)
    train(undisturbed)
    dice, kills = random.Random(time.time_ns()), 0
    log = Path(config.run, "log.jsonl")
    for goal in (dice.randrange(1, 10), dice.randrange(12, 25), dice.randrange(26, 38)):
        process = processes.Process(target=train, args=(config,))
        process.start()
        while process.is_alive() and (not log.exists() or len(log.read_text().splitlines()) < goal):
            time.sleep(0.005)
        time.sleep(dice.random() * 0.03)  # into the step, or into the checkpoint being written
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL)
    assert kills >= 1
    train(config)
    same_state(final_state(undisturbed), final_state(config))
    same_log(Path(undisturbed.run), Path(config.run))
    left = sorted(path.name for path in Path(config.run, "checkpoints").iterdir())
    assert left == ["step-0000035", "step-0000040"]


def test_a_fine_tuning_killed_at_random_and_continued(tiny: Tiny, processes) -> None:  # type: ignore[no-untyped-def]
    """While prior images are drawn, and twice in training: the same images, adapter, averages and state."""
    pytest.importorskip("peft", reason="LoRA needs peft (extra finetune)")
    more: dict[str, Any] = {
        "init": str(train(tiny("base", steps=2))),
        "adapter": AdapterConfig(rank=4, dropout=0.2),
        "subject": SubjectConfig(class_name="wug", prior_images=64, samples=0),
        "sample": SampleConfig(count=4, steps=20),
        "ema_more": (0.5,),
        "steps": 40,
    }
    undisturbed, config = tiny("undisturbed", **more), tiny("killed", **more)
    train(undisturbed)
    run, dice, kills = Path(config.run), random.Random(time.time_ns()), 0
    log = run / "log.jsonl"

    def steps() -> int:
        return len(log.read_text().splitlines()) if log.exists() else 0

    def drawing() -> bool:
        return any(part.name.startswith("killed-prior") for part in run.parent.iterdir())

    for begun in (drawing, lambda: steps() > dice.randrange(2, 12), lambda: steps() > dice.randrange(14, 36)):
        process = processes.Process(target=train, args=(config,))
        process.start()
        while process.is_alive() and not begun():
            time.sleep(0.002)
        time.sleep(dice.random() * 0.03)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 2
    train(config)
    same_state(final_state(undisturbed), final_state(config))
    for folder in ("adapter", "-prior"):
        one, other = (Path(f"{each.run}{'/' * (folder[0] != '-')}{folder}") for each in (undisturbed, config))
        names = {file.name for file in one.iterdir()}  # beside them may be what a kill left half written
        left = {file.name for file in other.iterdir()} - names
        assert len(names) >= 3 and all(name.endswith(".tmp") for name in left)
        assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


@pytest.mark.parametrize("stop_at", [1, 5, 7, 19])
def test_every_stopping_place_gives_the_same_end(tiny: Tiny, stop_at: int) -> None:
    undisturbed, config = tiny("undisturbed", log_every=3), tiny("stopped", log_every=3)
    train(undisturbed)
    with pytest.raises(Interrupted):
        run_until_signal(config, stop_at, signal.SIGTERM)
    train(config)
    same_state(final_state(undisturbed), final_state(config))
    same_log(Path(undisturbed.run), Path(config.run))


def run_until_signal(config: TrainConfig, step: int, number: int) -> None:
    """Train and send this process a signal during step `step`, counted from 1."""
    trainer = build_trainer(config)
    signal_during(trainer, step, number)
    trainer.run()


def signal_during(trainer: Trainer, step: int, number: int) -> None:
    train_step = trainer.train_step

    def step_and_signal(inputs) -> None:  # type: ignore[no-untyped-def]
        train_step(inputs)
        if trainer.step == step:
            os.kill(os.getpid(), number)

    trainer.train_step = step_and_signal  # type: ignore[method-assign]


def test_interrupt_finishes_the_step_and_saves(tiny: Tiny) -> None:
    config, before = tiny(), signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="step 7"):
        run_until_signal(config, 7, signal.SIGINT)
    assert [path.name for path in checkpoint_folders(Path(config.run))] == ["step-0000005", "step-0000007"]
    assert Path(config.run, "model", "model.safetensors").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_second_interrupt_stops_at_once(tiny: Tiny) -> None:
    trainer = build_trainer(tiny())
    train_step = trainer.train_step

    def twice(inputs) -> None:  # type: ignore[no-untyped-def]
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        train_step(inputs)

    trainer.train_step = twice  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt) as stopped:
        trainer.run()
    assert not isinstance(stopped.value, Interrupted)
    assert checkpoint_folders(trainer.folder) == []


def test_interrupt_while_pictures_are_drawn(tiny: Tiny) -> None:
    trainer = build_trainer(tiny(sample_every=4, sample=dataclasses.replace(tiny().sample, steps=50)))
    stop_if_asked = trainer.stop_if_asked

    def signalled(step) -> None:  # type: ignore[no-untyped-def]
        if step.index == 2:
            os.kill(os.getpid(), signal.SIGINT)
        stop_if_asked(step)

    trainer.stop_if_asked = signalled  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match="step 4"):
        trainer.run()
    assert [path.name for path in checkpoint_folders(trainer.folder)] == ["step-0000004"]


def test_the_command_line_exits_with_130_and_continues(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny()
    save_config(config, tmp_path / "c.yaml")
    arguments = ["train", "--config", str(tmp_path / "c.yaml")]
    with monkeypatch.context() as patch:
        build = Trainer.__init__

        def signalled(self, *args, **more) -> None:  # type: ignore[no-untyped-def]
            build(self, *args, **more)
            signal_during(self, 3, signal.SIGINT)

        patch.setattr(Trainer, "__init__", signalled)
        assert cli.main(arguments) == 130
    assert "saved at step 3" in capsys.readouterr().err
    assert cli.main(arguments) == 0
    undisturbed = tiny("undisturbed")
    train(undisturbed)
    same_state(final_state(undisturbed), final_state(config))


def test_a_complete_run_says_so_and_changes_nothing(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(steps=5)
    folder = train(config)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()
    assert train(config) == folder
    assert "complete at step 5" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_more_steps_continue_a_complete_run(tiny: Tiny) -> None:
    long, short = tiny("long", steps=12), tiny("short", steps=6)
    train(long)
    train(short)
    longer = dataclasses.replace(short, steps=12)
    train(longer)
    same_state(final_state(long), final_state(longer))
    same_log(Path(long.run), Path(longer.run))
    assert load_config(Path(short.run, "config.yaml")).steps == 12


def test_other_settings_are_refused_and_nothing_is_touched(tiny: Tiny) -> None:
    config = tiny(steps=5)
    folder = train(config)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    other = dataclasses.replace(config, steps=9, seed=3, optim=OptimConfig(lr=5e-4, warmup=5))
    with pytest.raises(UserError, match=r"optim\.lr: 0\.001 -> 0\.0005; seed: 0 -> 3.*--run"):
        train(other)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_folders_that_are_no_runs(tiny: Tiny) -> None:
    config = tiny()
    Path(config.run).mkdir()
    Path(config.run, "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty and not a run"):
        train(config)
    assert [path.name for path in Path(config.run).iterdir()] == ["thesis.txt"]
    file = Path(config.run, "thesis.txt")
    with pytest.raises(UserError, match="is a file"):
        train(dataclasses.replace(config, run=str(file)))
    assert file.read_text() == "precious"


def test_a_run_killed_before_its_first_checkpoint_begins_again(tiny: Tiny) -> None:
    config = tiny(steps=5)
    Path(config.run).mkdir()
    save_config(config, Path(config.run, "config.yaml"))
    Path(config.run, "log.jsonl").write_text(json.dumps({"step": 1, "loss": 9.0}) + "\n")
    train(config)
    assert [line["step"] for line in log_of(Path(config.run))] == [1, 2, 3, 4, 5]
    assert log_of(Path(config.run))[0]["loss"] != 9.0


def test_resume_paths_that_are_not_there(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, told in (("absent", "does not exist"), ("empty", "holds no checkpoint")):
        with pytest.raises(UserError, match=told):
            train(tiny("new"), resume=tmp_path / path)
    assert not (tmp_path / "new").exists()


def test_a_new_run_from_the_checkpoint_of_another(tiny: Tiny) -> None:
    first = tiny("first", steps=10)
    train(first)
    whole, branch = tiny("whole"), tiny("branch")
    train(whole)
    train(branch, resume=first.run)
    same_state(final_state(whole), final_state(branch))
    assert [line["step"] for line in log_of(Path(branch.run))] == list(range(11, 21))

    earlier = tiny("earlier", optim=OptimConfig(lr=1e-4))  # other settings are meant here
    train(earlier, resume=Path(first.run, "checkpoints", "step-0000005"))
    assert log_of(Path(earlier.run))[0]["step"] == 6


def test_resume_that_contradicts_itself(tiny: Tiny) -> None:
    first, second = tiny("first", steps=10), tiny("second", steps=10)
    train(first)
    train(second)
    with pytest.raises(UserError, match="already stands at step-0000010"):
        train(tiny("second"), resume=first.run)
    with pytest.raises(UserError, match="already stands at step-0000010"):
        train(tiny("second"), resume=Path(second.run, "checkpoints", "step-0000005"))
    with pytest.raises(UserError, match=r"at step 10, steps is 8"):
        train(tiny("new", steps=8), resume=first.run)
    deeper = dataclasses.replace(first.model, depth=1)
    with pytest.raises(UserError, match=r"another model \(model.depth: 2 -> 1\)"):
        train(tiny("new", model=deeper), resume=first.run)
    assert not Path(tiny("new").run).exists()
    train(tiny("second"), resume=second.run)  # its own newest: the same as without
    assert log_of(Path(second.run))[-1]["step"] == 20


def test_other_classes_than_the_checkpoint_has(tiny: Tiny, tmp_path: Path) -> None:
    from PIL import Image

    first = tiny("first", steps=5)
    train(first)
    for name in ("a", "b", "c"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(tmp_path / "images" / name / "0.png")
    data = dataclasses.replace(first.data, path=str(tmp_path / "images"), shapes_count=None)
    with pytest.raises(UserError, match='class 0 is "a" in the data and "red circle" in'):
        train(tiny("new", data=data), resume=first.run)


def test_the_same_command_with_resume_goes_on_after_it_was_stopped(tiny: Tiny) -> None:
    train(tiny("first", steps=5))
    origin = Path(tiny("first").run)
    train(tiny("branch", steps=10), resume=origin)
    train(tiny("branch", steps=15), resume=origin)  # its own newest is past that of "first"
    straight = tiny("straight", steps=15)
    train(straight, resume=origin)
    same_state(final_state(tiny("branch", steps=15)), final_state(straight))


def test_a_second_job_in_the_same_folder_is_refused(tiny: Tiny) -> None:
    """Until the first is gone, however it went; nothing of the first is touched."""
    config = tiny(steps=2, checkpoint_every=2)
    hold = "import sys, time, pathlib; from pixelwright.training.start import lock\n"
    hold += (
        "run = pathlib.Path(sys.argv[1]); run.mkdir(parents=True); held = lock(run); print(1, flush=True)\n"
    )
    command = [sys.executable, "-c", hold + "time.sleep(600)", str(config.run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "1\n"
        with pytest.raises(UserError, match=f"in use by another job .process {first.pid} on "):
            train(config)
        assert [path.name for path in Path(config.run).iterdir()] == ["lock.txt"]
        first.kill()
    assert (train(config) / "model" / "config.json").exists()


@pytest.mark.parametrize("how", ["continue", "resume"])
def test_classes_belong_to_the_run(tiny: Tiny, tmp_path: Path, how: str) -> None:
    """A class folder that is renamed is refused; the same name in another form of Unicode is not."""
    from PIL import Image

    folder = tmp_path / "images"
    for name in ("ant", "bee", unicodedata.normalize("NFC", "café")):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(folder / name / "0.png")
    data = DataConfig(path=str(folder), size=8)
    first = train(tiny("first", data=data, steps=2, checkpoint_every=2))

    def again() -> Path:
        if how == "continue":
            return train(tiny("first", data=data, steps=4, checkpoint_every=2))
        return train(tiny("second", data=data, steps=4, checkpoint_every=2), resume=first)

    (folder / "ant").rename(folder / "zebra")
    with pytest.raises(UserError, match='class 0 is "bee" in the data and "ant" in '):
        again()
    (folder / "zebra").rename(folder / "ant")
    (folder / "café").rename(folder / unicodedata.normalize("NFD", "café"))
    assert log_of(again())[-1]["step"] == 4


def test_what_a_killed_job_left_in_the_run_folder_is_removed_a_day_later(tiny: Tiny) -> None:
    config = tiny(steps=1)
    train(config)
    for name in ("config.yaml.0.tmp", "model.0.tmp", "samples/1.png.0.tmp"):
        path = Path(config.run) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
        os.utime(path, (0, 0))
    train(tiny(steps=2))
    assert not list(Path(config.run).rglob("*.tmp"))
