"""What a step computes, and what must leave it alone."""

import dataclasses
import json
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pixelwright as pw
from pixelwright.cli import main as cli
from pixelwright.device import check_compiler, resolve_device, resolve_precision
from pixelwright.errors import UserError
from pixelwright.training import OptimConfig, SampleConfig, Trainer, build_trainer, train
from pixelwright.training.callbacks import SampleGrid
from pixelwright.training.ema import EMA
from pixelwright.training.inputs import Inputs
from pixelwright.training.loggers import JsonLines, Progress, Run, smooth
from pixelwright.training.optim import build_optimizer, learning_rate

from .conftest import Tiny, same_state, weights_of


def inputs_of(trainer: Trainer) -> Inputs:
    return trainer.prepare(next(iter(trainer.data(0))), 0)  # type: ignore[operator]


def test_accumulation_gives_the_gradient_of_the_whole_batch(tiny: Tiny) -> None:
    whole = build_trainer(tiny(batch_size=8))
    parts = build_trainer(tiny(batch_size=8, accumulate=4))
    losses, _ = whole.gradients(inputs_of(whole))
    assert losses.shape == (8,)
    torch.testing.assert_close(parts.gradients(inputs_of(parts))[0], losses)
    norm = torch.nn.utils.get_total_norm([p.grad for p in whole.parameters if p.grad is not None])
    assert norm > 0
    for p, q in zip(whole.parameters, parts.parameters, strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-6 * float(norm))


@pytest.mark.usefixtures("no_extras")
def test_loss_falls_on_a_small_problem(tiny: Tiny) -> None:
    folder = train(tiny(steps=120, batch_size=8, checkpoint_every=120, optim=OptimConfig(lr=3e-3)))
    losses = [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 120
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])


def test_the_first_step_is_adamw_of_the_clipped_gradient(tiny: Tiny) -> None:
    config = tiny(optim=OptimConfig(lr=1e-3, warmup=4, clip=0.01, weight_decay=0.1))
    trainer, reference = build_trainer(config), build_trainer(config)
    inputs = inputs_of(trainer)
    reference.gradients(inputs)
    assert float(torch.nn.utils.clip_grad_norm_(reference.parameters, 0.01)) > 0.01
    torch.optim.AdamW(reference.parameters, lr=1e-3 / 4, weight_decay=0.1).step()
    trainer.train_step(inputs)
    for p, q in zip(trainer.parameters, reference.parameters, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-8)


def test_learning_rate_rises_stays_and_falls() -> None:
    rates = [learning_rate(OptimConfig(lr=2.0, warmup=4), step, 100) for step in range(7)]
    assert rates == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0]
    assert learning_rate(OptimConfig(lr=2.0), 0, 100) == 2.0
    falling = [learning_rate(OptimConfig(lr=2.0, cooldown=3), step, 8) for step in range(8)]
    assert falling == [2.0, 2.0, 2.0, 2.0, 2.0, 1.5, 1.0, 0.5]


def test_ema_follows_its_formula(tiny: Tiny) -> None:
    model = build_trainer(tiny()).model
    ema = EMA(model.state_dict(), 0.5)
    expected = [p.detach().clone() for p in model.parameters()]
    for step in (1, 2, 50):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = [
            e * decay + p.detach() * (1 - decay) for e, p in zip(expected, model.parameters(), strict=True)
        ]
        ema.update(step)
    assert list(ema.weights) == [name for name, _ in model.named_parameters()]
    for average, e in zip(ema.weights.values(), expected, strict=True):
        torch.testing.assert_close(average, e)
        assert not average.requires_grad


def test_state_made_beforehand_is_what_adamw_makes_itself() -> None:
    def trained(optimizer: torch.optim.Optimizer, p: torch.nn.Parameter) -> torch.Tensor:
        for _ in range(3):
            p.grad = p.detach().clone() + 1
            optimizer.step()
        return p.detach()

    p, q = (torch.nn.Parameter(torch.arange(5.0)) for _ in range(2))
    own = trained(torch.optim.AdamW([p], lr=0.1, weight_decay=0.0, fused=True), p)
    assert torch.equal(own, trained(build_optimizer([("q", q)], OptimConfig(lr=0.1)), q))


def poison(trainer: Trainer, steps: set[int]) -> None:
    """Make the images of some steps NaN, once they are prepared."""
    prepare = trainer.prepare

    def poisoned(batch, step):  # type: ignore[no-untyped-def]
        inputs = prepare(batch, step)
        return inputs._replace(images=inputs.images * float("nan")) if step in steps else inputs

    trainer.prepare = poisoned  # type: ignore[method-assign]


