"""Shapes of the published datasets, for when their folder is not there yet."""

from __future__ import annotations

from trm_jax import puzzles
from trm_jax.config import Data
from trm_jax.data import making
from trm_jax.data.shape import Shape

# Of the published datasets: shape and training groups.
PUBLISHED = {"sudoku": (Shape(seq_len=81, vocab_size=11, units=puzzles.get("sudoku").units), 3_831_994),
             "maze": (Shape(seq_len=900, vocab_size=6), 1000),
             "arc": (Shape(seq_len=900, vocab_size=12, num_puzzle_identifiers=960_961), 960)}


def expected(data: Data) -> tuple[Shape, int]:
    """Shape and training groups of a dataset whose folder is not there yet: as its recipe makes it, else as published.

    Raises PuzzleError where the recipe cannot be.
    """
    if data.make.source in ("generate", "csv") or data.puzzle not in PUBLISHED:
        domain = making.domain_of(data)
        return Shape(domain.seq_len, domain.vocab_size, units=domain.units), data.make.train or domain.usual[0]
    return PUBLISHED[data.puzzle]
