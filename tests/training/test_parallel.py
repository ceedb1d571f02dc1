"""One run, whatever the number of processes: the same samples, the same losses and weights to rounding.

Two gloo processes are started once for all runs of this file that need them (`pair`), since starting takes
longer than training. Every wait has an end.
"""

import dataclasses
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pixelwright.data import DataConfig
from pixelwright.diffusion import flow
from pixelwright.distributed import checkpoint as checkpoints
from pixelwright.distributed import parallel
from pixelwright.distributed.checkpoint import State, checkpoint_folders
from pixelwright.errors import UserError
from pixelwright.text import TextConfig
from pixelwright.training import (
    ModelConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
    build_trainer,
    save_config,
    train,
)
from pixelwright.training.config import HealthConfig, ParallelConfig
from pixelwright.training.finetune_config import AdapterConfig, SubjectConfig
from pixelwright.training.objectives import FrequencyConfig, PerceptualConfig, RepaConfig
from tests.recordings import recording

from .conftest import log_of, same_state, weights_of
from .processes import digest_of, record

STEPS, HALF = 8, 4
PEFT = find_spec("peft") is not None
ADAPTER = "adapter/adapter_model.safetensors"
PROCESSES = Path(__file__).with_name("processes.py")
FSDP = ParallelConfig(mode="fsdp", timeout=60)
DDP = ParallelConfig(mode="ddp", timeout=60)
MODELS = {
    "dit": ModelConfig("dit-ti-4", hidden_size=16, depth=2, num_heads=2),
    "dip": ModelConfig("dip-ti-4", hidden_size=16, depth=2, num_heads=2),
    "text": ModelConfig("dip-t2i-ti", hidden_size=16, depth=2, num_heads=2),
    "pixeldit": ModelConfig("pixeldit-ti-4", hidden_size=16, depth=2, num_heads=2, placement="hybrid"),
    "jit": ModelConfig("jit-n-4", hidden_size=16, depth=2, num_heads=2),
    "asymflow": ModelConfig("jit-n-4", hidden_size=16, depth=2, num_heads=2, prediction="asymmetric", rank=6),
}
OTHERS = ("jit", "pixeldit2", "asymflow")


# So low a threshold finds spikes in any run.
ROLLBACK: dict[str, Any] = {
    "health": HealthConfig(0, "rollback", window=10, threshold=0.3, patience=2, max_rollbacks=16),
    "steps": 24,
    "sample_every": 0,
}


def make(folder: Path, run: str, model: str | ModelConfig = "dit", **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "model": MODELS[model] if isinstance(model, str) else model,
        "data": DataConfig(path="shapes", size=8, shapes_count=24, flip=True),
        # Adam divides by the gradient's size; a larger eps keeps it from enlarging the rounding of tiny ones.
        "optim": OptimConfig(lr=1e-3, warmup=2, eps=1e-4),
        "sample": SampleConfig(count=4, steps=2),
        "steps": STEPS,
        "batch_size": 8,
        "ema_decay": 0.9,
        "device": "cpu",
        "precision": "fp32",
        "log_every": 1,
        "checkpoint_every": HALF,
        "sample_every": HALF,
        "health": HealthConfig(HALF),
    }
    return TrainConfig(run=str(folder / run), **{**settings, **changes})


def perceptual_losses(folder: Path, adapt: int | None) -> dict[str, Any]:
    """A short run with DeCo's and PixelGen's losses, whose factor changes from step `adapt` on."""
    file = folder / "lpips.safetensors"
    save_file({key[6:]: x for key, x in recording("lpips")[0].items() if key.startswith("lpips.")}, file)
    more = {} if adapt is None else {"adapt_from": adapt, "adapt_every": 1}
    losses = PerceptualConfig(lpips=(str(file),), gate=0.5, **more)
    data = DataConfig(path="shapes", size=12, shapes_count=24)
    return {"data": data, "objectives": (FrequencyConfig(), losses), "steps": 4}


