"""ARC-AGI: grids on a canvas of tokens, the symmetries of a task and the names that carry their inverse.

A grid is uint8 [rows, cols], 1 to 30 each, of colours 0..9. On the canvas, 30 x 30 cells read row by row: 0 pad, 1 end
of grid (along the row below and the column right of the grid, where there is room; not in their corner), colour c is
c + 2.

A symmetry of a task is a permutation of the colours 1..9 (0 stays), then one of the square, numbered as published:
0 to 3 turn left by as many quarters, 4 mirrors left and right, 5 up and down, 6 transposes, 7 transposes along the
other diagonal. Task ID under it is called `ID|||tK|||0...`: transform K, then what the colours 0 to 9 become.

Shapes: B grids, S = 900 cells, V = 12.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from trm_jax.puzzles import Domain, Piece, PuzzleError

SIDE = 30
PAD, END, FIRST_COLOUR = 0, 1, 2
COLOURS = 10
VOCAB = FIRST_COLOUR + COLOURS
SEPARATOR = "|||"
INVERSE_DIHEDRAL = (0, 3, 2, 1, 4, 5, 6, 7)
_TRANSFORM = re.compile(r"t[0-7]")


# Grids.


def read_grid(value: Any) -> np.ndarray:
    """A grid as JSON has it -> [rows, cols] uint8; PuzzleError says what is wrong with it."""
    if not isinstance(value, list) or not value or not all(isinstance(row, list) for row in value):
        raise PuzzleError("is no grid: a list of rows, each a list of colours 0..9")
    rows, cols = len(value), len(value[0])
    for r, row in enumerate(value):
        if len(row) != cols:
            raise PuzzleError(f"is ragged: row 1 has {cols} cells, row {r + 1} has {len(row)}")
    if not (1 <= rows <= SIDE and 1 <= cols <= SIDE):
        raise PuzzleError(f"has {rows} rows and {cols} columns, each must be 1..{SIDE}")
    for r, row in enumerate(value):
        for c, colour in enumerate(row):
            if type(colour) is not int or not 0 <= colour < COLOURS:
                raise PuzzleError(f"has {colour!r} in row {r + 1}, column {c + 1}; a colour is an integer 0..9")
    return np.array(value, np.uint8)


def of_examples(task: Any) -> Any:
    """A task that has nothing but {"examples": [[input, output], ...]}, as BARC's lines, with its last example as the
    one that is asked; all else as it is."""
    examples = task.get("examples") if isinstance(task, Mapping) and not {"train", "test"} & task.keys() else None
    pairs = [pair_of(example) for example in examples] if isinstance(examples, list) else []
    if not pairs or None in pairs:
        return task
    return {**{name: value for name, value in task.items() if name != "examples"}, "train": pairs[:-1],
            "test": pairs[-1:]}


def pair_of(value: Any) -> dict[str, Any] | None:
    """[input, output] or {"input": ..., "output": ...} as the latter; None where it is none."""
    if isinstance(value, Mapping):
        return dict(value) if "input" in value and "output" in value else None
    return dict(zip(("input", "output"), value)) if isinstance(value, list) and len(value) == 2 and all(
        isinstance(grid, list) and grid and isinstance(grid[0], list) for grid in value) else None


def check_grid(grid) -> np.ndarray:
    """Any array of a grid as uint8; PuzzleError unless it is one."""
    grid = np.asarray(grid)
    if grid.ndim != 2 or not np.issubdtype(grid.dtype, np.integer):
        raise PuzzleError(f"a grid is an integer array [rows, cols], got {grid.dtype} {list(grid.shape)}")
    if not (1 <= grid.shape[0] <= SIDE and 1 <= grid.shape[1] <= SIDE):
        raise PuzzleError(f"a grid has 1..{SIDE} rows and columns, got {list(grid.shape)}")
    if not 0 <= grid.min() <= grid.max() < COLOURS:
        raise PuzzleError(f"colours lie in 0..9, got {grid.min()}..{grid.max()}")
    return grid.astype(np.uint8)


def grid_key(grid: np.ndarray) -> bytes:
    """Equal for equal grids and only for them: the shape, then the colours. Hashable, and `grid_of` reads it back."""
    return bytes(grid.shape) + np.ascontiguousarray(grid, np.uint8).tobytes()


def grid_of(key: bytes) -> np.ndarray:
    return np.frombuffer(key, np.uint8, offset=2).reshape(key[0], key[1])


def grid_hash(grid: np.ndarray) -> str:
    """The published hash: SHA-256 of shape and colours."""
    return hashlib.sha256(grid_key(grid)).hexdigest()


# The canvas.


def to_canvas(grid, down: int = 0, right: int = 0) -> np.ndarray:
    """Grid -> tokens [S], its first cell in row `down`, column `right`."""
    grid = check_grid(grid)
    rows, cols = grid.shape
    if not (0 <= down <= SIDE - rows and 0 <= right <= SIDE - cols):
        raise PuzzleError(f"a grid of {rows} x {cols} cannot lie {down} down and {right} right on {SIDE} x {SIDE}")
    canvas = np.full((SIDE, SIDE), PAD, np.uint8)
    canvas[down:down + rows, right:right + cols] = grid + FIRST_COLOUR
    canvas[down + rows:down + rows + 1, right:right + cols] = END
    canvas[down:down + rows, right + cols:right + cols + 1] = END
    return canvas.reshape(-1)


def crop_sizes(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [B, S] -> (rows [B], cols [B]) of the largest rectangle of colours that starts in the first cell.

    Among equally large ones it is the one with fewest rows; (0, 0) where the first cell is no colour.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or tokens.shape[1] != SIDE * SIDE:
        raise PuzzleError(f"expected tokens [B, {SIDE * SIDE}], got {list(tokens.shape)}")
    colour = ((tokens >= FIRST_COLOUR) & (tokens < VOCAB)).reshape(-1, SIDE, SIDE)
    runs = np.logical_and.accumulate(colour, axis=2).sum(axis=2)
    widths = np.minimum.accumulate(runs, axis=1)  # [B, rows] of the widest rectangle of so many rows
    areas = widths * np.arange(1, SIDE + 1)
    best = areas.argmax(axis=1)
    cols = np.take_along_axis(widths, best[:, None], axis=1)[:, 0]
    return np.where(cols > 0, best + 1, 0), cols


def crops(tokens: np.ndarray) -> list[np.ndarray]:
    """Tokens [B, S] -> B grids, cropped as the published evaluator does; 0 x 0 where there is nothing to crop."""
    tokens = np.asarray(tokens)
    rows, cols = crop_sizes(tokens)
    colours = (tokens - FIRST_COLOUR).astype(np.uint8).reshape(-1, SIDE, SIDE)
    return [grid[:r, :c] for grid, r, c in zip(colours, rows.tolist(), cols.tolist())]


def crop(tokens: np.ndarray) -> np.ndarray:
    """Tokens [S] -> one grid."""
    return crops(np.asarray(tokens)[None])[0]


# Symmetries.


def dihedral(grid: np.ndarray, transform: int) -> np.ndarray:
    """A view of the grid under the transform 0..7."""
    match transform:
        case 0 | 1 | 2 | 3:
            return np.rot90(grid, transform)
        case 4:
            return np.fliplr(grid)
        case 5:
            return np.flipud(grid)
        case 6:
            return grid.T
        case 7:
            return np.fliplr(np.rot90(grid))
    raise PuzzleError(f"transforms are 0..7, got {transform}")


class Augmentation(NamedTuple):
    """A symmetry of a task."""

    transform: int = 0
    colours: tuple[int, ...] = tuple(range(COLOURS))  # colour c becomes colours[c]

    def apply(self, grid: np.ndarray) -> np.ndarray:
        return dihedral(np.array(self.colours, np.uint8)[grid], self.transform)

    def undo(self, grid: np.ndarray) -> np.ndarray:
        back = np.empty(COLOURS, np.uint8)
        back[list(self.colours)] = range(COLOURS)
        return back[dihedral(grid, INVERSE_DIHEDRAL[self.transform])]

    def name(self, task: str) -> str:
        return f"{task}{SEPARATOR}t{self.transform}{SEPARATOR}{''.join(map(str, self.colours))}"


IDENTITY = Augmentation()


def parse_name(name: str) -> tuple[str, Augmentation]:
    """Identifier -> (task ID, its symmetry); a bare ID is the task as it is."""
    task, *how = name.split(SEPARATOR)
    if not how:
        return task, IDENTITY
    if task and len(how) == 2 and _TRANSFORM.fullmatch(how[0]) and how[1][:1] == "0" and sorted(how[1]) == list(
            "0123456789"):
        return task, Augmentation(int(how[0][1]), tuple(map(int, how[1])))
    raise PuzzleError(f"identifier {name!r} is not ID, nor ID{SEPARATOR}tK{SEPARATOR}0... with K 0..7 and a "
                      "permutation of the colours that keeps 0")


def draw(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` uniform symmetries: transforms [count], colour maps [count, 10]."""
    transforms = rng.integers(8, size=count)
    colours = np.zeros((count, COLOURS), np.uint8)
    colours[:, 1:] = rng.permuted(np.tile(np.arange(1, COLOURS, dtype=np.uint8), (count, 1)), axis=1)
    return transforms, colours


