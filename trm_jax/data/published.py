"""Shapes of the published datasets, for when their folder is not there yet."""

from __future__ import annotations

from trm_jax.data.shape import Shape

# Of the published datasets, for when the folder is not there yet: shape and training groups.
PUBLISHED = {"sudoku": (Shape(seq_len=81, vocab_size=11), 3_831_994),
             "maze": (Shape(seq_len=900, vocab_size=6), 1000),
             "arc": (Shape(seq_len=900, vocab_size=12, num_puzzle_identifiers=960_961), 960)}
