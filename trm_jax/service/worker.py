"""The thread that thinks about the puzzles of all requests together.

Their plain tries, and tries that differ by symmetries, are jobs of one engine with an open queue (engine.serve). Where
tries differ by guesses, a search follows for each puzzle whose plain answer the rules refuse, as in answering.solve;
searches take turns, between two calls of the engine and for at most half of the time. Each is the search that `solve`
makes, so that a request gets the answer that it would get alone.
"""

from __future__ import annotations

import dataclasses
import math
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from trm_jax.inference import engine
from trm_jax.inference.choice import STOPS, Jobs
from trm_jax.inference.engine import Arrival, Frame
from trm_jax.inference.guesses import GuessSearch, Thoughts
from trm_jax.inference.settings import Settings
from trm_jax.inference.solver import Answer, Solver


@dataclasses.dataclass(eq=False)
class Ticket:
    """One puzzle that waits for its answer."""

    inputs: np.ndarray  # uint8 [S]
    text: str  # as it was written
    tries: int
    max_cycles: int  # of the plain try, and of those that differ by symmetries
    until: float  # time.perf_counter()
    done: Callable[[Answer], None]  # called once, in the worker's thread
    watch: Callable[[Frame], None] | None = None  # called in the worker's thread
    cancelled: bool = False  # nobody waits any more

    def time_is_up(self) -> float:
        return -math.inf if self.cancelled else self.until


