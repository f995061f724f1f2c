"""A puzzle as it fills in, as an SVG that plays by itself: how notebooks show answers and traces."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

from trm_jax import puzzles
from trm_jax.puzzles.drawing import Drawing, drawing, used

CELL, TITLE = 26, 24  # pixels
MOST_FRAMES = 32
SECONDS, LAST = 0.4, 8  # a frame stays so long; the last one so many times that
INK, FILLED, WRONG, CHANGED, FAINT = "#111111", "#0b6cb8", "#c8202f", "#fff0b3", "#e4e4e4"


def figure(domain: puzzles.Domain, inputs: np.ndarray, frames: np.ndarray, titles: Sequence[str]) -> str:
    """HTML of the grids frames [n, S] one after the other, over and over, each under its title.

    Black: what inputs [S] have already; yellow: changed since the frame before; red: breaks a rule, where the domain
    can tell.
    """
    drawn = drawing(domain)
    rows, columns = used(drawn, np.concatenate([inputs[None], frames]))
    width, height = CELL * columns + 2, CELL * rows + TITLE + 2
    wrong = domain.faults(inputs, frames) if domain.marks_faults else np.zeros(frames.shape, bool)
    changed = np.concatenate([np.zeros((1, frames.shape[1]), bool), frames[1:] != frames[:-1]])
    length, groups = len(frames) - 1 + LAST, []
    for n, (frame, title) in enumerate(zip(frames, titles)):
        cells = [_cell(drawn, int(frame[s]), row, column, INK if frame[s] == inputs[s] else
                       WRONG if wrong[n, s] else FILLED, bool(changed[n, s]))
                 for row in range(rows) for column in range(columns) for s in [row * drawn.columns + column]]
        end = (n + 1) / length if n + 1 < len(frames) else 1
        turn = "" if len(frames) == 1 else (
            f'<animate attributeName="display" values="none;inline;none" keyTimes="0;{n / length:.4f};{end:.4f}" '
            f'calcMode="discrete" dur="{SECONDS * length:g}s" repeatCount="indefinite"/>')
        under = f'<text x="1" y="{height - 7}" text-anchor="start" font-size="13">{html.escape(title)}</text>'
        groups.append(f'<g display="{"inline" if n + 1 == len(frames) else "none"}">{turn}{"".join(cells)}{under}</g>')
    down, across = domain.boxes
    lines = [(0, y, columns, y, y % down == 0 or y == rows) for y in range(rows + 1)] + [
        (x, 0, x, rows, x % across == 0 or x == columns) for x in range(columns + 1)]
    ruled = "".join(f'<path d="M{CELL * a + 1} {CELL * b + 1}L{CELL * c + 1} {CELL * d + 1}" '
                    f'stroke="{INK if thick else FAINT}"/>' for a, b, c, d, thick in sorted(lines, key=lambda x: x[4]))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{max(width, 330)}" height="{height}" text-anchor="middle" '
            f'font-family="sans-serif" font-size="15" fill="{INK}"><rect width="100%" height="100%" fill="white"/>'
            f'{"".join(groups)}{ruled}</svg>')


def _cell(drawn: Drawing, token: int, row: int, column: int, colour: str, changed: bool) -> str:
    x, y, shape = CELL * column + 1, CELL * row + 1, drawn.shapes[token]

    def square(fill: str, margin: int = 0) -> str:
        return (f'<rect x="{x + margin}" y="{y + margin}" width="{CELL - 2 * margin}" height="{CELL - 2 * margin}" '
                f'fill="{fill}"/>')
    cell = square(CHANGED) if changed and not shape.startswith("#") else ""
    if shape in ("wall", "path") or shape.startswith("#"):
        return cell + square(shape if shape.startswith("#") else colour, 6 if shape == "path" else 0)
    text = "" if shape else drawn.characters[token]
    return cell + (text and f'<text x="{x + CELL // 2}" y="{y + 18}" fill="{colour}">{html.escape(text)}</text>')


def film(domain: puzzles.Domain, inputs: np.ndarray, tokens: np.ndarray, stands_since: int, unit: str) -> str:
    """The puzzle, then the answers tokens [n, S] up to the last change, or some of them."""
    cycles = np.unique(np.geomspace(1, stands_since, min(MOST_FRAMES, stands_since)).round().astype(int))
    return figure(domain, inputs, np.concatenate([inputs[None], tokens[cycles - 1]]),
                  ["the puzzle", *(f"{cycle} {unit}" for cycle in cycles)])
