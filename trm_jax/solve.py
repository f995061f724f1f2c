"""Answers puzzles with a trained run or a weights file.

    python -m trm_jax.solve --workdir=runs/quick "5...27..9..41......5..3..."        answers on standard output
    python -m trm_jax.solve --weights=quick.safetensors < puzzles.txt                one puzzle per line
    python -m trm_jax.solve --workdir=runs/quick --example=3 --watch                 the answer as it fills in

The exit status is 0 if the verifier accepts every answer, 1 if not, 2 if nothing could be tried.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import re
import shutil
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax import distributed, puzzles, recursion, weights
from trm_jax.data import store
from trm_jax.errors import UserError, guarded
from trm_jax.recursion import Latents, Watched

Array = jax.Array
MAX_BATCH = 256
TRACE_CHUNK = 16  # test steps per call of a trace
MAX_FRAMES = 11  # of a film strip, besides the puzzle: four rows of three
_STYLE = re.compile(r"\x1b\[([\d;]*)m")


class SolveError(UserError):
    """A request that cannot be answered; a puzzle that cannot be is an `Answer` with its reason instead."""


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    text: str  # "" where the puzzle was refused
    tokens: np.ndarray | None  # uint8 [S]; None where the puzzle was refused
    verified: bool
    settled: bool  # the answer stood still for `settle` test steps (see Model.test_step)
    cycles: int  # settled: the step since which the answer stands. Otherwise all that were done
    reason: str  # why it is not verified; "" if it is
    unit: str = "outer cycles"  # what `cycles` counts

    @property
    def status(self) -> str:
        if self.tokens is None:
            return f"not answered: {self.reason}"
        how = f"settled after {self.cycles}" if self.settled else f"not settled after {self.cycles}"
        return f"{'verified' if self.verified else 'NOT verified: ' + self.reason}; {how} {self.unit}"


class Trace(NamedTuple):
    """The answer to one puzzle after every outer cycle 1 .. n."""

    inputs: np.ndarray  # uint8 [S]
    tokens: np.ndarray  # uint8 [n, S]
    confidence: np.ndarray  # float32 [n, S], probability of the chosen token
    residual: np.ndarray  # float32 [n], relative change of the latents

    @property
    def stands_since(self) -> int:
        """The outer cycle that brought the last change."""
        moved = (self.tokens[1:] != self.tokens[:-1]).any(axis=1)
        return int(np.flatnonzero(moved)[-1]) + 2 if moved.any() else 1


@functools.partial(jax.jit, static_argnames="model")
def _begin(model, w: weights.Weights, inputs: Array) -> tuple[Watched, Array]:
    """inputs [B, S] -> (nothing done yet, x [T, B, D])."""
    B = inputs.shape[0]
    x = model.embed(w.params, inputs, model.rows(w.table, jnp.zeros(B, jnp.int32)))
    return recursion.watch(model.initial_latents(w.fixed, B), functools.partial(model.answer, w.params)), x


@functools.partial(jax.jit, static_argnames=("model", "L"))
def _advance(model, w: weights.Weights, watched: Watched, x: Array, cycles: Array, L: int) -> Watched:
    """`cycles` [] more test steps."""
    decode = functools.partial(model.answer, w.params)
    return recursion.unroll_watched(model.core(w.params), watched, x, cycles, L, decode, model.test_step)


@functools.partial(jax.jit, static_argnames=("model", "L"))
def _trace(model, w: weights.Weights, latents: Latents, x: Array, L: int) -> tuple[Latents, Any]:
    """TRACE_CHUNK more outer cycles: (latents, ((tokens [n, B, S], confidence [n, B, S]), residuals [n, B]))."""
    def decode(y):
        return model.answer(w.params, y), jax.nn.softmax(model.logits(w.params, y), axis=-1).max(-1)
    return recursion.trace(model.core(w.params), latents, x, TRACE_CHUNK, L, decode, model.test_step)


class Solver:
    """Answers puzzles of one domain, on one device."""

    def __init__(self, model, domain: puzzles.Domain, w: weights.Weights, L: int, unit: str = "outer cycles"):
        self.domain = domain
        self._model, self._weights, self._L, self._unit = model, w, L, unit

    @classmethod
    def load(cls, path: str | os.PathLike) -> Solver:
        """From a run's folder or a weights file. Raises WeightsError, CheckpointError, DatasetError or ConfigError."""
        return cls.of(weights.read(path))

    @classmethod
    def of(cls, export: weights.Export) -> Solver:
        unit = "outer cycles" if export.model.test_cycles == 1 else "supervision steps"
        return cls(export.model, export.domain, export.weights, export.metadata["L"], unit)

    def solve(self, puzzles: Sequence[str | np.ndarray], *, max_steps: int = 256, settle: int = 8) -> list[Answer]:
        """Answers in the order of the puzzles.

        Args:
          puzzles: texts, or tokens [S] each. One that cannot be read, or contradicts itself, does not stop the others.
          max_steps: test steps at most: outer cycles, or supervision steps of a network that was trained with those.
          settle: a puzzle is done when its answer has stood still for so many of them.
        """
        _check(max_steps=max_steps, settle=settle)
        if isinstance(puzzles, str):
            raise SolveError("puzzles must be a list of puzzles; put the one in brackets")
        answers: list[Answer | None] = [None] * len(puzzles)
        readable, inputs = [], []
        for i, puzzle in enumerate(puzzles):
            try:
                inputs.append(self.read(puzzle))
                readable.append(i)
            except ValueError as error:
                answers[i] = Answer("", None, False, False, 0, " ".join(str(error).split()))
        for first in range(0, len(inputs), MAX_BATCH):
            batch = np.stack(inputs[first:first + MAX_BATCH])
            for i, answer in zip(readable[first:], self._solve(batch, max_steps, settle)):
                answers[i] = answer
        return answers

    def trace(self, puzzle: str | np.ndarray, steps: int = 64, *, settle: int = 0) -> Trace:
        """Every answer of `steps` outer cycles, or until it has stood still for `settle` of them (0: never mind).

        Raises PuzzleError if the puzzle cannot be read or contradicts itself.
        """
        _check(steps=steps)
        inputs = self.read(puzzle)
        watched, x = _begin(self._model, self._weights, jnp.asarray(inputs[None]))
        latents, tokens, confidence, residual, still = watched.latents, [], [], [], 0
        previous = np.asarray(watched.answer[0])
        while len(tokens) < steps and not (settle and still >= settle):
            latents, (decoded, moved) = _trace(self._model, self._weights, latents, x, self._L)
            for now, sure, move in zip(*(np.asarray(a)[:, 0] for a in (*decoded, moved))):
                tokens.append(now)
                confidence.append(sure)
                residual.append(move)
                still = still + 1 if np.array_equal(now, previous) else 0
                previous = now
                if len(tokens) == steps or settle and still >= settle:
                    break
        return Trace(inputs, np.stack(tokens), np.stack(confidence), np.stack(residual))

    def read(self, puzzle: str | np.ndarray) -> np.ndarray:
        """Tokens [S] of a puzzle whose clues do not contradict each other; PuzzleError otherwise."""
        if isinstance(puzzle, str):
            tokens = self.domain.encode(puzzle)
        else:
            tokens = np.asarray(puzzle)
            if tokens.shape != (self.domain.seq_len,) or tokens.dtype.kind not in "iu":
                raise puzzles.PuzzleError(f"tokens must be integers of shape [{self.domain.seq_len}], "
                                          f"got {tokens.dtype}{list(tokens.shape)}")
        self.domain.check_clues(tokens)
        return tokens.astype(np.uint8)

    def judge(self, inputs: np.ndarray, tokens: np.ndarray, settled: bool, cycles: int) -> Answer:
        """inputs, tokens [S]."""
        verdict = self.domain.verify(inputs[None], tokens[None])
        verified = bool(verdict.solved[0])
        reason = "" if verified else self.domain.explain(inputs, tokens)
        return Answer(self.domain.decode(tokens), tokens, verified, settled, cycles, reason, self._unit)

    def judge_trace(self, trace: Trace, settle: int) -> Answer:
        """The last answer of a trace."""
        cycles, since = len(trace.tokens), trace.stands_since
        settled = cycles - since >= settle
        return self.judge(trace.inputs, trace.tokens[-1], settled, since if settled else cycles)

    def _solve(self, inputs: np.ndarray, max_steps: int, settle: int) -> list[Answer]:
        """inputs [n, S]. Every puzzle's answer is the one with which it settled, whatever the others still need."""
        n = len(inputs)
        bucket = 1 << (n - 1).bit_length()  # a power of two, so that few sizes are ever compiled
        filled = np.concatenate([inputs, np.repeat(inputs[-1:], bucket - n, axis=0)])
        watched, x = _begin(self._model, self._weights, jnp.asarray(filled))
        answers: list[Answer | None] = [None] * n
        running, done = np.arange(n), 0
        still = np.zeros(bucket, int)
        while len(running):
            # No running puzzle can settle sooner than this.
            cycles = min(settle - int(still[running].max()), max_steps - done)
            watched = _advance(self._model, self._weights, watched, x, np.int32(cycles), self._L)
            done += cycles
            tokens, still = np.asarray(watched.answer), np.asarray(watched.unchanged)
            for i in running[(still[running] >= settle) | (done == max_steps)]:
                settled = bool(still[i] >= settle)
                answers[i] = self.judge(inputs[i], tokens[i], settled, done - int(still[i]) if settled else done)
            running = np.array([i for i in running if answers[i] is None], int)
        return answers


