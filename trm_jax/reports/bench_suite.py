"""A speed ledger: a fixed list of measurements, compared with an earlier run's or with another commit's.

    python -m trm_jax bench suite --out=speed.json                    measure
    python -m trm_jax bench suite --earlier=speed.json                and compare with that file
    python -m trm_jax bench suite --against=d44ac6a --only=step       this tree and that commit, in turns

Every measurement is a command of this package, run in a process of its own in the folder of a source tree, so that any
commit that has the command can be measured. With --against the trees take turns, round by round: what else the machine
does hits them alike, and the ratio of two neighbours is the figure. Ratios above 1: this tree is faster.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import trm_jax
from trm_jax.runtime import arguments, distributed, files
from trm_jax.runtime.errors import UserError, guarded
from trm_jax.runtime.progress import say
from trm_jax.runtime.text import table

PUZZLE = "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4.."
WEIGHTS = "--weights=rsm-sudoku-quick"  # commits differ in which ones they take by themselves
BFLOAT16 = ("--set", "arch.matmul_precision=bfloat16")
FLOAT32 = ("--set", "arch.forward_dtype=float32")


class SuiteError(UserError):
    """A measurement that did not run; the message has its last words."""


class Measurement(NamedTuple):
    """A command, and how to read the seconds of one unit of work from it."""

    name: str
    words: tuple[str, ...]  # after python -m; {data} and {cache}: folders of the suite
    read: str  # step: a table of steps; speed: JSON of cycles per second; pipeline; wall: the whole process
    here: tuple[str, ...] = ()  # more words for this tree, which an earlier commit would not know


def _step(name: str, config: str, *more: str) -> Measurement:
    words = ("trm_jax.bench", f"--config=experiments/{config}", "--repeats=5", *more)
    return Measurement(f"step {name}", words, "step")


def _cycle(batch: int, name: str = "", *here: str) -> Measurement:
    words = ("trm_jax.bench_inference", "speed", f"--batch_sizes={batch}", "--seconds=0.5", WEIGHTS,
             "--data={data}", "--out={data}/speed.json")
    return Measurement(f"cycle of {batch} puzzles{name}", words, "speed", here)


SUITE = (
    _step("rsm_sudoku:quick", "rsm_sudoku.py:quick"),
    _step("rsm_sudoku:quick, bfloat16", "rsm_sudoku.py:quick", "--set", "arch.forward_dtype=bfloat16"),
    Measurement("step rsm_sudoku:quick, products of bfloat16 here", ("trm_jax.bench", "--repeats=5",
                "--config=experiments/rsm_sudoku.py:quick"), "step", BFLOAT16),
    _step("rsm_sudoku, full size, batch 2", "rsm_sudoku.py", "--set", "global_batch_size=2", *FLOAT32),
    _step("trm_mlp_sudoku, full size, batch 2", "trm_mlp_sudoku.py", "--set", "global_batch_size=2", *FLOAT32),
    _step("trm_mlp_arc1:quick, table of 1,000 rows", "trm_mlp_arc1.py:quick", "--rows", "1000"),
    _cycle(1), _cycle(64), _cycle(512), _cycle(64, ", products of bfloat16 here", *BFLOAT16),
    Measurement("a puzzle from the pipeline", ("trm_jax.data", "bench", "--path", "{data}", "--batch", "512",
                                               "--seconds", "2"), "pipeline"),
    Measurement("solve, cold", ("trm_jax.solve", PUZZLE, WEIGHTS, "--max_steps=16", "--compilation_cache="), "wall"),
    Measurement("solve, warm", ("trm_jax.solve", PUZZLE, WEIGHTS, "--max_steps=16",
                                "--compilation_cache={cache}"), "wall"),
)


def run(measurement: Measurement, tree: Path, data: Path) -> float:
    """Seconds of one unit. Raises SuiteError."""
    folders = {"data": str(data), "cache": str(data / "compiled" / tree.name)}
    here = tree == Path(trm_jax.__file__).parents[1]
    words = [word.format(**folders) for word in (*measurement.words, *(measurement.here if here else ()))]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *words], cwd=tree, env=environment, capture_output=True, text=True)
    wall = time.perf_counter() - begun
    if done.returncode not in (0, 1) or not done.stdout.strip():  # 1: a puzzle that is not solved took its time too
        raise SuiteError(f"{measurement.name} in {tree}: {' '.join((done.stderr or done.stdout).split())[-300:]}")
    return wall if measurement.read == "wall" else read(measurement.read, done.stdout, data)


def read(kind: str, text: str, data: Path) -> float:
    """Seconds from what a command has printed or written."""
    if kind == "speed":
        return 1 / json.loads((data / "speed.json").read_text())["speed"][0]["cycles_per_second"]
    found = (re.search(r"^(?:as configured|[\d,]+ rows)\s+([\d,.]+)", text, re.M) if kind == "step" else
             re.search(r"([\d,]+(?:\.\d+)?) (?:puzzles|examples)/s", text))
    if found is None:
        raise SuiteError(f"no figure in: {text[-300:]!r}")
    value = float(found[1].replace(",", ""))
    return value / 1000 if kind == "step" else 1 / value


@contextlib.contextmanager
def worktree(commit: str, here: Path) -> Iterator[Path]:
    """The files of a commit, in a folder of their own for as long as it takes."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        done = subprocess.run(["git", "-C", here, "worktree", "add", "--detach", tree, commit], capture_output=True,
                              text=True)
        if done.returncode:
            raise SuiteError(f"--against={commit}: {' '.join(done.stderr.split())}")
        try:
            yield tree
        finally:
            subprocess.run(["git", "-C", here, "worktree", "remove", "--force", tree], capture_output=True)


