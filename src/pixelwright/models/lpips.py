"""LPIPS, the perceptual distance of images (arXiv 1801.03924), in its VGG form (version 0.1)."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.errors import UserError

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1,1]
LAYERS = 5
# Convolutions as torchvision or lpips numbers them, and the weights of channels; the rest is not needed.
_CONVOLUTION = re.compile(r"(?:net\.slice\d\.|features\.)(\d+)\.(weight|bias)")
_CHANNELS = re.compile(r"lin(?:s\.)?(\d)\.model\.1\.weight")
_UNUSED = re.compile(r"(classifier|scaling_layer)\..*")


class LPIPS(nn.Module):
    """Squared distances of VGG-16's features, each of length 1 over its channels, weighted by channel.

    Frozen. Two [B,3,H,W] in [-1,1], sides of 16 at least -> [B].

    Args:
        tensors: of VGG-16 under torchvision's names (`features.0.weight`) or those of the package lpips
            (`net.slice1.0.weight`), and lpips' own (`lin0.model.1.weight`).

    Raises:
        UserError: a tensor that is missing, unknown or of another shape.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        trunk, channels = _sorted(tensors)
        self.slices = nn.ModuleList(nn.ModuleList(_convolution(*pair) for pair in part) for part in trunk)
        self.channels = nn.ParameterList(weight.float().flatten() for weight in channels)  # [C] of each layer
        self.requires_grad_(False)

    def forward(self, images: Tensor, reference: Tensor) -> Tensor:
        return self.by_layer(images, reference).sum(0)

    def by_layer(self, images: Tensor, reference: Tensor) -> Tensor:
        """What each of the five layers adds to the distance, [5, B]."""
        with torch.no_grad() if not reference.requires_grad else torch.enable_grad():
            expected = self.features(reference)
        pairs = zip(self.features(images), expected, self.channels, strict=True)
        # No products of matrices, which autocast would round.
        found = [((f - g).square() * w[:, None, None]).sum(1).mean((1, 2)) for f, g, w in pairs]
        return torch.stack(found)

    def features(self, images: Tensor) -> list[Tensor]:
        """ReLU 1_2, 2_2, 3_3, 4_3 and 5_3 of VGG-16, of length 1 over the channels, float32 [B,C,h,w]."""
        planes = zip(images.unbind(1), SHIFT, SCALE, strict=True)
        h = torch.stack([(plane - shift) / scale for plane, shift, scale in planes], dim=1)
        found = []
        for number, convolutions in enumerate(self.slices):
            h = F.max_pool2d(h, 2) if number else h
            for convolution in convolutions:  # type: ignore[attr-defined]
                h = F.relu(convolution(h))
            # vector_norm has the gradient 0 where all channels are 0; the root of a sum has NaN.
            found.append(h.float() / (torch.linalg.vector_norm(h.float(), dim=1, keepdim=True) + 1e-10))
        return found


def _sorted(tensors: Mapping[str, Tensor]) -> tuple[list[list[tuple[Tensor, Tensor]]], list[Tensor]]:
    """Weights and biases of the convolutions, layer by layer, and the weights of channels of each layer."""
    none = torch.empty(0)
    found: dict[int, dict[str, Tensor]] = {}
    channels = dict.fromkeys(range(LAYERS), none)
    for name, tensor in tensors.items():
        if match := _CONVOLUTION.fullmatch(name):
            found.setdefault(int(match[1]), {"weight": none, "bias": none})[match[2]] = tensor
        elif (match := _CHANNELS.fullmatch(name)) and int(match[1]) in channels:
            channels[int(match[1])] = tensor
        elif not _UNUSED.fullmatch(name):
            raise UserError(f'"{name}" belongs to neither VGG-16 nor LPIPS')
    trunk: list[list[tuple[Tensor, Tensor]]] = []
    before = -3
    for number in sorted(found):  # of layers: a convolution and its ReLU; a pooling where one is left out
        if number - before > 2:
            trunk.append([])
        trunk[-1].append((found[number]["weight"], found[number]["bias"]))
        before = number
    _check(trunk, list(channels.values()))
    return trunk, list(channels.values())


def _check(trunk: Sequence[Sequence[tuple[Tensor, Tensor]]], channels: Sequence[Tensor]) -> None:
    """Raise UserError unless the layers follow from each other."""
    if len(trunk) != LAYERS:
        raise UserError(f"VGG-16 has five groups of convolutions, not {len(trunk)}: give all of its weights")
    width = 3
    for layer, (convolutions, weights) in enumerate(zip(trunk, channels, strict=True)):
        for weight, bias in convolutions:
            if weight.shape[1:] != (width, 3, 3) or bias.shape != weight.shape[:1]:
                shapes = f"{list(weight.shape)} and {list(bias.shape)}"
                raise UserError(f"a convolution of group {layer + 1} takes {width} channels, not {shapes}")
            width = len(weight)
        if weights.shape != (1, width, 1, 1):
            needs = f'"lin{layer}.model.1.weight" [1, {width}, 1, 1], which the package lpips has'
            raise UserError(f"LPIPS needs {needs}, not {list(weights.shape)}")


def _convolution(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer
