"""Sudoku of any box shape up to 16x16: codec, verifier, symmetries, generator and picture.

Tokens: 0 pad, 1 blank, digit d -> d + 1. Cells are read row by row. B puzzles, S = n * n cells, n the side, V = n + 2.
"""

import contextlib
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np

from trm_jax.puzzles import Domain, Piece, PuzzleError, Solutions, Symmetry, sudoku_search
from trm_jax.puzzles import text as grids
from trm_jax.puzzles.generation import distinct
from trm_jax.puzzles.generation import in_threads as _in_threads

_DIGITS = grids.DIGITS
_FEWEST_CLUES = {(2, 2): 4, (2, 3): 8, (3, 2): 8, (3, 3): 17}  # proved minima; elsewhere n - 1 is a bound
_CHECK_GUESSES = 5_000  # 9x9 stays far below; only 16x16 with few clues gets here


class SudokuVerdict(NamedTuple):
    complete: np.ndarray  # [B] bool: every cell holds a digit
    rules: np.ndarray  # [B] bool: no digit twice in a row, column or box, among the digits present
    clues: np.ndarray  # [B] bool: every clue is kept

    @property
    def solved(self) -> np.ndarray:
        return self.complete & self.rules & self.clues


class Search(NamedTuple):
    counts: np.ndarray  # [B] int32: number of solutions, counted up to the limit; -1 where the search gave up
    answers: np.ndarray  # [B, S] uint8: the first solution found, all 0 where there is none
    guesses: np.ndarray  # [B] int32: cells branched on


class GeneratedSudokus(NamedTuple):
    inputs: np.ndarray  # [B, S] uint8
    labels: np.ndarray  # [B, S] uint8: the only solution
    rating: np.ndarray  # [B] int32


