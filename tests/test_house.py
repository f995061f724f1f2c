"""The plan of the package: imports go down its floors, never in circles, and no two things bear one name."""

import ast
import collections
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "trm_jax"
# Lowest first. A file may import from its own room and from those before it, also inside of its functions.
FLOORS = ("runtime", "puzzles", "config", "data", "recursion", "models", "training", "weights", "inference",
          "evaluation", "jobs", "reports", "service", "main", "__main__", "__init__", "doors")
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(file: pathlib.Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports_of(file: pathlib.Path) -> set[str]:
    """Modules of this package that a file imports, at its head or anywhere else."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are written in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            found.update({name} - {""})
    return found - {module_of(file)}


def definitions(file: pathlib.Path) -> list[str]:
    """Public classes of a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]


def test_every_room_has_a_floor():
    assert {room_of(module) for module in MODULES} <= set(FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    mine = FLOORS.index(room_of(module))
    # The package itself, lowest of all in this respect, holds the version and opens the public names when asked.
    up = {name for name in imports_of(MODULES[module]) - {"trm_jax"} if FLOORS.index(room_of(name)) > mine}
    assert not up, f"{module} is on a lower floor than {', '.join(sorted(up))}"


def test_no_circles():
    graph = {module: imports_of(file) - {"trm_jax"} for module, file in MODULES.items()}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, with the circle


def test_recursions_know_only_jax():
    tree = ast.parse((PACKAGE / "recursion.py").read_text(encoding="utf-8"))
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert {name.split(".")[0] for name in names} <= {"jax", "typing", "collections", "__future__"}


def test_only_models_know_flax():
    for module, file in MODULES.items():
        if room_of(module) != "models":
            assert "flax" not in {name.split(".")[0] for name in _imported(file)}, module


def _imported(file: pathlib.Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {name for node in ast.walk(tree) for name in (
        [alias.name for alias in node.names] if isinstance(node, ast.Import)
        else [node.module or ""] if isinstance(node, ast.ImportFrom) else [])}


def test_no_two_classes_with_one_name():
    count = collections.Counter(name for file in FILES for name in definitions(file))
    assert not {name: n for name, n in count.items() if n > 1}


def test_no_test_imports_another():
    for file in (ROOT / "tests").glob("test_*.py"):
        assert not [name for name in _imported(file) if name.startswith("tests.test_")], file.name
