"""REPA in a run, with a tiny random DINOv2 made here."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import pixelwright as pw
from pixelwright.cli.main import main
from pixelwright.data import DataConfig
from pixelwright.data.loader import as_floats
from pixelwright.errors import UserError
from pixelwright.models.vision import positions
from pixelwright.training import build_trainer, load_config, train
from pixelwright.training.config_file import save_config
from pixelwright.training.loggers import read_log
from pixelwright.training.objectives import RepaConfig
from pixelwright.training.objectives.teacher import Cache, Teacher, teacher_grid

from .conftest import Tiny, same_state

pytestmark = pytest.mark.usefixtures("no_extras")
SIZE = 32  # of images: 2 x 2 tokens of the teacher


def aligned(tiny: Tiny, dino: Path, run: str = "run", **changes: Any) -> Any:
    """A tiny run with REPA after the first of two blocks."""
    repa = RepaConfig(teacher=str(dino), depth=1, **changes.pop("repa", {}))
    data = DataConfig(path="shapes", size=SIZE, shapes_count=24, flip=True)
    return tiny(run, data=data, objectives=(repa,), **{"steps": 6, "checkpoint_every": 3, **changes})


def images(count: int = 3, size: int = SIZE) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(("side", "stride"), [(64, 16), (32, 8)])
def test_tokens_are_those_of_the_normalised_resized_image(dino: Path, side: int, stride: int) -> None:
    from transformers import Dinov2Model

    teacher = Teacher(str(dino), stride=stride).train()
    assert not teacher.training
    x = images(size=side)  # 4 x 4 patches: the table needs no interpolation
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    shown = F.interpolate(((x + 1) / 2 - mean) / std, (56, 56), mode="bicubic")
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(dino).eval()(shown).last_hidden_state[:, 1:]
    tokens = teacher(x)
    assert tokens.shape == (3, 16, 24)
    torch.testing.assert_close(tokens, expected, rtol=1e-3, atol=1e-4)  # rounded to float16
    assert torch.equal(tokens, tokens.half().float())
    assert teacher_grid((64, 32), 16) == (4, 2)


def test_more_tokens_of_a_smaller_stride(tiny: Tiny, dino: Path, tmp_path: Path) -> None:
    """Tokens of another stride are kept apart in the cache."""
    bytes_ = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mirrored, cpu = torch.tensor([False, False]), torch.device("cpu")
    found = [Cache(Teacher(str(dino), stride=s), tmp_path)(bytes_, mirrored, cpu) for s in (16, 8)]
    assert [each.shape[1] for each in found] == [4, 16]
    train(aligned(tiny, dino, steps=1, repa={"stride": 8}))


def test_the_table_is_sampled_with_the_offset_of_its_authors() -> None:
    """By hand: output i looks at (i + 0.5)·n/(grid + 0.1) − 0.5, with the cubic kernel of a = −0.75."""
    table = torch.randn(1, 1 + 25, 3, dtype=torch.float64)

    def kernel(x: float) -> float:
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    def matrix(out: int) -> torch.Tensor:
        rows = torch.zeros(out, 5, dtype=torch.float64)
        for i in range(out):
            at = (i + 0.5) * 5 / (out + 0.1) - 0.5
            for k in range(int(at // 1) - 1, int(at // 1) + 3):
                rows[i, min(max(k, 0), 4)] += kernel(at - k)
        return rows

    plane = table[0, 1:].view(5, 5, 3)
    expected = torch.einsum("ri,cj,ijk->rck", matrix(3), matrix(2), plane).flatten(0, 1)
    found = positions(table, 3, 2)
    assert torch.equal(found[:, 0], table[:, 0])
    torch.testing.assert_close(found[0, 1:], expected, rtol=1e-4, atol=1e-5)
    assert positions(table, 5, 5) is table


def test_cache_gives_what_the_teacher_gives(dino: Path, tmp_path: Path) -> None:
    teacher, cpu = Teacher(str(dino)), torch.device("cpu")
    x, calls = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8), []
    flipped = torch.tensor([True, False, True, False, False])
    hook = teacher.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    first = Cache(teacher, tmp_path)(x[:3], flipped[:3], cpu)
    second = Cache(teacher, tmp_path)(x, flipped, cpu)
    Cache(teacher, tmp_path)(x[:1], ~flipped[:1], cpu)
    hook.remove()
    assert calls == [3, 2, 1]
    assert torch.equal(second[:3], first)
    torch.testing.assert_close(second, teacher(as_floats(x, flipped)), rtol=1e-3, atol=1e-4)
    damaged = next(tmp_path.rglob("*.safetensors"))
    damaged.write_bytes(b"nothing")
    assert torch.equal(Cache(teacher, tmp_path)(x, flipped, cpu), second)


def test_continued_run_ends_alike_with_and_without_cache(tiny: Tiny, dino: Path, tmp_path: Path) -> None:
    train(aligned(tiny, dino, "whole"))
    train(aligned(tiny, dino, "parts", steps=3))
    train(aligned(tiny, dino, "parts", repa={"cache": str(tmp_path / "cache")}))
    whole, parts = (build_trainer(aligned(tiny, dino, name)).state() for name in ("whole", "parts"))
    assert all(key.startswith("1.projector.") for key in whole["objectives"])
    assert any(key.startswith("objectives.1.projector.") for key in whole["optimizer"])
    same_state(whole, parts)
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("whole", "parts")]
    assert [line["repa_loss"] for line in logs[0]] == [line["repa_loss"] for line in logs[1]]
    assert all(0 < line["repa_loss"] < 2 for line in logs[0])


def test_the_projector_is_trained_and_not_exported(tiny: Tiny, dino: Path) -> None:
    config = aligned(tiny, dino)
    before = {k: v.clone() for k, v in build_trainer(config).state()["objectives"].items()}
    run = train(config)
    after = build_trainer(config).state()["objectives"]
    assert all(not torch.equal(before[key], after[key]) for key in before)
    assert not any("projector" in key for key in pw.load(run / "model").state_dict())


def test_alignment_pulls_only_until_its_end(tiny: Tiny, dino: Path) -> None:
    """It changes the weights while it lasts; from its end on the model's gradients are those without it."""
    during = build_trainer(aligned(tiny, dino))
    plain = build_trainer(dataclasses.replace(during.config, objectives=()))  # type: ignore[type-var]
    over = build_trainer(aligned(tiny, dino, repa={"until": 1}))
    over.step = 1
    batch = next(plain._inputs())
    losses = [trainer.gradients(batch)[0] for trainer in (plain, during, over)]
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])  # the log's loss is that of flow matching
    first = "backbone.patch_embedder.weight"
    grads = [dict(trainer.model.named_parameters())[first].grad for trainer in (plain, during, over)]
    # adaLN-Zero and the zero output layer: at the start only alignment reaches the first layer
    assert not torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


