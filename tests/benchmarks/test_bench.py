"""The logic of `benchmarks/bench.py`: what is computed from times, not the times."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench
import eager
import machine as machines
import pytest
import torch
from bench import Effort, measure
from hypothesis import given
from hypothesis import strategies as st
from machine import Machine, measure_machine
from process import Commands, apart, measure_peak
from report import Measured, Report, Row, compare, read_ratios, store_ratios
from timing import Spread, Stopwatch, interleave, ratio, spread
from torch import Tensor
from work import BASELINE, OURS, PEER, SUITES, Side, Work, build, inputs_of, load_peer

import pixelwright as pw
from pixelwright.models.config import SamplerSettings
from pixelwright.models.presets import preset
from pixelwright.training.summary import describe

FORWARD = Work("forward", "dip-n-4", 2, 8, "fp32")
TRAINING = Work("training", "pixeldit-n-4", 2, 8, "fp32")
SAMPLING = Work("sampling", "dip-n-4", 2, 8, "fp32", steps=4)
MACHINE = Machine("abacus, 2 threads", "2.0", {"fp32": 1e9, "bf16": 2e9}, 1e8)


# --- times -------------------------------------------------------------------------------------------------
def test_median_and_quartiles() -> None:
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)
    assert spread([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, 2.0, 4.0)


def test_the_ratio_is_of_pairs() -> None:
    """The machine was ten times slower in the second round; each pair says 2."""
    assert ratio([4.0, 40.0, 4.0], [2.0, 20.0, 2.0]) == Spread(2.0, 2.0, 2.0)


@given(st.lists(st.floats(0.01, 100), min_size=1), st.floats(0.1, 10))
def test_what_takes_as_many_times_as_long_has_that_ratio(times: list[float], factor: float) -> None:
    found = ratio([factor * t for t in times], times)
    assert found.low == pytest.approx(factor) and found.high == pytest.approx(factor)


def test_the_sides_take_turns_and_the_clock_waits() -> None:
    log: list[str] = []
    clock = iter(range(100))
    times = interleave(
        {"a": lambda: log.append("A"), "b": lambda: log.append("B")},
        repeats=2,
        wait=lambda: log.append("."),
        clock=lambda: next(clock),
    )
    assert "".join(log) == ".A..B." * 2
    assert times == {"a": [1, 1], "b": [1, 1]}


@pytest.mark.parametrize(("seconds", "rounds"), [(0.5, 1), (25, 3), (1000, 5)])
def test_no_round_begins_after_the_time_is_over(seconds: float, rounds: int) -> None:
    now = SimpleNamespace(time=0.0)

    def work() -> None:
        now.time += 10

    times = interleave({"a": work}, repeats=5, seconds=seconds, clock=lambda: now.time)
    assert times == {"a": [10.0] * rounds}


def test_the_stopwatch_times_methods_and_leaves_the_object_as_it_was() -> None:
    class Cook:
        def __init__(self) -> None:
            self.forward = lambda x: 2 * x

        def boil(self, x: int) -> int:
            return self.forward(x) + 1

    cook = Cook()
    before = dict(vars(cook))
    watch = Stopwatch(wait=lambda: None)
    with watch.watching((cook, "boil"), (cook, "forward")):
        assert cook.boil(3) == 7
    assert watch.total["boil"] >= watch.total["forward"] > 0
    assert vars(cook) == before and cook.boil(1) == 3


# --- works -------------------------------------------------------------------------------------------------
def test_evaluations_are_those_of_a_run() -> None:
    """What passes through the network when we sample, image by image."""
    model = pw.create("dip-n-4")
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    settings = {name: value for name, value in SAMPLING.sampler().items() if name != "autocast"}
    pw.sample(model, [0, 1], SamplerSettings(**settings), size=8)
    assert sum(seen) == 2 * SAMPLING.evaluations == 2 * 7
    one = describe(preset("dip-n-4"), (8, 8)).flops
    assert (FORWARD.flops, SAMPLING.flops) == (2 * one, 14 * one)
    assert TRAINING.flops == 3 * 2 * describe(preset("pixeldit-n-4"), (8, 8)).flops


@pytest.mark.parametrize("work", [FORWARD, SAMPLING], ids=lambda work: work.kind)
def test_both_sides_do_the_same_with_the_same_weights(work: Work) -> None:
    ours = build(work, OURS)
    first, second = ours.run(), build(work, BASELINE, weights=ours.weights).run()
    assert isinstance(first, Tensor) and isinstance(second, Tensor)
    assert first.float().std() > 0
    torch.testing.assert_close(
        first.float(),
        second.float().view_as(first),
        atol=1.0 * (first.dtype != torch.float32) + 1e-5,
        rtol=1e-4,
    )


def test_a_training_step_has_four_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    row = measure(TRAINING, Effort(repeats=1, warm_up=1, memory=False))
    for side in (row.ours, row.other):
        assert side.phases is not None
        assert list(side.phases) == ["forward", "backward", "optimiser", "ema"]
        assert min(side.phases.values()) > 0
        assert side.share(*side.phases) == pytest.approx(1)
    assert row.ours.peak_bytes is None and row.against == BASELINE


def test_sides_apart_are_measured_as_those_in_one_process(checkout: Path) -> None:
    """Each in its own process; a failure there is told in one line."""
    work = replace(TRAINING, apart=True)
    assert work.title == f"{TRAINING.title}, processes apart"
    row = measure(work, Effort(repeats=2, warm_up=1, memory=False))
    for side in (row.ours, row.other):
        assert len(side.seconds) == 2 and min(side.seconds) > 0
        assert side.phases is not None and list(side.phases) == ["forward", "backward", "optimiser", "ema"]
    peer = f"{checkout}:peer_models:broken"
    with (
        pytest.raises(pw.UserError, match=r"processes apart \(peer\) failed: .*KeyError") as error,
        apart(work, PEER, peer) as side,
    ):
        side.warm()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("alone", "side", "kept"), [(True, OURS, 1), (True, BASELINE, 0), (False, OURS, 0)])
def test_only_our_own_process_keeps_its_memory(
    alone: bool, side: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[None] = []
    work = replace(TRAINING, apart=alone)
    monkeypatch.setattr("process.keep_memory", lambda: calls.append(None))
    Commands(work, side, None, torch.get_num_threads())
    assert len(calls) == kept


def test_the_suites_name_each_work_once() -> None:
    for works in SUITES.values():
        titles = [work.title for work in works()]
        assert len(set(titles)) == len(titles)


def test_the_stored_ratios_are_those_of_a_suite() -> None:
    """A renamed title would make the guard pass without a comparison."""
    titles = {replace(work, compile=True).title for work in SUITES["check"]()}
    stored = read_ratios(Path(bench.__file__).with_name("ratios.json"))
    assert stored and all(set(rows) == titles for rows in stored.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "dip-xl"}, "dip-xl-16"),
        ({"model": "dip-t2i-ti"}, "captions"),
        ({"size": 10}, "10x10"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"device": "abacus"}, "abacus"),
        ({"kind": "sampling", "steps": 0}, "steps is 0"),
    ],
)
def test_impossible_works_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(pw.UserError, match=message):
        replace(FORWARD, **changes)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells a process its peak")
def test_peak_memory_of_a_process_holds_weights_and_activations() -> None:
    work = Work("forward", "dit-n-4", 512, 32, "fp32")
    peak = measure_peak(work, OURS)
    info = describe(work.config(), (32, 32), 512)
    assert peak is not None and info.weight_bytes < peak < 3 * info.sampling_bytes
    with pytest.raises(pw.UserError, match=r"\(peer\) failed: .*nowhere"):
        measure_peak(FORWARD, PEER, "nowhere:module:build")


# --- the machine -------------------------------------------------------------------------------------------
def test_the_machine_has_a_name_and_ceilings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: Abacus\ncpu family\t: 6\nmodel\t: 3\n\nmodel name\t: Other\n")
    monkeypatch.setattr(machines, "CPU_INFO", info)
    found = measure_machine(torch.device("cpu"), largest=64)
    assert found.name == f"Abacus family 6 model 3, {torch.get_num_threads()} threads"
    assert found.matmul["fp32"] > 0 and found.copy > 0


# --- reports and stored ratios -----------------------------------------------------------------------------
def report(*ratios: float) -> Report:
    """Rows in which the plain side takes so many times as long."""
    works = [FORWARD, TRAINING, SAMPLING]
    phases = {"forward": 1.0, "backward": 2.0, "optimiser": 0.75, "ema": 0.25}
    rows = [
        Row(
            work,
            work.flops,
            Measured((1.0, 1.0, 1.0), 2**30, phases if work.kind == "training" else None),
            Measured((r, r, r), 2**31, phases if work.kind == "training" else None),
            BASELINE,
        )
        for work, r in zip(works, ratios, strict=False)
    ]
    return Report(MACHINE, 0.5, tuple(rows))


def test_the_page_shows_medians_ratios_ceilings_and_shares(tmp_path: Path) -> None:
    report(2.0, 3.0).write(tmp_path)
    page = (tmp_path / "bench.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| {FORWARD.title}"))
    assert row.split(" | ")[1:] == [
        "1 (1 to 1)",
        "2 (2 to 2)",
        "2 (2 to 2)",
        "3",
        f"{FORWARD.flops / 1e9:.0%}",
        f"{FORWARD.flops / 2e9:.0%}",
        "1.00 GiB",
        "2.00 GiB |",
    ]
    assert "| 25.0% | 50.0% | 18.8% | 6.2% | 25.0% |" in page
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [row["other"]["seconds"] for row in rows] == [[2.0] * 3, [3.0] * 3]


def test_ratios_of_other_machines_and_works_stay(tmp_path: Path) -> None:
    path = tmp_path / "ratios.json"
    other = replace(MACHINE, name="slide rule")
    store_ratios(path, replace(report(9.0), machine=other))
    store_ratios(path, report(2.0, 3.0))
    store_ratios(path, report(2.5))
    assert read_ratios(path) == {
        "slide rule": {FORWARD.title: 9.0},
        MACHINE.name: {FORWARD.title: 2.5, TRAINING.title: 3.0},
    }


def test_what_lost_more_than_a_tenth_is_slower(tmp_path: Path) -> None:
    path = tmp_path / "ratios.json"
    store_ratios(path, report(2.0, 2.0))
    changes = list(compare(read_ratios(path), report(1.9, 1.7, 5.0)))
    assert [(change.title, change.slower) for change in changes] == [
        (FORWARD.title, False),
        (TRAINING.title, True),
    ]
    noisy = replace(changes[1], now=Spread(1.7, 1.5, 2.1))
    assert not noisy.slower


# --- peers and the command ---------------------------------------------------------------------------------
PEER_CODE = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 1)
    def forward(self, x, t, labels):
        return self.conv(x) * t[:, None, None, None]
def build(name, num_classes):
    assert num_classes == 1000
    return Net()
def wrong(name, num_classes):
    return 3
def broken(name, num_classes):
    return {}[name]
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A peer's checkout; the import path is put back afterwards."""
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "peer_models.py").write_text(PEER_CODE)
    (tmp_path / "peer" / "peer_needs.py").write_text("import a_package_that_is_not_here\n")
    return tmp_path / "peer"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("peer_models:build", "give FOLDER:module:factory"),
        ("{}/nowhere:peer_models:build", "give FOLDER:module:factory"),
        ("{}:peer_model:build", "No module named 'peer_model'"),
        ("{}:peer_needs:build", "a_package_that_is_not_here"),
        ("{}:peer_models:make", "no attribute 'make'"),
    ],
)
def test_what_is_wrong_with_a_peer_is_said_in_one_line(checkout: Path, spec: str, message: str) -> None:
    with pytest.raises(pw.UserError, match=message) as error:
        load_peer(spec.format(checkout))
    assert "\n" not in str(error.value)


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "measure_machine", lambda device: MACHINE)
    monkeypatch.setattr(bench, "machine_name", lambda device: MACHINE.name)


