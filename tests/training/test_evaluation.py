"""Metrics measured on the way: they change nothing in the run, and every process takes its part."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pixelwright.data import DataConfig
from pixelwright.diffusion.labels import balanced_labels
from pixelwright.errors import UserError
from pixelwright.evaluation.features import open_extractor
from pixelwright.evaluation.features.classifier import Classifier, ClassifierConfig, save_classifier
from pixelwright.evaluation.generate import Generation, draw
from pixelwright.evaluation.images import ImageBatch
from pixelwright.evaluation.measure import collect
from pixelwright.evaluation.metrics import Moments
from pixelwright.evaluation.references import Reference, write_reference
from pixelwright.hub import load
from pixelwright.training import Interrupted, TrainConfig, build_trainer, save_config, train
from pixelwright.training.config import EvaluationConfig, EvaluationSample, ParallelConfig

from .conftest import Tiny, log_of, same_state, weights_of
from .test_parallel import torchrun

COUNT = 24


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Random features, and the reference of random images."""
    folder = tmp_path_factory.mktemp("features")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ClassifierConfig(num_classes=3, size=8, widths=(4, 6, 8))
        save_classifier(config, Classifier(config), folder / "features")
        images = torch.randint(0, 256, (40, 8, 8, 3), dtype=torch.uint8)
    extractor = open_extractor(str(folder / "features"))
    found = collect([ImageBatch(images, torch.arange(40))], extractor).activations
    assert found.spatial is not None
    gaussians = [Moments.of(rows).gaussian() for rows in (found.features, found.spatial)]
    reference = Reference(
        "", "", *gaussians, found.features, None, torch.arange(40), extractor.info, None, False
    )
    write_reference(folder / "reference.npz", reference)
    return {"features": str(folder / "features"), "reference": str(folder / "reference.npz")}


@pytest.fixture
def evaluated(tiny: Tiny, measured: dict[str, str]):  # type: ignore[no-untyped-def]
    """Makes configs of tiny runs that are evaluated every 6 steps of 20."""

    def make(run: str, **changes: Any) -> TrainConfig:
        settings = EvaluationConfig(
            **measured, every=6, sample=EvaluationSample(guidance_scale=2.0, count=COUNT, steps=2)
        )
        return tiny(run, **{"evaluation": settings, **changes})

    return make


def metrics_of(run: Path) -> dict[int, dict[str, float]]:
    return {line["step"]: line["evaluation"] for line in log_of(run) if "evaluation" in line}


def test_a_run_ends_with_the_same_bits_with_and_without(tiny: Tiny, evaluated) -> None:  # type: ignore[no-untyped-def]
    without, with_it = tiny("without", log_every=5), evaluated("with", log_every=5)
    train(without)
    train(with_it)
    same_state(build_trainer(without).state(), build_trainer(with_it).state())
    found = metrics_of(Path(with_it.run))
    assert list(found) == [6, 12, 18, 20]
    for metrics in found.values():
        around = {"precision", "recall", "density", "coverage"}
        assert {"fid", "sfid", "inception_score", *around, "kid", "patch_grid"} == metrics.keys()
    assert len({metrics["fid"] for metrics in found.values()}) == 4