def _check(**at_least_one: int) -> None:
    for name, value in at_least_one.items():
        if value < 1:
            raise SolveError(f"{name} = {value}: must be at least 1")


def conflicts(domain: puzzles.Domain, tokens: np.ndarray) -> list[str]:
    """What contradicts what in an answer [S], in words, of a domain whose cells can (a maze's cannot)."""
    try:
        return domain.conflicts(tokens) if hasattr(domain, "conflicts") else []
    except puzzles.PuzzleError:  # holds what no puzzle can
        return []


# Pictures in text.


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
        if domain.verify(trace.inputs[None], tokens[None]).solved[0]:
            verdict = "verified"
        elif (found := len(conflicts(domain, tokens))):
            verdict = f"{found} clash{'es' * (found > 1)}"
        else:
            verdict = "not solved"
        pictures.append(_picture(f"cycle {cycle}", f"{changed.sum()} changed, {verdict}",
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


def load_example(export: weights.Export, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(inputs [S], labels [S]) of a puzzle of the test set that belongs to the weights."""
    d = export.experiment.data
    test = store.load(d.path, "test", make=d.how_to_make)
    if not 0 <= number < test.num_examples:
        raise SolveError(f"there is no test puzzle {number} in {d.path}: they are numbered 0 to "
                         f"{test.num_examples - 1}")
    return test.inputs[number], test.labels[number]


def open_source(args: argparse.Namespace) -> weights.Export:
    """The export behind --workdir or --weights, with compiled programs kept between calls."""
    distributed.enable_compilation_cache(args.compilation_cache)
    return weights.from_run(args.workdir) if args.workdir else weights.load(args.weights)


def add_source(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", help="folder of a run; its best checkpoint is used")
    source.add_argument("--weights", help="file written by python -m trm_jax.weights")
    parser.add_argument("--compilation_cache", default=distributed.COMPILED,
                        help="folder that keeps compiled programs between calls; empty: none")
    parser.add_argument("--max_steps", type=int, default=256, help="outer cycles at most (%(default)s)")
    parser.add_argument("--settle", type=int, default=8,
                        help="stop when the answer has stood still for so many outer cycles (%(default)s)")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trm_jax.solve", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser)
    parser.add_argument("--watch", action="store_true", help="show the answer as it fills in")
    parser.add_argument("--example", type=int, metavar="N", help="puzzle N of the run's test set, counted from 0")
    parser.add_argument("puzzle", nargs="*", help="puzzles as text; without any, one per line of standard input")
    args = parser.parse_args(argv)
    return guarded(lambda: _answer(args))


def _answer(args: argparse.Namespace) -> int:
    _check(max_steps=args.max_steps, settle=args.settle)
    export = open_source(args)
    named: list[tuple[str, str | np.ndarray]] = []
    if args.example is not None:
        named.append((f"test puzzle {args.example}", load_example(export, args.example)[0]))
    texts = args.puzzle
    if not texts and not named:
        if sys.stdin.isatty():
            print("puzzles, one per line, then Ctrl-D:", file=sys.stderr)
        texts = [line for line in sys.stdin.read().splitlines() if line.strip()]
    named += [(f"puzzle {i}", text) for i, text in enumerate(texts, 1)]
    if not named:
        raise SolveError("no puzzle given: as an argument, by --example N, or one per line of standard input")
    solver = Solver.of(export)
    tty = sys.stdout.isatty()
    color = tty and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    if args.watch:
        answers = [_watch(solver, name, puzzle, args, color) for name, puzzle in named]
    else:
        answers = solver.solve([puzzle for _, puzzle in named], max_steps=args.max_steps, settle=args.settle)
        for (name, puzzle), answer in zip(named, answers):
            if tty and answer.tokens is not None:
                print(solver.domain.render(answer.tokens, given=solver.read(puzzle), color=color), flush=True)
            else:
                print(answer.text, flush=True)
            print(f"{name}: {answer.status}", file=sys.stderr, flush=True)
    return 0 if all(answer.verified for answer in answers) else 1


def _watch(solver: Solver, name: str, puzzle, args: argparse.Namespace, color: bool) -> Answer:
    try:
        trace = solver.trace(puzzle, args.max_steps, settle=args.settle)
    except puzzles.PuzzleError as error:
        answer = Answer("", None, False, False, 0, " ".join(str(error).split()))
    else:
        answer = solver.judge_trace(trace, args.settle)
        columns = shutil.get_terminal_size().columns
        print(f"{name} ({'highlighted' if color else '*'}: changed since the grid before; clash: a broken rule)")
        print(side_by_side(frames(solver.domain, trace, color), columns), flush=True)
    print(f"{name}: {answer.status}", file=sys.stderr, flush=True)
    return answer


if __name__ == "__main__":
    sys.exit(main())
