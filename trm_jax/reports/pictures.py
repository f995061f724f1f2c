"""Pictures for reports, as PNG or whatever else matplotlib writes (install it with: pip install 'trm_jax[plot]').

    python -m trm_jax plot accuracy --out=accuracy.png runs/seed0 runs/seed1      exact accuracy over depth
    python -m trm_jax plot solve --out=solve.png --workdir=runs/seed0 --example=3  one puzzle as it fills in
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trm_jax import puzzles
from trm_jax.inference import command, solver, text_film
from trm_jax.inference.solver import Solver
from trm_jax.puzzles import arc
from trm_jax.puzzles.drawing import drawing, used
from trm_jax.reports import report
from trm_jax.runtime import arguments
from trm_jax.runtime.errors import UserError, guarded
from trm_jax.runtime.files import write_file

INK, FAINT, GRID, WRONG = "#1a1a1a", "#6b6b6b", "#e4e4e4", "#c8202f"
COLOURS = ("#0b6cb8", "#d1630f", "#2a8a4a", "#8a3fa0", "#b8272d", "#5b6470", "#b8901a")
MARKERS = "os^Dv"  # lines that lie upon each other can be told apart by these
STYLE: Any = {
    "font.size": 11, "axes.edgecolor": FAINT, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": FAINT, "ytick.color": FAINT, "axes.spines.top": False, "axes.spines.right": False,
    "savefig.facecolor": "white", "figure.facecolor": "white"}
PER_ROW = 4  # grids of a strip
MOST_GRIDS = 8
MOST_FRAMES = 60  # of an animation, besides the puzzle
AFTER = 3  # cycles that it shows beyond the last change
FILM_SECONDS = 10
PALETTE_SIZE = 64


class PictureError(UserError):
    """A picture that cannot be drawn; the message says what is missing."""


def accuracy(results: Sequence[report.Result], labels: Sequence[str], from_percent: float = 0.0):
    """Exact accuracy over test-time depth, a line per result; the settled share dashed. A matplotlib Figure.

    Of mazes also the share of valid shortest paths, dotted.
    """
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 4.6), dpi=150, layout="constrained")
        for i, (result, label) in enumerate(zip(results, labels)):
            colour, depths = COLOURS[i % len(COLOURS)], list(result.figures)

            def shares(name, figures=result.figures):
                return [np.nan if f[name] is None else 100 * f[name] for f in figures.values()]

            axes.plot(depths, shares("settled"), "--", color=colour, linewidth=1.3, alpha=0.7)
            if result.verified_as:
                axes.plot(depths, shares("verified"), ":", color=colour, linewidth=1.8)
            axes.plot(depths, shares(report.EXACT), "-" + MARKERS[i % len(MARKERS)], color=colour, linewidth=1.8,
                      markersize=6, markerfacecolor="white", markeredgewidth=1.6, label=label)
        for name in sorted({result.verified_as for result in results if result.verified_as}):
            axes.plot([], [], ":", color=FAINT, linewidth=1.8, label=name)
        axes.plot([], [], "--", color=FAINT, linewidth=1.3, label="settled")
        ticks = sorted({H for result in results for H in result.figures})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{H:,}" for H in ticks])
        axes.minorticks_off()
        margin = (100 - from_percent) / 50
        axes.set_ylim(from_percent - margin, 100 + margin)
        axes.yaxis.set_major_formatter(lambda percent, _: f"{percent:g} %")
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel("outer cycles at test time, H")
        axes.set_title("Test puzzles solved exactly", loc="left", fontsize=12, fontweight="bold")
        if len(results) > 3:  # beside the lines, where it hides none of them
            axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        else:
            axes.legend(frameon=False, loc="best")
        figure.supxlabel(_caption(results), fontsize=8.5, color=FAINT)
        return figure


def strip(domain: puzzles.Domain, trace: solver.Trace, title: str, solution: np.ndarray | None = None):
    """The answer after some of the outer cycles, side by side. A matplotlib Figure.

    solution [S]: cells that differ from it are drawn as wrong; None: it is not known, and none are.
    """
    plt = pyplot()
    cycles = text_film.shown_cycles(trace.stands_since, MOST_GRIDS)
    per_row = min(PER_ROW, len(cycles))
    rows = -(-len(cycles) // per_row)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, per_row, figsize=(2.7 * per_row, 3.0 * rows + 0.75), dpi=150,
                                    squeeze=False, layout="constrained")
        colours = plt.get_cmap("YlGnBu_r")
        for ax in axes.flat:
            ax.set_axis_off()
        previous, shown = trace.inputs, used(drawing(domain), np.concatenate([trace.inputs[None], trace.tokens]))
        for ax, cycle in zip(axes.flat, cycles):
            tokens, sure = trace.tokens[cycle - 1], trace.confidence[cycle - 1]
            wrong = np.zeros(len(tokens), bool) if solution is None else tokens != solution
            _grid(ax, domain, trace.inputs, tokens, sure, tokens != previous, wrong, colours, shown)
            ax.set_title(f"cycle {cycle}", fontsize=12, pad=5)
            previous = tokens
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        given = domain.clues_called
        legend = [f"black: {given}", "blue: filled in, the darker the surer", "yellow: changed since the grid before"]
        if "end" in drawing(domain).shapes:  # colours are the answer itself
            legend = ["cream: beyond the grid, changed since the one before"]
        figure.supxlabel("    ".join(legend + ["red: wrong"] * (solution is not None)), fontsize=9, color=FAINT)
        return figure


def animation(domain: puzzles.Domain, trace: solver.Trace, title: str) -> bytes:
    """A GIF: the puzzle and its answer after every outer cycle up to a few beyond the last change, over the residual.

    Of more than MOST_FRAMES cycles, so many are shown. Red: what breaks a rule, where the domain can tell.
    """
    plt = pyplot()
    end = min(trace.stands_since + AFTER, len(trace.tokens))
    cycles = [0, *np.unique(np.linspace(1, end, min(end, MOST_FRAMES)).round().astype(int)).tolist()]
    solved, faults = np.zeros(end, bool), np.zeros((end, len(trace.inputs)), bool)
    if domain.marks_faults:
        solved = domain.verify(trace.inputs, trace.tokens[:end]).solved
        faults = domain.faults(trace.inputs, trace.tokens[:end])
    shown = used(drawing(domain), np.concatenate([trace.inputs[None], trace.tokens[:end]]))
    tall, frames, previous = 3.7 * shown[0] / shown[1], [], trace.inputs
    with plt.rc_context(STYLE | {"font.size": 8}):
        figure = plt.figure(figsize=(4.0, tall + 1.55), dpi=100)

        def inches(left, bottom, width, height):
            return figure.add_axes((left / 4, bottom / (tall + 1.55), width / 4, height / (tall + 1.55)))

        grid, chart = inches(0.15, 0.95, 3.7, tall), inches(0.5, 0.25, 3.3, 0.5)
        figure.text(0.045, 1 - 0.22 / (tall + 1.55), title, fontsize=11, fontweight="bold", va="center")
        chart.semilogy(np.arange(1, end + 1), trace.residual[:end], color=COLOURS[0], linewidth=1.5)
        for cycle in np.flatnonzero(solved) + 1:
            chart.axvspan(cycle - 0.5, min(cycle + 0.5, end), color="#bfe5ca", linewidth=0)
        chart.set_xlim(0, end)
        chart.set_title("residual over outer cycles; green: verified", fontsize=8, loc="left", pad=3, color=FAINT)
        chart.minorticks_off()
        now = chart.axvline(0, color=INK, linewidth=1.2)
        for cycle in cycles:
            tokens = trace.tokens[cycle - 1] if cycle else trace.inputs
            sure = trace.confidence[cycle - 1] if cycle else np.ones(len(tokens))
            wrong = faults[cycle - 1] if cycle else np.zeros(len(tokens), bool)
            grid.clear()
            grid.set_axis_off()
            _grid(grid, domain, trace.inputs, tokens, sure, tokens != previous, wrong, plt.get_cmap("YlGnBu_r"),
                  shown, 1.35)
            verdict = "verified" if cycle and solved[cycle - 1] else f"{wrong.sum()} in conflict" if wrong.any() else ""
            changes = f"cycle {cycle}: {(tokens != previous).sum()} changed"
            grid.set_title(changes if cycle else "the puzzle", fontsize=10, loc="left", x=0.01, pad=3)
            grid.set_title(verdict, fontsize=10, loc="right", x=0.99, pad=3,
                           color=COLOURS[2] if verdict == "verified" else WRONG)
            now.set_xdata([cycle, cycle])
            canvas: Any = figure.canvas
            canvas.draw()
            frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
            previous = tokens
    plt.close(figure)
    return _gif(frames)


def _gif(frames: Sequence[np.ndarray]) -> bytes:
    """Frames uint8 [height, width, 3], the first and the last of which stay longer."""
    from PIL import Image  # comes with matplotlib
    # One palette for all, from some of them: fewer bytes and no flicker.
    some = np.concatenate([frames[i] for i in sorted({0, min(1, len(frames) - 1), len(frames) // 2, len(frames) - 1})])
    palette = Image.fromarray(some).quantize(PALETTE_SIZE, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    pace = round(1000 * min(max(FILM_SECONDS / len(frames), 0.08), 0.6))
    durations = [1200, *[pace] * (len(frames) - 2), 2500][:len(frames)]
    out = io.BytesIO()
    images[0].save(out, "GIF", save_all=True, append_images=images[1:], loop=0, optimize=True, duration=durations)
    return out.getvalue()


def arc_task(title: str, rows: Sequence[dict[str, np.ndarray]], marked: str = "prediction", target: str = "target"):
    """Rows of ARC grids under their names (input, prediction, target), say one for every test input. A Figure.

    Cells of `marked` that differ from `target` in the same row are crossed; an empty grid is drawn as none.
    """
    if not rows or not all(rows):
        raise PictureError("there are no grids to draw")
    plt = pyplot()
    columns = max(map(len, rows))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(rows), columns, figsize=(2.7 * columns, 2.9 * len(rows) + 0.6), dpi=150,
                                    squeeze=False, layout="constrained")
        for ax in axes.flat:
            ax.set_axis_off()
        for line, grids in zip(axes, rows):
            for ax, (name, grid) in zip(line, grids.items()):
                grid = np.asarray(grid)
                ax.set_title(name if grid.size else f"{name}: no grid", fontsize=11, pad=4)
                if not grid.size:
                    continue
                ax.pcolormesh(grid, cmap=plt.matplotlib.colors.ListedColormap(arc.PALETTE), vmin=-0.5, vmax=9.5,
                              edgecolors="#555555", linewidth=0.5)
                if name == marked and target in grids:
                    down, across = np.nonzero(arc.wrong_cells(grid, np.asarray(grids[target])))
                    cross = {"color": "white", "markeredgewidth": 1.5, "markersize": 5}
                    ax.plot(across + 0.5, down + 0.5, "x", path_effects=[_outline()], **cross)
                ax.set_aspect("equal")
                ax.invert_yaxis()
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        return figure


def _grid(ax, domain, inputs, tokens, sure, changed, wrong, colours, shown, scale=1.0) -> None:
    """One grid; boxes are ruled where the domain has them, characters drawn unless it names a shape. Everything [S].

    shown: (rows, columns), the first of the domain's. scale: how large it is to be, 1.0 for 2.7 inches.
    """
    _, width, (down, across), characters, shapes = drawing(domain)
    rows, columns = shown
    given = inputs == tokens  # blanks are not in an answer
    for s in range(len(tokens)):
        row, column = divmod(s, width)
        if row >= rows or column >= columns:
            continue
        if changed[s]:
            ax.add_patch(_rectangle(column, row, "#fff0b3"))
        colour = WRONG if wrong[s] else "#111111" if given[s] else colours(0.75 - 0.7 * float(sure[s]))
        shape = shapes[tokens[s]]
        if shape.startswith("#"):
            ax.add_patch(_rectangle(column, row, shape))
        elif shape == "wall":
            ax.add_patch(_rectangle(column, row, colour))
        elif shape == "path" or shape == "empty" and wrong[s]:
            ax.add_patch(_rectangle(column, row, colour, margin=0.2 if shape == "path" else 0.4))
        elif not shape:
            ax.text(column + 0.5, row + 0.53, characters[tokens[s]], ha="center", va="center", color=colour,
                    fontsize=scale * 108 / max(rows, columns), fontweight="bold" if given[s] else "normal")
    thick, thin = ({"color": "#333333", "linewidth": 1.4, "zorder": 3},
                   {"color": "#c9c9c9", "linewidth": 0 if "wall" in shapes else 0.6, "zorder": 2})
    for line in range(rows + 1):
        ax.plot([0, columns], [line, line], solid_capstyle="projecting", **(thin if line % down else thick))
    for line in range(columns + 1):
        ax.plot([line, line], [0, rows], solid_capstyle="projecting", **(thin if line % across else thick))
    ax.set_xlim(-0.1, columns + 0.1)
    ax.set_ylim(rows + 0.1, -0.1)
    ax.set_aspect("equal")


def _outline():
    from matplotlib.patheffects import withStroke
    return withStroke(linewidth=3, foreground="black")


def _rectangle(column: int, row: int, colour: str, margin: float = 0.0):
    from matplotlib.patches import Rectangle
    side = 1 - 2 * margin
    return Rectangle((column + margin, row + margin), side, side, facecolor=colour, linewidth=0, zorder=1)


def pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise PictureError("pictures need matplotlib; install it with: pip install 'trm_jax[plot]'") from None
    matplotlib.use("Agg")  # files only, no window
    import matplotlib.pyplot
    return matplotlib.pyplot


def _caption(results: Sequence[report.Result]) -> str:
    """What the figures are of: every dataset with its n, settled cycles and parameters, once."""
    facts = {(f"n = {next(iter(r.figures.values()))['n']:,} ({r.evaluation.get('sample', 'test')}) "
              f"of {r.evaluation['dataset']}") for r in results}
    cycles = {str(r.evaluation["settled_cycles"]) for r in results if "settled_cycles" in r.evaluation}
    return "; ".join(sorted(facts)) + f".  settled: unchanged for {' or '.join(sorted(cycles))} cycles"


def label(result: report.Result) -> str:
    """The run's folder, where the file lies in one."""
    folder = result.path.absolute().parent
    return folder.parent.name if folder.name == "eval" else result.path.stem


