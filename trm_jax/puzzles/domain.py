"""What a puzzle domain is: one object that knows its vocabulary, rules, symmetries, generator and picture."""

import dataclasses
import importlib
import inspect
from typing import Any, NamedTuple, Protocol

import numpy as np

from trm_jax.runtime.errors import UserError

_DOMAINS = {"sudoku": ("trm_jax.puzzles.sudoku", "Sudoku"), "maze": ("trm_jax.puzzles.maze", "Maze"),
            "arc": ("trm_jax.puzzles.arc", "Arc")}


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

    def inverse(self) -> "Symmetry":
        """The symmetry that undoes this one: an answer to a transformed puzzle becomes an answer to the original."""
        return Symmetry(np.argsort(self.relabel, axis=1).astype(self.relabel.dtype),
                        np.argsort(self.cells, axis=1).astype(self.cells.dtype))


class Verdict(Protocol):
    """What a domain's verifier finds; domains add the reasons."""

    @property
    def solved(self) -> np.ndarray: ...  # [B] bool


class Domain(Protocol):
    """B puzzles of S = seq_len cells; tokens are 0 (pad) .. vocab_size - 1, stored as uint8.

    A domain whose puzzles have several right answers (mazes) also has `shortest_paths(inputs, rng) -> labels` [B, S],
    a fresh label for every puzzle, and `log2_paths(inputs)` [B], how many there are. One that can tell which cells
    break its rules has `faults(inputs, answers)` [B, S]. One whose pictures are not of characters has `drawn_as`:
    token -> "wall", "path", "empty", "end" (of a grid that does not fill its canvas) or a colour as #rrggbb.
    """

    name: str
    verified_as: str  # what an answer is called that the verifier accepts; "": there are no rules, and no verifier
    broken: dict[str, str]  # verdict field -> "the answer ..." where it is False; the most basic one first

    @property
    def seq_len(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def grid(self) -> tuple[int, int]: ...  # rows, columns
    @property
    def symbols(self) -> dict[str, int]: ...  # character of a cell -> token

    def encode(self, text: str) -> np.ndarray: ...  # [S]
    def decode(self, tokens: np.ndarray) -> str: ...  # tokens [S]
    def check_clues(self, inputs: np.ndarray) -> None: ...  # inputs [S]; PuzzleError if they contradict each other
    def verify(self, inputs: np.ndarray, answers: np.ndarray) -> Verdict: ...  # [B, S] each
    def explain(self, inputs: np.ndarray, answer: np.ndarray) -> str: ...  # [S] each; why it is not solved, or ""
    def augment(self, inputs: np.ndarray, labels: np.ndarray,
                rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]: ...  # [B, S] each
    def generate(self, n: int, seed: int, **how: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...
    def render(self, tokens: np.ndarray, given: np.ndarray | None = None, changed: np.ndarray | None = None,
               color: bool = False) -> str: ...  # [S] each


def get(name: str, **options: Any) -> Domain:
    """A domain by name, e.g. get("sudoku", box_rows=2, box_cols=3) or get("sudoku", seq_len=36)."""
    if name not in _DOMAINS:
        raise PuzzleError(f"unknown puzzle {name!r}; known are {', '.join(sorted(_DOMAINS))}")
    module, attribute = _DOMAINS[name]
    make = getattr(importlib.import_module(module), attribute)
    if "seq_len" in options and hasattr(make, "from_seq_len"):
        make = make.from_seq_len
    allowed = list(inspect.signature(make).parameters)
    if unknown := sorted(set(options) - set(allowed)):
        raise PuzzleError(f"{name} has no option {', '.join(unknown)}; it takes {', '.join(allowed) or 'none'}")
    return make(**options)


def puzzle_of(domain: Domain) -> dict[str, Any]:
    """What `get` makes the same domain from; JSON can hold it."""
    return {"name": domain.name, **dataclasses.asdict(domain)}
