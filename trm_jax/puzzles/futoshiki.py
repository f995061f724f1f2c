"""Futoshiki: a Latin square with signs between neighbours that say which of the two is smaller.

Tokens: 0 pad, 1 blank, digit d -> d + 1, then no sign, '<', '>', '^' (the upper one is smaller) and 'v' (the lower one
is). The grid has a cell for every digit and one for every place of a sign: rows and columns 0, 2, 4, ... hold digits,
those between them signs. B puzzles, n the side, S = (2 n - 1)**2, V = n + 7.
"""

import contextlib
import dataclasses
import functools
import math
import re
from typing import Any, NamedTuple

import numpy as np

from trm_jax.puzzles import Domain, Piece, PuzzleError, Solutions, Symmetry, futoshiki_search
from trm_jax.puzzles.domain import turns
from trm_jax.puzzles.generation import distinct, in_threads
from trm_jax.puzzles.text import framed, painted, plain_lines, split_rows

MOST_SIDE = 9
_SIGNS = "-<>^v"  # in the order of their tokens; the first is none
_BUDGET = 20_000  # guesses; 9x9 stays far below
_GAME = re.compile(r"\s*(\d+)\w*:([\d,URDLurdl\s]+)")
# Of the 8 symmetries of the square, numbered as in np.rot90 and then transposed: what becomes of < > ^ v.
_TURNED = ("<>^v", "v^<>", "><v^", "^v><", "^v<>", "<>v^", "v^><", "><^v")


class FutoshikiVerdict(NamedTuple):
    complete: np.ndarray  # [B] bool: every cell holds a digit
    rules: np.ndarray  # [B] bool: no digit twice in a row or column and every sign is true, among the digits present
    clues: np.ndarray  # [B] bool: every given digit and sign is kept

    @property
    def solved(self) -> np.ndarray:
        return self.complete & self.rules & self.clues


class GeneratedFutoshikis(NamedTuple):
    inputs: np.ndarray  # [B, S] uint8
    labels: np.ndarray  # [B, S] uint8: the only solution
    rating: np.ndarray  # [B] int32: guesses of the search that proves it; 0: none is needed


