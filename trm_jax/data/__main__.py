"""Builds dataset folders: generated puzzles, CSV or JSON files, or the official files of a published dataset."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from trm_jax import config, puzzles
from trm_jax.data import arc_build, dataset, making
from trm_jax.data.dataset import DatasetError
from trm_jax.runtime import arguments
from trm_jax.runtime.errors import guarded

EXAMPLES = """examples:
  python -m trm_jax data sudoku --generate --out data/easy --train 60000 --test 1000 --clues 41
  python -m trm_jax data sudoku --generate --out data/6x6 --box 2x3
  python -m trm_jax data sudoku --csv train.csv.gz --test_csv test.csv.gz --out data/hard
  python -m trm_jax data sudoku --csv train.csv --test_csv test.csv --out data/1k --train 1000 --num_aug 1000
  python -m trm_jax data sudoku --hub --out data/sudoku-extreme
  python -m trm_jax data maze --generate --out data/maze-hard
  python -m trm_jax data maze --generate --size 10x10 --single_path --train 20000 --out data/maze-10
  python -m trm_jax data maze --hub --out data/maze-30x30-hard-1k
  python -m trm_jax data arc --json_dir arc --subsets training,evaluation,concept --test_subset evaluation --out arc1
  python -m trm_jax data bench --data data/easy --batch_size 512 --seconds 5
"""
COUNT, POSITIVE = arguments.integer(0), arguments.integer(1)


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.command == "bench":
        return guarded(lambda: bench(args.data, args.puzzle, args.batch_size, args.seconds))
    return guarded(lambda: print(making.make(_asked(args), overwrite=args.overwrite)),
                   interrupted="nothing was written")


def parser() -> arguments.Parser:
    top = arguments.Parser("python -m trm_jax data", __doc__, EXAMPLES)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=arguments.Parser)

    sudoku, made, read = _add_grids(commands, "sudoku", "Sudoku puzzles")
    sudoku.add_argument("--box", type=_sides, metavar="RxC", help="rows x columns of a box (3x3)")
    clues = made.add_mutually_exclusive_group()
    clues.add_argument("--clues", type=POSITIVE, metavar="N", help="clues per puzzle")
    clues.add_argument("--blanks", type=COUNT, metavar="N", help="the same, counted the other way")
    clues.add_argument("--minimal", action="store_true", help="no clue can be spared (the default)")
    read.add_argument("--reveal", type=arguments.listed(arguments.text), metavar="SOURCE:SHARE:MOST:COPIES[,...]",
                      help="of training puzzles of a source so many copies, a share of them as they are and the others "
                      "with 1 to MOST more cells given; *: all other sources")
    read.add_argument("--num_aug", type=COUNT, metavar="N",
                      help="store N shuffles of each training puzzle beside it (0; published: 1000)")

    maze, made, _ = _add_grids(commands, "maze", "mazes; their symmetries are for training: data.augment")
    maze.add_argument("--size", type=_sides, metavar="RxC", help="rows x columns (30x30)")
    maze.add_argument("--smallest", type=COUNT, metavar="N",
                      help="mazes of all sizes with sides from N to those of --size; 0: all of that size (0)")
    made.add_argument("--min_length", type=COUNT, metavar="N",
                      help="the shortest path has more than N steps (110 at 30x30, as much for every cell elsewhere)")
    made.add_argument("--single_path", action="store_true", default=None,
                      help="walls are added until there is only one shortest path")

    for name in puzzles.names():
        domain = puzzles.domain_class(name)
        if domain.generates and name not in ("sudoku", "maze"):
            of_it, made, read = _add_grids(commands, name, f"puzzles of {name}")
            for group, options in zip((of_it, made), puzzles.options_of(domain)):
                for option, default in options.items():
                    group.add_argument(f"--{option}", dest=f"option {option}", type=_of_kind(default),
                                       metavar="VALUE", help=f"({default})")
            read.add_argument("--num_aug", type=COUNT, metavar="N", help="store N symmetries of each training puzzle "
                              "beside it (0)")

    grids = _add(commands, "arc", "make a folder of ARC-AGI tasks and their symmetries")
    grids.set_defaults(source="arc_json")
    grids.add_argument("--json_dir", required=True, metavar="DIR", type=arguments.text,
                       help="folder of Kaggle's PREFIX_SUBSET_challenges.json and PREFIX_SUBSET_solutions.json, or of "
                       "a folder SUBSET with a file for every task, or SUBSET.jsonl")
    grids.add_argument("--prefix", type=arguments.text, help=f"({arc_build.PREFIX})")
    grids.add_argument("--subsets", required=True, type=arguments.listed(arguments.text), metavar="A,B",
                       help="whose tasks are learned from")
    grids.add_argument("--test_subset", required=True, metavar="A", type=arguments.text,
                       help="one of them: only the demonstrations of its tasks are learned, the rest is the test")
    grids.add_argument("--no_test_solutions", action="store_true", default=None,
                       help="the test subset has no solutions file: there is no score, only a submission")
    grids.add_argument("--num_aug", type=COUNT, default=1000, metavar="N",
                       help="symmetries of each task beside it, at most: some tasks have fewer (1000, as published)")

    measure = commands.add_parser("bench", help="measure the input pipeline on one core")
    arguments.option(measure, "--data", "--path", required=True, metavar="DIR", type=arguments.text,
                     help="dataset folder")
    measure.add_argument("--puzzle", choices=puzzles.names(), default="sudoku",
                         help="what is in it, if its files do not say (sudoku)")
    arguments.add_batch_size(measure, 512, "puzzles of a batch")
    measure.add_argument("--seconds", type=arguments.number(above=True), default=5.0, help="(%(default)s)")
    return top


def _add(commands: Any, name: str, what: str) -> arguments.Parser:
    command = commands.add_parser(name, help=what, epilog=EXAMPLES)
    arguments.add_out(command, "the folder to make")
    command.add_argument("--overwrite", action="store_true", help="replace it if it is a dataset folder")
    arguments.add_seed(command, "of everything random here")
    return command


def _add_grids(commands: Any, name: str, what: str) -> tuple[arguments.Parser, Any, Any]:
    """The options that Sudokus and mazes share: (parser, group of --generate, group of --csv and --hub)."""
    command = _add(commands, name, f"make a folder of {what}")
    mode = command.add_argument_group("where the puzzles come from").add_mutually_exclusive_group(required=True)
    mode.add_argument("--generate", dest="source", action="store_const", const="generate",
                      help="new puzzles; train and test share no solution grid")
    mode.add_argument("--csv", metavar="TRAIN", type=arguments.text,
                      help="file source,question,answer,rating, plain or .gz")
    if name in making.HUB:
        mode.add_argument("--hub", dest="source", action="store_const", const="hub",
                          help=f"official files of {making.HUB[name]} on the Hugging Face hub")
    train, test = puzzles.domain_class(name).usual
    arguments.option(command, "--train", "--subsample", type=POSITIVE, metavar="N",
                     help=f"training puzzles to generate ({train}), or to keep of the file, drawn by --seed (all)")
    arguments.option(command, "--test", "--test_subsample", type=POSITIVE, metavar="N",
                     help=f"the same of test ({test})")
    read = command.add_argument_group("with --csv or --hub")
    read.add_argument("--test_csv", metavar="TEST", type=arguments.text, help="the test file, needed with --csv")
    read.add_argument("--min_rating", type=COUNT, metavar="R", help="keep puzzles rated R or more, train and test")
    return command, command.add_argument_group("with --generate"), read


def _asked(args: argparse.Namespace) -> config.Data:
    """The dataset that the arguments describe. Raises DatasetError or ConfigError."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    given["source"] = source = given.get("source", "csv")
    meaning = config.make_fields(source, args.command)
    if source == "csv" and "test_csv" not in given:
        raise DatasetError("--csv needs --test_csv too")
    fields = {name: value for name, value in given.items() if name in vars(config.Make())}
    if stray := [name for name in fields if name not in ("source", *meaning)]:
        raise DatasetError(f"--{stray[0]} has no meaning with --{source}")
    if options := [f"{name.removeprefix('option ')}={value}" for name, value in given.items()
                   if name.startswith("option ")]:
        fields["options"] = tuple(options)
    if "blanks" in given:
        rows, columns = given.get("box", config.Make.box)
        if (clues := (rows * columns) ** 2 - given["blanks"]) < 1:
            raise DatasetError(f"--blanks {given['blanks']} leaves no clue of {(rows * columns) ** 2} cells")
        fields["clues"] = clues
    return config.parse({"data": {"puzzle": args.command, "path": args.out, "make": fields}}).data


