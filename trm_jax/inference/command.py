"""Answers puzzles with a trained run or a weights file.

    python -m trm_jax.solve "5...27..9..41......5..3..."                  with the weights that come with this package
    python -m trm_jax.solve --workdir=runs/quick < puzzles.txt            one puzzle per line, answers in their order
    python -m trm_jax.solve --weights=quick.safetensors --file=puzzles.json --format=json --tries=8
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
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from trm_jax import puzzles
from trm_jax.inference.choice import CRITERIA, ORDER
from trm_jax.inference.requests import Request, read_requests
from trm_jax.inference.solver import Answer, SolveError, Solver, Trace
from trm_jax.inference.text_film import frames, side_by_side
from trm_jax.runtime import distributed
from trm_jax.runtime.errors import guarded
from trm_jax.weights import weights_file

# The command line.


def open_source(args: argparse.Namespace) -> weights_file.Export:
    """The export behind --workdir or --weights, with compiled programs kept between calls."""
    distributed.enable_compilation_cache(args.compilation_cache)
    if args.workdir:
        return weights_file.from_run(args.workdir)
    return weights_file.read(args.weights or weights_file.DEFAULT)


def add_source(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--workdir", help="folder of a run; its best checkpoint is used")
    source.add_argument("--weights", metavar="FILE", help="file written by python -m trm_jax.weights, or a name: "
                        f"{', '.join(weights_file.named())} (default: {weights_file.DEFAULT})")
    parser.add_argument("--compilation_cache", default=distributed.COMPILED,
                        help="folder that keeps compiled programs between calls; empty: none")
    parser.add_argument("--max_steps", type=int, default=256, help="outer cycles at most (%(default)s)")
    parser.add_argument("--settle", type=int, default=8,
                        help="stop when the answer has stood still for so many outer cycles (%(default)s)")


def requests_of(args: argparse.Namespace, export: weights_file.Export) -> list[Request]:
    """What the arguments ask for: --example, then puzzles, then --file; standard input if there is none of these."""
    asked = [Request(f"test puzzle {number}", *Solver.of(export).example(export.experiment.data, number))
             for number in args.example]
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
    parser.add_argument("--tries", type=int, default=1, help="of a puzzle that the rules do not accept (%(default)s)")
    parser.add_argument("--restarts", dest="tries", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument("--vary", default="symmetry", choices=("symmetry", "start", "cycle"), help="tell tries "
                        "apart by a symmetry of the puzzle, noise at the start, or noise in every cycle (%(default)s)")
    parser.add_argument("--sigma", type=float, default=0.3, help="of that noise (%(default)s)")
    parser.add_argument("--choose", default=",".join(ORDER), help="between the answers of tries none of "
                        f"which is verified; some of {','.join(CRITERIA)}, the first one first (%(default)s)")
    parser.add_argument("--tolerance", type=float, default=0, help="stop when the latents change by less than this "
                        "share of themselves; 0: never mind")
    parser.add_argument("--calls", type=int, default=0, help="of the network, for one puzzle with all its tries; 0: no "
                        "limit")
    parser.add_argument("--seconds", type=float, default=0, help="for all puzzles together; 0: no limit")
    parser.add_argument("--seed", type=int, default=0, help="of the tries (%(default)s)")
    parser.add_argument("--format", choices=("text", "json", "picture"), help="of the answers on standard output: a "
                        "line of text each, a line of JSON each, or drawn (default: drawn on a terminal, else text)")
    parser.add_argument("--watch", action="store_true", help="show the plain answer as it fills in")
    add_puzzles(parser)
    args = parser.parse_args(argv)
    if args.watch and (args.tries > 1 or args.format == "json"):
        parser.error("--watch shows one try of each puzzle, as a picture: without --tries and --format=json")
    return guarded(lambda: _answer(args))


def _answer(args: argparse.Namespace) -> int:
    export = open_source(args)
    asked = requests_of(args, export)
    solver = Solver.of(export)
    tty = sys.stdout.isatty()
    color = tty and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    if args.watch:
        answers = [_watch(solver, request, args, color) for request in asked]
    else:
        fine = [request for request in asked if not isinstance(request.puzzle, Exception)]
        found = iter(solver.solve([request.puzzle for request in fine], max_steps=args.max_steps, settle=args.settle,
                                  tries=args.tries, vary=args.vary, sigma=args.sigma, seed=args.seed,
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
