"""Times the training step of a config, beside variants of it, and says what memory each takes.

    python -m trm_jax bench step --config=experiments/rsm_sudoku.py:quick --against=arch.remat=False
    python -m trm_jax bench step --config=experiments/trm_att_maze.py --set global_batch_size=4 --against=...
    python -m trm_jax bench step --config=experiments/trm_att_arc1.py:quick --rows 1000 --rows 960961
    python -m trm_jax bench step --config=experiments/rsm_sudoku.py:quick --profile=profile

The variants take turns within one process, so that what else the machine does hits them alike; the ratio of their
medians is the figure. Inputs are random tokens of the dataset's shape, or of the published one's. With --rows the
variants differ in the rows of the puzzle table instead. Memory: what a step takes beside its arguments ("temporary"),
and what of its arguments it updates in place. With --profile the step is traced: where its time goes, by groups of
operations, beside what this machine could do (xla_profile.py). The folder gets the trace for XProf, JSON and a picture.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax import config
from trm_jax.data import dataset
from trm_jax.data.loading import Dataset
from trm_jax.data.published import expected
from trm_jax.reports import xla_profile
from trm_jax.runtime import arguments, distributed, files
from trm_jax.runtime.errors import guarded
from trm_jax.runtime.text import human, table
from trm_jax.training import step as step_lib
from trm_jax.training.supervision import Batch
from trm_jax.training.system import System


def shape_of(experiment: config.Experiment):
    try:
        return Dataset.load(experiment).shape
    except dataset.DatasetError:
        return expected(experiment.data)[0]


@dataclasses.dataclass
class Contender:
    """A compiled step at the config's last H and L, with a state to run on."""

    name: str
    system: System
    repeats: int

    def __post_init__(self):
        s, mesh = self.system, distributed.data_mesh()
        B, S, V = s.experiment.global_batch_size, s.shape.seq_len, s.shape.vocab_size
        distributed.check_batch(B, mesh)
        tokens = np.random.default_rng(0).integers(1, V, (B, S), np.int32)
        self.batch = Batch(**distributed.put_batch(mesh, {
            "inputs": tokens, "labels": tokens,
            "puzzle_identifiers": np.random.default_rng(1).integers(s.shape.num_puzzle_identifiers, size=B,
                                                                    dtype=np.int32)}))
        *_, (_, _, self.H, self.L) = s.curriculum.stages()
        last = jnp.int32(s.total_steps - self.repeats - 2)
        self.state = step_lib.place(s, mesh)
        self.state = self.state._replace(step=jax.device_put(jnp.maximum(last, 0), self.state.step.sharding))
        begun = time.perf_counter()
        self.run = step_lib.make_step(s, mesh, self.L).lower(self.state, self.batch).compile()
        self.compile_seconds = time.perf_counter() - begun
        self.seconds: list[float] = []

    def step(self) -> None:
        begun = time.perf_counter()
        self.state, sums, _ = self.run(self.state, self.batch)
        jax.block_until_ready(sums)
        self.seconds.append(time.perf_counter() - begun)

    def result(self) -> dict[str, Any]:
        """What was measured; bytes, seconds. Of a step that was compiled only there are no seconds."""
        memory = self.run.memory_analysis()
        flops = self.system.experiment.global_batch_size * self.system.train_flops_per_example(self.H, self.L)
        return {"name": self.name, "H": self.H, "L": self.L, "seconds": self.seconds, "model_flops": flops,
                "compile_seconds": self.compile_seconds,
                "temporary_bytes": memory.temp_size_in_bytes if memory else None,
                "in_place_bytes": memory.alias_size_in_bytes if memory else None}


def contender(base: config.Experiment, changes: str, repeats: int, rows: int = 0) -> Contender:
    """`changes`: "" or "arch.remat=False,global_batch_size=64". rows: of the puzzle table; 0: as many as the data has.
    """
    experiment = config.with_fields(base, config.read_fields(changes.split(",") if changes else []))
    # The last stage of the curriculum is what is timed, whatever the length of the run.
    steps = max(experiment.total_steps, 1000)
    shape = shape_of(experiment)
    shape = dataclasses.replace(shape, num_puzzle_identifiers=rows or shape.num_puzzle_identifiers)
    return Contender(changes or (f"{rows:,} rows" if rows else "as configured"),
                     System(dataclasses.replace(experiment, total_steps=steps), shape, steps), repeats)


