"""Faults at random, and what becomes of them: flipped bits, cut files, kills.

    python -m tests.faults flips --of=checkpoint,weights,dataset --tries=200
    python -m tests.faults kill --kills=20
    python -m tests.faults save --rows=1000000 --in=FOLDER

Flips and kills print a line with their counts and exit with 1 if anything was wrong; the same --seed draws the same
faults. `save` times checkpoints with a puzzle table of so many rows: what a preempted run needs before it can end.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from tests import tiny
from trm_jax.data import dataset
from trm_jax.data.loading import Dataset
from trm_jax.jobs import train
from trm_jax.runtime import arguments, checkpoints, distributed
from trm_jax.runtime.errors import UserError
from trm_jax.training import step as step_lib
from trm_jax.weights import weights_file

OUTCOMES = ("refused", "harmless", "silent", "traceback")
GOOD = ("refused", "harmless")
PATIENCE = 120.0  # seconds that a run may take to begin


def content(value: Any) -> list[bytes | str]:
    """Something to compare: the bytes of arrays, the text of all else."""
    return [tiny.raw(leaf).tobytes() if hasattr(leaf, "dtype") else repr(leaf)
            for leaf in jax.tree.leaves(value, is_leaf=lambda x: x is None)]


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is damaged."""

    folder: Path  # its files
    read: Callable[[], Any]  # what it says, with everything in it


def checkpoint(root: Path) -> Subject:
    """The only checkpoint of a run."""
    e = tiny.experiment(tiny.make_dataset(root / "data"), total_steps=2, checkpoint={"keep_last": 1})
    train.train(e, root / "run")
    like = step_lib.place(tiny.system_of(e), distributed.data_mesh())

    def read() -> Any:
        with checkpoints.Checkpointer(root / "run", best_metric="exact_accuracy", read_only=True) as reader:
            state, position, step = reader.restore(like)
            return state, position, step, weights_file.from_run(root / "run").weights
    return Subject(root / "run" / "checkpoints", read)


def weights(root: Path) -> Subject:
    """A weights file."""
    e = tiny.experiment(tiny.make_dataset(root / "data"), total_steps=2)
    train.train(e, root / "run")
    (root / "packed").mkdir()
    weights_file.save(root / "packed" / "w.safetensors", weights_file.from_run(root / "run"))

    def read() -> Any:
        export = weights_file.load(root / "packed" / "w.safetensors")
        return export.weights, export.metadata, export.experiment, export.shape, export.puzzle
    return Subject(root / "packed", read)


def dataset_folder(root: Path) -> Subject:
    e = tiny.experiment(tiny.make_dataset(root / "data"))

    def read() -> Any:
        data = Dataset.load(e)
        return ([vars(part) for part in (data.train, data.test)], repr(data.domain),
                dataset.load_identifiers(root / "data"), dataset.load_provenance(root / "data"))
    return Subject(root / "data", read)


