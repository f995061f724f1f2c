"""Times the training step of a config, beside variants of it, and says what memory each takes.

    python -m trm_jax.bench --config=experiments/rsm_sudoku.py:quick --against=arch.remat=False
    python -m trm_jax.bench --config=experiments/trm_att_maze.py --set global_batch_size=4 --against=...
    python -m trm_jax.bench --config=experiments/trm_att_arc1.py:quick --rows 1000 --rows 960961

The variants take turns within one process, so that what else the machine does hits them alike; the ratio of their
medians is the figure. Inputs are random tokens of the dataset's shape, or of the published one's. With --rows the
variants differ in the rows of the puzzle table instead. Memory: what a step takes beside its arguments ("temporary"),
and what of its arguments it updates in place.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax import config
from trm_jax.data import dataset
from trm_jax.data.loading import Dataset
from trm_jax.data.published import PUBLISHED
from trm_jax.runtime import distributed
from trm_jax.runtime.errors import guarded
from trm_jax.runtime.text import human
from trm_jax.training import step as step_lib
from trm_jax.training.supervision import Batch
from trm_jax.training.system import System


def shape_of(experiment: config.Experiment):
    try:
        return Dataset.load(experiment).shape
    except dataset.DatasetError:
        return PUBLISHED[experiment.data.puzzle][0]


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
        self.state, sums = self.run(self.state, self.batch)
        jax.block_until_ready(sums)
        self.seconds.append(time.perf_counter() - begun)

    def line(self, first: Contender) -> str:
        memory = self.run.memory_analysis()
        sizes = (memory.temp_size_in_bytes, memory.alias_size_in_bytes) if memory else ()
        temporary, in_place = (human(size, "B") for size in sizes) if memory else "??"
        sizes = f"{temporary:>12}{in_place:>12}"
        if not self.seconds:
            return f"{self.name:32}{'-':>10}{'-':>9}{'-':>9}{'-':>8}{sizes}{'-':>16}{self.compile_seconds:11.1f}"
        median = statistics.median(self.seconds)
        flops = self.system.experiment.global_batch_size * self.system.train_flops_per_example(self.H, self.L)
        return (f"{self.name:32}{1e3 * median:10.1f}{1e3 * min(self.seconds):9.1f}{1e3 * max(self.seconds):9.1f}"
                f"{median / statistics.median(first.seconds):8.2f}{sizes}"
                f"{human(flops / median, 'FLOP/s'):>16}{self.compile_seconds:11.1f}")


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


def compare(base: config.Experiment, against: list[str], repeats: int, rows: Sequence[int] = ()) -> str:
    """Text for a terminal: the config and its variants, one line each; or the config with so many rows each."""
    contenders = ([contender(base, "", repeats, n) for n in rows] if rows else
                  [contender(base, changes, repeats) for changes in ["", *against]])
    for turn in range(repeats + 1 if repeats else 0):
        for c in contenders:
            c.step()
            if turn == 0:
                c.seconds.clear()  # the first step touches memory for the first time
    first = contenders[0]
    return "\n".join([
        f"one training step, batch {base.global_batch_size}, H {first.H}, L {first.L}, "
        f"{distributed.device_description()}, {f'median of {repeats} in turns' if repeats else 'compiled only'}",
        f"{'':32}{'median ms':>10}{'min':>9}{'max':>9}{'ratio':>8}{'temporary':>12}{'in place':>12}{'model':>16}"
        f"{'compile s':>11}",
        *(c.line(first) for c in contenders),
        f"most memory that this process has held so far: {human(distributed.peak_memory()[0], 'B')}"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trm_jax.bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="experiment file, with its variant after a colon")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="in the config; repeatable")
    parser.add_argument("--against", action="append", default=[], metavar="FIELD=VALUE[,...]",
                        help="a variant of the config; repeatable")
    parser.add_argument("--rows", type=int, action="append", default=[], metavar="N",
                        help="the config with a puzzle table of N rows; repeatable, instead of --against")
    parser.add_argument("--repeats", type=int, default=7, help="timed steps of each; the median counts. 0: "
                        "none, what compiling tells of the memory is enough (%(default)s)")
    args = parser.parse_args(argv)
    if args.repeats < 0:
        parser.error(f"--repeats={args.repeats} must not be negative")
    if args.rows and (args.against or min(args.rows) < 1):
        parser.error("--rows must be at least 1, and goes without --against")
    return guarded(lambda: print(compare(
        config.with_fields(config.parse(config.from_file(args.config)), config.read_fields(args.set)),
        args.against, args.repeats, args.rows)))


if __name__ == "__main__":
    sys.exit(main())
