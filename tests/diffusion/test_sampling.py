"""Solvers against the public trajectories and known orders; guidance; sampling a model."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pixelwright as pw
from pixelwright.diffusion import sample as sampling
from pixelwright.diffusion.flow import shift_time
from pixelwright.diffusion.guidance import AutoGuidance, CFGPlusPlus, IntervalCFG
from pixelwright.diffusion.solvers import SOLVERS, Step, Velocity, solve, timesteps
from pixelwright.errors import NotFinite
from pixelwright.models.config import SamplerSettings
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.models.prediction import to_velocity
from tests.recordings import recording

# Recording -> the public name of a sampler -> solver, ends of the interval.
PUBLIC_NAMES = {
    "samplers": {"euler": ("euler", "open"), "heun_exact": ("heun", "open"), "ab2": ("ab2-fixed", "open")},
    "pixnerd_samplers": {name: (name, "open") for name in ("euler", "ab2", "ab3", "ab4")},
    "pixelgen_samplers": {
        **{f"euler-{kind}": ("euler", "high") for kind in ("inclusive", "x")},
        **{f"heun-{kind}": ("heun-inexact", "high") for kind in ("inclusive", "x")},
        **{f"heun-exact-{kind}": ("heun", "high") for kind in ("inclusive", "x")},
        "ab2-x": ("ab2", "open"),
    },
}
CASES = [
    pytest.param(name, case, id=f"{name}-{case['key']}")
    for name, known in PUBLIC_NAMES.items()
    for case in recording(name)[1]["cases"]
    if case["sampler"] in known
]


def field(label: Tensor, name: str = "samplers", prediction: str = "velocity") -> Velocity:
    """The analytic network of the recordings."""
    tensors, _ = recording(name)
    w, b = (tensors[f"net.{key}"][label].view(-1, 1, 1, 1) for key in "wb")

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        output = (w * x + b) * torch.cos(3 * t) - 0.5 * x * t
        return to_velocity(output, x, t.expand(len(x)), prediction)

    return velocity


@pytest.mark.parametrize(("name", "case"), CASES)
def test_trajectories_go_where_the_public_ones_do(name: str, case: dict) -> None:
    tensors, _ = recording(name)
    labels, key = tensors["labels"], case["key"]
    null = torch.full_like(labels, len(tensors["net.w"]) - 1)
    network = (name, "x" if case["sampler"].endswith("-x") else "velocity")
    solver, ends = PUBLIC_NAMES[name][case["sampler"]]
    guidance = IntervalCFG(case["guidance"], tuple(case["interval"]), ends)  # type: ignore[arg-type]
    velocity = guidance(field(labels, *network), field(null, *network))
    given, own = (
        tensors[f"{key}.timesteps"],
        timesteps(case["num_steps"], case["timeshift"], last_step=case.get("last_step")),
    )
    for grid in (given,) if name == "samplers" else (given, own):
        steps: list[Step] = []
        x = solve(velocity, tensors["noise"], grid, solver, steps.append)
        assert (x - tensors[f"{key}.x"]).abs().max() < 1e-10
        if f"{key}.trajectory" in tensors:
            passed = torch.stack([*(step.x for step in steps), x])
            assert (passed - tensors[f"{key}.trajectory"]).abs().max() < 1e-10
    assert (given - own).abs().max() < 1e-6  # those of "samplers" were made in float32


def test_the_public_inexact_heun_is_ab2_on_a_uniform_grid() -> None:
    tensors, metadata = recording("samplers")
    case = metadata["cases"][3]
    assert (case["sampler"], case["timeshift"]) == ("heun", 1.0)
    x = solve(field(tensors["labels"]), tensors["noise"], tensors["case3.timesteps"], "ab2")
    assert (x - tensors["case3.x"]).abs().max() < 1e-10


def uneven_grid(steps: int) -> Tensor:
    """Every other step three times as long."""
    times = torch.tensor([1.0, 3.0], dtype=torch.float64).repeat(steps // 2).cumsum(0)
    return torch.cat((torch.zeros(1, dtype=torch.float64), times / times[-1]))


def error(solver: str, grid: Tensor) -> float:
    """Distance to the true end of dx/dt = cos(3t)·x − x/2, which starts at 1."""
    truth = math.exp(math.sin(3.0) / 3 - 0.5)
    start = torch.ones(1, dtype=torch.float64)
    return abs(float(solve(lambda x, t: (torch.cos(3 * t) - 0.5) * x, start, grid, solver)) - truth)


GRIDS = {"uniform": timesteps, "shifted": lambda steps: timesteps(steps, 3.0), "uneven": uneven_grid}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    ("solver", "order"),
    [("euler", 1), ("heun", 2), ("heun-inexact", 2), ("ab2", 2), ("ab2-fixed", 2), ("dpmpp-2m", 2)],
)
def test_halving_the_steps_shows_each_solvers_order(solver: str, grid: str, order: int) -> None:
    if (solver, grid) == ("ab2-fixed", "uneven"):
        order = 1  # its weights are those of equal steps
    many = 1600 if solver == "dpmpp-2m" else 400  # its error goes like h²·log h, so it shows later
    measured = math.log2(error(solver, GRIDS[grid](many)) / error(solver, GRIDS[grid](2 * many)))
    assert measured == pytest.approx(order, abs=0.6 if solver == "dpmpp-2m" else 0.1)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("solver", "order"), [("ab2", 2), ("ab3", 3), ("ab4", 4)])
def test_polynomials_in_time_are_integrated_exactly_after_the_start(
    solver: str, order: int, grid: str
) -> None:
    seen: list[Tensor] = []
    times, start = GRIDS[grid](12), torch.ones(1, dtype=torch.float64)
    x = solve(lambda _, t: t.pow(order - 1)[None], start, times, solver, lambda step: seen.append(step.x))
    found = torch.cat((*seen, x)).diff()
    exact = times.pow(order).diff() / order
    assert (found - exact)[order - 1 :].abs().max() < 1e-14 < (found - exact)[0].abs()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_straight_path_is_followed_exactly(solver: str) -> None:
    start = torch.tensor([2.0, -1.0], dtype=torch.float64)
    x = solve(lambda x, t: torch.full_like(x, 3.0), start, timesteps(7, 2.0), solver)
    torch.testing.assert_close(x, start + 3.0, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_state_keeps_its_dtype(solver: str, dtype: torch.dtype) -> None:
    x = solve(lambda x, t: -x, torch.ones(2, dtype=dtype), timesteps(4), solver)
    assert x.dtype == dtype


def test_the_null_branch_is_evaluated_only_strictly_inside_the_interval() -> None:
    seen: list[float] = []

    def null(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t))
        return 0 * x

    velocity = IntervalCFG(3.0, (0.25, 0.75))(lambda x, t: x, null)
    solve(velocity, torch.ones(1), timesteps(8), "euler")
    assert seen == [0.375, 0.5, 0.625]
    at = {t: float(velocity(torch.ones(1), torch.tensor(t))) for t in (0.25, 0.5, 0.75)}
    assert at == {0.25: 1.0, 0.5: 3.0, 0.75: 1.0}


@pytest.mark.parametrize(("ends", "inside"), [("open", [0.25]), ("zero", [0.0, 0.25]), ("high", [0.25, 0.5])])
def test_ends_differ_at_the_ends_of_the_interval(ends: Any, inside: list[float]) -> None:
    velocity = IntervalCFG(3.0, (0.0, 0.5), ends)(lambda x, t: x, lambda x, t: 0 * x)
    times = (0.0, 0.25, 0.5, 0.75)
    assert [t for t in times if velocity(torch.ones(1), torch.tensor(t)) == 3] == inside
    never = IntervalCFG(3.0, (0.25, 0.25), ends)(lambda x, t: x, lambda x, t: 0 * x)
    assert all(never(torch.ones(1), torch.tensor(t)) == 1 for t in times)


@pytest.mark.parametrize(("ends", "evaluated"), [("open", [0.5, 0.5]), ("high", [0.5, 0.75])])
def test_the_interval_is_held_against_the_evaluation_or_the_start_of_its_step(
    ends: Any, evaluated: list[float]
) -> None:
    seen: list[float] = []

    def null(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t))
        return 0 * x

    velocity = IntervalCFG(3.0, (0.25, 0.6), ends)(lambda x, t: x, null)
    solve(velocity, torch.ones(1), timesteps(4), "heun")  # evaluates 0, ¼ | ¼, ½ | ½, ¾ | ¾
    assert seen == evaluated


@given(st.integers(2, 50), st.floats(0.001, 0.9), st.floats(0.2, 5))
def test_the_last_step_has_the_length_that_is_asked_for(steps: int, last: float, shift: float) -> None:
    grid = timesteps(steps, last_step=last)
    assert grid[-1] - grid[-2] == pytest.approx(last) and len(grid) == steps + 1
    assert grid[:-1].diff().numpy() == pytest.approx((1 - last) / (steps - 1))
    assert torch.equal(timesteps(steps, shift, last_step=last), shift_time(grid, shift))


def test_guidance_of_one_never_evaluates_the_null_branch() -> None:
    def null(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("evaluated")

    assert IntervalCFG(1.0)(lambda x, t: x, null)(torch.ones(1), torch.tensor(0.5)) == 1


@given(st.integers(1, 200), st.floats(0.2, 5))
def test_the_grid_rises_from_0_to_1(steps: int, time_shift: float) -> None:
    grid = timesteps(steps, time_shift)
    assert grid.dtype == torch.float64 and len(grid) == steps + 1
    assert (grid[0], grid[-1]) == (0, 1) and (grid.diff() > 0).all()


@given(st.integers(0, 10), st.integers(0, 50), st.integers(1, 4))
def test_noise_is_a_function_of_seed_and_index(seed: int, start: int, count: int) -> None:
    noise = sampling.noise_of(range(start, start + count), (4, 6), seed)
    assert torch.equal(noise[-1:], sampling.noise_of([start + count - 1], (4, 6), seed))
    other = sampling.noise_of([start + count - 1], (4, 6), seed + 1)
    assert not torch.equal(noise[-1:], other)


# --- A model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> PixelDenoiser:
    more = {"image_size": (8, 12), "class_names": ("a", "b", "c", "b")}
    return with_weights(pw.create("pixeldit-n-4", num_classes=4, **more))


def with_weights(model: PixelDenoiser, std: float = 0.05) -> PixelDenoiser:
    """The model without a weight that is zero."""
    torch.manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    return model


def draw(model: PixelDenoiser, labels: object, **given: Any) -> Tensor:
    """`pw.sample` with the settings of the sampler among the others."""
    names = {f.name for f in dataclasses.fields(SamplerSettings)}
    sampler = SamplerSettings(**{name: value for name, value in given.items() if name in names})
    more = {name: value for name, value in given.items() if name not in names}
    return pw.sample(model, labels, sampler, **more)


SETTINGS = {"steps": 4, "guidance_scale": 2.0, "guidance_interval": (0.1, 0.9)}


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 3))
def test_batches_of_1_3_and_8_draw_the_same_images(model: PixelDenoiser, seed: int) -> None:
    labels = [0, 1, 2, 3, 0, 1, 2, 3]
    whole = draw(model, labels, seed=seed, **SETTINGS)
    assert whole.shape == (8, 8, 12, 3) and whole.dtype == torch.uint8
    for batch_size in (1, 3):
        parts = draw(model, labels, seed=seed, batch_size=batch_size, **SETTINGS)
        apart = (whole.int() - parts.int()).abs()
        assert apart.max() <= 1 and (apart > 0).float().mean() < 1e-3
    last = draw(model, labels[5:], seed=seed, start_index=5, **SETTINGS)
    assert (whole[5:].int() - last.int()).abs().max() <= 1
    some = draw(model, [labels[4], labels[1]], seed=seed, start_index=[4, 1], **SETTINGS)
    assert (whole[[4, 1]].int() - some.int()).abs().max() <= 1


GUIDED = SamplerSettings(guidance_scale=2.0, guidance_interval=(0.3, 0.8))


def test_one_batched_call_equals_two_functions(model: PixelDenoiser) -> None:
    labels = torch.tensor([0, 3])
    null = torch.tensor([4, 4])
    noise = sampling.noise_of([0, 1], (8, 12), 1)

    def branch(y: Tensor) -> Velocity:
        return lambda x, t: model(x, t.float().expand(len(x)), y)

    calls = []
    hook = model.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    grid = timesteps(4)
    with torch.no_grad():
        batched = solve(sampling.model_velocity(model, labels, GUIDED), noise, grid)
        assert calls == [2, 2, 4, 4]  # t = 0, 1/4 outside the interval; 1/2, 3/4 inside
        hook.remove()
        apart = solve(IntervalCFG(2.0, (0.3, 0.8))(branch(labels), branch(null)), noise, grid)
    torch.testing.assert_close(batched, apart, rtol=1e-5, atol=1e-5)


def test_the_callback_sees_every_step_and_the_model_keeps_its_mode(model: PixelDenoiser) -> None:
    seen: list[Step] = []
    model.train()
    images = draw(model, ["a"], steps=5, solver="euler", callback=seen.append)
    assert model.training
    assert [step.index for step in seen] == [0, 1, 2, 3, 4]
    assert [step.t for step in seen] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    # The last Euler step goes all the way along the last velocity: x0 there is the image.
    assert torch.equal(pw.images.to_uint8(seen[-1].denoised), images)


def test_labels_are_indices_or_names(model: PixelDenoiser) -> None:
    assert sampling.as_labels(["c", "a"], model.config).tolist() == [2, 0]
    with pytest.raises(pw.UserError, match=r'"b" could be class 1 \("b"\) or 3 \("b"\): give the number'):
        sampling.as_labels(["c", "b"], model.config)
    assert sampling.as_labels(torch.tensor([4]), model.config).tolist() == [4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [5]}, "label 5 is outside 0 to 3"),
        ({"labels": [-1]}, "-1"),
        ({"labels": []}, "at least one"),
        ({"labels": ["z"]}, 'unknown class "z"'),
        ({"size": (9, 8)}, "9x8"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"solver": "eular"}, r'"eular".*euler'),
        ({"time_shift": -1.0}, "time_shift is -1"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_interval": (0.9, 0.1)}, r"\[0.9, 0.1\]"),
        ({"size": 9}, "9x9"),
        ({"labels": float("nan")}, "label nan"),
        ({"labels": torch.tensor(float("nan"))}, "label nan"),
        ({"guidance": float("nan")}, "guidance_scale is nan"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"start_index": -1}, "start_index is -1"),
        ({"start_index": [0, 1, 2, 3, 4, 5, 6]}, "start_index gives 7 indices"),
    ],
)
def test_mistakes_are_named(model: PixelDenoiser, change: dict, message: str) -> None:
    with pytest.raises(pw.UserError, match=message):
        draw(model, **{"labels": [0], **change})


def test_a_model_that_gives_nan_is_named_with_the_images(model: PixelDenoiser) -> None:
    def broken(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return torch.where(condition[:, None, None, None] == 2, torch.nan, -x)

    broken.config, broken.device = model.config, model.device  # type: ignore[attr-defined]
    assert pw.sample(broken, [0, 1], SamplerSettings(steps=2)).shape[0] == 2  # type: ignore[arg-type]
    with pytest.raises(NotFinite, match=r"image 8, 10\).*precision fp32, or attention math") as error:
        pw.sample(broken, [0, 2, 1, 2], SamplerSettings(steps=2), start_index=7)  # type: ignore[arg-type]
    assert error.value.exit_code == 3


def test_a_side_and_a_single_label_will_do(model: PixelDenoiser) -> None:
    square = draw(model, [1], size=(8, 8), steps=2)
    assert torch.equal(draw(model, torch.tensor(1), size=8, steps=2), square)
    assert torch.equal(draw(model, 1, size=8, steps=2), square)


# --- Guidance objects --------------------------------------------------------------------------------------
def test_without_an_interval_guidance_is_on_at_pure_noise_too(model: PixelDenoiser) -> None:
    one = {"steps": 1, "guidance_scale": 300.0}
    plain = draw(model, [0, 1], steps=1)
    assert not torch.equal(draw(model, [0, 1], **one), plain)
    assert torch.equal(draw(model, [0, 1], **one, guidance_interval=(0.0, 1.0)), plain)


def test_a_number_replaces_the_scale_and_keeps_the_interval(model: PixelDenoiser) -> None:
    inside = {"guidance_interval": (0.1, 0.9), "steps": 3}
    scaled = draw(model, [0, 1], guidance_scale=2.0, **inside)
    assert torch.equal(draw(model, [0, 1], guidance=2.0, **inside), scaled)


def test_autoguidance_leads_away_from_the_weak_model(model: PixelDenoiser) -> None:
    labels, x, t = torch.tensor([0, 2]), sampling.noise_of([0, 1], (8, 12), 3), torch.tensor(0.4)
    strong = model(x, t.expand(2), labels).detach()

    def guided(weak: Any) -> Tensor:
        with torch.no_grad():
            return sampling.model_velocity(model, labels, SamplerSettings(), AutoGuidance(2.5, weak))(x, t)

    torch.testing.assert_close(guided(lambda x, t, y: 0.1 * x), 0.1 * x + 2.5 * (strong - 0.1 * x))
    torch.testing.assert_close(guided(model), strong, rtol=1e-4, atol=1e-5)


def test_an_euler_step_of_cfg_plus_plus_renoises_with_the_null_branch() -> None:
    times = timesteps(5, 2.0)
    x, (v_cond, v_null) = torch.randn(3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    guided = CFGPlusPlus(0.6, times)(lambda x, t: v_cond, lambda x, t: v_null)
    t, t_next = times[2], times[3]
    data, noise = x + (1 - t) * (v_null + 0.6 * (v_cond - v_null)), x - t * v_null
    torch.testing.assert_close(x + (t_next - t) * guided(x, t), t_next * data + (1 - t_next) * noise)


FLOW_CASES = [case for case in recording("samplers")[1]["cases"] if case["sampler"] == "dpmpp_2m_flow_t2i"]


@pytest.mark.parametrize("case", FLOW_CASES, ids=lambda case: case["key"])
def test_dpmpp_2m_ends_where_the_public_text_to_image_sampler_does(case: dict) -> None:
    """Recorded in σ = 1−t and v = ε−x; its grid is 0.999 … 0 before the shift, which is that of the presets.

    The public code has times and weights of the steps in float32, so 1e-6 is what can be asked for.
    """
    tensors, _ = recording("samplers")
    labels = tensors["labels"]
    null = torch.full_like(labels, len(tensors["net.w"]) - 1)

    def ours(label: Tensor) -> Velocity:
        theirs = field(label)
        return lambda x, t: -theirs(x, 1 - t)

    velocity = IntervalCFG(case["guidance"])(ours(labels), ours(null))
    start = pw.hub.SAMPLER_PRESETS["pixeldit-t2i-1024"].time_start

    def error(time_start: float) -> float:
        grid = timesteps(case["num_steps"], case["timeshift"], time_start)
        x = solve(velocity, tensors["noise"], grid, "dpmpp-2m")
        return float((x - tensors[f"{case['key']}.x"]).abs().max())

    assert error(start) < 1e-6 < 1e-4 < error(0.0)


def test_the_text_to_image_presets_start_where_the_public_sampler_does() -> None:
    for size, shift in ((512, 3.0), (1024, 4.0)):
        preset = pw.hub.SAMPLER_PRESETS[f"pixeldit-t2i-{size}"]
        times = timesteps(preset.steps, preset.time_shift, preset.time_start)
        assert preset.time_shift == shift and float(times[-1]) == 1
        assert float(1 - times[0]) == pytest.approx(shift * 0.999 / (1 + (shift - 1) * 0.999), abs=1e-12)


def test_a_start_outside_0_to_1_is_refused() -> None:
    for start in (-0.1, 1.0, float("nan")):
        with pytest.raises(pw.UserError, match=f"time_start is {start}"):
            timesteps(4, 1.0, start)
