"""The diffusers pipeline: the same images as our solvers, diffusers' conventions, mistakes named."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import pixelwright as pw
from pixelwright.diffusion.sample import model_velocity, noise_of
from pixelwright.diffusion.solvers import solve, timesteps
from pixelwright.models.config import Provenance, SamplerPreset
from pixelwright.models.denoiser import PixelDenoiser

diffusers = pytest.importorskip("diffusers", reason='needs pip install "pixelwright[diffusers]"')
from pixelwright.hub.diffusers import PixelDenoiserModel, PixelDenoiserPipeline, lay_grid  # noqa: E402

# diffusers' DPM-Solver and UniPC turn a tensor into an array in a way that NumPy is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def euler(shift: float = 1.0, **settings: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, **settings)


def heun(shift: float = 1.0) -> Any:
    return diffusers.FlowMatchHeunDiscreteScheduler(shift=shift)


def dpm(shift: float = 1.0, **settings: Any) -> Any:
    return diffusers.DPMSolverMultistepScheduler(flow_shift=shift, **FLOW, **settings)


def unipc(shift: float = 1.0, **settings: Any) -> Any:
    return diffusers.UniPCMultistepScheduler(flow_shift=shift, **FLOW, **settings)


SCHEDULERS = {"euler": euler, "heun": heun, "dpm": dpm, "unipc": unipc}
SAME = {"euler": "euler", "heun": "heun", "dpm": "dpmpp-2m"}  # our solver
OTHER = {"euler": "heun", "heun": "dpmpp-2m", "dpm": "heun"}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Sums in one order, whatever the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> PixelDenoiser:
    """A small network with a curved flow: one Euler step misses the end by more than 0.1."""
    size = {"image_size": (8, 12), "hidden_size": 32, "depth": 2, "num_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = pw.create("dit-n-4", num_classes=4, class_names=("a", "b", "c", "b"), **size).eval()
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.2)
    return model


NOISE = noise_of(range(2), (8, 12), seed=3)
LABELS = [1, 3]


def pipeline(model: PixelDenoiser, scheduler: Any = None) -> PixelDenoiserPipeline:
    pipe = PixelDenoiserPipeline.from_model(model, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(model: PixelDenoiser, scheduler: Any, steps: int, **settings: Any) -> Tensor:
    call = {"latents": NOISE, "output_type": "latent", "num_inference_steps": steps, **settings}
    return pipeline(model, scheduler)(LABELS, **call).images


@torch.no_grad()
def ours(model: PixelDenoiser, solver: str, grid: Tensor, scale: float = 1.0, interval: Any = None) -> Tensor:
    sampler = SamplerPreset(guidance_scale=scale, guidance_interval=interval)
    velocity = model_velocity(model, torch.tensor(LABELS), sampler)
    return solve(velocity, NOISE, grid, solver)


# --- The same images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "interval"), [(1.0, None), (3.0, None), (2.0, (0.2, 0.8))])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
@pytest.mark.parametrize("name", SAME)
def test_the_images_are_those_of_our_solver(
    model: PixelDenoiser, name: str, steps: int, shift: float, scale: float, interval: Any
) -> None:
    x = theirs(model, SCHEDULERS[name](shift), steps, guidance_scale=scale, guidance_interval=interval)
    same = ours(model, SAME[name], timesteps(steps, shift), scale, interval)
    assert (x - same).abs().max() < 1e-4
    if steps == 20:  # and the comparison means something: another solver gives other images
        other = ours(model, OTHER[name], timesteps(steps, shift), scale, interval)
        assert (x - other).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["dip-n-4", "pixeldit-n-4"])
def test_both_papers_models_draw_the_same_images(kind: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        small = pw.create(kind, num_classes=4, hidden_size=32, depth=1, num_heads=2, image_size=(8, 12))
        for p in small.parameters():
            torch.nn.init.normal_(p, std=0.1)
    x = theirs(small, euler(), 5, guidance_scale=2.0)
    assert (x - ours(small, "euler", timesteps(5), 2.0)).abs().max() < 1e-4


@pytest.fixture(scope="module")
def limit(model: PixelDenoiser) -> Tensor:
    """What many steps of any solver come to."""
    return ours(model, "heun", timesteps(200))


@pytest.mark.parametrize(
    "scheduler", [unipc(), unipc(solver_order=3), unipc(2.0), dpm(solver_order=3), dpm(2.0)]
)
def test_higher_orders_converge_to_the_same_images(
    model: PixelDenoiser, limit: Tensor, scheduler: Any
) -> None:
    errors = [float((theirs(model, scheduler, steps) - limit).abs().max()) for steps in (5, 20, 80)]
    assert errors[0] > 4 * errors[1] > 8 * errors[2] and errors[2] < 2e-3


def test_another_grid_or_a_wrong_sign_would_be_seen(model: PixelDenoiser) -> None:
    """The schedulers' own grids differ from ours by more than the tolerance of the comparison."""
    own = diffusers.FlowMatchEulerDiscreteScheduler()
    own.set_timesteps(20)
    x = ours(model, "euler", (1 - own.sigmas).double())
    assert (x - ours(model, "euler", timesteps(20))).abs().max() > 1e-3


