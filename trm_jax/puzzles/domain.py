"""What a puzzle domain is: one object that knows its vocabulary, rules, symmetries, generator and picture.

A new puzzle is a subclass of `Domain` with a name of its own. It is found by that name when it stands in a file of that
name in this folder, when its module has been imported, or when its package names it as an entry point:

    [project.entry-points."trm_jax.puzzles"]
    kakuro = "my_package.kakuro:Kakuro"
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, cast

import numpy as np

from trm_jax.runtime.errors import UserError

ENTRY_POINTS = "trm_jax.puzzles"
# What a puzzle is called in objects and columns, the likeliest first.
PUZZLE_NAMES = ("puzzle", "question", "quiz", "quizzes", "puzzles", "questions", "input", "grid", "maze", "sudoku",
                "board", "matrix", "problem", "clues", "inputs", "unsolved", "initial", "givens")
SOLUTION_NAMES = ("solution", "answer", "solutions", "answers", "output", "label")
_registered: dict[str, type[Domain]] = {}


class PuzzleError(UserError):
    """What is wrong with a puzzle or a request for one, in one line that its author can act on."""


class Symmetry(NamedTuple):
    """One symmetry of the puzzle per row: output cell s is relabel[input cell cells[s]]."""

    relabel: np.ndarray  # [B, V] new token of each token; pad, blank and the like map to themselves
    cells: np.ndarray  # [B, S] the cell that each output cell is read from

    def apply(self, tokens: np.ndarray) -> np.ndarray:
        """tokens [B, S] -> [B, S], dtype kept."""
        tokens = np.asarray(tokens)
        B, V = self.relabel.shape
        if tokens.shape != self.cells.shape:
            raise PuzzleError(f"tokens have shape {tokens.shape}, the symmetry is for {self.cells.shape}")
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < V:
            raise PuzzleError(f"tokens must lie in 0..{V - 1}, got {tokens.min()}..{tokens.max()}")
        moved = np.take_along_axis(tokens, self.cells.astype(np.intp), axis=1)
        return np.take_along_axis(self.relabel.astype(tokens.dtype), moved.astype(np.intp), axis=1)

    def inverse(self) -> Symmetry:
        """The symmetry that undoes this one: an answer to a transformed puzzle becomes an answer to the original."""
        return Symmetry(np.argsort(self.relabel, axis=1).astype(self.relabel.dtype),
                        np.argsort(self.cells, axis=1).astype(self.cells.dtype))


def turns(rows: int, columns: int) -> np.ndarray:
    """The 8 symmetries of the square, or the 4 that keep an oblong's shape, [8 or 4, S]: the cell that each cell is
    read from. The first changes nothing; 0 to 3 turn left by as many quarters, 4 to 7 transpose before that."""
    cells = np.arange(rows * columns, dtype=np.int16).reshape(rows, columns)
    turned = [np.rot90(form, quarters) for form in (cells, cells.T) for quarters in range(4)]
    return np.stack([form.ravel() for form in turned if form.shape == cells.shape])


class Verdict(Protocol):
    """What a domain's verifier finds; domains add the reasons."""

    @property
    def solved(self) -> np.ndarray: ...  # [B] bool


class Piece(NamedTuple):
    """One puzzle of a text."""

    text: str
    first: int  # line, counted from 1
    last: int

    @property
    def where(self) -> str:
        return f"line {self.first}" if self.first == self.last else f"lines {self.first} to {self.last}"


class Solutions(NamedTuple):
    """What a search for solutions found."""

    counts: np.ndarray  # [B] int: number of solutions, 2 standing for several; -1 where the search gave up
    answers: np.ndarray  # [B, S] uint8: the first solution found, all 0 where there is none


