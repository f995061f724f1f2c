"""How a domain's cells are drawn, whatever draws them: matplotlib, a page, a notebook."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from trm_jax.puzzles.domain import Domain


class Drawing(NamedTuple):
    """How a domain's cells are drawn."""

    rows: int
    columns: int
    box: tuple[int, int]  # rows, columns between two thick lines
    characters: tuple[str, ...]  # of the tokens; a blank has none
    shapes: tuple[str, ...]  # of the tokens, see Domain.drawn_as: "" has none, and its character is drawn


def drawing(domain: Domain) -> Drawing:
    rows, columns = domain.grid
    characters, shapes = ["?"] * domain.vocab_size, [""] * domain.vocab_size
    for character, token in reversed(domain.symbols.items()):  # the first of several counts
        characters[token] = "" if character in ". " else character
    for token, shape in domain.drawn_as.items():
        shapes[token] = shape
    box = domain.boxes
    return Drawing(rows, columns, box, tuple(characters), tuple(shapes))


def used(drawn: Drawing, frames: np.ndarray) -> tuple[int, int]:
    """(rows, columns) to show of frames [..., S]: all, but of a canvas that grids need not fill what any of them uses.
    """
    if "end" not in drawn.shapes:
        return drawn.rows, drawn.columns
    filled: Any = np.array([shape != "empty" for shape in drawn.shapes])[frames]
    filled = filled.reshape(-1, drawn.rows, drawn.columns).any(axis=0)
    rows, columns = (np.flatnonzero(some).max(initial=0) + 1 for some in (filled.any(axis=1), filled.any(axis=0)))
    return int(rows), int(columns)
