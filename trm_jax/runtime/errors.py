"""How a command stops: what it says, and its exit status.

    0    done
    1    done, but an answer is not verified, or a check has failed
    2    the user can put it right: one line says what. To be started again by nobody as it is
    75   ended from outside, by SIGTERM or with another process of the run: start it again, it goes on (EX_TEMPFAIL)
    130  interrupted by Ctrl-C

Whatever else is raised is a fault of ours.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from trm_jax.runtime.arguments import plain

AGAIN, INTERRUPTED = 75, 130


class UserError(ValueError):
    """What the user can put right; the message says what and how. Every error class of this library is one."""


class Preempted(Exception):
    """Ended from outside; the same command goes on. The message says from where."""


def guarded(run: Callable[[], int | None], interrupted: str = "") -> int:
    """The exit status of `run`: what it returns, 0 for None.

    Its UserErrors, and what the system refuses (no such folder, no permission, no room), become a line on standard
    error and 2; Preempted a line and 75; Ctrl-C a line, with the exception's message or `interrupted`, and 130.
    """
    try:
        return run() or 0
    except UserError as error:
        return _end(f"error: {error}", 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        room = f" ({_free(error.filename)} free)" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return _end(f"error: {where}{error.strerror or error}{room}", 2)
    except Preempted as error:
        return _end(f"ended from outside; {error}", AGAIN)
    except KeyboardInterrupt as error:
        more = str(error) or interrupted
        return _end("\ninterrupted" + (f"; {more}" if more else ""), INTERRUPTED)


def _end(text: str, status: int) -> int:
    """Prints lines without what a terminal would obey: names and texts in them are others'."""
    print("\n".join(map(plain, text.split("\n"))), file=sys.stderr)
    return status


def _free(path: str | None) -> str:
    folder = os.path.abspath(os.path.dirname(os.fspath(path)) if path is not None else ".")
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    return f"{shutil.disk_usage(folder).free:,} bytes"


class StopRequests:
    """In this context SIGINT and SIGTERM are requests that a loop asks for (`asked`); the second ends the process at
    once. In a run of several processes, and outside of the main thread, signals are left as they are.

    Args:
      say: takes a line when a request comes.
    """

    def __init__(self, say: Callable[[str], None], take_signals: bool = True):
        self._say, self._signal = say, 0
        self._take = take_signals and threading.current_thread() is threading.main_thread()
        self._at_once: str | None = None
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        return self._signal != 0

    def ask(self, number: int = signal.SIGTERM) -> None:
        self._signal = number

    def exception(self, message: str) -> BaseException:
        """What says how the run was ended."""
        return KeyboardInterrupt(message) if self._signal == signal.SIGINT else Preempted(message)

    @contextlib.contextmanager
    def at_once(self, message: str) -> Iterator[None]:
        """In this block a request is obeyed where it comes: `exception(message)` is raised."""
        self._at_once = message
        try:
            if self.asked:
                raise self.exception(message)
            yield
        finally:
            self._at_once = None

    def __enter__(self) -> StopRequests:
        if self._take:
            self._before = {number: signal.signal(number, self._come) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _come(self, number: int, _frame: object) -> None:
        if self.asked:
            os.write(2, b"\nended at once\n")
            os._exit(INTERRUPTED if number == signal.SIGINT else AGAIN)
        self._signal = number
        if self._at_once is not None:
            raise self.exception(self._at_once)
        self._say("stopping: the run is saved after this step; once more ends it at once")
