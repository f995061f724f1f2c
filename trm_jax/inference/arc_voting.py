"""Votes over augmented ARC predictions: the published score and Kaggle's submission.

Every test input of a task is answered once under each of the task's identifiers. A prediction is cropped, mapped back
by the inverse in its identifier's name and counts as one vote for the grid that comes out. The grids of a test input
are ranked by (votes, mean sigmoid(q_halt)); equals stay in the order in which they were first voted for. pass@K: one of
the first K is right. A task's score is the mean over its test inputs, the score the mean over the tasks.

`Votes` holds those of one evaluation and of nothing else: an evaluation makes its own. Votes of several checkpoints
are pooled only by `Votes.pool`, and the result says so.

Memory: at most one grid (900 bytes and what Python adds) per prediction; less the more predictions agree.
"""

from __future__ import annotations

import functools
import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from trm_jax.data import arc_build as arc_data
from trm_jax.data import dataset
from trm_jax.puzzles import arc
from trm_jax.runtime.errors import UserError

PASS_AT = (1, 2, 5, 10, 100, 1000)
ATTEMPTS = 2  # of a Kaggle submission
# The attempt of a test input that nobody answered, or whose answer is no grid. The published code writes [] there.
# Kaggle's sample submission holds grids of 0; an empty list is no grid.
NO_ANSWER = [[0]]
PIECE = 4096  # predictions cropped at once


class VotingError(UserError):
    """Predictions that belong to no test input of the tasks."""


Ballot = dict[bytes, list]  # of one test input: key of a grid -> [votes, sum of sigmoid(q_halt)]


def ranked(ballot: Ballot) -> list[bytes]:
    return sorted(ballot, key=lambda key: (ballot[key][0], ballot[key][1] / ballot[key][0]), reverse=True)