def test_the_metrics_are_those_of_the_exported_weights(evaluated, measured: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    from pixelwright.evaluation.measure import compare
    from pixelwright.evaluation.references import read_reference

    config = evaluated("run", steps=6)
    model = load(train(config) / "model")
    sample = config.evaluation.sample
    settings = {
        name: getattr(sample, name) for name in ("solver", "steps", "guidance_scale", "guidance_interval")
    }
    plan = Generation(
        model="",
        weights="",
        num_samples=COUNT,
        size=(8, 8),
        labels="",
        seed=0,
        batch_size=COUNT,
        precision="fp32",
        **settings,
    )
    images = draw(model, plan, balanced_labels(COUNT, model.config.num_classes), 0)
    extractor = open_extractor(measured["features"])
    collected = collect([ImageBatch(images, torch.arange(COUNT))], extractor, patch_size=4)
    expected = compare(collected, read_reference(measured["reference"]), extractor).metrics
    found = metrics_of(Path(config.run))[6]
    for name, estimate in expected.items():
        assert found[name] == pytest.approx(estimate.value, rel=1e-3, abs=1e-4), name


def test_stopped_and_continued(evaluated) -> None:  # type: ignore[no-untyped-def]
    whole, stopped = evaluated("whole"), evaluated("stopped")
    train(whole)
    trainer = build_trainer(stopped)
    train_step = trainer.train_step

    def stop_at_nine(inputs: Any) -> None:
        train_step(inputs)
        if trainer.step == 9:
            trainer.request_stop()

    trainer.train_step = stop_at_nine  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        trainer.run()
    train(stopped)
    same_state(build_trainer(whole).state(), build_trainer(stopped).state())
    assert metrics_of(Path(whole.run)) == metrics_of(Path(stopped.run))


def test_an_interrupt_does_not_wait_for_the_evaluation(evaluated) -> None:  # type: ignore[no-untyped-def]
    trainer = build_trainer(evaluated("run"))
    stop_if_asked, seen = trainer.stop_if_asked, []

    def stop(step: Any) -> None:
        trainer.request_stop()
        seen.append(step.index)
        stop_if_asked(step)

    trainer.stop_if_asked = stop  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match="step 6"):
        trainer.run()
    assert seen == [0] and metrics_of(trainer.folder) == {}


def test_two_processes_share_the_work_and_find_the_same(evaluated, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Under FSDP2, where no process has all weights; seven batches for two processes."""
    alone = evaluated("alone", steps=6, batch_size=4)
    train(alone)
    pair = evaluated("pair", steps=6, batch_size=4, parallel=ParallelConfig(mode="fsdp", timeout=60))
    save_config(pair, tmp_path / "pair.yaml")
    (tmp_path / "runs.json").write_text(json.dumps([["pair", str(tmp_path / "pair.yaml"), None, None]]))
    done = torchrun(2, tmp_path / "runs.json")
    assert done.returncode == 0, done.stderr
    expected, found = (metrics_of(Path(config.run))[6] for config in (alone, pair))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-2, abs=1e-2), name
    for name, tensor in weights_of(Path(alone.run)).items():
        torch.testing.assert_close(weights_of(Path(pair.run))[name], tensor, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_measured_is_told_before_the_first_step(tiny: Tiny, measured: dict[str, str]) -> None:
    for change, said in (
        ({"features": "nowhere"}, "nowhere"),
        ({"reference": "nowhere.npz"}, "nowhere.npz"),
        ({"every": 0}, "evaluation.every is 0"),
        ({"sample": {"count": 3}}, "evaluation.sample.count is 3"),
    ):
        with pytest.raises(UserError, match=said):
            build_trainer(tiny("run", evaluation=EvaluationConfig(**{**measured, **change})))
    assert not Path(tiny("run").run).exists()


def test_the_page_shows_a_curve_of_each_metric(tiny: Tiny, measured: dict[str, str], tmp_path: Path) -> None:
    from pixelwright.training.report import write_report

    run = tmp_path / "run"
    run.mkdir()
    settings = EvaluationConfig(**measured, sample=EvaluationSample(guidance_scale=2.0, count=COUNT))
    save_config(tiny("run", evaluation=settings, data=DataConfig(size=8)), run / "config.yaml")
    line = {"loss": 1.0, "grad_norm": 1.0, "seconds": 1.0, "skipped": 0, "lr": 1e-3, "images_per_second": 1.0}
    lines = [{"step": s, **line, "evaluation": {"fid": 9.0 - s, "recall": 0.1 * s}} for s in (1, 2, 3)]
    (run / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    text = write_report(run).read_text()
    assert "Fréchet distance (FID)" in text and ">recall<" in text and "24 samples" in text
