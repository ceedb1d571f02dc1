"""The structure of the package: who may import whom, and how long files and functions may get."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pixelwright as pw

ROOT = Path(pw.__file__).parent
FOUNDATION = ("errors", "registry", "config", "files", "rng", "images", "html", "remote", "device")
ROOMS = (
    *("models", "text", "acceleration", "diffusion", "data", "distributed", "hub", "evaluation"),
    *("training", "editing", "studio", "cli"),
)
"""Each imports only those before it, and the foundation; late imports inside functions count too."""
LINES, FUNCTION_LINES = 400, 60


def modules() -> dict[str, Path]:
    """Every module of the package by its name without `pixelwright.`, such as models.layers."""
    paths = (path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem in FOUNDATION)
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def imports(path: Path, late: bool = True) -> Iterator[str]:
    """The modules of the package that a file imports; without `late`, only when it is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if late else _top(tree.body):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pixelwright"):
            base = (node.module or "").removeprefix("pixelwright").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                yield inner if inner in MODULES else base
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names if alias.name.startswith("pixelwright."))
            yield from (name.removeprefix("pixelwright.") for name in names)


def _top(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield node


MODULES = modules()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_room_imports_only_those_before_it(name: str) -> None:
    own = name.split(".")[0]
    allowed = {*FOUNDATION, "", own, *(ROOMS[: ROOMS.index(own)] if own in ROOMS else ())}
    later = {found for found in imports(MODULES[name]) if found.split(".")[0] not in allowed}
    assert not later, f"{name} imports {', '.join(sorted(later))}"


def test_no_modules_import_each_other() -> None:
    graph = {
        name: {found for found in imports(path, late=False) if found in MODULES}
        for name, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above[above.index(name) :], name))
        if name not in done:
            for found in sorted(graph[name] - {name}):
                visit(found, (*above, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= LINES
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    for node in (node for node in ast.walk(ast.parse(text)) if isinstance(node, functions)):
        assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES, f"{node.name} is too long"


def test_every_public_name_is_there() -> None:
    assert all(hasattr(pw, name) for name in pw.__all__)
