"""The queue of jobs: which puzzle is tried next, how often and for how long."""

from __future__ import annotations

from collections import deque

import numpy as np

from trm_jax.inference.settings import Settings


class Queue:
    """Jobs to be begun, plain ones first, then restart by restart; knows what each puzzle may still spend."""

    def __init__(self, n: int, settings: Settings, calls_per_cycle: int):
        self._jobs = deque((p, r) for r in range(settings.restarts) for p in range(n))
        self._waiting: list[tuple[int, int]] = []
        self._most = settings.max_cycles
        self._left = np.full(n, settings.max_calls // calls_per_cycle if settings.max_calls else np.iinfo(np.int64).max)
        self._busy = np.zeros(n, int)  # jobs at work
        self._to_do = np.full(n, settings.restarts)  # jobs that have not stopped, nor will never be begun

    def __len__(self) -> int:
        return len(self._jobs)

    def next(self) -> tuple[int, int, int] | None:
        """(puzzle, restart, cycles it may do), or None."""
        while self._jobs:
            puzzle, restart = self._jobs.popleft()
            if not self._to_do[puzzle]:
                continue
            limit = int(min(self._most, self._left[puzzle]))
            if limit < 1:
                if self._busy[puzzle]:  # a job at work may leave something of what is set aside for it
                    self._waiting.append((puzzle, restart))
                else:
                    self._to_do[puzzle] -= 1
                continue
            self._left[puzzle] -= limit
            self._busy[puzzle] += 1
            return puzzle, restart, limit
        return None

    def give_back(self, puzzle: int, unspent: int) -> None:
        """A job of this puzzle has stopped."""
        self._left[puzzle] += unspent
        self._busy[puzzle] -= 1
        self._to_do[puzzle] = max(0, self._to_do[puzzle] - 1)
        if self._waiting:
            self._jobs.extendleft(job for job in self._waiting if job[0] == puzzle)
            self._waiting = [job for job in self._waiting if job[0] != puzzle]

    def drop(self, puzzle: int) -> None:
        """Begins nothing more for this puzzle."""
        self._to_do[puzzle] = 0

    def done(self) -> int:
        """Puzzles for which nothing is left to do."""
        return int((self._to_do == 0).sum())
