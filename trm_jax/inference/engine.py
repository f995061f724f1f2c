"""Test-time compute: how long and how often a trained step is applied to a puzzle, and which answer is kept.

`solve` is continuous batching, for every recursion. Work is a queue of jobs (puzzle, try), done by the slots of a
batch (slots.py; a fixed unroll for all is there too, `unrolled`). A slot whose job has stopped takes the next one, so
that the cost of many puzzles follows their mean number of cycles, not the largest. The device runs until enough slots
have stopped or it is time to ask the verifier, never a cycle at a time; when the queue is empty, the jobs that are left
move into smaller and smaller batches. A batch is a power of two, so that few programs are compiled.

`serve` is the same engine with an open queue: puzzles come while others are at work, each with its own budget, and
the batch grows and shrinks with their number.

A job stops when its decoded answer has stood still for `settle` cycles, when the relative residual of its latents is
under `tolerance`, when the verifier accepts its answer, or when its budget is spent; the verifier is asked between two
calls of the device, so a job that it stops may have gone on for some cycles (see `Jobs.cycles` and `Jobs.since`).

The first try of a puzzle is the plain one. The others differ by noise in the latents they start from, by noise before
each cycle (as PTRM does), or by a symmetry of the puzzle, undone in the answer. Tries of a puzzle that has been
verified are not begun, and stopped where they are at work. Noise and symmetries are functions of (seed, puzzle, number
of the try) alone, not of the batch that a job happens to be in; the sums of a matrix product are not, in their last
bits.

A cycle is the model's test step: an outer cycle, or a supervision step of a network that was trained with those.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from trm_jax.inference.choice import BUDGET, CANCELLED, CONVERGED, SETTLED, VERIFIED, Jobs, choose
from trm_jax.inference.queue import Queue
from trm_jax.inference.settings import InferenceError, Settings
from trm_jax.inference.slots import LOGIT_WINDOW, Seen, Slots, advanced, begin, gather, refill, sure
from trm_jax.models.network import Bound
from trm_jax.puzzles import Domain, Symmetry

FIRST_CYCLES, MOST_CYCLES = 4, 64  # of one call of the device: grows while nothing stops
REFILL_SHARE = 1 / 16  # return to the host once this share of slots is free
MIN_CYCLES_TO_SHRINK = 512  # shrinking to half recompiles: only with so many cycles left
OPEN_SECONDS = 0.2  # that one call of the device may take, about, where others may come meanwhile


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


def solve(bound: Bound, inputs: np.ndarray, settings: Settings | None = None, *,
          verify: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
          draw_symmetry: Callable[[np.random.Generator, int], Symmetry] | None = None,
          identifiers: np.ndarray | None = None, numbers: np.ndarray | None = None, mesh: Mesh | None = None,
          report: Callable[[int, int], None] | None = None,
          finished: Callable[[int, Jobs], None] | None = None) -> Results:
    """Answers n puzzles.

    Args:
      bound: the model with its weights and L.
      inputs: tokens [n, S].
      verify: (inputs [k, S], answers [k, S]) -> bool [k]. None: nothing is verified.
      draw_symmetry: (rng, count) -> Symmetry, as domains have it; needed for tries that differ by symmetries.
      identifiers: int [n], rows of the puzzle table; None: row 0.
      numbers: int [n], which puzzle of all each one is, where these are a share of them: noise and symmetries are drawn
        by it. None: its place.
      mesh: devices of this process (distributed.data_mesh) over which slots are split; None: one device. They wait for
        each other once a cycle, to count who is running; the weights must be on all of them.
      report: takes (puzzles done, n) now and then.
      finished: takes (puzzle, its answer: Jobs of one row) as soon as nothing more is done for it. Of puzzles that are
        not done when time is up it hears nothing.
    """
    settings = settings or Settings()
    run = _Run(bound, np.asarray(inputs, np.uint8), settings, verify, draw_symmetry, identifiers, numbers, mesh)
    return run(report, finished)


class Frame(NamedTuple):
    """The answer of a try after a cycle."""

    attempt: int
    cycle: int
    tokens: np.ndarray  # uint8 [S], as an answer to the puzzle itself
    sure: np.ndarray  # float32 [S], probability of each
    residual: float
    asked: np.ndarray | None = None  # uint8 [S], the puzzle with the guesses of this try, where there are any


class Arrival(NamedTuple):
    """A puzzle that comes while others are at work on."""

    inputs: np.ndarray  # uint8 [S]
    tries: int
    max_cycles: int  # of a try
    finished: Callable[[Jobs], None]  # takes its answer, Jobs of one row; of none where time was up before its turn
    until: Callable[[], float] = lambda: math.inf  # time.perf_counter() at which it is given up; asked ever again
    watch: Callable[[Frame], None] | None = None  # takes every cycle of every try
    number: int = 0  # noise and symmetries are drawn by it


Source = Callable[[int, bool], "list[Arrival] | None"]


def serve(bound: Bound, settings: Settings, source: Source, *, seq_len: int, places: int = 1024, least: int = 1,
          verify: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
          draw_symmetry: Callable[[np.random.Generator, int], Symmetry] | None = None,
          report: Callable[[int, int, int], None] | None = None) -> None:
    """Answers the puzzles that a source brings, until it has no more.

    Args:
      settings: what all have in common; tries, max_cycles and the time are each puzzle's own. settings.tries > 1 where
        any of them may have more than one try.
      source: (how many may come, is nothing at work) -> puzzles, or None: no more will come. It is asked between two
        calls of the device; where nothing is at work it may take its time.
      places: puzzles that are waiting or at work, at most.
      least: slots that are kept even for one puzzle, for its further tries: 1 suits a processor core, to which every
        slot is more work.
      report: takes (puzzles waiting or at work, slots at work, slots) now and then.
    """
    run = _Run(bound, np.ones((places, seq_len), np.uint8), settings, verify, draw_symmetry, None, None, None,
               is_open=True)
    run.serve(source, least, report)


class _AtWork(NamedTuple):
    """What the host knows of B slots."""

    puzzle: np.ndarray  # int [B], -1 where the slot is free
    attempt: np.ndarray  # int [B], which try of it
    limit: np.ndarray  # int32 [B], cycles that the job may do
    alive: np.ndarray  # bool [B]
    asked: np.ndarray  # uint8 [B, S], the puzzle as its job sees it
    undo: np.ndarray  # [B] of Symmetry or None: what maps the answer back
    done: np.ndarray  # int [B], cycles at the last look
    checked: np.ndarray  # int [B], cycles when the verifier was last asked

    @classmethod
    def free(cls, B: int, S: int) -> _AtWork:
        return cls(np.full(B, -1), np.zeros(B, int), np.zeros(B, np.int32), np.zeros(B, bool),
                   np.ones((B, S), np.uint8), np.full(B, None), np.zeros(B, int), np.zeros(B, int))

    def take(self, rows: np.ndarray) -> _AtWork:
        return _AtWork(*(array[rows] for array in self))

    def resized(self, size: int) -> tuple[_AtWork, np.ndarray]:
        """(those at work and as many others as make `size`, the slots [size] they were)."""
        rows = np.resize(np.concatenate([np.flatnonzero(self.alive), np.flatnonzero(~self.alive)]), size)
        taken = self.take(rows)
        taken.alive[self.alive.sum():] = False
        taken.puzzle[~taken.alive] = -1
        return taken, rows


class _Run:
    """One call of `solve`."""

    def __init__(self, bound, inputs, settings, verify, draw_symmetry, identifiers, numbers, mesh, is_open=False):
        if settings.tries > 1 and settings.vary == "symmetry" and draw_symmetry is None:
            raise InferenceError("vary = 'symmetry': this puzzle has no symmetries to draw; vary start or cycle")
        if settings.tries > 1 and settings.vary == "draw" and not bound.model.draws:
            raise InferenceError("vary = 'draw': this network draws neither starts nor noise; vary start, cycle or "
                                 "symmetry")
        self._bound, self._settings = bound, settings
        self._mesh = None if mesh is None or mesh.size == 1 else mesh
        self._verify, self._draw, self._inputs = verify, draw_symmetry, inputs
        rows = np.zeros(len(inputs)) if identifiers is None else identifiers
        self._identifiers = np.asarray(rows, np.int32)
        self._numbers = np.arange(len(inputs)) if numbers is None else np.asarray(numbers)
        self._queue = Queue(len(inputs), settings, bound.core_calls, is_open)
        self._noisy = settings.vary if settings.tries > 1 and settings.vary in ("start", "cycle") else ""
        self._base = jax.random.key(settings.seed)
        self._stopped: list[Jobs] = []
        self._untold: dict[int, list[Jobs]] = collections.defaultdict(list)  # of puzzles that are not over
        self._solved = np.zeros(len(inputs), bool)
        self._cycles = self._slot_cycles = 0
        self._guests: dict[int, Arrival] = {}  # of an open queue, by place

    def __call__(self, report, finished) -> Results:
        s, begun = self._settings, time.perf_counter()
        n, S = self._inputs.shape
        self._slots = _AtWork.free(min(self._batch(n * s.tries), self._batch(s.batch_size)), S)
        on_device, cycles = None, FIRST_CYCLES
        while True:
            on_device, refilled = self._fill(on_device)
            if not self._slots.alive.any():
                break
            if (smaller := self._smaller_batch()) is not None:
                on_device = self._shrink(on_device, smaller)
            alive = self._slots.alive
            running = int(alive.sum())
            cycles = FIRST_CYCLES if refilled else min(2 * cycles, MOST_CYCLES)
            free = math.ceil(REFILL_SHARE * len(alive)) if self._queue else running
            on_device, seen = self._advance(on_device, cycles, running - free)
            late = bool(s.max_seconds) and time.perf_counter() - begun >= s.max_seconds
            stopped = self._collect(seen, np.full(len(alive), late))
            if stopped is not None:
                self._stopped.append(stopped)
            if finished is not None and stopped is not None:
                self._tell(stopped, finished)
            if report is not None:
                report(self._queue.done(), n)
            if late:
                break
        return self._results(time.perf_counter() - begun)

    def serve(self, source: Source, least: int, report) -> None:
        """See the function of this name."""
        s = self._settings
        self._slots = _AtWork.free(least, self._inputs.shape[1])
        places, cycles, on_device, pace = list(range(len(self._inputs))), FIRST_CYCLES, None, 0.0
        arrivals: list[Arrival] | None = []
        while arrivals is not None or self._guests:
            arrivals = source(len(places), not self._guests) if arrivals is not None else None
            for guest in arrivals or ():
                self._seat(places.pop(), guest)
            late = [place for place, guest in self._guests.items() if guest.until() <= time.perf_counter()]
            for place in late:
                self._queue.drop(place)
            on_device = self._sized(on_device, max(least, min(bucket(len(self._guests)), s.batch_size)))
            on_device, refilled = self._fill(on_device)
            w = self._slots
            if w.alive.any():
                running = int(w.alive.sum())
                free = math.ceil(REFILL_SHARE * len(w.alive)) if self._queue else running
                watched = [b for b in np.flatnonzero(w.alive).tolist() if self._guests[w.puzzle[b]].watch is not None]
                cycles = 1 if watched else FIRST_CYCLES if refilled else min(2 * cycles, MOST_CYCLES)
                cycles = max(1, min(cycles, int(OPEN_SECONDS / (pace * len(w.alive))) if pace else 1))
                begun, before = time.perf_counter(), self._slot_cycles
                on_device, seen = self._advance(on_device, cycles, running - free)
                pace = (time.perf_counter() - begun) / max(1, self._slot_cycles - before)
                if watched:
                    self._show(watched, seen, np.asarray(sure(self._bound, on_device)))
                stopped = self._collect(seen, w.alive & np.isin(w.puzzle, late))
                if stopped is not None:
                    for i, place in enumerate(stopped.puzzle.tolist()):
                        self._untold[place].append(stopped.take(slice(i, i + 1)))
            places += self._let_go()
            if report is not None:
                report(len(self._guests), int(self._slots.alive.sum()), len(self._slots.alive))

    # Puzzles of an open queue.

    def _seat(self, place: int, guest: Arrival) -> None:
        self._guests[place] = guest
        self._inputs[place], self._numbers[place], self._solved[place] = guest.inputs, guest.number, False
        self._queue.add(place, guest.tries, guest.max_cycles)

    def _let_go(self) -> list[int]:
        """Hands out the answers of puzzles for which nothing more is done; the places that they had."""
        over = [place for place in self._guests if self._queue.is_over(place)]
        for place in over:
            jobs = Jobs.joined(self._untold.pop(place, []), self._inputs.shape[1])
            chosen = choose(jobs, place + 1, self._settings.choose)[place:]
            self._guests.pop(place).finished(jobs.take(chosen[chosen >= 0]))
        return over

    def _show(self, slots: list[int], seen: Seen, certain: np.ndarray) -> None:
        w = self._slots
        for b in slots:
            undo, tokens, p = w.undo[b], seen.answer[b], certain[b]
            if undo is not None:
                tokens, p = undo.apply(tokens[None])[0], p[undo.cells[0].astype(np.intp)]
            watch = self._guests[w.puzzle[b]].watch
            assert watch is not None
            watch(Frame(int(w.attempt[b]), int(seen.done[b]), tokens, p, float(seen.residual[b])))

    def _sized(self, on_device: Slots | None, size: int) -> Slots | None:
        """The batch of another size, by steps of two, so that few programs are compiled; never less than is at work."""
        size = max(size, bucket(int(self._slots.alive.sum())))
        while (B := len(self._slots.alive)) != size:
            self._slots, rows = self._slots.resized(2 * B if B < size else B // 2)
            on_device = None if on_device is None else gather(on_device, rows.astype(np.int32), self._mesh)
        return on_device

    # Slots.

    def _advance(self, on_device: Any, cycles: int, enough: int) -> tuple[Slots, Seen]:
        s = self._settings
        on_device, seen = advanced(self._bound, on_device, self._slots.alive, np.int32(cycles),
                                   np.int32(max(0, enough)), np.int32(s.settle), np.float32(s.tolerance),
                                   self._noisy == "cycle")
        seen = Seen(*map(np.asarray, jax.device_get(seen)))
        self._count(seen)
        return on_device, seen

    def _batch(self, n: int) -> int:
        """Size of a batch for n jobs: on each device a power of two."""
        devices = self._mesh.size if self._mesh else 1
        return devices * bucket(-(-n // devices))

    @functools.partial(jax.profiler.annotate_function, name="host: fill")
    def _fill(self, on_device: Any) -> tuple[Any, bool]:
        """Gives free slots their next jobs; whether there were any."""
        w, s = self._slots, self._settings
        fresh = np.zeros(len(w.alive), bool)
        for b in np.flatnonzero(~w.alive):
            job = self._queue.next()
            if job is None:
                break
            w.puzzle[b], w.attempt[b], w.limit[b] = job
            w.asked[b], w.undo[b] = self._seen_by(w.puzzle[b], w.attempt[b])
            w.done[b] = w.checked[b] = 0
            w.alive[b] = fresh[b] = True
        if not fresh.any():
            return on_device, False
        puzzle, attempt = np.maximum(w.puzzle, 0), np.where(w.puzzle < 0, 0, w.attempt)
        sigma = np.where(attempt > 0, s.sigma, 0).astype(np.float32)
        made = begin(self._bound, w.asked, self._identifiers[puzzle], self._base,
                     self._numbers[puzzle].astype(np.int32),
                     attempt.astype(np.int32), w.limit, sigma, self._noisy,
                     self._mesh, LOGIT_WINDOW if "logits" in self._settings.choose else 0)
        return (made if on_device is None else refill(on_device, made, fresh)), True

    def _seen_by(self, puzzle: int, attempt: int) -> tuple[np.ndarray, Symmetry | None]:
        """The puzzle [S] that a job works on, and what maps its answer back."""
        tokens = self._inputs[puzzle]
        if not attempt or self._settings.vary != "symmetry":
            return tokens, None
        symmetry = self._draw(np.random.default_rng([self._settings.seed, int(self._numbers[puzzle]), attempt]), 1)
        return symmetry.apply(tokens[None])[0], symmetry.inverse()

    def _smaller_batch(self) -> int | None:
        """The size of the batch to move to, if that is worth it: never while there is work for free slots."""
        w = self._slots
        B, small = len(w.alive), self._batch(int(w.alive.sum()))
        if self._queue or small == B:
            return None
        left = int((w.limit - w.done)[w.alive].max())
        return small if 4 * small <= B or left >= MIN_CYCLES_TO_SHRINK else None

    def _shrink(self, on_device: Slots, size: int) -> Slots:
        self._slots, rows = self._slots.resized(size)
        return gather(on_device, rows.astype(np.int32), self._mesh)

    # Jobs.

    def _count(self, seen: Seen) -> None:
        w = self._slots
        moved = np.where(w.alive, seen.done - w.done, 0)
        self._cycles += int(moved.sum())
        self._slot_cycles += int(moved.max(initial=0)) * len(w.alive)
        np.copyto(w.done, seen.done, where=w.alive)

    @functools.partial(jax.profiler.annotate_function, name="host: collect")
    def _collect(self, seen: Seen, late: np.ndarray) -> Jobs | None:
        """Takes the answers of jobs that have stopped, or must because they are late, bool [B]."""
        s, w = self._settings, self._slots
        since = seen.done - seen.unchanged
        verified = self._ask(seen, since)
        self._solved[w.puzzle[verified]] = True
        cancelled = w.alive & ~verified & self._solved[np.maximum(w.puzzle, 0)]
        over = w.alive & (~seen.running | verified | cancelled | late)
        rows = np.flatnonzero(over)
        if not len(rows):
            return None
        stop = np.select([verified, cancelled, (s.settle > 0) & (seen.unchanged >= s.settle) & ~seen.running,
                          (seen.residual <= s.tolerance) & ~seen.running],
                         [VERIFIED, CANCELLED, SETTLED, CONVERGED], BUDGET)
        tokens = np.stack([seen.answer[b] if w.undo[b] is None else w.undo[b].apply(seen.answer[b][None])[0]
                           for b in rows])
        stopped = Jobs(w.puzzle[rows], w.attempt[rows], tokens, verified[rows], stop[rows], seen.done[rows],
                       since[rows], seen.residual[rows], seen.q_halt[rows], seen.logit_change[rows])
        for b in rows:
            self._queue.give_back(int(w.puzzle[b]), int(w.limit[b] - seen.done[b]))
        for puzzle in w.puzzle[verified]:
            self._queue.drop(puzzle)
        w.alive[rows] = False
        w.puzzle[rows] = -1
        return stopped

    def _tell(self, stopped: Jobs, finished) -> None:
        """Hands out the answers of puzzles for which these jobs were the last."""
        for i, puzzle in enumerate(stopped.puzzle.tolist()):
            self._untold[puzzle].append(stopped.take(slice(i, i + 1)))
        for puzzle in sorted(set(stopped.puzzle.tolist())):
            if self._queue.is_over(puzzle):
                jobs = Jobs.joined(self._untold.pop(puzzle), self._inputs.shape[1])
                finished(puzzle, jobs.take(choose(jobs, puzzle + 1, self._settings.choose)[puzzle:]))

    def _ask(self, seen: Seen, since: np.ndarray) -> np.ndarray:
        """Which of the answers the verifier accepts, [B]; it is asked about those that are new since it was last."""
        w = self._slots
        verified = np.zeros(len(w.alive), bool)
        if self._verify is None:
            return verified
        new = np.flatnonzero(w.alive & (since > w.checked))
        if len(new):
            verified[new] = self._verify(w.asked[new], seen.answer[new])
        np.copyto(w.checked, seen.done, where=w.alive)
        return verified

    def _results(self, seconds: float) -> Results:
        n, S = self._inputs.shape
        jobs = Jobs.joined(self._stopped, S)
        chosen = choose(jobs, n, self._settings.choose)
        begun, answers = chosen >= 0, Jobs.not_begun(n, S)
        for into, of in zip(answers, jobs):
            into[begun] = of[chosen[begun]]
        return Results(answers, begun, jobs, self._cycles, self._slot_cycles,
                       self._slot_cycles * self._bound.core_calls, seconds)


def rules(domain: Domain) -> dict[str, Callable | None]:
    """What `solve` can use of a puzzle domain: its verifier and its symmetries, None where it has none."""
    def verify(inputs, answers):
        return domain.verify(inputs, answers).solved
    return {"verify": verify if domain.has_rules else None,
            "draw_symmetry": domain.draw_symmetry if domain.has_symmetries else None}


def bucket(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def flops(bound: Bound, results: Results) -> float:
    """Floating-point operations (matrix products) that were computed, per puzzle."""
    return results.slot_cycles * bound.flops() / max(1, len(results.begun))
