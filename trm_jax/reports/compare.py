"""Several systems side by side, each run in a process of its own, with the same seeds; one table and one plot.

    python -m trm_jax compare --minutes=2 --seeds=0,1,2 --out=runs/compare \\
        --configs=experiments/trm_mlp_sudoku.py:quick,experiments/rsm_sudoku.py:quick
    python -m trm_jax compare --flops=6e11 --out=runs/compare --configs=...
    python -m trm_jax compare --own --out=runs/compare --configs=...

--minutes: the same data and so many minutes of training each; compiling and evaluating are not counted, and are
reported. Leave the machine alone meanwhile: what else runs on it is taken for slowness. --flops: the same data and so
many floating-point operations of matrix products in training, whatever else the machine does. --own: each config as it
is, with the length and the data of its own. Finished runs are kept when the same
command is given again, and an unfinished one continues. OUT holds table.md, results.json, comparison.png (that with
matplotlib: pip install 'trm_jax[plot]') and a folder for every system, with the folders of its runs.

The length of a run by --minutes. A schedule that is cut off by a clock is not the schedule. So the time of a step is
measured first, in every stage of the curriculum and once for all seeds, and total_steps is what fits into the minutes:
each cosine ends, and each curriculum is complete, when its time is over. Warm-ups keep their share of the run. A run
that turns out slower than measured is stopped when it has had its time, short of the end of its schedule, and is named
below the table; a faster one ends early. The table gives steps done, steps planned, and seconds. All else, such as
learning rate, batch and the rate of the EMA, is the config's own, so a config that was tuned for another length is
at a disadvantage.

Depth. Systems count test-time depth in units of their own; here it is counted in core calls (one pass through one
network), at the depths of the config's eval.H_test and the inner cycles of the last training step. "Exact over
time" is taken at the greatest of these depths with no more than --calls core calls. Core calls are not equally
dear: FLOPs per example stand beside them.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import math
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from trm_jax import config
from trm_jax.config import Experiment
from trm_jax.data.loading import Dataset
from trm_jax.jobs import evaluate, train
from trm_jax.reports import compare_tables, pictures
from trm_jax.runtime import arguments, distributed, files
from trm_jax.runtime.errors import UserError, guarded
from trm_jax.runtime.progress import say
from trm_jax.training import run_folder
from trm_jax.training import step as step_lib
from trm_jax.training.supervision import Batch
from trm_jax.training.system import System, total_steps

MEASURED = "measured.json"  # in a run's folder, once it has finished
PACE_STEPS = 1_000_000  # of the run whose stages are timed: every stage is long
PACE_SHARE, FEWEST = 0.05, 5  # time a stage for so much of the run's time together with the others, or so many steps
LINES = 20  # of metrics between two evaluations


class CompareError(UserError):
    """Systems that cannot be compared; the message says why."""


@dataclasses.dataclass(frozen=True)
class Terms:
    """What must be equal for runs to be comparable, and to be continued."""

    minutes: float  # of training; 0: by flops
    flops: float  # of training; both 0: as long as the config says
    evaluations: int  # on the way, at equal numbers of steps; the last one is of the finished run
    calls: int  # core calls per puzzle, at most, of the figures over time
    examples: int  # test puzzles of the final evaluation; 0: all
    examples_during: int  # of the others
    changes: dict[str, Any]  # fields set in every config

    @property
    def seconds(self) -> float:
        """Of training, at most."""
        return 60 * self.minutes or math.inf

    @property
    def own(self) -> bool:
        """Is each config as it is, on data of its own?"""
        return not (self.minutes or self.flops)


class Entry(NamedTuple):
    """One of the systems to compare."""

    name: str  # "trm_mlp_sudoku:quick"
    experiment: Experiment  # as its file has it, with the common changes
    folder: Path


def core_calls(arch: config.Arch, H_test: int, L: int) -> int:
    """Passes through a network that H_test test steps take."""
    return H_test * (arch.H_cycles if arch.supervision == "deep" else 1) * (L + 1)


def entries(names: Sequence[str], changes: dict[str, Any], out: Path, own: bool = False) -> list[Entry]:
    """Raises CompareError or ConfigError: unknown, twice, or not on the same data (unless `own`)."""
    made = []
    for name in names:
        experiment = config.with_fields(config.parse(config.from_file(name)), changes)
        file, _, variant = name.partition(":")
        label = Path(file).stem + (":" + variant if variant else "")
        made.append(Entry(label, experiment, out / label.replace(":", "-")))
    if twice := sorted({entry.name for entry in made if sum(entry.name == e.name for e in made) > 1}):
        raise CompareError(f"--configs has {', '.join(twice)} more than once")
    first = dataclasses.replace(made[0].experiment.data, make=config.Make())
    for entry in () if own else made[1:]:
        data = dataclasses.replace(entry.experiment.data, make=config.Make())
        if data != first:
            differ = [f"data.{f.name} ({getattr(first, f.name)!r} and {getattr(data, f.name)!r})"
                      for f in dataclasses.fields(data) if getattr(data, f.name) != getattr(first, f.name)]
            raise CompareError(f"{made[0].name} and {entry.name} do not train on the same data: {', '.join(differ)} "
                               "differ; set them for all, e.g. --set data.path=data/sudoku-40")
    return made


# Jobs: what is done in a process of its own.


def measure_pace(raw: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Seconds of a step in every stage of the curriculum, its operations, and how long the config's own run is.

    Args:
      seconds: to spend on it, without compiling. 0: nothing is timed.
    """
    experiment = config.parse(raw)
    data, mesh = Dataset.load(experiment), distributed.data_mesh()
    distributed.check_batch(experiment.global_batch_size, mesh)
    system = System(experiment, data.shape, PACE_STEPS)
    known = {"own_steps": total_steps(experiment, data.train.metadata),
             "flops_per_step": system.train_flops(1, PACE_STEPS) / PACE_STEPS}
    if not seconds:
        return known
    timed, batches, state = [], train.stream(experiment, data), step_lib.place(system, mesh)
    compiled = step_lib.Compiler(system, mesh, say)
    stages = system.curriculum.stages()

    def step(state, L):
        batch = Batch(**distributed.put_batch(mesh, next(batches)))
        return compiled(L, state, batch)(state, batch)[0]
    for first, last, H, L in stages:
        before = jax.device_put(np.int32(first - 1), distributed.replicated(mesh))
        state = jax.block_until_ready(step(state._replace(step=before), L))
        steps, begun = 0, time.perf_counter()
        while steps < FEWEST or time.perf_counter() - begun < seconds / len(stages):
            state = step(state, L)
            steps += 1
            if steps % 2 == 0:  # as in training, the host runs ahead, but not far
                jax.block_until_ready(state)
        jax.block_until_ready(state)
        took = (time.perf_counter() - begun) / steps
        timed.append({"share": (last - first + 1) / PACE_STEPS, "H": H, "L": L, "seconds_per_step": took})
    batches.close()
    return {"stages": timed, **known,
            "seconds_per_step": sum(stage["share"] * stage["seconds_per_step"] for stage in timed),
            "compile_seconds": compiled.seconds, "device": distributed.device_description()}


