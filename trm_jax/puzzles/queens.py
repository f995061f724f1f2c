"""N-queens completion: some queens stand on a board, and others join them until there is one in every row, column and
no two on a diagonal.

Tokens: 0 pad, 1 free, 2 queen. In an answer cells without a queen stay free. A puzzle may have several right answers;
its label is the first of them, whose queen in the topmost row that differs stands further left. B puzzles, n the side,
S = n * n, V = 3, K answers of the empty board.
"""

import dataclasses
import functools
import math
import re
from typing import Any, NamedTuple

import numpy as np

from trm_jax.puzzles import Domain, Piece, PuzzleError, Solutions, Symmetry
from trm_jax.puzzles.domain import turns
from trm_jax.puzzles.generation import distinct
from trm_jax.puzzles.text import framed, is_frame, painted, plain_lines, split_rows

FREE, QUEEN = 1, 2
SIDES = range(4, 13)  # a 12x12 board has 14,200 answers, and one more row six times as many
_PIECE = 256  # puzzles that are compared with all answers at once


class QueensVerdict(NamedTuple):
    complete: np.ndarray  # [B] bool: there are n queens, and nothing else but free cells
    rules: np.ndarray  # [B] bool: no queen attacks another
    clues: np.ndarray  # [B] bool: every given queen is kept

    @property
    def solved(self) -> np.ndarray:
        return self.complete & self.rules & self.clues


class GeneratedQueens(NamedTuple):
    inputs: np.ndarray  # [B, S] uint8
    labels: np.ndarray  # [B, S] uint8: the first answer
    rating: np.ndarray  # [B] int32: how many right answers
    log2_answers: np.ndarray  # [B] float32


@functools.cache
def boards(n: int) -> np.ndarray:
    """All answers of the empty board, the first one first: bool [K, S], True where a queen stands."""
    found, column = np.zeros((1, 0), np.int8), np.arange(n, dtype=np.int8)  # the queens' columns in the rows so far
    for row in range(n):
        apart = np.abs(found[:, :, None] - column)
        free = ((apart > 0) & (apart != (row - np.arange(row))[:, None])).all(axis=1)
        board, queen = np.nonzero(free)
        found = np.concatenate([found[board], column[queen, None]], axis=1)
    return (found[:, :, None] == column).reshape(len(found), n * n)