def bench(path: str, puzzle: str, batch_size: int, seconds: float) -> None:
    """Prints puzzles/s on one core, prefetching thread included."""
    from trm_jax.data import pipeline  # Grain takes longer to import than most folders to make

    split = dataset.load(path, "train")
    domain = dataset.load_domain(path, puzzle, split.metadata.seq_len)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for augment in (True, False) if domain.has_symmetries else (False,):
        batches = pipeline.train_batches(split, domain, global_batch_size=batch_size, augment=augment)
        for _ in range(10):
            next(batches)
        started, count = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - started) < seconds / 2:
            next(batches)
            count += batch_size
        batches.close()
        print(f"{'with' if augment else 'without'} augmentation: {count / elapsed:,.0f} puzzles/s "
              f"(batch {batch_size}, seq_len {split.metadata.seq_len}, one core, {elapsed:.1f} s)")


def _of_kind(default: Any) -> Callable[[str], Any]:
    """What reads an option from the command line, from what stands for it where it is not given."""
    if isinstance(default, bool):
        return arguments.boolean
    return COUNT if isinstance(default, int) else arguments.number() if isinstance(default, float) else arguments.text


def _sides(text: str) -> tuple[int, int]:
    rows, x, cols = text.lower().partition("x")
    if not (x and all(side.isascii() and side.isdecimal() and len(side) < 5 and int(side) for side in (rows, cols))):
        raise argparse.ArgumentTypeError(f"{text!r:.60} is no box shape or maze size; write rows x columns: 3x3")
    return int(rows), int(cols)


if __name__ == "__main__":
    sys.exit(main())
