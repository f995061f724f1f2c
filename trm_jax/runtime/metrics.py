"""What a run reports: a record (step, {name: number}) at a time, to every writer that the run has.

Built in are JSON lines (always: reports read them) and TensorBoard; `trackers` has those of other people's services.
In a run of several processes only process 0 writes; the others may make the same calls.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter  # SummaryWriter's flush leaves what waits in its thread
from tensorboardX.proto import event_pb2

from trm_jax.runtime.distributed import is_primary
from trm_jax.runtime.files import plain_json, write_file
from trm_jax.runtime.progress import Values, plain_value, say

_EVENTS: Any = event_pb2  # its classes are made when it is imported


class Writer(Protocol):
    """A place that records go to."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """A record: plain numbers, and strings, by name. Numbers may be infinite or not-a-number."""

    def flush(self) -> None:
        """What was written survives a kill, once this returns; where somebody else keeps it, as far as they say."""

    def close(self) -> None:
        """Nothing is written any more."""


class MetricWriter:
    """Hands records to `workdir/metrics.jsonl` and to the other writers of a run; a context manager.

    Every record's line is complete on disk when `write` returns, other writers' when `flush` does. Records after
    `resume_step` (0: a new run) are of steps that will be done again: they, and lines that a kill cut short, are
    removed from the lines and hidden in TensorBoard; so are evaluations of `resume_step` itself if it is not
    `evaluated` yet. A writer that fails is told of and left out from then on: the run goes on.

    Args:
      others: name -> what opens the writer, from (workdir, resume_step).
    """

    def __init__(self, workdir: str | os.PathLike[str], resume_step: int = 0, evaluated: bool = True,
                 others: Mapping[str, Callable[[Path, int], Writer]] | None = None):
        self._writers: dict[str, Writer] = {}
        if not is_primary():
            return
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self._writers["metrics.jsonl"] = JsonLines(workdir, resume_step, evaluated)
        try:
            for name, opened in ({"tensorboard": TensorBoard} if others is None else others).items():
                self._writers[name] = opened(workdir, resume_step)
        except BaseException:
            self.close()
            raise

    def write(self, step: int, values: Values) -> None:
        """Records `values` at `step`.

        Raises:
          ValueError: a value is not a scalar.
        """
        plain = {name: plain_value(name, value) for name, value in values.items()}
        self._each(lambda writer: writer.write(int(step), plain))

    def flush(self) -> None:
        self._each(lambda writer: writer.flush())

    def close(self) -> None:
        self._each(lambda writer: writer.close())
        self._writers.clear()

    def _each(self, call: Callable[[Writer], None]) -> None:
        for name, writer in list(self._writers.items()):
            try:
                call(writer)
            except Exception as error:  # whatever somebody else's library raises
                if isinstance(writer, (JsonLines, TensorBoard)):
                    raise
                del self._writers[name]
                say(f"{name} takes no more records ({type(error).__name__}: {error}); the run goes on without it")

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class JsonLines:
    """`workdir/metrics.jsonl`. What is not finite becomes "nan", "inf" or "-inf", which float() reads."""

    def __init__(self, workdir: Path, resume_step: int = 0, evaluated: bool = True):
        path = workdir / "metrics.jsonl"
        if path.exists():
            _truncate(path, resume_step, evaluated)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({"step": step, **plain_json(values)}, allow_nan=False) + "\n")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """`workdir/tensorboard`: what is a finite number."""

    def __init__(self, workdir: Path, resume_step: int = 0):
        board = workdir / "tensorboard"
        is_resumed = board.exists()
        board.mkdir(exist_ok=True)
        self._events = EventsWriter(str(board / "events"))
        if is_resumed:  # TensorBoard hides what the session before wrote from here on
            self._events.write_event(_EVENTS.Event(wall_time=time.time(), step=resume_step + 1,
                                                   session_log=_EVENTS.SessionLog(status=_EVENTS.SessionLog.START)))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        for name, value in finite(values).items():
            self._events.write_event(_EVENTS.Event(wall_time=time.time(), step=step,
                                                   summary=summary.scalar(name, value)))

    def flush(self) -> None:
        self._events.flush()

    def close(self) -> None:
        self._events.close()


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """Those that are finite numbers."""
    return {name: value for name, value in values.items() if not isinstance(value, str) and math.isfinite(value)}


def _truncate(path: Path, last_step: int, evaluated: bool) -> None:
    """Drops the records after `last_step`, evaluations of it if it is not evaluated, and lines that are no records."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        step = record.get("step") if isinstance(record, dict) else None
        again = step == last_step and not evaluated and any(name.startswith("eval/") for name in record)
        if isinstance(step, int) and step <= last_step and not again:
            kept.append(line + "\n")
    write_file(path, "".join(kept))
