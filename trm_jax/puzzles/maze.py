"""Mazes: codec, verifier, symmetries, generator, shortest paths and picture.

Tokens: 0 pad, 1 '#' wall, 2 ' ' free, 3 'S' start, 4 'G' goal, 5 'o' path. Cells are read row by row; steps go down,
right, up or left. An answer is the maze with the free cells of one shortest path from S to G marked 'o'.
B mazes, S = rows * cols cells, V = 6.

A large maze has very many shortest paths (Maze-Hard: about 2**21 on average) and its label is one of them. An answer
that equals the label is therefore one that also imitates how the label was chosen. Ours is chosen as A* with the
heuristic |row - goal row| + |column - goal column| would: from S, step by step, to the neighbour on a shortest path
that the heuristic puts nearest to G, and among equals down, right, up, left, in this order. This order turns with a
symmetry of the square but the rule does not: after augmentation some labels are not the ones that the rule chooses.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from trm_jax.puzzles import Domain, Piece, PuzzleError, Solutions, Symmetry, maze_search, maze_text
from trm_jax.puzzles.domain import PUZZLE_NAMES, turns
from trm_jax.puzzles.generation import distinct, in_threads
from trm_jax.puzzles.maze_search import FREE, GOAL, PATH, START, WALL
from trm_jax.puzzles.text import framed

SYMBOLS = "?# SGo"
MOST_SIDE = 128
_TRIES = 1_000_000  # mazes drawn for one that is long enough; Maze-Hard takes 2,000
_PATIENCE = 5_000  # mazes in a row that were there before
_BOLD, _RED, _PATH, _CHANGED, _RESET = "\x1b[1m", "\x1b[31m", "\x1b[1;32m", "\x1b[30;43m", "\x1b[0m"
_NAMES = {WALL: "a wall", FREE: "a free cell", START: "the start S", GOAL: "the goal G", PATH: "a path cell"}


class MazeVerdict(NamedTuple):
    kept: np.ndarray  # [B] bool: the answer is the maze, but for free cells that it marks as path
    path: np.ndarray  # [B] bool: the marked cells are free and, in a row, lead from S to G: no branch, no stray mark
    shortest: np.ndarray  # [B] bool: they do, and there is no shorter way

    @property
    def solved(self) -> np.ndarray:
        return self.kept & self.path & self.shortest


class Paths(NamedTuple):
    labels: np.ndarray  # [B, S] uint8: the maze with a shortest path drawn in; without one, the maze
    steps: np.ndarray  # [B] int32: from S to G; -1 where there is no way, or not one S and one G
    log2_paths: np.ndarray  # [B] float32: log2 of the number of shortest paths


class Mazes(NamedTuple):
    inputs: np.ndarray  # [B, S] uint8
    labels: np.ndarray  # [B, S] uint8
    rating: np.ndarray  # [B] int32: steps from S to G
    log2_paths: np.ndarray  # [B] float32


@dataclasses.dataclass(frozen=True)
class Maze(Domain):
    """A grid of rows x cols. (30, 30) is the size of Maze-Hard.

    With `smallest`, any rectangle with sides from that to rows and cols: it lies at the top left of the grid, and the
    rest is padding, which an answer repeats.
    """

    rows: int = 30
    cols: int = 30
    smallest: int = 0  # side; 0: all mazes are rows x cols
    name = "maze"
    vocab_size = 6  # pyright: ignore[reportAssignmentType]
    verified_as = "shortest path"
    usual = (1000, 1000)
    broken = {"kept": "changes more of the question than free cells into path",
              "path": "marks no path from S to G", "shortest": "is not a shortest path"}
    clues_called = "given"
    drawn_as = {WALL: "wall", FREE: "empty", PATH: "path"}

    def __post_init__(self):
        if not (2 <= self.rows <= MOST_SIDE and 2 <= self.cols <= MOST_SIDE):
            raise PuzzleError(f"a maze of {self.rows}x{self.cols} will not do: both sides must be 2 to {MOST_SIDE}")
        if self.smallest and not 2 <= self.smallest <= min(self.rows, self.cols):
            raise PuzzleError(f"smallest = {self.smallest} will not do for mazes of up to {self.rows}x{self.cols}: it "
                              f"must be 2 to {min(self.rows, self.cols)}, or 0")

    @property
    def title(self) -> str:
        return f"maze of {self.smallest}x{self.smallest} to {self._size}" if self.smallest else f"{self._size} maze"

    @classmethod
    def recognised(cls, value: Any) -> str:
        with contextlib.suppress(PuzzleError):
            if isinstance(value, Mapping):
                value = maze_text.with_ends(value) or next((value[k] for k in PUZZLE_NAMES if k in value), "")
            lines = maze_text.list_rows(value)
            for rows, cols in maze_text.sizes(lines):
                with contextlib.suppress(PuzzleError):
                    domain = cls(rows, cols)
                    found = domain.encode("\n".join(lines))
                    if (found == START).sum() == 1 == (found == GOAL).sum():
                        return domain.title
        return ""

    @classmethod
    def from_seq_len(cls, seq_len: int, rows: int | None = None) -> "Maze":
        """The maze of seq_len cells, square unless rows are given."""
        if rows is None:
            rows = math.isqrt(max(seq_len, 0))
            if rows * rows != seq_len:
                raise PuzzleError(f"{seq_len} cells make no square maze; give rows too")
        if rows < 1 or seq_len % rows:
            raise PuzzleError(f"{rows=} will not do for {seq_len} cells: it must divide them")
        return cls(rows, seq_len // rows)

    @property
    def seq_len(self) -> int:
        return self.rows * self.cols

    @property
    def grid(self) -> tuple[int, int]:
        return self.rows, self.cols

    # Text

    @property
    def symbols(self) -> dict[str, int]:
        return {symbol: token for token, symbol in enumerate(SYMBOLS) if token}

    def encode(self, text: str) -> np.ndarray:
        """Text -> tokens [S]: one line of rows * cols characters, or the rows as lines, or what render draws.

        maze_text.py says what the characters mean. A space is a free cell, also at either end of a line: nothing is
        stripped. With `smallest`, one line is a square, or has / between its rows.
        """
        if self.smallest:
            return self._encode_any(text)
        lines = maze_text.rows_of(text, self.cols)
        if len(lines) > 1:
            if len(lines) != self.rows:
                raise PuzzleError(f"got {len(lines)} rows, expected {self.rows} ({self.rows}x{self.cols})")
            for row, line in enumerate(lines, 1):
                if len(line) != self.cols:
                    raise PuzzleError(f"row {row} has {len(line)} cells, expected {self.cols} ({self.rows}x{self.cols};"
                                      " spaces at its ends count, a dot is a free cell too)")
        cells = "".join(lines)
        signs = maze_text.signs(cells)
        for row, line in enumerate(lines, 1):
            for col, char in enumerate(line, 1):
                if char not in signs:
                    where = f"row {row}, column {col}" if len(lines) > 1 else f"position {col}"
                    raise PuzzleError(f"unknown character {char!r} at {where}: a cell is '#' wall, ' ' or '.' free, "
                                      "'S' start, 'G', 'E' or 'X' goal, or 'o' path")
        if len(cells) != self.seq_len:
            raise PuzzleError(f"got {len(cells)} cells, expected {self.seq_len} ({self.rows}x{self.cols})")
        return np.array([self.symbols[signs[char]] for char in cells], np.uint8)

    def _encode_any(self, text: str) -> np.ndarray:
        lines, why = maze_text.list_rows(text.replace("/", "\n")), ""
        if not "".join(lines).strip():
            raise PuzzleError("there is no maze: got 0 cells")
        for rows, cols in maze_text.sizes(lines):
            try:
                found = Maze(rows, cols).encode("\n".join(lines))
            except PuzzleError as error:
                why = why or str(error)
                continue
            if not (self.smallest <= rows <= self.rows and self.smallest <= cols <= self.cols):
                raise PuzzleError(f"this is a {rows}x{cols} maze; mazes of {self.smallest}x{self.smallest} to "
                                  f"{self._size} will do")
            return self._padded(found.reshape(rows, cols))
        raise PuzzleError(why or f"got {len(lines[0]) if lines else 0} cells on one line, which make no square; write "
                          "its rows as lines, or with / between them")

    def _padded(self, grids: np.ndarray) -> np.ndarray:
        """[..., r, c] -> [..., S]."""
        ends = [(0, 0)] * (grids.ndim - 2) + [(0, self.rows - grids.shape[-2]), (0, self.cols - grids.shape[-1])]
        return np.pad(grids, ends).reshape(*grids.shape[:-2], self.seq_len)

    def is_one(self, value: list) -> bool:
        if not self.smallest:
            return super().is_one(value)
        return len(value) >= self.smallest and all(
            isinstance(row, (str, list)) and self.smallest <= len(row) == len(value[0]) <= 2 * self.cols + 1
            and not any(isinstance(cell, (list, dict)) for cell in row) for row in value)

    def encode_value(self, value: Any) -> np.ndarray:
        """As the base class says; also {"maze": rows, "start": [row, column], "goal": [row, column]}."""
        if isinstance(value, Mapping):
            rows = maze_text.with_ends(value)
            return super().encode_value(value) if rows is None else self.encode("\n".join(rows))
        return self.encode(value if isinstance(value, str) else "\n".join(maze_text.list_rows(value)))

    def split(self, text: str) -> list[Piece]:
        return maze_text.split_any(text) if self.smallest else maze_text.split_mazes(text, self.rows, self.cols)

    def decode(self, tokens: np.ndarray, like: str = "") -> str:
        """Tokens [S] -> text on one line, '?' for what is no cell (pad, out of range).

        With `smallest`, of the cells that are not padding, with / between rows unless they make a square.
        """
        rows = ["".join(SYMBOLS[t] if 0 < t < len(SYMBOLS) else "?" for t in row) for row in self._cells(tokens)]
        return ("/" if self.smallest and len(rows) != len(rows[0]) else "").join(rows)

    def _cells(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens [S] -> [r, c]: the whole grid, or with `smallest` what of it is not padding."""
        grid = self._grids(tokens, ndim=1).reshape(self.rows, self.cols)
        if not self.smallest or not grid.any():
            return grid
        (top, bottom), (left, right) = ((int(i[0]), int(i[-1]) + 1) for i in map(np.flatnonzero, (
            grid.any(1), grid.any(0))))
        return grid[top:bottom, left:right]

    def within(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        return np.where(np.asarray(inputs) == 0, 0, answers) if self.smallest else np.asarray(answers)

    def render(self, tokens: np.ndarray, given: np.ndarray | None = None, changed: np.ndarray | None = None,
               color: bool = False) -> str:
        """A picture for the terminal, two characters a cell, which encode reads back.

        tokens [S]; given [S]: the maze: the path is green and what else differs from the maze red; changed [S] bool:
        highlighted. Without color, given and changed make no difference and there are no escape codes.
        """
        rows, cols = self._cells(tokens if given is None else given).shape  # of what is drawn

        def drawn(values):
            return self._grids(values, ndim=1).reshape(self.rows, self.cols)[:rows, :cols].ravel()
        tokens = drawn(tokens)
        given = tokens if given is None else drawn(given)
        changed = np.zeros(rows * cols, bool) if changed is None else drawn(changed)

        def cell(s):
            token = tokens[s]
            symbol = "\u2588" if token == WALL else SYMBOLS[token] if 0 < token < len(SYMBOLS) else "?"
            before = "\u2588" if token == WALL and not changed[s] else " "
            if not color:
                return ("\u2588" if token == WALL else " ") + symbol
            style = _PATH if token == PATH and given[s] in (FREE, PATH) else _RED if token != given[s] else \
                _BOLD if token in (START, GOAL) else ""
            style += _CHANGED if changed[s] else ""
            return f"{before}{style}{symbol}{_RESET}" if style else before + symbol

        lines = ["".join(map(cell, range(first, first + cols))) for first in range(0, rows * cols, cols)]
        return framed(lines, 2 * cols)

    # Rules

    def check_clues(self, inputs: np.ndarray) -> None:
        """Raises PuzzleError if inputs [S] is no maze: other cells, not one S and one G, or no way between them."""
        inputs = self._grids(inputs, ndim=1)
        if (inputs == PATH).any():
            raise PuzzleError(f"{self._place(int(np.argmax(inputs == PATH)))} is marked 'o': a question holds no path")
        if bad := inputs[(inputs < (0 if self.smallest else WALL)) | (inputs > GOAL)].tolist():
            raise PuzzleError(f"a maze's tokens are {WALL} (wall) to {GOAL} (goal), got {bad[0]}")
        for token, what in ((START, "start S"), (GOAL, "goal G")):
            if (count := int((inputs == token).sum())) != 1:
                raise PuzzleError(f"the maze has {count or 'no'} {what}{'s' if count else ''}; it must have one")
        if self.solve(inputs[None]).steps[0] < 0:
            raise PuzzleError("no way leads from S to G")

    def verify(self, inputs: np.ndarray, answers: np.ndarray) -> MazeVerdict:
        """inputs [..., S], answers [..., S] (any integers, the shapes broadcast) -> MazeVerdict of [...].

        Marked cells lead from S to G if every one of them touches exactly two cells that are marked, S or G, and S
        and G touch one: a way that runs along beside itself is not told from one with a branch. No shortest path
        does. Of an input that is no maze, nothing is a path.
        """
        inputs, answers = self._both(inputs, answers)
        shape = inputs.shape[:-1]
        flat = [np.array(a.reshape(-1, self.seq_len), order="C") for a in (inputs, answers)]
        found = np.empty((3, len(flat[0])), bool)
        maze_search.verify_range(flat[0], flat[1], self.cols, self._ways, found[0], found[1], found[2])
        return MazeVerdict(*(rule.reshape(shape) for rule in found))

    def explain(self, inputs: np.ndarray, answer: np.ndarray) -> str:
        """Why verify does not accept answer [S] to inputs [S]; "" if it does."""
        inputs, answer = self._both(self._grids(inputs, ndim=1), self._grids(answer, ndim=1))
        verdict, reasons = self.verify(inputs, answer), []
        if not verdict.kept:
            wrong = _changed(inputs, answer)
            first = int(np.argmax(wrong))
            was, now = (_NAMES.get(int(tokens[first]), "no cell") for tokens in (inputs, answer))
            more = f" and {wrong.sum() - 1} cells more were changed" if wrong.sum() > 1 else ""
            reasons.append(f"{was} at {self._place(first)} became {now}{more}")
        if not verdict.path:
            reasons.append(self._path_fault(inputs, answer))
        elif not verdict.shortest:
            reasons.append(f"the path has {(answer == PATH).sum() + 1} steps, a shortest one has "
                           f"{self.solve(inputs[None]).steps[0]}")
        return "; ".join(reasons)

    def faults(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """inputs, answers as in verify -> [..., S] bool: cells that changed, other than from free to path, and path
        cells that do not touch two of path, S and G: loose ends and branches. A longer way has none."""
        inputs, answers = self._both(inputs, answers)
        way = (answers == PATH) | (inputs == START) | (inputs == GOAL)
        way = np.pad(way.reshape(-1, self.rows, self.cols), ((0, 0), (1, 1), (1, 1))).astype(np.int8)
        touching = way[:, 2:, 1:-1] + way[:, :-2, 1:-1] + way[:, 1:-1, 2:] + way[:, 1:-1, :-2]
        return _changed(inputs, answers) | (answers == PATH) & (touching.reshape(inputs.shape) != 2)

    # Shortest paths

    def solve(self, inputs: np.ndarray) -> Paths:
        """The shortest path of each maze, inputs [B, S], that the rule at the head of this file chooses."""
        return self._paths(inputs, None)

    def solutions(self, inputs: np.ndarray) -> Solutions:
        """As the base class says; a shortest path is a solution."""
        found = self.solve(inputs)
        counts = np.where(found.steps < 0, 0, np.where(found.log2_paths > 0, 2, 1))
        return Solutions(counts, np.where(found.steps[:, None] < 0, 0, found.labels).astype(np.uint8))

    def draw_answers(self, inputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Labels [B, S] for mazes inputs [B, S]: each with one of its shortest paths, drawn uniformly and afresh.

        PuzzleError if one has none.
        """
        labels, steps, _ = self._paths(inputs, rng)
        if len(steps) and steps.min() < 0:
            raise PuzzleError(f"maze {int(np.argmin(steps))} of {len(steps)} has no way from one S to one G")
        return labels

    def log2_answers(self, inputs: np.ndarray) -> np.ndarray:
        """[B] float32: log2 of the number of shortest paths of each maze, inputs [B, S]."""
        return self.solve(inputs).log2_paths

    def default_min_length(self) -> int:
        """Maze-Hard's 110 for its 900 cells, and as much for every cell elsewhere."""
        return self.seq_len * 110 // 900

    def generate(self, n: int, seed: int, *, min_length: int | None = None, single_path: bool = False) -> Mazes:
        """n different mazes, made as Maze-Hard's were: 30 to 50 % of all cells become walls, at random.

        The start is any free cell and the goal any cell that is more than min_length steps from it; mazes without
        such a cell are drawn again, start included. (The published procedure draws the goal as blindly as the start
        and so weighs a maze by how many such goals it has; one draw in 66,000 succeeds, of ours one in 2,000.)

        With `smallest`, each maze has one of the sizes, drawn uniformly, and is one of that size's.

        The mazes are the distinct ones, in order, of an endless stream of which each depends on (seed, its number)
        only: same seed, same mazes, and a smaller n gives their beginning.

        Args:
          min_length: None: default_min_length().
          single_path: every maze has exactly one shortest path: one is drawn uniformly and then, one by one, cells of
            the others become walls. (Without this, no maze in a thousand of Maze-Hard has a single one.)
        Raises:
          PuzzleError: such mazes are too rare, or there are not n different ones.
        """
        if n < 0 or seed < 0:
            raise PuzzleError(f"{n=} and {seed=} must not be negative")
        if self.smallest:
            return self._generate_any(n, seed, min_length, single_path)
        min_length = self.default_min_length() if min_length is None else min_length
        if not 0 <= min_length < self.seq_len:
            raise PuzzleError(f"{min_length=} will not do: it must be 0 to {self.seq_len - 1}, cells less one")
        base = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
        walls = np.array([math.ceil(0.3 * self.seq_len), self.seq_len // 2])
        what = f"mazes of {self.rows}x{self.cols} with a shortest path over {min_length}"

        def candidates(first, count):
            inputs, labels = np.empty((2, count, self.seq_len), np.uint8)
            steps, log2_paths, failed = np.empty(count, np.int32), np.empty(count, np.float32), np.zeros(1, bool)

            def work(part):
                maze_search.generate_range(first + part.start, base, self.cols, self._ways, walls, min_length,
                                           single_path, _TRIES, failed, inputs[part], labels[part], steps[part],
                                           log2_paths[part])

            in_threads(work, count)
            if failed[0]:
                raise PuzzleError(f"{what} are too rare: {_TRIES:,} draws brought none; lower min_length")
            return np.ones(count, bool), inputs, labels, steps, log2_paths

        return Mazes(*distinct(n, candidates, _PATIENCE, what))

    def _generate_any(self, n: int, seed: int, min_length: int | None, single_path: bool) -> Mazes:
        rng = np.random.default_rng([seed, 3])
        sizes = rng.integers(self.smallest, (self.rows + 1, self.cols + 1), (n, 2))
        inputs, labels = np.zeros((2, n, self.seq_len), np.uint8)
        found = Mazes(inputs, labels, np.zeros(n, np.int32), np.zeros(n, np.float32))
        for rows, cols in np.unique(sizes, axis=0).tolist():
            here = (sizes == (rows, cols)).all(1)
            made = Maze(rows, cols).generate(int(here.sum()), seed, min_length=min_length, single_path=single_path)
            for column, part in zip(found, made):
                column[here] = self._padded(part.reshape(-1, rows, cols)) if part.ndim == 2 else part
        return found

    # Symmetries

    def draw_symmetry(self, rng: np.random.Generator, B: int) -> Symmetry:
        """B uniform draws from the 8 symmetries of the square, or the 4 of them that keep an oblong's shape."""
        relabel = np.broadcast_to(np.arange(self.vocab_size, dtype=np.uint8), (B, self.vocab_size))
        return Symmetry(relabel, self._symmetries[rng.integers(len(self._symmetries), size=B)])

    # Private

    @functools.cached_property
    def _symmetries(self) -> np.ndarray:
        return turns(self.rows, self.cols)

    @property
    def _size(self) -> str:
        return f"{self.rows}x{self.cols}"

    @functools.cached_property
    def _ways(self) -> np.ndarray:
        return np.array([self.cols + 2, 1, -self.cols - 2, -1])

    def _paths(self, inputs: np.ndarray, rng: np.random.Generator | None) -> Paths:
        inputs = np.array(_bytes(self._grids(inputs, ndim=2)), order="C")  # a copy: read-only would recompile
        B = len(inputs)
        seeds = np.zeros(B, np.uint64) if rng is None else rng.integers(1 << 64, size=B, dtype=np.uint64)
        paths = Paths(np.empty_like(inputs), np.empty(B, np.int32), np.empty(B, np.float32))
        maze_search.paths_range(inputs, self.cols, self._ways, int(rng is not None), seeds, *paths)
        return paths

    def _both(self, inputs: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inputs, answers = np.broadcast_arrays(_bytes(self._grids(inputs)), _bytes(self._grids(answers)))
        return inputs, self.within(inputs, answers)

    def _path_fault(self, inputs: np.ndarray, answer: np.ndarray) -> str:
        """What is wrong with the marked cells, as a walk from S finds it."""
        marked = answer == PATH
        if (through := marked & (inputs != FREE)).any():
            first = int(np.argmax(through))
            return f"the path goes through {_NAMES.get(int(inputs[first]), 'no cell')} at {self._place(first)}"
        if (inputs == START).sum() != 1 or (inputs == GOAL).sum() != 1:
            return "the maze has not one S and one G"
        if not marked.any():
            return "no path is marked"
        goal = int(np.argmax(inputs == GOAL))
        allowed = marked | (inputs == START) | (inputs == GOAL)
        before, cell, seen = -1, int(np.argmax(inputs == START)), set()
        while True:
            seen.add(cell)
            onward = [c for c in self._around(cell) if allowed[c] and c != before]
            if len(onward) > (cell != goal):
                return f"the path branches at {self._place(cell)}"
            if cell == goal:
                stray = [c for c in np.flatnonzero(marked).tolist() if c not in seen]
                more = f" and {len(stray) - 1} cells more" if len(stray) > 1 else ""
                return f"{self._place(stray[0])}{more} marked beside the path"
            if not onward:
                return f"the path ends at {self._place(cell)}, before it reaches G"
            before, cell = cell, onward[0]

    def _around(self, cell: int) -> list[int]:
        row, col = divmod(cell, self.cols)
        return [r * self.cols + c for r, c in ((row + 1, col), (row, col + 1), (row - 1, col), (row, col - 1))
                if 0 <= r < self.rows and 0 <= c < self.cols]

    def _place(self, cell: int) -> str:
        return f"row {cell // self.cols + 1}, column {cell % self.cols + 1}"


def _changed(inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Where an answer is not the maze, nor a path through a free cell."""
    return (answers != inputs) & ((answers != PATH) | (inputs != FREE))


def _bytes(tokens: np.ndarray) -> np.ndarray:
    """As uint8, 0 (no cell) for what does not fit."""
    return tokens if tokens.dtype == np.uint8 else np.where((tokens < 0) | (tokens > 255), 0, tokens).astype(np.uint8)
