"""The queue of jobs as a state machine: whatever happens to jobs, every puzzle gets its tries in order and no more."""

import collections
import tracemalloc

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from trm_jax.inference.queue import Queue
from trm_jax.inference.settings import Settings


class Jobs(RuleBasedStateMachine):
    @initialize(n=st.integers(0, 5), tries=st.integers(1, 4), cycles=st.integers(1, 9), budget=st.integers(0, 30),
                calls=st.integers(1, 3))
    def begin(self, n, tries, cycles, budget, calls):
        self.n, self.tries, self.cycles = n, tries, cycles
        self.budget = budget // calls if budget else None  # of a puzzle, in cycles
        self.queue = Queue(n, Settings(max_cycles=cycles, tries=tries, max_calls=budget), calls)
        self.at_work, self.begun, self.dropped = {}, collections.Counter(), set()
        self.spent = collections.Counter()

    @rule()
    def next(self):
        job = self.queue.next()
        if job is None:
            return
        puzzle, attempt, limit = job
        assert attempt == self.begun[puzzle] < self.tries and puzzle not in self.dropped
        others = min((self.begun[p] for p in range(self.n) if p not in self.dropped), default=0)
        if self.budget is None:
            assert attempt == others and limit == self.cycles, "try by try, all puzzles"
        else:
            reserved = sum(limit for (p, _), limit in self.at_work.items() if p == puzzle)
            assert 1 <= limit <= min(self.cycles, self.budget - self.spent[puzzle] - reserved)
        self.begun[puzzle] += 1
        self.at_work[puzzle, attempt] = limit

    @precondition(lambda self: self.at_work)
    @rule(data=st.data())
    def stop(self, data):
        puzzle, attempt = job = data.draw(st.sampled_from(sorted(self.at_work)))
        done = data.draw(st.integers(0, self.at_work[job]))
        self.spent[puzzle] += done
        self.queue.give_back(puzzle, self.at_work.pop(job) - done)

    @precondition(lambda self: self.n)
    @rule(data=st.data())
    def drop(self, data):
        puzzle = data.draw(st.integers(0, self.n - 1))
        self.dropped.add(puzzle)
        self.queue.drop(puzzle)

    def teardown(self):
        if not hasattr(self, "queue"):
            return
        while (job := self.queue.next()) or self.at_work:
            if job:
                self.begun[job[0]] += 1
                self.at_work[job[:2]] = job[2]
            else:
                (puzzle, _), limit = self.at_work.popitem()
                self.spent[puzzle] += limit
                self.queue.give_back(puzzle, 0)
        assert not self.queue and self.queue.done() == self.n and all(map(self.queue.is_over, range(self.n)))
        for puzzle in set(range(self.n)) - self.dropped:
            left = np.inf if self.budget is None else self.budget - self.spent[puzzle]
            assert self.begun[puzzle] == self.tries or left < 1, "all tries, or the whole budget"


Jobs.TestCase.settings = settings(deadline=None, max_examples=200)
test_jobs = Jobs.TestCase


def test_a_billion_tries_take_no_memory():
    tracemalloc.start()
    queue = Queue(1000, Settings(tries=10**9, max_calls=10**6), 3)
    for _ in range(5000):
        puzzle, _, limit = queue.next()
        queue.give_back(puzzle, limit)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_an_open_queue_gives_a_place_to_one_puzzle_after_another():
    """One that was dropped leaves nothing to the next in its place: neither tries nor budget."""
    queue = Queue(2, Settings(tries=9, max_cycles=9), 1, is_open=True)
    assert queue.next() is None and queue.is_over(0) and queue.is_over(1)
    queue.add(1, 3, 5)
    assert queue.next() == (1, 0, 5)
    queue.drop(1)
    assert not queue.is_over(1)
    queue.give_back(1, 5)
    assert queue.is_over(1)
    queue.add(1, 2, 7)
    queue.add(0, 1, 4)
    assert [queue.next() for _ in range(4)] == [(1, 0, 7), (0, 0, 4), (1, 1, 7), None]