Pair = tuple[np.ndarray, np.ndarray]  # input and output grid

RETRIES = 5  # symmetries drawn for one that is kept, at most, as published
_BLOCK = 256
_HASH = np.random.default_rng(20190327).integers(1, 1 << 64, (2, SIDE, SIDE), np.uint64)


def distinct_symmetries(pairs: list[Pair], count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The identity and up to `count` symmetries under which the task looks different each time, in the order drawn.

    Two look alike if they make the same pairs, in any order. That is told by a 64-bit hash that is linear in the
    colours of a pair, so that no grid need be transformed: sum over cells of (colour + 1) * a random number.

    Returns transforms [K] and colour maps [K, 10], K <= 1 + count: a task of few colours has few of them.
    """
    sums = np.zeros((8, len(pairs), COLOURS), np.uint64)  # of the random numbers under the cells of each colour
    for k in range(8):
        for p, pair in enumerate(pairs):
            for side, grid in enumerate(pair):
                turned = dihedral(grid, k)
                numbers = _HASH[side, :turned.shape[0], :turned.shape[1]]
                sums[k, p] += np.array([numbers[turned == colour].sum() for colour in range(COLOURS)], np.uint64)

    def hashes(transforms, colours):  # [B]
        values = (colours.astype(np.uint64) + np.uint64(1))[:, None, :]
        return _mix((values * sums[transforms]).sum(axis=2)).sum(axis=1)

    transforms, colours = np.zeros(1, np.int64), np.arange(COLOURS, dtype=np.uint8)[None]
    seen, kept = set(hashes(transforms, colours).tolist()), [(transforms, colours)]
    tries = RETRIES * count
    while tries > 0 and len(seen) <= count:
        transforms, colours = (drawn[:tries] for drawn in draw(rng, _BLOCK))
        tries -= _BLOCK
        fresh = [i for i, h in enumerate(hashes(transforms, colours).tolist()) if not (h in seen or seen.add(h))]
        kept.append((transforms[fresh], colours[fresh]))
    transforms, colours = map(np.concatenate, zip(*kept, strict=True))
    return transforms[:1 + count], colours[:1 + count]


def _mix(h: np.ndarray) -> np.ndarray:
    """SplitMix64's finish: sums of hashes of pairs are then no longer sums of cells."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def canvases(pairs: list[Pair], transforms: np.ndarray, colours: np.ndarray,
             rng: np.random.Generator | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Every pair under K symmetries: (inputs, labels), tokens [K, number of pairs, S] each.

    With `rng` input and output are moved together, to a place drawn uniformly from those where both fit on the canvas;
    but one pair of each symmetry, drawn at random, stays where it is.
    """
    K, E = len(transforms), len(pairs)
    relabel = np.zeros((K, VOCAB), np.uint8)
    relabel[:, END] = END
    relabel[:, FIRST_COLOUR:] = colours + FIRST_COLOUR
    if rng is not None:
        draws = rng.random((2, K, E))
        draws[:, np.arange(K), rng.integers(E, size=K)] = 0
    out = np.zeros((2, K, E, SIDE + 1, SIDE + 1), np.uint8)  # a row and a column more, for ends that find no room
    for transform in range(8):
        rows = np.flatnonzero(transforms == transform)
        if not len(rows):
            continue
        for e, pair in enumerate(pairs):
            turned = [dihedral(grid, transform) for grid in pair]
            down = right = np.zeros(len(rows), np.int64)
            if rng is not None:
                room = SIDE + 1 - np.max([grid.shape for grid in turned], axis=0)
                down, right = (draws[:, rows, e] * room[:, None]).astype(np.int64)
            for side, grid in enumerate(turned):
                r, c = grid.shape
                block = np.full((r + 1, c + 1), END, np.uint8)
                block[:r, :c] = grid + FIRST_COLOUR
                block[r, c] = PAD
                at = (rows[:, None, None], e, down[:, None, None] + np.arange(r + 1)[:, None],
                      right[:, None, None] + np.arange(c + 1))
                out[side][at] = relabel[rows][:, block]
    inputs, labels = out[..., :SIDE, :SIDE].reshape(2, K, E, SIDE * SIDE)
    return inputs, labels


# Pictures.

PALETTE = ("#000000", "#1e93ff", "#f93c31", "#4fcc30", "#ffdc00", "#999999", "#e53aa3", "#ff851b", "#87d8f1", "#921231")


def wrong_cells(grid: np.ndarray, target: np.ndarray | None) -> np.ndarray:
    """[rows, cols] bool: where the grid is not the target, which may be of another size; None: nowhere."""
    wrong = np.full(grid.shape, target is not None)
    if target is not None:
        rows, cols = map(min, grid.shape, target.shape)
        wrong[:rows, :cols] = grid[:rows, :cols] != target[:rows, :cols]
    return wrong


def render(grid: np.ndarray, target: np.ndarray | None = None, color: bool = False) -> str:
    """A picture for the terminal, two characters a cell: its colour's digit, after a `!` where it is not the target's.

    With color the cells are painted, and a digit is shown only where it is wrong.
    """
    if not grid.size:
        return "(no grid)"

    def cell(colour, wrong):
        if not color:
            return f"{'!' if wrong else ' '}{colour}"
        red, green, blue = bytes.fromhex(PALETTE[colour][1:])
        ink = "30" if red + green + blue > 330 else "97"
        return f"\x1b[{ink};48;2;{red};{green};{blue}m{f'!{colour}' if wrong else '  '}\x1b[0m"

    return "\n".join("".join(map(cell, *row)) for row in zip(grid.tolist(), wrong_cells(grid, target).tolist()))


def render_row(grids: dict[str, np.ndarray], target: np.ndarray | None = None, marked: str = "prediction",
               color: bool = False) -> str:
    """Grids side by side under their titles; the one called `marked` is compared with the target."""
    columns = []
    for title, grid in grids.items():
        width = max(len(title), 2 * grid.shape[1] if grid.size else len("(no grid)"))
        lines = render(grid, target if title == marked else None, color).split("\n")
        drawn = 2 * grid.shape[1] if grid.size else len("(no grid)")
        columns.append([title.ljust(width)] + [line + " " * (width - drawn) for line in lines] + [" " * width] * (
            max(g.shape[0] if g.size else 1 for g in grids.values()) - len(lines)))
    return "\n".join("   ".join(row).rstrip() for row in zip(*columns))


# The domain.


@dataclasses.dataclass(frozen=True)
class Arc(Domain):
    """What the other rooms ask of a domain, so far as ARC has it: no rules to verify an answer by."""

    name = "arc"
    best_metric = "pass@2"
    identifies_tasks = True
    clues_called = "given"
    no_symmetries = ("has its symmetries in the dataset folder, as puzzles with identifiers of their own; python -m "
                     "trm_jax.data arc --num_aug says how many")
    seq_len = SIDE * SIDE  # pyright: ignore[reportAssignmentType]
    vocab_size = VOCAB  # pyright: ignore[reportAssignmentType]
    grid = (SIDE, SIDE)  # pyright: ignore[reportAssignmentType]
    symbols = {"0123456789"[c]: FIRST_COLOUR + c for c in range(COLOURS)}  # pyright: ignore[reportAssignmentType]
    drawn_as = {PAD: "empty", END: "end"} | {FIRST_COLOUR + c: colour for c, colour in enumerate(PALETTE)}

    @property
    def title(self) -> str:
        return "ARC tasks"

    @classmethod
    def recognised(cls, value: Any) -> str:
        if isinstance(value, Mapping) and ("test" in value or "train" in value):
            return "an ARC task"
        if isinstance(value, Mapping) and value and all(isinstance(task, Mapping) and "train" in task
                                                        for task in value.values()):
            return "ARC tasks"
        return ""

    def is_one(self, value: list) -> bool:
        return False  # a list is one of tasks

    def split(self, text: str) -> list[Piece]:
        """A task is JSON, so no text is one: the text is kept whole, and a message can say what else it is."""
        return [Piece(text, 1, 1)] if text.strip() else []

    def encode(self, text: str) -> np.ndarray:
        """Rows of digits, one a line -> tokens [S], untranslated."""
        lines = [line.replace(" ", "") for line in text.strip().splitlines()]
        if odd := sorted(set("".join(lines)) - set(self.symbols)):
            raise PuzzleError(f"an ARC grid is rows of digits 0-9, got {odd[0]!r}")
        return to_canvas(read_grid([[int(c) for c in line] for line in lines]))

    def render(self, tokens: np.ndarray, given: np.ndarray | None = None, changed: np.ndarray | None = None,
               color: bool = False) -> str:
        """The cropped grid, as `render` draws it; what is given or changed is not marked."""
        return render(crop(tokens), color=color)

    def decode(self, tokens: np.ndarray, like: str = "") -> str:
        """Tokens [S] -> the cropped grid as rows of digits; empty where there is nothing to crop."""
        return "\n".join("".join(map(str, row)) for row in crop(tokens).tolist())