@functools.cache
def lines(n: int) -> np.ndarray:
    """Rows, columns and both kinds of diagonals: float32 [6 n - 2, S], 1 for the cells of each."""
    row, column = np.divmod(np.arange(n * n), n)
    kinds = (row, column, row + column, row - column + n - 1)
    return np.concatenate([np.arange(kind.max() + 1)[:, None] == kind for kind in kinds]).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Queens(Domain):
    """On a board of size x size."""

    size: int = 8
    name = "queens"
    vocab_size = 3  # pyright: ignore[reportAssignmentType]
    symbols = dict.fromkeys(".0_", FREE) | dict.fromkeys("Qq1\u2655\u265b", QUEEN)  # pyright: ignore
    verified_as = "valid"
    best_metric = "verified"  # an answer need not be the label
    broken = {"complete": "has not one queen in every row", "clues": "does not keep the queens of the question",
              "rules": "has queens that attack each other"}
    drawn_as = {FREE: "empty"}

    def __post_init__(self):
        if self.size not in SIDES:
            raise PuzzleError(f"{self.size} queens will not do: their number must be {SIDES[0]} to {SIDES[-1]}")

    @classmethod
    def from_seq_len(cls, seq_len: int) -> "Queens":
        side = math.isqrt(max(seq_len, 0))
        if side * side != seq_len:
            raise PuzzleError(f"no board has {seq_len} cells; one for 8 queens has 64")
        return cls(side)

    @classmethod
    def recognised(cls, value: Any) -> str:
        cells = re.sub(r"[\s,'\"\[\]|]", "", value if isinstance(value, str) else str(value))
        side = math.isqrt(len(cells))
        is_board = side * side == len(cells) and side in SIDES and set(cells) <= set("._Qq\u2655\u265b")
        return cls(side).title if is_board and len(set(cells)) > 1 else ""

    @property
    def title(self) -> str:
        return f"{self.size} queens"

    @property
    def seq_len(self) -> int:
        return self.size ** 2

    @property
    def grid(self) -> tuple[int, int]:
        return self.size, self.size

    # Text

    def encode(self, text: str) -> np.ndarray:
        """Text -> tokens [S]: Q, 1 or chess's sign for a queen, '.', 0 or _ for a free cell; on one line or in rows."""
        cells = re.sub(r"[\s,|\u2502]", "", "".join(line for line in plain_lines(text) if not is_frame(line)))
        if odd := sorted(set(cells) - set(self.symbols)):
            raise PuzzleError(f"unknown character {odd[0]!r}: a cell is 'Q' for a queen or '.' for a free one")
        if len(cells) != self.seq_len:
            raise PuzzleError(f"got {len(cells)} cells, expected {self.seq_len} ({self.size}x{self.size})")
        return np.array([self.symbols[cell] for cell in cells], np.uint8)

    def split(self, text: str) -> list[Piece]:
        return split_rows(text, lambda line: sum(cell in self.symbols for cell in line) == self.seq_len)

    def decode(self, tokens: np.ndarray, like: str = "") -> str:
        """Tokens [S] -> text on one line, '?' for what is no cell (pad, out of range)."""
        return "".join(".Q"[token - 1] if token in (FREE, QUEEN) else "?" for token in self._grids(tokens, ndim=1))

    def render(self, tokens: np.ndarray, given: np.ndarray | None = None, changed: np.ndarray | None = None,
               color: bool = False) -> str:
        """A framed picture for the terminal: given queens bold, others cyan."""
        text, n = self.decode(tokens), self.size
        given = tokens if given is None else self._grids(given, ndim=1)
        changed = np.zeros(n * n, bool) if changed is None else np.asarray(changed)
        cells = [" " + (painted(cell, given[s] == QUEEN, cell == "Q", changed[s]) if color else cell)
                 for s, cell in enumerate(text)]
        return framed(["".join(cells[first:first + n]) for first in range(0, n * n, n)], 2 * n)

    # Rules

    def verify(self, inputs: np.ndarray, answers: np.ndarray) -> QueensVerdict:
        """inputs [..., S], answers [..., S] (any integers, the shapes broadcast) -> QueensVerdict of [...]."""
        inputs, answers = np.broadcast_arrays(self._grids(inputs), self._grids(answers))
        queen = answers == QUEEN
        fine = (queen | (answers == FREE)).all(axis=-1) & (queen.sum(axis=-1) == self.size)
        return QueensVerdict(*map(np.asarray, (fine, ~self._attacked(queen).any(axis=-1),
                                               (queen | (inputs != QUEEN)).all(axis=-1))))

    def faults(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """inputs, answers as in verify -> [..., S] bool: queens that are attacked, and given ones that are gone."""
        inputs, answers = np.broadcast_arrays(self._grids(inputs), self._grids(answers))
        return self._attacked(answers == QUEEN) | (inputs == QUEEN) & (answers != QUEEN)

    def conflicts(self, inputs: np.ndarray) -> list[str]:
        attacked = self._attacked(self._grids(inputs, ndim=1) == QUEEN)
        places = [f"row {s // self.size + 1}, column {s % self.size + 1}" for s in np.flatnonzero(attacked)]
        return ["the queens at " + " and ".join(places) + " attack each other" if len(places) == 2 else
                f"{len(places)} queens are attacked, one at {places[0]}"] if places else []

    def check_clues(self, inputs: np.ndarray) -> None:
        inputs = self._grids(inputs, ndim=1)
        if not np.isin(inputs, (FREE, QUEEN)).all():
            raise PuzzleError("a cell is free (1) or holds a queen (2)")
        if reasons := self.conflicts(inputs):
            raise PuzzleError(reasons[0])

    def explain(self, inputs: np.ndarray, answer: np.ndarray) -> str:
        """Why verify does not accept answer [S] to inputs [S]; "" if it does."""
        complete, _, clues = self.verify(inputs, answer)
        count = int((np.asarray(answer) == QUEEN).sum())
        return "; ".join(self.conflicts(answer) + [f"there are {count} queens instead of {self.size}"] * (not complete)
                         + ["a given queen is gone"] * (not clues))

    # Answers

    def solutions(self, inputs: np.ndarray) -> Solutions:
        fits = self._fits(inputs)
        counts = fits.sum(axis=1)
        first = np.where(counts[:, None] > 0, boards(self.size)[fits.argmax(axis=1)] + np.uint8(FREE), 0)
        return Solutions(np.minimum(counts, 2), first.astype(np.uint8))

    def draw_answers(self, inputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """As the base class says, uniformly; PuzzleError if a puzzle has no answer."""
        fits = self._fits(inputs)
        if not fits.any(axis=1).all():
            raise PuzzleError(f"puzzle {int(np.argmin(fits.any(axis=1)))} of {len(fits)} has no answer")
        chosen = (fits * (1 - rng.random(fits.shape, np.float32))).argmax(axis=1)
        return boards(self.size)[chosen] + np.uint8(FREE)

    def log2_answers(self, inputs: np.ndarray) -> np.ndarray:
        return np.log2(np.maximum(self._fits(inputs).sum(axis=1), 1)).astype(np.float32)

    def generate(self, n: int, seed: int, *, givens: int = 3) -> GeneratedQueens:
        """n different puzzles: an answer of the empty board, drawn uniformly, and as many of its queens.

        Each is a function of (seed, its number) alone.

        Args:
          givens: queens of a puzzle. The fewer, the more right answers it has.
        """
        if n < 0 or seed < 0 or not 0 <= givens <= self.size:
            raise PuzzleError(f"{n=} and {seed=} must not be negative, {givens=} lie in 0..{self.size}")

        def candidates(first, count):
            inputs = np.full((count, self.seq_len), FREE, np.uint8)
            for i, puzzle in enumerate(inputs):
                rng = np.random.default_rng([seed, first + i])
                queens = np.flatnonzero(boards(self.size)[rng.integers(len(boards(self.size)))])
                puzzle[rng.permutation(queens)[:givens]] = QUEEN
            fits = self._fits(inputs)
            several = fits.sum(axis=1).astype(np.int32)
            labels = boards(self.size)[fits.argmax(axis=1)] + np.uint8(FREE)
            return np.ones(count, bool), inputs, labels, several, np.log2(several).astype(np.float32)

        return GeneratedQueens(*distinct(n, candidates, 5_000, f"puzzles of {self.title}"))

    # Symmetries

    def draw_symmetry(self, rng: np.random.Generator, B: int) -> Symmetry:
        """B uniform draws from the 8 symmetries of the square."""
        plain = np.broadcast_to(np.arange(self.vocab_size, dtype=np.uint8), (B, self.vocab_size))
        return Symmetry(plain, turns(*self.grid)[rng.integers(8, size=B)])

    # Private

    def _attacked(self, queen: np.ndarray) -> np.ndarray:
        """[..., S] bool -> [..., S] bool: queens that another one attacks."""
        of = lines(self.size)
        crowded = queen.astype(np.float32) @ of.T > 1.5
        return queen & (crowded.astype(np.float32) @ of > 0.5)

    def _fits(self, inputs: np.ndarray) -> np.ndarray:
        """inputs [B, S] -> [B, K] bool: the answers of the empty board that keep all queens of a puzzle."""
        given, of = self._grids(inputs, ndim=2) == QUEEN, boards(self.size).astype(np.float32).T
        return np.concatenate([part.astype(np.float32) @ of == part.sum(axis=1)[:, None]
                               for part in np.split(given, range(_PIECE, len(given), _PIECE))])
