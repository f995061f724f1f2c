"""Files that are never seen half-written, and JSON that other programs can read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_json(path: str | os.PathLike, value: Mapping[str, Any]) -> None:
    """Writes a JSON file, as `write_file` does.

    Arrays become lists, and not-a-number and infinities strings, as in `MetricWriter.write`.
    """
    write_file(path, json.dumps(_json(value), indent=2, allow_nan=False) + "\n")


def write_file(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file that is never seen half-written (temporary name, fsync, rename); makes its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _json(value: Any) -> Any:
    """The same with only what JSON has: lists for arrays and tuples, strings for what is not finite."""
    if isinstance(value, Mapping):
        return {str(name): _json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if hasattr(value, "dtype"):
        return _json(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
