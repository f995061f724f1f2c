"""Builds dataset folders: generated puzzles, CSV or JSON files, or the official files of a published dataset."""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import trm_jax
from trm_jax import puzzles
from trm_jax.data import arc_build, dataset, sources
from trm_jax.data.dataset import DatasetError
from trm_jax.runtime.errors import guarded

EXAMPLES = """examples:
  python -m trm_jax.data sudoku --generate --out data/easy --train 60000 --test 1000 --clues 41
  python -m trm_jax.data sudoku --generate --out data/6x6 --box 2x3 --minimal
  python -m trm_jax.data sudoku --csv train.csv.gz --test_csv test.csv.gz --out data/hard
  python -m trm_jax.data sudoku --csv train.csv --test_csv test.csv --out data/1k --subsample 1000 --num_aug 1000
  python -m trm_jax.data sudoku --hub --out data/sudoku-extreme
  python -m trm_jax.data maze --generate --out data/maze-hard
  python -m trm_jax.data maze --generate --size 10x10 --single_path --train 20000 --out data/maze-10
  python -m trm_jax.data maze --hub --out data/maze-30x30-hard-1k
  python -m trm_jax.data arc --json_dir arc --subsets training,evaluation,concept --test_subset evaluation --out arc1
  python -m trm_jax.data bench --path data/easy --batch 512 --seconds 5
"""


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a domain's command has of its own."""

    hub: str  # where the official files are
    train: int  # puzzles to generate unless told otherwise
    test: int
    generate_only: tuple[str, ...]  # options
    import_only: tuple[str, ...]
    domain: Callable[[argparse.Namespace], puzzles.Domain]
    generator: Callable[[argparse.Namespace, puzzles.Domain], dict[str, Any]]  # what its generate takes


SUDOKU = Kind(
    hub="sapientinc/sudoku-extreme", train=60_000, test=1000,
    generate_only=("train", "test", "clues", "blanks", "minimal"),
    import_only=("subsample", "test_subsample", "num_aug", "min_rating"),
    domain=lambda args: puzzles.get("sudoku", box_rows=args.box[0], box_cols=args.box[1]),
    generator=lambda args, domain: {
        "clues": args.clues if args.blanks is None else domain.seq_len - args.blanks})