def test_a_step_that_is_not_finite_changes_no_weight(tiny: Tiny) -> None:
    trainer = build_trainer(tiny())
    good = inputs_of(trainer)
    trainer.train_step(good)
    before = {group: {k: v.clone() for k, v in tensors.items()} for group, tensors in trainer.state().items()}
    trainer.train_step(good._replace(images=good.images * float("nan")))
    after = trainer.state()
    for group in ("model", "optimizer"):
        same_state({group: before[group]}, {group: after[group]})
    assert all(v.isfinite().all() for v in after["ema"].values())
    means = trainer.meter.read()
    assert (means.skipped, means.skipped_in_a_row) == (1, 1)
    assert means.loss is not None and np.isfinite(means.loss)


@pytest.mark.usefixtures("no_extras")
def test_skipped_steps_are_counted_and_logged(tiny: Tiny) -> None:
    trainer = build_trainer(tiny(steps=8, max_skipped=3))
    poison(trainer, {2, 3, 5})
    lines = [json.loads(line) for line in (trainer.run() / "log.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [0, 0, 1, 2, 2, 3, 3, 3]
    assert [line["loss"] is None for line in lines] == [False, False, True, True, False, True, False, False]
    assert all(v.isfinite().all() for v in weights_of(trainer.folder).values())


@pytest.mark.usefixtures("no_extras")
def test_too_many_in_a_row_stop_the_run_with_its_checkpoint_good(tiny: Tiny) -> None:
    config = tiny(max_skipped=4)
    trainer = build_trainer(config)
    poison(trainer, set(range(7, 99)))
    with pytest.raises(UserError, match=r"step 11: .*last 4 steps.*step-0000010 is good.*optim\.lr"):
        trainer.run()
    resumed = build_trainer(config)
    assert resumed.step == 10
    weights = [resumed.state()[group] for group in ("model", "ema", "optimizer")]
    assert all(v.isfinite().all() for group in weights for v in group.values())


@pytest.mark.usefixtures("no_extras")
def test_drawing_leaves_the_weights_alone(tiny: Tiny) -> None:
    plain = tiny("plain", steps=6, checkpoint_every=6)
    drawing = tiny("drawing", steps=6, checkpoint_every=6, sample_every=2)
    torch.manual_seed(1)
    same_state(trained_state(plain), trained_state(drawing))
    drawn = sorted(path.name for path in Path(drawing.run, "samples").iterdir())
    assert drawn == ["step-0000002.png", "step-0000004.png", "step-0000006.png"]
    assert [path.name for path in Path(plain.run, "samples").iterdir()] == ["step-0000006.png"]


def trained_state(config):  # type: ignore[no-untyped-def]
    train(config)
    return build_trainer(config).state()


@pytest.mark.usefixtures("no_extras")
def test_the_global_generator_is_not_touched(tiny: Tiny) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(tiny(steps=3, sample_every=2))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.usefixtures("no_extras")
def test_grids_show_the_averaged_weights_with_fixed_noise(tiny: Tiny) -> None:
    config = tiny(steps=4, checkpoint_every=4)
    folder = train(config)
    model = pw.load(folder / "model")
    assert model.config.image_size == (8, 8)
    assert model.config.class_names is not None
    assert len(model.config.class_names) == model.config.num_classes
    trainer = build_trainer(config)
    grid = next(each for each in trainer.callbacks if isinstance(each, SampleGrid))
    again = grid.draw(model, folder, 99, trainer)
    assert again.read_bytes() == (folder / "samples" / "step-0000004.png").read_bytes()
    with Image.open(again) as grid:
        assert np.asarray(grid).std() > 0


def test_the_run_folder(tiny: Tiny) -> None:
    folder = train(tiny(steps=12, log_every=4))
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.yaml",
        "lock.txt",
        "log.jsonl",
        "report.html",
        "tensorboard",
        "samples",
        "checkpoints",
        "model",
    }
    assert [p.name for p in sorted((folder / "checkpoints").iterdir())] == ["step-0000010", "step-0000012"]
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert [line["lr"] for line in lines] == pytest.approx([8e-4, 1e-3, 1e-3])
    rates = {"images_per_second", "images_per_second_wall"}
    assert set(lines[0]) == {"step", "loss", "grad_norm", "lr", "seconds", "skipped", "loss_by_time", *rates}


@pytest.mark.usefixtures("no_extras")
def test_log_lines_are_means_over_their_steps(tiny: Tiny) -> None:
    def losses(run: str, every: int) -> list[float]:
        folder = train(tiny(run, steps=8, log_every=every))
        return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]

    single = losses("single", 1)
    assert losses("four", 4) == pytest.approx([np.mean(single[:4]), np.mean(single[4:])], rel=1e-6)


