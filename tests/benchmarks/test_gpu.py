"""The dry run of `benchmarks/gpu.py`: every part at toy sizes, what it writes, and failures."""

import json
import tomllib
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu
import gpu_speed
import gpu_training
import pytest
import torch

import pixelwright as pw
from pixelwright.errors import UserError
from pixelwright.evaluation.features import open_extractor
from pixelwright.evaluation.features.classifier import Classifier, ClassifierConfig, save_classifier
from pixelwright.evaluation.images import open_images
from pixelwright.evaluation.references import build_reference
from pixelwright.images import save_png
from pixelwright.training import LoopConfig, OptimConfig

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler, which does nothing
measured_once = cache(gpu.measure_machine)


@pytest.fixture(autouse=True)
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "has_cuda", lambda: False)
    monkeypatch.setattr(gpu, "measure_machine", measured_once)
    monkeypatch.setattr(gpu.gc, "collect", lambda: None)  # which only a GPU's memory needs
    monkeypatch.setattr(gpu, "DRY", gpu.DRY._replace(models=("pixeldit-n-8",)))


def dry(out: Path, part: str, *more: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and what was written of the part."""
    code = gpu.main(["--out", str(out), "--dry-run", "--parts", part, *more])
    return code, json.loads((out / "gpu.json").read_text())[part]


def save_shapes(folder: Path) -> None:
    """Random images."""
    for i, image in enumerate(torch.randint(0, 256, (20, 8, 8, 3), dtype=torch.uint8)):
        save_png(image, folder / "ab"[i % 2] / f"{i}.png")


def test_models_are_measured_beside_the_baseline_the_goals_first(tmp_path: Path) -> None:
    code, found = dry(tmp_path, "models")
    assert code == 0 and found["dry_run"] and not found["error"] and found["ceilings"]["matmul"]["fp32"] > 0
    sides = [row["what"].removeprefix("pixeldit-n-8, ") for row in found["rows"]]
    assert sides == [
        "one image, 3 steps, ours, eager",
        "one image, 3 steps, baseline, eager",
        "training, batch 2, ours, compiled",
        "training, batch 2, baseline, eager",
        "training, batch 4, ours, compiled",
        "one image, 3 steps, ours, compiled",
        "one image, 3 steps, ours, eager",
    ]
    for row in found["rows"]:
        assert row["figures"]["seconds"] > 0
    step = found["rows"][2]["figures"]
    work = gpu_speed.Work("training", "pixeldit-n-8", 2, 32, "fp32")
    expected = work.flops / step["seconds"] / max(found["ceilings"]["matmul"].values())
    assert step["mfu"] == pytest.approx(expected)


def test_the_real_plan_is_that_of_the_goals() -> None:
    plan = gpu.REAL
    assert (plan.models, plan.size, plan.steps) == (("dip-xl-16", "pixeldit-xl-16"), 256, 100)
    assert {key[1] for key in gpu_speed.GOALS if isinstance(key, tuple)} == set(plan.models)
    assert all((ROOT / "configs" / f"{name}.yaml").is_file() for name in plan.trained)
    assert all((ROOT / path).is_file() for path in gpu.TESTS)
    assert list(gpu.PARTS) == ["tests", "models", "kernels", "training"]


def test_kernels(tmp_path: Path) -> None:
    code, found = dry(tmp_path, "kernels")
    assert code == 0 and [row["what"].split(",")[0] for row in found["rows"]] == [
        "attention sdpa",
        "attention flash",
        "attention math",
        "RMSNorm plain",
        "RMSNorm ours",
        "RMSNorm ours",
    ]
    assert all(row["figures"] for row in found["rows"])


def test_a_training_leaves_weights_below_the_limit_and_a_sheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_training, "FILE_LIMIT", 2**19)
    config = ClassifierConfig(num_classes=3, size=8, widths=(4, 6, 8))
    save_classifier(config, Classifier(config), tmp_path / "features")
    features = str(tmp_path / "features")
    save_shapes(tmp_path / "images")
    images = open_images(str(tmp_path / "images"))
    build_reference(images, open_extractor(features), tmp_path / "reference.npz")
    averaged, write = [], gpu_training.write_weights
    monkeypatch.setattr(gpu_training, "write_weights", lambda *a: averaged.append(a[0]) or write(*a))
    more = ("--features", features, "--reference", str(tmp_path / "reference.npz"))
    code, found = dry(tmp_path, "training", "--only", "cifar10-dip-gpu", *more)
    (row,) = found["rows"]
    assert code == 0 and "3 steps of 4" in row["result"] and "of 16 samples" in row["result"]
    assert row["figures"]["loss"] > 0 and row["figures"]["fid"] > 0
    assert (tmp_path / "cifar10-dip-gpu.png").stat().st_size > 0
    files = [tmp_path / name for name in row["figures"]["files"]]
    assert len(files) > 1 and all(file.stat().st_size < 2**19 + 2**14 for file in files)
    assert gpu.main(["--out", str(tmp_path), "--join", str(tmp_path / "models")]) == 0
    joined = pw.load(tmp_path / "models" / "cifar10-dip-gpu")
    assert joined.config == averaged[0].config
    for key, value in averaged[0].state_dict().items():
        assert torch.equal(joined.state_dict()[key], value.to(torch.bfloat16))


def test_the_learning_rate_falls_with_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(gpu_training.time, "monotonic", lambda: now[0])
    pace = gpu_training.Pace(10.0)
    trainer: Any = SimpleNamespace(config=LoopConfig(run="x", optim=OptimConfig(lr=1.0)), stopped=False)
    trainer.request_stop = lambda: setattr(trainer, "stopped", True)
    pace.on_start(trainer)
    rates = []
    for now[0] in (103.0, 106.0, 108.0, 109.0, 110.0):
        pace.on_step(trainer)
        rates.append(trainer.config.optim.lr)
    assert rates == pytest.approx([1.0, 1.0, 0.5, 0.25, 1e-6]) and trainer.stopped


def test_parts_run_apart_and_go_on_after_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A part whose process dies, then one that works (here: the tests, which are skipped)."""
    monkeypatch.setattr(gpu, "PARTS", dict(reversed(gpu.PARTS.items())))
    died = tmp_path / "script.py"
    died.write_text(
        "import os, sys\nif sys.argv[-3] == 'kernels': os._exit(7)\n"
        f"sys.path[:0] = [{str(ROOT / 'benchmarks')!r}]; import gpu\n"
        "gpu.has_cuda = lambda: False\nsys.exit(gpu.main(sys.argv[1:]))\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(died))
    assert gpu.main(["--out", str(tmp_path / "out"), "--dry-run", "--parts", "kernels,tests"]) == 1
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert found["kernels"]["error"] == "the process of this part ended with code 7"
    assert not found["tests"]["error"] and "skipped" in found["tests"]["rows"][0]["result"]
    table = (tmp_path / "out" / "gpu.md").read_text()
    assert "ended with code 7" in table and "skipped" in table
    assert "skipped" in capfd.readouterr().out


def test_a_row_that_fails_is_there_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise ValueError("no such kernel")

    monkeypatch.setattr(gpu_speed, "attention", fails)
    code, found = dry(tmp_path, "kernels")
    assert code == 1 and found["rows"][0]["result"] == "FAILED: ValueError: no such kernel"
    assert "in fails" in found["rows"][0]["traceback"] and found["rows"][-1]["figures"]


def test_a_part_that_fails_is_there_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Any) -> None:
        raise ValueError("nothing there")

    monkeypatch.setitem(gpu.PARTS, "kernels", fails)
    code, found = dry(tmp_path, "kernels")
    assert code == 1 and found["error"].endswith("ValueError: nothing there\n")
    assert "FAILED: ValueError: nothing there" in (tmp_path / "gpu.md").read_text()


def test_without_time_rows_are_named_and_not_measured(tmp_path: Path) -> None:
    _, found = dry(tmp_path, "models", "--minutes", "0")
    assert {row["result"] for row in found["rows"]} == {"no time left"} and len(found["rows"]) == 7


def test_what_is_measured_twice_is_there_once(tmp_path: Path) -> None:
    dry(tmp_path, "models", "--minutes", "0")
    dry(tmp_path, "kernels", "--minutes", "0")
    dry(tmp_path, "models", "--minutes", "0")
    assert (tmp_path / "gpu.md").read_text().count("| models |") == 7


def test_the_union_of_kernels_counts_overlaps_once() -> None:
    assert gpu_speed.covered([(4.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 2.0)]) == 5.0
    assert gpu_speed.covered([]) == 0.0


def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="no CUDA device here"):
        gpu.main(["--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path), "--parts", "speed"])
    assert "names speed; there are tests, models" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path), "--features", "x"])
    job = gpu.Job("training", gpu.parse(["--out", "x"]), gpu.REAL, torch.device("cpu"), [], 0.0)
    with pytest.raises(UserError, match="needs --cifar10"):
        gpu.training(job)


def test_the_list_of_packages_has_all_that_the_package_needs_beside_torch() -> None:

    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    listed = (ROOT / "benchmarks" / "gpu-requirements.txt").read_text().splitlines()
    assert {each for each in needed if not each.startswith("torch")} <= set(listed)