def torchrun(
    processes: int, *arguments: object, restarts: int = 0, timeout: int = 150, script: Path = PROCESSES
) -> Any:
    """Run processes.py (or another script) in so many processes; fails the test if it takes too long."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
    source = Path(parallel.__file__).parents[2]
    environment = {
        **{key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")},
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(source),
        "PYTHONWARNINGS": "default",
        # A process that dies in C++ says where.
        "PYTHONFAULTHANDLER": "1",
        "TORCH_SHOW_CPP_STACKTRACES": "1",
    }
    words = [*command, str(script), *map(str, arguments)]
    # A session of its own: at a time-out nothing is left behind.
    with subprocess.Popen(
        words,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            raise
    return subprocess.CompletedProcess(words, process.returncode, out, err)


class Pair(NamedTuple):
    """What two processes did."""

    folder: Path
    job: Any
    seen: list[list[str]]
    """The samples of each step, of the run in one process."""
    initial: dict[str, str]
    """The hash of the weights that runs in one process began with."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, dino: Path, dinov3: str, bert: Path) -> Pair:
    """Runs in one process, here, and then runs in two."""
    grounding = {"encoder": dinov3, "encoder_size": 24, "grounding_heads": 2, "in_context_start": 1}
    sizes: dict[str, Any] = {"hidden_size": 16, "depth": 2, "num_heads": 2, "patch_size": 4}
    grounded = ModelConfig("pixeldit2-b-16", **sizes, backbone=grounding)
    others = {name: {"model": MODELS.get(name, grounded), "steps": 3} for name in OTHERS}
    folder = tmp_path_factory.mktemp("pair")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for extra in ("matplotlib.figure", "torch.utils.tensorboard"):
            patch.setitem(sys.modules, extra, None)
        alone = build_trainer(make(folder, "alone", accumulate=2))
        seen, initial = record(alone), {"": digest_of(alone)}
        alone.run()
        for model in ("dip", "pixeldit"):
            train(make(folder, f"{model}-alone", model, steps=3))
            muon = {"steps": 4, "optim": OptimConfig("muon", lr=1e-3, weight_decay=0.1, eps=1e-4)}
            train(make(folder, f"muon-{model}-alone", model, **muon))
        for name, settings in others.items():
            train(make(folder, f"{name}-alone", **settings))
        repa: dict[str, Any] = {
            "data": DataConfig(path="shapes", size=16, shapes_count=24),
            "objectives": (RepaConfig(teacher=str(dino), depth=1, until=2),),
            "steps": 4,
        }
        init: dict[str, Any] = {"init": str(folder / "alone" / "model"), "steps": 1}
        initial["init-"] = digest_of(build_trainer(make(folder, "init-alone", **init)))
        trainer = build_trainer(make(folder, "repa-alone", **repa))
        initial["repa-"] = digest_of(trainer)
        trainer.run()
        losses = {name: perceptual_losses(folder, adapt) for name, adapt in (("ddp", 1), ("fsdp", None))}
        for name, settings in losses.items():
            train(make(folder, f"losses-{name}-alone", **settings))
        train(make(folder, "rollback-alone", **ROLLBACK))
        lora: dict[str, Any] = {
            "init": str(folder / "alone" / "model"),
            "adapter": AdapterConfig(rank=4),
            "subject": SubjectConfig(class_name="wug", prior_images=4, samples=4),
            "steps": 4,
        }
        if PEFT:
            train(make(folder, "lora-alone", **lora))
        text: dict[str, Any] = {
            "text": TextConfig("minilm", path=str(bert), cache=str(folder / "features")),
            "flow": flow.FlowConfig(null_probability=0.5),
            "steps": 3,
        }
        trainer = build_trainer(make(folder, "text-alone", "text", accumulate=2, **text))
        initial["text-"] = digest_of(trainer)
        trainer.run()
    torch.set_num_threads(threads)
    middle, half = checkpoint_folders(folder / "alone")[0], text | {"precision": "bf16"}
    runs = {
        "ddp": (make(folder, "ddp", parallel=DDP), None),
        "fsdp": (make(folder, "fsdp", parallel=FSDP), None),
        "ddp-accumulate": (make(folder, "ddp-accumulate", accumulate=2), None),
        "fsdp-accumulate": (make(folder, "fsdp-accumulate", accumulate=2, parallel=FSDP), None),
        "fsdp-from-alone": (make(folder, "fsdp-from-alone", parallel=FSDP), middle),
        "dip": (make(folder, "dip", "dip", steps=3, parallel=FSDP), None),
        "pixeldit": (
            make(
                folder,
                "pixeldit",
                "pixeldit",
                steps=3,
                parallel=dataclasses.replace(FSDP, checkpointing=True),
            ),
            None,
        ),
        **{
            f"muon-{model}-{layout.mode}": (
                make(folder, f"muon-{model}-{layout.mode}", model, parallel=layout, **muon),
                None,
            )
            for model in ("dip", "pixeldit")
            for layout in (DDP, FSDP)
        },
        **{
            f"{name}-{layout.mode}": (
                make(folder, f"{name}-{layout.mode}", **settings, parallel=layout),
                None,
            )
            for name, settings in others.items()
            for layout in (DDP, FSDP)
        },
        "repa-ddp": (make(folder, "repa-ddp", parallel=DDP, **repa), None),
        "repa-fsdp": (make(folder, "repa-fsdp", parallel=FSDP, **repa), None),
        "losses-ddp": (make(folder, "losses-ddp", parallel=DDP, **losses["ddp"]), None),
        "losses-fsdp": (make(folder, "losses-fsdp", parallel=FSDP, **losses["fsdp"]), None),
        "rollback": (make(folder, "rollback", parallel=FSDP, **ROLLBACK), None),
        "text-ddp": (make(folder, "text-ddp", "text", parallel=DDP, **text), None),
        "text-fsdp": (make(folder, "text-fsdp", "text", parallel=FSDP, **text), None),
        "bf16-ddp": (make(folder, "bf16-ddp", "text", parallel=DDP, **half), None),
        "bf16-fsdp": (make(folder, "bf16-fsdp", "text", parallel=FSDP, **half), None),
        "init-fsdp": (make(folder, "init-fsdp", parallel=FSDP, **init), None),
        **{
            f"lora-{layout.mode}": (make(folder, f"lora-{layout.mode}", parallel=layout, **lora), None)
            for layout in (DDP, FSDP)
            if PEFT
        },
        "stopped": (make(folder, "stopped", steps=5000, sample_every=0, log_every=50), None),
        "failing": (make(folder, "failing"), None),
    }
    listed = []
    for name, (config, resume) in runs.items():
        save_config(config, folder / f"{name}.yaml")
        event = {"failing": 6, "stopped": 4}.get(name)
        listed.append([name, str(folder / f"{name}.yaml"), resume and str(resume), event])
    (folder / "runs.json").write_text(json.dumps(listed))
    return Pair(folder, torchrun(2, folder / "runs.json"), seen, initial)