def save(figure, out: str | os.PathLike[str]) -> None:
    """Writes the figure in the format that the file's ending says; whole, or not at all."""
    drawn = io.BytesIO()
    try:
        figure.savefig(drawn, format=Path(out).suffix[1:] or "png", bbox_inches="tight", pad_inches=0.12)
        write_file(out, drawn.getvalue())
    except (OSError, ValueError) as error:  # no place for it; no such format
        raise PictureError(f"{out} was not written: {error}") from error
    finally:
        pyplot().close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments.Parser("python -m trm_jax plot", __doc__)
    commands = parser.add_subparsers(dest="what", required=True, parser_class=arguments.Parser)
    a = commands.add_parser("accuracy", help="exact accuracy over test-time depth")
    a.add_argument("run", nargs="+", type=arguments.text,
                   help="folder of a run (its newest evaluation is taken) or an evaluation's JSON")
    a.add_argument("--labels", nargs="+", type=arguments.listed(arguments.text), metavar="A,B",
                   help="one for each line, instead of the runs' folders")
    a.add_argument("--from_percent", type=arguments.number(0, 99), default=0.0,
                   help="where the vertical axis begins (%(default)s)")
    s = commands.add_parser("solve", help="one puzzle as it fills in")
    command.add_source(s)
    puzzle = s.add_mutually_exclusive_group(required=True)
    puzzle.add_argument("--example", type=arguments.integer(), metavar="N",
                        help="puzzle N of the run's test set, counted from 0")
    puzzle.add_argument("--puzzle", help="a puzzle as text")
    for each in (a, s):
        arguments.add_out(each, "file to write; its ending says the format")
    args = parser.parse_args(argv)

    def run() -> None:
        if args.what == "accuracy":
            figure = _accuracy(args.run, [label for labels in args.labels or () for label in labels], args.from_percent)
        else:
            figure = _strip(args)
        save(figure, args.out)
        print(args.out)
    return guarded(run)


def _accuracy(runs: Sequence[str], labels: Sequence[str], from_percent: float):
    results = [result for run in runs for result in report.newest(run)]
    labels = labels or [label(result) for result in results]
    if len(labels) != len(results):
        raise PictureError(f"--labels gives {len(labels)} for {len(results)} lines: "
                           + ", ".join(result.label for result in results))
    return accuracy(results, labels, from_percent)


def _strip(args):
    pyplot()  # before the long part
    export = command.open_source(args)
    solver = Solver.of(export)
    puzzle, solution = (args.puzzle, None) if args.example is None else solver.example(export.experiment.data,
                                                                                       args.example)
    trace = solver.trace(puzzle, args.max_cycles, settle=args.settle)
    answer = solver.judge_trace(trace, args.settle)
    if answer.verified:  # a maze has other right answers than its label
        solution = answer.tokens
    name = "The puzzle" if args.example is None else f"Test puzzle {args.example}"
    return strip(export.domain, trace, f"{name}: {answer.status}", solution)


if __name__ == "__main__":
    sys.exit(main())
