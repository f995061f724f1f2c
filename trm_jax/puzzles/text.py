"""Texts of grids as people write them: frames, separators, blanks, comments, and several puzzles in one text.

A text is read as whatever gives the right number of cells, the plainest reading first; where none does, the error says
how it was read. Nothing is guessed beyond that.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import re
import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from trm_jax.puzzles.domain import PUZZLE_NAMES, SOLUTION_NAMES, Piece, PuzzleError

DIGITS = "123456789ABCDEFG"
BLANKS = ".0*_xX-?"  # what people write for a blank; all but the first two only where the number of cells says so
FRAME = frozenset("|+-=*:!_~/\\'\"`,; \t\u00a0\u00a6[](){}") | frozenset(map(chr, range(0x2500, 0x2580)))
_UPRIGHT = re.compile("[|!\u2502\u2503\u2551\u00a6]")
_ESCAPE = re.compile(r"\x1b\[[\d;]*m")
_SECTION = re.compile(r"\s*\[\s*([A-Za-z][\w ]*)\s*\]\s*")
_COMMENT = re.compile(r"\s*(#|//|;|%)")
_APART = re.compile(r"[\s,;|:=\"']+")
_EMPTY = {"": ".", "nan": ".", "none": ".", "null": "."}
# Signs of the same meaning: digits of full width, and dots; what has no width goes.
_SAME = str.maketrans("".join(map(chr, range(0xff10, 0xff1a))) + "\uff0e\u00b7\u2022\u2219\u25a1\u25a2\u00a0",
                      "0123456789...... ", "\ufeff\u200b\u200c\u200d\u2060")


def plain_lines(text: str) -> list[str]:
    """Lines without what terminals and other systems leave in them."""
    text = _ESCAPE.sub("", text).translate(_SAME).replace("\r\n", "\n").replace("\r", "\n")
    return (text if "\n" in text else text.replace("\\n", "\n")).split("\n")


def is_frame(line: str) -> bool:
    """Whether a line is drawn, and holds no cell."""
    return set(line) <= (FRAME | {"."} if "---" in line and line.count(".") < 6 else FRAME)


def _is_spaced(line: str, side: int) -> bool:
    """Whether a line is a row whose blanks are spaces; there may be upright strokes between."""
    cells = _UPRIGHT.sub("", line)
    return len(cells) == side and set(cells) <= _known(side) | {" "} and (cells != line or bool(line.strip()))


def framed(rows: Sequence[str], width: int) -> str:
    """Rows of that width, without what a terminal does not show, in a frame."""
    ruler = "\u2500" * width
    return "\n".join([f"\u250c{ruler}\u2510", *(f"\u2502{row}\u2502" for row in rows), f"\u2514{ruler}\u2518"])


def painted(symbol: str, given: Any, filled: Any, changed: Any) -> str:
    """A cell for a terminal with colours: bold if `given`, else cyan if `filled`, and marked if `changed`."""
    style = ("\x1b[1m" if given else "\x1b[36m" if filled else "") + ("\x1b[30;43m" if changed else "")
    return f"{style}{symbol}\x1b[0m" if style else symbol


def split_rows(text: str, is_whole: Callable[[str], bool]) -> list[Piece]:
    """The grids of a text whose rows are lines: a blank line or the end of a frame ends one; a line that `is_whole` is
    a grid by itself."""
    pieces: list[Piece] = []
    rows: list[tuple[int, str]] = []

    def finish() -> None:
        if rows:
            pieces.append(Piece("\n".join(line for _, line in rows), rows[0][0], rows[-1][0]))
            rows.clear()
    for number, line in enumerate(plain_lines(text), 1):
        if "\u250c" in line or not line.strip() or is_whole(line):
            finish()
        if is_whole(line):
            pieces.append(Piece(line, number, number))
        elif line.strip():
            rows.append((number, line))
        if "\u2514" in line:
            finish()
    finish()
    return pieces


def _evened(line: str, side: int) -> str:
    """A row whose blanks are spaces, or nothing at all between separators, or whose cells are numbers such as 3.0, with
    one word a cell; other lines as they are."""
    barred, signs = _UPRIGHT.sub("|", line), _known(side) | set(BLANKS) | set(map(str, range(10, side + 1)))
    for sign in ",;\t|":
        cells = [cell.strip(" \"'[]{}()").lower().removesuffix(".0") for cell in barred.split(sign)]
        cells = cells[1:] if sign == "|" and len(cells) > side and not cells[0] else cells
        cells = cells[:-1] if len(cells) > side and not cells[-1] else cells
        cells = [_EMPTY.get(cell, cell) for cell in cells]
        if len(cells) == side and set(cells) <= signs and set(cells) & _known(side):
            return " ".join(cells)
    spread = re.sub(r"^ ?\| | \| ?$", "", barred).replace(" | ", " ")
    spread = spread[1:] if len(spread) == 2 * side and spread[0] == " " else spread
    cells = spread[::2]
    if len(spread) == 2 * side - 1 and not spread[1::2].strip() and set(cells) <= signs | {" "} and cells.strip():
        return " ".join(cells.replace(" ", "."))
    return line


# One grid of digits.


def alphabets(side: int) -> list[str]:
    """The digits 1 .. side in order, as they may be written: 1-9; from 10 on 1-G, 0-F (whose 0 stands for the last,
    so that all others agree with 1-G) or A-P."""
    return [DIGITS[:side]] + ([DIGITS[:side - 1] + "0", string.ascii_uppercase[:side]] if side > 9 else [])


def digit_cells(text: str, side: int) -> tuple[list[int], str]:
    """A text of one grid of side x side digits: (cells, 0 for a blank; the alphabet that it is written in).

    Raises:
      PuzzleError: no reading has the right number of cells, or more than one alphabet would do.
    """
    lines = [_evened(line, side) for line in plain_lines(text) if line.strip()]
    if side > 9 and (numbers := _numbers(lines, side)):
        return numbers, alphabets(side)[0]
    cells = next((found for found in _readings(lines, side) if len(found) == side * side), None)
    if cells is None:
        raise PuzzleError(_what_is_wrong(text, lines, side))
    alphabet = _alphabet_of(cells, side)
    values = {c: i for i, c in enumerate(alphabet, 1)}
    return [values.get(c.upper(), 0) for c in cells], alphabet


@functools.cache
def _known(side: int) -> frozenset[str]:
    """What is a cell without any doubt."""
    upper = set("".join(alphabets(side)))
    return frozenset(upper | {c.lower() for c in upper} | {".", "0"})


def _readings(lines: list[str], side: int) -> Iterator[list[str]]:
    """Cells, in the order of how plain it is to read them so."""
    known = _known(side)
    cells = set("".join(line for line in lines if not is_frame(line)))
    unsure = [b for b in BLANKS[2:] if b in cells and b not in known]
    for blanks in [[], *([b] for b in unsure), unsure]:
        signs = known | set(blanks)
        for drawn in (True, False):  # whether a line of nothing but blanks is a drawn one
            kept = [line for line in lines if not is_frame(line) or not drawn and set(line) <= {*blanks, " "}]
            if all(c in signs or c in FRAME for line in kept for c in line):
                yield [c for line in kept for c in line if c in signs]
    spaced = [_UPRIGHT.sub("", line) for line in lines if not is_frame(line) or _is_spaced(line, side)]
    if set("".join(spaced)) <= known | {" "} and len({len(line) for line in spaced}) == 1:
        yield list("".join(spaced))


def _numbers(lines: list[str], side: int) -> list[int]:
    """Cells written as numbers apart from each other, some of them of two digits; [] where they are not."""
    words = _words(" ".join(line for line in lines if not is_frame(line)))
    if len(words) != side * side or not all(word in BLANKS or int(word) <= side for word in words):
        return []
    return [0 if word in BLANKS else int(word) for word in words]


def _alphabet_of(cells: list[str], side: int) -> str:
    plain, *others = alphabets(side)
    if not others:
        return plain
    zero, letters = others
    used = {c.upper() for c in cells if c.isalnum() and c not in "xX"} - {"0"}
    blank_too = any(not c.isalnum() or c in "xX" for c in cells)
    if used - set(plain):
        if used <= set(letters):
            return letters
        raise PuzzleError(f"the digits {''.join(sorted(used))} are of no alphabet of {side}: 1-{plain[-1]}, "
                          f"0-{plain[-2]} or A-{letters[-1]}")
    if used and used <= set(letters):
        raise PuzzleError(f"only letters up to {max(used)} occur: 1-{plain[-1]}, 0-{plain[-2]} and A-{letters[-1]} "
                          "are all possible; write the cells as numbers with spaces between")
    if "0" not in cells or plain[-1] in used:
        return plain
    complete = all(cells.count(c) == side for c in zero)
    return zero if blank_too or complete else plain


def _what_is_wrong(text: str, lines: list[str], side: int) -> str:
    known, size = _known(side), f"{side}x{side}"
    for row, line in enumerate(lines, 1):
        for col, c in enumerate(line, 1):
            if c not in known and c not in FRAME and c not in BLANKS:
                where = f"line {row}, column {col}" if len(lines) > 1 else f"position {col}"
                return (f"unknown character {c!r} at {where}: a cell is one of {DIGITS[:side]}, or '.' or '0' for a "
                        "blank")
    count = len(next(_readings(lines, side), []))
    rows = [line for line in lines if not is_frame(line) or set(line) & known]
    how = f" in {len(rows)} lines" if len(rows) > 1 else ""
    return (f"got {count} cells{how}, expected {side * side} ({size}): write them on one line, or as {side} lines of "
            f"{side}")


# Columns.


@dataclasses.dataclass(frozen=True)
class Columns:
    """What a table's header says: where in a row the puzzle is, and what belongs to it."""

    delimiter: str
    names: tuple[str, ...]
    line: int  # the header's, counted from 1
    puzzle: int
    solution: int | None
    id: int | None
    source: int | None
    rating: int | None

    @classmethod
    def of(cls, lines: Sequence[str]) -> Columns | None:
        """Of the header of a table, in any order, case and separator; None where the first line is no header."""
        for number, line in enumerate(lines, 1):
            if not line.strip() or _COMMENT.match(line):
                continue
            for delimiter in ",;\t|":
                names = tuple(name.strip().strip('"\'').strip().lower() for name in line.split(delimiter))
                if (puzzle := _first(names, PUZZLE_NAMES)) is not None and (len(names) > 1 or _is_long(lines[number:])):
                    return cls(delimiter, names, number, puzzle, _first(names, SOLUTION_NAMES),
                               _first(names, ("id", "task_id", "name", "uid", "key")),
                               _first(names, ("source", "origin", "dataset")),
                               _first(names, ("rating", "difficulty", "level", "score")))
            return None
        return None

    @classmethod
    def unnamed(cls, line: str, cells: int) -> Columns | None:
        """Of a table without a header, by its first line: the first words of so many cells are puzzle and solution."""
        for delimiter in ",;\t| ":
            words = [word.strip().strip("\"'") for word in line.split(delimiter)]
            if found := [i for i, word in enumerate(words) if len(word) == cells]:
                names = tuple({0: "puzzle", 1: "solution"}.get(found.index(i), "") if i in found else ""
                              for i in range(len(words)))
                return cls(delimiter, names, 0, found[0], found[1] if found[1:] else None, None, None, None)
        return None

    def cells(self, line: str) -> list[str]:
        [row] = csv.reader([line], delimiter=self.delimiter, strict=True)
        return row


