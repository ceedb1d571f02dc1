"""What a detailer is, and how one is added.

A detailer is the local stage: a module built as `Class(config, hidden_size, patch_size)` and called as
`detailer(x, state)` with the noisy pixels x [B,3,H,W] and the backbone's `GlobalState`; it returns the
prediction [B,3,H,W]. One file holds it: its config dataclass, its module and its registration.

    @register_detailer("mine", MineConfig)
    class Mine(nn.Module): ...
"""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from pixelwright.registry import Registry

Module = TypeVar("Module", bound=type[nn.Module])

DETAILERS: Registry[Any] = Registry("detailer")


def register_detailer(name: str, config: type) -> Callable[[Module], Module]:
    """A decorator: `model.detailer: {type: name, ...}` builds this class from `config`, a frozen dataclass.

    A config may have a method `check(patch_size)` that raises UserError for patches the detailer cannot take.

    Raises:
        UserError: `config` is no dataclass, or the name is taken.
    """
    return DETAILERS.register(name, config)
