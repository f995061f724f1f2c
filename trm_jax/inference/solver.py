"""Answers to puzzles from Python: `Solver.load("runs/quick").solve(["5...27..9..41..."])`."""

from __future__ import annotations

import dataclasses
import html
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax import config, puzzles
from trm_jax.data import dataset
from trm_jax.inference import answering, inline
from trm_jax.inference.choice import STOPS, Jobs
from trm_jax.inference.guesses import GuessSearch, can_guess
from trm_jax.inference.kinds import other_kind
from trm_jax.inference.settings import Settings
from trm_jax.models.network import Bound
from trm_jax.puzzles.domain import PUZZLE_NAMES
from trm_jax.recursion import AnyLatents
from trm_jax.runtime import distributed
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
    inputs: np.ndarray | None = None  # uint8 [S], the puzzle
    domain: puzzles.Domain | None = None

    @property
    def settled(self) -> bool:
        """It stood still, or its latents did."""
        return self.stop in ("settled", "converged")

    @property
    def tryable(self) -> bool:
        """More tries or cycles may bring a better answer, and the rules would tell."""
        return self.tokens is not None and not self.verified

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

    def _repr_html_(self) -> str:
        """For notebooks: the answer drawn, over its status."""
        if self.domain is None or self.inputs is None or self.tokens is None:
            return f"<p>{html.escape(self.status)}</p>"
        return inline.figure(self.domain, self.inputs, self.tokens[None], [""]) + f"<p>{html.escape(self.status)}</p>"


class Trace(NamedTuple):
    """The answer to one puzzle after every test step 1 .. n. In a notebook it plays."""

    inputs: np.ndarray  # uint8 [S]
    tokens: np.ndarray  # uint8 [n, S]
    confidence: np.ndarray  # float32 [n, S], probability of the chosen token
    residual: np.ndarray  # float32 [n], relative change of the latents
    asked: np.ndarray | None = None  # uint8 [S], the puzzle with its guesses, where there are any
    domain: puzzles.Domain | None = None
    unit: str = "outer cycles"

    @property
    def stands_since(self) -> int:
        """The test step that brought the last change."""
        moved = (self.tokens[1:] != self.tokens[:-1]).any(axis=1)
        return int(np.flatnonzero(moved)[-1]) + 2 if moved.any() else 1

    def _repr_html_(self) -> str:
        """For notebooks: the answer as it fills in, an animation."""
        assert self.domain is not None, "a trace of Solver.trace has one"
        return inline.film(self.domain, self.inputs, self.tokens, self.stands_since, self.unit)


@jax.jit
def _begin(bound: Bound, inputs: Array, identifiers: Array) -> tuple[AnyLatents, Array, Array]:
    """inputs [1, S], identifiers [1] -> (latents, x [T, 1, D], what they say [1, S])."""
    latents = bound.initial_latents(inputs)
    return latents, bound.embed(inputs, identifiers), bound.answer(latents.y)


@jax.jit
def _trace(bound: Bound, latents: AnyLatents, x: Array) -> tuple[AnyLatents, Any]:
    """TRACE_CHUNK more test steps: (latents, ((tokens [n, B, S], confidence [n, B, S]), residuals [n, B]))."""
    return bound.trace(latents, x, TRACE_CHUNK)


def _refuse_fork(process: int | None) -> None:
    """Raises SolveError in a process that was forked from the one in which jax runs: it would hang."""
    if process not in (None, os.getpid()):
        raise SolveError("this process was forked from one that has used a Solver, and jax does not survive a fork; "
                         'start workers with multiprocessing.get_context("spawn") and call Solver.load in each')


def text_in(puzzle: Any) -> str:
    """The text of a puzzle as it was given; "" where it was none."""
    if isinstance(puzzle, Mapping):
        puzzle = next((puzzle[name] for name in PUZZLE_NAMES if name in puzzle), "")
    return puzzle.text if isinstance(puzzle, puzzles.Piece) else puzzle if isinstance(puzzle, str) else ""