def report(pair: Pair, name: str) -> list[dict[str, Any]]:
    """What the two ranks wrote of a run."""
    try:
        return [json.loads((pair.folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
    except FileNotFoundError:
        pytest.fail(f"{name} did not end:\n{pair.job.stderr}")  # all of it: the cause comes first


def same_losses(one: Path, other: Path) -> None:
    """Equal but for the order of float32 sums, which Adam's division carries from step to step."""
    for key in ("loss", "grad_norm"):
        first, second = ([line[key] for line in log_of(folder) if key in line] for folder in (one, other))
        assert len(first) == len(second) > 0
        assert second == pytest.approx(first, rel=1e-5)


def state_of(folder: Path, name: str) -> State:
    """The last checkpoint of a run, read by one process."""
    trainer = build_trainer(make(folder, "probe"))
    found = checkpoints.inspect(checkpoint_folders(folder / name)[-1])
    checkpoints.load(found.path, trainer.state())
    return trainer.state()


def nearly_same_state(one: State, other: State) -> None:
    """The same names, and values equal but for rounding."""
    assert one.keys() == other.keys()
    for group, tensors in one.items():
        assert tensors.keys() == other[group].keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(other[group][key], tensor, rtol=1e-4, atol=2e-7)


@pytest.mark.parametrize("name", ["repa-ddp", "repa-fsdp"])
def test_two_processes_align_as_one(pair: Pair, name: str) -> None:
    report(pair, name)
    same_losses(pair.folder / "repa-alone", pair.folder / name)
    alone, two = (log_of(pair.folder / run) for run in ("repa-alone", name))
    assert [line.get("repa_loss") for line in alone[2:]] == [None, None]  # it ended with the second step
    for first, second in zip(alone[:2], two[:2], strict=True):
        assert second["repa_loss"] == pytest.approx(first["repa_loss"], rel=1e-5)


@pytest.mark.parametrize("name", ["losses-ddp", "losses-fsdp"])
def test_two_processes_have_the_losses_of_one(pair: Pair, name: str) -> None:
    """The gate counts the images of both, and the factor is that of the gradients of both."""
    report(pair, name)
    same_losses(pair.folder / f"{name}-alone", pair.folder / name)
    alone, two = (log_of(pair.folder / run) for run in (f"{name}-alone", name))
    for key in ("frequency_loss", "lpips_loss", "perceptual_factor"):
        expected = pytest.approx([line[key] for line in alone], rel=1e-4)
        assert [line[key] for line in two] == expected
    assert (alone[-1]["perceptual_factor"] != 1) == (name == "losses-ddp")


def test_two_processes_roll_back_as_one(pair: Pair) -> None:
    report(pair, "rollback")
    same_losses(pair.folder / "rollback-alone", pair.folder / "rollback")
    alone, two = (log_of(pair.folder / run) for run in ("rollback-alone", "rollback"))
    assert any("rollbacks" in line for line in alone)
    for key in ("step", "lr", "rollbacks"):
        assert [line.get(key) for line in alone] == [line.get(key) for line in two]


@pytest.mark.skipif(not PEFT, reason="LoRA needs peft (extra finetune)")
@pytest.mark.parametrize("name", ["lora-ddp", "lora-fsdp"])
def test_two_processes_train_an_adapter_as_one(pair: Pair, name: str) -> None:
    """With prior images, and measures of what is learned; under FSDP each holds its share of the model."""
    first, second = report(pair, name)
    same_losses(pair.folder / "lora-alone", pair.folder / name)
    found, expected = (load_file(pair.folder / run / ADAPTER) for run in (name, "lora-alone"))
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=2e-7)
    if name == "lora-fsdp":
        assert (first["drawn"], second["drawn"]) == (True, False)
        assert first["held"] + second["held"] == first["weights"]


@pytest.mark.parametrize("name", ["text-ddp", "text-fsdp"])
def test_two_processes_train_on_captions_as_one(pair: Pair, name: str) -> None:
    report(pair, name)
    same_losses(pair.folder / "text-alone", pair.folder / name)


@pytest.mark.parametrize("name", ["ddp", "fsdp", "ddp-accumulate", "fsdp-accumulate"])
def test_two_processes_see_the_samples_of_one(pair: Pair, name: str) -> None:
    first, second = report(pair, name)
    assert len(pair.seen) == STEPS
    assert [a + b for a, b in zip(first["seen"], second["seen"], strict=True)] == pair.seen
    assert len({digest for step in pair.seen for digest in step}) == STEPS * 8


@pytest.mark.parametrize("name", ["ddp", "fsdp", "ddp-accumulate", "fsdp-accumulate"])
def test_two_processes_give_the_losses_and_weights_of_one(pair: Pair, name: str) -> None:
    report(pair, name)
    same_losses(pair.folder / "alone", pair.folder / name)
    nearly_same_state(state_of(pair.folder, "alone"), state_of(pair.folder, name))


@pytest.mark.parametrize("name", ["ddp", "fsdp", "ddp-accumulate"])
def test_two_processes_measure_what_one_does(pair: Pair, name: str) -> None:
    report(pair, name)
    for one, other in zip(log_of(pair.folder / "alone"), log_of(pair.folder / name), strict=True):
        losses = [[-1 if x is None else x for x in line["loss_by_time"]] for line in (one, other)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
        for key in ("activation_rms", "update_ratio"):
            assert (key in one) == (one["step"] % HALF == 0)
            assert other.get(key, {}) == pytest.approx(one.get(key, {}), rel=1e-4)


def test_resumed_by_another_number_of_processes(pair: Pair, no_extras: None) -> None:
    report(pair, "fsdp-from-alone")
    logs = {name: log_of(pair.folder / name) for name in ("alone", "fsdp-from-alone")}
    assert [line["step"] for line in logs["fsdp-from-alone"]] == list(range(HALF + 1, STEPS + 1))
    losses = [line["loss"] for line in logs["alone"]][HALF:]
    assert [line["loss"] for line in logs["fsdp-from-alone"]] == pytest.approx(losses, rel=1e-5)
    for name in ("ddp", "fsdp"):
        config = make(pair.folder, f"alone-from-{name}")
        train(config, resume=checkpoint_folders(pair.folder / name)[0])
        assert [line["loss"] for line in log_of(Path(config.run))] == pytest.approx(losses, rel=1e-5)
    nearly_same_state(state_of(pair.folder, "alone"), state_of(pair.folder, "fsdp-from-alone"))


@pytest.mark.parametrize("name", ["fsdp", "repa-fsdp", "text-fsdp", "init-fsdp"])
def test_one_process_draws_or_reads_the_weights_that_are_sharded(pair: Pair, name: str) -> None:
    first, second = report(pair, name)
    assert (first["drawn"], second["drawn"]) == (True, False)
    assert first["initial"] == second["initial"] == pair.initial[name.removesuffix("fsdp")]


def test_fsdp_divides_the_weights(pair: Pair) -> None:
    first, second = report(pair, "fsdp")
    assert first["held"] + second["held"] == first["weights"]
    assert max(first["held"], second["held"]) < 0.6 * first["weights"]
    files = checkpoint_folders(pair.folder / "fsdp")[-1].iterdir()
    sizes = {path.name: path.stat().st_size for path in files if path.suffix == ".safetensors"}
    assert set(sizes) == {f"shard-0000{i}-model-00001-of-00001.safetensors" for i in (1, 2)}
    assert min(sizes.values()) > 0.3 * max(sizes.values())


@pytest.mark.parametrize("model", ["dip", "pixeldit"])
def test_the_detailers_are_sharded_and_recomputed(pair: Pair, model: str) -> None:
    first, second = report(pair, model)
    assert first["held"] + second["held"] == first["weights"]
    same_losses(pair.folder / f"{model}-alone", pair.folder / model)


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", OTHERS)
def test_models_of_other_families_train_as_in_one_process(pair: Pair, name: str, mode: str) -> None:
    first, second = report(pair, f"{name}-{mode}")
    assert first["held"] + second["held"] == first["weights"] * (2 if mode == "ddp" else 1)
    same_losses(pair.folder / f"{name}-alone", pair.folder / f"{name}-{mode}")
    one, other = (weights_of(pair.folder / f"{name}-{run}") for run in ("alone", mode))
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(other[key], tensor, rtol=1e-4, atol=2e-7)


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
@pytest.mark.parametrize("model", ["dip", "pixeldit"])
def test_each_process_makes_its_share_of_muons_matrices(pair: Pair, model: str, mode: str) -> None:
    report(pair, f"muon-{model}-{mode}")
    same_losses(pair.folder / f"muon-{model}-alone", pair.folder / f"muon-{model}-{mode}")


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_one_process_writes_what_a_run_of_one_writes(pair: Pair, name: str) -> None:
    report(pair, name)
    alone, other = pair.folder / "alone", pair.folder / name
    names = [{str(path.relative_to(folder)) for path in folder.rglob("*")} for folder in (alone, other)]
    second = "shard-00002-model-00001-of-00001.safetensors"
    assert names[1] - names[0] == {f"checkpoints/step-{step:07d}/{second}" for step in (HALF, STEPS)}
    assert names[0] <= names[1]
    assert [line["step"] for line in log_of(other)] == list(range(1, STEPS + 1))
    expected, found = weights_of(alone), weights_of(other)
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=2e-7)
    for step in (HALF, STEPS):
        path = Path("samples", f"step-{step:07d}.png")
        pictures = [np.asarray(Image.open(folder / path)).astype(int) for folder in (alone, other)]
        assert np.abs(pictures[0] - pictures[1]).max() <= 1  # a level may be rounded the other way
        assert pictures[0].std() > 0


def test_norms_compute_in_the_same_precision_however_weights_are_held(pair: Pair) -> None:
    (ddp, _), (fsdp, _) = report(pair, "bf16-ddp"), report(pair, "bf16-fsdp")
    assert ddp["norms"] == fsdp["norms"]
    assert len(ddp["norms"]) > 10
    losses = [[line["loss"] for line in log_of(pair.folder / name)] for name in ("bf16-ddp", "bf16-fsdp")]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


def test_one_process_is_asked_to_stop_and_all_stop_soon_at_one_step(pair: Pair) -> None:
    first, second = report(pair, "stopped")
    assert first["stopped"] == second["stopped"] < 5000
    assert first["seconds"] < 10
    assert checkpoints.step_of(checkpoint_folders(pair.folder / "stopped")[-1]) == first["stopped"]


def test_an_error_of_one_process_ends_all(pair: Pair) -> None:
    assert pair.job.returncode == 1
    assert "the images of rank 1 are gone" in pair.job.stderr
    assert [line["step"] for line in log_of(pair.folder / "failing")] == [1, 2, 3, 4, 5]
    assert len(checkpoint_folders(pair.folder / "failing")) == 1
    assert checkpoints.newest(pair.folder / "failing") is not None


def test_a_killed_process_is_restarted_and_nothing_is_lost(pair: Pair, tmp_path: Path) -> None:
    config = make(tmp_path, "killed", parallel=DDP)
    save_config(config, tmp_path / "config.yaml")
    job = torchrun(2, tmp_path / "config.yaml", 7, restarts=3)
    assert job.returncode == 0, job.stderr[-4000:]
    assert (tmp_path / "killed.txt").read_text() == "at step 7"
    report(pair, "ddp")
    same_state(state_of(pair.folder, "ddp"), state_of(tmp_path, "killed"))
    keys = ("step", "loss", "grad_norm", "lr", "skipped")
    logs = [log_of(folder) for folder in (pair.folder / "ddp", tmp_path / "killed")]
    first, second = ([{key: line[key] for key in keys} for line in log] for log in logs)
    assert first == second


@pytest.mark.slow
def test_four_processes_with_two_replicas_resume_what_two_saved(pair: Pair, tmp_path: Path) -> None:
    hybrid = make(tmp_path, "four", parallel=dataclasses.replace(FSDP, replicas=2))
    save_config(hybrid, tmp_path / "four.yaml")
    half = checkpoint_folders(pair.folder / "fsdp")[0]
    (tmp_path / "runs.json").write_text(json.dumps([["four", str(tmp_path / "four.yaml"), str(half), None]]))
    job = torchrun(4, tmp_path / "runs.json")
    assert job.returncode == 0, job.stderr[-4000:]
    found = [json.loads((tmp_path / f"four-{rank}.json").read_text()) for rank in range(4)]
    assert found[0]["held"] + found[1]["held"] == found[0]["weights"]
    assert [found[0]["held"], found[1]["held"]] == [found[2]["held"], found[3]["held"]]
    losses = [line["loss"] for line in log_of(pair.folder / "alone")][HALF:]
    assert [line["loss"] for line in log_of(tmp_path / "four")] == pytest.approx(losses, rel=1e-5)


# ---------------------------------------------------------------- in one process
def as_rank(monkeypatch: pytest.MonkeyPatch, world: int, **more: str) -> None:
    """As if torchrun had started this process."""
    for key, value in {"RANK": "0", "WORLD_SIZE": str(world), **more}.items():
        monkeypatch.setenv(key, value)


@pytest.mark.parametrize(
    ("world", "changes", "told"),
    [
        (3, {}, r"batch_size is 8: with 3 processes and accumulate 1 it must be a multiple of 3, such as 9"),
        (2, {"accumulate": 8}, r"multiple of 16, such as 16"),
        (4, {"parallel": ParallelConfig("fsdp", replicas=3)}, r"parallel\.replicas is 3: .*divide the 4"),
        (2, {"device": "meta"}, r"device is 'meta'"),
    ],
)
def test_processes_that_do_not_fit_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int, changes: dict[str, Any], told: str
) -> None:
    as_rank(monkeypatch, world)
    with pytest.raises(UserError, match=told):
        train(make(tmp_path, "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/gloo/transport/tcp/pair.cc:538] Connection closed by peer [10.0.0.2]:20112"),
        torch.distributed.DistBackendError("NCCL communicator was aborted on rank 0."),
        torch.distributed.DistNetworkError("The client socket has failed to connect"),
    ],
)
def test_a_peer_that_is_gone_is_told_in_a_line(error: RuntimeError) -> None:
    two = parallel.Layout(ParallelConfig(), torch.device("cpu"), 0, 2)
    with pytest.raises(UserError, match="another process of the run ended"), parallel.together(lambda: two):
        raise error
    with pytest.raises(RuntimeError, match="shapes"), parallel.together(lambda: two):
        raise RuntimeError("shapes do not fit")


