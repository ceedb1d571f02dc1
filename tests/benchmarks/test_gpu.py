"""The dry run of `benchmarks/gpu.py`: what it plans, writes and leaves out."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pixelwright.acceleration import AcceleratedDenoiser, accelerate
from pixelwright.models.denoiser import PixelDenoiser

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("benchmark_gpu", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_gpu", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return module


def test_the_real_plan_measures_both_models_beside_the_baseline(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "batches", lambda *_: [64, 512])
    planned = list(gpu.rows(gpu.REAL, list(gpu.PARTS), "cpu", 80e9))
    assert list(dict.fromkeys(row.part for row in planned)) == list(gpu.PARTS)
    for part in gpu.PARTS:
        for model in ("dip-xl-16", "pixeldit-xl-16"):
            sides = [(row.side, row.way) for row in planned if (row.part, row.work.model) == (part, model)]
            assert {side for side, _ in sides} == {"ours", "baseline"}
            if part == "latency":
                assert sides == [("baseline", "eager"), *(("ours", way) for way in gpu.WAYS)]
    draws = {(work.model, work.steps) for work in (row.work for row in planned if row.part != "training")}
    assert draws == {("dip-xl-16", 100), ("pixeldit-xl-16", 100)}


def test_the_largest_batch_is_one_that_fits(gpu: ModuleType) -> None:
    work = next(gpu.rows(gpu.DRY, ["training"], "cpu", 1e9)).work
    plan = gpu.DRY._replace(batches=(8, 64, 4096))

    def needed(batch: int) -> int:
        return gpu.describe(work.config(), (32, 32), batch).training_bytes

    assert gpu.batches(plan, work, needed(64) / 0.9 * 1.05) == [8, 64]
    assert gpu.batches(plan, work, needed(64) / 0.9 * 0.95) == [8]
    assert gpu.batches(plan, work, 1.0) == [8]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler, which is called and does nothing
def test_a_dry_run_writes_every_row_and_a_table(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways, given = [], []

    def build(work: Any, side: str, weights: Any, prepare: Any) -> Any:
        given.append(weights)
        return gpu_build(work, side, weights=weights, prepare=prepare)

    def fast(model: PixelDenoiser, precision: str, **way: bool) -> AcceleratedDenoiser:
        ways.append(way)
        return accelerate(model, precision)  # graphs need CUDA

    gpu_build = gpu.build
    monkeypatch.setattr(gpu, "build", build)
    monkeypatch.setattr(gpu, "accelerate", fast)
    monkeypatch.setattr(gpu, "DRY", gpu.DRY._replace(models=("dip-n-8",), batches=(2,)))
    assert gpu.main(["--out", str(tmp_path / "dry"), "--dry-run", "--parts", "latency", "training"]) == 0
    data = json.loads((tmp_path / "dry.json").read_text())
    assert data["dry_run"] and len(data["rows"]) == 6
    assert ways == list(gpu.WAYS.values())
    assert len({id(weights) for weights in given[:4]}) == 1  # one set of weights for all that is sampled
    assert given[4:] == [None, None]
    for row in data["rows"]:
        expected = row["work"]["batch_size"] / row["seconds"]
        assert row["images_per_second"] == pytest.approx(expected)
        assert (row["phases"] is None) == (row["part"] != "training")
    table = (tmp_path / "dry.md").read_text()
    assert table.startswith("A dry run") and table.count("\n| latency | dip-n-8 | 1 |") == 4


def test_what_a_machine_has_not_is_said_in_the_row(gpu: ModuleType) -> None:
    machine = gpu.measure_machine(torch.device("cpu"), 64)
    last = [row for row in gpu.rows(gpu.DRY, ["latency"], "cpu", 1e9) if row.way == gpu.GRAPHS][-1]
    found = gpu.measure(machine, gpu.DRY, last, {})
    assert "graphs is true on cpu" in found.note and not found.done


def test_without_time_rows_are_named_and_not_measured(gpu: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "dry"
    assert gpu.main(["--out", str(out), "--dry-run", "--minutes", "0", "--parts", "latency"]) == 0
    rows = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert {row["note"] for row in rows} == {"no time left"} and {row["seconds"] for row in rows} == {None}


def test_without_a_gpu_it_says_so(gpu: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no CUDA device here"):
        gpu.main(["--out", str(tmp_path / "gpu")])