class Solver:
    """Answers puzzles of one domain, on one device. A subclass names the domain that it is for.

    >>> import trm_jax
    >>> solver = trm_jax.Solver.load("rsm-maze-quick")
    >>> maze = ["G#..##", ".##...", "...###", "##...S", "...###", "#.##.#"]
    >>> [answer] = solver.solve([maze], max_cycles=64)
    >>> answer.verified, answer.text
    (True, 'G#  ##o##   ooo#####oooS   #### ## #')
    >>> trace = solver.trace(maze, steps=20)
    >>> trace.tokens.shape  # the answer after every cycle
    (20, 36)

    It can be used from several threads, one call at a time. It does not outlive a fork: jax has threads, and calls
    would hang. So where processes work side by side, each calls `load` itself and is started by "spawn":

        multiprocessing.get_context("spawn").Pool(4, initializer=...)     # the initializer calls Solver.load
    """

    _for_puzzle: ClassVar[dict[str, type[Solver]]] = {}
    _process: ClassVar[int | None] = None  # where a Solver was first made: jax runs there

    def __init_subclass__(cls, puzzle: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Solver._for_puzzle[puzzle] = cls

    def __init__(self, bound: Bound, domain: puzzles.Domain):
        Solver._process = Solver._process or os.getpid()
        self.domain, self._bound, self._mesh = domain, bound, None

    @property
    def bound(self) -> Bound:
        """The model with its weights and L."""
        return self._bound

    def use_all_devices(self) -> None:
        """Answers with all devices of this process from now on, not one."""
        self._mesh = distributed.data_mesh(jax.local_devices())
        self._bound = jax.device_put(self._bound, distributed.replicated(self._mesh))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, compilation_cache: str = "", warm_up: bool = False) -> Solver:
        """From a run's folder, a weights file, the name of weights that come with this package, or a model on the
        Hugging Face hub: "hf://OWNER/NAME", also with @REVISION.

        For ARC it is an arc_solver.ArcSolver. Raises WeightsError, HubError, CheckpointError, DatasetError or
        ConfigError, and SolveError in a forked process.

        Args:
          compilation_cache: folder that keeps compiled programs between processes; "": none.
          warm_up: compile now what `solve` needs for up to 64 puzzles, so that the first call takes no longer than
            later ones.
        """
        _refuse_fork(Solver._process)
        distributed.enable_compilation_cache(compilation_cache)
        solver = Solver.of(weights_file.read(path))
        if warm_up:
            solver.warm_up()
        return solver

    def warm_up(self, most: int = 64) -> None:
        """Compiles what `solve` needs for batches of 1, 2, 4, ... `most` puzzles."""
        tries = min(2, self.usual["tries"])
        for n in (1 << k for k in range(most.bit_length())):
            answering.solve(self._bound, self.domain, np.ones((n, self.domain.seq_len), np.uint8), mesh=self._mesh,
                            settings=Settings(vary=self.usual["vary"], tries=tries, max_cycles=2, guess_cycles=1))
        if can_guess(self._bound, self.domain):
            GuessSearch(self._bound, self.domain).warm_up()

    @staticmethod
    def of(export: weights_file.Export) -> Solver:
        """The solver of what an export was trained on."""
        return Solver._for_puzzle.get(export.domain.name, Solver).from_export(export)

    @classmethod
    def from_export(cls, export: weights_file.Export) -> Solver:
        return cls(export.bound, export.domain)

    @property
    def usual(self) -> dict[str, Any]:
        """Settings that are worth their time with these weights: what is done unless told otherwise.

        A network that mixes through the rules' units concludes from guesses (guesses.py); others gain more from
        symmetries of the puzzle, in tries of 64 cycles. Without rules nobody knows when to try again.
        """
        if can_guess(self._bound, self.domain) and self._bound.model.arch.mixer == "units":
            return {"vary": "guess", "tries": 16_384, "max_cycles": 64}
        if self.domain.has_rules and self._bound.model.draws:
            return {"vary": "draw", "tries": 1024, "max_cycles": 64}
        if self.domain.has_rules and self.domain.has_symmetries:
            return {"vary": "symmetry", "tries": 1024, "max_cycles": 64}
        return {"vary": "start", "tries": 1, "max_cycles": 256}

    def solve(self, puzzles: Sequence[Any], *, seconds: float = 20.0, verify: bool = True,
              report: Callable[[int, int], None] | None = None, each: Callable[[int, Answer], None] | None = None,
              numbers: Sequence[int] | None = None, **settings: Any) -> list[Answer]:
        """Answers in the order of the puzzles.

        Args:
          puzzles: texts, lists of rows, or arrays of tokens [S]; see `read`. One that cannot be read, or contradicts
            itself, does not stop the others.
          seconds: after which a puzzle that is not solved is given up; 0: never for that. Tries that do not differ by
            guesses are spread over all puzzles, and then so is their time.
          verify: a puzzle is done when the rules accept its answer. Without, they are asked at the end only, and have
            no say in which try's answer is taken.
          report: takes (puzzles done, puzzles at work on) now and then.
          numbers: which puzzle of all each one is, where these are a share of them: its tries are drawn by it. None:
            its place.
          each: takes (number of the puzzle, its answer) as soon as it is there, in whatever order.
          settings: fields of inference.Settings: tries, vary, max_cycles, settle, max_calls, max_seconds, ...; those
            that are not given are as in `usual`.
        """
        _refuse_fork(Solver._process)
        if isinstance(puzzles, str):
            raise SolveError("puzzles must be a list of puzzles; put the one in brackets")
        asked_for = self._settings(len(puzzles), seconds, verify, settings)
        answers: list[Any] = [None] * len(puzzles)

        def tell(i: int, answer: Answer) -> None:
            answers[i] = answer
            if each is not None:
                each(i, answer)
        readable, inputs = [], []
        for i, puzzle in enumerate(puzzles):
            try:
                inputs.append(self.read(puzzle))
                readable.append(i)
            except ValueError as error:
                tell(i, Answer.refused(error))
        if inputs:
            inputs = np.stack(inputs)
            found = answering.solve(
                self._bound, self.domain, inputs, asked_for, verify=verify, report=report, mesh=self._mesh,
                numbers=np.asarray(range(len(puzzles)) if numbers is None else numbers)[readable],
                finished=lambda i, jobs: tell(readable[i], self._answer(puzzles[readable[i]], inputs[i], jobs)))
            for i, j in enumerate(readable):
                if answers[j] is None:  # time was up
                    tell(j, self._answer(puzzles[j], inputs[i], found.answers.take([i])) if found.begun[i] else Answer(
                        "", None, False, "budget", 0, 0, "time was up before its turn came", unit=self._bound.unit))
        return answers

    def _settings(self, n: int, seconds: float, verify: bool, given: dict[str, Any]) -> Settings:
        settings = Settings(**self.usual | ({} if verify else {"tries": 1, "vary": "symmetry"}) | given)
        if settings.tries == 1 or not seconds:
            return settings
        if settings.vary == "guess":
            return dataclasses.replace(settings, puzzle_seconds=settings.puzzle_seconds or seconds)
        return dataclasses.replace(settings, max_seconds=settings.max_seconds or seconds * n)

    def _answer(self, puzzle: Any, inputs: np.ndarray, jobs: Jobs) -> Answer:
        """jobs: of one row."""
        [job] = zip(*jobs)
        return self.judge(inputs, job[2], STOPS[job[4]], int(job[5]), int(job[6]), int(job[1]) + 1, text_in(puzzle))

    def trace(self, puzzle: Any, steps: int = 64, *, settle: int = 0,
              symmetry: puzzles.Symmetry | None = None, guesses: np.ndarray | None = None) -> Trace:
        """Every answer of `steps` test steps, or until it has stood still for `settle` of them (0: never mind).

        Args:
          symmetry: the puzzle is thought about under this one; what comes back are answers to the puzzle itself.
          guesses: tokens [S], the puzzle with some more cells filled in, which is thought about instead.
        Raises:
          PuzzleError: the puzzle cannot be read or contradicts itself.
        """
        _refuse_fork(Solver._process)
        if steps < 1:
            raise SolveError(f"steps = {steps}: must be at least 1")
        inputs = self.read(puzzle)
        asked = (inputs if guesses is None else guesses)[None]
        asked = asked if symmetry is None else symmetry.apply(asked)
        latents, x, answer = _begin(self._bound, jnp.asarray(asked), jnp.full(1, self.row(puzzle), jnp.int32))
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
        trace = Trace(inputs, np.stack(tokens), np.stack(confidence), np.stack(residual), guesses,
                      self.domain, self._bound.unit)
        if symmetry is not None:
            n, undo = len(tokens), symmetry.inverse()
            undo = puzzles.Symmetry(np.repeat(undo.relabel, n, axis=0), np.repeat(undo.cells, n, axis=0))
            trace = trace._replace(tokens=undo.apply(trace.tokens), confidence=np.take_along_axis(
                trace.confidence, undo.cells.astype(np.intp), axis=1))
        return trace._replace(tokens=self.domain.within(inputs, trace.tokens))

    def traces(self, puzzle: Any, steps: int = 64, *, settle: int = 0, tries: int = 1, seed: int = 0,
               number: int = 0, vary: str = "") -> Iterator[tuple[Trace, Answer]]:
        """The tries of a puzzle until one is verified, as `solve` makes them: the plain one, then those that differ by
        symmetries or guesses.

        Args:
          number: of the puzzle among those that `solve` would be given.
          vary: "symmetry" or "guess"; "": as in `usual`.
        Raises:
          PuzzleError: as `trace`; and where the puzzle has no symmetries for more than one try.
        """
        vary = vary or self.usual["vary"]
        plain = self.trace(puzzle, steps, settle=settle)
        answer = self.judge_trace(plain, settle)
        yield plain, answer
        if answer.verified:
            return
        if vary == "guess":
            yield from self._guessed(puzzle, plain.inputs, Settings(tries=tries, vary=vary, seed=seed))
            return
        for attempt in range(1, tries):
            symmetry = self.domain.draw_symmetry(np.random.default_rng([seed, number, attempt]), 1)
            trace = self.trace(puzzle, steps, settle=settle, symmetry=symmetry)
            answer = self.judge_trace(trace, settle, attempt + 1)
            yield trace, answer
            if answer.verified:
                return

    def _guessed(self, puzzle: Any, inputs: np.ndarray, settings: Settings) -> Iterator[tuple[Trace, Answer]]:
        if settings.tries == 1:
            return
        thoughts = GuessSearch(self._bound, self.domain).thoughts(
            inputs, dataclasses.replace(settings, tries=settings.tries - 1))
        nodes = ((thought.cycles, node) for thought in thoughts for node in thought.nodes)
        for attempt, (cycles, node) in enumerate(nodes, 2):
            trace = self.trace(puzzle, cycles, guesses=node.tokens.astype(np.uint8))
            answer = self.judge_trace(trace, 0, attempt)
            yield trace, answer
            if answer.verified:
                return

    def example(self, data: config.Data, number: int) -> tuple[Any, np.ndarray]:
        """(inputs [S], labels [S]) of a puzzle of a test set, counted from 0."""
        test = dataset.load(data.path, "test", make=data.how_to_make)
        if not 0 <= number < test.num_examples:
            raise SolveError(f"there is no test puzzle {number} in {data.path}: they are numbered 0 to "
                             f"{test.num_examples - 1}")
        return test.inputs[number], test.labels[number]

    def read(self, puzzle: Any) -> np.ndarray:
        """Tokens [S] of a puzzle whose clues do not contradict each other; PuzzleError otherwise.

        An array of integers [S] holds tokens already. All else is what `Domain.encode_value` takes: a text, a list of
        rows, an object with one of them.
        """
        if isinstance(puzzle, Exception):
            raise puzzle
        tokens = np.asarray(puzzle) if isinstance(puzzle, np.ndarray) else None
        if tokens is None or tokens.ndim == 2:
            tokens = self._encoded(puzzle)
        elif tokens.shape != (self.domain.seq_len,) or tokens.dtype.kind not in "iu":
            raise puzzles.PuzzleError(f"tokens must be integers of shape [{self.domain.seq_len}], "
                                      f"got {tokens.dtype}{list(tokens.shape)}")
        self.domain.check_clues(tokens)
        return tokens.astype(np.uint8)

    def _encoded(self, puzzle: Any) -> np.ndarray:
        piece = puzzle.text if isinstance(puzzle, puzzles.Piece) else puzzle
        try:
            return self.domain.encode_value(piece)
        except puzzles.PuzzleError as error:
            where = f"{puzzle.where}: " if isinstance(puzzle, puzzles.Piece) else ""
            raise puzzles.PuzzleError(where + (other_kind(piece, self.domain) or str(error))) from None

    def picture(self, puzzle: Any, answer: Answer, color: bool) -> str:
        """The answer for a terminal."""
        assert answer.tokens is not None, answer.reason
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
              attempt: int = 1, like: str = "") -> Answer:
        """inputs, tokens [S]; like: the text that the puzzle was read from."""
        tokens = self.domain.within(inputs, tokens)
        verified = bool(self.verify(inputs[None], tokens[None])[0])
        reason = "" if verified else self._reason(inputs, tokens)
        return Answer(self.domain.decode(tokens, like), tokens, verified, stop, cycles, since, reason, attempt,
                      self._bound.unit, inputs, self.domain)

    def _reason(self, inputs: np.ndarray, tokens: np.ndarray) -> str:
        """Why an answer is not verified; that there is none, or more than one, where a search tells quickly."""
        count = int(self.domain.solutions(inputs[None]).counts[0]) if self.domain.solves else -1
        if count == 0:
            return "the puzzle has no solution"
        why = self.explain(inputs, tokens)
        several = count > 1 and not self.domain.has_several_answers
        return f"the puzzle has more than one solution, and this is none: {why}" if several else why

    def judge_trace(self, trace: Trace, settle: int, attempt: int = 1) -> Answer:
        """The last answer of a trace."""
        cycles, since = len(trace.tokens), trace.stands_since
        stop = "settled" if settle and cycles - since >= settle else "budget"
        return self.judge(trace.inputs, trace.tokens[-1], stop, cycles, since, attempt)
