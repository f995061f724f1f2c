"""Puzzles as people bring them: lines, JSON, files."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np

from trm_jax import puzzles
from trm_jax.inference.solver import SolveError


class Request(NamedTuple):
    name: str  # for messages: "puzzle 3", or the id that came with it
    puzzle: Any  # text or tokens; an exception where there is none
    solution: np.ndarray | None = None  # [S], where it is known


def read_requests(text: str, whole: bool = False, stem: str = "puzzle") -> list[Request]:
    """Puzzles of a text, one per line; of one JSON value with `whole`. Raises SolveError only for the latter.

    Args:
      stem: names the puzzle of a JSON value that is one and has no id (ARC's tasks have their ID as file name).
    """
    if not whole:
        lines = [line.strip("\r\n") for line in text.splitlines() if line.strip()]
        return [_request(f"puzzle {i}", _from_line(line)) for i, line in enumerate(lines, 1)]
    try:
        value = json.loads(text)
    except ValueError as error:
        raise SolveError(f"cannot be read as JSON ({error})") from None
    if isinstance(value, dict) and "puzzle" not in value and "test" not in value:
        return [_request(name, item) for name, item in value.items()]
    if isinstance(value, dict):
        return [_request(stem, value)]
    return [_request(f"puzzle {i}", item) for i, item in enumerate(value if isinstance(value, list) else [value], 1)]


def _from_line(line: str) -> Any:
    if line.lstrip()[:1] not in ("{", '"'):
        return line
    try:
        return json.loads(line)
    except ValueError as error:
        return puzzles.PuzzleError(f"is no JSON ({error})")


def _request(name: str, value: Any) -> Request:
    if isinstance(value, dict):
        name = str(value.get("id", name))
        if "test" in value:  # an ARC task
            return Request(name, {"id": name, **value})
        value = value.get("puzzle", puzzles.PuzzleError('has no "puzzle"'))
    if not isinstance(value, (str, Exception)):
        value = puzzles.PuzzleError(f"a puzzle is a text, got {type(value).__name__}")
    return Request(name, value)