class Domain:
    """B puzzles of S = seq_len cells; tokens are 0 (pad) .. vocab_size - 1, stored as uint8.

    A subclass is a frozen dataclass: its fields are the options that `get` takes. It must have a codec, a size and a
    picture; all else it may have, and whether it does is told by a name of its own (`has_rules` and those after it),
    which is True where the method is defined.
    """

    name: ClassVar[str]
    verified_as: ClassVar[str] = ""  # what an answer is called that the verifier accepts
    broken: ClassVar[dict[str, str]] = {}  # verdict field -> "the answer ..." where it is False; most basic one first
    best_metric: ClassVar[str] = "exact_accuracy"  # the figure that the best checkpoint has most of
    identifies_tasks: ClassVar[bool] = False  # a puzzle is known by a row of the puzzle table, and answers are voted on
    clues_called: ClassVar[str] = "clues"  # what a question's cells are called under a picture
    drawn_as: ClassVar[dict[int, str]] = {}  # token -> "wall", "path", "empty", "end" (of a grid that does not fill its
    # canvas) or a colour as #rrggbb, in pictures, instead of its character
    usual: ClassVar[tuple[int, int]] = (20_000, 1000)  # training and test puzzles to generate unless told otherwise
    no_symmetries: ClassVar[str] = "has no symmetries"  # why, where there are none to draw

    __dataclass_fields__: ClassVar[dict[str, Any]]  # a subclass is a dataclass
    has_rules: ClassVar[bool]  # verify, explain
    has_symmetries: ClassVar[bool]  # draw_symmetry
    has_several_answers: ClassVar[bool]  # draw_answers, log2_answers: a puzzle may have more than one right answer
    marks_faults: ClassVar[bool]  # faults
    solves: ClassVar[bool]  # solutions
    generates: ClassVar[bool]  # generate

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for flag, method in (("has_rules", "verify"), ("has_symmetries", "draw_symmetry"),
                             ("has_several_answers", "draw_answers"), ("marks_faults", "faults"),
                             ("solves", "solutions"), ("generates", "generate")):
            setattr(cls, flag, getattr(cls, method) is not getattr(Domain, method))
        if cls.has_rules != bool(cls.verified_as):
            raise TypeError(f"{cls.__name__}: verify and verified_as go together")
        if "name" in cls.__dict__:
            _registered[cls.name] = cls

    @classmethod
    def recognised(cls, value: Any) -> str:
        """The title of the puzzle of this kind, of any size, that a text or JSON value is; "" where it is none."""
        return ""

    @classmethod
    def from_seq_len(cls, seq_len: int) -> Domain:
        """The puzzle of so many cells; PuzzleError where there is none."""
        domain = cls()
        if domain.seq_len != seq_len:
            raise PuzzleError(f"{cls.name} has {domain.seq_len} cells unless its options say otherwise, not {seq_len}")
        return domain

    # Size.

    @property
    def title(self) -> str:
        """What these puzzles are called, for messages: "9x9 Sudoku"."""
        rows, columns = self.grid
        return f"{rows}x{columns} {self.name}"

    @property
    def seq_len(self) -> int:
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        raise NotImplementedError

    @property
    def grid(self) -> tuple[int, int]:
        """Rows, columns."""
        raise NotImplementedError

    @property
    def boxes(self) -> tuple[int, int]:
        """Rows, columns of the parts that pictures draw a line around."""
        return self.grid

    @property
    def units(self) -> tuple[tuple[int, ...], ...]:
        """K ways in which the cells are parted into groups that hold no value twice (rows, columns, boxes): of each the
        number of every cell's group, [K, S]. () where the rules are not of that kind.

        Of a domain with units the tokens are 0 pad, 1 blank, and from 2 on the values.
        """
        return ()

    def _grids(self, tokens: np.ndarray, ndim: int | None = None) -> np.ndarray:
        """tokens as an array [..., S] of `ndim` axes; PuzzleError where they are of another shape."""
        tokens = np.asarray(tokens)
        if tokens.shape[-1:] != (self.seq_len,) or ndim not in (None, tokens.ndim):
            lead = {1: "", 2: "B, ", None: "..., "}[ndim]
            raise PuzzleError(f"expected shape [{lead}{self.seq_len}], got {list(tokens.shape)}")
        return tokens

    # Text.

    @property
    def symbols(self) -> dict[str, int]:
        """Character of a cell -> token."""
        raise NotImplementedError

    def encode(self, text: str) -> np.ndarray:
        """Text -> tokens [S]; PuzzleError where it is no puzzle of this kind and size."""
        raise NotImplementedError

    def encode_value(self, value: Any) -> np.ndarray:
        """A puzzle as JSON or Python has it -> tokens [S]: a text, rows of cells, or an object with one of them."""
        if isinstance(value, str):
            return self.encode(value)
        if isinstance(value, Mapping):
            names = [name for name in PUZZLE_NAMES if name in value]
            if not names:
                raise PuzzleError(f"has none of {', '.join(map(repr, PUZZLE_NAMES[:4]))}" if value else "is empty")
            return self.encode_value(value[names[0]])
        if not isinstance(value, (list, tuple, np.ndarray)):
            raise PuzzleError(f"a puzzle is a text or a list of rows, got {type(value).__name__}")
        return self.encode("\n".join(map(self._row_text, value if any(
            isinstance(row, (list, tuple, str, np.ndarray)) and len(row) > 1 for row in value) else [value])))

    @staticmethod
    def _row_text(row: Any) -> str:
        if isinstance(row, str):
            return row
        if not isinstance(row, (list, tuple, np.ndarray)):
            raise PuzzleError(f"a row is a list of cells, got {type(row).__name__}")
        return " ".join("." if cell is None or cell == "" or cell is False else str(cell) for cell in row)

    def is_one(self, value: list) -> bool:
        """Whether a list, as JSON has it, is one puzzle; otherwise it is a list of them."""
        rows, columns = self.grid
        if len(value) == rows and all(isinstance(row, list) and len(row) == columns for row in value):
            return True
        if len(value) == rows and all(isinstance(row, str) and len(row) == columns for row in value):
            return True
        return len(value) == self.seq_len and not any(isinstance(cell, (list, dict)) for cell in value) and all(
            not isinstance(cell, str) or len(cell) < 3 for cell in value)

    def split(self, text: str) -> list[Piece]:
        """The puzzles of a text; one a line unless a domain knows better."""
        return [Piece(line, number, number) for number, line in enumerate(text.splitlines(), 1) if line.strip()]

    def decode(self, tokens: np.ndarray, like: str = "") -> str:
        """Tokens [S] -> text on one line that `encode` reads back; as the text `like` is written, where there are
        several ways."""
        raise NotImplementedError

    def render(self, tokens: np.ndarray, given: np.ndarray | None = None, changed: np.ndarray | None = None,
               color: bool = False) -> str:
        """Tokens [S] -> a picture for the terminal that `encode` reads back; given [S] is the question, changed [S]
        bool says what to highlight."""
        raise NotImplementedError

    # Rules.

    def check_clues(self, inputs: np.ndarray) -> None:
        """Raises PuzzleError if inputs [S] are no puzzle, or contradict themselves at sight."""

    def verify(self, inputs: np.ndarray, answers: np.ndarray) -> Verdict:
        """[B, S] each."""
        raise PuzzleError(f"{self.name} has no rules to verify an answer by")

    def within(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """[..., S] each -> answers, as padding where the puzzle has no cell."""
        return answers

    def explain(self, inputs: np.ndarray, answer: np.ndarray) -> str:
        """[S] each -> why the answer is not verified; "" if it is."""
        raise PuzzleError(f"{self.name} has no rules to verify an answer by")

    def conflicts(self, inputs: np.ndarray) -> list[str]:
        """What contradicts what among the cells inputs [S], in words; empty if nothing does at sight."""
        return []

    def faults(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """[..., S] each -> [..., S] bool: cells that break a rule."""
        raise PuzzleError(f"{self.name} cannot tell which cells break its rules")

    def solutions(self, inputs: np.ndarray) -> Solutions:
        """inputs [B, S] -> how many solutions each has, and one of them, by search: quick, or given up."""
        raise PuzzleError(f"{self.name} cannot be solved by search here")

    def forbidden(self, inputs: np.ndarray) -> np.ndarray:
        """inputs [S] -> bool [S, V]: what cannot stand in a cell, because of a clue in it or in one of its units."""
        inputs = np.asarray(inputs)
        clue = inputs >= 2
        here = np.zeros((len(inputs), self.vocab_size), bool)
        here[np.flatnonzero(clue), inputs[clue]] = True
        found = np.zeros_like(here)
        for groups in np.array(self.units, int).reshape(-1, len(inputs)):
            held = np.zeros((groups.max() + 1, self.vocab_size), bool)
            np.logical_or.at(held, groups, here)
            found |= held[groups]
        found[:, :2] = True
        found[clue] = ~here[clue]
        return found

    # Several right answers.

    def draw_answers(self, inputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """inputs [B, S] -> [B, S]: of each puzzle one of its right answers, drawn afresh."""
        raise PuzzleError(f"a puzzle of {self.name} has one right answer")

    def log2_answers(self, inputs: np.ndarray) -> np.ndarray:
        """inputs [B, S] -> float32 [B]: log2 of the number of right answers."""
        return np.zeros(len(inputs), np.float32)

    # Symmetries.

    def draw_symmetry(self, rng: np.random.Generator, B: int) -> Symmetry:
        """B symmetries of the puzzle, a function of the generator's state alone."""
        raise PuzzleError(f"{self.name} {self.no_symmetries}")

    def augment(self, inputs: np.ndarray, labels: np.ndarray,
                rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """One random symmetry per puzzle, the same on inputs and labels [B, S]."""
        symmetry = self.draw_symmetry(rng, len(inputs))
        return symmetry.apply(inputs), symmetry.apply(labels)

    # Generation.

    def generate(self, n: int, seed: int, **how: Any) -> tuple[np.ndarray, ...]:
        """n different puzzles: inputs [n, S], labels [n, S], rating [n] and, where there are several answers,
        log2_answers [n]. The same seed gives the same puzzles, and a smaller n their beginning."""
        raise PuzzleError(f"puzzles of {self.name} cannot be generated")


def domain_class(name: str) -> type[Domain]:
    """The domain called so; PuzzleError where there is none."""
    if name not in _registered and name.isidentifier():
        if importlib.util.find_spec(f"{__package__}.{name}"):
            importlib.import_module(f"{__package__}.{name}")
        for point in importlib.metadata.entry_points(group=ENTRY_POINTS, name=name):
            point.load()
    if name not in _registered:
        raise PuzzleError(f"unknown puzzle {name!r}; known are {', '.join(names())}")
    return _registered[name]


def names() -> list[str]:
    """Every domain that can be had."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        importlib.import_module(module.name)
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return sorted({*_registered, *(point.name for point in points)})


def get(name: str, **options: Any) -> Domain:
    """A domain by name, e.g. get("sudoku", box_rows=2, box_cols=3) or get("sudoku", seq_len=36)."""
    cls = domain_class(name)
    make = cls.from_seq_len if "seq_len" in options else cls
    allowed = list(inspect.signature(make).parameters)
    if unknown := sorted(set(options) - set(allowed)):
        raise PuzzleError(f"{name} has no option {', '.join(unknown)}; it takes {', '.join(allowed) or 'none'}")
    return make(**options)


def options_of(cls: type[Domain]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(name -> default of a domain's options, the same of what its generator takes besides)."""
    own = {field.name: field.default for field in dataclasses.fields(cls)}
    how = {name: parameter.default for name, parameter in inspect.signature(cls.generate).parameters.items()
           if parameter.kind is inspect.Parameter.KEYWORD_ONLY}
    return own, how


def with_options(name: str, options: Mapping[str, Any]) -> tuple[Domain, dict[str, Any]]:
    """A domain and what its generator takes, from the options of both in one; PuzzleError for what is none."""
    own, how = options_of(domain_class(name))
    if unknown := sorted(set(options) - set(own) - set(how)):
        raise PuzzleError(f"{name} has no option {', '.join(unknown)}; it takes {', '.join({**own, **how}) or 'none'}")
    for option, value in options.items():
        kind = type({**own, **how}[option])
        if kind in (bool, int, float, str) and type(value) is not kind:
            raise PuzzleError(f"option {option} = {value!r} of {name} must be of type {kind.__name__}")
    return get(name, **{k: v for k, v in options.items() if k in own}), {k: v for k, v in options.items() if k in how}


def puzzle_of(domain: Domain) -> dict[str, Any]:
    """What `get` makes the same domain from; JSON can hold it."""
    return {"name": domain.name, **dataclasses.asdict(cast(Any, domain))}
