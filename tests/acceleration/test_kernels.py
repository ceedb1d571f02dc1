"""Precision and kernels by setting: what is computed with, and what is kept between calls."""

import gc
import weakref

import pytest
import torch

import pixelwright as pw
from pixelwright.acceleration import accelerate, drawing, kernels, prepare
from pixelwright.acceleration.kernels import ATTENTION
from pixelwright.errors import UserError
from pixelwright.models import layers
from pixelwright.models.config import SamplerSettings
from pixelwright.models.denoiser import PixelDenoiser

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TWO = SamplerSettings(steps=2, guidance_scale=2.0)


@pytest.fixture
def model() -> PixelDenoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = pw.create("dit-n-4", num_classes=4, image_size=(8, 12), hidden_size=32, depth=2, num_heads=2)
        for p in made.parameters():
            torch.nn.init.normal_(p, std=0.2)
    return made.eval()


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with bf16."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})


def evaluate(model: PixelDenoiser, **how: object) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 3, 8, 12, generator=g), torch.tensor([0.3, 0.6])
    with torch.no_grad(), drawing(model, **how) as network:  # type: ignore[arg-type]
        return network(x, t, torch.tensor([0, 3]))


# --- Precision ---------------------------------------------------------------------------------------------
def test_auto_is_bf16_where_the_device_has_it_and_fp32_may_be_asked_for(
    model: PixelDenoiser, bf16: None
) -> None:
    exact = evaluate(model, precision="fp32")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = evaluate(model, precision="fp32")
    assert not torch.equal(half, exact) and torch.equal(evaluate(model), half)
    images = pw.sample(model, [0, 3], TWO)
    assert torch.equal(images, pw.sample(model, [0, 3], TWO, precision="bf16"))
    assert not torch.equal(images, pw.sample(model, [0, 3], TWO, precision="fp32"))


def test_a_model_in_another_dtype_keeps_it(model: PixelDenoiser, bf16: None) -> None:
    half = model.half()
    assert torch.equal(evaluate(half), evaluate(half, precision="fp32"))
    assert not torch.equal(evaluate(half), evaluate(half, precision="bf16"))


@pytest.mark.parametrize(("precision", "expected"), [("auto", True), ("bf16", True), ("fp32", False)])
def test_products_in_float32_are_tf32_on_cuda_unless_fp32_is_asked_for(
    precision: str, expected: bool
) -> None:
    def now() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = now()
    with pytest.raises(ZeroDivisionError), kernels(CUDA, precision):
        assert now() == (expected, expected)
        raise ZeroDivisionError
    assert now() == before
    with kernels(CPU, precision):
        assert now() == before


# --- Attention ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("attention", list(ATTENTION))
def test_every_kernel_of_attention_draws_the_same(model: PixelDenoiser, attention: str) -> None:
    expected = evaluate(model, precision="fp32")
    assert (evaluate(model, precision="fp32", attention=attention) - expected).abs().max() < 1e-4
    fast = accelerate(model, "fp32", attention=attention)
    assert (evaluate(fast) - expected).abs().max() < 1e-4
    images = pw.sample(model, [0, 3], TWO, precision="fp32", attention=attention).int()
    assert (images - pw.sample(model, [0, 3], TWO, precision="fp32").int()).abs().max() <= 1


@pytest.mark.parametrize("attention", ["sdpa", "flash", "math"])
def test_the_own_kernel_is_used_by_auto_alone(
    model: PixelDenoiser, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def own(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(layers, "attention_at_once", own)
    evaluate(model, precision="bf16", attention=attention)
    with pytest.raises(ZeroDivisionError):  # and it is back
        evaluate(model, precision="bf16")


def test_a_kernel_that_is_not_there_is_refused_in_one_line(
    model: PixelDenoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r'attention is "flahs", did you mean "flash"'):
        evaluate(model, attention="flahs")
    with (
        pytest.raises(UserError, match="flash, which PyTorch does not have on mps"),
        kernels(torch.device("mps"), "fp32", "flash"),
    ):
        pass
    monkeypatch.setitem(ATTENTION, "flash", [torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION])
    with pytest.raises(UserError, match=r"flash, which cannot compute this model on cpu.*use auto or math"):
        evaluate(model, attention="flash")
    with pytest.raises(RuntimeError, match="another"), kernels(CPU, "fp32", "math"):
        raise RuntimeError("another")


# --- Kept between calls ------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler, which is called and does nothing
def test_a_model_is_prepared_once_and_drawn_with_the_weights_it_has(model: PixelDenoiser) -> None:
    with torch.compiler.set_stance("force_eager"):
        first = prepare(model, "auto", True, "auto")
        places = [p.data_ptr() for p in first._network.parameters()]
        before = evaluate(model, compile=True)
        for p in model.parameters():
            p.data.mul_(-1.5)  # which no version counter sees
        assert prepare(model, "fp32", True, "auto") is first  # fp32 is what auto means here
        assert [p.data_ptr() for p in first._network.parameters()] == places
        after = evaluate(model, compile=True)
        assert not torch.equal(after, before)
        assert (after - evaluate(model)).abs().max() < 1e-4
        assert prepare(model, "bf16", True, "auto") is not first
        assert prepare(model, "auto", True, "math") is not first


def test_what_is_kept_goes_with_its_model(model: PixelDenoiser) -> None:
    own = pw.create("dit-n-4", num_classes=4, hidden_size=32, depth=1, num_heads=2)
    copy, gone = weakref.ref(prepare(own, "fp32", False, "auto")), weakref.ref(own)
    assert copy() is not None
    del own
    gc.collect()
    assert gone() is None and copy() is None


def test_an_accelerated_model_has_its_own_settings(model: PixelDenoiser) -> None:
    fast = accelerate(model, "fp32", attention="math")
    pw.sample(fast, [0], TWO)
    pw.sample(fast, [0], TWO, precision="fp32", attention="math")
    for other in ({"precision": "bf16"}, {"compile": True}, {"attention": "sdpa"}):
        with pytest.raises(UserError, match=r"its own settings \(precision fp32, attention math\)"):
            pw.sample(fast, [0], TWO, **other)  # type: ignore[arg-type]
