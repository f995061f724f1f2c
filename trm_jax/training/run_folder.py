"""A run's folder: what the run is (`open_run`), and who may continue it (`claim`, `claim_data`).

    workdir/config.json       its config
    workdir/data.json         what it has to know of its dataset, so that it can be used where that is not
    workdir/identifiers.json  names of the rows of the puzzle table, where they are of tasks (ARC)
    workdir/checkpoints/N/    state, input position and metrics after step N (runtime/checkpoints.py)
    workdir/eval/             what evaluations found
    workdir/.lock             held while it is trained
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from trm_jax import config as config_lib
from trm_jax import puzzles
from trm_jax.config import Experiment
from trm_jax.data import dataset
from trm_jax.data.loading import Dataset
from trm_jax.data.shape import SIZES, Shape
from trm_jax.models.network import Weights
from trm_jax.puzzles import puzzle_of
from trm_jax.runtime import checkpoints, distributed, files
from trm_jax.runtime.checkpoints import CheckpointError
from trm_jax.runtime.files import write_json
from trm_jax.training import puzzle_table
from trm_jax.training.system import System, total_steps

CONFIG, DATA, IDENTIFIERS = "config.json", "data.json", "identifiers.json"
BEST = "exact_accuracy"  # at the last of H_test and L_test: what "the best checkpoint" means


# Files that a shell or a scheduler may have put into a run's folder before the run began.
LOGS = (".log", ".out", ".err")


def claim(workdir: str | os.PathLike[str], config: dict[str, Any]) -> None:
    """Makes `workdir` the folder of the run that `config` (a `config.to_json` dict) describes.

    A new or empty folder gets a `config.json`; in a run's own folder the two configs must agree, except in
    `config.MAY_CHANGE`, where the new values are written down. Hidden files and logs do not make a folder
    non-empty. Every process may call it.

    Raises:
      CheckpointError: another run's folder (listing every field that differs), or no run's folder.
    """
    workdir = Path(workdir)
    config = json.loads(json.dumps(config))
    if workdir.exists() and not workdir.is_dir():
        raise CheckpointError(f"--workdir={workdir} is a file; give a folder")
    path = workdir / CONFIG
    if not path.exists():
        foreign = sorted(p.name for p in workdir.iterdir()) if workdir.exists() else []
        foreign = [name for name in foreign if not name.startswith(".") and not name.endswith(LOGS)]
        if foreign and not path.exists():  # another process of this run may have claimed it since the first look
            raise CheckpointError(
                f"{workdir} is not empty and has no {CONFIG}, so it is not the folder of a run (it has "
                f"{', '.join(foreign[:5])}{' ...' if len(foreign) > 5 else ''}). Give a new or empty --workdir")
    if not path.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, config)
        return
    old = read_config(workdir)
    require_same(workdir, old, config, "Give another --workdir to start a new run, or the run's own values to "
                                       "continue this one")
    if old != config:
        write_json(path, config)


def has_checkpoint(workdir: str | os.PathLike[str]) -> bool:
    """Has a run saved anything in this folder?"""
    folder = Path(workdir) / checkpoints.CHECKPOINTS
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


def require_same(workdir: str | os.PathLike[str], old: dict[str, Any], new: dict[str, Any], then: str,
                 but: tuple[str, ...] = ()) -> None:
    """Raises CheckpointError, listing every field in which a run's config differs, outside of `config.MAY_CHANGE`.

    Args:
      then: what would do.
      but: more fields that may differ.
    """
    found = {name: pair for name, pair in config_lib.differences(old, new).items() if name not in but}
    if found:
        lines = [f"{name}: the run has {was!r}, now {now!r}" for name, (was, now) in found.items()]
        raise CheckpointError(f"{workdir} belongs to a run with another config:\n  " + "\n  ".join(lines) + "\n" + then)


def read_config(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """The `config.json` of the run in `workdir`, as `config.parse` takes it.

    Raises:
      CheckpointError: there is no run in the folder, or its config.json is not one of this program's.
    """
    path = Path(workdir) / CONFIG
    if not path.is_file():
        why = "has no " + CONFIG if path.parent.exists() else "does not exist"
        raise CheckpointError(f"{workdir} is not the folder of a run: it {why}. "
                              "Give as --workdir the folder that a training run wrote")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}). Put the run's own back, or give another "
                              "--workdir") from error
    known = {field.name for field in dataclasses.fields(config_lib.Experiment)}
    if not isinstance(config, dict) or not known & set(config):
        raise CheckpointError(f"{path} is not a config of this program (no field of it is known). "
                              "Give another --workdir")
    return config


# What a run is.


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that was written, whatever has become of its dataset."""

    workdir: Path
    experiment: Experiment
    puzzle: dict[str, Any]  # arguments of puzzles.get: name and options
    shape: Shape
    total_steps: int

    @functools.cached_property
    def system(self) -> System:
        return System(self.experiment, self.shape, self.total_steps)

    @property
    def domain(self) -> puzzles.Domain:
        return puzzles.get(**self.puzzle)

    @functools.cached_property
    def identifiers(self) -> list[str] | None:
        """The names of the puzzle table's rows; None where they are not of tasks."""
        if not self.domain.identifies_tasks:
            return None
        kept = self.workdir / IDENTIFIERS
        return dataset.load_identifiers(self.workdir if kept.exists() else self.experiment.data.path)

    def L(self, step: int) -> int:
        """Inner cycles of training step `step`."""
        return self.system.curriculum.L(step)

    def evaluation(self, step: int) -> dict[str, Any] | None:
        """What the run itself found of its checkpoint of `step`; None if that is not there or cannot be read."""
        path = self.workdir / "eval" / f"step_{step}.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            distributed.complain(f"{path} cannot be read ({error}): left out")
            return None
        return found if isinstance(found, dict) else None

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending. Raises CheckpointError if there is none."""
        with checkpoints.Checkpointer(self.workdir, read_only=True) as reader:
            steps = reader.steps()
        if not steps:
            raise CheckpointError(f"{self.workdir} holds no checkpoint yet; train it first")
        return steps

    def weights(self, mesh: Mesh, step: int | None = None) -> tuple[Weights, int]:
        """The evaluated parameters of the best checkpoint (else the last one), or of `step`, where they belong; and its
        step. One that is damaged is named and passed over for the next best.

        Raises:
          CheckpointError: there is none, or none that is sound; or it is not one of this run.
        """
        model, name = self.system.model, "ema" if self.experiment.ema else "params"
        wanted: dict[str, Any] = {
            field: jax.tree.map(lambda a, place=place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), tree)
            for field, tree, place in zip((name, "fixed", "table"), jax.eval_shape(model.init, jax.random.key(0)),
                                          puzzle_table.weights_shardings(model, mesh))}
        with checkpoints.Checkpointer(self.workdir, best_metric=best_metric(self.experiment),
                                      read_only=True) as reader:
            restored = reader.restore_fields(wanted, reader.best_first() if step is None else [step])
        if restored is None:
            raise CheckpointError(f"{self.workdir} holds no checkpoint yet; train it first")
        fields, _, step = restored
        self.require_step(step)
        return Weights(fields[name], fields["fixed"], fields["table"]), step

    def require_step(self, step: int) -> None:
        """Raises CheckpointError where a checkpoint of `step` cannot be this run's."""
        if not 0 <= step <= self.total_steps:
            raise CheckpointError(f"{self.workdir} has a checkpoint of step {step}, but the run has {self.total_steps} "
                                  "steps: that folder is not one of this run")

    def require_fit(self, data: Dataset) -> None:
        """Raises DatasetError unless `data` is of the run's kind of puzzles."""
        found = {**puzzle_of(self.domain), **self.shape.sizes}
        now = {**puzzle_of(data.domain), **data.shape.sizes}
        if differ := [f"{name} is {now.get(name)!r}, the run's {found.get(name)!r}" for name in {**found, **now}
                      if now.get(name) != found.get(name)]:
            raise dataset.DatasetError(f"{self.workdir} cannot be evaluated on this dataset: {'; '.join(differ)}")