def _is_long(lines: Sequence[str]) -> bool:
    """Whether the first line that holds something is a word as long as the shortest puzzle."""
    line = next((line.strip() for line in lines if line.strip()), "")
    return len(line) >= 16 and " " not in line


def _first(names: Sequence[str], wanted: Sequence[str]) -> int | None:
    return next((names.index(name) for name in wanted if name in names), None)


# Several grids in one text.


class _Line(NamedTuple):
    number: int
    text: str
    row: bool  # of a grid; else drawn, a whole puzzle, or something else


class _Block(NamedTuple):
    """Lines that follow one another and are rows of grids, drawn lines among them; or one line that is none."""

    lines: list[_Line]
    count: int  # of rows; 0: one line that is no row
    title: bool = False  # it has letters that no cell has, or few cells: the name of what follows, maybe


def split_grids(text: str, side: int) -> list[Piece]:
    """The grids of a text: one a line, with or without something before or after it, or `side` lines each.

    Blank lines and comments end a grid, but that its bands may have blank lines between. What is neither a grid nor a
    row of one is a piece of its own, and so is a grid that has too few rows: reading it fails, with the reason.
    """
    pieces: list[Piece] = []
    bands: list[_Line] = []  # of a grid that has blank lines between its bands
    blocks = _blocks(text, side)
    named: set[int] = set()  # the titles
    for i in range(len(blocks) - 2, -1, -1):
        letters, count = any(map(str.isalpha, blocks[i].lines[0].text)), blocks[i + 1].count
        head = i == 0 and letters and len(blocks[1].lines[0].text) == side * side  # of columns that it does not name
        if blocks[i].title and (head or i + 1 in named or (count if letters else count and count % side == 0)):
            named.add(i)
    for i, block in enumerate(blocks):
        if i in named:
            continue
        if 1 < block.count < side and side % block.count == 0 and _is_band(blocks, i, side):
            bands += block.lines
            if sum(line.row for line in bands) == side:
                pieces.append(_piece(bands))
                bands = []
            continue
        grid: list[_Line] = []
        for line in block.lines:
            grid.append(line)
            if sum(line.row for line in grid) == side:
                pieces.append(_piece(grid))
                grid = []
        if any(line.row for line in grid) or not block.count:
            pieces.append(_piece(grid))
    counted = len(pieces) > 1 and pieces[0].text == str(len(pieces) - 1)  # how many there are, then these
    return pieces[counted:]


