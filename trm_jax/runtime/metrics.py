"""What a run reports: a JSON line and TensorBoard scalars per record, and progress on the terminal.

In a run of several processes only process 0 writes; the others may make the same calls.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any, TextIO

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter  # SummaryWriter's flush leaves what waits in its thread
from tensorboardX.proto import event_pb2

from trm_jax.runtime.distributed import is_primary
from trm_jax.runtime.files import plain_json, write_file
from trm_jax.runtime.progress import Values, plain_value

_EVENTS: Any = event_pb2  # its classes are made when it is imported


class MetricWriter:
    """Appends records to `workdir/metrics.jsonl` and `workdir/tensorboard`; a context manager.

    Every record's line is complete on disk when `write` returns, TensorBoard's file when `flush` does. Records after
    `resume_step` (0: a new run) are of steps that will be done again: they, and lines that a kill cut short, are
    removed; so are evaluations of `resume_step` itself if it is not `evaluated` yet.
    """

    def __init__(self, workdir: str | os.PathLike[str], resume_step: int = 0, evaluated: bool = True):
        self._open: tuple[TextIO, Any] | None = None  # metrics.jsonl and the TensorBoard writer
        if not is_primary():
            return
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path, board = workdir / "metrics.jsonl", workdir / "tensorboard"
        if path.exists():
            _truncate(path, resume_step, evaluated)
        is_resumed = board.exists()
        board.mkdir(exist_ok=True)
        events = EventsWriter(str(board / "events"))
        if is_resumed:  # TensorBoard hides what the session before wrote from here on
            events.write_event(_EVENTS.Event(wall_time=time.time(), step=resume_step + 1,
                                             session_log=_EVENTS.SessionLog(status=_EVENTS.SessionLog.START)))
        self._open = path.open("a", encoding="utf-8", buffering=1), events

    def write(self, step: int, values: Values) -> None:
        """Records `values` at `step`. Not-a-number and infinities become the strings "nan", "inf" and "-inf" in
        JSON, which float() reads, and are left out of TensorBoard.

        Raises:
          ValueError: a value is not a scalar.
        """
        if self._open is None:
            return
        lines, board = self._open
        plain = {name: plain_value(name, value) for name, value in values.items()}
        lines.write(json.dumps({"step": int(step), **plain_json(plain)}, allow_nan=False) + "\n")
        for name, value in plain.items():
            if not isinstance(value, str) and math.isfinite(value):
                board.write_event(_EVENTS.Event(wall_time=time.time(), step=int(step),
                                                summary=summary.scalar(name, value)))

    def flush(self) -> None:
        if self._open is not None:
            self._open[1].flush()

    def close(self) -> None:
        for file in self._open or ():
            file.close()
        self._open = None

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