def open_run(workdir: str | os.PathLike[str], experiment: Experiment | None = None) -> Run:
    """The run in `workdir`.

    Args:
      experiment: the config it is opened with; by default its own. It must agree with that but for how to evaluate
        (`config.MAY_CHANGE`) and on which dataset.

    Raises:
      CheckpointError: no run is there, or one with another config.
      DatasetError: it was written before runs kept data.json, and its dataset is not there.
    """
    workdir, raw = Path(workdir), read_config(workdir)
    own = config_lib.parse(raw)
    if experiment is not None:
        require_same(workdir, raw, config_lib.to_json(experiment), "Give the run's own values to evaluate it",
                     but=("data.path",))
    if (workdir / DATA).exists():
        return Run(workdir, experiment or own, **_read_data(workdir))
    data = Dataset.load(own)
    return Run(workdir, experiment or own, puzzle_of(data.domain), data.shape, total_steps(own, data.train.metadata))


def claim_data(workdir: str | os.PathLike[str], experiment: Experiment, data: Dataset) -> Run:
    """Writes down what the run in `workdir` has to know of its dataset, or compares it with what is written.

    Raises:
      CheckpointError: the run began with another dataset; `data.exchanged` lets it go on.
    """
    workdir, path = Path(workdir), Path(experiment.data.path)
    run = Run(workdir, experiment, puzzle_of(data.domain), data.shape, total_steps(experiment, data.train.metadata))
    now = {"puzzle": run.puzzle, "shape": run.shape.sizes, "total_steps": run.total_steps,
           "dataset": {split: dataset.fingerprint(path, split) for split in ("train", "test")}}
    now = json.loads(json.dumps(now))
    if (workdir / DATA).exists():
        old = _read_json(workdir / DATA)
        differ = [f"{name}: the run has {old.get(name)!r}, now {value!r}" for name, value in now.items()
                  if old.get(name) != value and not (name == "dataset" and experiment.data.exchanged)]
        if differ:
            raise CheckpointError(f"{workdir} belongs to a run on another dataset than {path} is now:\n  "
                                  + "\n  ".join(differ) + "\nPut the run's own dataset back, give another --workdir, "
                                  "or set --config.data.exchanged=True to go on with other puzzles of the same kind")
        if old == now:
            return run
    if data.domain.identifies_tasks:
        files.write_file(workdir / IDENTIFIERS, (path / IDENTIFIERS).read_bytes())
    write_json(workdir / DATA, now)
    return run


