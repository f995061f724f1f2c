"""python -m trm_jax.main --config=experiments/rsm_sudoku.py

Trains and evaluates a config; the same command continues a run that was interrupted. A dataset that is missing is made
first, as data.make in the config says. Fields of the config are set by --config.FIELD=VALUE:

    python -m trm_jax.main --config=rsm_sudoku:quick --config.lr=0.001 --config.eval.H_test=16,64 --workdir=runs/mine
"""

from __future__ import annotations

import argparse
import inspect
import math
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from trm_jax import config
from trm_jax.data import making
from trm_jax.runtime import arguments
from trm_jax.runtime.errors import guarded
from trm_jax.runtime.pages import use_huge_pages

MODES = {
    "train": "train and evaluate, from the last checkpoint if there is one",
    "evaluate": "evaluate the best checkpoint of the run, or --weights",
    "pool": "ARC: evaluate every kept checkpoint and vote with all of them together",
    "describe": "parameters, FLOPs, memory and curriculum, without training",
}


def main(argv: Sequence[str] | None = None, mode: str = "") -> int:
    """Args: mode: as which command of `python -m trm_jax` it was called; "": by --mode."""
    argv = sys.argv[1:] if argv is None else list(argv)
    words, fields = split_fields(argv)
    parser = arguments.Parser(f"python -m trm_jax {mode}" if mode else "python -m trm_jax.main", __doc__)
    parser.add_argument("--config", required=True, metavar="NAME", type=arguments.text,
                        help="experiment, by name or file, with its variant after a colon: rsm_sudoku:quick")
    parser.add_argument("--config.FIELD", metavar="VALUE", help="set a field of it; lists with commas; repeatable")
    if not mode:
        parser.add_argument("--mode", choices=tuple(MODES), default="train",
                            help="; ".join(f"{name}: {does}" for name, does in MODES.items()))
    parser.add_argument("--workdir", metavar="RUN", type=arguments.text, help="folder of the run: config, checkpoints, "
                        "metrics, evaluations (runs/NAME-VARIANT)")
    parser.add_argument("--weights", metavar="SOURCE", type=arguments.text, help="to evaluate instead of the run's "
                        "best checkpoint: a name, a file, the folder of a run or hf://OWNER/NAME; the result still "
                        "goes to --workdir")
    parser.add_argument("--init_from", metavar="SOURCE", type=arguments.text, help="weights that training starts "
                        "from: a name, a file, the folder of a run or hf://OWNER/NAME; a run that has a checkpoint "
                        "goes on from that")
    parser.add_argument("--make_data", type=arguments.boolean, default=True, metavar="BOOL",
                        help="make the dataset, by generating or downloading, if it is missing (True)")
    arguments.add_cache(parser, "~/.cache/trm_jax/compiled")
    if mode == "train":
        parser.add_argument("--profile_steps", type=_step_range, metavar="A-B", help="trace these steps, from one line "
                            "of the log to another, into RUN/profile, and say where their time goes")
    if mode == "evaluate":
        parser.add_argument("--profile", type=arguments.text, metavar="DIR", help="evaluate a second time, traced into "
                            "this folder, and say where the time goes")
    if mode == "describe":
        parser.add_argument("--flops", type=arguments.number(0, 1e21, above=True), metavar="FLOP/S", help="speed for "
                            "which it says how long the run takes (1 TFLOP/s)")
        parser.add_argument("--mfu", type=arguments.number(0, 1, above=True), metavar="SHARE", help="of --flops, or "
                            "without it of the peak measured on this machine, that training reaches")
    args = parser.parse_args(words)
    mode = mode or args.mode
    if args.weights and mode != "evaluate":
        parser.error(f"--weights is for evaluating, not to {mode}")

    if args.init_from and mode != "train":
        parser.error(f"--init_from is for training, not to {mode}")

    def run() -> None:
        experiment = config.load(args.config, fields)
        if args.init_from:
            experiment = config.with_fields(experiment, {"init_from": args.init_from})
        if mode == "describe":
            from trm_jax.reports import describe
            return print(describe.describe(experiment, getattr(args, "flops", None), getattr(args, "mfu", None)))
        workdir = args.workdir or f"runs/{config.run_name(args.config)}"
        again = f"{parser.prog} {shlex.join(argv)}" if args.make_data else None
        _run(experiment, mode, workdir, not args.workdir, args.weights, again, args.compilation_cache,
             profile_steps=getattr(args, "profile_steps", None), profile=getattr(args, "profile", None))
    return guarded(run)


def train(argv: Sequence[str] | None = None) -> int:
    return main(argv, "train")


def evaluate(argv: Sequence[str] | None = None) -> int:
    return main(argv, "evaluate")


def pool(argv: Sequence[str] | None = None) -> int:
    return main(argv, "pool")


def describe(argv: Sequence[str] | None = None) -> int:
    return main(argv, "describe")


