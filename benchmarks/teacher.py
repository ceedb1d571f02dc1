"""Trains a small teacher for REPA on images without their labels, in minutes of one core.

    python benchmarks/teacher.py cifar10/train.zip runs/teacher --test cifar10/test.zip --minutes 15

A DINOv2 of patches of 8 by contrast of two views (SimCLR, arXiv 2002.05709): crops, mirrored, with other
colours; the mean of the patch tokens, projected, should be nearer to that of the other view than to those of
other images. The folder is one that `objectives.repa.teacher` takes, with a stride of 8. With --test, labels
say how well a linear layer on the mean of the tokens names classes, before and after. `--minutes` are of
processor time.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwright.data import DataConfig, open_source
from pixelwright.evaluation.features.classifier import read_labelled
from pixelwright.images import from_uint8
from pixelwright.models.vision import normalised

SIZE, PATCH, BATCH = 32, 8, 256
TEMPERATURE, LR, WEIGHT_DECAY = 0.2, 1e-3, 0.05
GREY = (0.299, 0.587, 0.114)


def read(path: str) -> tuple[Tensor, Tensor]:
    """All images [N,3,32,32] in [-1,1] and labels [N]."""
    source = open_source(DataConfig(path=path, size=SIZE))
    found = read_labelled(source, list(range(len(source))), SIZE, lambda number: None)
    return from_uint8(found.images), found.labels


def view(images: Tensor) -> Tensor:
    """A random view of each image [B,3,H,W]: a crop of 25 to 100 %, mirrored or not, with other brightness,
    contrast and saturation, one in five without colours."""
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1)

    scale = uniform(0.25, 1).sqrt()
    mirror = torch.randint(0, 2, (count, 1, 1, 1)) * 2.0 - 1
    across, down = ((1 - scale) * uniform(-1, 1) for _ in range(2))
    none = torch.zeros_like(scale)
    rows = [torch.cat((scale * mirror, none, across), -1), torch.cat((none, scale, down), -1)]
    places = F.affine_grid(torch.cat(rows, 1).squeeze(2), list(images.shape), False)
    x = (F.grid_sample(images, places, align_corners=False, padding_mode="reflection") + 1) / 2
    grey = (x * torch.tensor(GREY).view(3, 1, 1)).sum(1, keepdim=True)
    saturation = uniform(0.4, 1.6) * (torch.rand(count, 1, 1, 1) > 0.2)
    x = grey + saturation * (x - grey)
    mean = grey.mean((2, 3), keepdim=True)
    return (uniform(0.6, 1.4) * (mean + uniform(0.6, 1.4) * (x - mean))).clamp(0, 1)


def tokens(model: Any, images: Tensor) -> Tensor:
    """The mean patch token [B,C] of images in [0,1]."""
    return model(normalised(images)).last_hidden_state[:, 1:].mean(1)


def contrast(one: Tensor, other: Tensor) -> Tensor:
    """NT-Xent of projections [B,C] of two views."""
    both = F.normalize(torch.cat((one, other)).float(), dim=1)
    alike = both @ both.T / TEMPERATURE
    alike.fill_diagonal_(-math.inf)
    return F.cross_entropy(alike, torch.arange(len(both)).roll(len(one)))


@torch.no_grad()
def probe(model: Any, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Share of test images named by a linear layer, fitted by least squares."""
    model.eval()
    features = [
        torch.cat([tokens(model, (part + 1) / 2) for part in each[0].split(500)]) for each in (train, test)
    ]
    mean, std = features[0].mean(0), features[0].std(0)
    x, held_out = ((each - mean) / std for each in features)
    targets = F.one_hot(train[1]).float()
    gram = x.T @ x + 1e-3 * len(x) * torch.eye(x.shape[1])
    scores = held_out @ torch.linalg.solve(gram, x.T @ (targets - targets.mean(0)))
    model.train()
    return float((scores.argmax(1) == test[1]).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--test")
    parser.add_argument("--minutes", type=float, default=15)
    options = parser.parse_args()
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=192, num_hidden_layers=4, num_attention_heads=3, image_size=SIZE, patch_size=PATCH
    )
    model = Dinov2Model(config).train()
    head = nn.Sequential(nn.Linear(192, 512), nn.ReLU(), nn.Linear(512, 128))
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, LR, weight_decay=WEIGHT_DECAY)
    train = read(options.data)
    test = read(options.test) if options.test else None
    if test is not None:
        print(f"untrained: a linear layer names {probe(model, train, test):.1%}", flush=True)
    begun, step, share = time.process_time(), 0, 0.0
    while share < 1:
        share = (time.process_time() - begun) / (60 * options.minutes)
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1, 20 * share + 0.01) * (1 + math.cos(math.pi * min(share, 1))) / 2
        x = train[0][torch.randint(len(train[0]), (BATCH,))]
        with torch.autocast("cpu", torch.bfloat16):
            loss = contrast(*(head(tokens(model, view(x))) for _ in range(2)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 50 == 0:
            print(f"step {step}, {share:.0%} of the time, loss {float(loss.detach()):.3f}", flush=True)
    model.eval().save_pretrained(options.out)
    if test is not None:
        print(f"after {step} steps of {BATCH}: a linear layer names {probe(model, train, test):.1%}")


if __name__ == "__main__":
    main()
