"""What diffusers asks of every model and pipeline in its own test mixins (0.42), asked of ours anew.

Named as there: ModelTesterMixin, LayerwiseCastingTesterMixin, GroupOffloadTesterMixin, CPUOffloadTesterMixin,
TorchCompileTesterMixin, PipelineTesterMixin. What needs an accelerator runs on the CPU as far as it can.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pixelwright as pw
from pixelwright.models.config import to_dict

diffusers = pytest.importorskip("diffusers", reason='needs pip install "pixelwright[diffusers]"')
from pixelwright.hub.diffusers import PixelDenoiserModel, PixelDenoiserPipeline  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
KINDS = ("dip-n-4", "pixeldit-n-4", "dit-n-4", "pixeldit-t2i-ti")
CPU = torch.device("cpu")


def model(kind: str = "pixeldit-n-4", seed: int = 0) -> Any:
    text = "t2i" in kind
    small: dict[str, Any] = {"depth": 2, "hidden_size": 32, "num_heads": 2, "image_size": (16, 16)}
    small |= {"text_size": 12, "text_length": 6} if text else {"num_classes": 4}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        component = PixelDenoiserModel(architecture=to_dict(pw.create(kind, **small).config)).eval()
        for p in component.parameters():
            torch.nn.init.normal_(p, std=0.1)
    return component


def inputs(kind: str = "pixeldit-n-4", height: int = 16, width: int = 16) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    condition: Any = torch.tensor([1, 3])
    if "t2i" in kind:
        condition = pw.TextCondition(torch.randn(2, 6, 12, generator=g))
    x = torch.randn(2, 3, height, width, generator=g)
    return {"x": x, "t": torch.tensor([0.2, 0.7]), "labels": condition}


@torch.no_grad()
def output(component: Any, kind: str = "pixeldit-n-4") -> Tensor:
    found = component(**inputs(kind), return_dict=False)[0]
    assert isinstance(found, Tensor)
    return found


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    assert a.isfinite().all() and float((a - b).abs().max()) <= tolerance


# --- ModelTesterMixin ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_from_save_pretrained(kind: str, tmp_path: Path) -> None:
    first = model(kind)
    first.save_pretrained(tmp_path)
    close(output(first, kind), output(PixelDenoiserModel.from_pretrained(tmp_path), kind), 0)


def test_from_save_pretrained_variant(tmp_path: Path) -> None:
    first = model()
    first.save_pretrained(tmp_path, variant="fp16")
    close(output(first), output(PixelDenoiserModel.from_pretrained(tmp_path, variant="fp16")), 0)
    with pytest.raises(OSError, match=r"no file named diffusion_pytorch_model\.bin"):
        PixelDenoiserModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("low", [True, False])
def test_from_save_pretrained_dtype(dtype: torch.dtype, low: bool, tmp_path: Path) -> None:
    model().to(dtype).save_pretrained(tmp_path)
    found = PixelDenoiserModel.from_pretrained(tmp_path, low_cpu_mem_usage=low, torch_dtype=dtype)
    assert found.dtype == dtype


def test_sharded_checkpoints(tmp_path: Path) -> None:
    first = model()
    size = sum(p.numel() * 4 for p in first.parameters())
    first.save_pretrained(tmp_path, max_shard_size=f"{size // 3 // 1024}KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    close(output(first), output(PixelDenoiserModel.from_pretrained(tmp_path)), 0)
    close(output(first), output(PixelDenoiserModel.from_denoiser(pw.load(tmp_path))), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_determinism_output_and_outputs_equivalence(kind: str) -> None:
    component = model(kind)
    close(output(component, kind), output(component, kind), 0)
    with torch.no_grad():
        named = component(**inputs(kind))
        assert torch.equal(named.sample, named[0]) and torch.equal(named[0], output(component, kind))
    assert named.sample.shape == inputs(kind)["x"].shape


def test_model_from_config() -> None:
    first = model()
    for source in (first, PixelDenoiserModel.from_denoiser(first.denoiser)):
        again = PixelDenoiserModel.from_config(source.config).eval()
        again.load_state_dict(source.state_dict())
        close(output(first), output(again), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_ema_training(kind: str) -> None:
    from diffusers.training_utils import EMAModel

    component = model(kind).train()
    ema = EMAModel(component.parameters())
    found = component(**inputs(kind)).sample
    torch.nn.functional.mse_loss(found, torch.zeros_like(found)).backward()
    ema.step(component.parameters())
    gradients = [p.grad for p in component.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_effective_gradient_checkpointing(kind: str) -> None:
    """Either it gives the same gradients, or it is refused."""
    assert PixelDenoiserModel._supports_gradient_checkpointing is False
    with pytest.raises(ValueError, match="does not support gradient checkpointing"):
        model(kind).enable_gradient_checkpointing()


# --- memory -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("storage", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_layerwise_casting_inference(kind: str, storage: torch.dtype) -> None:
    expected = output(model(kind), kind)
    component = model(kind)
    before = component.get_memory_footprint()
    component.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
    assert component.get_memory_footprint() < (0.75 if storage.itemsize == 2 else 0.6) * before
    found = output(component, kind)
    cosine = torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0)
    assert found.dtype == torch.float32 and cosine > (0.999 if storage.itemsize == 2 else 0.97)


@pytest.mark.parametrize("kind", KINDS)
def test_layerwise_casting_training(kind: str) -> None:
    component = model(kind).train()
    component.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    with torch.amp.autocast("cpu", torch.bfloat16):
        component(**inputs(kind)).sample.square().mean().backward()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["block_level", "leaf_level"])
@pytest.mark.parametrize("casting", [False, True])
def test_group_offloading(kind: str, how: str, casting: bool) -> None:
    expected, component = output(model(kind), kind), model(kind)
    component.enable_group_offload(CPU, offload_device=CPU, offload_type=how, num_blocks_per_group=1)
    if casting:
        component.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    close(output(component, kind), expected, 0.02 * float(expected.abs().max()) if casting else 1e-5)


@pytest.mark.parametrize("how", ["block_level", "leaf_level"])
def test_group_offloading_with_disk(how: str, tmp_path: Path) -> None:
    expected, component = output(model()), model()
    component.enable_group_offload(
        CPU, offload_device=CPU, offload_type=how, num_blocks_per_group=1, offload_to_disk_path=str(tmp_path)
    )
    assert list(tmp_path.glob("*.safetensors"))
    close(output(component), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_disk_offload(kind: str, tmp_path: Path) -> None:
    """Every weight waits on the disk but while its own module runs."""
    accelerate = pytest.importorskip("accelerate")
    expected, component = output(model(kind), kind), model(kind)
    component.save_pretrained(tmp_path / "saved")
    found = accelerate.disk_offload(component, tmp_path / "disk", execution_device=CPU)
    assert {p.device.type for p in found.parameters()} == {"meta"}
    close(output(found, kind), expected)
    # and as from_pretrained does it; "auto" would split it as _no_split_modules says
    again = PixelDenoiserModel.from_pretrained(
        tmp_path / "saved", device_map={"": "cpu"}, offload_folder=tmp_path / "more"
    )
    close(output(again, kind), expected)
    assert again._no_split_modules


# --- TorchCompileTesterMixin --------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_torch_compile_without_recompilation_and_graph_break(kind: str) -> None:
    torch.compiler.reset()
    component, expected = model(kind), output(model(kind), kind)
    compiled = torch.compile(component, fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        close(output(compiled, kind), expected)
        close(output(compiled, kind), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_compile_on_different_shapes(kind: str) -> None:
    """Nothing is compiled anew for another size; the first is not square, which would be taken for a rule."""
    torch.compiler.reset()
    component = model(kind)
    compiled = torch.compile(component, fullgraph=True, dynamic=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True), torch.no_grad():
        for size in [(24, 16), (32, 40), (16, 64)]:
            close(compiled(**inputs(kind, *size)).sample, component(**inputs(kind, *size)).sample)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_compile_repeated_blocks(kind: str) -> None:
    torch.compiler.reset()
    component, expected = model(kind), output(model(kind), kind)
    component.compile_repeated_blocks(fullgraph=True, backend="eager")
    # The last block of MMDiT is another program: nothing reads its text.
    with torch._dynamo.config.patch(recompile_limit=2 if "t2i" in kind else 1):
        close(output(component, kind), expected)
        close(output(component, kind), expected)


def test_compile_with_group_offloading() -> None:
    torch.compiler.reset()
    component, expected = model(), output(model())
    component.enable_group_offload(CPU, offload_device=CPU, offload_type="leaf_level")
    component.compile(backend="eager")
    close(output(component), expected)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_export(kind: str) -> None:
    """torch.export takes tensors alone, so that models of captions are out."""
    component, given = model(kind), inputs(kind)
    exported = torch.export.export(component, args=(), kwargs=given)
    with torch.no_grad():
        close(exported.module()(**given).sample, component(**given).sample)


# --- PipelineTesterMixin ------------------------------------------------------------------------------------
def pipeline(seed: int = 0) -> Any:
    pipe = PixelDenoiserPipeline(model(seed=seed), diffusers.FlowMatchEulerDiscreteScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe: Any, **changes: Any) -> Any:
    settings = {"class_labels": [1], "num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
    settings["generator"] = torch.Generator().manual_seed(0)
    return pipe(**settings | changes)


def test_pipeline_call_signature() -> None:
    optional = {
        "num_inference_steps",
        "num_images_per_prompt",
        "generator",
        "latents",
        "output_type",
        "return_dict",
    }
    assert optional <= set(inspect.signature(PixelDenoiserPipeline.__call__).parameters)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_save_load_local(variant: str | None, tmp_path: Path) -> None:
    pipe = pipeline()
    pipe.save_pretrained(tmp_path, variant=variant)
    again = PixelDenoiserPipeline.from_pretrained(tmp_path, variant=variant)
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(call(pipe).images, call(again).images)


def test_inference_batch_consistent_and_single_identical() -> None:
    pipe = pipeline()
    each = [torch.Generator().manual_seed(i) for i in range(3)]
    batch = call(pipe, class_labels=[1, 2, 3], generator=each).images
    alone = call(pipe, class_labels=[1], generator=torch.Generator().manual_seed(0)).images
    assert len(batch) == 3 and np.abs(batch[:1] - alone).max() < 1e-4


def test_num_images_per_prompt() -> None:
    for labels, each in (([1], 1), ([1], 2), ([1, 2], 1), ([1, 2], 2)):
        assert (
            len(call(pipeline(), class_labels=labels, num_images_per_prompt=each).images)
            == len(labels) * each
        )


def test_dict_tuple_outputs_equivalent_and_components() -> None:
    pipe = pipeline()
    assert np.array_equal(call(pipe).images, call(pipe, return_dict=False)[0])
    assert set(pipe.components) == {"transformer", "scheduler"}
    again = PixelDenoiserPipeline(**pipe.components)
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(call(pipe).images, call(again).images)


def test_cfg() -> None:
    assert not np.array_equal(call(pipeline(), guidance_scale=1.0).images, call(pipeline()).images)


def test_callback_inputs() -> None:
    pipe, names = pipeline(), set(inspect.signature(PixelDenoiserPipeline.__call__).parameters)
    assert {"callback_on_step_end", "callback_on_step_end_tensor_inputs"} <= names

    def blank(pipe: Any, i: int, t: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
        assert set(given) <= set(pipe._callback_tensor_inputs)
        return {"latents": torch.zeros_like(given["latents"])} if i == pipe.num_timesteps - 1 else given

    settings = {"callback_on_step_end_tensor_inputs": pipe._callback_tensor_inputs, "output_type": "latent"}
    assert call(pipe, callback_on_step_end=blank, **settings).images.abs().sum() == 0


def test_callback_cfg() -> None:
    pipe = pipeline()

    def raise_it(pipe: Any, i: int, t: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._guidance_scale += 1.0
        return given

    call(pipe, callback_on_step_end=raise_it)
    assert pipe.guidance_scale == 3.0 + pipe.num_timesteps


def test_to_dtype_and_float16_inference() -> None:
    pipe, expected = pipeline(), call(pipeline()).images
    pipe.to(dtype=torch.float16)
    assert all(p.dtype == torch.float16 for p in pipe.transformer.parameters())
    assert np.abs(call(pipe).images - expected).max() < 5e-2


@pytest.mark.parametrize("how", ["sequential", "model", "group"])
def test_offload_forward_pass_twice(how: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    pipe, expected = pipeline(), call(pipeline()).images
    if how == "sequential":  # what enable_sequential_cpu_offload does, which wants the number of a device
        accelerate.cpu_offload(pipe.transformer, CPU)
    elif how == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    else:
        pipe.enable_group_offload(CPU, offload_device=CPU, offload_type="leaf_level")
    for _ in range(2):
        assert np.abs(call(pipe).images - expected).max() < 1e-4
