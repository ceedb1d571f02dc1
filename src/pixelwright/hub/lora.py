"""LoRA adapters in the diffusers pipeline, by the names that diffusers gives such methods."""

import os
from collections.abc import Sequence
from typing import Any

from pixelwright.errors import UserError, nearest
from pixelwright.hub.adapters import with_adapters
from pixelwright.models.config import to_dict
from pixelwright.models.denoiser import PixelDenoiser

Path = str | os.PathLike[str]


class LoraPipeline:
    """Adapters of a pipeline. They are merged into its weights, so that all that makes a plain model fast
    works as before; the weights without them are kept beside."""

    transformer: Any
    _bare: PixelDenoiser | None = None
    _adapters: dict[str, Path]
    _active: dict[str, float]

    def load_lora_weights(self, pretrained_model_name_or_path: Path, adapter_name: str | None = None) -> None:
        """Add an adapter, with the weight 1, beside those that are active. Raises UserError: an adapter of
        another model, or a name that is taken.

        Args:
            pretrained_model_name_or_path: the folder of an adapter, or of the run that made it.
            adapter_name: what `set_adapters` calls it; default_0, default_1, ... otherwise.
        """
        known = self._adapters if self._bare is not None else {}
        name = adapter_name or f"default_{len(known)}"
        if name in known:
            raise UserError(
                f'adapter_name is "{name}", which is taken: give another, or unload_lora_weights()'
            )
        active = self._active if known else {}
        self._merge(known | {name: pretrained_model_name_or_path}, active | {name: 1.0})

    def set_adapters(
        self, adapter_names: Sequence[str] | str, adapter_weights: Sequence[float] | float | None = None
    ) -> None:
        """Use these adapters alone, each with its weight, by default 1. Raises UserError: unknown names, or
        another number of weights."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        known = self._adapters if self._bare is not None else {}
        for name in names:
            if name not in known:
                raise UserError(f'no adapter "{name}" is loaded{nearest(name, known)}')
        given = 1.0 if adapter_weights is None else adapter_weights
        weights = [float(given)] * len(names) if isinstance(given, (int, float)) else list(given)
        if len(weights) != len(names):
            raise UserError(f"{len(weights)} weights are given for {len(names)} adapters: give one each")
        self._merge(known, dict(zip(names, weights, strict=True)))

    def get_active_adapters(self) -> list[str]:
        """The names of the adapters in use."""
        return list(self._active) if self._bare is not None else []

    def get_list_adapters(self) -> dict[str, list[str]]:
        """The names of all adapters, in use or not."""
        return {"transformer": list(self._adapters)} if self._bare is not None else {}

    def unload_lora_weights(self) -> None:
        """Back to the weights without adapters."""
        if self._bare is not None:
            self._replace(self._bare)
            self._bare = None

    def _merge(self, known: dict[str, Path], active: dict[str, float]) -> None:
        bare = self.transformer.denoiser if self._bare is None else self._bare
        used = {known[name]: weight for name, weight in active.items()}
        self._replace(with_adapters(bare, used))
        self._bare, self._adapters, self._active = bare, known, active

    def _replace(self, denoiser: PixelDenoiser) -> None:
        old = self.transformer.denoiser
        self.transformer.denoiser = denoiser.to(old.device)
        self.transformer.register_to_config(architecture=to_dict(denoiser.config))
