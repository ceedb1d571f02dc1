"""The settings of an adapter."""

from dataclasses import dataclass
from typing import Any, Literal

from pixelwright.config import Config, Decay, PositiveFloat, PositiveInt, Text
from pixelwright.errors import UserError


@dataclass(frozen=True)
class AdapterConfig(Config, where="adapter"):
    """A LoRA adapter (arXiv 2106.09685), trained in place of the weights of `init`."""

    rank: PositiveInt = 16
    """Rank of the matrices."""
    alpha: PositiveFloat = 16.0
    """Their product is multiplied by alpha / rank."""
    targets: tuple[Text, ...] = ()
    """Linear layers and convolutions that get matrices: their names, or the ends of their names after a
    point, such as [qkv, proj, detailer.*]. None: attention and MLP of the backbone's blocks."""
    modules_to_save: tuple[Text, ...] = ()
    """Modules that are trained as a whole and saved with the adapter, named in the same way. None: the class
    table, where the run has other classes than init."""
    dropout: Decay = 0.0
    """Share of the inputs of the matrices that is left out in training."""
    dora: bool = False
    """Train the norms of the weights' rows apart from their directions (DoRA, arXiv 2402.09353)."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead (rank-stabilised LoRA, arXiv 2312.03732)."""
    frozen_dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the frozen matrices in the blocks; bf16 takes half the memory and needs precision bf16."""

    def check(self, run: Any) -> None:
        """Raise UserError where it does not fit the other settings of a run."""
        if run.init is None:
            raise UserError("adapter is given without init: say which model it is for, such as --init MODEL")
        if run.train_only or run.freeze:
            raise UserError("adapter freezes all weights itself: leave out train_only and freeze")
        if self.dropout and run.parallel.checkpointing:
            raise UserError("adapter.dropout does not go with parallel.checkpointing, which would drop anew")
        if run.parallel.mode == "fsdp":
            raise UserError("parallel.mode is fsdp, adapter is for ddp: give --parallel.mode ddp")
        if self.frozen_dtype == "bf16" and run.precision == "fp32":
            raise UserError("adapter.frozen_dtype is bf16, precision fp32: give --precision bf16")
