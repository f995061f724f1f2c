"""Mazes as people write them: rows of characters, blocks, 0 and 1, rows with start and goal beside them.

Wall: # or a block. Free: a space or a dot. Start: S. Goal: G, or E, or X. Path: o; X where the goal is E or G, as the
package maze-dataset writes it. In a matrix 1 is a wall, 0 is free, and 2 and 3 may be start and goal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from trm_jax.puzzles.domain import PUZZLE_NAMES, Piece, PuzzleError
from trm_jax.puzzles.text import plain_lines

WALLS = "#\u2588\u2593\u2592\u25a0\u25fc\u2b1b"
FREES = " ._\u00b7\u25a1\u25fb\u2b1c"
_CORNERS = frozenset("+\u250c\u2510\u2514\u2518\u250f\u2513\u2517\u251b\u2554\u2557\u255a\u255d") | frozenset(
    map(chr, range(0x256d, 0x2571)))
_LEVEL, _UPRIGHT = frozenset("-\u2500\u2501\u2550"), "|\u2502\u2503\u2551"
GOALS = ("goal", "end", "target", "exit", "finish")


def rows_of(text: str, columns: int) -> list[str]:
    """The lines of one maze, a character a cell: frames removed, doubled and separated cells made single.

    Nothing is stripped of a line of `columns` characters: a space at its end is a cell.
    """
    lines = plain_lines(text.strip("\r\n"))
    lines = lines[0].split("/") if len(lines) == 1 else lines
    lines = _unframed(lines)
    for single in (_doubled, _separated):
        rows = [single(line) for line in lines]
        if len(lines) > 1 and all(row is not None and len(row) == columns for row in rows):
            return [row for row in rows if row is not None]
    return lines


def _unframed(lines: list[str]) -> list[str]:
    framed = [line.strip() for line in lines]
    if len(framed) > 2 and all(line and set(line) <= _CORNERS | _LEVEL for line in (framed[0], framed[-1])):
        return [line.strip(_UPRIGHT) for line in framed[1:-1]]
    return lines


def _doubled(line: str) -> str | None:
    """Of cells that are two characters wide: a space and the cell, or the cell twice."""
    pairs = [line[i:i + 2] for i in range(0, len(line), 2)]
    if len(line) % 2 or len(line) < 2 or not all(len(set(pair) - {" "}) < 2 for pair in pairs):
        return None
    if not all(pair[0] == pair[1] or pair[0] == " " and pair[1] not in "#" for pair in pairs):
        return None
    return "".join(pair[1] if pair[1] != " " else pair[0] for pair in pairs)


def _separated(line: str) -> str | None:
    """Of cells with a comma or a space between."""
    if "\t" in line:
        return line.replace("\t", "") if all(len(cell) == 1 for cell in line.split("\t")) else None
    line = line.strip(" []").replace(", ", ",")
    if len(line) < 3 or len(line) % 2 == 0 or not set(line[1::2]) <= set(", ;\t") or set(line[::2]) & set(" ,"):
        return None
    return line[::2]


def signs(cells: str) -> dict[str, str]:
    """Character -> '#', ' ', 'S', 'G' or 'o', for the characters of one maze."""
    here = set(cells)
    meaning = dict.fromkeys(WALLS, "#") | dict.fromkeys(FREES, " ") | {"o": "o", "0": " "}
    meaning |= dict.fromkeys("Ss" if here & set("Ss") or not here & set("Bb") else "Aa", "S")  # or from A to B
    goal = next((both for both in ("Gg", "Ee", "Ff", "Tt", "Bb") if here & set(both)), None)
    if goal is None and sum(map(cells.count, "Xx")) == 1:
        goal = "Xx"
    meaning |= dict.fromkeys(goal or "G", "G")
    if goal != "Xx":
        meaning |= dict.fromkeys("Xx", "o")
    if not here & set(WALLS):
        meaning["1"] = "#"
        if not here & set("Ss") and cells.count("2") == 1:
            meaning["2"] = "S"
        if goal is None and cells.count("3") == 1:
            meaning["3"] = "G"
    return meaning


def with_ends(value: Mapping[str, Any]) -> list[str] | None:
    """Rows of {"maze": rows, "start": [row, column], "goal": [row, column]}, counted from 0; None: it is none such."""
    name = next((name for name in PUZZLE_NAMES if name in value), None)
    goal = next((name for name in GOALS if name in value), None)
    if name is None or goal is None or "start" not in value:
        return None
    rows = [list(row) for row in list_rows(value[name])]
    for what, sign in (("start", "S"), (goal, "G")):
        at = value[what]
        if not (isinstance(at, (list, tuple)) and len(at) == 2 and all(type(i) is int for i in at)):
            raise PuzzleError(f"{what} must be [row, column], counted from 0, got {at!r:.40}")
        row, column = at
        if not (0 <= row < len(rows) and 0 <= column < len(rows[row])):
            raise PuzzleError(f"{what} {list(at)} is outside of the maze; rows and columns are counted from 0")
        if rows[row][column] in WALLS + "1":
            raise PuzzleError(f"{what} {list(at)} is a wall; rows and columns are counted from 0, and 1 is a wall")
        rows[row][column] = sign
    return ["".join(row) for row in rows]


def list_rows(rows: Any) -> list[str]:
    """Rows of a maze as JSON or Python has them, a character a cell."""
    if isinstance(rows, str):
        return plain_lines(rows.strip("\r\n"))
    if not isinstance(rows, (list, tuple, np.ndarray)):
        raise PuzzleError(f"a maze is a text or a list of rows, got {type(rows).__name__}")
    texts = []
    for row in rows:
        if isinstance(row, (list, tuple, np.ndarray)):
            row = "".join(" " if cell in ("", None) else str(int(cell)) if isinstance(cell, bool) else str(cell)
                          for cell in row)
        texts.append(str(row))
    return texts


def sizes(lines: list[str]) -> list[tuple[int, int]]:
    """Rows and columns that a maze in these lines may have, the likeliest first."""
    lines = _unframed(lines)
    high, wide = len(lines), len(lines[0]) if lines else 0
    if high == 1:
        side = math.isqrt(wide)
        return [(side, side)] if side * side == wide else []
    single = [[one(line) for line in lines] for one in (_doubled, _separated)]
    return [*((high, len(rows[0] or "")) for rows in single if rows and None not in rows), (high, wide)]


def split_any(text: str) -> list[Piece]:
    """The mazes of a text, of any size: with empty lines between, or one a line if each line has a start and a goal."""
    pieces: list[Piece] = []
    begun: list[tuple[int, str]] = []
    lines = [*plain_lines(text), "", ""]
    for number, line in enumerate(lines[:-1], 1):
        line = "" if _is_talk(line) else line
        whole = sum(map(line.count, "Ss")) == 1 and ("/" in line or len(sizes([line])) == 1 and len(line) > 15) and any(
            line.count(goal) == 1 for goal in "GgEeXx")
        beside = begun[-1][1] if begun else lines[number]
        if begun and (whole or not line.strip() and len(line) != len(beside)):
            pieces.append(Piece("\n".join(row for _, row in begun), begun[0][0], begun[-1][0]))
            begun.clear()
        if whole:
            pieces.append(Piece(line, number, number))
        elif line.strip() or line and len(line) == len(beside):  # a row of spaces is one of free cells
            begun.append((number, line))
    return pieces


def _is_talk(line: str) -> bool:
    """Whether a line is about a maze, rather than of one: mostly letters, not only those that stand for cells, or the
    fence of a block of code."""
    signs = line.replace(" ", "")
    letters = list(filter(str.isalpha, signs))
    return signs.startswith(("```", "//")) or (
        len(letters) * 2 > len(signs) and len(set(letters)) > 2 and not set(letters) <= set("SsGgEeXxo"))


def split_mazes(text: str, rows: int, columns: int) -> list[Piece]:
    """The mazes of a text: one a line, or so many lines each; empty lines may stand between."""
    pieces: list[Piece] = []
    begun: list[tuple[int, str]] = []

    def finish() -> None:
        if begun:
            pieces.append(Piece("\n".join(line for _, line in begun), begun[0][0], begun[-1][0]))
            begun.clear()
    for number, line in enumerate(plain_lines(text), 1):
        drawn = set(line.strip()) <= _CORNERS | _LEVEL
        if _is_talk(line):
            finish()
        elif not line or not line.strip() and len(line) not in (columns, 2 * columns):
            finish()
        elif drawn and line.strip():
            opened = any(set(text.strip()) <= _CORNERS | _LEVEL for _, text in begun)
            begun.append((number, line))
            if opened:
                finish()
        elif len(line) == rows * columns and rows > 1:
            finish()
            pieces.append(Piece(line, number, number))
        else:
            begun.append((number, line))
            if len(begun) == rows and not any(set(text.strip()) <= _CORNERS | _LEVEL for _, text in begun):
                finish()
    finish()
    return pieces
