"""Puzzle domains: one object each, numpy only, that knows its vocabulary, rules, symmetries, generator and picture."""

from trm_jax.puzzles.domain import Domain, PuzzleError, Symmetry, Verdict, get, puzzle_of

__all__ = ["Domain", "PuzzleError", "Symmetry", "Verdict", "get", "puzzle_of"]
