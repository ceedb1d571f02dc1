"""What the published form of a family of networks is; `layouts` has them all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from pixelwright.hub.shapes import Specs
from pixelwright.models.config import DenoiserConfig

Table: TypeAlias = Sequence[tuple[str, str]]
"""Beginnings of names, ours <-> theirs; the first entry that fits a name is used, `#` stands for a number.
Our SwiGLU's w13 is their w1 and w3, unless an entry ends in "w13."."""
Settings: TypeAlias = Mapping[str, Any]
"""What a file does not tell, by the names of the fields of a backbone's config, its detailer's or a
`DenoiserConfig`."""


@dataclass(frozen=True)
class Layout:
    """The published form of a family of networks."""

    family: str
    marks: tuple[str, ...]
    """Keys that its files have, and with "!" before them have not, and no other family's files."""
    parts: tuple[tuple[type, type], ...]
    """Types of the configs of backbone and detailer that may have this form."""
    table: Callable[[DenoiserConfig], Table]
    infer: Callable[[Specs, Settings], DenoiserConfig]
    """The config that names and shapes tell, without its name. Raises UserError."""
    untold: tuple[str, ...] = ()
    """Fields of the backbone's config, or the detailer's, that no file tells."""
    constants: Callable[[DenoiserConfig], dict[str, Tensor]] = lambda config: {}
    """Tensors of a file that are not learned and not among our weights, such as a table of positions."""

    prefix: str | None = None
    """Before each name in a pickled file; None: that of Lightning's two sets."""
    containers: tuple[str, ...] = ("state_dict",)
    """Keys of a pickled file under which all tensors are."""

    def marked(self, names: Specs) -> bool:
        """Whether a file has these keys."""
        return all((mark.removeprefix("!") in names) != mark.startswith("!") for mark in self.marks)