def compare(base: config.Experiment, against: list[str], repeats: int, rows: Sequence[int] = ()) -> dict[str, Any]:
    """The config and its variants; or the config with so many rows each."""
    contenders = ([contender(base, "", repeats, n) for n in rows] if rows else
                  [contender(base, changes, repeats) for changes in ["", *against]])
    for turn in range(repeats + 1 if repeats else 0):
        for c in contenders:
            c.step()
            if turn == 0:
                c.seconds.clear()  # the first step touches memory for the first time
    return {"batch": base.global_batch_size, "repeats": repeats, "device": distributed.device_description(),
            "versions": distributed.versions(), "steps": [c.result() for c in contenders],
            "peak_memory_bytes": distributed.peak_memory()[0]}


def show(result: dict[str, Any]) -> str:
    """Text for a terminal, a line for each."""
    first, repeats = result["steps"][0], result["repeats"]
    rows = []
    for r in result["steps"]:
        times = ["-"] * 4
        if r["seconds"]:
            median = statistics.median(r["seconds"])
            times = [*(f"{1e3 * s:.1f}" for s in (median, min(r["seconds"]), max(r["seconds"]))),
                     f"{median / statistics.median(first['seconds']):.2f}"]
        rows.append([r["name"], *times, *("?" if r[name] is None else human(r[name], "B")
                                          for name in ("temporary_bytes", "in_place_bytes")),
                     human(r["model_flops"] / median, "FLOP/s") if r["seconds"] else "-",
                     f"{r['compile_seconds']:.1f}"])
    return "\n".join([
        f"one training step, batch {result['batch']}, H {first['H']}, L {first['L']}, {result['device']}, "
        f"{f'median of {repeats} in turns' if repeats else 'compiled only'}",
        table(["", "median ms", "min", "max", "ratio", "temporary", "in place", "model", "compile s"], rows),
        f"most memory that this process has held so far: {human(result['peak_memory_bytes'], 'B')}"])


def profile(base: config.Experiment, folder: Path, repeats: int) -> dict[str, Any]:
    """Of the config's step; kept in the folder."""
    c = contender(base, "", repeats)
    result = c.result() | {"batch": base.global_batch_size, "device": distributed.device_description()}
    result |= xla_profile.profile(c.step, folder, result["model_flops"] / jax.device_count(), max(2, repeats))
    xla_profile.keep(result, folder)
    return result


def show_profile(result: dict[str, Any]) -> str:
    return (f"one training step, batch {result['batch']}, H {result['H']}, L {result['L']}, {result['device']}, "
            f"compiled in {result['compile_seconds']:.1f} s\n{xla_profile.show(result)}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments.Parser("python -m trm_jax bench step", __doc__)
    parser.add_argument("--config", required=True, type=arguments.text,
                        help="experiment, by name or file, with its variant after a colon")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="in the config; repeatable")
    parser.add_argument("--against", action="append", default=[], metavar="FIELD=VALUE[,...]",
                        help="a variant of the config; repeatable")
    parser.add_argument("--rows", type=arguments.integer(1), action="append", default=[], metavar="N",
                        help="the config with a puzzle table of N rows; repeatable, instead of --against")
    parser.add_argument("--repeats", type=arguments.integer(0, 100_000), default=7, help="timed steps of each; the "
                        "median counts. 0: none, what compiling tells of the memory is enough (%(default)s)")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="trace the config's step into this folder, and say "
                        "where its time goes")
    arguments.add_result(parser)
    args = parser.parse_args(argv)
    if args.rows and args.against:
        parser.error("--rows goes without --against")
    if args.profile and (args.rows or args.against):
        parser.error("--profile goes without --rows and --against")

    def run() -> None:
        if args.profile:
            result = profile(config.load(args.config, args.set), args.profile, args.repeats)
            return files.give(args, result, show_profile(result))
        result = compare(config.load(args.config, args.set), args.against, args.repeats, args.rows)
        files.give(args, result, show(result))
    return guarded(run)


if __name__ == "__main__":
    sys.exit(main())