@dataclasses.dataclass(frozen=True)
class Sudoku(Domain):
    """Boxes of box_rows rows x box_cols columns; the side n is their product. (2, 3) is the 6x6 game."""

    box_rows: int = 3
    box_cols: int = 3
    name = "sudoku"
    verified_as = "verified"
    usual = (60_000, 1000)
    broken = {"complete": "has cells that are not filled", "clues": "does not keep the clues of the question",
              "rules": "breaks the rules of the puzzle"}

    def __post_init__(self):
        if min(self.box_rows, self.box_cols) < 2 or self.side > len(_DIGITS):
            raise PuzzleError(f"boxes of {self.box_rows}x{self.box_cols} will not do: both sides must be at least 2 "
                              f"and their product at most {len(_DIGITS)}")

    @classmethod
    def from_seq_len(cls, seq_len: int, box_rows: int | None = None) -> "Sudoku":
        """The game of seq_len cells, by default with the squarest boxes, wider than high: 36 -> 2x3."""
        n = math.isqrt(max(seq_len, 0))
        heights = [r for r in range(2, n // 2 + 1) if n % r == 0]
        if n * n != seq_len or not heights:
            raise PuzzleError(f"no Sudoku has {seq_len} cells; 16, 36, 64, 81, 100, 144, 196, 225 and 256 do")
        if box_rows is None:
            box_rows = max(r for r in heights if r * r <= n)
        if box_rows not in heights:
            raise PuzzleError(f"{box_rows=} will not do for {seq_len} cells: {', '.join(map(str, heights))} will")
        return cls(box_rows, n // box_rows)

    @classmethod
    def recognised(cls, value: Any) -> str:
        for side, rows in ((9, 3), (4, 2), (6, 2), (16, 4), (12, 3), (8, 2), (10, 2), (15, 3), (14, 2)):
            domain = cls(rows, side // rows)
            with contextlib.suppress(PuzzleError):
                if (domain.encode_value(value) > 1).any():
                    return domain.title
        return ""

    @property
    def side(self) -> int:
        return self.box_rows * self.box_cols

    @property
    def seq_len(self) -> int:
        return self.side**2

    @property
    def vocab_size(self) -> int:
        return self.side + 2

    @property
    def grid(self) -> tuple[int, int]:
        return self.side, self.side

    @property
    def title(self) -> str:
        return f"{self.side}x{self.side} Sudoku"

    @property
    def boxes(self) -> tuple[int, int]:
        return self.box_rows, self.box_cols

    @functools.cached_property
    def units(self) -> tuple[tuple[int, ...], ...]:
        """Row, column and box of each cell."""
        row, col = np.divmod(np.arange(self.seq_len), self.side)
        box = row // self.box_rows * self.box_rows + col // self.box_cols
        return tuple(tuple(groups.tolist()) for groups in (row, col, box))

    # Text

    @functools.cached_property
    def symbols(self) -> dict[str, int]:
        digits = {digit: d + 2 for d, digit in enumerate(_DIGITS[:self.side])}
        return {".": 1, "0": 1} | digits | {digit.lower(): token for digit, token in digits.items()}

    def encode(self, text: str) -> np.ndarray:
        """Text -> tokens [S]: S cells, with whatever people draw between them (see text.py).

        Digits are 1..9, then A..G; 0..F and A..P are told from what occurs. '.' or '0' is a blank, and so are other
        signs where the number of cells says so.
        """
        cells, alphabet = grids.digit_cells(text, self.side)
        tokens = np.array(cells, np.uint8) + np.uint8(1)
        if alphabet[-1] == "0" and (twice := self.conflicts(tokens)):
            raise PuzzleError(f"'0' was read as a digit, since another sign stands for blanks, but then {twice[0]}: "
                              "write every blank the same way".replace(f"{self._symbol(self.side + 1)}s", "0s"))
        return tokens

    def split(self, text: str) -> list[Piece]:
        return grids.split_grids(text, self.side)

    def decode(self, tokens: np.ndarray, like: str = "") -> str:
        """Tokens [S] -> text, '.' for a blank and '?' for what is no cell (pad, out of range).

        like: the text of the question, in whose alphabet the answer is written.
        """
        alphabet = _DIGITS
        if like and self.side > 9:
            alphabet = grids.digit_cells(like, self.side)[1]
        return "".join(self._symbol(t, alphabet) for t in self._grids(tokens, ndim=1))

    def render(self, tokens: np.ndarray, given: np.ndarray | None = None, changed: np.ndarray | None = None,
               color: bool = False) -> str:
        """A picture for the terminal, which encode reads back.

        tokens [S]; given [S]: the puzzle's clues, bold, other digits cyan; changed [S] bool: highlighted. Without
        color, given and changed make no difference and there are no escape codes.
        """
        tokens, n = self._grids(tokens, ndim=1), self.side
        given = np.ones(n * n) if given is None else self._grids(given, ndim=1)
        changed = np.zeros(n * n, bool) if changed is None else self._grids(changed, ndim=1)

        def cell(s):
            symbol = self._symbol(tokens[s])
            return grids.painted(symbol, given[s] >= 2, tokens[s] >= 2, changed[s]) if color else symbol

        ruler = "\u253c".join(["\u2500" * (2 * self.box_cols + 1)] * (n // self.box_cols))
        lines = []
        for r in range(n):
            if r and r % self.box_rows == 0:
                lines.append(ruler)
            row = [cell(n * r + c) for c in range(n)]
            boxes = [" ".join(row[left:left + self.box_cols]) for left in range(0, n, self.box_cols)]
            lines.append(" " + " \u2502 ".join(boxes))
        return "\n".join(lines)

    # Rules

    def conflicts(self, inputs: np.ndarray) -> list[str]:
        """What contradicts what among the clues inputs [S], e.g. "row 1 has two 5s"; empty if nothing does at sight."""
        inputs, n = self._puzzles(inputs, ndim=1), self.side
        names = [f"{kind} {i + 1}" for kind in ("row", "column", "box") for i in range(n)]
        counts = np.stack([(inputs[self._units] == d + 2).sum(axis=1) for d in range(n)], axis=1)
        words = {2: "two", 3: "three"}
        return [f"{names[u]} has {words.get(k := int(counts[u, d]), k)} {_DIGITS[d]}s"
                for u, d in np.argwhere(counts > 1)]

    def check_clues(self, inputs: np.ndarray) -> None:
        """Raises PuzzleError if the clues inputs [S] contradict each other at sight."""
        if reasons := self.conflicts(inputs):
            raise PuzzleError("the clues contradict each other: " + "; ".join(reasons))

    def verify(self, inputs: np.ndarray, answers: np.ndarray) -> SudokuVerdict:
        """inputs [..., S], answers [..., S] (any integers, the shapes broadcast) -> SudokuVerdict of [...]."""
        inputs, answers = self._grids(inputs), self._grids(answers)
        digit = (answers >= 2) & (answers < self.vocab_size)
        bits = np.where(digit, np.int32(1) << np.where(digit, answers - 2, 0).astype(np.int32), 0).astype(np.int32)
        units = bits[..., self._units]  # [..., 3n, n]
        once = np.bitwise_or.reduce(units, axis=-1) == units.sum(axis=-1, dtype=np.int32)
        clues = ((inputs < 2) | (inputs == answers)).all(axis=-1)
        return SudokuVerdict(*np.broadcast_arrays(digit.all(axis=-1), once.all(axis=-1), clues))

    def explain(self, inputs: np.ndarray, answer: np.ndarray) -> str:
        """Why verify does not accept answer [S] to inputs [S]; "" if it does."""
        complete, rules, clues = self.verify(inputs, answer)
        if not rules:
            cells = np.where((answer >= 1) & (answer < self.vocab_size), answer, 1)
            first, *more = self.conflicts(cells)
            return first + f" and {len(more)} more like that" * bool(more)
        return "; ".join(["cells are left open"] * (not complete) + ["a clue was changed"] * (not clues))

    def faults(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """inputs, answers as in verify -> [..., S] bool: cells whose digit their row, column or box has twice, and
        changed clues. A clue that is kept is at no fault."""
        inputs, answers = np.broadcast_arrays(self._grids(inputs), self._grids(answers))
        digit = (answers >= 2) & (answers < self.vocab_size)
        twice = (answers[..., self._peers] == answers[..., None]).any(axis=-1)
        return np.where(inputs >= 2, inputs != answers, digit & twice)

    def solve(self, inputs: np.ndarray, limit: int = 2, max_guesses: int = 10_000_000) -> Search:
        """Solves inputs [B, S] by search, counting solutions up to `limit` (2 tells unique from not)."""
        inputs = np.array(self._puzzles(inputs, ndim=2), np.uint8, order="C")  # a copy: read-only would recompile
        B = len(inputs)
        counts, answers, guesses = np.zeros(B, np.int32), np.zeros(inputs.shape, np.uint8), np.zeros(B, np.int32)

        def work(part):
            sudoku_search.solve_range(inputs[part], limit, max_guesses, self._peers, self._units,
                                      counts[part], answers[part], guesses[part])

        _in_threads(work, B)
        return Search(counts, answers, guesses)

    def solutions(self, inputs: np.ndarray) -> Solutions:
        """As the base class says; gives up after 100,000 guesses, a fraction of a second."""
        found = self.solve(inputs, limit=2, max_guesses=100_000)
        return Solutions(found.counts, found.answers)

    def generate(self, n: int, seed: int, *, blanks: int | None = None, clues: int | None = None) -> GeneratedSudokus:
        """n different puzzles with exactly one solution each: with that many blanks or clues, else minimal.

        Minimal means that no clue can be removed (about 24 clues at 9x9). The puzzles are the distinct ones, in order,
        of an endless stream of candidates of which each depends on (seed, its number) only: same seed, same puzzles,
        and a smaller n gives their beginning. PuzzleError if the stream runs dry, because the clues are too few
        or because there are not n different puzzles (4x4 has 288 grids).

        rating is the number of cells that solve() branches on, after naked and hidden singles, to find the solution
        and prove it the only one; 0 means singles suffice. It is not the rating of Sudoku-Extreme, which is tdoku's.
        """
        if n < 0 or seed < 0:
            raise PuzzleError(f"{n=} and {seed=} must not be negative")
        if blanks is not None and clues is not None:
            raise PuzzleError(f"{blanks=} and {clues=} say the same thing twice; give one")
        if blanks is not None:
            clues = self.seq_len - blanks
        fewest = _FEWEST_CLUES.get((self.box_rows, self.box_cols), self.side - 1)
        if clues is not None and not fewest <= clues <= self.seq_len:
            raise PuzzleError(f"{clues} clues are impossible: a {self.side}x{self.side} Sudoku with one solution has "
                              f"{fewest} to {self.seq_len}")
        base = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
        patience = 400_000 // self.seq_len  # candidates in a row that bring nothing new

        def candidates(first, count):
            inputs, labels = np.empty((2, count, self.seq_len), np.uint8)
            rating, good = np.empty(count, np.int32), np.empty(count, bool)

            def work(part):
                sudoku_search.generate_range(first + part.start, base, clues or 0, _CHECK_GUESSES, self._peers,
                                             self._units, inputs[part], labels[part], rating[part], good[part])

            _in_threads(work, count)
            return good, inputs, labels, rating

        what = f"{self.side}x{self.side} puzzles with {clues or 'minimal'} clues"
        return GeneratedSudokus(*distinct(n, candidates, patience, what))

    # Symmetries

    def draw_symmetry(self, rng: np.random.Generator, B: int) -> Symmetry:
        """B uniform draws from: digits relabelled x bands and stacks permuted x rows and columns permuted within
        x transposed (square boxes only). A function of the generator's state alone."""
        n, r, c = self.side, self.box_rows, self.box_cols

        def lines(thick):  # [B, n] row (column) to read from: groups of `thick` permuted, lines permuted within
            groups = rng.random((B, n // thick), np.float32).argsort(axis=1)
            within = rng.random((B, n // thick, thick), np.float32).argsort(axis=2)
            return (groups[:, :, None] * thick + within).reshape(B, n).astype(np.uint8)

        rows, cols = lines(r), lines(c)
        row_stride, col_stride = np.full((B, 1), n, np.uint8), np.ones((B, 1), np.uint8)
        if r == c:
            turn = rng.random((B, 1)) < 0.5
            row_stride, col_stride = np.where(turn, col_stride, row_stride), np.where(turn, row_stride, col_stride)
        cells = (rows * row_stride)[:, :, None] + (cols * col_stride)[:, None, :]
        relabel = np.empty((B, self.vocab_size), np.uint8)
        relabel[:, :2] = 0, 1
        relabel[:, 2:] = rng.random((B, n), np.float32).argsort(axis=1) + 2
        return Symmetry(relabel, cells.reshape(B, self.seq_len))

    # Private

    @functools.cached_property
    def _units(self) -> np.ndarray:
        """[3n, n] cells of the rows, columns and boxes, boxes counted row by row."""
        n, cells = self.side, np.arange(self.seq_len, dtype=np.int32).reshape(self.side, self.side)
        boxes = cells.reshape(n // self.box_rows, self.box_rows, n // self.box_cols, self.box_cols)
        return np.concatenate([cells, cells.T, boxes.transpose(0, 2, 1, 3).reshape(n, n)])

    @functools.cached_property
    def _peers(self) -> np.ndarray:
        """[S, P] cells that share a row, column or box with each cell."""
        together = [np.unique(self._units[(self._units == s).any(axis=1)]) for s in range(self.seq_len)]
        return np.stack([cells[cells != s] for s, cells in enumerate(together)]).astype(np.int32)

    def _symbol(self, token: Any, alphabet: str = _DIGITS) -> str:
        return "." if token == 1 else alphabet[token - 2] if 2 <= token < self.vocab_size else "?"

    def _puzzles(self, inputs: np.ndarray, ndim: int) -> np.ndarray:
        inputs = self._grids(inputs, ndim)
        if inputs.size and not 1 <= inputs.min() <= inputs.max() < self.vocab_size:
            raise PuzzleError(f"a puzzle's tokens are 1 (blank) to {self.vocab_size - 1}, "
                              f"got {inputs.min()} to {inputs.max()}")
        return inputs