@pytest.mark.parametrize("name", SCHEDULERS)
@settings(max_examples=20, deadline=None)
@given(steps=st.integers(1, 60), shift=st.floats(0.3, 5))
def test_the_grid_is_ours(name: str, steps: int, shift: float) -> None:
    scheduler = SCHEDULERS[name](shift)
    times = lay_grid(scheduler, steps)
    grid = timesteps(steps, shift)
    assert torch.equal(times.unique(), grid[:-1])
    assert (1 - scheduler.sigmas.unique().flip(0).double() - grid).abs().max() < 2e-6
    assert len(scheduler.timesteps) == len(times) == len(scheduler.sigmas) - 1
    assert len(times) == (2 * steps - 1 if name == "heun" else steps)
    assert scheduler.timesteps.is_floating_point()


def test_the_null_branch_runs_only_inside_the_interval(model: PixelDenoiser) -> None:
    calls: list[int] = []
    hook = model.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    theirs(model, euler(), 4, guidance_scale=2.0, guidance_interval=(0.3, 0.8))
    hook.remove()
    assert calls == [2, 2, 4, 4]  # t = 0, 1/4 outside; 1/2, 3/4 inside, both branches in one call


# --- Noise, batches, outputs -------------------------------------------------------------------------------


def seeds(*values: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(value) for value in values]


@pytest.mark.parametrize(
    "scheduler", [euler(), dpm(algorithm_type="sde-dpmsolver++"), euler(stochastic_sampling=True)]
)
def test_generators_make_images_that_do_not_depend_on_the_batch(model: PixelDenoiser, scheduler: Any) -> None:
    pipe = pipeline(model, scheduler)
    call = {"num_inference_steps": 4, "output_type": "latent", "guidance_scale": 2.0}
    both = pipe([0, 2], generator=seeds(5, 6), **call).images
    assert both.isfinite().all()
    assert torch.equal(both, pipe([0, 2], generator=seeds(5, 6), **call).images)
    assert (both[1:] - pipe([2], generator=seeds(6), **call).images).abs().max() < 1e-4
    assert (both - pipe([0, 2], generator=seeds(7, 8), **call).images).abs().amax((1, 2, 3)).min() > 0.1


def test_one_generator_is_deterministic_and_none_is_random(model: PixelDenoiser) -> None:
    pipe = pipeline(model)
    call = {"num_inference_steps": 1, "output_type": "latent"}
    assert torch.equal(
        pipe(0, generator=seeds(5)[0], **call).images, pipe(0, generator=seeds(5)[0], **call).images
    )
    assert not torch.equal(pipe(0, **call).images, pipe(0, **call).images)


