"""Answers puzzles with a trained run or a weights file.

    python -m trm_jax.solve "5...27..9..41......5..3..."                  with the weights that come with this package
    python -m trm_jax.solve --workdir=runs/quick < puzzles.txt            one puzzle per line, answers in their order
    python -m trm_jax.solve --weights=quick.safetensors --file=puzzles.json --format=json --restarts=8
    python -m trm_jax.solve --workdir=runs/quick --example=3 --watch      the answer as it fills in

A line is a puzzle as text, or JSON: a string, or an object {"puzzle": "...", "id": ...}; a .json file is a list of
these, or an object of them by id, such as ARC's challenges: a task is {"test": [{"input": grid}, ...]}. A puzzle is
done when the rules accept its answer, when the answer has stood still, or when its budget is spent.

The exit status is 0 if the verifier accepts every answer, 1 if not, 2 if nothing could be tried.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trm_jax import distributed, inference, puzzles, weights
from trm_jax.data import arc as arc_data
from trm_jax.data import store
from trm_jax.errors import guarded
from trm_jax.puzzles import arc
from trm_jax.solver import Answer, SolveError, Solver, Trace, solver_of

MAX_FRAMES = 11  # of a film strip, besides the puzzle: four rows of three
_STYLE = re.compile(r"\x1b\[([\d;]*)m")


# Pictures in text.


def conflicts(domain: puzzles.Domain, tokens: np.ndarray) -> list[str]:
    """What contradicts what in an answer [S], in words, of a domain whose cells can (a maze's cannot)."""
    try:
        return domain.conflicts(tokens) if hasattr(domain, "conflicts") else []
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
    pictures = [_picture("the puzzle", "", domain.render(trace.inputs, given=trace.inputs, color=color))]
    previous = trace.inputs
    for cycle in shown_cycles(trace.stands_since):
        tokens = trace.tokens[cycle - 1]
        changed = tokens != previous
        drawn = domain.render(tokens, given=trace.inputs, changed=changed, color=True)
        if not domain.verified_as:  # no rules to break
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


# The command line.


def load_example(export: weights.Export, number: int) -> tuple[Any, np.ndarray]:
    """(inputs [S], labels [S]) of a puzzle of the test set that belongs to the weights; of ARC (task, labels [S])."""
    d = export.experiment.data
    if export.domain.name == "arc":
        tasks = arc_data.load_test_puzzles(d.path)
        if not 0 <= number < len(tasks):
            raise SolveError(f"there is no test task {number} in {d.path}: they are numbered 0 to {len(tasks) - 1}")
        name, task = list(tasks.items())[number]
        return {"id": name, **task}, arc.to_canvas(np.array(task["test"][0]["output"]))
    test = store.load(d.path, "test", make=d.how_to_make)
    if not 0 <= number < test.num_examples:
        raise SolveError(f"there is no test puzzle {number} in {d.path}: they are numbered 0 to "
                         f"{test.num_examples - 1}")
    return test.inputs[number], test.labels[number]


def open_source(args: argparse.Namespace) -> weights.Export:
    """The export behind --workdir or --weights, with compiled programs kept between calls."""
    distributed.enable_compilation_cache(args.compilation_cache)
    return weights.from_run(args.workdir) if args.workdir else weights.read(args.weights or weights.DEFAULT)


def add_source(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--workdir", help="folder of a run; its best checkpoint is used")
    source.add_argument("--weights", metavar="FILE", help="file written by python -m trm_jax.weights, or a name: "
                        f"{', '.join(weights.named())} (default: {weights.DEFAULT})")
    parser.add_argument("--compilation_cache", default=distributed.COMPILED,
                        help="folder that keeps compiled programs between calls; empty: none")
    parser.add_argument("--max_steps", type=int, default=256, help="outer cycles at most (%(default)s)")
    parser.add_argument("--settle", type=int, default=8,
                        help="stop when the answer has stood still for so many outer cycles (%(default)s)")


class Request(NamedTuple):
    name: str  # for messages: "puzzle 3", or the id that came with it
    puzzle: Any  # text or tokens; an exception where there is none
    solution: np.ndarray | None = None  # [S], where it is known


def read_requests(text: str, whole: bool = False, stem: str = "puzzle") -> list[Request]:
    """Puzzles of a text, one per line; of one JSON value with `whole`. Raises SolveError only for the latter.

    Args:
      stem: names the puzzle of a JSON value that is one and has no id (ARC's tasks have their ID as file name).
    """
    if not whole:
        lines = [line.strip("\r\n") for line in text.splitlines() if line.strip()]
        return [_request(f"puzzle {i}", _from_line(line)) for i, line in enumerate(lines, 1)]
    try:
        value = json.loads(text)
    except ValueError as error:
        raise SolveError(f"cannot be read as JSON ({error})") from None
    if isinstance(value, dict) and "puzzle" not in value and "test" not in value:
        return [_request(name, item) for name, item in value.items()]
    if isinstance(value, dict):
        return [_request(stem, value)]
    return [_request(f"puzzle {i}", item) for i, item in enumerate(value if isinstance(value, list) else [value], 1)]


def _from_line(line: str) -> Any:
    if line.lstrip()[:1] not in ("{", '"'):
        return line
    try:
        return json.loads(line)
    except ValueError as error:
        return puzzles.PuzzleError(f"is no JSON ({error})")


def _request(name: str, value: Any) -> Request:
    if isinstance(value, dict):
        name = str(value.get("id", name))
        if "test" in value:  # an ARC task
            return Request(name, {"id": name, **value})
        value = value.get("puzzle", puzzles.PuzzleError('has no "puzzle"'))
    if not isinstance(value, (str, Exception)):
        value = puzzles.PuzzleError(f"a puzzle is a text, got {type(value).__name__}")
    return Request(name, value)


def requests_of(args: argparse.Namespace, export: weights.Export) -> list[Request]:
    """What the arguments ask for: --example, then puzzles, then --file; standard input if there is none of these."""
    asked = [Request(f"test puzzle {number}", *load_example(export, number)) for number in args.example]
    asked += [Request(f"puzzle {i}", text) for i, text in enumerate(args.puzzle, 1)]
    if args.file and args.file != "-":
        file = Path(args.file)
        try:
            asked += read_requests(file.read_text(encoding="utf-8"), file.suffix == ".json", file.stem)
        except (OSError, UnicodeDecodeError, SolveError) as error:
            raise SolveError(f"{args.file}: {getattr(error, 'strerror', None) or error}") from None
    elif args.file or not asked:
        if sys.stdin.isatty():
            print("puzzles, one per line, then Ctrl-D:", file=sys.stderr)
        asked += read_requests(sys.stdin.read())
    if not asked:
        raise SolveError("no puzzle given: as an argument, by --file, by --example N, or on standard input")
    return asked


def add_puzzles(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--example", type=int, action="append", default=[], metavar="N", help="puzzle N of the run's "
                        "test set, counted from 0; may be given several times")
    parser.add_argument("--file", help="puzzles one per line, or .json; -: standard input")
    parser.add_argument("puzzle", nargs="*", help="puzzles as text; without any, one per line of standard input")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trm_jax.solve", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser)
    parser.add_argument("--restarts", type=int, default=1, help="tries of a puzzle that the rules do not accept "
                        "(%(default)s)")
    parser.add_argument("--vary", default="symmetry", choices=("symmetry", "start", "cycle"), help="tell restarts "
                        "apart by a symmetry of the puzzle, noise at the start, or noise in every cycle (%(default)s)")
    parser.add_argument("--sigma", type=float, default=0.3, help="of that noise (%(default)s)")
    parser.add_argument("--choose", default=",".join(inference.ORDER), help="between the answers of restarts none of "
                        f"which is verified; some of {','.join(inference.CRITERIA)}, the first one first (%(default)s)")
    parser.add_argument("--tolerance", type=float, default=0, help="stop when the latents change by less than this "
                        "share of themselves; 0: never mind")
    parser.add_argument("--calls", type=int, default=0, help="of the network, for one puzzle with its restarts; 0: no "
                        "limit")
    parser.add_argument("--seconds", type=float, default=0, help="for all puzzles together; 0: no limit")
    parser.add_argument("--seed", type=int, default=0, help="of the restarts (%(default)s)")
    parser.add_argument("--format", choices=("text", "json", "picture"), help="of the answers on standard output: a "
                        "line of text each, a line of JSON each, or drawn (default: drawn on a terminal, else text)")
    parser.add_argument("--watch", action="store_true", help="show the plain answer as it fills in")
    add_puzzles(parser)
    args = parser.parse_args(argv)
    if args.watch and (args.restarts > 1 or args.format == "json"):
        parser.error("--watch shows one try of each puzzle, as a picture: without --restarts and --format=json")
    return guarded(lambda: _answer(args))


def _answer(args: argparse.Namespace) -> int:
    export = open_source(args)
    asked = requests_of(args, export)
    solver = solver_of(export)
    tty = sys.stdout.isatty()
    color = tty and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    if args.watch:
        answers = [_watch(solver, request, args, color) for request in asked]
    else:
        fine = [request for request in asked if not isinstance(request.puzzle, Exception)]
        found = iter(solver.solve([request.puzzle for request in fine], max_steps=args.max_steps, settle=args.settle,
                                  restarts=args.restarts, vary=args.vary, sigma=args.sigma, seed=args.seed,
                                  max_seconds=args.seconds, max_calls=args.calls, tolerance=args.tolerance,
                                  choose=tuple(args.choose.split(","))))
        answers = [Answer.refused(r.puzzle) if isinstance(r.puzzle, Exception) else next(found) for r in asked]
        form = args.format or ("picture" if tty else "text")
        for request, answer in zip(asked, answers):
            print(shown(solver, request, answer, form, color), flush=True)
            print(f"{request.name}: {answer.status}", file=sys.stderr, flush=True)
    return 0 if all(answer.verified for answer in answers) else 1


def shown(solver: Solver, request: Request, answer: Answer, form: str, color: bool) -> str:
    """The answer for standard output."""
    if form == "json":
        return json.dumps({"id": request.name, **answer.to_json()})
    if form == "picture" and answer.tokens is not None:
        return solver.picture(request.puzzle, answer, color)
    return answer.text


def _watch(solver: Solver, request: Request, args: argparse.Namespace, color: bool) -> Answer:
    name = request.name
    try:
        trace = trace_of(solver, request, args)
    except puzzles.PuzzleError as error:
        answer = Answer.refused(error)
    else:
        answer = solver.judge_trace(trace, args.settle)
        columns = shutil.get_terminal_size().columns
        print(f"{name} ({'highlighted' if color else '*'}: changed since the grid before; clash: a broken rule)")
        print(side_by_side(frames(solver.domain, trace, color), columns), flush=True)
    print(f"{name}: {answer.status}", file=sys.stderr, flush=True)
    return answer


def trace_of(solver: Solver, request: Request, args: argparse.Namespace) -> Trace:
    """Raises PuzzleError where there is no puzzle to trace."""
    if isinstance(request.puzzle, Exception):
        raise request.puzzle
    return solver.trace(request.puzzle, args.max_steps, settle=args.settle)


if __name__ == "__main__":
    sys.exit(main())