def test_accumulation_gives_the_same_gradient(tiny: Tiny, dino: Path) -> None:
    whole, parts = build_trainer(aligned(tiny, dino)), build_trainer(aligned(tiny, dino, accumulate=2))
    batch = next(whole._inputs())
    whole.gradients(batch), parts.gradients(batch)
    for (name, p), (_, q) in zip(whole.losses.named(), parts.losses.named(), strict=True):
        if p.grad is not None and q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"repa": {"weight": 0.0}}, "weight is 0.0"),
        ({"repa": {"until": 0}}, "repa.until is 0"),
        ({"model_depth": 9}, "repa.depth is 9, but the model has 2 global blocks"),
        ({"repa": {"stride": 12}}, "images are 32x32: with repa both sides must be multiples of 12"),
        ({"size": 24}, "images are 24x24: with repa both sides must be multiples of 16"),
    ],
)
def test_bad_settings(tiny: Tiny, dino: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        config = aligned(tiny, dino, repa=changes.get("repa", {}))
        if "model_depth" in changes:
            deeper = dataclasses.replace(config.objectives[0], depth=changes["model_depth"])
            dataclasses.replace(config, objectives=(deeper,))
        if "size" in changes:
            dataclasses.replace(config, data=dataclasses.replace(config.data, size=changes["size"]))
    assert told in str(error.value)


def test_no_such_teacher(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"repa.teacher .*nothing cannot be read"):
        build_trainer(aligned(tiny, tmp_path / "nothing"))


def test_settings_from_file_and_command_line(tiny: Tiny, dino: Path, tmp_path: Path) -> None:
    config = aligned(tiny, dino)
    save_config(config, tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml") == config
    words = ["--objectives.repa.weight", "0.25", "--steps", "1"]
    assert main(["train", "--config", str(tmp_path / "c.yaml"), *words]) == 0
    (written,) = load_config(Path(config.run) / "config.yaml").objectives
    assert written == dataclasses.replace(config.objectives[0], weight=0.25)
