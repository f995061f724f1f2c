"""What thinking costs, and how best to spend it: four measurements of weights on held-out puzzles.

    python -m trm_jax bench inference batching --data=data/sudoku-40       continuous batching against a fixed unroll
    python -m trm_jax bench inference speed --batch_sizes=1,64,512         cycles per second
    python -m trm_jax bench inference engine --profile=DIR                 how long the device waits for the engine
    python -m trm_jax bench inference spend --data=data/sudoku-hard        tries against depth, at equal core calls

Weights are a run's (--workdir), a file's or a name (--weights). With --out=FILE.json the result is written there, and
with `batching` so is every finished batch of the fixed unroll: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax import config
from trm_jax.data import dataset
from trm_jax.inference import command, engine, slots
from trm_jax.inference.choice import BUDGET, ORDER, STOPS, choose
from trm_jax.inference.settings import Settings
from trm_jax.reports import xla_profile
from trm_jax.runtime import arguments, distributed, files
from trm_jax.runtime.errors import UserError, guarded
from trm_jax.runtime.progress import say
from trm_jax.runtime.text import human, percent, table
from trm_jax.weights import weights_file


class BenchError(UserError):
    """A measurement that cannot be made."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """Weights, and n puzzles that they have not seen."""

    export: weights_file.Export
    inputs: np.ndarray  # uint8 [n, S]
    labels: np.ndarray  # [n, S]
    facts: dict[str, Any]  # for the result

    @classmethod
    def of(cls, export: weights_file.Export, path: str, examples: int) -> Contestant:
        test = dataset.load(path, "test", make=export.experiment.data.how_to_make)
        if test.metadata.seq_len != export.shape.seq_len or test.metadata.vocab_size != export.shape.vocab_size:
            raise BenchError(f"{path} has puzzles of another size than the network's: {test.metadata.seq_len} cells, "
                             f"not {export.shape.seq_len}")
        rows = np.arange(test.num_examples)
        if examples and examples < len(rows):
            rows = np.sort(np.random.default_rng(0).choice(len(rows), examples, replace=False))
        sample = "all of the split" if len(rows) == test.num_examples else f"a seeded sample of {test.num_examples}"
        return cls(export, np.asarray(test.inputs[rows]), np.asarray(test.labels[rows]), {
            "dataset": path, "examples": len(rows), "sample": sample, "step": export.metadata["step"],
            "parameters": export.metadata["parameters"], "L": export.metadata["L"],
            "device": distributed.device_description(), "versions": distributed.versions()})

    def solve(self, settings: Settings, verify: bool = True, limit: int | None = None) -> engine.Results:
        e = self.export
        rules: dict[str, Any] = engine.rules(e.domain) | ({} if verify else {"verify": None})
        return engine.solve(e.bound, self.inputs[:limit], settings, **rules)

    def right(self, tokens: np.ndarray, puzzles: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Answers [k, S] to these puzzles -> bool [k]. Of puzzles with several right answers, what the rules accept."""
        if self.export.domain.has_several_answers:
            return self.export.domain.verify(self.inputs[puzzles], tokens).solved
        return (tokens == self.labels[puzzles]).all(axis=1)

    @property
    def L(self) -> int:
        return self.export.metadata["L"]

    @property
    def calls(self) -> int:
        """Core calls of a cycle."""
        return self.export.bound.core_calls


# Continuous batching against a fixed unroll.


