"""Between ConfigDicts, JSON and command lines on one side and the frozen `Experiment` on the other."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
import shlex
import typing
from collections.abc import Sequence
from typing import Any, Literal

from ml_collections import ConfigDict

from trm_jax.config.fields import ConfigError, Experiment, Make
from trm_jax.config.rules import impossible

# Fields that may differ between a run and its continuation: they do not change what is learned.
MOST = 2**32
MAY_CHANGE = ("eval", "checkpoint", "log", "data.make", "data.exchanged")


def default() -> Any:
    """Every field at its default, locked: an experiment can change fields, not invent them."""
    return to_config_dict(Experiment())


def to_config_dict(experiment: Experiment) -> ConfigDict:
    config = ConfigDict(dataclasses.asdict(experiment), convert_dict=True)
    return config.lock()


def to_json(experiment: Experiment) -> dict[str, Any]:
    """Nested plain dict with lists for tuples, as `config.json` holds it; `parse` reads it back."""
    def plain(value: Any) -> Any:
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
        faults += impossible(experiment)
    if faults:
        raise ConfigError("the config cannot be run:\n  " + "\n  ".join(faults))
    return experiment


def read_fields(texts: Sequence[str]) -> dict[str, Any]:
    """["arch.remat=False", "eval.H_test=16,64"] -> {"arch.remat": False, "eval.H_test": (16, 64)}.

    A text needs no quotation marks, and a list no brackets.
    """
    fields = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} is not FIELD=VALUE")
        fields[name] = _read_value(_hint(name), value)
    return fields


def with_fields(experiment: Experiment | dict[str, Any], fields: dict[str, Any]) -> Experiment:
    """With fields, named with dots, at other values. Raises ConfigError as `parse` does."""
    raw = to_json(experiment) if isinstance(experiment, Experiment) else experiment
    for name, value in fields.items():
        *sections, last = name.split(".")
        node = raw
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{name}: {section} is a field of the config, not a section with fields")
        node[last] = value
    return parse(raw)


def _hint(name: str) -> Any:
    """The type of a field, named with dots; None if there is no such field."""
    hint: Any = Experiment
    for part in name.split("."):
        hint = typing.get_type_hints(hint).get(part) if dataclasses.is_dataclass(hint) else None
    return hint


def _read_value(hint: Any, text: str) -> Any:
    if hint is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # a text without quotation marks
        value = tuple(filter(None, map(str.strip, text.split(",")))) if typing.get_origin(hint) is tuple else text
    is_text = hint is str or typing.get_origin(hint) is Literal
    return text if is_text and not isinstance(value, str) else value


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (old, new) for every field outside `MAY_CHANGE` in which two `to_json` dicts differ.

    A field that `old` does not have yet stands at its default: a new field's default is what was done before.
    """
    found = {}

    def compare(old: dict[str, Any], new: dict[str, Any], default: dict[str, Any], prefix: str) -> None:
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


def _build(cls: Any, raw: Any, prefix: str, faults: list[str]) -> Any:
    if cls is Make and isinstance(raw, str):
        raw = _make_of_command(raw)
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


def _make_of_command(command: str) -> dict[str, Any]:
    """data.make as configs had it until November 2026: "python -m trm_jax.data sudoku --generate --blanks 40 ..."."""
    made: dict[str, Any] = {}
    try:
        words = shlex.split(command)
    except ValueError:
        return made
    for word, value in zip(words, [*words[1:], ""]):
        name = {"--subsample": "train", "--test_subsample": "test"}.get(word, word.removeprefix("--"))
        hint = typing.get_type_hints(Make).get(name) if word.startswith("--") else None
        if name in ("box", "size"):
            made[name] = tuple(int(side) for side in value.split("x") if side.isdecimal())
        elif hint is not None:
            made[name] = True if hint is bool else value.split(",") if name == "subsets" else _read_value(hint, value)
        if name in ("generate", "hub", "csv", "json_dir"):
            made["source"] = "arc_json" if name == "json_dir" else name
        if name == "blanks" and value.isdecimal():
            made["clues"] = math.prod(made.get("box", Make.box)) ** 2 - int(value)
    return made


def _coerce(hint: Any, value: Any) -> tuple[Any, str]:
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
        value = float(value) if abs(value) <= MOST else math.inf
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        return value, f"must be of type {hint.__name__}, is {type(value).__name__}"
    if hint is float and not math.isfinite(value):
        return value, "must be finite"
    if hint is int and not -MOST <= value <= MOST:  # steps and cycles are counted in 32 bits; seeds up to 2**32
        return value, f"must be at most {MOST}"
    return value, ""
