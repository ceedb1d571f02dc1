"""What a run will cost, against a run of the same settings and against arithmetic written out here."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from pixelwright.cli.main import main
from pixelwright.errors import UserError
from pixelwright.models.vision import size_of
from pixelwright.training import ModelConfig, OptimConfig, TrainConfig, build_trainer, save_config, train
from pixelwright.training.config import ParallelConfig
from pixelwright.training.cost import FORWARD_AND_BACKWARD, cost, gpu_hours
from pixelwright.training.finetune_config import AdapterConfig
from pixelwright.training.objectives import RepaConfig
from pixelwright.training.summary import PeakMemory

from .conftest import Tiny

MODELS = {
    "dit": ModelConfig("dit-ti-4", hidden_size=32, depth=3, num_heads=2),
    "dip": ModelConfig("dip-ti-4", hidden_size=32, depth=3, num_heads=2),
    "pixeldit": ModelConfig("pixeldit-ti-4", hidden_size=32, depth=3, num_heads=2),
}


def bytes_of(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


def thousand(trainer_config: TrainConfig) -> int:
    """Bytes of the class table that the estimate has beyond a run on Shapes: it takes 1000 classes."""
    return 4 * (1000 - 24) * trainer_config.model.denoiser().backbone.hidden_size


@pytest.mark.parametrize("name", ["adamw", "came"])
def test_what_stays_is_what_a_run_holds(tiny: Tiny, dino: Any, name: Any) -> None:
    repa = (RepaConfig(teacher=str(dino), depth=1),)
    data = dataclasses.replace(tiny().data, size=16)
    config = tiny(objectives=repa, data=data, ema_more=(0.5, "power-0.1"), optim=OptimConfig(name=name))
    trainer = build_trainer(config)
    costs = cost(config)
    memory = costs.memory["single", False]
    table = thousand(config)
    assert memory.weights == memory.gradients == bytes_of(trainer.parameters) + table
    averages = [*trainer.ema.weights.values(), *(t for o in trainer.ema.others.values() for t in o.values())]
    assert memory.averages == bytes_of(averages) + 3 * table
    state = bytes_of(t for slots in trainer.optimizer.state.values() for t in slots.values())
    rows = 2 * 4 * (1000 - 24)  # CAME keeps a number per row of the table, twice, beside the mean
    assert memory.optimizer == state + (2 * table if name == "adamw" else table + rows)
    assert costs.parameters == sum(p.numel() for p in trainer.model.parameters()) + table // 4
    assert costs.projector == sum(p.numel() for p in trainer.losses.objectives.parameters())
    assert memory.total == sum(dataclasses.astuple(memory))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_adapter_takes_what_a_run_with_one_holds(tiny: Tiny, dtype: Any) -> None:
    pytest.importorskip("peft", reason="LoRA needs peft (extra finetune)")
    if dtype == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no products in bf16")
    base = train(tiny("base", model=MODELS["dip"], steps=1))
    config = tiny(
        "run",
        model=MODELS["dip"],
        init=str(base),
        adapter=AdapterConfig(rank=4, frozen_dtype=dtype),
        batch_size=64,
        ema_more=(0.5,),
        precision="bf16" if dtype == "bf16" else "fp32",
        data=dataclasses.replace(tiny().data, size=16),
    )
    trainer = build_trainer(config)
    memory = cost(config).memory["single", False]
    assert memory.weights == bytes_of(trainer.model.parameters()) + thousand(config)
    trained = bytes_of(trainer.parameters)
    assert memory.gradients == trained and memory.averages == 2 * trained
    state = bytes_of(t for slots in trainer.optimizer.state.values() for t in slots.values())
    assert memory.optimizer == state < memory.weights / 4
    inputs = trainer.prepare(next(iter(trainer.data(0))), 0)  # type: ignore[operator]
    with PeakMemory(trainer.model) as peak:
        trainer.gradients(inputs)
    assert peak.peak - trained == pytest.approx(memory.activations, rel=0.15)


@pytest.mark.parametrize(
    ("model", "precision", "recompute"),
    [("dit", "fp32", False), ("dit", "bf16", True), ("dip", "bf16", False), ("pixeldit", "bf16", False)],
)
def test_activations_are_those_of_a_step(
    tiny: Tiny, model: str, precision: Any, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Followed in a real micro-batch, when the gradients of the one before are there."""
    config = tiny(
        model=MODELS[model],
        batch_size=128,
        accumulate=2,
        precision=precision,
        parallel=ParallelConfig(checkpointing=recompute),
        data=dataclasses.replace(tiny().data, size=16),
    )
    trainer = build_trainer(dataclasses.replace(config, batch_size=64, accumulate=1))
    batch = next(iter(trainer.data(0)))  # type: ignore[operator]
    inputs = trainer.prepare(batch, 0)
    trainer.gradients(inputs)
    with PeakMemory(trainer.model) as memory:
        trainer.gradients(inputs)
    expected = cost(config).memory["single", recompute].activations
    assert memory.peak == pytest.approx(expected, rel=0.15)


