"""Jobs that have stopped, and which of them answers its puzzle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BUDGET, SETTLED, CONVERGED, VERIFIED, CANCELLED = range(5)
STOPS = ("budget", "settled", "converged", "verified", "cancelled")  # why a job stopped, by Jobs.stop
CRITERIA = ("verified", "residual", "halting", "vote", "settled", "logits")
ORDER = CRITERIA[:4]


class Jobs(NamedTuple):
    """J jobs that were begun, in the order in which they stopped; or the chosen one of each puzzle."""

    puzzle: np.ndarray  # int [J]
    attempt: np.ndarray  # int [J], which try of the puzzle; 0 is the plain one
    tokens: np.ndarray  # uint8 [J, S], as an answer to the puzzle itself
    verified: np.ndarray  # bool [J]; False without a verifier
    stop: np.ndarray  # int [J] into STOPS
    cycles: np.ndarray  # int [J], cycles done
    since: np.ndarray  # int [J], the cycle that brought this answer
    residual: np.ndarray  # float [J], of the last cycle
    q_halt: np.ndarray  # float [J], logit; 0 without a halting head
    logit_change: np.ndarray  # float [J], of the last cycles; 0 where `choose` does not ask for it

    def take(self, rows) -> Jobs:
        return Jobs(*(array[rows] for array in self))

    @classmethod
    def not_begun(cls, n: int, S: int) -> Jobs:
        """n puzzles of S cells before anybody worked on them."""
        return cls(np.arange(n), np.zeros(n, int), np.zeros((n, S), np.uint8), np.zeros(n, bool), np.full(n, BUDGET),
                   np.zeros(n, int), np.zeros(n, int), np.full(n, np.inf, np.float32), *np.zeros((2, n), np.float32))

    @classmethod
    def joined(cls, parts: Sequence[Jobs], S: int) -> Jobs:
        """The parts, none or more, one after another."""
        return cls(*map(np.concatenate, zip(cls.not_begun(0, S), *parts)))


def choose(jobs: Jobs, n: int, by: tuple[str, ...] = ORDER) -> np.ndarray:
    """int [n], the job whose answer each puzzle gets; -1 where none was begun.

    Criteria in their order, each where those before do not tell: verified; the smaller power of ten of the residual
    (its digits are noise, and would leave nothing to those that follow); the higher halting logit; the answer that most
    jobs of the puzzle came to; the one that has stood since an earlier cycle; "logits": the smallest change of the
    logits over the last cycles, as EqR (arXiv:2605.21488) chooses ("halting" alone is PTRM's choice). Then the first
    try. A cancelled job is taken only if there is no other.
    """
    keys = [jobs.attempt]
    for name in reversed(by):
        if name == "verified":
            keys.append(~jobs.verified)
        elif name == "residual":
            with np.errstate(divide="ignore"):
                keys.append(np.floor(np.log10(jobs.residual.astype(np.float64))))
        elif name == "logits":
            keys.append(jobs.logit_change)
        elif name == "halting":
            keys.append(-jobs.q_halt)
        elif name == "settled":
            keys.append(jobs.since)
        else:
            keys.append(-votes(jobs))
    order = np.lexsort((*keys, jobs.stop == CANCELLED, jobs.puzzle))
    puzzles, first = np.unique(jobs.puzzle[order], return_index=True)
    chosen = np.full(n, -1)
    chosen[puzzles] = order[first]
    return chosen


def votes(jobs: Jobs) -> np.ndarray:
    """int [J], how many jobs of the same puzzle came to the same answer; those that were cancelled have no vote."""
    ballots: dict[tuple[int, bytes], int] = {}
    keys = [(int(p), t.tobytes()) for p, t in zip(jobs.puzzle, jobs.tokens)]
    for key, stop in zip(keys, jobs.stop):
        ballots[key] = ballots.get(key, 0) + (stop != CANCELLED)
    return np.array([ballots[key] for key in keys], int)