def train_and_measure(raw: dict[str, Any], depths: Sequence[int], workdir: str, settings: Terms) -> None:
    """One run: trains or continues, evaluates at all depths, and writes `MEASURED`."""
    experiment = config.parse(raw)
    train.train(experiment, workdir, settings.seconds)
    peak, where = distributed.peak_memory()
    during = [files.read_json(path) for path in Path(workdir, "eval").glob("step_*.json")]
    during.sort(key=lambda result: result["step"])
    final = dataclasses.replace(experiment, eval=dataclasses.replace(
        experiment.eval, H_test=tuple(depths), max_examples=settings.examples))
    after = evaluate.evaluate(final, workdir, say)
    files.write_json(Path(workdir) / MEASURED, _measured(experiment, workdir, during, after, peak, where))


def _measured(experiment: Experiment, workdir: str, during: list, after: dict[str, Any], peak: int,
              where: str) -> dict[str, Any]:
    arch, system, last = experiment.arch, run_folder.open_run(workdir).system, during[-1]
    steps = last["step"]
    return {
        "parameters": after["parameter_count"], "batch": experiment.global_batch_size,
        "steps": steps, "planned_steps": system.total_steps,
        "train_seconds": last["train_seconds"], "compile_seconds": last["compile_seconds"],
        "evaluation_seconds": sum(result["seconds"] for result in (*during, after)),
        "examples_per_second": steps * experiment.global_batch_size / last["train_seconds"],
        "train_flops_per_example": system.train_flops(1, steps) / (steps * experiment.global_batch_size),
        "peak_memory": peak, "peak_memory_of": where,
        "curve": [{"step": r["step"], "train_seconds": r["train_seconds"], **_figure(arch, r["figures"][-1])}
                  for r in during],
        "depth": [_figure(arch, figure) for figure in after["figures"]],
        **({"solved": after["solved"]} if "solved" in after else {}),
        **{name: after[name] for name in ("dataset", "examples", "sample", "verified_as", "device", "versions",
                                         "finished")}}