def test_more_processes_than_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_rank(monkeypatch, 4, LOCAL_RANK="1", LOCAL_WORLD_SIZE="4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="4 processes on this machine, which has 2 GPUs"):
        parallel.join("cuda", ParallelConfig(), 8)
    with pytest.raises(UserError, match=r"device is 'cuda:1', but there are 4 processes"):
        parallel.join("cuda:1", ParallelConfig(), 8)


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_modes_that_need_torchrun(tmp_path: Path, mode: Any) -> None:
    with pytest.raises(UserError, match=f"parallel.mode is {mode}, which needs torchrun"):
        train(make(tmp_path, "run", parallel=ParallelConfig(mode)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mode": "fdsp"}, 'did you mean "fsdp"'),
        ({"mode": "ddp", "replicas": 2}, "replicas is 2, but parallel.mode is ddp"),
        ({"mode": "fsdp", "replicas": 0}, "parallel.replicas is 0"),
        ({"timeout": 0}, "parallel.timeout is 0"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        ParallelConfig(**settings)


@pytest.mark.parametrize("model", ["dit", "dip", "pixeldit"])
def test_recomputing_keeps_less_and_changes_no_bit(tmp_path: Path, model: str) -> None:
    gradients, kept = [], []
    for checkpointing in (False, True):
        settings = ParallelConfig(checkpointing=checkpointing)
        trainer = build_trainer(make(tmp_path, "run", model, parallel=settings))
        batch = next(iter(trainer.data(0)))  # type: ignore[operator]
        with torch.no_grad():
            for p in trainer.parameters:  # the zeros at the start would hide most gradients
                p.add_(0.1)
        inside: list[int] = []

        def keep(tensor: torch.Tensor, inside: list[int] = inside) -> torch.Tensor:
            inside.append(tensor.numel())
            return tensor

        inputs = trainer.prepare(batch, 0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            trainer.forward(*inputs[:4], 0)
        kept.append(sum(inside))
        trainer.gradients(inputs)
        gradients.append({"": {name: p.grad for name, p in trainer.model.named_parameters()}})
    same_state(*gradients)
    assert kept[1] < 0.6 * kept[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_compiled_blocks_give_the_same_losses(tmp_path: Path, no_extras: None) -> None:
    plain, compiled = (
        make(tmp_path, "plain", "pixeldit"),
        make(tmp_path, "compiled", "pixeldit", compile=True),
    )
    train(plain)
    train(compiled)
    same_losses(Path(plain.run), Path(compiled.run))
    assert weights_of(Path(plain.run)).keys() == weights_of(Path(compiled.run)).keys()


def test_a_write_that_fails_stops_the_run_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_extras: None
) -> None:
    config = make(tmp_path, "run", checkpoint_every=2)
    sync = checkpoints.sync

    def full(path: Path) -> None:
        if "step-0000004" in str(path):
            raise OSError(28, "No space left on device")
        sync(path)

    monkeypatch.setattr(checkpoints, "sync", full)
    with pytest.raises(UserError, match=r"step-0000004 could not be written \(.*No space left.*untouched"):
        train(config)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-0000002"]
    assert len(log_of(tmp_path / "run")) < STEPS
    train(config)
    assert build_trainer(config).step == STEPS
