"""Puzzle domains: one object each, numpy only, that knows its vocabulary, rules, symmetries, generator and picture."""

from trm_jax.puzzles.domain import (
           Domain,
           Piece,
           PuzzleError,
           Solutions,
           Symmetry,
           Verdict,
           domain_class,
           get,
           names,
           options_of,
           puzzle_of,
           with_options,
)

__all__ = ["Domain", "Piece", "PuzzleError", "Solutions", "Symmetry", "Verdict", "domain_class", "get", "names",
           "options_of", "puzzle_of", "with_options"]