class Votes:
    """The votes of one evaluation.

    Args:
      identifiers: names by identifier number (`identifiers.json`); number `blank` is padding and votes nowhere.
      test_puzzles: task ID -> {"test": [{"input": grid, "output": grid}, ...], ...} (`test_puzzles.json`). Outputs may
        be missing, of all or of none: then there is a submission, and no score.
    """

    def __init__(self, identifiers: list[str], test_puzzles: dict[str, Any], blank: int = 0):
        self.predictions = 0
        self.evaluations = 1
        self._blank = blank
        self._names = identifiers
        self._tests: dict[str, list[tuple[bytes, bytes | None]]] = {}  # task -> keys of its test inputs and answers
        self._ballots: dict[tuple[str, bytes], Ballot] = {}
        sides = ("input", "output")
        if test_puzzles and not any("output" in pair for puzzle in test_puzzles.values() for pair in puzzle["test"]):
            sides = ("input",)
        for task, puzzle in test_puzzles.items():
            pairs = []
            for i, pair in enumerate(puzzle["test"]):
                try:
                    key, *label = (arc.grid_key(arc.read_grid(pair[side])) for side in sides)
                except KeyError as error:
                    raise VotingError(f"task {task}, test {i + 1}: has no {error.args[0]}") from None
                except arc.PuzzleError as error:
                    raise VotingError(f"task {task}, test {i + 1}: {error}") from None
                pairs.append((key, label[0] if label else None))
                self._ballots[task, key] = {}
            if not pairs:
                raise VotingError(f"task {task} has no test input")
            self._tests[task] = pairs

    def add(self, puzzle_identifiers, inputs, predictions, q_halt_logits) -> None:
        """Predictions of B augmented test inputs: [B], tokens [B, S], tokens [B, S], [B]."""
        puzzle_identifiers, inputs, predictions = map(np.asarray, (puzzle_identifiers, inputs, predictions))
        q_halt_logits = np.asarray(q_halt_logits, np.float64)
        B = len(puzzle_identifiers)
        if puzzle_identifiers.shape != (B,) or inputs.shape != predictions.shape or len(inputs) != B or (
                q_halt_logits.shape != (B,)):
            raise VotingError(f"shapes differ: identifiers {list(puzzle_identifiers.shape)}, inputs "
                              f"{list(inputs.shape)}, predictions {list(predictions.shape)}, q_halt "
                              f"{list(q_halt_logits.shape)}")
        if np.isnan(q_halt_logits).any():
            raise VotingError("a halting logit is not a number")
        real = np.flatnonzero(puzzle_identifiers != self._blank)
        for start in range(0, len(real), PIECE):
            rows = real[start:start + PIECE]
            halts = _sigmoid(q_halt_logits[rows]).tolist()
            for number, asked, answer, q in zip(puzzle_identifiers[rows].tolist(), arc.crops(inputs[rows]),
                                                arc.crops(predictions[rows]), halts):
                self._vote(number, asked, answer, q)

    def _vote(self, number: int, asked: np.ndarray, answer: np.ndarray, q: float) -> None:
        if not 0 <= number < len(self._names):
            raise VotingError(f"puzzle identifier {number}: there are {len(self._names)} identifiers")
        name = self._names[number]
        task, how = arc.parse_name(name)
        if task not in self._tests:
            raise VotingError(f"identifier {number} is {name!r}, but the test puzzles have no task {task}")
        ballot = self._ballots.get((task, arc.grid_key(how.undo(asked))))
        if ballot is None:
            raise VotingError(f"an input under identifier {number} ({name!r}) is, mapped back, no test input of "
                              f"{task}; a wrong puzzle identifier would score 0")
        entry = ballot.setdefault(arc.grid_key(how.undo(answer)), [0, 0.0])
        entry[0] += 1
        entry[1] += q
        self.predictions += 1

    @classmethod
    def pool(cls, evaluations: list[Votes]) -> Votes:
        """The votes of several evaluations of the same tasks together; `score` reports how many were pooled."""
        first, *others = evaluations
        if any(other._tests != first._tests for other in others):
            raise VotingError("votes can be pooled only over the same test puzzles")
        pooled = cls(first._names, {}, first._blank)
        pooled._tests = first._tests
        pooled.evaluations = sum(e.evaluations for e in evaluations)
        pooled.predictions = sum(e.predictions for e in evaluations)
        for place in first._ballots:
            total: Ballot = {}
            for evaluation in evaluations:
                for key, (votes, q) in evaluation._ballots[place].items():
                    entry = total.setdefault(key, [0, 0.0])
                    entry[0] += votes
                    entry[1] += q
            pooled._ballots[place] = total
        return pooled

    def score(self, pass_at: tuple[int, ...] = PASS_AT) -> dict[str, Any]:
        """{"pass@K": share of the tasks, ..., how it was measured}; a task without an answer is wrong.

        The shares are None where the right answers are not known.
        """
        if not self._tests:
            raise VotingError("there are no test puzzles to score")
        sums = dict.fromkeys(pass_at, 0.0)
        unanswered = 0
        for task, pairs in self._tests.items():
            right = dict.fromkeys(pass_at, 0)
            for key, label in pairs:
                ballot = self._ballots[task, key]
                unanswered += not ballot
                rank = ranked(ballot).index(label) if label in ballot else math.inf
                for k in pass_at:
                    right[k] += rank < k
            for k in pass_at:
                sums[k] += right[k] / len(pairs)
        known = all(label is not None for pairs in self._tests.values() for _, label in pairs)
        return {f"pass@{k}": sums[k] / len(self._tests) if known else None for k in pass_at} | {
            "tasks": len(self._tests), "test_inputs": sum(map(len, self._tests.values())), "unanswered": unanswered,
            "predictions": self.predictions, "pooled_evaluations": self.evaluations}

    def ranked(self, task: str, test_input: np.ndarray) -> list[tuple[np.ndarray, int]]:
        """The grids that were voted for, the first choice first, each with its votes."""
        ballot = self._ballots[task, arc.grid_key(test_input)]
        return [(arc.grid_of(key), ballot[key][0]) for key in ranked(ballot)]

    def submission(self) -> dict[str, list[dict[str, list[list[int]]]]]:
        """Kaggle's submission.json: every task, every test input, two attempts each."""
        return {task: [self._attempts(task, key) for key, _ in pairs] for task, pairs in self._tests.items()}

    def _attempts(self, task: str, key: bytes) -> dict[str, list[list[int]]]:
        best = [arc.grid_of(grid).tolist() or NO_ANSWER for grid in ranked(self._ballots[task, key])[:ATTEMPTS]]
        best = best or [NO_ANSWER]
        best += best[:1] * (ATTEMPTS - len(best))
        return {f"attempt_{i + 1}": grid for i, grid in enumerate(best)}

    def write_submission(self, path: str | os.PathLike[str]) -> pathlib.Path:
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        new.write_text(json.dumps(self.submission()), encoding="utf-8")
        os.replace(new, path)
        return path


def ballot_of(folder: str | os.PathLike[str], test: dataset.Split) -> Callable[[], Votes]:
    """What makes the empty `Votes` of a dataset folder; its names and test puzzles are read and checked once, here."""
    folder = pathlib.Path(folder)
    names, puzzles = dataset.load_identifiers(folder), arc_data.load_test_puzzles(folder)
    if len(names) != test.metadata.num_puzzle_identifiers:
        raise VotingError(f"{folder / 'identifiers.json'} has {len(names)} names, but num_puzzle_identifiers in "
                          f"dataset.json is {test.metadata.num_puzzle_identifiers}")
    try:
        Votes(names, puzzles).score()
    except VotingError as error:
        raise VotingError(f"{folder / 'test_puzzles.json'}: {error}") from None
    for number in test.puzzle_identifiers.tolist():
        try:
            task, _ = arc.parse_name(names[number])
        except arc.PuzzleError as error:
            raise VotingError(f"{folder / 'identifiers.json'}: number {number}: {error}") from None
        if task not in puzzles:
            raise VotingError(f"{folder / 'test'} has puzzles of identifier {number}, {names[number]!r}, but "
                              f"test_puzzles.json has no task {task}")
    return functools.partial(Votes, names, puzzles)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))
