"""Experiment files: found by path or name, and made into configs."""

from __future__ import annotations

import importlib.util
import os
import pathlib

from ml_collections import ConfigDict

from trm_jax.config.fields import ConfigError


def experiment_file(path: str | os.PathLike):
    """The module of an experiment file, for one that is built on another."""
    path = pathlib.Path(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def from_file(name: str) -> ConfigDict:
    """The config of "experiments/NAME.py:VARIANT", as --config takes it. Raises ConfigError."""
    file, _, variant = name.partition(":")
    try:
        return experiment_file(file).get_config(variant)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:  # there is no such variant
        raise ConfigError(f"{file}: {error}") from error