def measure(chosen: Sequence[Measurement], trees: dict[str, Path], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Name of the measurement -> name of the tree -> seconds, one of each round."""
    found = {m.name: {name: [] for name in trees} for m in chosen}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        if any("{data}" in word for m in chosen for word in m.words):
            make = ["-m", "trm_jax.data", "sudoku", "--generate", "--blanks", "40", "--train", "2000", "--test", "1000",
                    "--out", str(data)]
            subprocess.run([sys.executable, *make], check=True, capture_output=True, cwd=next(iter(trees.values())))
        data.mkdir(exist_ok=True)
        for turn in range(rounds):
            for m in chosen:
                if "{cache}" in " ".join(m.words) and turn == 0:  # fills the caches
                    for tree in trees.values():
                        run(m, tree, data)
                for name, tree in trees.items():
                    found[m.name][name].append(run(m, tree, data))
                    say(f"round {turn + 1} of {rounds}: {m.name}, {name}: {human_seconds(found[m.name][name][-1])}")
    return found


def human_seconds(value: float) -> str:
    power = 0 if value >= 1 else 1 if value >= 1e-3 else 2
    return f"{value * 1000 ** power:.3g} {('s', 'ms', 'us')[power]}"


def show(seconds: dict[str, dict[str, list[float]]], other: str, earlier: dict[str, list[float]]) -> str:
    """A line for each measurement: median, spread, and ratios to another tree, or to an earlier run."""
    rows = []
    for name, by_tree in seconds.items():
        here = by_tree["this"]
        row = [name, *map(human_seconds, (statistics.median(here), min(here), max(here)))]
        theirs = by_tree.get(other) or earlier.get(name)
        if theirs:
            pairs = ([b / a for a, b in zip(here, theirs)] if other in by_tree else
                     [statistics.median(theirs) / a for a in here])
            row += [human_seconds(statistics.median(theirs)), f"{statistics.median(pairs):.2f}",
                    f"{min(pairs):.2f} to {max(pairs):.2f}"]
        rows.append(row + [""] * ((7 if other or earlier else 4) - len(row)))
    head = ["", "median", "least", "most", *([other or "earlier", "ratio", "spread"] if other or earlier else [])]
    return table(head, rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments.Parser("python -m trm_jax bench suite", __doc__)
    parser.add_argument("--only", default=None, type=arguments.text, metavar="WORDS", help="measurements with one "
                        "of these words in their names, with commas between: " + "; ".join(m.name for m in SUITE))
    parser.add_argument("--rounds", type=arguments.integer(1, 1000), default=5,
                        help="of every measurement (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file of the result")
    parser.add_argument("--earlier", type=Path, metavar="FILE", help="JSON file of an earlier run, to compare with")
    parser.add_argument("--against", default=None, type=arguments.text, metavar="COMMIT",
                        help="a commit to compare with")
    arguments.add_format(parser, "text", "json")
    args = parser.parse_args(argv)
    if args.earlier and args.against:
        parser.error("--earlier and --against: give one of them")

    def job() -> None:
        chosen = [m for m in SUITE if any(word in m.name for word in (args.only or "").split(","))]
        if not chosen:
            raise SuiteError(f"--only={args.only}: no measurement has such a name")
        try:
            earlier = json.loads(args.earlier.read_text(encoding="utf-8"))["seconds"] if args.earlier else {}
        except (ValueError, KeyError, TypeError):
            raise SuiteError(f"{args.earlier} is not the result of a suite") from None
        here = Path(trm_jax.__file__).parents[1]
        with contextlib.ExitStack() as stack:
            trees = {"this": here}
            if args.against:
                trees[args.against] = stack.enter_context(worktree(args.against, here))
            seconds = measure(chosen, trees, args.rounds)
        result: dict[str, Any] = {"device": distributed.device_description(), "versions": distributed.versions(),
                                  "seconds": {name: by_tree["this"] for name, by_tree in seconds.items()}}
        if args.against:
            result |= {"against": args.against, "their_seconds": {
                name: by_tree[args.against] for name, by_tree in seconds.items()}}
        if args.out:
            files.write_json(args.out, result)
        print(json.dumps(result, indent=2) if args.format == "json" else show(
            seconds, args.against or "", {name: times for name, times in earlier.items()}))
    return guarded(job)


if __name__ == "__main__":
    sys.exit(main())
