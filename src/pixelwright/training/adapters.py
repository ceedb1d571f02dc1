"""LoRA: small matrices beside frozen weights, put into a model from outside; see `hub.adapters` for files.

A run with an adapter trains, averages and saves the adapter alone. Its checkpoints hold no frozen weight:
those come from `init`, and are never changed.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixelwright.distributed import checkpoint as checkpoints
from pixelwright.errors import UserError
from pixelwright.hub.adapters import FOLDER, Adapter, inject, merge, peft, save_adapter
from pixelwright.hub.checkpoint import load
from pixelwright.models.denoiser import PixelDenoiser
from pixelwright.training.config import TrainConfig
from pixelwright.training.finetune_config import AdapterConfig
from pixelwright.training.weights import Weights, freeze, matching

INSIDE = ("backbone.blocks.", "detailer.")
MODULATION = ("adaLN",)  # not among the targets unless they are named


def add_adapter(
    model: PixelDenoiser, config: AdapterConfig, seed: int, new_classes: Sequence[str], init: str | None
) -> Any:
    """Freeze a model and put an adapter into it, in place, its first matrices drawn from `seed` and the
    second ones zero, which changes nothing yet. Returns peft's settings of it.

    Args:
        new_classes: names of the modules to train as a whole where the config names none.
        init: where the model is from, which is noted in the adapter.

    Raises:
        UserError: targets that match nothing, a rank above their widths, or peft is not installed.
    """
    modules = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    patterns = config.modules_to_save
    saved = {name for each in patterns for name in matching(each, modules, "adapter.modules_to_save")}
    saved = saved if patterns else set(new_classes)
    lora = peft().LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=target_names(model, config),
        modules_to_save=sorted(saved) or None,
        lora_dropout=config.dropout,
        use_dora=config.dora,
        use_rslora=config.rslora,
        base_model_name_or_path=init,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject(model, lora, empty=model.device.type == "meta")
    for name in saved:
        model.get_submodule(name).requires_grad_(True)
    for layer in (getattr(module, "base_layer", None) for module in model.modules()):
        if config.frozen_dtype == "bf16" and isinstance(layer, nn.Module):
            layer.to(torch.bfloat16)
    return lora


def trained_weights(model: PixelDenoiser, config: TrainConfig, new_classes: Sequence[str] = ()) -> Weights:
    """Freeze what a run does not train, and put its adapter into the model. Raises UserError: patterns that
    match nothing, and see `add_adapter`."""
    if config.adapter is None:
        freeze(model, config.train_only, config.freeze)
        return Weights(model)
    return AdapterWeights(model, add_adapter(model, config.adapter, config.seed, new_classes, config.init))


def target_names(model: PixelDenoiser, config: AdapterConfig) -> list[str]:
    """The layers that get matrices, by name. Raises UserError: see `add_adapter`."""
    layers = {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.weight.requires_grad
    }
    found = {name for pattern in config.targets for name in matching(pattern, layers, "adapter.targets")}
    if not config.targets:
        inside = INSIDE if config.detailer else INSIDE[:1]
        found = {name for name in layers if name.startswith(inside) and not name.endswith(MODULATION)}
    widths = {min(len(layers[name]), layers[name][0].numel()): name for name in sorted(found)}
    if config.rank > (width := max(widths)):
        above = f"above {width}, the width of {widths[width]}"
        raise UserError(f"adapter.rank is {config.rank}, {above}: give at most {width}")
    return sorted(found)


class AdapterWeights(Weights):
    """Those of an adapter in a model."""

    def __init__(self, model: PixelDenoiser, lora: Any) -> None:
        super().__init__(model)
        self.lora = lora
        self._trained = {name for name, p in model.named_parameters() if p.requires_grad}

    def tensors(self) -> dict[str, Tensor]:
        return {name: x for name, x in self.model.state_dict().items() if name in self._trained}

    def plain(self, weights: dict[str, Tensor]) -> PixelDenoiser:
        """The model of `init`, which no process need hold as a whole, with the adapter merged into it."""
        device = next(iter(weights.values())).device
        base = load(self.lora.base_model_name_or_path).to(device, torch.float32)
        return merge(base, [(self._adapter(weights), 1.0)]).requires_grad_(True)  # as `Weights.plain`

    def export(self, checkpoint: Path, run: Path) -> None:
        weights = {name: torch.empty(x.shape, dtype=x.dtype) for name, x in self.tensors().items()}
        checkpoints.load(checkpoint, {"ema": weights})
        save_adapter(self._adapter(weights), run / FOLDER)

    def named(self, run: Path) -> str:
        return f"{shlex.quote(self.lora.base_model_name_or_path)} --adapter {shlex.quote(str(run))}"

    def _adapter(self, weights: dict[str, Tensor]) -> Adapter:
        return Adapter(FOLDER, self.model.config, self.lora, weights)