def test_output_types(model: PixelDenoiser) -> None:
    pipe = pipeline(model)
    out = {
        kind: pipe(["a", "c"], latents=NOISE, num_inference_steps=3, output_type=kind).images
        for kind in ("pil", "np", "pt", "latent")
    }
    raw = out["latent"]
    assert raw.shape == (2, 3, 8, 12) and raw.abs().max() > 1
    assert torch.equal(out["pt"], (raw / 2 + 0.5).clamp(0, 1))
    assert isinstance(out["np"], np.ndarray) and out["np"].shape == (2, 8, 12, 3)
    assert np.array_equal(out["np"], out["pt"].permute(0, 2, 3, 1).numpy())
    levels = np.stack([np.asarray(image) for image in out["pil"]])
    assert np.array_equal(levels, pw.images.to_uint8(raw).numpy()) and out["pil"][0].size == (12, 8)
    (images,) = pipe([1], num_inference_steps=1, return_dict=False)
    assert len(images) == 1


def test_noise_of_a_seed_gives_the_images_of_sample(model: PixelDenoiser) -> None:
    images = pw.sample(model, LABELS, SamplerPreset("euler", 6), guidance=2.0, seed=3)
    pil = pipeline(model)(LABELS, latents=NOISE, num_inference_steps=6, guidance_scale=2.0).images
    apart = np.abs(np.stack([np.asarray(image) for image in pil]).astype(int) - images.numpy().astype(int))
    assert apart.max() <= 1 and (apart > 0).mean() < 0.01


def test_size_is_asked_for_or_the_noises_or_the_models(model: PixelDenoiser) -> None:
    pipe = pipeline(model)
    call = {"num_inference_steps": 1, "output_type": "pt"}
    assert pipe([0], **call).images.shape == (1, 3, 8, 12)
    assert pipe([0], height=16, **call).images.shape == (1, 3, 16, 12)
    assert pipe([0], latents=torch.zeros(1, 3, 4, 20), **call).images.shape == (1, 3, 4, 20)


