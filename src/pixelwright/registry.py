"""Parts that users can add: a name, a config dataclass and the class that is built from it.

Detailers, objectives and loggers each have one `Registry`. In YAML and JSON a part is its config with a
`type`: `{type: unet, channels: [64, 128]}`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from pixelwright.errors import UserError, nearest

Built = TypeVar("Built")
Class = TypeVar("Class", bound=Callable[..., Any])


class Registry(Generic[Built]):
    """Config dataclasses by name, and what each builds."""

    def __init__(self, kind: str) -> None:
        """`kind` names the parts in error messages, such as "detailer"."""
        self.kind = kind
        self._configs: dict[str, type] = {}
        self._classes: dict[type, Callable[..., Built]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._configs)

    def register(self, name: str, config: type) -> Callable[[Class], Class]:
        """A decorator: the class is built from `config`, a frozen dataclass, where `type: name` is asked for.

        Raises:
            UserError: `config` is no dataclass, or another class has the name. A class of the same qualified
                name may be registered again, as notebooks do.
        """
        if not dataclasses.is_dataclass(config):
            raise UserError(f"{self.kind} {name!r}: {config!r} is not a dataclass")

        def decorate(cls: Class) -> Class:
            known = self._configs.get(name)
            if known is not None and _origin(self._classes[known]) != _origin(cls):
                raise UserError(f'there is a {self.kind} "{name}" already: {_origin(self._classes[known])}')
            self._configs[name], self._classes[config] = config, cls
            return cls

        return decorate

    def config_type(self, name: object, where: str) -> type:
        """The config dataclass of a name. Raises UserError for an unknown one, naming the nearest."""
        if name not in self._configs:
            raise UserError(f'{where}.type is "{name}"{nearest(str(name), self._configs)}')
        return self._configs[str(name)]

    def name_of(self, config: object) -> str:
        """The name under which the type of a config is registered."""
        for name, known in self._configs.items():
            if known is type(config):
                return name
        raise UserError(f"{type(config).__name__} is not the config of a {self.kind}; register it first")

    def build(self, config: object, *args: Any, **more: Any) -> Built:
        """The part of a config: its class called as (config, *args)."""
        self.name_of(config)
        return self._classes[type(config)](config, *args, **more)

    def to_dict(self, config: Any) -> dict[str, Any]:
        """`{"type": name, ...}`, which `from_dict` reads back."""
        return {"type": self.name_of(config), **dataclasses.asdict(config)}

    def from_dict(self, data: Mapping[str, Any], where: str) -> Any:
        """A config from its plain form. Raises UserError naming `where` for what is unknown or missing."""
        values = dict(data)
        cls = self.config_type(values.pop("type", None), where)
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for key in values:
            if key not in fields:
                raise UserError(f'{where}: unknown key "{key}"{nearest(key, fields)}')
        for name, spec in fields.items():
            required = spec.default is spec.default_factory is dataclasses.MISSING
            if required and name not in values:
                raise UserError(f'{where}: the key "{name}" is missing')
        return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})


def _origin(cls: Any) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