def adapt(argv: Sequence[str] | None = None) -> int:
    """Adapts weights to ARC tasks that they have not seen, and answers these.

        python -m trm_jax adapt --weights=runs/arc1 --tasks=tasks/ --steps=1000
        python -m trm_jax adapt --weights=arc2.safetensors --tasks=arc-agi_test_challenges.json \\
            --config=trm_att_arc2:adapt

    Every task, and every symmetry of it, gets a row of the puzzle table, which begins at the mean of the rows that are
    there. Rows and network are trained on the tasks' demonstrations; the answers to their test inputs are voted on and
    are RUN/eval/step_N/submission.json. The run is evaluated before its first step too. The same command continues it.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    words, fields = split_fields(argv)
    parser = arguments.Parser("python -m trm_jax adapt", inspect.getdoc(adapt))
    parser.add_argument("--weights", required=True, metavar="SOURCE", type=arguments.text,
                        help="a weights file or the folder of a run, trained on ARC tasks")
    parser.add_argument("--tasks", required=True, metavar="PLACE", type=arguments.text,
                        help=".json or .jsonl file, folder with a file for each task, or Kaggle's ..._challenges.json")
    parser.add_argument("--config", metavar="NAME", type=arguments.text, help="experiment whose rates, batch size and "
                        "length are taken (those that the weights were trained with); the network is the weights'")
    parser.add_argument("--config.FIELD", metavar="VALUE", help="set a field; lists with commas; repeatable")
    parser.add_argument("--steps", type=arguments.integer(1), metavar="N", help="training steps")
    parser.add_argument("--seconds", type=arguments.number(above=True), default=math.inf, metavar="N",
                        help="of training, at most (no limit)")
    parser.add_argument("--rows_only", action="store_true", help="train the tasks' rows and leave the network as it is")
    parser.add_argument("--num_aug", type=arguments.integer(0), metavar="N", help="symmetries of each task beside it "
                        "(as many as the weights have)")
    parser.add_argument("--workdir", metavar="RUN", type=arguments.text, help="folder of the run (runs/adapt-TASKS)")
    arguments.add_cache(parser, "~/.cache/trm_jax/compiled")
    args = parser.parse_args(words)

    def run() -> None:
        from trm_jax.jobs import adapt as adapting
        if args.steps:
            fields.append(f"total_steps={args.steps}")
        if args.rows_only:
            fields.append("rows_only=1.0")
        experiment = adapting.experiment(args.weights, args.tasks, recipe=args.config, fields=fields,
                                         num_aug=args.num_aug)
        workdir = args.workdir or f"runs/adapt-{experiment.data.make.test_subset}"
        _run(experiment, "train", workdir, not args.workdir, None, "", args.compilation_cache, args.seconds)
        print(adapting.summary(workdir))
    return guarded(run)


def _run(experiment: config.Experiment, mode: str, workdir: str, is_default: bool, weights: str | None,
         again: str | None, cache: str, seconds: float = math.inf, profile_steps: tuple[int, int] | None = None,
         profile: str | None = None) -> None:
    """again: the command that was given, where it may make the dataset; None: it may not."""
    import contextlib
    from pathlib import Path

    import jax
    from absl import logging

    from trm_jax.jobs.evaluate import evaluate as evaluate_run  # jax takes a while, and usage errors need not wait
    from trm_jax.jobs.evaluate import evaluate_file
    from trm_jax.jobs.pool import pool as pool_run
    from trm_jax.jobs.train import train as train_run
    from trm_jax.reports import xla_profile
    from trm_jax.runtime import distributed
    from trm_jax.runtime.progress import say
    from trm_jax.training import run_folder
    logging.set_verbosity(logging.WARNING)  # at absl's default jax logs its housekeeping
    distributed.initialize()
    distributed.enable_compilation_cache(cache)

    def prepare() -> None:
        if distributed.is_primary():
            if is_default:
                say(f"run folder: {workdir} (--workdir says another)")
            if again is not None:
                making.ensure(experiment.data, again)
    distributed.agreed(prepare)
    if mode == "pool":
        pool_run(experiment, workdir)
    elif mode == "evaluate":
        def evaluated() -> dict[str, Any]:
            return evaluate_file(experiment, workdir, weights) if weights else evaluate_run(experiment, workdir)
        result = evaluated()
        if profile:
            deepest = {figure["L_test"]: figure["flops_per_example"] for figure in result["figures"]}
            flops = result["examples"] * (sum(deepest.values()) + result.get("solved", {}).get("flops_per_example", 0))
            made = xla_profile.profile(evaluated, Path(profile), flops / jax.device_count(), steps=1, warm=0)
            xla_profile.keep(made, Path(profile))
            print(xla_profile.show(made))
    else:
        with contextlib.ExitStack() as stack:
            callbacks = []
            if profile_steps:
                def done(first: int, last: int) -> float:
                    system = run_folder.open_run(workdir, experiment).system
                    return system.train_flops(first, last) / jax.device_count()
                folder = Path(workdir, "profile", "steps_{}-{}".format(*profile_steps))
                callbacks.append(stack.enter_context(xla_profile.StepRange(*profile_steps, folder, done, say)))
            train_run(experiment, workdir, seconds, callbacks)


def _step_range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    if not (first.isdigit() and last.isdigit() and 0 < int(first) < int(last)):
        raise argparse.ArgumentTypeError(f"{text!r:.60} must be two steps, the second one later: 500-1000")
    return int(first), int(last)


def split_fields(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(what is left of the command line, ["FIELD=VALUE", ...]).

    Fields are written --config.FIELD=VALUE or --config.FIELD VALUE; --config.FIELD alone is True, --noconfig.FIELD
    False.
    """
    words, fields, rest = [], [], list(argv)
    while rest:
        word = rest.pop(0)
        if word.startswith("--noconfig."):
            fields.append(f"{word.removeprefix('--noconfig.')}=False")
        elif not word.startswith("--config."):
            words.append(word)
        else:
            name, equals, value = word.removeprefix("--config.").partition("=")
            if not equals:
                value = "True" if not rest or rest[0].startswith("--") else rest.pop(0)
            fields.append(f"{name}={value}")
    return words, fields


if __name__ == "__main__":
    use_huge_pages()
    sys.exit(main())
