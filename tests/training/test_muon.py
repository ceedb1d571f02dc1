"""Muon: which weights are its own, what an update is, and what leaves it as it was."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from pixelwright.errors import UserError
from pixelwright.models import presets
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.training import OptimConfig, build_trainer
from pixelwright.training.config import OptimGroup
from pixelwright.training.muon import is_hidden, orthogonal
from pixelwright.training.optim import build_optimizer, optimizer_state, update

from .conftest import Tiny, same_state

pytestmark = pytest.mark.usefixtures("no_extras")
TAKEN = torch.tensor(True)
MUON = OptimConfig(name="muon", lr=0.01, weight_decay=0.1)


def matrices(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def step(
    named: list[tuple[str, nn.Parameter]], config: OptimConfig = MUON, taken: torch.Tensor = TAKEN
) -> Any:
    optimizer = build_optimizer(named, config)
    for _, p in named:
        p.grad = matrices(*p.shape)
    update(optimizer, config.lr, taken)
    return optimizer


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 8, 24), (2, 24, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_become_equal(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    u, _, v = torch.linalg.svd(matrices(*shape), full_matrices=False)
    x = u * torch.logspace(-0.75, 0.75, u.shape[-1]) @ v
    found = orthogonal(x.to(dtype)).float()
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6 and values.max() < 1.3
    cosine = nn.functional.cosine_similarity(found.flatten(1), (u @ v).flatten(1))
    assert cosine.min() > 0.97
    assert not orthogonal(torch.zeros(shape, dtype=dtype)).any()
    tiny = orthogonal((x * 2**-40).to(dtype)).float()  # whose fourth powers are 0 in float32
    torch.testing.assert_close(tiny, found, rtol=1e-4, atol=1e-4)
    for power in (
        *range(-150, -40, 5),
        *range(40, 120, 5),
    ):  # and what is out of range fades, but never jumps
        assert orthogonal((x * 2.0**power).to(dtype)).norm() < 1.2 * found.norm()
    torch.testing.assert_close(orthogonal(x.to(dtype), torch.tensor(0.125)).float(), found / 8)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with 2.9")
@pytest.mark.parametrize("shape", [(16, 16), (16, 48), (48, 16)])
def test_a_matrix_is_moved_as_exactly_and_by_torchs_own(shape: tuple[int, ...]) -> None:
    start = matrices(*shape)
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    optimizer = build_optimizer([("blocks.0.proj.weight", ours)], MUON, torch.bfloat16)
    own = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    exact, mean = start.double(), torch.zeros_like(start, dtype=torch.double)
    for gradient in matrices(4, *shape):
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        update(optimizer, 0.01, TAKEN)
        own.step()
        mean.lerp_(gradient.double(), 0.05)
        u, _, v = torch.linalg.svd(gradient.double().lerp(mean, 0.95), full_matrices=False)
        exact = exact * (1 - 0.01 * 0.1) - 0.01 * 0.2 * max(shape) ** 0.5 * u @ v
    expected = (exact - start).flatten()
    for moved in ((p.detach().double() - start).flatten() for p in (ours, theirs)):
        # Either Newton-Schulz leaves singular values between 0.7 and 1.3.
        assert nn.functional.cosine_similarity(moved, expected, dim=0) > 0.99
        assert moved.norm() == pytest.approx(expected.norm().item(), rel=0.15)


def test_every_weight_moves_by_the_rms_of_adamw() -> None:
    shapes = {"proj": (16, 16), "w2": (16, 40), "conv": (16, 8, 3, 3), "qkv": (48, 16), "w13": (80, 16)}
    named = [(f"blocks.0.{name}.weight", nn.Parameter(torch.zeros(*s))) for name, s in shapes.items()]
    step(named)
    for name, p in named:
        assert float(p.detach().square().mean().sqrt()) == pytest.approx(0.01 * 0.2, rel=0.2), name


@pytest.mark.parametrize("size", [1e-11, 1e6])
def test_size_of_a_gradient_does_not_count(size: float) -> None:
    moved = []
    for factor in (1.0, size):
        p = nn.Parameter(matrices(16, 16))
        p.grad = matrices(16, 16) * factor
        update(build_optimizer([("blocks.0.proj.weight", p)], MUON), 0.01, TAKEN)
        moved.append(p.detach())
    torch.testing.assert_close(*moved, rtol=1e-3, atol=1e-4)


def test_channels_last_changes_nothing() -> None:
    moved = []
    for layout in (torch.contiguous_format, torch.channels_last):
        p = nn.Parameter(matrices(16, 8, 3, 3).to(memory_format=layout))
        p.grad = (matrices(16, 8, 3, 3) + 1).to(memory_format=layout)
        update(build_optimizer([("detailer.conv.weight", p)], MUON), 0.01, TAKEN)
        moved.append(p.detach())
    assert torch.equal(*moved)


@pytest.mark.parametrize(("name", "parts"), [("qkv", 3), ("qkv", 6)])
def test_merged_matrices_are_moved_each_for_itself(name: str, parts: int) -> None:
    norms = [("blocks.0.q_norm.weight", nn.Parameter(torch.ones(8)))] if parts == 6 else []  # two heads of 8
    merged = nn.Parameter(matrices(parts * 8, 8))
    alone = [
        (f"blocks.{i}.proj.weight", nn.Parameter(x.clone()))
        for i, x in enumerate(merged.detach().chunk(parts))
    ]
    gradient = matrices(parts * 8, 8) * torch.arange(1, parts + 1).repeat_interleave(8)[:, None]
    for named, gradients in (
        ([(f"blocks.0.{name}.weight", merged), *norms], [gradient]),
        (alone, gradient.chunk(parts)),
    ):
        optimizer = build_optimizer(named, MUON)
        for (_, p), g in zip(named, gradients, strict=False):  # none for the norms
            p.grad = g
        update(optimizer, 0.01, TAKEN)
    torch.testing.assert_close(merged.detach(), torch.cat([p.detach() for _, p in alone]))


@pytest.mark.parametrize("name", ["dit-ti-4", "dip-ti-4", "pixeldit-ti-4", "pixeldit-t2i-ti", "dip-t2i-ti"])
def test_hidden_weights_are_those_of_blocks_and_detailers(name: str) -> None:
    with torch.device("meta"):
        model = PixelDenoiser(presets.preset(name))
    hidden = {n for n, p in model.named_parameters() if is_hidden(n, p)}
    for n, _ in model.named_parameters():
        leaf = n.split(".")[-2]
        if leaf in (
            "qkv",
            "proj",
            "w13",
            "w2",
            "compress",
            "expand",
            "fc1",
            "fc2",
            "conv",
            "upsample",
            "bottleneck",
        ):
            assert (n in hidden) == (n.endswith("weight") and "embedder" not in n), n
        else:
            assert n not in hidden, n
    assert len(hidden) > 20


def test_groups_divide_muons_weights_too() -> None:
    groups = (OptimGroup("blocks.1.*", lr_factor=0.5, weight_decay=0.0),)
    named = [(f"blocks.{i}.proj.weight", nn.Parameter(torch.zeros(8, 8))) for i in range(2)]
    step(named, OptimConfig(name="muon", lr=0.01, groups=groups))
    torch.testing.assert_close(named[1][1] * 2, named[0][1])


def test_a_step_left_out_changes_no_bit(tiny: Tiny) -> None:
    trainer = build_trainer(tiny(optim=MUON))
    batch = next(trainer._inputs())
    trainer.train_step(batch)
    before = copy.deepcopy(trainer.state())
    trainer.train_step(batch._replace(images=batch.images * float("nan")))
    after = trainer.state()
    assert any(key.endswith(".momentum") for key in before["optimizer"])
    for group in ("model", "optimizer"):
        same_state({group: before[group]}, {group: after[group]})


def test_matrices_have_one_slot_and_the_rest_adamws() -> None:
    named = [
        ("blocks.0.proj.weight", nn.Parameter(torch.zeros(8, 8))),
        ("bias", nn.Parameter(torch.zeros(8))),
    ]
    state = optimizer_state(step(named), named)
    assert sorted(state) == ["bias.exp_avg", "bias.exp_avg_sq", "bias.step", "blocks.0.proj.weight.momentum"]


def test_muon_takes_three_betas() -> None:
    assert OptimConfig(name="muon").betas == (0.9, 0.95, 0.95)
    with pytest.raises(UserError, match="give 3 numbers for muon"):
        OptimConfig(name="muon", betas=(0.9, 0.99))
    with pytest.raises(UserError, match=r"update_rms is 0\.4, which adamw has no use for"):
        OptimConfig(update_rms=0.4)
