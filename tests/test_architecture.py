"""The house of floors, read off the syntax trees: who imports whom, and who may know the time."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted([*ROOT.glob("scheduler/**/*.py"), *ROOT.glob("driftui/**/*.py")])

# The parts of scheduler/, ground floor first; other files directly in scheduler/ (cli.py, what it runs) are
# above them and driftui is on top. Rooms of one floor may see each other.
FLOORS = [
    ("core",),
    ("load", "twin", "record"),
    ("engines",),
    ("plan",),
    ("live", "virtual"),
    ("gateway",),
    ("bench",),
]
CLI, TOP = len(FLOORS), len(FLOORS) + 1

SANS_IO = [path for path in FILES if path.parts[-2] == "core" or path.parts[-2:] == ("twin", "gpu.py")]
IMPURE = {"time", "datetime", "asyncio", "socket", "threading"}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=name(path))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every imported module by its full name, wherever in the file it is imported; and the line."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno}: imports are absolute here"
            assert node.module is not None
            # "from scheduler import cli" names a module, "from scheduler.cli import main" something in it
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def floor(module: str) -> int:
    """0 is the ground."""
    parts = module.split(".")
    if parts[0] == "driftui":
        return TOP
    for height, rooms in enumerate(FLOORS):
        if len(parts) > 1 and parts[1] in rooms:
            return height
    return CLI


def floor_of(path: Path) -> int:
    return floor(".".join(path.relative_to(ROOT).parts).removesuffix(".py"))


by_file = pytest.mark.parametrize("path", FILES, ids=name)


def test_there_is_something_to_look_at() -> None:
    names = {name(path) for path in SANS_IO}
    assert {"scheduler/core/scheduler.py", "scheduler/twin/gpu.py"} <= names
    rooms = {path.name for path in (ROOT / "scheduler").iterdir() if (path / "__init__.py").exists()}
    assert rooms <= {room for level in FLOORS for room in level}, "a new package needs a floor"


@by_file
def test_each_floor_imports_only_what_is_below(path: Path) -> None:
    for module, line in imports(path):
        if module.split(".")[0] not in ("scheduler", "driftui"):
            continue
        if floor_of(path) == CLI and floor(module) == TOP:
            assert path.name.startswith("cli"), f"{name(path)}:{line}: only the cli starts the dashboard"
            continue
        assert floor(module) <= floor_of(path), f"{name(path)}:{line}: {module} is on a higher floor"


@pytest.mark.parametrize("path", SANS_IO, ids=name)
def test_sans_io(path: Path) -> None:
    """No clock, no IO, and chance only through a random.Random that is handed in."""
    for module, line in imports(path):
        assert module.split(".")[0] not in IMPURE, f"{name(path)}:{line}: {module}"
        if module.split(".")[0] == "random":
            assert module in ("random", "random.Random"), f"{name(path)}:{line}: {module}"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random":
            assert node.attr == "Random", f"{name(path)}:{node.lineno}: random.{node.attr} is not seeded"


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[-2] == "core"], ids=name)
def test_core_stands_on_the_standard_library_alone(path: Path) -> None:
    for module, line in imports(path):
        ours = module.startswith("scheduler.core.")
        assert ours or module.split(".")[0] in sys.stdlib_module_names, f"{name(path)}:{line}: {module}"


@by_file
def test_a_file_fits_a_readers_head(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500