@contextlib.contextmanager
def training(workdir: str | os.PathLike[str]):
    """Nobody else trains the run in `workdir` meanwhile. Raises LockedError if somebody does."""
    with contextlib.ExitStack() as stack:
        if distributed.is_primary():
            stack.enter_context(files.lock(Path(workdir) / ".lock", f"{workdir}"))
        yield


def best_metric(experiment: Experiment) -> str:
    """The figure by which checkpoints are ranked: BEST, but for labels that one answer in many can match, and ARC's
    score."""
    return puzzles.domain_class(experiment.data.puzzle).best_metric if experiment.data.labels == "fixed" else "verified"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}). Put the run's own back, or remove it where the "
                              "run's dataset is at hand") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return found


def _read_data(workdir: Path) -> dict[str, Any]:
    """puzzle, shape and total_steps of `workdir`/data.json."""
    path, faults = workdir / DATA, []
    found = _read_json(path)
    try:
        shape, steps = found["shape"], found["total_steps"]
        domain = puzzles.get(**found["puzzle"])
        if sorted(shape) != sorted(SIZES) or not all(type(n) is int and n > 0 for n in (steps, *shape.values())):
            faults.append("shape and total_steps must be positive whole numbers")
        elif (domain.seq_len, domain.vocab_size) != (shape["seq_len"], shape["vocab_size"]):
            faults.append("puzzle and shape contradict each other")
    except (KeyError, TypeError, puzzles.PuzzleError) as error:
        faults.append(f"{type(error).__name__}: {error}")
    if faults:
        raise CheckpointError(f"{path} is not as this program writes it: {faults[0]}. Put the run's own back, or "
                              "remove it where the run's dataset is at hand")
    return {"puzzle": found["puzzle"], "shape": Shape(**shape, units=domain.units), "total_steps": steps}