def _is_band(blocks: list[_Block], at: int, side: int) -> bool:
    """Whether a block is one of as many equal ones, one after another, as make grids."""
    size, first, last = blocks[at].count, at, at
    while first and blocks[first - 1].count == size:
        first -= 1
    while last + 1 < len(blocks) and blocks[last + 1].count == size:
        last += 1
    return (last - first + 1) * size % side == 0


def _piece(lines: list[_Line]) -> Piece:
    return Piece("\n".join(line.text for line in lines), lines[0].number, lines[-1].number)


def _blocks(text: str, side: int) -> list[_Block]:
    """The lines of a text in their order, comments and blank lines left out."""
    lines, known = [_evened(line, side) for line in plain_lines(text)], _known(side)
    cells = known | set(BLANKS)
    # Signs that drawn lines have too are blanks only if they stand between digits somewhere.
    blanks = {b for b in "*_-" for line in lines
              if b in line and not is_frame(line) and _has(line, side, (side, side * side))}
    blocks: list[_Block] = []
    rows: list[_Line] = []
    skipped = False

    def finish() -> None:
        nonlocal rows
        if count := sum(line.row for line in rows):
            blocks.append(_Block(rows, count))
        rows = []

    for number, line in enumerate(lines, 1):
        section = _SECTION.fullmatch(line)
        if section:
            skipped = section[1].strip().lower() not in ("puzzle", "sudoku", "grid")
        if section or skipped or not line.strip() or _COMMENT.match(line):
            finish()
            continue
        if is_frame(line):
            row = len(line.replace(" ", "")) == side and set(line) <= blanks | {" "} or _is_spaced(line, side)
            rows.append(_Line(number, line, row))
            continue
        line = line.rstrip("\r\n")
        part = uncommented(line)
        word = next((w for w in _APART.split(line) if len(w) == side * side and set(w) <= cells), None)
        whole = word or next((text for text in (part, line) if _has(text, side, (side * side,))), "")
        if whole:
            finish()
            blocks.append(_Block([_Line(number, whole, False)], 0))
        elif _is_row(line, side):
            rows.append(_Line(number, part if _is_row(part, side) else line, True))
        else:
            finish()
            title = any(c.isalpha() and c not in cells for c in line) or sum(map(str.isalnum, line)) < side
            blocks.append(_Block([_Line(number, line.strip(), False)], 0, title))
    finish()
    return blocks


def _has(line: str, side: int, counts: tuple[int, ...]) -> bool:
    """Whether a line can be read as so many cells."""
    return any(len(found) in counts for found in _readings([line], side)) or side > 9 and len(_words(line)) in counts


def _is_row(line: str, side: int) -> bool:
    """Whether a line with digits is a row of a grid."""
    return any(_has(part, side, (side,)) for part in (line, uncommented(line))) or _is_spaced(line, side)


def _words(line: str) -> list[str]:
    """The numbers of a line, some of two digits, and its blanks; [] if it holds something else."""
    words = [word.strip("[](){}") for word in _APART.split(line)]
    words = [word for word in words if word]
    fine = all(word in BLANKS or word.isdecimal() for word in words) and any(len(word) > 1 for word in words)
    return words if fine else []


def uncommented(line: str) -> str:
    return re.split(r"#|//|;|%", line)[0].rstrip()