def test_sharded_state_is_divided_and_replicas_are_not(tiny: Tiny) -> None:
    config = tiny(batch_size=16)
    ddp, fsdp = (cost(config, 4).memory[mode, False] for mode in ("ddp", "fsdp"))  # type: ignore[index]
    copies = dataclasses.replace(config, parallel=ParallelConfig(mode="fsdp", replicas=2))
    hsdp = cost(copies, 4).memory["fsdp", False]
    for part in ("weights", "averages", "optimizer", "gradients"):
        assert getattr(fsdp, part) == -(-getattr(ddp, part) // 4)
        assert getattr(hsdp, part) == -(-getattr(ddp, part) // 2)
    assert ddp.gathered == 0 < fsdp.gathered
    assert ("fsdp", False) not in cost(tiny(batch_size=16, optim=OptimConfig(name="came")), 4).memory


def test_hours_by_hand(tiny: Tiny) -> None:
    config = tiny(steps=1000, batch_size=8)
    costs = cost(config)
    assert costs.image_flops == FORWARD_AND_BACKWARD * costs.forward_flops
    again = cost(dataclasses.replace(config, parallel=ParallelConfig(checkpointing=True)))
    assert again.image_flops == 4 * costs.forward_flops
    # 8000 images at 2 TFLOPs, of which a quarter is made use of
    seconds = 8000 * costs.image_flops / 0.5e12
    assert gpu_hours(config, costs, 2.0, 0.25) == pytest.approx(seconds / 3600)


def test_dinov2_base_is_counted_as_published() -> None:
    """86.6M parameters, and the ones of its blocks are 12·D² each."""
    teacher = size_of("facebook/dinov2-base", "repa.teacher")
    assert teacher.parameters == pytest.approx(12 * 12 * 768**2, rel=0.03)
    with pytest.raises(UserError, match='did you mean "facebook/dinov2-base"'):
        size_of("facebook/dinov2-bass", "repa.teacher")


def test_the_encoder_of_pixeldit2_is_counted(tiny: Tiny, dinov3: str) -> None:
    """By the config.json of its folder; once a step, since it has no gradients."""
    sizes: dict[str, Any] = {"hidden_size": 16, "depth": 2, "num_heads": 2, "patch_size": 4}
    more = {"encoder": dinov3, "encoder_size": 24, "grounding_heads": 2, "in_context_start": 1}
    config = tiny(model=ModelConfig("pixeldit2-b-16", **sizes, backbone=more))
    costs, encoder = cost(config), size_of(dinov3, "encoder")
    assert encoder == (24, 1, (4 * 24 + 2 * 48) * 24, 5)
    assert costs.frozen_flops == 2 * encoder.parameters * 9 + 4 * 9**2 * 24  # 2 x 2 patches and 5 more tokens
    assert costs.image_flops == 3 * costs.forward_flops + costs.frozen_flops
    assert costs.memory["single", False].frozen == 4 * encoder.parameters
    with pytest.raises(UserError, match="encoder is nothing, whose size is not known"):
        size_of("nothing", "encoder")


def test_the_command_prints_it(tiny: Tiny, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    save_config(tiny(batch_size=16), tmp_path / "c.yaml")
    (tmp_path / "more.yaml").write_text("steps: 77\n")
    files = ["--config", str(tmp_path / "c.yaml"), str(tmp_path / "more.yaml")]
    assert main(["info", *files, "--gpus", "4", "--peak-tflops", "2", "--mfu", "0.5"]) == 0
    text = capsys.readouterr().out
    assert "77 steps of 16 images" in text and "50% of 2 TFLOPs on 4 GPUs" in text
    assert "fsdp, recomputed" in text and "activations (4 images)" in text
    assert not (tmp_path / "run").exists()
