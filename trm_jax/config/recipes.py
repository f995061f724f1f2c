"""Experiment files: found by path or name, looked at before they are run, and made into configs."""

from __future__ import annotations

import ast
import importlib.util
import os
import pathlib
import traceback
from collections.abc import Sequence
from types import ModuleType

from ml_collections import ConfigDict

import trm_jax
from trm_jax.config.fields import ConfigError, Experiment
from trm_jax.config.parser import read_fields, with_fields

ENTRY = "get_config"


def experiments() -> pathlib.Path:
    """The folder of the experiments that come with the package: inside of it, or beside it in a clone."""
    inside = pathlib.Path(trm_jax.__file__).parent / "experiments"
    return inside if inside.is_dir() else inside.parents[1] / "experiments"


def shipped(path: str | os.PathLike[str]) -> pathlib.Path:
    """`path` if it is there; else what comes with the package under that name ("rsm_sudoku", "experiments/...")."""
    path = pathlib.Path(path)
    if path.exists() or path.is_absolute():
        return path
    inside = path.relative_to("experiments") if path.parts[:1] == ("experiments",) else path
    for found in (experiments() / inside, experiments() / f"{inside}.py"):
        if found.is_file() or (found.is_dir() and inside != pathlib.Path()):
            return found
    return path


def experiment_file(path: str | os.PathLike[str]) -> ModuleType:
    """The module of an experiment file, for one that is built on another.

    Raises:
      ConfigError: it is no experiment (it is not run then), or it fails, naming the line.
    """
    path = pathlib.Path(path)
    _check(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader, path
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except Exception as error:  # whatever the file does: it is not ours
        raise ConfigError(_fault(path, error)) from error
    return module


def _check(path: pathlib.Path) -> None:
    """An experiment file is Python and defines get_config; nothing else is run."""
    if path.suffix != ".py" or not path.is_file():
        names = ", ".join(sorted(p.stem for p in experiments().glob("*.py")))
        what = "is no experiment file: its name must end in .py" if path.is_file() else "is not there"
        raise ConfigError(f"{str(path)!r} {what}. Give the path of one, or one of: {names}")
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{path} is not Python: {' '.join(str(error).split())}") from error
    names = {getattr(node, "name", "") for node in tree.body}
    names |= {alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom)
              for alias in node.names}
    names |= {getattr(name, "id", "") for node in tree.body if isinstance(node, ast.Assign) for name in node.targets}
    if ENTRY not in names:
        raise ConfigError(f"{path} is no experiment file: it does not define {ENTRY}")


def _fault(path: pathlib.Path, error: Exception) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    text = " ".join(str(error).split())
    return f"{path}{f', line {lines[-1]}' if lines else ''}: {type(error).__name__}: {text}"


def from_file(name: str) -> ConfigDict:
    """The config of "rsm_sudoku:quick" or "experiments/rsm_sudoku.py:quick", as --config takes it.

    Raises ConfigError.
    """
    file, _, variant = name.partition(":")
    path = shipped(file)
    module = experiment_file(path)
    try:
        made = module.get_config(variant) if variant else module.get_config()
    except ConfigError:
        raise
    except ValueError as error:  # there is no such variant
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:
        raise ConfigError(_fault(path, error)) from error
    if not isinstance(made, ConfigDict):
        raise ConfigError(f"{path}: {ENTRY} must return a ConfigDict, returned {type(made).__name__}")
    return made


def load(name: str, fields: Sequence[str] = ()) -> Experiment:
    """The experiment of that name (see `from_file`) with fields set ("lr=0.001"). Raises ConfigError."""
    return with_fields(from_file(name).to_dict(), read_fields(fields))


def run_name(name: str) -> str:
    """Of a run of that config: "experiments/rsm_sudoku.py:quick" -> "rsm_sudoku-quick"."""
    file, _, variant = name.partition(":")
    return "-".join([pathlib.Path(file).stem, *filter(None, variant.split(":"))])
