"""Another implementation from a checkout: `--peer PATH:module:factory`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pixelwright.errors import UserError

Factory = Callable[[str, int], nn.Module]
"""factory(name, num_classes) -> a module called as module(x [B,3,H,W], t [B], labels [B]) -> [B,3,H,W]."""


@dataclass(frozen=True)
class Peer:
    """Where to find another implementation; training and sampling around it are the plain ones."""

    path: str
    module: str
    factory: str

    @classmethod
    def parse(cls, text: str) -> Peer:
        """From PATH:module:factory.

        Raises:
            UserError: not three parts.
        """
        parts = text.rsplit(":", 2)
        if len(parts) != 3 or not all(parts):
            raise UserError(
                f'--peer is "{text}"; give PATH:module:factory, such as ../other:models.dip:build'
            )
        return cls(*parts)

    def load(self) -> Factory:
        """Import the factory; the checkout comes first on the import path from then on.

        Raises:
            UserError: no such folder, the module cannot be imported, or it has no such function.
        """
        folder = Path(self.path).resolve()
        if not folder.is_dir():
            raise UserError(f"--peer: {self.path} is not a folder; give the root of the checkout")
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
        try:
            module = importlib.import_module(self.module)
        except Exception as error:  # whatever foreign code raises when it is imported
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"--peer: {self.module} of {self.path} cannot be imported ({reason})") from error
        factory = getattr(module, self.factory, None)
        if not callable(factory):
            raise UserError(f"--peer: {self.module} has no function {self.factory}")
        return factory

    def build(self, name: str, num_classes: int) -> nn.Module:
        """The peer's model of a name.

        Raises:
            UserError: the factory fails or returns something else than a module.
        """
        factory = self.load()
        try:
            model = factory(name, num_classes)
        except Exception as error:  # foreign code again
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f'--peer: {self.factory}("{name}", {num_classes}) failed ({reason})') from error
        if not isinstance(model, nn.Module):
            raise UserError(
                f"--peer: {self.factory} returned {type(model).__name__}; it must return a torch.nn.Module"
            )
        return model