class Worker:
    """Thinks until it is closed. Nothing is taken after `close`; what was taken is answered.

    Args:
      settings: as Solver.solve's; tries and max_cycles bound what a ticket may ask for.
      places: tickets that wait or are thought about, at most.
    """

    def __init__(self, solver: Solver, settings: Settings, places: int):
        self.solver, self.settings, self._places = solver, settings, places
        self.load = (0, 0, 0)  # puzzles in the engine, slots at work, slots
        self.failure: BaseException | None = None
        self._arrived: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()  # None: wake up
        self._searches: deque[tuple[Ticket, Jobs, Iterator[Thoughts], list[int]]] = deque()
        self._search_after = 0.0
        self._open: set[Ticket] = set()
        self._lock, self._closed = threading.Lock(), False
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()

    @property
    def open(self) -> int:
        """Tickets that wait or are thought about."""
        return len(self._open)

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def room(self) -> int:
        """How many tickets may come."""
        return 0 if self._closed or self.failure else self._places - self.open

    def take(self, tickets: Sequence[Ticket]) -> bool:
        """Takes all of them, or none where there is no room."""
        with self._lock:
            if len(tickets) > self.room:
                return False
            self._open.update(tickets)
            for ticket in tickets:
                self._arrived.put(ticket)
        return True

    def warm_up(self) -> None:
        """Compiles what any number of puzzles needs."""
        blank, come = np.ones(self.solver.domain.seq_len, np.uint8), threading.Semaphore(0)
        n = 1
        while n <= min(self.settings.batch_size, self._places):
            self.take([Ticket(blank, "", 1, 1, math.inf, lambda _: come.release(), lambda _: None) for _ in range(n)])
            for _ in range(n):
                come.acquire()
            n *= 2
        if self.settings.vary == "guess":
            GuessSearch(self.solver.bound, self.solver.domain).warm_up()

    def close(self) -> None:
        """Returns when all that was taken is answered."""
        with self._lock:
            self._closed = True
            self._arrived.put(None)
        self._thread.join()

    def _run(self) -> None:
        s, domain = self.settings, self.solver.domain
        plain = dataclasses.replace(s, vary="symmetry", tries=1) if s.vary == "guess" else s
        least = 1 if jax.default_backend() == "cpu" else s.batch_size
        try:
            engine.serve(self.solver.bound, plain, self._source, seq_len=domain.seq_len, places=self._places,
                         least=least, report=self._report, **engine.rules(domain))
        except Exception as error:  # whoever waits is told, and so is whoever asks for the health
            self.failure = error
            traceback.print_exc()
            for ticket in list(self._open):
                self._done(ticket, Answer.refused(RuntimeError("the service has failed")))

    def _report(self, *load: int) -> None:
        self.load = load

    def _source(self, room: int, idle: bool) -> list[Arrival] | None:
        """See engine.serve: what has come; a step of a search meanwhile."""
        if self._searches and (idle or time.perf_counter() >= self._search_after):
            begun = time.perf_counter()
            self._step()
            now = time.perf_counter()
            self._search_after = now + (now - begun)
        found = []
        while len(found) < room:
            try:
                ticket = self._arrived.get(block=idle and not found and not self._searches and not self._closed)
            except queue.Empty:
                break
            if ticket is not None:
                found.append(self._arrival(ticket))
        if self._closed and not found and not self._searches and idle:
            return None
        return found

    def _arrival(self, ticket: Ticket) -> Arrival:
        searches = self.settings.vary == "guess" and ticket.tries > 1
        tries = 1 if self.settings.vary == "guess" else ticket.tries
        return Arrival(ticket.inputs, tries, ticket.max_cycles,
                       lambda jobs: self._after_plain(ticket, jobs) if searches else self._answer(ticket, jobs),
                       ticket.time_is_up, ticket.watch)

    def _after_plain(self, ticket: Ticket, jobs: Jobs) -> None:
        if not len(jobs.puzzle) or jobs.verified[0]:
            return self._answer(ticket, jobs)
        settings = dataclasses.replace(self.settings, tries=ticket.tries - 1)  # besides the plain one
        search = GuessSearch(self.solver.bound, self.solver.domain).thoughts(ticket.inputs, settings)
        self._searches.append((ticket, jobs, search, [1]))

    def _step(self) -> None:
        """One call of the device for the search whose turn it is."""
        ticket, jobs, search, tried = self._searches.popleft()
        thought = next(search, None) if time.perf_counter() < ticket.time_is_up() else None
        if thought is None:
            return self._answer(ticket, jobs._replace(attempt=np.array([tried[0] - 1])))
        for i, node in enumerate(thought.nodes):
            if ticket.watch is not None and not thought.right[i]:
                ticket.watch(Frame(tried[0] + i, thought.cycles, thought.answers[i], thought.probabilities[i].max(-1),
                                   math.nan, node.tokens.astype(np.uint8)))
            if thought.right[i]:
                if ticket.watch is not None:
                    self._show(ticket, thought.cycles, node.tokens.astype(np.uint8), tried[0] + i)
                answer = self.solver.judge(ticket.inputs, thought.answers[i], "verified", thought.cycles,
                                           thought.cycles, tried[0] + i + 1, ticket.text)
                return self._done(ticket, answer)
        tried[0] += len(thought.nodes)
        self._searches.append((ticket, jobs, search, tried))

    def _show(self, ticket: Ticket, cycles: int, asked: np.ndarray, attempt: int) -> None:
        """Every cycle of the try that has found the answer."""
        assert ticket.watch is not None
        trace = self.solver.trace(ticket.inputs, cycles, guesses=asked)
        for cycle, (tokens, sure, moved) in enumerate(zip(trace.tokens, trace.confidence, trace.residual), 1):
            ticket.watch(Frame(attempt, cycle, tokens, sure, float(moved), asked))

    def _answer(self, ticket: Ticket, jobs: Jobs) -> None:
        """jobs: of one row, or of none where time was up."""
        if not len(jobs.puzzle):
            return self._done(ticket, Answer("", None, False, "budget", 0, 0, "time was up before its turn came",
                                             unit=self.solver.bound.unit))
        [job] = zip(*jobs)
        self._done(ticket, self.solver.judge(ticket.inputs, job[2], STOPS[job[4]], int(job[5]), int(job[6]),
                                             int(job[1]) + 1, ticket.text))

    def _done(self, ticket: Ticket, answer: Answer) -> None:
        with self._lock:
            self._open.remove(ticket)
        ticket.done(answer)