def _figure(arch: config.Arch, figure: dict[str, Any]) -> dict[str, Any]:
    kept = ("H_test", "L_test", "n", "exact_accuracy", "verified", "settled", "flops_per_example")
    return {"calls": core_calls(arch, figure["H_test"], figure["L_test"]), **{name: figure[name] for name in kept}}


def alone(function, *args):
    """The function's value, computed in a process of its own: its peak memory is its own, and nothing is left behind.

    Raises what it raises, or CompareError if the process dies.
    """
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        try:
            return pool.submit(function, *args).result()
        except concurrent.futures.process.BrokenProcessPool:
            raise CompareError("the process of this run was ended from outside, perhaps for lack of memory; finished "
                               "runs are kept, and the same command goes on") from None


def _end_with_parent() -> None:
    """Nobody else may be training in this folder when the comparison is started again."""
    def watch():
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


# The comparison.


def plan(entry: Entry, seed: int, pace: dict[str, Any], settings: Terms) -> dict[str, Any]:
    """The config of a run as long as its time, evaluated on the way at one depth."""
    e = entry.experiment
    steps = pace["own_steps"]
    if settings.minutes:
        steps = int(settings.seconds / pace["seconds_per_step"])
    elif settings.flops:
        steps = int(settings.flops / pace["flops_per_step"])
    if steps < 2 * settings.evaluations:
        within = f"{settings.minutes:g} minutes" if settings.minutes else f"{settings.flops:g} FLOP"
        raise CompareError(f"{entry.name} does {steps} steps{f' in {within}' * (not settings.own)}, too few for "
                           f"{settings.evaluations} evaluations: give more --minutes or --flops, or fewer of those")
    between = -(-steps // settings.evaluations)
    lines = -(-between // LINES)
    between = -(-between // lines) * lines  # evaluations are where lines are, so that the clock is read exactly
    L = e.arch.L_cycles + sum(e.curriculum_L_to_add)
    within = [H for H in e.eval.H_test if core_calls(e.arch, H, L) <= settings.calls] or [e.eval.H_test[0]]

    def same_share(warmup: int) -> int:
        return warmup and max(1, round(warmup * steps / pace["own_steps"]))
    raw = config.to_json(e) | {
        "seed": seed, "total_steps": steps, "lr_warmup_steps": same_share(e.lr_warmup_steps),
        "transition_lr_warmup_steps": same_share(e.transition_lr_warmup_steps), "log": {"interval_steps": lines},
        "checkpoint": {"interval_steps": between, "keep_last": 1, "keep_best": 0}}
    raw["eval"] |= {"H_test": within[-1:], "L_test": [], "interval_steps": between,
                    "max_examples": settings.examples_during}
    config.parse(raw)
    return raw


def pace_of(entry: Entry, settings: Terms) -> dict[str, Any]:
    """Measured once for all seeds and restarts, so that every run of a system is of the same length."""
    path, raw = entry.folder / "pace.json", config.to_json(entry.experiment)
    if path.is_file():
        known = files.read_json(path)
        run_folder.require_same(entry.folder, known["config"], raw, "Give another --out to compare these")
        return known
    say(f"{entry.name}: measuring a step")
    pace = alone(measure_pace, raw, PACE_SHARE * 60 * settings.minutes)
    files.write_json(path, {**pace, "config": raw})
    return pace


def compare(names: Sequence[str], seeds: Sequence[int], settings: Terms, out: Path) -> dict[str, Any]:
    """Runs what is missing, seed by seed, and writes table, results and plot after every run."""
    systems = entries(names, settings.changes, out, settings.own)
    claim(out, settings)
    paces = {entry.name: pace_of(entry, settings) for entry in systems}
    plans = {(entry.name, seed): plan(entry, seed, paces[entry.name], settings) for seed in seeds for entry in systems}
    results: dict[str, Any] = {}
    for i, ((name, seed), raw) in enumerate(plans.items(), 1):
        entry = next(entry for entry in systems if entry.name == name)
        workdir = entry.folder / f"seed{seed}"
        if not (workdir / MEASURED).is_file():
            say(f"run {i} of {len(plans)}: {name}, seed {seed}, {raw['total_steps']:,} steps")
            alone(train_and_measure, raw, entry.experiment.eval.H_test, str(workdir), settings)
        results = gather(systems, seeds, settings)
        files.write_json(out / "results.json", results)
        (out / "table.md").write_text(compare_tables.table(results) + "\n", encoding="utf-8")
    return results


def claim(out: Path, settings: Terms) -> None:
    path, now = out / "compare.json", json.loads(json.dumps(dataclasses.asdict(settings)))
    if not path.is_file():
        files.write_json(path, now)
        return
    old = files.read_json(path)
    if not isinstance(old, dict):
        raise CompareError(f"{path} is damaged: it must hold an object. Give another --out")
    if old != now:
        differ = [f"{name}: {old.get(name)!r}, now {now[name]!r}" for name in now if old.get(name) != now[name]]
        raise CompareError(f"{out} holds another comparison: {'; '.join(differ)}. Give another --out")


def gather(systems: Sequence[Entry], seeds: Sequence[int], settings: Terms) -> dict[str, Any]:
    """What the finished runs measured, by system."""
    found = {}
    for entry in systems:
        runs = {str(seed): entry.folder / f"seed{seed}" / MEASURED for seed in seeds}
        runs = {seed: files.read_json(path) for seed, path in runs.items() if path.is_file()}
        if runs:
            found[entry.name] = runs
    return {"settings": {**dataclasses.asdict(settings), "own": settings.own}, "systems": found}


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments.Parser("python -m trm_jax compare", __doc__)
    parser.add_argument("--configs", required=True, type=arguments.listed(arguments.text),
                        help="experiments, each with its variant, with commas between")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=arguments.number(above=True), default=0.0, help="of training, for each run")
    length.add_argument("--flops", type=arguments.number(most=1e30, above=True), default=0.0,
                        help="of training, for each run")
    length.add_argument("--own", action="store_true", help="each config with its own length and data")
    parser.add_argument("--seeds", type=arguments.listed(arguments.integer(0, arguments.SEEDS)), default=(0, 1, 2),
                        help="with commas between (0,1,2)")
    arguments.add_out(parser, "folder of the comparison")
    parser.add_argument("--evaluations", type=arguments.integer(1), default=8,
                        help="points of the curves (%(default)s)")
    parser.add_argument("--calls", type=arguments.integer(1), default=256,
                        help="core calls, at most, of the curves (%(default)s)")
    parser.add_argument("--examples", type=arguments.integer(0), default=1000,
                        help="test puzzles at the end; 0: all (%(default)s)")
    parser.add_argument("--examples_during", type=arguments.integer(0), default=200,
                        help="at the other evaluations (%(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="in every config; repeatable")
    arguments.add_format(parser, "text", "json")
    args = parser.parse_args(argv)

    def run() -> None:
        settings = Terms(args.minutes, args.flops, args.evaluations, args.calls, args.examples, args.examples_during,
                         config.read_fields(args.set))
        out = Path(args.out)
        results = compare(args.configs, sorted(set(args.seeds)), settings, out)
        print(json.dumps(results, indent=2) if args.format == "json" else compare_tables.table(results))
        try:
            pictures.save(compare_tables.figure(results), out / "comparison.png")
        except pictures.PictureError as error:
            say(f"no plot: {error}")
        say(f"written to {out}: table.md, results.json")
    return guarded(run, interrupted="the same command goes on where this one stopped")


if __name__ == "__main__":
    sys.exit(main())
