"""How an answer came about, as grids of text beside each other."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from trm_jax import puzzles
from trm_jax.inference.solver import Trace

MAX_FRAMES = 11  # of a film strip, besides the puzzle: four rows of three
_STYLE = re.compile(r"\x1b\[([\d;]*)m")


def conflicts(domain: puzzles.Domain, tokens: np.ndarray) -> list[str]:
    """What contradicts what in an answer [S], in words, of a domain whose cells can (a maze's cannot)."""
    try:
        return domain.conflicts(tokens)
    except puzzles.PuzzleError:  # holds what no puzzle can
        return []


def shown_cycles(last: int, most: int = MAX_FRAMES) -> list[int]:
    """Which of the cycles 1 .. last to show: 1, 2, 3, 4, 6, 8, then doubling, then the last one; at most `most`."""
    cycles = [c for c in [1, 2, 3, 4, 6, *(8 << k for k in range(last.bit_length()))] if c < last] + [last]
    if len(cycles) > most:
        cycles = [cycles[i] for i in np.linspace(0, len(cycles) - 1, most).round().astype(int)]
    return cycles


def frames(domain: puzzles.Domain, trace: Trace, color: bool) -> list[str]:
    """The puzzle, then the answer after some of the cycles up to the last change, each under a title of two lines."""
    asked = trace.inputs if trace.asked is None else trace.asked
    guesses = int((asked != trace.inputs).sum())
    below = f"and {guesses} guess{'es' * (guesses > 1)}" if guesses else ""
    pictures = [_picture("the puzzle", below, domain.render(asked, given=trace.inputs, color=color))]
    previous = asked
    for cycle in shown_cycles(trace.stands_since):
        tokens = trace.tokens[cycle - 1]
        changed = tokens != previous
        drawn = domain.render(tokens, given=trace.inputs, changed=changed, color=True)
        if not domain.has_rules:
            verdict = ""
        elif domain.verify(trace.inputs[None], tokens[None]).solved[0]:
            verdict = ", verified"
        elif (found := len(conflicts(domain, tokens))):
            verdict = f", {found} clash{'es' * (found > 1)}"
        else:
            verdict = ", not solved"
        pictures.append(_picture(f"cycle {cycle}", f"{changed.sum()} changed{verdict}",
                                 drawn if color else _plain(drawn)))
        previous = tokens
    return pictures


def side_by_side(pictures: Sequence[str], columns: int) -> str:
    """Rows of as many pictures as fit into `columns` characters, at least one."""
    blocks = [picture.splitlines() for picture in pictures]
    width = max((_width(line) for block in blocks for line in block), default=0)
    per_row = max(1, (columns + 3) // (width + 3))
    rows = []
    for first in range(0, len(blocks), per_row):
        row = blocks[first:first + per_row]
        height = max(map(len, row))
        padded = [block + [""] * (height - len(block)) for block in row]
        rows.append("\n".join("   ".join(line + " " * (width - _width(line)) for line in lines).rstrip()
                              for lines in zip(*padded)))
    return "\n\n".join(rows)


def _picture(title: str, below: str, drawn: str) -> str:
    return f" {title}\n {below}\n{drawn}"


def _width(text: str) -> int:
    return len(_STYLE.sub("", text))


def _plain(drawn: str) -> str:
    """Without escape codes; a cell with a background gets a '*' in the space before it."""
    plain, background = [], False
    for i, piece in enumerate(_STYLE.split(drawn)):
        if i % 2:  # the codes between the pieces of text
            background = any(code.startswith("4") and len(code) == 2 for code in piece.split(";")) \
                or background and piece not in ("", "0")
        elif piece:
            if background and plain and plain[-1].endswith(" "):
                plain[-1] = plain[-1][:-1] + "*"
            plain.append(piece)
    return "".join(plain)