MAZE = Kind(
    hub="sapientinc/maze-30x30-hard-1k", train=1000, test=1000,
    generate_only=("train", "test", "min_length", "single_path"),
    import_only=("subsample", "test_subsample", "min_rating"),
    domain=lambda args: puzzles.get("maze", rows=args.size[0], cols=args.size[1]),
    generator=lambda args, domain: {
        "min_length": domain.default_min_length() if args.min_length is None else args.min_length,
        "single_path": bool(args.single_path)})


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        """One line; --help has the rest."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    args.argv = argv
    return guarded(lambda: args.run(args), interrupted="nothing was written")


def parser() -> argparse.ArgumentParser:
    top = _Parser(prog="python -m trm_jax.data", description=__doc__, epilog=EXAMPLES,
                  formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    sudoku, made, read = _add_kind(commands, "sudoku", SUDOKU, "Sudoku puzzles")
    sudoku.add_argument("--box", type=_sides, default=(3, 3), metavar="RxC", help="rows x columns of a box (3x3)")
    clues = made.add_mutually_exclusive_group()
    clues.add_argument("--clues", type=_positive, metavar="N", help="clues per puzzle")
    clues.add_argument("--blanks", type=_count, metavar="N", help="the same, counted the other way")
    clues.add_argument("--minimal", action="store_true", default=None, help="no clue can be spared (the default)")
    read.add_argument("--num_aug", type=_count, metavar="N",
                      help="store N shuffles of each training puzzle beside it (0; published: 1000)")

    maze, made, _ = _add_kind(commands, "maze", MAZE, "mazes; their symmetries are for training: data.augment")
    maze.add_argument("--size", type=_sides, default=(30, 30), metavar="RxC", help="rows x columns (30x30)")
    made.add_argument("--min_length", type=_count, metavar="N",
                      help="the shortest path has more than N steps (110 at 30x30, as much for every cell elsewhere)")
    made.add_argument("--single_path", action="store_true", default=None,
                      help="walls are added until there is only one shortest path")

    grids = commands.add_parser("arc", help="make a folder of ARC-AGI tasks and their symmetries", epilog=EXAMPLES,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    grids.set_defaults(run=make_arc)
    grids.add_argument("--json_dir", required=True, metavar="DIR",
                       help="folder of Kaggle's PREFIX_SUBSET_challenges.json and PREFIX_SUBSET_solutions.json")
    grids.add_argument("--prefix", default=arc_build.PREFIX, help=f"({arc_build.PREFIX})")
    grids.add_argument("--subsets", required=True, type=_names, metavar="A,B", help="whose tasks are learned from")
    grids.add_argument("--test_subset", required=True, metavar="A",
                       help="one of them: only the demonstrations of its tasks are learned, the rest is the test")
    grids.add_argument("--no_test_solutions", action="store_true",
                       help="the test subset has no solutions file: there is no score, only a submission")
    grids.add_argument("--num_aug", type=_count, default=1000, metavar="N",
                       help="symmetries of each task beside it, at most: some tasks have fewer (1000, as published)")
    grids.add_argument("--seed", type=_count, default=0, help="of everything random here (0)")
    grids.add_argument("--out", required=True, metavar="DIR", help="the folder to make")
    grids.add_argument("--overwrite", action="store_true", help="replace DIR if it is a dataset folder")

    bench = commands.add_parser("bench", help="measure the input pipeline on one core")
    bench.set_defaults(run=run_bench)
    bench.add_argument("--path", required=True, metavar="DIR", help="dataset folder")
    bench.add_argument("--puzzle", choices=puzzles.names(), default="sudoku",
                       help="what is in it, if its files do not say (sudoku)")
    bench.add_argument("--batch", type=_positive, default=512)
    bench.add_argument("--seconds", type=float, default=5.0)
    return top


def _add_kind(commands, name: str, kind: Kind, what: str):
    """The options that all domains share: (parser, group of --generate, group of --csv and --hub)."""
    command = commands.add_parser(name, help=f"make a folder of {what}", epilog=EXAMPLES,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    command.set_defaults(run=lambda args: make_folder(args, kind))
    command.add_argument("--out", required=True, metavar="DIR", help="the folder to make")
    command.add_argument("--overwrite", action="store_true", help="replace DIR if it is a dataset folder")
    command.add_argument("--seed", type=_count, default=0, help="of everything random here (0)")
    mode = command.add_argument_group("where the puzzles come from").add_mutually_exclusive_group(required=True)
    mode.add_argument("--generate", action="store_true", help="new puzzles; train and test share no solution grid")
    mode.add_argument("--csv", metavar="TRAIN", help="file source,question,answer,rating, plain or .gz")
    mode.add_argument("--hub", action="store_true", help=f"official files of {kind.hub} on the Hugging Face hub")
    made = command.add_argument_group("with --generate")
    made.add_argument("--train", type=_positive, metavar="N", help=f"training puzzles ({kind.train})")
    made.add_argument("--test", type=_positive, metavar="N", help=f"test puzzles ({kind.test})")
    read = command.add_argument_group("with --csv or --hub")
    read.add_argument("--test_csv", metavar="TEST", help="the test file, needed with --csv")
    read.add_argument("--subsample", type=_positive, metavar="N", help="keep N training puzzles, drawn by --seed")
    read.add_argument("--test_subsample", type=_positive, metavar="N", help="keep N test puzzles")
    read.add_argument("--min_rating", type=_count, metavar="R", help="keep puzzles rated R or more, train and test")
    return command, made, read


def make_folder(args, kind: Kind) -> None:
    for name in kind.import_only + ("test_csv",) if args.generate else kind.generate_only:
        if getattr(args, name) is not None:
            raise DatasetError(f"--{name} has no meaning with {_mode(args)}")
    if args.test_csv is not None and not args.csv:
        raise DatasetError("--test_csv has no meaning with --hub")
    if args.csv and not args.test_csv:
        raise DatasetError("--csv needs --test_csv too")
    dataset.refuse_taken(args.out, args.overwrite)
    domain = kind.domain(args)
    started = time.time()
    defaults = {"train": kind.train, "test": kind.test, "num_aug": 0}
    options = {name: defaults.get(name) if getattr(args, name) is None else getattr(args, name)
               for name in (kind.generate_only if args.generate else kind.import_only)}
    files = {}
    if args.generate:
        how = kind.generator(args, domain)
        options |= how
        if "minimal" in options:
            options["minimal"] = how["clues"] is None
        train, test = sources.generate(domain, options["train"], options["test"], seed=args.seed, **how)
    else:
        paths = _download(kind.hub) if args.hub else {"train": args.csv, "test": args.test_csv}
        keep = {"train": args.subsample, "test": args.test_subsample}
        read = {}
        for name, path in paths.items():
            print(f"reading {path}", file=sys.stderr)
            examples, digest = sources.read_csv(path, domain)
            files[name] = {"file": os.path.basename(path), "rows": len(examples), "sha256": digest}
            read[name] = sources.choose(examples, str(path), min_rating=args.min_rating, subsample=keep[name],
                                        seed=args.seed)
        train, test = read["train"], read["test"]
    shared = sources.count_shared_grids(train, test)
    splits = {"train": sources.to_split(train, domain, num_aug=options.get("num_aug", 0), seed=args.seed),
              "test": sources.to_split(test, domain)}
    provenance = {
        "format": 1,
        "puzzle": puzzles.puzzle_of(domain),
        "command": "python -m trm_jax.data " + shlex.join(args.argv),
        "mode": _mode(args).lstrip("-"), "options": options, "seed": args.seed, "files": files,
        "hub": kind.hub if args.hub else None,
        "counts": {name: {"examples": s.num_examples, "groups": s.num_groups} for name, s in splits.items()},
        "test_grids_in_train": shared,
        "versions": _versions(),
    }
    dataset.write(args.out, splits, [dataset.BLANK], provenance, overwrite=args.overwrite)
    print(summary(args.out, splits))
    print(f"test puzzles whose solution grid is in train too: {shared}")
    print(f"{time.time() - started:.1f} s")


def make_arc(args) -> None:
    """The published build of ARC-AGI."""
    dataset.refuse_taken(args.out, args.overwrite)
    started = time.time()
    tasks, files = arc_build.read_subsets(args.json_dir, args.subsets, args.test_subset, args.prefix,
                                    not args.no_test_solutions)
    seen = arc_build.answers_in_training(tasks, args.test_subset)
    for tested, trained in seen:
        print(f"warning: a test pair of task {tested} is also a pair of task {trained}, which is trained on",
              file=sys.stderr)
    provenance = {
        "format": 1, "puzzle": puzzles.puzzle_of(puzzles.get("arc")),
        "command": "python -m trm_jax.data " + shlex.join(args.argv),
        "mode": "json", "seed": args.seed, "files": files, "hub": None,
        "options": {"subsets": args.subsets, "test_subset": args.test_subset, "num_aug": args.num_aug,
                    "no_test_solutions": args.no_test_solutions},
        "test_pairs_in_train": seen, "versions": _versions(),
    }
    counts = arc_build.build(args.out, tasks, args.test_subset, num_aug=args.num_aug, seed=args.seed,
                             provenance=provenance,
                       overwrite=args.overwrite)
    print(f"{args.out}\n{counts['tasks']:,} tasks, {counts['training_pairs']:,} training pairs, "
          f"{counts['test_inputs']:,} test inputs; with symmetries {counts['train']['examples']:,} and "
          f"{counts['test']['examples']:,}\n{counts['identifiers']:,} identifiers, the blank one included; "
          f"{counts['tasks_with_fewer_symmetries']} tasks have fewer than {args.num_aug:,} symmetries\n"
          f"test pairs that are training pairs of another task too: {len(seen)}\n{time.time() - started:.1f} s")


def summary(path, splits: dict[str, dataset.Split]) -> str:
    """A table with a line for every split and source. Last column: mean clues, or log2 of shortest paths of a maze."""
    last = "clues" if splits["train"].log2_paths is None else "log2 paths"
    lines = [f"{path}", f"{'split':6} {'source':32} {'puzzles':>9} {'examples':>10} {'mean rating':>11} {last:>10}"]
    for name, split in splits.items():
        one_of_group = split.puzzle_indices[split.group_indices[:-1]]
        for code, source in [(None, "all"), *enumerate(split.source_names)]:
            chosen = slice(None) if code is None else split.sources == code
            first = one_of_group if code is None else one_of_group[split.sources[one_of_group] == code]
            if not len(first) or (code is not None and len(split.source_names) == 1):
                continue
            known = (split.inputs[first] > 1).sum(axis=1) if split.log2_paths is None else split.log2_paths[first]
            lines.append(f"{name:6} {source[:32]:32} {len(first):9,} {len(split.ratings[chosen]):10,} "
                         f"{split.ratings[first].mean():11.1f} {known.mean():10.1f}")
    return "\n".join(lines)


def run_bench(args) -> None:
    """Puzzles/s on one core, prefetching thread included."""
    from trm_jax.data import pipeline  # Grain takes longer to import than most folders to make

    split = dataset.load(args.path, "train")
    domain = dataset.load_domain(args.path, args.puzzle, split.metadata.seq_len)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for augment in (True, False) if domain.has_symmetries else (False,):
        batches = pipeline.train_batches(split, domain, global_batch_size=args.batch, augment=augment)
        for _ in range(10):
            next(batches)
        started, count = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - started) < args.seconds / 2:
            next(batches)
            count += args.batch
        batches.close()
        print(f"{'with' if augment else 'without'} augmentation: {count / elapsed:,.0f} puzzles/s "
              f"(batch {args.batch}, seq_len {split.metadata.seq_len}, one core, {elapsed:.1f} s)")


def _download(repo: str) -> dict[str, str]:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise DatasetError("--hub needs huggingface_hub: pip install 'trm_jax[hub]'") from error
    try:
        return {name: hf_hub_download(repo, f"{name}.csv", repo_type="dataset") for name in ("train", "test")}
    except Exception as error:  # the hub's own errors, and those of three HTTP libraries under it
        reason = (str(error).splitlines() or [""])[0]
        raise DatasetError(f"{repo} could not be downloaded ({type(error).__name__}: {reason})") from error


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "numpy": np.__version__, "trm_jax": trm_jax.__version__}


def _mode(args) -> str:
    return "--generate" if args.generate else "--csv" if args.csv else "--hub"


def _sides(text: str) -> tuple[int, int]:
    rows, x, cols = text.lower().partition("x")
    if not (x and rows.isdecimal() and cols.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no box shape or maze size; write rows x columns: 3x3")
    return int(rows), int(cols)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer of at least 0")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