SUBJECTS = {"checkpoint": checkpoint, "weights": weights, "dataset": dataset_folder}


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One bit flipped, or (one time in four) cut off."""
    if rng.random() < 0.25:
        return data[:rng.randrange(len(data))]
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1:]


def flips(subject: Subject, tries: int, seed: int, say: Callable[[str], None] = lambda line: None
          ) -> collections.Counter[str]:
    """How many of `tries` faults were refused with a message for the user, changed nothing that is read, changed it
    silently, or ended in another exception. Half of the faults fall on files by their size, half on each alike."""
    counts: collections.Counter[str] = collections.Counter(dict.fromkeys(OUTCOMES, 0))
    rng = random.Random(seed)
    files = sorted(p for p in subject.folder.rglob("*") if p.is_file() and p.stat().st_size)
    sizes, sound = [p.stat().st_size for p in files], content(subject.read())
    for turn in range(tries):
        [file] = rng.choices(files, sizes) if turn % 2 else [rng.choice(files)]
        before = file.read_bytes()
        file.write_bytes(damaged(before, rng))
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                outcome = "harmless" if content(subject.read()) == sound else "silent"
        except UserError:
            outcome = "refused"
        except Exception as error:  # what this counts
            outcome = "traceback"
            say(f"{file.relative_to(subject.folder)}: {type(error).__name__}: {error}")
        if outcome == "silent":
            say(f"{file.relative_to(subject.folder)}: changed, and read all the same")
        counts[outcome] += 1
        file.write_bytes(before)
    return counts


# Kills.

EVERYTHING = {
    "arch": {"L_cycles": 1}, "data": {"augment": True}, "eval": {"interval_steps": 40}, "log": {"interval_steps": 7},
    "deepen": {"carry_share": 0.5, "carry_keep_prob": 0.8, "tail_prob": 0.3, "tail_max_H": 6},
    "curriculum_milestones": [30.0], "curriculum_heads_to_add": [1], "curriculum_L_milestones": [60.0],
    "curriculum_L_to_add": [1], "optimizer_reset_scale": 0.5, "checkpoint": {"interval_steps": 5},
}


@dataclasses.dataclass
class Kills:
    """What was seen."""

    kills: int = 0
    finished: int = 0  # runs
    different: int = 0  # finished runs whose state or metrics are not those of the run that nobody killed
    tracebacks: int = 0  # sessions that said one
    failed: int = 0  # sessions that ended by themselves, and not with 0


def kill(root: Path, kills: int, seed: int, steps: int = 160, longest: float = 2.5,
         say: Callable[[str], None] = lambda line: None) -> Kills:
    """Trains a tiny run to its end again and again, and kills it (SIGKILL) at random moments, until it was killed so
    many times and has finished once more.

    Args:
      longest: seconds from a session's first word to its kill, at most; drawn evenly.
    """
    e = tiny.experiment(tiny.make_dataset(root / "data"), total_steps=steps, **EVERYTHING)
    command = [sys.executable, "-m", "trm_jax.main", f"--config={tiny.config_file(root, e)}",
               f"--compilation_cache={root / 'compiled'}"]
    subprocess.run([*command, f"--workdir={root / 'whole'}"], check=True, capture_output=True)
    rng, seen, run = random.Random(seed), Kills(), root / "run0"
    while seen.kills < kills or (run / "checkpoints").exists():
        with open(root / "said", "w+b") as said:
            process = subprocess.Popen([*command, f"--workdir={run}"], stdout=subprocess.DEVNULL, stderr=said)
            try:
                if seen.kills < kills:
                    _wait_for_a_word(process, root / "said")
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(rng.uniform(0, longest))
                    seen.kills += process.poll() is None
                    process.kill()
                process.wait(20 * PATIENCE)
            finally:
                process.kill()
                process.wait()
        text = (root / "said").read_text(errors="replace")
        seen.tracebacks += "Traceback" in text
        if process.returncode == 0:
            seen.finished += 1
            seen.different += not _same(e, root / "whole", run)
            say(f"{run.name} has finished after {seen.kills} kills")
            run = root / f"run{seen.finished}"
        elif process.returncode > 0:
            seen.failed += 1
            say(text[-2000:])
            run = root / f"run{seen.finished}-{seen.failed}"
    return seen


def _wait_for_a_word(process: subprocess.Popen[bytes], said: Path) -> None:
    """Of the run that begins or goes on."""
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end and b" steps of " not in said.read_bytes():
        time.sleep(0.01)


def _same(e: Any, one: Path, other: Path) -> bool:
    """Bit for bit, and in what was recorded but for times."""
    def recorded(workdir: Path) -> list[dict[str, Any]]:
        return [{name: value for name, value in line.items() if not name.endswith(("_per_second", "mfu"))}
                for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())]
    a, b = (content(tiny.final_state(e, workdir)) for workdir in (one, other))
    return a == b and recorded(one) == recorded(other)


def save_seconds(folder: Path, rows: int, times: int) -> tuple[int, list[float], float]:
    """(bytes of a state with a table of rows of 512 and 28 other numbers a row; seconds of each save, until it is
    complete on disk; seconds to read it back)."""
    keys = jax.random.split(jax.random.key(0), 2)
    state = jax.block_until_ready({"table": jax.random.normal(keys[0], (rows, 512)),
                                   "others": jax.random.normal(keys[1], (28 * rows,))})
    seconds = []
    with checkpoints.Checkpointer(folder, keep_last=1) as files:
        for step in range(times):
            begun = time.perf_counter()
            files.save(step, state, {})
            files.wait()
            seconds.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        jax.block_until_ready(files.restore(jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state)))
    return sum(a.nbytes for a in state.values()), seconds, time.perf_counter() - begun


def main(argv: list[str] | None = None) -> int:
    parser = arguments.Parser("python -m tests.faults", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    flip = commands.add_parser("flips", prog="python -m tests.faults flips")
    flip.add_argument("--of", type=arguments.listed(arguments.one_of(*SUBJECTS)), default=tuple(SUBJECTS))
    flip.add_argument("--tries", type=arguments.integer(1, 100_000), default=200, help="of each (%(default)s)")
    killing = commands.add_parser("kill", prog="python -m tests.faults kill")
    killing.add_argument("--kills", type=arguments.integer(1, 10_000), default=20)
    saving = commands.add_parser("save", prog="python -m tests.faults save")
    saving.add_argument("--rows", type=arguments.integer(1, 100_000_000), default=1_000_000, help="(%(default)s)")
    saving.add_argument("--times", type=arguments.integer(1, 100), default=5, help="(%(default)s)")
    saving.add_argument("--in", dest="place", metavar="FOLDER", help="on the disk in question; nothing stays there")
    for command in (flip, killing):
        command.add_argument("--seed", type=arguments.integer(), default=0)
    args = parser.parse_args(argv)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=getattr(args, "place", None)) as folder:
        if args.command == "save":
            size, seconds, back = save_seconds(Path(folder), args.rows, args.times)
            print(f"{size / 1e9:.2f} GB: saved in {', '.join(f'{s:.1f}' for s in seconds)} s, read in {back:.1f} s")
            return 0
        if args.command == "kill":
            seen = kill(Path(folder), args.kills, args.seed, say=say)
            print(f"kills n={seen.kills}: {seen.finished} runs finished, {seen.different} of them different, "
                  f"{seen.tracebacks} tracebacks, {seen.failed} sessions failed")
            return int(bool(seen.different or seen.tracebacks or seen.failed))
        total: collections.Counter[str] = collections.Counter()
        for name in args.of:
            (root := Path(folder) / name).mkdir()
            with contextlib.redirect_stderr(io.StringIO()):
                subject = SUBJECTS[name](root)
            counts = flips(subject, args.tries, args.seed, say)
            total += counts
            print(line(name, counts), flush=True)
        print(line("all", total))
        return int(any(total[name] for name in OUTCOMES if name not in GOOD))


def line(name: str, counts: collections.Counter[str]) -> str:
    return f"flips of {name} n={sum(counts.values())}: " + ", ".join(f"{counts[what]} {what}" for what in OUTCOMES)
