"""Test-time compute: how long and how often a trained step is applied to a puzzle, and which answer is kept.

`solve` is continuous batching, for every recursion. Work is a queue of jobs (puzzle, restart), done by the slots of a
batch (slots.py; a fixed unroll for all is there too, `unrolled`). A slot whose job has stopped takes the next one, so
that the cost of many puzzles follows their mean number of cycles, not the largest. The device runs until enough slots
have stopped or it is time to ask the verifier, never a cycle at a time; when the queue is empty, the jobs that are left
move into smaller and smaller batches. A batch is a power of two, so that few programs are compiled.

A job stops when its decoded answer has stood still for `settle` cycles, when the relative residual of its latents is
under `tolerance`, when the verifier accepts its answer, or when its budget is spent; the verifier is asked between two
calls of the device, so a job that it stops may have gone on for some cycles (see `Jobs.cycles` and `Jobs.since`).

Restart 0 of a puzzle is the plain one. The others differ by noise in the latents they start from, by noise before each
cycle (as PTRM does), or by a symmetry of the puzzle, undone in the answer. Restarts of a puzzle that has been verified
are not begun, and stopped where they are at work. Noise and symmetries are functions of (seed, puzzle, restart) alone,
not of the batch that a job happens to be in; the sums of a matrix product are not, in their last bits.

A cycle is the model's test step: an outer cycle, or a supervision step of a network that was trained with those.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from trm_jax.inference.choice import BUDGET, CANCELLED, CONVERGED, SETTLED, VERIFIED, Jobs, choose
from trm_jax.inference.queue import Queue
from trm_jax.inference.settings import InferenceError, Settings
from trm_jax.inference.slots import Seen, Slots, advanced, begin, gather, refill
from trm_jax.puzzles import Symmetry

FIRST_CYCLES, MOST_CYCLES = 4, 64  # of one call of the device: grows while nothing stops
QUOTA = 16  # a call ends early when one in so many slots has stopped
LONG = 512  # cycles that are left: with so many a half-empty batch is worth another compilation


@dataclasses.dataclass(frozen=True)
class Results:
    """What n puzzles came to. `answers` has a row for each in its order; begun[i] is False where time was up before."""

    answers: Jobs
    begun: np.ndarray  # bool [n]
    jobs: Jobs
    cycles: int  # done by jobs
    slot_cycles: int  # computed: those, and those of slots that stood idle
    core_calls: int  # computed: slot_cycles, each of so many calls of the network
    seconds: float


def solve(model, weights, inputs: np.ndarray, L: int, settings: Settings | None = None, *,
          verify: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
          draw_symmetry: Callable[[np.random.Generator, int], Symmetry] | None = None,
          identifiers: np.ndarray | None = None, mesh: Mesh | None = None,
          report: Callable[[int, int], None] | None = None) -> Results:
    """Answers n puzzles.

    Args:
      model, weights: a models.network.Model and state.Weights.
      inputs: tokens [n, S].
      L: inner cycles.
      verify: (inputs [k, S], answers [k, S]) -> bool [k]. None: nothing is verified.
      draw_symmetry: (rng, count) -> Symmetry, as domains have it; needed for restarts that differ by symmetries.
      identifiers: int [n], rows of the puzzle table; None: row 0.
      mesh: devices of this process (distributed.data_mesh) over which slots are split; None: one device. They wait for
        each other once a cycle, to count who is running; `weights` must be on all of them.
      report: takes (puzzles done, n) now and then.
    """
    settings = settings or Settings()
    return _Run(model, weights, np.asarray(inputs, np.uint8), L, settings, verify, draw_symmetry, identifiers,
                mesh)(report)


class _Run:
    """One call of `solve`. Slot b works on job held[b] = (puzzle, restart), (-1, -1) where it is free."""

    def __init__(self, model, weights, inputs, L, settings, verify, draw_symmetry, identifiers, mesh):
        if settings.restarts > 1 and settings.vary == "symmetry" and draw_symmetry is None:
            raise InferenceError("vary = 'symmetry': this puzzle has no symmetries to draw; vary start or cycle")
        self._model, self._weights, self._L, self._settings = model, weights, L, settings
        self._mesh = None if mesh is None or mesh.size == 1 else mesh
        self._verify, self._draw, self._inputs = verify, draw_symmetry, inputs
        rows = np.zeros(len(inputs)) if identifiers is None else identifiers
        self._identifiers = np.asarray(rows, np.int32)
        self._calls = model.test_cycles * (L + 1)
        self._queue = Queue(len(inputs), settings, self._calls)
        self._noisy = settings.vary if settings.restarts > 1 and settings.vary != "symmetry" else ""
        self._base = jax.random.key(settings.seed)
        self._finished: list[Jobs] = []
        self._solved = np.zeros(len(inputs), bool)
        self._cycles = self._slot_cycles = 0

    def __call__(self, report) -> Results:
        s, begun = self._settings, time.perf_counter()
        n = len(self._inputs)
        self._resize(min(self._batch(n * s.restarts), self._batch(s.batch_size)))
        slots, cycles = None, FIRST_CYCLES
        while True:
            slots, refilled = self._fill(slots)
            if not self._alive.any():
                break
            if (smaller := self._smaller_batch()) is not None:
                slots = self._shrink(slots, smaller)
            running = int(self._alive.sum())
            cycles = FIRST_CYCLES if refilled else min(2 * cycles, MOST_CYCLES)
            quota = -(-len(self._alive) // QUOTA) if len(self._queue) else running
            slots, seen = advanced(self._model, self._weights, slots, self._alive, np.int32(cycles),
                                   np.int32(max(0, running - quota)), np.int32(s.settle), np.float32(s.tolerance),
                                   self._L, self._noisy == "cycle")
            seen = Seen(*map(np.asarray, jax.device_get(seen)))
            self._count(seen)
            late = bool(s.max_seconds) and time.perf_counter() - begun >= s.max_seconds
            self._collect(seen, late)
            if report is not None:
                report(self._queue.done(), n)
            if late:
                break
        return self._results(time.perf_counter() - begun)

    # Slots.

    def _batch(self, n: int) -> int:
        """Size of a batch for n jobs: on each device a power of two."""
        devices = self._mesh.size if self._mesh else 1
        return devices * bucket(-(-n // devices))

    def _resize(self, B: int) -> None:
        self._held = np.full((B, 2), -1)
        self._limit = np.zeros(B, np.int32)
        self._alive = np.zeros(B, bool)
        self._asked = np.ones((B, self._inputs.shape[1]), np.uint8)  # the puzzle as its job sees it
        self._undo: list[Symmetry | None] = [None] * B
        self._done = np.zeros(B, np.int64)  # cycles at the last look
        self._checked = np.zeros(B, np.int64)  # cycles when the verifier was last asked

    def _fill(self, slots: Slots | None) -> tuple[Slots, bool]:
        """Gives free slots their next jobs; whether there were any."""
        fresh = np.zeros(len(self._alive), bool)
        for b in np.flatnonzero(~self._alive):
            job = self._queue.next()
            if job is None:
                break
            puzzle, restart, limit = job
            self._held[b], self._limit[b], fresh[b] = (puzzle, restart), limit, True
            self._asked[b], self._undo[b] = self._seen_by(puzzle, restart)
            self._done[b] = self._checked[b] = 0
        if not fresh.any():
            return slots, False
        self._alive |= fresh
        held = np.maximum(self._held, 0)
        sigma = np.where(held[:, 1] > 0, self._settings.sigma, 0).astype(np.float32)
        made = begin(self._model, self._weights, self._asked, self._identifiers[held[:, 0]], self._base,
                      held[:, 0].astype(np.int32), held[:, 1].astype(np.int32), self._limit, sigma, self._noisy,
                      self._mesh)
        return (made if slots is None else refill(slots, made, fresh)), True

    def _seen_by(self, puzzle: int, restart: int) -> tuple[np.ndarray, Symmetry | None]:
        """The puzzle [S] that a job works on, and what maps its answer back."""
        tokens = self._inputs[puzzle]
        if not restart or self._settings.vary != "symmetry":
            return tokens, None
        symmetry = self._draw(np.random.default_rng([self._settings.seed, puzzle, restart]), 1)
        return symmetry.apply(tokens[None])[0], symmetry.inverse()

    def _smaller_batch(self) -> int | None:
        """The size of the batch to move to, if that is worth it: never while there is work for free slots."""
        B, running = len(self._alive), int(self._alive.sum())
        small = self._batch(running)
        if len(self._queue) or small == B:
            return None
        left = int((self._limit - self._done)[self._alive].max())
        return small if 4 * small <= B or left >= LONG else None

    def _shrink(self, slots: Slots, size: int) -> Slots:
        rows = np.concatenate([np.flatnonzero(self._alive), np.flatnonzero(~self._alive)])[:size]
        slots = gather(slots, rows.astype(np.int32), self._mesh)
        for name in ("_held", "_limit", "_alive", "_asked", "_done", "_checked"):
            setattr(self, name, getattr(self, name)[rows])
        self._undo = [self._undo[b] for b in rows]
        return slots

    # Jobs.

    def _count(self, seen: Seen) -> None:
        moved = np.where(self._alive, seen.done - self._done, 0)
        self._cycles += int(moved.sum())
        self._slot_cycles += int(moved.max(initial=0)) * len(self._alive)
        self._done = np.where(self._alive, seen.done, self._done)

    def _collect(self, seen: Seen, late: bool) -> None:
        """Takes the answers of jobs that have stopped, or must."""
        s = self._settings
        since = seen.done - seen.unchanged
        verified = self._ask(seen, since)
        held = self._held[:, 0]
        self._solved[held[verified]] = True
        cancelled = self._alive & ~verified & self._solved[np.maximum(held, 0)]
        over = self._alive & (~seen.running | verified | cancelled | late)
        rows = np.flatnonzero(over)
        if not len(rows):
            return
        stop = np.select([verified, cancelled, (s.settle > 0) & (seen.unchanged >= s.settle) & ~seen.running,
                          (seen.residual <= s.tolerance) & ~seen.running],
                         [VERIFIED, CANCELLED, SETTLED, CONVERGED], BUDGET)
        tokens = np.stack([seen.answer[b] if self._undo[b] is None else self._undo[b].apply(seen.answer[b][None])[0]
                           for b in rows])
        self._finished.append(Jobs(held[rows], self._held[rows, 1], tokens, verified[rows], stop[rows],
                                   seen.done[rows], since[rows], seen.residual[rows], seen.q_halt[rows]))
        for b in rows:
            self._queue.give_back(held[b], int(self._limit[b] - seen.done[b]))
        for puzzle in held[verified]:
            self._queue.drop(puzzle)
        self._alive &= ~over
        self._held[rows] = -1

    def _ask(self, seen: Seen, since: np.ndarray) -> np.ndarray:
        """Which of the answers the verifier accepts, [B]; it is asked about those that are new since it was last."""
        verified = np.zeros(len(self._alive), bool)
        if self._verify is None:
            return verified
        new = np.flatnonzero(self._alive & (since > self._checked))
        if len(new):
            verified[new] = self._verify(self._asked[new], seen.answer[new])
        self._checked = np.where(self._alive, seen.done, self._checked)
        return verified

    def _results(self, seconds: float) -> Results:
        n, S = self._inputs.shape
        empty = Jobs(*np.zeros((2, 0), int), np.zeros((0, S), np.uint8), np.zeros(0, bool), *np.zeros((3, 0), int),
                     *np.zeros((2, 0), np.float32))
        jobs = Jobs(*map(np.concatenate, zip(empty, *self._finished)))
        chosen = choose(jobs, n, self._settings.choose)
        begun = chosen >= 0
        nothing = Jobs(np.arange(n), np.zeros(n, int), np.zeros((n, S), np.uint8), np.zeros(n, bool),
                       np.full(n, BUDGET), *np.zeros((2, n), int), np.full(n, np.inf), np.zeros(n))
        answers = Jobs(*(np.where(begun.reshape(-1, *[1] * (a.ndim - 1)), a[chosen] if len(a) else b, b).astype(a.dtype)
                         for a, b in zip(jobs, nothing)))
        return Results(answers, begun, jobs, self._cycles, self._slot_cycles, self._slot_cycles * self._calls, seconds)


def rules(domain) -> dict[str, Callable | None]:
    """What `solve` can use of a puzzle domain: its verifier and its symmetries, None where it has none."""
    def verify(inputs, answers):
        return domain.verify(inputs, answers).solved
    return {"verify": verify if domain.verified_as else None, "draw_symmetry": getattr(domain, "draw_symmetry", None)}


def bucket(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def flops(model, results: Results, L: int) -> float:
    """Floating-point operations (matrix products) that were computed, per puzzle."""
    per_cycle = model.test_cycles * model.calls_flops(L + 1) + model.head_flops()
    return results.slot_cycles * per_cycle / max(1, len(results.begun))
