"""Between ConfigDicts, JSON and command lines on one side and the frozen `Experiment` on the other."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
import typing
from collections.abc import Sequence
from typing import Any, Literal

from ml_collections import ConfigDict

from trm_jax.config.fields import ConfigError, Experiment
from trm_jax.config.rules import _impossible

# Fields that may differ between a run and its continuation: they do not change what is learned.
MAY_CHANGE = ("eval", "checkpoint", "log", "data.make")


def default() -> ConfigDict:
    """Every field at its default, locked: an experiment can change fields, not invent them."""
    return to_config_dict(Experiment())


def to_config_dict(experiment: Experiment) -> ConfigDict:
    config = ConfigDict(dataclasses.asdict(experiment), convert_dict=True)
    return config.lock()


def to_json(experiment: Experiment) -> dict[str, Any]:
    """Nested plain dict with lists for tuples, as `config.json` holds it; `parse` reads it back."""
    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return list(value) if isinstance(value, tuple) else value
    return plain(dataclasses.asdict(experiment))


def parse(config: ConfigDict | dict[str, Any]) -> Experiment:
    """ConfigDict (or the dict of a `config.json`) -> Experiment.

    Raises:
      ConfigError: listing every unknown field, wrong type and impossible value at once.
    """
    faults: list[str] = []
    raw = config if isinstance(config, dict) else config.to_dict()  # raises where ml_collections found no file
    experiment = _build(Experiment, raw, "", faults)
    if not faults:
        faults += _impossible(experiment)
    if faults:
        raise ConfigError("the config cannot be run:\n  " + "\n  ".join(faults))
    return experiment


def read_fields(texts: Sequence[str]) -> dict[str, Any]:
    """["arch.remat=False", "data.path=data/mine"] -> {"arch.remat": False, "data.path": "data/mine"}."""
    fields = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} is not FIELD=VALUE")
        try:
            fields[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):  # a text without quotation marks
            fields[name] = value
    return fields


def with_fields(experiment: Experiment, fields: dict[str, Any]) -> Experiment:
    """With fields, named with dots, at other values. Raises ConfigError as `parse` does."""
    raw = to_json(experiment)
    for name, value in fields.items():
        *sections, last = name.split(".")
        node = raw
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return parse(raw)


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (old, new) for every field outside `MAY_CHANGE` in which two `to_json` dicts differ.

    A field that `old` does not have yet stands at its default: a new field's default is what was done before.
    """
    found = {}

    def compare(old, new, default, prefix):
        for name in sorted({*old, *new}):
            if (dotted := prefix + name) in MAY_CHANGE:
                continue
            standard = default.get(name, "(absent)")
            a, b = old.get(name, standard), new.get(name, "(absent)")
            if isinstance(a, dict) and isinstance(b, dict):
                compare(a, b, standard if isinstance(standard, dict) else {}, dotted + ".")
            elif a != b:
                found[dotted] = (a, b)
    compare(old, new, to_json(Experiment()), "")
    return found


def _build(cls, raw: Any, prefix: str, faults: list[str]):
    if not isinstance(raw, dict):
        faults.append(f"{prefix.rstrip('.')} = {raw!r}: must be a section with fields")
        return cls()
    hints = typing.get_type_hints(cls)
    values = {}
    for name, value in raw.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            faults.append(f"{prefix}{name}: unknown field"
                          + (f"; did you mean {prefix}{near[0]}?" if near else ""))
            continue
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            values[name] = _build(hint, value, f"{prefix}{name}.", faults)
        else:
            values[name], fault = _coerce(hint, value)
            if fault:
                faults.append(f"{prefix}{name} = {value!r}: {fault}")
    return cls(**values)


def _coerce(hint, value):
    """(value as `hint`, "") or (value, why it is not one)."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        allowed = typing.get_args(hint)
        return value, "" if value in allowed else f"must be one of {', '.join(map(repr, allowed))}"
    if origin is tuple:
        kind = typing.get_args(hint)[0]
        if not isinstance(value, (tuple, list)):
            value = (value,)
        items = [_coerce(kind, item) for item in value]
        fault = next((f for _, f in items if f), "")
        return tuple(item for item, _ in items), fault and f"every item {fault}"
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        return value, f"must be of type {hint.__name__}, is {type(value).__name__}"
    if hint is float and not math.isfinite(value):
        return value, "must be finite"
    return value, ""
