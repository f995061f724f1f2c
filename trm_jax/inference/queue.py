"""The queue of jobs: which puzzle is tried next, how often and for how long."""

from __future__ import annotations

from collections import deque

import numpy as np

from trm_jax.inference.settings import Settings


class Queue:
    """Jobs to be begun: the plain try of every puzzle, then try by try; knows what each puzzle may still spend.

    It holds puzzles, not jobs: a billion tries take no more memory than one. It has n places: full from the start, or
    of an open queue all free, and `add` fills one that is.
    """

    def __init__(self, n: int, settings: Settings, calls_per_cycle: int, is_open: bool = False):
        self._puzzles = deque(() if is_open else range(n))  # in the order of their next tries
        self._listed = np.full(n, not is_open)  # which of them are there; some may have been dropped
        self._waiting: set[int] = set()  # for what a job at work may leave of the puzzle's budget
        self._budget = settings.max_calls // calls_per_cycle if settings.max_calls else np.iinfo(np.int64).max
        self._left = np.full(n, self._budget)
        self._tries, self._most = np.full(n, settings.tries), np.full(n, settings.max_cycles)
        self._begun = np.zeros(n, int)  # tries
        self._busy = np.zeros(n, int)  # jobs at work
        self._to_do = np.full(n, 0 if is_open else settings.tries)  # jobs that have not stopped, nor will never begin

    def add(self, puzzle: int, tries: int, max_cycles: int) -> None:
        """Puts a puzzle into a place for which `is_over` holds."""
        self._left[puzzle], self._tries[puzzle], self._most[puzzle] = self._budget, tries, max_cycles
        self._begun[puzzle], self._to_do[puzzle] = 0, tries
        self._list(puzzle)

    def _list(self, puzzle: int) -> None:
        if not self._listed[puzzle]:
            self._puzzles.append(puzzle)
            self._listed[puzzle] = True

    def __bool__(self) -> bool:
        """Whether there may be another job."""
        return bool(self._puzzles)

    def next(self) -> tuple[int, int, int] | None:
        """(puzzle, try counted from 0, cycles it may do), or None."""
        while self._puzzles:
            puzzle = self._puzzles.popleft()
            self._listed[puzzle] = False
            if not self._to_do[puzzle]:
                continue
            limit = int(min(self._most[puzzle], self._left[puzzle]))
            if limit < 1:
                if self._busy[puzzle]:
                    self._waiting.add(puzzle)
                else:
                    self._to_do[puzzle] = 0
                continue
            attempt = int(self._begun[puzzle])
            self._left[puzzle] -= limit
            self._busy[puzzle] += 1
            self._begun[puzzle] += 1
            if attempt + 1 < self._tries[puzzle]:
                self._list(puzzle)
            return puzzle, attempt, limit
        return None

    def give_back(self, puzzle: int, unspent: int) -> None:
        """A job of this puzzle has stopped."""
        self._left[puzzle] += unspent
        self._busy[puzzle] -= 1
        self._to_do[puzzle] = max(0, self._to_do[puzzle] - 1)
        if puzzle in self._waiting:
            self._waiting.remove(puzzle)
            self._puzzles.appendleft(puzzle)
            self._listed[puzzle] = True

    def drop(self, puzzle: int) -> None:
        """Begins nothing more for this puzzle."""
        self._to_do[puzzle] = 0

    def is_over(self, puzzle: int) -> bool:
        """Whether no job of this puzzle is at work, nor will be."""
        return not (self._to_do[puzzle] or self._busy[puzzle])

    def done(self) -> int:
        """Puzzles for which nothing is left to do."""
        return int((self._to_do == 0).sum())