# --- Callbacks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "evaluations"), [("euler", 5), ("heun", 9), ("dpm", 5), ("unipc", 5)])
def test_the_callback_sees_every_evaluation(model: PixelDenoiser, name: str, evaluations: int) -> None:
    pipe = pipeline(model, SCHEDULERS[name]())
    seen: list[tuple[int, float]] = []
    last: list[Tensor] = []

    def look(pipe: Any, i: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((i, float(t)))
        last[:] = [tensors["latents"]]
        return {}

    call = {"latents": NOISE, "num_inference_steps": 5, "output_type": "latent"}
    images = pipe(LABELS, callback_on_step_end=look, **call).images
    assert [i for i, _ in seen] == list(range(evaluations)) and pipe.num_timesteps == evaluations
    assert seen[0][1] == pytest.approx(1000, abs=0.01) and seen[-1][1] == pytest.approx(200)
    assert torch.equal(images, last[0])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_callback_can_stop_and_the_next_run_starts_afresh(model: PixelDenoiser, name: str) -> None:
    pipe = pipeline(model, SCHEDULERS[name]())
    call = {"latents": NOISE, "num_inference_steps": 5, "output_type": "latent"}
    whole = pipe(LABELS, **call).images
    states: list[Tensor] = []

    def stop(pipe: Any, i: int, t: Tensor, tensors: dict[str, Tensor]) -> None:
        states.append(tensors["latents"])
        pipe._interrupt = i == 1

    stopped = pipe(LABELS, callback_on_step_end=stop, **call).images
    assert len(states) == 2 and torch.equal(stopped, states[-1]) and pipe.interrupt
    assert torch.equal(whole, pipe(LABELS, **call).images) and not pipe.interrupt


def test_a_callback_can_change_the_guidance(model: PixelDenoiser) -> None:
    """As if the steps after the change were a run of their own from the state between."""
    seen: list[Tensor] = []

    def change(pipe: Any, i: int, t: Tensor, tensors: dict[str, Tensor]) -> None:
        assert pipe.do_classifier_free_guidance == (i < 2)
        seen.append(tensors["latents"])
        if i == 1:
            pipe.guidance_scale = 1.0

    x = theirs(model, euler(), 4, guidance_scale=3.0, callback_on_step_end=change)
    guided = ours(model, "euler", timesteps(4)[:3], 3.0)
    assert (seen[1] - guided).abs().max() < 1e-4
    with torch.no_grad():
        plain = solve(
            model_velocity(model, torch.tensor(LABELS), SamplerPreset()), guided, timesteps(4)[2:], "euler"
        )
    assert (x - plain).abs().max() < 1e-4


def test_several_images_of_each_label(model: PixelDenoiser) -> None:
    pipe = pipeline(model)
    call = {"num_inference_steps": 2, "output_type": "latent", "guidance_scale": 2.0}
    x = pipe(LABELS, num_images_per_prompt=2, generator=seeds(1, 2, 3, 4), **call).images
    assert (x - pipe([1, 1, 3, 3], generator=seeds(1, 2, 3, 4), **call).images).abs().max() < 1e-5
    for wrong in (0, 1.5, True):
        with pytest.raises(pw.UserError, match="num_images_per_prompt is"):
            pipe(LABELS, num_images_per_prompt=wrong)


def test_a_callback_can_replace_the_state(model: PixelDenoiser) -> None:
    def blank(pipe: Any, i: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": torch.zeros_like(tensors["latents"])}

    assert not theirs(model, euler(), 3, callback_on_step_end=blank).any()

    def nothing(pipe: Any, i: int, t: Tensor, tensors: dict[str, Tensor]) -> None:
        assert not tensors

    theirs(model, euler(), 2, callback_on_step_end=nothing, callback_on_step_end_tensor_inputs=[])


def test_the_progress_bar_counts_steps(model: PixelDenoiser, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = pipeline(model, heun())
    pipe.set_progress_bar_config(disable=False, desc="drawing")
    pipe([0], num_inference_steps=3)
    assert re.search(r"drawing: 100%.*3/3", capsys.readouterr().err)


# --- Saving and loading ------------------------------------------------------------------------------------


def test_save_and_load_round_trip(model: PixelDenoiser, tmp_path: Path) -> None:
    pipe = pipeline(model, dpm(2.0))
    pipe.save_pretrained(tmp_path)
    assert sorted(p.name for p in (tmp_path / "transformer").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    again = PixelDenoiserPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.transformer.denoiser.config == model.config and not again.transformer.training
    assert (again.transformer.dtype, again.transformer.device.type) == (torch.float32, "cpu")
    call = {"latents": NOISE, "num_inference_steps": 3, "output_type": "latent"}
    assert torch.equal(pipe(LABELS, **call).images, again(LABELS, **call).images)
    pw.save(again.transformer.denoiser, tmp_path / "ours")
    weights = pw.load(tmp_path / "ours").state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_other_dtypes(model: PixelDenoiser, tmp_path: Path) -> None:
    pipeline(model).save_pretrained(tmp_path)
    half = PixelDenoiserPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    assert half.dtype == half.transformer.dtype == torch.bfloat16
    x = half(LABELS, latents=NOISE, num_inference_steps=4, output_type="latent").images
    apart = (x - theirs(model, euler(), 4)).abs()
    assert x.dtype == torch.float32 and apart.max() > 0 and apart.mean() < 0.1


def test_the_component_is_the_model(model: PixelDenoiser, tmp_path: Path) -> None:
    component = PixelDenoiserModel.from_denoiser(model)
    assert component.denoiser is model  # shared, not copied
    t, labels = torch.tensor([0.2, 0.7]), torch.tensor(LABELS)
    with torch.no_grad():
        expected = model(NOISE, t, labels)
        assert torch.equal(component(NOISE, t, labels).sample, expected)
        assert torch.equal(component(NOISE, t, labels, return_dict=False)[0], expected)
    component.save_pretrained(tmp_path)
    again, info = PixelDenoiserModel.from_pretrained(tmp_path, output_loading_info=True)
    assert again.denoiser.config == model.config and not info["missing_keys"]


@pytest.mark.parametrize(
    ("change", "message"),
    [("missing", r'missing "denoiser\.'), ("extra", 'unexpected "extra"'), ("shape", "expected shape")],
)
def test_weights_that_do_not_fit_are_refused(
    model: PixelDenoiser, tmp_path: Path, change: str, message: str
) -> None:
    PixelDenoiserModel.from_denoiser(model).save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    key = next(iter(weights))
    if change == "missing":
        del weights[key]
    else:
        weights["extra" if change == "extra" else key] = torch.ones(1)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        PixelDenoiserModel.from_pretrained(tmp_path)


def test_a_config_that_does_not_fit_is_refused(model: PixelDenoiser, tmp_path: Path) -> None:
    PixelDenoiserModel.from_denoiser(model).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["architecture"]["backbone"]["heads"] = 2
    path.write_text(json.dumps(config))
    with pytest.raises(pw.UserError, match=r'PixelDenoiserModel\.architecture: unknown key "backbone.heads"'):
        PixelDenoiserModel.from_pretrained(tmp_path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub that writes down what it is sent, up to the network call."""
    sent: dict[str, Any] = {"has card": False}

    def upload(**settings: Any) -> None:
        folder = Path(settings["folder_path"])
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        sent.update(settings, files=files)

    class Repo:
        repo_id = "me/shapes"

    client = importlib.import_module("huggingface_hub")
    monkeypatch.setattr(client, "upload_folder", upload)
    monkeypatch.setattr(client, "create_repo", lambda *a, **k: Repo)
    monkeypatch.setattr(client, "file_exists", lambda *a, **k: sent["has card"])
    return sent


SENT = [
    *("README.md", "model_index.json", "samples/000.png", "scheduler/scheduler_config.json"),
    *("transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"),
]


def test_push_to_hub_sends_the_saved_folder_with_a_card(model: PixelDenoiser, hub: dict[str, Any]) -> None:
    pipe = pipeline(published(model))
    pipe.push_to_hub("shapes", samples=pipe([0], num_inference_steps=1).images, commit_message="First")
    assert sorted(hub["files"]) == SENT
    assert (hub["repo_id"], hub["commit_message"], hub["ignore_patterns"]) == ("me/shapes", "First", None)
    card = hub["files"]["README.md"].decode()
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "other" and head["library_name"] == "diffusers"
    for part in (
        "for tests only",
        "a.ckpt",
        "0" * 64,
        "Solver ab2-fixed, 100 steps",
        "samples/000.png",
        "FID 1.61",
    ):
        assert part in card
    hub["has card"] = True
    pipe.push_to_hub("shapes")
    assert hub["ignore_patterns"] == "README.md"  # what its author wrote stays


def test_a_saved_pipeline_has_a_card_and_may_be_sent(
    model: PixelDenoiser, hub: dict[str, Any], tmp_path: Path
) -> None:
    pipe = pipeline(model)
    pipe.save_pretrained(tmp_path, push_to_hub=True, repo_id="me/shapes")
    card = (tmp_path / "README.md").read_text()
    assert "No licence is recorded" in card and "None is recorded with the weights." in card
    assert "4 classes at 8x12 pixels" in card and hub["files"]["README.md"].decode() == card
    (tmp_path / "README.md").write_text("mine")
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def published(model: PixelDenoiser) -> PixelDenoiser:
    """The same network with the notes of a published one."""
    provenance = Provenance(files=("a.ckpt",), sha256=("0" * 64,), read="all", licence="for tests only")
    sampler = pw.hub.SAMPLER_PRESETS["pixeldit-xl-epoch320"]
    again = PixelDenoiser(dataclasses.replace(model.config, provenance=provenance, sampler=sampler))
    again.load_state_dict(model.state_dict())
    return again.eval()


def test_a_prompt_may_stand_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """pipe("a fox"), encoded on the device of the run."""
    small = {"depth": 1, "hidden_size": 16, "num_heads": 2, "text_size": 12, "text_length": 6}
    pipe, asked = pipeline(pw.create("pixeldit-t2i-ti", **small)), []

    def encode(config: Any, prompts: list[str], negative: str, device: torch.device) -> pw.TextCondition:
        asked.append((prompts, negative, device))
        return pw.TextCondition(torch.ones(len(prompts), 6, 12), null=pw.TextCondition(torch.zeros(1, 6, 12)))

    monkeypatch.setattr("pixelwright.hub.diffusers.encode_for", encode)
    call = {"num_inference_steps": 1, "output_type": "latent", "latents": torch.zeros(1, 3, 32, 32)}
    first = pipe("a fox", **call).images
    assert torch.equal(first, pipe(prompt=["a fox"], **call).images)
    assert asked == [(["a fox"], "", pipe._execution_device)] * 2


def test_model_offload_moves_the_component(model: PixelDenoiser) -> None:
    """The hook that would move the weights to an accelerator wraps what the pipeline calls."""
    pytest.importorskip("accelerate", reason='needs pip install "pixelwright[diffusers]"')
    pipe = pipeline(model)
    expected = theirs(model, euler(), 2)
    pipe.enable_model_cpu_offload(device="cpu")
    moves: list[str] = []
    hook = pipe.transformer._hf_hook
    before = hook.pre_forward

    def pre_forward(*args: Any, **kwargs: Any) -> Any:
        moves.append(str(hook.execution_device))
        return before(*args, **kwargs)

    hook.pre_forward = pre_forward
    x = pipe(LABELS, latents=NOISE, num_inference_steps=2, output_type="latent").images
    assert moves == ["cpu:0", "cpu:0"] and torch.equal(x, expected)
    pipe.remove_all_hooks()


@pytest.mark.parametrize("kind", ["dip-n-4", "pixeldit-n-4", "dit-n-4", "dip-t2i-ti"])
@pytest.mark.parametrize("how", ["sequential", "group", "layerwise", "compiled"])
def test_what_moves_or_casts_the_weights_changes_no_image(kind: str, how: str) -> None:
    """Weights are used in their own modules' forward alone, where such hooks have them ready."""
    if how == "sequential":
        accelerate = pytest.importorskip("accelerate", reason='needs pip install "pixelwright[diffusers]"')
    small: dict[str, Any] = {"depth": 2, "hidden_size": 32, "num_heads": 2}
    text = kind == "dip-t2i-ti"
    small |= {"text_size": 12, "text_length": 6} if text else {"num_classes": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        component = PixelDenoiserModel.from_denoiser(pw.create(kind, **small).eval())
        for p in component.parameters():
            torch.nn.init.normal_(p, std=0.1)
        condition = pw.TextCondition(torch.randn(2, 6, 12)) if text else torch.tensor(LABELS)
    x, t, cpu = torch.nn.functional.pad(NOISE, (0, 4, 0, 8)), torch.tensor([0.2, 0.7]), torch.device("cpu")
    with torch.no_grad():
        expected = component(x, t, condition).sample
    called: Any = component
    if how == "sequential":
        accelerate.cpu_offload(component, cpu)
    elif how == "group":
        component.enable_group_offload(cpu, offload_device=cpu, offload_type="leaf_level")
    elif how == "layerwise":
        component.enable_layerwise_casting(torch.bfloat16, torch.float32)
    else:
        torch._dynamo.reset()
        called = torch.compile(component, dynamic=True, backend="eager", fullgraph=True)
    with torch.no_grad():
        found = called(x, t, condition).sample
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= (0.02 * expected.abs().max() if how == "layerwise" else 1e-6)


# --- Mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 9}, "9x12"),
        ({"width": 0}, "8x0"),
        ({"class_labels": [5]}, "label 5 is outside 0 to 3"),
        ({"class_labels": ["z"]}, 'unknown class "z"'),
        ({"class_labels": []}, "at least one"),
        ({"num_inference_steps": 0}, "steps is 0"),
        ({"guidance_scale": float("nan")}, "guidance is nan|guidance_scale is nan"),
        ({"guidance_interval": (0.9, 0.1)}, r"\(0.9, 0.1\)"),
        ({"generator": seeds(1, 2, 3)}, "3 generators are given for 1 images"),
        ({"latents": NOISE}, r"\[2, 3, 8, 12\]; expected \[1, 3, 8, 12\]"),
        ({"latents": NOISE[0]}, r"\[3, 8, 12\]; expected \[1, 3, 8, 12\]"),
        ({"output_type": "pill"}, '"pill", did you mean "pil"'),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, '"prompt_embeds"; it can only'),
    ],
)
def test_mistakes_are_named(model: PixelDenoiser, change: dict[str, Any], message: str) -> None:
    with pytest.raises(pw.UserError, match=message) as caught:
        pipeline(model)(**{"class_labels": [0], "num_inference_steps": 1, **change})
    assert "\n" not in str(caught.value)


def test_a_model_without_a_size_asks_for_one() -> None:
    anywhere = pw.create("dit-n-4", num_classes=2, hidden_size=16, depth=1, num_heads=2, image_size=None)
    with pytest.raises(pw.UserError, match="give height and width"):
        pipeline(anywhere)([0], height=8)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (
            diffusers.DDIMScheduler(),
            "DDIMScheduler; use FlowMatchEuler.*Heun.*DPMSolver.*UniPC.*use_flow_sigmas",
        ),
        (diffusers.EulerDiscreteScheduler(), "EulerDiscreteScheduler; use"),
        (None, "NoneType"),
        (
            diffusers.DPMSolverMultistepScheduler(),
            "use_flow_sigmas=False, prediction_type='epsilon'; pixel denoisers need use_flow_sigmas=True, "
            "prediction_type='flow_prediction'",
        ),
        (diffusers.UniPCMultistepScheduler(use_flow_sigmas=True), "prediction_type='epsilon'"),
        (dpm(use_karras_sigmas=True), "use_karras_sigmas=True"),
        (dpm(final_sigmas_type="sigma_min"), "final_sigmas_type='sigma_min'"),
        (unipc(predict_x0=False), "predict_x0=False"),
        (unipc(solver_type="bh1"), "solver_type='bh1'"),
        (unipc(lower_order_final=False), "lower_order_final=False"),
        (euler(use_dynamic_shifting=True), "use_dynamic_shifting=True"),
        (euler(shift_terminal=0.1), "shift_terminal=0.1"),
        (euler(invert_sigmas=True), "invert_sigmas=True"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_schedulers_that_do_not_fit_are_refused(model: PixelDenoiser, scheduler: Any, message: str) -> None:
    pipe = pipeline(model)
    pipe.scheduler = scheduler
    with pytest.raises(pw.UserError, match=message) as caught:
        pipe([0])
    assert "\n" not in str(caught.value)
    if scheduler is not None:
        with pytest.raises(pw.UserError, match=message):
            PixelDenoiserPipeline.from_model(model, scheduler)


def test_a_shift_that_is_no_shift_is_named(model: PixelDenoiser) -> None:
    with pytest.raises(pw.UserError, match="time_shift is -1"):
        theirs(model, euler(-1.0), 2)


def test_attention_slicing_says_that_it_does_not_apply(model: PixelDenoiser) -> None:
    pipe = pipeline(model)
    with pytest.raises(pw.UserError, match="attention slicing does not apply"):
        pipe.enable_attention_slicing()
    pipe.disable_attention_slicing()


def test_without_diffusers_the_message_holds_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pixelwright.hub.diffusers")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(pw.UserError, match=r'pip install "pixelwright\[diffusers\]"') as caught:
        importlib.import_module("pixelwright.hub.diffusers")
    assert "\n" not in str(caught.value)


def test_pixelwright_does_not_import_diffusers() -> None:
    code = "import sys, pixelwright as pw; pw.sample, pw.hub; raise SystemExit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- The guide ---------------------------------------------------------------------------------------------

GUIDE = Path(__file__).parents[2] / "docs" / "diffusers.md"


def test_the_code_of_the_guide_runs(
    model: PixelDenoiser, hub: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pw.save(model, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    blocks = [
        block for block in blocks if "load_lora_weights" not in block
    ]  # tests/training/test_adapters.py
    scope: dict[str, Any] = {}
    exec("\n".join(blocks).replace("(32, 32)", "(8, 12)"), scope)
    assert len(blocks) == 5 and scope["images"].shape == (2, 3, 8, 12) and hub["files"]
    assert (tmp_path / "image.png").is_file() and pw.load("model-again").config == model.config


def test_the_licence_of_loaded_weights_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pw.hub.checkpoint, "_announced", set())
    model = published(pw.create("dip-n-4", num_classes=2))
    PixelDenoiserPipeline.from_model(model).save_pretrained(tmp_path)
    PixelDenoiserPipeline.from_pretrained(tmp_path)
    assert capsys.readouterr().err.count("for tests only") == 1