def batching(subject: Contestant, settings: Settings, fixed_batch: int, out: Path | None) -> dict[str, Any]:
    """Both to settings.max_cycles; compiling is not counted, the two programs having run once before."""
    results = {}
    for name, verify in (("settling", False), ("settling_or_verified", True)):
        short = dataclasses.replace(settings, max_cycles=2 * engine.MIN_CYCLES_TO_SHRINK)
        subject.solve(short, verify, 2 * settings.batch_size)
        r = subject.solve(settings, verify)
        right = subject.right(r.answers.tokens)
        results[name] = {
            "seconds": r.seconds, "core_calls": r.core_calls, "cycles": r.cycles, "right": int(right.sum()),
            "verified": int(r.answers.verified.sum()), "mean_cycles": float(r.answers.cycles.mean()),
            "most_cycles": int(r.answers.cycles.max()), "stops": {
                name: int((r.answers.stop == i).sum()) for i, name in enumerate(STOPS)}}
        results[name]["answers"] = r.answers
    tokens, seconds = fixed_unroll(subject, settings.max_cycles, fixed_batch, out)
    n = len(tokens)
    calls = -(-n // fixed_batch) * fixed_batch * settings.max_cycles * subject.calls
    right = subject.right(tokens)
    for of in results.values():
        answers = of.pop("answers")
        stopped = answers.stop != BUDGET
        same = (answers.tokens == tokens).all(axis=1)
        of |= {"finished": int(stopped.sum()), "finished_and_same": int((stopped & same).sum()),
               "finished_differing": {"right": int((stopped & ~same & subject.right(answers.tokens)).sum()),
                                      "fixed_right": int((stopped & ~same & right).sum())},
               "fewer_core_calls": calls / of["core_calls"], "fewer_seconds": seconds / of["seconds"]}
    return {"limit": settings.max_cycles, "settle": settings.settle, "batch_size": settings.batch_size,
            "fixed": {"batch_size": fixed_batch, "seconds": seconds, "core_calls": calls, "right": int(right.sum())},
            **results}


def fixed_unroll(subject: Contestant, cycles: int, batch: int, out: Path | None) -> tuple[np.ndarray, float]:
    """(answers [n, S], seconds without compiling) of the same number of cycles for all."""
    e = subject.export
    program = jax.jit(slots.unrolled)
    n, kept = len(subject.inputs), out and out.with_suffix(".fixed.npz")
    tokens, seconds, done = np.zeros_like(subject.inputs), 0.0, 0
    if kept and kept.is_file():
        with np.load(kept) as file:
            if int(file["cycles"]) != cycles or file["inputs"].tobytes() != subject.inputs.tobytes():
                raise BenchError(f"{kept} is of another measurement; remove it, or give another --out")
            tokens, seconds, done = file["tokens"], float(file["seconds"]), int(file["done"])

    def run(inputs, cycles):
        ids = jnp.zeros(batch, jnp.int32)
        return np.asarray(program(e.bound, jnp.asarray(inputs), ids, np.int32(cycles)))
    if done < n:
        run(np.repeat(subject.inputs[:1], batch, axis=0), 1)
    while done < n:
        rows = np.arange(done, done + batch)
        begun = time.perf_counter()
        found = run(subject.inputs[np.minimum(rows, n - 1)], cycles)
        seconds += time.perf_counter() - begun
        rows = rows[rows < n]
        tokens[rows], done = found[:len(rows)], done + len(rows)
        say(f"fixed unroll of {cycles:,} cycles: {done:,} of {n:,} puzzles, {seconds:.0f} s")
        if kept:
            new = kept.with_name(kept.name + ".new.npz")
            np.savez(new, tokens=tokens, seconds=seconds, done=done, cycles=cycles, inputs=subject.inputs)
            new.replace(kept)
    return tokens, seconds


def show_batching(r: dict[str, Any]) -> str:
    fixed = r["fixed"]
    rows = [["fixed unroll", f"{fixed['seconds']:.1f}", f"{fixed['core_calls']:,}", f"{fixed['right']:,}", *[""] * 4]]
    for name in ("settling", "settling_or_verified"):
        of = r[name]
        rows.append([name.replace("_", " "), f"{of['seconds']:.1f}", f"{of['core_calls']:,}", f"{of['right']:,}",
                     f"{of['finished']:,}", f"{of['finished_and_same']:,}", f"{of['fewer_core_calls']:,.0f}x",
                     f"{of['fewer_seconds']:,.0f}x"])
    head = ["", "seconds", "core calls", "right", "finished", "same as fixed", "fewer calls", "less time"]
    return (f"{r['examples']:,} puzzles of {r['dataset']}, at most {r['limit']:,} cycles of {r['L'] + 1} calls, "
            f"{r['device']}\n" + table(head, rows))


# Cycles per second.


def speed(subject: Contestant, batch_sizes: Sequence[int], seconds: float) -> dict[str, Any]:
    """Median of five runs of about `seconds` each, batch sizes taking turns."""
    e, rates = subject.export, {b: [] for b in batch_sizes}
    program = jax.jit(slots.unrolled)

    def run(b, cycles):
        begun = time.perf_counter()
        inputs = jnp.asarray(np.resize(subject.inputs, (b, subject.inputs.shape[1])))
        ids = jnp.zeros(b, jnp.int32)
        jax.block_until_ready(program(e.bound, inputs, ids, np.int32(cycles)))
        return time.perf_counter() - begun
    cycles = {}
    for b in batch_sizes:
        run(b, 1)
        cycles[b] = max(2, int(seconds / max(1e-6, run(b, 8) / 8)))
    for _ in range(5):
        for b in batch_sizes:
            rates[b].append(cycles[b] / run(b, cycles[b]))
    per_cycle = subject.export.model.test_cycles * e.model.calls_flops(subject.L + 1)
    return {"speed": [{"batch_size": b, "cycles_per_second": (rate := statistics.median(rates[b])),
                       "puzzle_cycles_per_second": b * rate, "core_calls_per_second": b * rate * subject.calls,
                       "flops_per_second": b * rate * per_cycle, "lowest": min(rates[b]), "highest": max(rates[b])}
                      for b in batch_sizes]}


def show_speed(r: dict[str, Any]) -> str:
    rows = [[f"{s['batch_size']:,}", f"{s['cycles_per_second']:,.1f}", f"{s['puzzle_cycles_per_second']:,.0f}",
             human(s["flops_per_second"], "FLOP/s")] for s in r["speed"]]
    return (f"{r['device']}, {r['L'] + 1} calls a cycle; median of 5\n"
            + table(["batch", "cycles/s", "puzzle cycles/s", "products"], rows, left=()))


# The engine.


def engine_profile(subject: Contestant, settings: Settings, folder: Path) -> dict[str, Any]:
    """The engine at work on all puzzles, for a second time, traced into the folder."""
    first = subject.solve(settings)
    flops = first.slot_cycles * subject.export.model.test_cycles * subject.export.model.calls_flops(subject.L + 1)
    made = xla_profile.profile(lambda: subject.solve(settings), folder, flops, steps=1, warm=0)
    xla_profile.keep(made, folder)
    return {"batch_size": settings.batch_size, "cycles": first.cycles, "slot_cycles": first.slot_cycles, **made}


def show_engine(r: dict[str, Any]) -> str:
    return (f"{r['examples']:,} puzzles of {r['dataset']}, {r['batch_size']} slots, {r['cycles']:,} cycles in "
            f"{r['slot_cycles']:,} of slots; the device waits for the engine in {r['idle_share']:.2%} of the time\n"
            + xla_profile.show(r))


# Restarts against depth.


ORDERS = (ORDER[1:], ("vote", "settled"))  # by which to choose without a verifier


def spend(subject: Contestant, cycles: int, restarts: Sequence[int], vary: Sequence[str], settings: Settings,
          report=None) -> dict[str, Any]:
    """`cycles` for each puzzle, as R jobs of cycles / R each.

    Right answers with the verifier, which takes a puzzle out as soon as it is solved; and without any, when ORDERS
    choose among R answers, all of which are thought to the end.
    """
    rows, n = [], len(subject.inputs)
    for kind in vary:
        for R in restarts:
            if R == 1 and kind != vary[0]:
                continue
            job = dataclasses.replace(settings, max_cycles=cycles // R, tries=R, vary=kind, settle=0)
            blind = subject.solve(job, verify=False)
            asked = subject.solve(job)
            any_right = np.zeros(len(subject.inputs), bool)
            np.logical_or.at(any_right, blind.jobs.puzzle, subject.right(blind.jobs.tokens, blind.jobs.puzzle))
            rows.append({"vary": kind if R > 1 else "", "restarts": R, "cycles_each": cycles // R,
                         "chosen_by": {" ".join(by): int(subject.right(blind.jobs.tokens[
                             choose(blind.jobs, n, by)]).sum()) for by in ORDERS},
                         "right_at_the_end_of_any": int(any_right.sum()),
                         "with_verifier": int(asked.answers.verified.sum()),
                         "mean_cycles_with_verifier": asked.cycles / n, "seconds": blind.seconds})
            if report is not None:
                report(rows[-1])
    return {"cycles": cycles, "sigma": settings.sigma, "spend": rows}


def show_spend(r: dict[str, Any]) -> str:
    n = r["examples"]
    head = ["restarts", "cycles each", "they differ by", *("by " + ", ".join(by) for by in ORDERS), "in any of them",
            "verifier", "cycles used"]
    rows = [[str(s["restarts"]), f"{s['cycles_each']:,}", s["vary"] or "-",
             *(percent(k / n) for k in s["chosen_by"].values()), percent(s["right_at_the_end_of_any"] / n),
             percent(s["with_verifier"] / n), f"{s['mean_cycles_with_verifier']:,.1f}"] for s in r["spend"]]
    return (f"{n:,} puzzles of {r['dataset']}, {r['cycles']:,} cycles for each; right, in %\n"
            + table(head, rows, left=(2,)))


# The command line.


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments.Parser("python -m trm_jax bench inference", __doc__)
    jobs = parser.add_subparsers(dest="job", required=True)

    def add(name, text):
        p = jobs.add_parser(name, help=text, description=text)
        arguments.add_source(p, weights_file.named(), weights_file.DEFAULT)
        arguments.add_cache(p, distributed.COMPILED)
        p.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="in the weights' config, as "
                       "arch.matmul_precision=bfloat16; repeatable")
        p.add_argument("--data", type=arguments.text, help="dataset folder (default: the one that was trained on)")
        p.add_argument("--examples", type=arguments.integer(0), default=1000, help="test puzzles; 0: all (%(default)s)")
        p.add_argument("--out", type=lambda path: Path(arguments.text(path)), help="JSON file of the result")
        arguments.add_format(p, "text", "json")
        return p
    numbers = arguments.listed(arguments.integer(1))
    b = add("batching", "continuous batching against a fixed unroll to the same limit")
    arguments.add_max_cycles(b, 20_000)
    arguments.add_settle(b)
    arguments.add_batch_size(b, 64, "slots")
    b.add_argument("--fixed_batch", type=arguments.integer(1, 1 << 20), default=64, help="puzzles of a fixed unroll "
                   "(%(default)s)")
    s = add("speed", "cycles per second at several batch sizes")
    s.add_argument("--batch_sizes", type=numbers, default=(1, 64, 512), help="(1,64,512)")
    s.add_argument("--seconds", type=arguments.number(above=True), default=2, help="of one of the five runs, about "
                   "(%(default)s)")
    g = add("engine", "continuous batching under the profiler")
    arguments.add_max_cycles(g, 64)
    arguments.add_settle(g)
    arguments.add_batch_size(g, 64, "slots")
    g.add_argument("--profile", type=Path, metavar="DIR", help="keep the trace there, and what is told of it")
    p = add("spend", "tries against depth, at equal core calls")
    arguments.add_max_cycles(p, 256, "cycles for each puzzle")
    arguments.add_tries(p, (1, 2, 4, 8, 16), numbers, "answers per puzzle")
    p.add_argument("--vary", type=arguments.listed(arguments.one_of("symmetry", "start", "cycle")),
                   default=("symmetry", "start", "cycle"), help="(symmetry,start,cycle)")
    p.add_argument("--sigma", type=arguments.number(0), default=0.3, help="of the noise (%(default)s)")
    arguments.add_batch_size(p, 64, "slots")
    args = parser.parse_args(argv)
    return guarded(lambda: _run(args), interrupted="finished batches are kept with --out")


def _run(args: argparse.Namespace) -> None:
    export = command.open_source(args)
    export = export._replace(experiment=config.with_fields(export.experiment, config.read_fields(args.set)))
    subject = Contestant.of(export, args.data or export.experiment.data.path, args.examples)
    if args.job == "batching":
        settings = Settings(max_cycles=args.max_cycles, settle=args.settle, batch_size=args.batch_size)
        result, show = batching(subject, settings, args.fixed_batch, args.out), show_batching
    elif args.job == "engine":
        settings = Settings(max_cycles=args.max_cycles, settle=args.settle, batch_size=args.batch_size)
        with tempfile.TemporaryDirectory() as folder:
            result, show = engine_profile(subject, settings, args.profile or Path(folder)), show_engine
    elif args.job == "speed":
        result, show = speed(subject, args.batch_sizes, args.seconds), show_speed
    else:
        settings = Settings(sigma=args.sigma, batch_size=args.batch_size)
        if uneven := [R for R in args.tries if args.max_cycles % R]:
            raise BenchError(f"--max_cycles={args.max_cycles} cannot be shared out among {uneven[0]} tries evenly")
        result = spend(subject, args.max_cycles, args.tries, args.vary, settings, lambda row: say(str(row)))
        show = show_spend
    result = subject.facts | result
    print(json.dumps(result, indent=2) if args.format == "json" else show(result))
    if args.out:
        files.write_json(args.out, result)


if __name__ == "__main__":
    sys.exit(main())
