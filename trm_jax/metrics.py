"""What a run reports: a JSON line and TensorBoard scalars per record, and progress on the terminal.

In a run of several processes only process 0 writes; the others may make the same calls.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from trm_jax.distributed import is_primary

Values = Mapping[str, Any]  # name -> number or 0-d array (numpy or jax); strings go to JSON only


class MetricWriter:
    """Appends records to `workdir/metrics.jsonl` and `workdir/tensorboard`; a context manager.

    Every record is complete on disk when `write` returns. Records after `resume_step` (0: a new run) are of
    steps that will be done again: they, and lines that a kill cut short, are removed.
    """

    def __init__(self, workdir: str | os.PathLike, resume_step: int = 0):
        self._lines = self._board = None
        if not is_primary():
            return
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path, board = workdir / "metrics.jsonl", workdir / "tensorboard"
        if path.exists():
            _truncate(path, resume_step)
        self._lines = path.open("a", encoding="utf-8", buffering=1)
        purge = resume_step + 1 if board.exists() else None
        self._board = SummaryWriter(str(board), purge_step=purge, flush_secs=30)

    def write(self, step: int, values: Values) -> None:
        """Records `values` at `step`. Not-a-number and infinities become the strings "nan", "inf" and "-inf" in
        JSON, which float() reads, and are left out of TensorBoard.

        Raises:
          ValueError: a value is not a scalar.
        """
        if self._lines is None:
            return
        plain = {name: _plain(name, value) for name, value in values.items()}
        self._lines.write(json.dumps({"step": int(step), **_json(plain)}, allow_nan=False) + "\n")
        for name, value in plain.items():
            if not isinstance(value, str) and math.isfinite(value):
                self._board.add_scalar(name, value, int(step))

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()
            self._board.close()
            self._lines = self._board = None

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class Progress:
    """One line about the run on a terminal (a bar), or a line per update elsewhere; a context manager."""

    def __init__(self, total_steps: int, start_step: int = 0, stream: TextIO | None = None):
        self._total, self._step = total_steps, start_step
        self._stream = sys.stderr if stream is None else stream
        self._silent = not is_primary()
        self._seconds_per_step: float | None = None
        self._bar = None
        if not self._silent and _is_terminal(self._stream):
            self._bar = _Bar(total=total_steps, initial=start_step, file=self._stream, dynamic_ncols=True,
                             bar_format="{percentage:3.0f}%|{bar:10}| {desc}", mininterval=0)

    def update(self, step: int, values: Values, *, seconds: float = 0.0, examples: int = 0,
               flops: float = 0.0) -> None:
        """Shows that `step` steps are done.

        Args:
          values: of these are shown: loss, exact_accuracy (a share), lr, H, L.
          seconds: spent in training steps since the last update, without compiling, evaluating and saving.
          examples, flops: trained on, and done by the model, in that time.
        """
        if self._silent:
            return
        if seconds > 0 and step > self._step:
            pace = seconds / (step - self._step)
            old = self._seconds_per_step
            self._seconds_per_step = pace if old is None else 0.5 * (pace + old)
        self._step = step
        pace = self._seconds_per_step
        line = format_progress(step, self._total, {n: _plain(n, v) for n, v in values.items()},
                               examples_per_second=examples / seconds if seconds > 0 else None,
                               flops_per_second=flops / seconds if seconds > 0 and flops else None,
                               eta_seconds=None if pace is None else pace * (self._total - step))
        if self._bar is None:
            print(line, file=self._stream, flush=True)
        else:
            self._bar.n = step
            self._bar.set_description_str(line)

    def note(self, text: str) -> None:
        """Prints lines of their own, above the bar where there is one."""
        if self._silent:
            return
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.write(text, file=self._stream)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _is_terminal(stream: TextIO) -> bool:
    """Whether a bar can be seen there: one without a width (a container's, a recorder's) shows nothing of it."""
    try:
        return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):  # a stream that has no file: it must know
        return stream.isatty()


class _Bar(tqdm):
    monitor_interval = 0  # no background thread: this bar is redrawn only when told to


def format_progress(step: int, total_steps: int, values: Values, *, examples_per_second: float | None = None,
                    flops_per_second: float | None = None, eta_seconds: float | None = None) -> str:
    """'step 1200/5000  ETA 1:02:03  loss 0.1234  exact 45.2%  lr 1.0e-03  H 4  L 3  1,234 ex/s  12.3 TFLOP/s'.

    What is not in `values`, or None, is left out. A narrow terminal cuts the end off, so that comes last which is
    missed least.
    """
    shown = {"loss": "loss {:.4f}", "exact_accuracy": "exact {:.1%}", "lr": "lr {:.1e}", "H": "H {:.0f}",
             "L": "L {:.0f}"}
    parts = [f"step {step}/{total_steps}"]
    if eta_seconds is not None:
        parts.append(f"ETA {clock(eta_seconds)}")
    parts += [text.format(values[name]) for name, text in shown.items() if name in values]
    if examples_per_second is not None:
        parts.append(f"{examples_per_second:,.{0 if examples_per_second >= 10 else 1}f} ex/s")
    if flops_per_second is not None:
        parts.append(human_flops(flops_per_second))
    return "  ".join(parts)


def human_flops(flops_per_second: float) -> str:
    """Three digits and a unit: 1.23e13 -> '12.3 TFLOP/s'."""
    scale, units = 1e6, ("MFLOP/s", "GFLOP/s", "TFLOP/s", "PFLOP/s", "EFLOP/s")
    for unit in units:
        if flops_per_second < 999.5 * scale or unit == units[-1]:
            value = flops_per_second / scale
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
        scale *= 1e3
    raise AssertionError("unreachable")


def clock(seconds: float) -> str:
    """Hours, minutes, seconds: 3723 -> '1:02:03'."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


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


def _plain(name: str, value: Any) -> int | float | str:
    """A Python scalar from a Python, numpy or jax one."""
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise ValueError(f"metric {name!r} must be a scalar number, is {array.dtype}{list(array.shape)}")
    return int(array) if array.dtype.kind in "biu" else float(array)


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


def _truncate(path: Path, last_step: int) -> None:
    """Drops the records after `last_step`, and lines that are not records."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("step", last_step + 1) <= last_step:
            kept.append(line + "\n")
    write_file(path, "".join(kept))
