"""Answers to puzzles from Python: `Solver.load("runs/quick").solve(["5...27..9..41..."])`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax import config, puzzles
from trm_jax.data import dataset
from trm_jax.inference import engine
from trm_jax.inference.choice import STOPS
from trm_jax.inference.settings import Settings
from trm_jax.models.network import Bound
from trm_jax.recursion import Latents
from trm_jax.runtime.errors import UserError
from trm_jax.weights import weights_file

Array = jax.Array
TRACE_CHUNK = 16  # test steps per call of a trace


class SolveError(UserError):
    """A request that cannot be answered; a puzzle that cannot be is an `Answer` with its reason instead."""


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    text: str  # "" where there is no answer
    tokens: np.ndarray | None  # uint8 [S]; None where there is no answer
    verified: bool  # the rules accept it
    stop: str  # inference.STOPS: why no more was done; "refused" where nothing was
    cycles: int  # test steps done on it (see Model.test_step), those of other tries not counted
    since: int  # the test step that brought this answer
    reason: str  # why it is not verified; "" if it is
    attempt: int = 1  # which try found it; the first is the plain one
    unit: str = "outer cycles"  # what `cycles` and `since` count

    @property
    def settled(self) -> bool:
        """It stood still, or its latents did."""
        return self.stop in ("settled", "converged")

    @property
    def status(self) -> str:
        """A line for people."""
        if self.tokens is None:
            return f"not answered: {self.reason}"
        what = "verified" if self.verified else f"NOT verified: {self.reason}"
        how = f"settled after {self.since}" if self.settled else (
            f"found after {self.since}" if self.verified else f"not settled after {self.cycles}")
        return f"{what}; {how} {self.unit}" + (f" of try {self.attempt}" if self.attempt > 1 else "")

    @classmethod
    def refused(cls, error: Exception) -> Answer:
        return cls("", None, False, "refused", 0, 0, " ".join(str(error).split()))

    def to_json(self) -> dict[str, Any]:
        return {"answer": self.text or None, "verified": self.verified, "reason": self.reason or None,
                "stop": self.stop, "cycles": self.cycles, "since": self.since, "try": self.attempt,
                "unit": self.unit}


class Trace(NamedTuple):
    """The answer to one puzzle after every test step 1 .. n."""

    inputs: np.ndarray  # uint8 [S]
    tokens: np.ndarray  # uint8 [n, S]
    confidence: np.ndarray  # float32 [n, S], probability of the chosen token
    residual: np.ndarray  # float32 [n], relative change of the latents

    @property
    def stands_since(self) -> int:
        """The test step that brought the last change."""
        moved = (self.tokens[1:] != self.tokens[:-1]).any(axis=1)
        return int(np.flatnonzero(moved)[-1]) + 2 if moved.any() else 1


@jax.jit
def _begin(bound: Bound, inputs: Array, identifiers: Array) -> tuple[Latents, Array, Array]:
    """inputs [1, S], identifiers [1] -> (latents, x [T, 1, D], what they say [1, S])."""
    latents = bound.initial_latents(1)
    return latents, bound.embed(inputs, identifiers), bound.answer(latents.y)


@jax.jit
def _trace(bound: Bound, latents: Latents, x: Array) -> tuple[Latents, Any]:
    """TRACE_CHUNK more test steps: (latents, ((tokens [n, B, S], confidence [n, B, S]), residuals [n, B]))."""
    return bound.trace(latents, x, TRACE_CHUNK)


class Solver:
    """Answers puzzles of one domain, on one device. A subclass names the domain that it is for."""

    _for_puzzle: ClassVar[dict[str, type[Solver]]] = {}

    def __init_subclass__(cls, puzzle: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Solver._for_puzzle[puzzle] = cls

    def __init__(self, bound: Bound, domain: puzzles.Domain):
        self.domain, self._bound = domain, bound

    @classmethod
    def load(cls, path: str | os.PathLike) -> Solver:
        """From a run's folder, a weights file, or the name of weights that come with this package.

        For ARC it is an arc_solver.ArcSolver. Raises WeightsError, CheckpointError, DatasetError or ConfigError.
        """
        return Solver.of(weights_file.read(path))

    @staticmethod
    def of(export: weights_file.Export) -> Solver:
        """The solver of what an export was trained on."""
        return Solver._for_puzzle.get(export.domain.name, Solver).from_export(export)

    @classmethod
    def from_export(cls, export: weights_file.Export) -> Solver:
        return cls(export.bound, export.domain)

    def solve(self, puzzles: Sequence[str | np.ndarray], *, max_steps: int = 256, settle: int = 8, verify: bool = True,
              report: Callable[[int, int], None] | None = None, **settings: Any) -> list[Answer]:
        """Answers in the order of the puzzles.

        Args:
          puzzles: texts, or tokens [S] each. One that cannot be read, or contradicts itself, does not stop the others.
          max_steps: test steps at most: outer cycles, or supervision steps of a network that was trained with those.
          settle: a puzzle is done when its answer has stood still for so many of them; 0: go on all the same.
          verify: a puzzle is done when the rules accept its answer. Without, they are asked at the end only, and have
            no say in which try's answer is taken.
          report: takes (puzzles done, puzzles at work on) now and then.
          settings: the other fields of inference.Settings: tries, vary, sigma, max_calls, max_seconds, ...
        """
        if isinstance(puzzles, str):
            raise SolveError("puzzles must be a list of puzzles; put the one in brackets")
        settings = Settings(max_cycles=max_steps, settle=settle, **settings)
        answers: list[Answer | None] = [None] * len(puzzles)
        readable, inputs = [], []
        for i, puzzle in enumerate(puzzles):
            try:
                inputs.append(self.read(puzzle))
                readable.append(i)
            except ValueError as error:
                answers[i] = Answer.refused(error)
        if inputs:
            inputs = np.stack(inputs)
            found = engine.solve(
                self._bound, inputs, settings, verify=self.verify if verify else None,
                draw_symmetry=self.domain.draw_symmetry if self.domain.has_symmetries else None, report=report)
            for i, j in enumerate(readable):
                answers[j] = self._answer(inputs[i], found, i)
        return answers

    def _answer(self, inputs: np.ndarray, found: engine.Results, i: int) -> Answer:
        if not found.begun[i]:
            return Answer("", None, False, "budget", 0, 0, "time was up before its turn came", unit=self._bound.unit)
        a = found.answers
        return self.judge(inputs, a.tokens[i], STOPS[a.stop[i]], int(a.cycles[i]), int(a.since[i]),
                          int(a.attempt[i]) + 1)

    def trace(self, puzzle: str | np.ndarray, steps: int = 64, *, settle: int = 0) -> Trace:
        """Every answer of `steps` test steps, or until it has stood still for `settle` of them (0: never mind).

        Raises PuzzleError if the puzzle cannot be read or contradicts itself.
        """
        if steps < 1:
            raise SolveError(f"steps = {steps}: must be at least 1")
        inputs = self.read(puzzle)
        latents, x, answer = _begin(self._bound, jnp.asarray(inputs[None]),
                                    jnp.full(1, self.row(puzzle), jnp.int32))
        tokens, confidence, residual, still = [], [], [], 0
        previous = np.asarray(answer[0])
        while len(tokens) < steps and not (settle and still >= settle):
            latents, (decoded, moved) = _trace(self._bound, latents, x)
            for now, sure, move in zip(*(np.asarray(a)[:, 0] for a in (*decoded, moved))):
                tokens.append(now)
                confidence.append(sure)
                residual.append(move)
                still = still + 1 if np.array_equal(now, previous) else 0
                previous = now
                if len(tokens) == steps or settle and still >= settle:
                    break
        return Trace(inputs, np.stack(tokens), np.stack(confidence), np.stack(residual))

    def example(self, data: config.Data, number: int) -> tuple[Any, np.ndarray]:
        """(inputs [S], labels [S]) of a puzzle of a test set, counted from 0."""
        test = dataset.load(data.path, "test", make=data.how_to_make)
        if not 0 <= number < test.num_examples:
            raise SolveError(f"there is no test puzzle {number} in {data.path}: they are numbered 0 to "
                             f"{test.num_examples - 1}")
        return test.inputs[number], test.labels[number]

    def read(self, puzzle: str | np.ndarray) -> np.ndarray:
        """Tokens [S] of a puzzle whose clues do not contradict each other; PuzzleError otherwise."""
        if isinstance(puzzle, str):
            tokens = self.domain.encode(puzzle)
        else:
            tokens = np.asarray(puzzle)
            if tokens.shape != (self.domain.seq_len,) or tokens.dtype.kind not in "iu":
                raise puzzles.PuzzleError(f"tokens must be integers of shape [{self.domain.seq_len}], "
                                          f"got {tokens.dtype}{list(tokens.shape)}")
        self.domain.check_clues(tokens)
        return tokens.astype(np.uint8)

    def picture(self, puzzle: Any, answer: Answer, color: bool) -> str:
        """The answer for a terminal."""
        return self.domain.render(answer.tokens, given=self.read(puzzle), color=color)

    def row(self, puzzle: Any) -> int:
        """The row of the puzzle table that a puzzle is known by."""
        return 0

    def verify(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """[k, S] each -> bool [k]."""
        return self.domain.verify(inputs, answers).solved

    def explain(self, inputs: np.ndarray, tokens: np.ndarray) -> str:
        """Why an answer [S] is not verified."""
        return self.domain.explain(inputs, tokens)

    def judge(self, inputs: np.ndarray, tokens: np.ndarray, stop: str, cycles: int, since: int,
              attempt: int = 1) -> Answer:
        """inputs, tokens [S]."""
        verified = bool(self.verify(inputs[None], tokens[None])[0])
        reason = "" if verified else self.explain(inputs, tokens)
        return Answer(self.domain.decode(tokens), tokens, verified, stop, cycles, since, reason, attempt,
                      self._bound.unit)

    def judge_trace(self, trace: Trace, settle: int) -> Answer:
        """The last answer of a trace."""
        cycles, since = len(trace.tokens), trace.stands_since
        stop = "settled" if settle and cycles - since >= settle else "budget"
        return self.judge(trace.inputs, trace.tokens[-1], stop, cycles, since)