@pytest.mark.usefixtures("no_extras")
def test_missing_extras_are_told_once(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(tiny(steps=6, sample_every=2))
    told = capsys.readouterr().err
    assert told.count("TensorBoard is off") == 1
    assert told.count("report.html is off") == 1
    assert told.count('pip install "pixelwright[train]"') == 2
    assert not (folder / "tensorboard").exists()
    assert not (folder / "report.html").exists()


def test_a_run_of_days_is_told_after_a_minute(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the steps after the first, which compiles."""
    times = iter([0, 300, *range(320, 500, 20)])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    progress = Progress()
    progress.open(Run(tmp_path, 10, 40_010, {}))
    for step in range(11, 21):
        progress.advance(step)
    text = capsys.readouterr().err
    assert text.count("at 20 s a step the rest of this run takes 9 days on this machine") == 1
    assert "configs/photos-cpu.yaml" in text


@pytest.mark.usefixtures("no_extras")
def test_progress_lines_without_a_terminal(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny(steps=5))
    told = capsys.readouterr().err.splitlines()
    assert any(line.startswith("step 5/5  loss ") and "images/s" in line and "left" in line for line in told)


def test_smoothing_has_no_bias_at_the_start() -> None:
    assert smooth([2.0, 2.0, 2.0]) == pytest.approx([2, 2, 2])
    assert smooth([]) == []


def test_the_log_is_cut_where_lines_that_will_come_again(tmp_path: Path) -> None:
    line = {"loss": 1.0, "grad_norm": 1.0, "lr": 1.0, "images_per_second": 1.0, "seconds": 1.0, "skipped": 0}
    text = "".join(json.dumps({"step": step, **line}) + "\n" for step in (1, 2, 3, 4))
    (tmp_path / "log.jsonl").write_text(text + '{"step": 5, "lo')
    logger = JsonLines()
    logger.open(Run(tmp_path, 2, 9, {}))
    logger.record(3, line)
    logger.close()
    steps = [json.loads(text)["step"] for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_devices_and_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert resolve_device("cpu") == cpu
    for name in ("gpu", "cuda:99", "cpu:x", ""):
        with pytest.raises(UserError, match="device is"):
            resolve_device(name)
    assert resolve_precision("bf16", cpu) is torch.bfloat16
    assert resolve_precision("fp32", cpu) is None
    for has, expected in (
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({}, None),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has)
        assert resolve_precision("auto", cpu) is expected


def test_bf16_trains_float32_weights(tiny: Tiny) -> None:
    trainer = build_trainer(tiny(precision="bf16"))
    before = [p.detach().clone() for p in trainer.parameters]
    trainer.train_step(inputs_of(trainer))
    assert all(p.dtype is torch.float32 for p in trainer.parameters)
    assert any(not torch.equal(p, q) for p, q in zip(trainer.parameters, before, strict=True))


def test_no_compiler_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tiny: Tiny) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="no-such-compiler"):
        check_compiler()
    with pytest.raises(UserError, match="no-such-compiler"):
        build_trainer(tiny(compile=True))


def test_seed_changes_weights_and_order(tiny: Tiny) -> None:
    one, other = build_trainer(tiny()), build_trainer(dataclasses.replace(tiny(), seed=1))
    assert not torch.equal(one.parameters[0], other.parameters[0])
    assert not torch.equal(inputs_of(one).images, inputs_of(other).images)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone gives memory back at once")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    """64 MiB that are taken, filled and freed again and again come from the system in the beginning only."""
    script = """
import resource, torch, pixelwright.training
from pixelwright.device import keep_memory
keep_memory()
faults = [resource.getrusage(resource.RUSAGE_SELF).ru_minflt]
for _ in range(24):
    torch.ones(1 << 24)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[16])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < (1 << 26) // 4096 / 10


def test_a_model_draws_as_its_run_did(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = SampleConfig(count=4, solver="euler", steps=3, guidance_scale=1.5, time_shift=2.0)
    folder = train(tiny(steps=2, sample=drawn))
    model = pw.load(folder)
    own = model.config.sampler
    assert own is not None and own.name == "run"
    explicit = pw.SamplerSettings("euler", 3, 1.5, time_shift=2.0)
    steps: list[pw.diffusion.solvers.Step] = []
    assert torch.equal(pw.sample(model, [0, 1], callback=steps.append), pw.sample(model, [0, 1], explicit))
    assert len(steps) == 3
    assert cli.main(["sample", str(folder), "--labels", "0", "--out", str(folder / "drawn")]) == 0
    assert "euler, 3 steps, guidance 1.5 everywhere, time shift 2" in capsys.readouterr().out


def test_a_run_tells_what_it_is_and_what_to_type_next(tiny: Tiny, capfd: pytest.CaptureFixture[str]) -> None:
    folder = train(tiny(steps=2))
    said = capfd.readouterr().err
    model = pw.load(folder)
    count = sum(p.numel() for p in model.parameters())
    assert f"model   {model.config.name}, {count:,} parameters, on cpu, fp32" in said
    assert f"run     {folder}: steps 0 to 2, " in said and "images  " in said
    command = next(line for line in said.splitlines() if line.startswith("draw more: "))
    words = command.removeprefix("draw more: pixelwright ").replace(
        "--out drawn", f"--out {folder / 'drawn'}"
    )
    assert cli.main(shlex.split(words)) == 0
    train(tiny(steps=3))
    assert "steps 2 to 3" in capfd.readouterr().err