ARGUMENTS = ["dip-n-4", "--size", "8", "--repeats", "2", "--warm-up", "1", "--no-memory"]


@pytest.mark.usefixtures("small_machine")
def test_a_peer_is_measured_in_the_place_of_the_baseline(checkout: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--work", "forward", "training", "sampling", "--steps", "3", "--precision", "fp32"]
    peer = ["--peer", f"{checkout}:peer_models:build"]
    assert bench.main([*ARGUMENTS, *words, *peer, "--out", str(out)]) == 0
    rows = json.loads((out / "bench.json").read_text())["rows"]
    assert [row["work"]["kind"] for row in rows] == ["forward", "training", "sampling"]
    assert {row["against"] for row in rows} == {"peer"}
    assert all(len(row["ours"]["seconds"]) == len(row["other"]["seconds"]) == 2 for row in rows)


@pytest.mark.usefixtures("small_machine")
def test_the_guard_tells_what_became_slower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ratios, out = tmp_path / "ratios.json", tmp_path / "out"
    assert bench.main([*ARGUMENTS, "--store", str(ratios)]) == 0
    title = next(iter(read_ratios(ratios)[MACHINE.name]))
    ratios.write_text(f'{{"{MACHINE.name}": {{"{title}": 1000000.0}}}}')
    capsys.readouterr()
    assert bench.main([*ARGUMENTS, "--check", str(ratios), "--out", str(out)]) == 1
    assert "SLOWER" in capsys.readouterr().out
    ratios.write_text("{}")
    assert bench.main([*ARGUMENTS, "--check", str(ratios)]) == 2
    with pytest.raises(SystemExit):
        bench.main([*ARGUMENTS, "--out", str(out)])
    assert "--overwrite" in capsys.readouterr().err


def test_the_eager_models_compute_the_same() -> None:
    inputs = inputs_of(FORWARD, torch.device("cpu"))
    models = eager.pair(FORWARD)
    ours, baseline = (eager.runner("forward", model, inputs)() for model in models.values())
    torch.testing.assert_close(ours, baseline, atol=1e-5, rtol=1e-4)
    for model in models.values():
        eager.runner("training", model, inputs)()
        assert all(p.grad is not None for p in model.parameters())


def test_sides_are_complete() -> None:
    """Training sides tell their phases, the others do not; only what nothing changes is shared."""
    sides: list[Side] = [build(work, side) for work in (FORWARD, TRAINING) for side in (OURS, BASELINE)]
    assert [(side.phases is not None, side.weights is not None) for side in sides] == [
        (False, True),
        (False, True),
        (True, False),
        (True, False),
    ]