@dataclasses.dataclass(frozen=True)
class Futoshiki(Domain):
    """Of size x size digits."""

    size: int = 5
    name = "futoshiki"
    verified_as = "verified"
    broken = {"complete": "has cells that are not filled", "clues": "does not keep the clues of the question",
              "rules": "breaks the rules of the puzzle"}

    def __post_init__(self):
        if not 2 <= self.size <= MOST_SIDE:
            raise PuzzleError(f"a Futoshiki of {self.size}x{self.size} will not do: its side must be 2 to {MOST_SIDE}")

    @classmethod
    def from_seq_len(cls, seq_len: int) -> "Futoshiki":
        side = math.isqrt(max(seq_len, 0))
        if side * side != seq_len or side % 2 == 0:
            raise PuzzleError(f"no Futoshiki has {seq_len} cells; of 5x5 digits it has 81, signs included")
        return cls((side + 1) // 2)

    @classmethod
    def recognised(cls, value: Any) -> str:
        for size in range(2, MOST_SIDE + 1):
            with contextlib.suppress(PuzzleError):
                domain = cls(size)
                if (domain.encode_value(value) > domain._none).any():  # it has a sign
                    return domain.title
        return ""

    @property
    def title(self) -> str:
        return f"{self.size}x{self.size} Futoshiki"

    @property
    def seq_len(self) -> int:
        return (2 * self.size - 1) ** 2

    @property
    def vocab_size(self) -> int:
        return self.size + 7

    @property
    def grid(self) -> tuple[int, int]:
        return 2 * self.size - 1, 2 * self.size - 1

    @property
    def drawn_as(self) -> dict[int, str]:
        return {self._none: "empty"}

    # Text

    @property
    def symbols(self) -> dict[str, int]:
        return {".": 1, "0": 1} | {str(d): d + 1 for d in range(1, self.size + 1)} | {
            sign: self._none + i for i, sign in enumerate(_SIGNS)}

    def encode(self, text: str) -> np.ndarray:
        """Text -> tokens [S]: all cells on one line ('-': no sign), the rows as lines, what render draws, or a game of
        Simon Tatham's Unequal ("4:0D,0,3,..."; U, R, D, L: greater than the one above, right, below, left)."""
        if game := _GAME.fullmatch(text):
            return self._of_game(int(game[1]), game[2])
        side = 2 * self.size - 1
        lines = [line for line in plain_lines(text) if line.strip() and not set(line.strip()) & set("\u250c\u2514")]
        lines = [line.strip().strip("\u2502") if "\u2502" in line else line for line in lines]
        if len(lines) == side and len(lines) > 1:
            lines = [line.ljust(2 * side)[1::2] if len(line) > side else line.ljust(side) for line in lines]
        cells = "".join(lines) if len(lines) == side else "".join(lines).replace(" ", "")
        if len(cells) != self.seq_len:
            raise PuzzleError(f"got {len(cells)} cells, expected {self.seq_len} ({self.size}x{self.size} digits and "
                              f"the signs between them): write them on one line, '-' for no sign, or as {side} lines")
        tokens = np.empty(self.seq_len, np.uint8)
        for i, char in enumerate(cells.replace(" ", "-")):
            place = i // side % 2, i % side % 2
            allowed = {(0, 0): "." + "0123456789"[:self.size + 1], (0, 1): "-<>", (1, 0): "-^v", (1, 1): "-"}[place]
            if char not in allowed:
                if char == "-" and place == (0, 0):
                    char = "."
                else:
                    raise PuzzleError(f"{char!r} at row {i // side + 1}, column {i % side + 1}: there can be one of "
                                      f"{allowed}")
            tokens[i] = self.symbols[char]
        return tokens

    def _of_game(self, size: int, text: str) -> np.ndarray:
        words, n = [word.strip() for word in text.strip().strip(",").split(",")], self.size
        if size != n or len(words) != n * n:
            raise PuzzleError(f"a game of {size}x{size} with {len(words)} cells, expected {n}x{n} with {n * n}")
        canvas = np.full(self.grid, self._none, np.uint8)
        canvas[::2, ::2] = 1
        for cell, word in enumerate(words):
            digit = word.rstrip("URDLurdl")
            flags = word[len(digit):]
            if digit and not digit.isdecimal():
                raise PuzzleError(f"cell {cell + 1} is {word!r}: a digit, then some of U, R, D and L")
            row, col = 2 * (cell // n), 2 * (cell % n)
            if not 0 <= int(digit or 0) <= n:
                raise PuzzleError(f"cell {cell + 1} is {digit}; digits are 1 to {n}, 0 is a blank")
            canvas[row, col] = int(digit or 0) + 1
            for flag in flags.upper():
                down, right, sign = {"U": (-1, 0, "^"), "D": (1, 0, "v"), "L": (0, -1, "<"), "R": (0, 1, ">")}[flag]
                if not (0 <= row + 2 * down < 2 * n and 0 <= col + 2 * right < 2 * n):
                    raise PuzzleError(f"cell {cell + 1} has no neighbour for its {flag}")
                canvas[row + down, col + right] = self.symbols[sign]
        return canvas.reshape(-1)

    def split(self, text: str) -> list[Piece]:
        return split_rows(text, lambda line: len(line.replace(" ", "")) == self.seq_len or ":" in line)

    def decode(self, tokens: np.ndarray, like: str = "") -> str:
        """Tokens [S] -> text on one line, '?' for what is no cell (pad, out of range)."""
        return "".join(map(self._symbol, self._grids(tokens, ndim=1).tolist()))

    def render(self, tokens: np.ndarray, given: np.ndarray | None = None, changed: np.ndarray | None = None,
               color: bool = False) -> str:
        """A framed picture for the terminal: given digits and signs bold, others cyan."""
        tokens, side = self._grids(tokens, ndim=1), 2 * self.size - 1
        given = tokens if given is None else self._grids(given, ndim=1)
        changed = np.zeros(len(tokens), bool) if changed is None else np.asarray(changed)

        def cell(s: int) -> str:
            symbol = " " if tokens[s] == self._none else self._symbol(int(tokens[s]))
            return " " + (painted(symbol, given[s] not in (1, self._none), tokens[s] > 1 and symbol != " ", changed[s])
                          if color else symbol)
        rows = ["".join(map(cell, range(first, first + side))) for first in range(0, len(tokens), side)]
        return framed(rows, 2 * side)

    # Rules

    def conflicts(self, inputs: np.ndarray) -> list[str]:
        """What contradicts what among the digits of inputs [S], e.g. "row 1 has two 5s"."""
        digits, signs = self._parts(self._grids(inputs, ndim=1)[None])
        digits, n, words = digits[0].reshape(self.size, self.size), self.size, {2: "two", 3: "three"}
        found = []
        for kind, lines in (("row", digits), ("column", digits.T)):
            for i, line in enumerate(lines, 1):
                found += [f"{kind} {i} has {words.get(k, k)} {d}s" for d in range(1, n + 1)
                          if (k := int((line == d).sum())) > 1]
        for way, (a, b) in enumerate(self._neighbours(digits[None])):
            false = (signs[0, way].reshape(n, n)[:a.shape[1], :a.shape[2]] * (a - b)[0] < 0) & (a[0] > 0) & (b[0] > 0)
            found += [f"the sign {('right of', 'below')[way]} row {r + 1}, column {c + 1} is not true"
                      for r, c in np.argwhere(false)]
        return found

    def check_clues(self, inputs: np.ndarray) -> None:
        """Raises PuzzleError if inputs [S] are no puzzle, or the clues contradict each other at sight."""
        tokens = self._grids(inputs, ndim=1).reshape(self.grid)
        for (down, right), low, high in (((0, 0), 1, self.size + 1), ((0, 1), self._none, self._none + 2),
                                         ((1, 0), self._none, self._none + 4), ((1, 1), self._none, self._none)):
            part = tokens[down::2, right::2]
            fits = (part >= low) & (part <= high) & ~((down == 1) & (part > self._none) & (part < self._none + 3))
            if not fits.all():
                raise PuzzleError(f"a token {part[~fits][0]} stands where there can be none")
        if reasons := self.conflicts(inputs):
            raise PuzzleError("the clues contradict each other: " + "; ".join(reasons))

    def verify(self, inputs: np.ndarray, answers: np.ndarray) -> FutoshikiVerdict:
        """inputs [..., S], answers [..., S] (any integers, the shapes broadcast) -> FutoshikiVerdict of [...]."""
        inputs, answers = np.broadcast_arrays(self._grids(inputs), self._grids(answers))
        digits, _ = self._parts(answers)
        kept = (inputs == 1) | (inputs == answers)
        return FutoshikiVerdict(*(np.asarray(of.all(axis=-1)) for of in (
            digits > 0, ~self._wrong(inputs, answers), kept)))

    def explain(self, inputs: np.ndarray, answer: np.ndarray) -> str:
        """Why verify does not accept answer [S] to inputs [S]; "" if it does."""
        complete, rules, clues = self.verify(inputs, answer)
        if not rules:
            cells = np.where(self._is_digit, answer, inputs)
            first, *more = self.conflicts(np.where((cells < 1) | (cells >= self.vocab_size), 1, cells))
            return first + f" and {len(more)} more like that" * bool(more)
        return "; ".join(["cells are left open"] * (not complete) + ["a clue was changed"] * (not clues))

    def faults(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """inputs, answers as in verify -> [..., S] bool: digits that break a rule, and clues and signs that changed."""
        inputs, answers = np.broadcast_arrays(self._grids(inputs), self._grids(answers))
        wrong = np.zeros(answers.shape, bool)
        wrong[..., np.flatnonzero(self._is_digit)] = self._wrong(inputs, answers)
        return np.where(inputs != 1, inputs != answers, wrong)

    def solutions(self, inputs: np.ndarray) -> Solutions:
        """As the base class says; gives up after 20,000 guesses, a fraction of a second."""
        inputs = self._grids(inputs, ndim=2)
        digits, signs = self._parts(inputs)
        counts, answers = np.zeros(len(inputs), np.int64), np.zeros(digits.shape, np.int64)
        futoshiki_search.solve_range(digits, signs, self.size, 2, _BUDGET, counts, answers)
        filled = self._canvas(answers, signs)
        return Solutions(counts, np.where(counts[:, None] > 0, filled, 0).astype(np.uint8))

    def generate(self, n: int, seed: int, *, givens: int = 0) -> GeneratedFutoshikis:
        """n different puzzles with exactly one solution each, of which no digit and no sign can be spared.

        Digits are taken away first, so that most of what is left are signs. They are the distinct ones of an endless
        stream of which each depends on (seed, its number) only.

        Args:
          givens: so many digits are added: easier puzzles.
        """
        if n < 0 or seed < 0 or not 0 <= givens <= self.size ** 2:
            raise PuzzleError(f"{n=} and {seed=} must not be negative, {givens=} lie in 0..{self.size ** 2}")
        base = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
        C = self.size ** 2

        def candidates(first, count):
            digits, answers = np.empty((2, count, C), np.int64)
            signs, guesses = np.empty((count, 2, C), np.int64), np.empty(count, np.int64)

            def work(part):
                futoshiki_search.generate_range(first + part.start, base, self.size, givens, _BUDGET, digits[part],
                                                signs[part], answers[part], guesses[part])

            in_threads(work, count)
            return (np.ones(count, bool), self._canvas(digits, signs), self._canvas(answers, signs),
                    guesses.astype(np.int32))

        return GeneratedFutoshikis(*distinct(n, candidates, 5_000, self.title + " puzzles"))

    # Symmetries

    def draw_symmetry(self, rng: np.random.Generator, B: int) -> Symmetry:
        """B uniform draws from the 8 symmetries of the square x digits counted from the other end; signs turn along."""
        turned, flips = rng.integers(8, size=B), rng.integers(2, size=B)
        return Symmetry(self._relabels[turned, flips], turns(*self.grid)[turned])

    # Private

    @property
    def _none(self) -> int:
        """The token of no sign."""
        return self.size + 2

    @functools.cached_property
    def _is_digit(self) -> np.ndarray:
        """[S] bool"""
        cells = np.zeros(self.grid, bool)
        cells[::2, ::2] = True
        return cells.reshape(-1)

    @functools.cached_property
    def _relabels(self) -> np.ndarray:
        """[8, 2, V] new token of each token."""
        plain = np.arange(self.vocab_size, dtype=np.uint8)
        found = np.tile(plain, (8, 2, 1))
        opposite = str.maketrans("<>^v", "><v^")
        for turn, signs in enumerate(_TURNED):
            for flip in range(2):
                for old, new in zip("<>^v", signs.translate(opposite) if flip else signs):
                    found[turn, flip, self.symbols[old]] = self.symbols[new]
            found[turn, 1, 2:self.size + 2] = plain[2:self.size + 2][::-1]
        return found

    def _parts(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [..., S] -> (digits int64 [..., C], 0 where there is none; signs int64 [..., 2, C] as the search has
        them)."""
        canvas = tokens.reshape(*tokens.shape[:-1], *self.grid).astype(np.int64)
        digits = canvas[..., ::2, ::2]
        digits = np.where((digits > 1) & (digits <= self.size + 1), digits - 1, 0)
        signs = np.zeros((*tokens.shape[:-1], 2, self.size, self.size), np.int64)
        for way, part in ((0, canvas[..., ::2, 1::2]), (1, canvas[..., 1::2, ::2])):
            less = part == self._none + (1 if way == 0 else 3)
            greater = part == self._none + (2 if way == 0 else 4)
            signs[..., way, :part.shape[-2], :part.shape[-1]] = np.where(less, -1, np.where(greater, 1, 0))
        flat = tokens.shape[:-1]
        return digits.reshape(*flat, -1), signs.reshape(*flat, 2, -1)

    def _canvas(self, digits: np.ndarray, signs: np.ndarray) -> np.ndarray:
        """The other way: [B, C], [B, 2, C] -> tokens [B, S]."""
        B, n = len(digits), self.size
        canvas = np.full((B, *self.grid), self._none, np.uint8)
        canvas[:, ::2, ::2] = digits.reshape(B, n, n) + 1
        right, below = signs.reshape(B, 2, n, n).transpose(1, 0, 2, 3)
        canvas[:, ::2, 1::2] += np.choose(right[:, :, :-1] + 1, [1, 0, 2]).astype(np.uint8)
        canvas[:, 1::2, ::2] += np.choose(below[:, :-1] + 1, [3, 0, 4]).astype(np.uint8)
        return canvas.reshape(B, -1)

    @staticmethod
    def _neighbours(digits: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """digits [..., n, n] -> (cells, the ones right of them), (cells, the ones below them)."""
        return [(digits[..., :, :-1], digits[..., :, 1:]), (digits[..., :-1, :], digits[..., 1:, :])]

    def _wrong(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """[..., S] each -> [..., C] bool: digits that are twice in a row or column, or on a side of a false sign."""
        digits, _ = self._parts(answers)
        _, signs = self._parts(inputs)
        n, lead = self.size, digits.shape[:-1]
        digits, signs = digits.reshape(*lead, n, n), signs.reshape(*lead, 2, n, n)
        other = ~np.eye(n, dtype=bool)
        wrong = ((digits[..., :, :, None] == digits[..., :, None, :]) & other).any(-1)
        columns = digits.swapaxes(-1, -2)
        wrong |= ((columns[..., :, :, None] == columns[..., :, None, :]) & other).any(-1).swapaxes(-1, -2)
        wrong &= digits > 0
        for way, (a, b) in enumerate(self._neighbours(digits)):
            rows, columns_ = a.shape[-2:]
            false = (signs[..., way, :rows, :columns_] * (a - b) < 0) & (a > 0) & (b > 0)
            down, right = (0, 1) if way == 0 else (1, 0)
            wrong[..., :rows, :columns_] |= false
            wrong[..., down:, right:] |= false
        return wrong.reshape(*lead, -1)

    def _symbol(self, token: int) -> str:
        if token == 1:
            return "."
        if 2 <= token < self._none:
            return str(token - 1)
        return _SIGNS[token - self._none] if self._none <= token < self.vocab_size else "?"
