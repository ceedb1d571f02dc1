"""LPIPS against the recorded package, and the files that its weights come in."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pixelwright.errors import UserError
from pixelwright.models.lpips import LPIPS
from tests.recordings import recording

TENSORS, _ = recording("lpips")
WEIGHTS = {key.removeprefix("lpips."): value for key, value in TENSORS.items() if key.startswith("lpips.")}
IMAGE, REFERENCE = TENSORS["input.image"], TENSORS["input.reference"]


def test_distances_and_gradient_are_the_recorded_ones() -> None:
    image = IMAGE.clone().requires_grad_()
    layers = LPIPS(WEIGHTS).by_layer(image, REFERENCE)
    torch.testing.assert_close(layers, TENSORS["output_per_layer"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layers.sum(0), TENSORS["output"], rtol=1e-6, atol=0)
    layers.sum().backward()
    gradient = TENSORS["grad.image"]
    assert image.grad is not None and (image.grad - gradient).norm() < 1e-5 * gradient.norm()


def test_the_names_of_torchvision_and_those_of_the_package_are_read_alike() -> None:
    """The trunk from torchvision's file, with its classifier; the weights of channels under both names that
    the package gives them."""
    other = {
        key.replace("lin", "lins.", 1) if key.startswith("lin") else key: x for key, x in WEIGHTS.items()
    }
    other = {"features." + key[11:] if key.startswith("net.") else key: x for key, x in other.items()}
    other["classifier.0.weight"] = torch.zeros(2, 2)
    assert "features.28.bias" in other and "lins.4.model.1.weight" in other
    expected = LPIPS(WEIGHTS)(IMAGE, REFERENCE)
    assert torch.equal(LPIPS(other)(IMAGE, REFERENCE), expected)
    assert torch.equal(LPIPS(other | WEIGHTS)(IMAGE, REFERENCE), expected)


def test_trunks_of_other_sizes_are_read() -> None:
    """One convolution in each group, as torchvision would number them."""
    torch.manual_seed(0)
    widths = (3, 5, 7, 4, 6, 8)
    tensors = {}
    for layer, (before, width) in enumerate(itertools.pairwise(widths)):
        tensors[f"features.{3 * layer}.weight"] = torch.randn(width, before, 3, 3)
        tensors[f"features.{3 * layer}.bias"] = torch.randn(width)
        tensors[f"lin{layer}.model.1.weight"] = torch.rand(1, width, 1, 1)
    found = LPIPS(tensors).features(IMAGE)
    assert [tuple(x.shape) for x in found] == [(3, w, 32 >> n, 32 >> n) for n, w in enumerate(widths[1:])]


def test_equal_images_have_no_distance_and_no_undefined_gradient() -> None:
    image = IMAGE.clone().requires_grad_()
    network = LPIPS(WEIGHTS)
    network(image, IMAGE).sum().backward()
    assert image.grad is not None and not image.grad.any()
    dead = {
        key: -1e3 + 0 * x if key.endswith("bias") else x for key, x in WEIGHTS.items()
    }  # no channel lives
    image = IMAGE.clone().requires_grad_()
    LPIPS(dead)(image, REFERENCE).sum().backward()
    assert image.grad is not None and image.grad.isfinite().all()


def without(key: str) -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: value for name, value in WEIGHTS.items() if name != key}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (without("lin2.model.1.weight"), r'LPIPS needs "lin2.model.1.weight" \[1, 8, 1, 1\].*not \[0\]'),
        (without("net.slice5.28.bias"), r"a convolution of group 5 takes 10 channels, not .* and \[0\]"),
        (without("net.slice3.10.weight"), r"a convolution of group 3 takes 6 channels, not \[0\]"),
        (lambda: {key: x for key, x in WEIGHTS.items() if "slice4" not in key}, "five groups .* not 4"),
        (lambda: WEIGHTS | {"head.weight": IMAGE}, '"head.weight" belongs to neither VGG-16 nor LPIPS'),
        (lambda: WEIGHTS | {"lin7.model.1.weight": IMAGE}, '"lin7.model.1.weight" belongs to neither'),
        (dict, "five groups of convolutions, not 0"),
    ],
)
def test_mistakes_are_named(weights: Callable[[], dict[str, Tensor]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LPIPS(weights())
