"""Parts that users can add: a name, a config dataclass and the class that is built from it.

Detailers, objectives and loggers each have one `Registry`. In YAML and JSON a part is its config with a
`type`: `{type: unet, channels: [64, 128]}`.
"""

import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
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

        Raises UserError: `config` is no dataclass, or another class has the name. A class of the same
        qualified name may be registered again, as notebooks do.
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
            hint = "; --imports FILE makes one of your own known"
            raise UserError(f'{where}.type is "{name}"{nearest(str(name), self._configs)}{hint}')
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


def import_parts(names: Iterable[str]) -> None:
    """Import Python files (`mine.py`, a path) or installed modules that register parts of the user's own.

    A file is a module under its own name without the suffix; one that is imported already is left as it is.

    Raises UserError: there is no such file or module, or another module has the name of the file.
    """
    for name in names:
        if not name.endswith(".py"):
            _import_module(name)
            continue
        path = Path(name).expanduser().resolve()
        if not path.is_file():
            raise UserError(f'imports: "{name}" is not a file: give a .py file or a module name')
        known = sys.modules.get(path.stem)
        if known is not None and getattr(known, "__file__", None) != str(path):
            raise UserError(f'imports: another module is called "{path.stem}": give {name} another name')
        if known is None:
            _run_file(path)


def _import_module(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # what the module itself imports is missing
        raise UserError(f'imports: no module "{error.name}": give a .py file or a module name') from None


def _run_file(path: Path) -> None:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise


def _origin(cls: Any) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
