"""Answers puzzles with a trained run or a weights file.

    python -m trm_jax solve "5...27..9..41......5..3..."                  with the weights that come with this package
    python -m trm_jax solve --workdir=runs/quick < puzzles.txt            answers in the order of the puzzles
    python -m trm_jax solve --weights=quick.safetensors --file=puzzles.json --format=json --tries=8
    python -m trm_jax solve --workdir=runs/quick --example=3 --watch      the answer as it fills in

Puzzles are read as people have them: one a line, with or without a name or rating; grids of several lines, drawn or
not; CSV with a header; JSON, one value or one a line: texts, lists of rows, objects {"puzzle": ..., "id": ...} and ARC
tasks. --file may be a folder of such files. A puzzle is done when the rules accept its answer, when the answer has
stood still, or when its budget is spent.

The exit status is 0 if the verifier accepts every answer, 1 if not, 2 if nothing could be tried.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from trm_jax import puzzles
from trm_jax.inference.choice import CRITERIA, ORDER
from trm_jax.inference.requests import Request, read_path, read_requests
from trm_jax.inference.settings import VARY
from trm_jax.inference.solver import Answer, SolveError, Solver, Trace
from trm_jax.inference.text_film import frames, side_by_side
from trm_jax.runtime import arguments, distributed
from trm_jax.runtime.errors import guarded
from trm_jax.weights import weights_file

WATCHED = ("symmetry", "guess")  # how tries may differ that are shown
BLOCK = 1 << 16  # puzzles that the processes of a run answer before they tell each other
_DASHED = re.compile(r"-[-.*_?xX0-9a-gA-G |+,\s]{14,}")


def open_source(args: argparse.Namespace) -> weights_file.Export:
    """The export behind --workdir or --weights, with compiled programs kept between calls."""
    distributed.enable_compilation_cache(args.compilation_cache)
    return weights_file.read(args.source)


def add_source(parser: argparse.ArgumentParser, max_cycles: int | None = 256) -> None:
    """max_cycles: the default; None: what suits the weights."""
    arguments.add_source(parser, weights_file.named(), weights_file.DEFAULT)
    arguments.add_cache(parser, distributed.COMPILED)
    arguments.add_max_cycles(parser, max_cycles)
    arguments.add_settle(parser)


def requests_of(args: argparse.Namespace, export: weights_file.Export) -> list[Request]:
    """What the arguments ask for: --example, then puzzles, then --file; standard input if there is none of these."""
    domain = export.domain
    asked = [Request(f"test puzzle {number}", *Solver.of(export).example(export.experiment.data, number))
             for number in args.example]
    asked += [Request(f"puzzle {i}", puzzle.puzzle) for i, puzzle in enumerate(
        (request for text in args.puzzle for request in _of_argument(text, domain)), 1)]
    if args.file and args.file != "-":
        asked += read_path(args.file, domain)
    elif args.file or not asked:
        if sys.stdin.isatty():
            print("puzzles, then Ctrl-D:", file=sys.stderr)
        asked += read_requests(getattr(sys.stdin, "buffer", sys.stdin).read(), domain)
    if not asked:
        raise SolveError("no puzzle given: as an argument, by --file, by --example N, or on standard input")
    return asked


def _of_argument(text: str, domain: puzzles.Domain) -> list[Request]:
    return read_requests(text, domain) or [Request("puzzle", puzzles.PuzzleError("is empty"))]


def add_puzzles(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--example", type=arguments.integer(0), action="append", default=[], metavar="N",
                        help="puzzle N of the run's test set, counted from 0; may be given several times")
    parser.add_argument("--file", type=arguments.text, help="text, JSON or CSV, or a folder of them; -: standard input")
    parser.add_argument("puzzle", nargs="*", help="puzzles as text; without any, those of standard input")


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = arguments.Parser("python -m trm_jax solve", __doc__)
    add_source(parser, max_cycles=None)
    arguments.add_tries(parser, default=None, what="tries of a puzzle that the rules do not accept; 1: one")
    parser.add_argument("--vary", choices=VARY, help="tell tries apart by a symmetry of the puzzle, by guessed cells, "
                        "by noise at the start or in every cycle, or by what the network draws itself (what suits the "
                        "weights)")
    parser.add_argument("--sigma", type=arguments.number(0), default=0.3, help="of that noise (%(default)s)")
    parser.add_argument("--choose", type=arguments.listed(arguments.one_of(*CRITERIA)), default=ORDER,
                        help="between the answers of tries none of which is verified; some of "
                        f"{','.join(CRITERIA)}, the first one first ({','.join(ORDER)})")
    parser.add_argument("--tolerance", type=arguments.number(0), default=0, help="stop when the latents change by less "
                        "than this share of themselves; 0: never mind")
    parser.add_argument("--calls", type=arguments.integer(0), default=0, help="of the network, for one puzzle with all "
                        "its tries; 0: no limit")
    parser.add_argument("--seconds", type=arguments.number(0), default=20, metavar="N", help="for a puzzle, on average "
                        "where tries do not differ by guesses; 0: no limit (%(default)s)")
    parser.add_argument("--total_seconds", type=arguments.number(0), default=0, metavar="N",
                        help="for all puzzles together; 0: no limit (%(default)s)")
    arguments.add_seed(parser, "of the tries")
    parser.add_argument("--format", choices=("text", "json", "picture"), help="of the answers on standard output: a "
                        "line of text each, a line of JSON each, or drawn (default: drawn on a terminal, else text)")
    parser.add_argument("--watch", action="store_true", help="show the answer as it fills in: the plain try, and with "
                        "--tries=N those after it, up to one that is verified")
    add_puzzles(parser)
    args = parser.parse_args(dashed(argv))
    if args.watch and ((args.tries or 1) > 1 and args.vary not in (None, *WATCHED) or args.format == "json"):
        parser.error("--watch shows tries that differ by a symmetry or by guesses, as pictures: with no other --vary, "
                     "and without --format=json")
    return guarded(lambda: _answer(args, argv))


def _answer(args: argparse.Namespace, argv: Sequence[str]) -> int:
    several = distributed.initialize()
    export = distributed.agreed(lambda: open_source(args))
    # Process 0 reads the puzzles, as it has the standard input, and prints the answers of all.
    asked = distributed.everyones(distributed.agreed(
        lambda: requests_of(args, export) if distributed.is_primary() else []))[0]
    solver = Solver.of(export)
    if several:
        solver.use_all_devices()
    tty = sys.stdout.isatty()
    color = tty and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    try:
        if args.watch:
            asked = asked if distributed.is_primary() else []
            answers = [_watch(solver, request, i, args, color) for i, request in enumerate(asked)]
            return 0 if all(answer.verified for answer in answers) else 1
        begun = time.perf_counter()
        printer = _Printer(solver, asked, args.format or ("picture" if tty else "text"), color)
        try:
            given = {name: getattr(args, name) for name in ("max_cycles", "tries", "vary") if getattr(args, name)}
            answers = _shared(solver, asked, printer.take, seconds=args.seconds, settle=args.settle, sigma=args.sigma,
                              seed=args.seed, max_seconds=args.total_seconds, max_calls=args.calls,
                              tolerance=args.tolerance, choose=args.choose, **given)
        except KeyboardInterrupt:
            printer.print_rest()
            raise
    except BrokenPipeError:  # whoever reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at its end
        return 1
    if distributed.is_primary() and len(answers) > 1:
        seconds, right = time.perf_counter() - begun, sum(answer.verified for answer in answers)
        print(f"{right:,} of {len(answers):,} verified in {seconds:.1f} s, {seconds / len(answers):.2g} s a puzzle",
              file=sys.stderr)
    if distributed.is_primary() and (advice := what_next(answers, args, argv)):
        print(advice, file=sys.stderr)
    return 0 if all(answer.verified for answer in answers) else 1


def _shared(solver: Solver, asked: Sequence[Request], each: Callable[[int, Answer], None],
            **settings: Any) -> list[Answer]:
    """The answers to all puzzles, in all processes of the run: each works on its share. Process 0 tells them to `each`,
    as they come where it is alone, else a block at a time."""
    if jax.process_count() == 1:
        return solver.solve([request.puzzle for request in asked], each=each, **settings)
    answers: list[Answer] = []
    block = len(asked) if settings["max_seconds"] else BLOCK
    for start in range(0, len(asked), block):
        mine = [start + i for i in distributed.my_rows(min(block, len(asked) - start))]
        for answer in distributed.in_order(solver.solve([asked[i].puzzle for i in mine], numbers=mine, **settings)):
            answers.append(answer)
            if distributed.is_primary():
                each(len(answers) - 1, answer)
    return answers


class _Printer:
    """Prints answers in the order of their puzzles, each as soon as it and those before it are there."""

    def __init__(self, solver: Solver, asked: Sequence[Request], form: str, color: bool):
        self._solver, self._asked, self._form, self._color = solver, asked, form, color
        self._found: dict[int, Answer] = {}
        self._next = 0

    def take(self, i: int, answer: Answer) -> None:
        self._found[i] = answer
        while self._next in self._found:
            self._print(self._found.pop(self._next))

    def print_rest(self) -> None:
        """What is there of an interrupted work; those in between count as not answered."""
        late = Answer("", None, False, "interrupted", 0, 0, "interrupted")
        for i in range(self._next, max(self._found, default=-1) + 1):
            self._print(self._found.get(i, late))

    def _print(self, answer: Answer) -> None:
        request = self._asked[self._next]
        self._next += 1
        print(shown(self._solver, request, answer, self._form, self._color), flush=True)
        print(arguments.plain(f"{request.name}: {answer.status}"), file=sys.stderr, flush=True)


def what_next(answers: Sequence[Answer], args: argparse.Namespace, argv: Sequence[str]) -> str:
    """A command that is worth trying for those answers that are not verified; "" if there is none."""
    open_ones = [answer for answer in answers if answer.tokens is not None and not answer.verified
                 and answer.stop != "interrupted" and "no solution" not in answer.reason]
    if not open_ones or not any(answer.tryable for answer in open_ones):
        return ""
    changes = {"--seconds": f"{4 * args.seconds:g}"} if args.seconds else {}
    if args.tries is not None:
        changes |= {"--tries": str(max(16, 4 * args.tries))}
    names = (*changes, *(("--restarts",) if args.tries is not None else ()))
    kept, skip = [], False
    for word in argv:
        if skip or word.partition("=")[0] in names:
            skip = not skip and "=" not in word
            continue
        kept.append(word)
    command = shlex.join(["python", "-m", "trm_jax", "solve", *map("=".join, changes.items()), *kept])
    return arguments.plain(f"{len(open_ones)} of {len(answers)} not verified; more tries and more time find more: "
                           f"{command}" + ("" if args.puzzle or args.file or args.example else " < PUZZLES"))


def shown(solver: Solver, request: Request, answer: Answer, form: str, color: bool) -> str:
    """The answer for standard output."""
    if form == "json":
        return json.dumps({"id": request.name, **answer.to_json()})
    if form == "picture" and answer.tokens is not None:
        return solver.picture(request.puzzle, answer, color)
    return answer.text


def _watch(solver: Solver, request: Request, number: int, args: argparse.Namespace, color: bool) -> Answer:
    """Shows the tries of a puzzle up to the one that is verified; returns its answer, else that of the last."""
    name, tries = arguments.plain(request.name), args.tries or 1
    try:
        for trace, answer in traces_of(solver, request, number, args):
            columns, title = shutil.get_terminal_size().columns, titled(name, answer, tries, trace)
            if trace.asked is None or answer.verified:  # there may be hundreds of tries with guesses
                print(f"{title} ({'highlighted' if color else '*'}: changed since the grid before; clash: a broken "
                      "rule)")
                print(side_by_side(frames(solver.domain, trace, color), columns), flush=True)
            if not answer.verified and answer.attempt < tries:
                print(arguments.plain(f"{title} is given up: {answer.reason}"), file=sys.stderr, flush=True)
    except puzzles.PuzzleError as error:
        answer = Answer.refused(error)
    print(arguments.plain(f"{name}: {answer.status}"), file=sys.stderr, flush=True)
    return answer


def titled(name: str, answer: Answer, tries: int, trace: Trace) -> str:
    """What one of the tries of a puzzle is called."""
    guesses = 0 if trace.asked is None else int((trace.asked != trace.inputs).sum())
    with_guesses = f" with {guesses} guess{'es' * (guesses > 1)}" if guesses else ""
    return f"{name}, try {answer.attempt} of {tries}{with_guesses}" if tries > 1 else name


def traces_of(solver: Solver, request: Request, number: int,
              args: argparse.Namespace) -> Iterator[tuple[Trace, Answer]]:
    """The tries of a puzzle; raises PuzzleError where there is no puzzle to trace."""
    return solver.traces(request.puzzle, args.max_cycles or 256, settle=args.settle, tries=args.tries or 1,
                         seed=args.seed, number=number, vary=getattr(args, "vary", None) or "")


def dashed(argv: Sequence[str]) -> list[str]:
    """The words of a command line; a puzzle that begins with '-', a blank, is made to look unlike an option."""
    return [f" {word}" if _DASHED.fullmatch(word) else word for word in argv]


if __name__ == "__main__":
    sys.exit(main())
