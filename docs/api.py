"""Write docs/api.md from the docstrings of the public names: `python docs/api.py`, as `make format` does."""

import dataclasses
import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pixelwright as pw
from pixelwright.cli.fields import field_help
from pixelwright.config import Config

PACKAGES = ("data", "diffusion", "editing", "hub", "text", "training")
HEAD = """# API

Every public name with its docstring, written by `python docs/api.py`. Mistakes of a caller raise
`pw.UserError`.
"""


def entry(name: str, value: Any) -> str:
    """A heading, the signature and the docstring of a name; of settings, the fields with what they mean."""
    text = f"### {name}\n\n```python\n{signature(name, value)}\n```\n"
    if doc := inspect.getdoc(value) if callable(value) else None:
        text += f"\n```text\n{doc}\n```\n"
    if dataclasses.is_dataclass(value) and isinstance(value, type) and issubclass(value, Config):
        lines = (f"- `{field}`: {about}" for field, about in field_help(value).items() if about)
        text += "\n" + "\n".join(line.replace("<", "&lt;") for line in lines) + "\n"
    return text


def signature(name: str, value: Any) -> str:
    """A name with its arguments, one a line where there are many."""
    short = name.rpartition(".")[2]
    if not callable(value):
        return f"{short}: {type(value).__name__}"
    try:
        found = inspect.signature(value)
    except ValueError:  # types without one
        return short
    text = short + plain(found)
    if len(text) <= 110:
        return text
    return f"{short}(\n    " + ",\n    ".join(map(plain, found.parameters.values())) + ",\n)"


def plain(part: object) -> str:
    """A signature or a parameter without the modules of its types, and without addresses."""
    text = re.sub(r"\b(?:pixelwright|torch|typing|collections|pathlib|PIL)(?:\.\w+)*\.(?=\w)", "", str(part))
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def page() -> str:
    """The content of docs/api.md."""
    parts = [
        HEAD,
        "## pixelwright\n",
        *(entry(f"pw.{n}", getattr(pw, n)) for n in pw.__all__ if n not in MODULES),
    ]
    for package in PACKAGES:
        module = import_module(f"pixelwright.{package}")
        parts.append(f"## pixelwright.{package}\n\n{(inspect.getdoc(module) or '').strip()}\n")
        own = [name for name in sorted(module.__all__) if name not in pw.__all__]
        parts += [entry(f"{package}.{name}", getattr(module, name)) for name in own]
    return "\n".join(parts)


MODULES = {name for name in pw.__all__ if inspect.ismodule(getattr(pw, name))}

if __name__ == "__main__":
    (Path(__file__).parent / "api.md").write_text(page(), encoding="utf-8")
