"""How a command stops when it cannot go on: one line for its user. Whatever else is raised is a fault of ours."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(ValueError):
    """What the user can put right; the message says what and how. Every error class of this library is one."""


def guarded(run: Callable[[], int | None], interrupted: str = "") -> int:
    """The exit status of `run`: what it returns, 0 for None.

    Its UserErrors, and what the system refuses (no such folder, no permission, no room), become a line on standard
    error and 2; Ctrl-C becomes a line, which `interrupted` goes on, and 130.
    """
    try:
        return run() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted" + (f"; {interrupted}" if interrupted else ""), file=sys.stderr)
        return 130
