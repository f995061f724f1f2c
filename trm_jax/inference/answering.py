"""Answers puzzles by whatever tells their tries apart: noise and symmetries (engine.py) or guesses (guesses.py)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh

from trm_jax.inference import engine
from trm_jax.inference.choice import VERIFIED, Jobs
from trm_jax.inference.engine import Results
from trm_jax.inference.guesses import GuessSearch, can_guess
from trm_jax.inference.settings import InferenceError, Settings
from trm_jax.models.network import Bound
from trm_jax.puzzles import Domain


def solve(bound: Bound, domain: Domain, inputs: np.ndarray, settings: Settings | None = None, *, verify: bool = True,
          identifiers: np.ndarray | None = None, numbers: np.ndarray | None = None, mesh: Mesh | None = None,
          report: Callable[[int, int], None] | None = None,
          finished: Callable[[int, Jobs], None] | None = None) -> Results:
    """As `engine.solve`, for puzzles of a domain: inputs [n, S].

    Tries with guesses come after the plain try, and only for puzzles whose plain answer the rules refuse. They run on
    one device, a puzzle at a time. An answer of theirs has as `attempt` the number of tries before it.

    Args:
      verify: a puzzle is done when the domain's rules accept its answer.

    Raises:
      InferenceError: guesses are asked for where there are no rules and units, or without `verify`.
    """
    settings = settings or Settings()
    rules = engine.rules(domain) if verify else engine.rules(domain) | {"verify": None}
    if settings.vary != "guess" or settings.tries == 1:
        plain = dataclasses.replace(settings, vary="symmetry") if settings.vary == "guess" else settings
        return engine.solve(bound, inputs, plain, identifiers=identifiers, numbers=numbers, mesh=mesh,
                            report=report, finished=finished, **rules)
    if not (verify and can_guess(bound, domain)):
        raise InferenceError("vary = 'guess': guesses need rules to verify by, units (rows, columns) that forbid "
                             "values, and a network without noise of its own, which is not so for these weights and "
                             f"{domain.name}; vary symmetry, start or cycle")
    begun, n = time.perf_counter(), len(inputs)

    def tell(puzzle: int, answer: Jobs) -> None:
        if answer.verified[0] and finished is not None:
            finished(puzzle, answer)
    first = engine.solve(bound, inputs, dataclasses.replace(settings, tries=1, vary="symmetry"),
                         identifiers=identifiers, numbers=numbers, mesh=mesh, finished=tell, **rules)
    answers, cycles, slot_cycles = first.answers, first.cycles, first.slot_cycles
    search, jobs = GuessSearch(bound, domain), [first.jobs]
    settings = dataclasses.replace(settings, tries=settings.tries - 1)
    end = begun + settings.max_seconds if settings.max_seconds else float("inf")
    open_puzzles = np.flatnonzero(first.begun & ~answers.verified)
    for done, puzzle in enumerate(open_puzzles.tolist(), n - len(open_puzzles) + 1):
        now = time.perf_counter()
        if now >= end:
            break
        until = min(end, now + settings.puzzle_seconds) if settings.puzzle_seconds else end
        found = search(np.asarray(inputs[puzzle]), settings, until)
        cycles, slot_cycles = cycles + found.slot_cycles, slot_cycles + found.slot_cycles
        if found.tokens is not None:
            answers.tokens[puzzle], answers.verified[puzzle], answers.stop[puzzle] = found.tokens, True, VERIFIED
            answers.cycles[puzzle] = answers.since[puzzle] = found.cycles
        answers.attempt[puzzle] = found.nodes
        jobs.append(answers.take([puzzle]))
        if finished is not None:
            finished(puzzle, jobs[-1])
        if report is not None:
            report(done, n)
    return Results(answers, first.begun, Jobs.joined(jobs, inputs.shape[1]), cycles, slot_cycles,
                   slot_cycles * bound.core_calls, time.perf_counter() - begun)
