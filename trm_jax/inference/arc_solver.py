"""Answers to ARC tasks: every test input under every identifier that the network was trained with, then a vote.

What the puzzle embedding allows. These networks do not read demonstrations. They know a task by its row of the puzzle
table, and that row was trained on the task's demonstrations. So a task can be answered only if its demonstrations were
in the training set, under the same ID; its test inputs may be new. Any other task is refused, and says so.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trm_jax import config
from trm_jax.data import arc_build
from trm_jax.inference import arc_voting, engine
from trm_jax.inference.choice import STOPS, Jobs
from trm_jax.inference.kinds import other_kind
from trm_jax.inference.settings import Settings
from trm_jax.inference.solver import Answer, SolveError, Solver, Trace
from trm_jax.models.network import Bound
from trm_jax.puzzles import Domain, Piece, PuzzleError, Symmetry, arc
from trm_jax.weights import weights_file

NO_RULES = "ARC has no rules to verify an answer by"


@dataclasses.dataclass(frozen=True, eq=False)
class ArcAnswer(Answer):
    """Of one task. `tokens` and `text` are the first attempt at its first test input."""

    attempts: tuple[tuple[np.ndarray, ...], ...] = ()  # per test input the grids with most votes, at most two
    votes: tuple[tuple[int, ...], ...] = ()  # how many of `of` each of them got
    of: int = 0  # votes per test input

    @property
    def tryable(self) -> bool:
        return False

    @property
    def status(self) -> str:
        if not self.attempts:
            return f"not answered: {self.reason}"
        how = ", ".join(f"{' and '.join(map(str, v))} of {self.of} votes" for v in self.votes)
        return ("equal to the solution" if self.verified else f"NOT verified: {self.reason}") + f"; {how}"

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {
            "answer": None, "attempts": [[grid.tolist() for grid in grids] for grids in self.attempts],
            "votes": [list(v) for v in self.votes], "votes_of": self.of}


class ArcSolver(Solver, puzzle="arc"):
    """As Solver, for tasks as ARC's JSON has them: {"id": ..., "test": [{"input": grid}, ...]}.

    Demonstrations ("train") may be there; the network does not look at them. Where a test input comes with its
    "output", the answer is compared with it.
    """

    def __init__(self, bound: Bound, domain: Domain, identifiers: Sequence[str]):
        super().__init__(bound, domain)
        self._names = list(identifiers)
        self._rows: dict[str, list[int]] = collections.defaultdict(list)
        for row, name in enumerate(self._names):
            if row:  # the first is of no puzzle
                self._rows[arc.parse_name(name)[0]].append(row)

    @classmethod
    def from_export(cls, export: weights_file.Export) -> ArcSolver:
        return cls(export.bound, export.domain, export.identifiers or ())

    @property
    def tasks(self) -> list[str]:
        """IDs of the tasks that can be answered."""
        return list(self._rows)

    def solve(self, puzzles: Sequence[Mapping[str, Any]], *, max_cycles: int = 16, settle: int = 0, symmetries: int = 0,
              seconds: float = 0.0,
              report: Callable[[int, int], None] | None = None, each: Callable[[int, Answer], None] | None = None,
              numbers: Sequence[int] | None = None, **settings: Any) -> list[ArcAnswer]:
        """Answers in the order of the tasks.

        Args:
          max_cycles, settle, seconds, each, settings: as Solver.solve's. One try per symmetry, so `numbers` change
            nothing.
          symmetries: of a task at most so many of its identifiers are asked, the task as it is first; 0: all.
        """
        if isinstance(puzzles, (str, Mapping)):
            raise SolveError("tasks must be a list of tasks; put the one in brackets")
        if settings.get("tries", 1) != 1:
            raise SolveError(f"tries = {settings['tries']}: a task of ARC is tried once under each symmetry")
        known: dict[str, Any] = {"max_seconds": seconds * len(puzzles)} | settings
        asked_for = Settings(**known, max_cycles=max_cycles, settle=settle)
        answers: list[Any] = [None] * len(puzzles)
        inputs, rows, read = [], [], {}
        for i, task in enumerate(puzzles):
            try:
                name, tests = self._read_task(task)
            except ValueError as error:
                answers[i] = ArcAnswer("", None, False, "refused", 0, 0, " ".join(str(error).split()))
                continue
            asked = self._rows[name][:symmetries or None]
            read[i] = name, tests, len(asked), len(inputs)
            for row in asked:
                how = arc.parse_name(self._names[row])[1]
                for grid, _ in tests:
                    inputs.append(arc.to_canvas(how.apply(grid)))
                    rows.append(row)
        if read:
            inputs, rows = np.stack(inputs), np.array(rows, np.int32)
            found = engine.solve(self._bound, inputs, asked_for, identifiers=rows, report=report, mesh=self._mesh)
            for i, (name, tests, of, first) in read.items():
                part = slice(first, first + of * len(tests))
                answers[i] = self._answer_task(name, tests, of, inputs[part], rows[part], found.answers.take(part),
                                               found.begun[part])
        if each is not None:
            for i, answer in enumerate(answers):
                each(i, answer)
        return answers

    def _answer_task(self, name: str, tests: list, of: int, inputs, rows, answers: Jobs, begun) -> ArcAnswer:
        puzzle = {"test": [{"input": a.tolist(), "output": (a if b is None else b).tolist()} for a, b in tests]}
        votes = arc_voting.Votes(self._names, {name: puzzle})
        votes.add(rows[begun], inputs[begun], answers.tokens[begun], answers.q_halt[begun])
        ranked = [votes.ranked(name, grid)[:arc_voting.ATTEMPTS] for grid, _ in tests]
        attempts = tuple(tuple(grid for grid, _ in grids) for grids in ranked)
        given = all(b is not None for _, b in tests)
        right = given and all(any(np.array_equal(g, b) for g in grids) for grids, (_, b) in zip(attempts, tests))
        reason = "" if right else "differs from the solution that came with it" if given else NO_RULES
        if not all(attempts):
            return ArcAnswer("", None, False, "budget", 0, 0, "time was up before its turn came")
        best = attempts[0][0]
        return ArcAnswer("/".join("".join(map(str, row)) for row in best.tolist()),
                         arc.to_canvas(best) if best.size else np.zeros(arc.SIDE ** 2, np.uint8), right,
                         STOPS[int(answers.stop.max())], int(answers.cycles.max()), int(answers.since.max()),
                         reason, 1, self._bound.unit, arc.to_canvas(tests[0][0]), self.domain, attempts,
                         tuple(tuple(n for _, n in grids) for grids in ranked), of)

    def _read_task(self, task: Any) -> tuple[str, list]:
        """(ID, [(input, output or None), ...]); PuzzleError says what is wrong."""
        if isinstance(task, Exception):
            raise task
        task_id = (task.get("id") or task.get("task_id")) if isinstance(task, Mapping) else None
        if not isinstance(task_id, str):
            kind = other_kind(task.text if isinstance(task, Piece) else task, self.domain)
            raise PuzzleError(kind or 'an ARC task is an object with "id" and "test"')
        tests, name = task.get("test"), task_id
        if not isinstance(tests, (list, tuple)) or not tests:
            raise PuzzleError('has no "test": a list of at least one {"input": grid}')
        pairs = []
        for i, pair in enumerate(tests, 1):
            if not isinstance(pair, Mapping) or "input" not in pair:
                raise PuzzleError(f"test {i} has no input")
            try:
                pairs.append((arc.read_grid(pair["input"]),
                              arc.read_grid(pair["output"]) if pair.get("output") is not None else None))
            except PuzzleError as error:
                raise PuzzleError(f"test {i} {error}") from None
        if name not in self._rows:
            raise PuzzleError(f"task {name} was not in this network's training: it knows a task by its puzzle "
                              "embedding, which is trained on the task's demonstrations, and cannot read new ones. It "
                              f"knows {len(self._rows)} tasks; python -m trm_jax adapt trains it on others")
        return name, pairs

    def picture(self, puzzle: Any, answer: ArcAnswer, color: bool) -> str:
        """Every test input beside the attempts at it."""
        return "\n\n".join(arc.render_row({"test input": test, **{
            f"attempt {i}": grid for i, grid in enumerate(grids, 1)}}, color=color)
            for (test, _), grids in zip(self._read_task(puzzle)[1], answer.attempts))

    # A trace is of the first test input of the task as it is.

    def trace(self, puzzle: Any, steps: int = 64, *, settle: int = 0, symmetry: Symmetry | None = None,
              guesses: np.ndarray | None = None) -> Trace:
        """As Solver.trace; of each answer only the grid that is read from it (elsewhere the network says anything)."""
        trace = super().trace(puzzle, steps, settle=settle)
        grids = arc.crops(trace.tokens)
        return trace._replace(tokens=np.stack([
            arc.to_canvas(grid) if grid.size else np.zeros(arc.SIDE ** 2, np.uint8) for grid in grids]))

    def example(self, data: config.Data, number: int) -> tuple[Any, np.ndarray]:
        """(task, labels [S] of its first test input) of a test task."""
        tasks = arc_build.load_test_puzzles(data.path)
        if not 0 <= number < len(tasks):
            raise SolveError(f"there is no test task {number} in {data.path}: they are numbered 0 to {len(tasks) - 1}")
        name, task = list(tasks.items())[number]
        return {"id": name, **task}, arc.to_canvas(np.array(task["test"][0]["output"]))

    def read(self, puzzle: Any) -> np.ndarray:
        return arc.to_canvas(self._read_task(puzzle)[1][0][0])

    def row(self, puzzle: Any) -> int:
        return self._rows[self._read_task(puzzle)[0]][0]

    def verify(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        return np.zeros(len(inputs), bool)

    def explain(self, inputs: np.ndarray, tokens: np.ndarray) -> str:
        return NO_RULES
