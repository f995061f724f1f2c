"""What a command says while it works: lines on standard error, or a bar on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from trm_jax.runtime.distributed import is_primary
from trm_jax.runtime.text import clock, human

Values = Mapping[str, Any]  # name -> number or 0-d array (numpy or jax); strings go to JSON only


def say(text: str) -> None:
    """A line on standard error; of a run of several processes the first one's alone."""
    if is_primary():
        print(text, file=sys.stderr, flush=True)


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
               flops: float = 0.0, peak: float = 0.0) -> None:
        """Shows that `step` steps are done.

        Args:
          values: of these are shown: loss, exact_accuracy (a share), lr, H, L.
          seconds: spent in training steps since the last update, without compiling, evaluating and saving.
          examples, flops: trained on, and done by the model, in that time.
          peak: FLOP/s that the devices could do; 0: not known.
        """
        if self._silent:
            return
        if seconds > 0 and step > self._step:
            pace = seconds / (step - self._step)
            old = self._seconds_per_step
            self._seconds_per_step = pace if old is None else 0.5 * (pace + old)
        self._step = step
        pace = self._seconds_per_step
        line = format_progress(step, self._total, {n: plain_value(n, v) for n, v in values.items()},
                               examples_per_second=examples / seconds if seconds > 0 else None,
                               flops_per_second=flops / seconds if seconds > 0 and flops else None, peak=peak,
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

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_terminal(stream: TextIO) -> bool:
    """Whether a bar can be seen there: one without a width (a container's, a recorder's) shows nothing of it."""
    try:
        return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):  # a stream that has no file: it must know
        return stream.isatty()


class _Bar(tqdm):  # pyright: ignore[reportMissingTypeArgument]
    monitor_interval = 0  # no background thread: this bar is redrawn only when told to


def format_progress(step: int, total_steps: int, values: Values, *, examples_per_second: float | None = None,
                    flops_per_second: float | None = None, peak: float = 0.0,
                    eta_seconds: float | None = None) -> str:
    """'step 12/50  ETA 1:02:03  loss 0.1234  exact 45.2%  lr 1.0e-03  H 4  L 3  1,234 ex/s  12.3 TFLOP/s  MFU 41%'.

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
        parts.append(human(flops_per_second, "FLOP/s"))
        if peak:
            parts.append(f"MFU {flops_per_second / peak:.0%}")
    return "  ".join(parts)


def plain_value(name: str, value: Any) -> int | float | str:
    """A Python scalar from a Python, numpy or jax one."""
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise ValueError(f"metric {name!r} must be a scalar number, is {array.dtype}{list(array.shape)}")
    return int(array) if array.dtype.kind in "biu" else float(array)
