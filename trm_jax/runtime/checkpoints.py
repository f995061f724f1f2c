"""Checkpoints of a run (over Orbax's AsyncCheckpointer): complete or not there, checked when read, never the worse one.

    checkpoints/N/state/                   arrays after step N
    checkpoints/N/position/metadata        JSON: where the run stands in its input and its time
    checkpoints/N/checksums/checksums.json SHA-256 of every file of the two
    checkpoints/N/metrics/metrics          JSON: what the state was evaluated to, once it has been
    checkpoints/N.damaged/                 one that could not be read when the run went on from an older one

A checkpoint appears by a rename once it is complete, so a killed save is never taken for one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import tensorstore as ts
from jax.sharding import SingleDeviceSharding

from trm_jax.runtime import distributed, files
from trm_jax.runtime.errors import UserError
from trm_jax.runtime.text import human

PyTree = Any
CHECKPOINTS = "checkpoints"
CHECKSUMS = "checksums"
UNFINISHED = ".orbax-checkpoint-tmp"
NOT_FOR_ORBAX = set("[]*?\\")  # it takes these for patterns, or for another separator


class CheckpointError(UserError):
    """A folder that is not the run that was asked for, or a checkpoint that cannot be written, read or used."""


class DamagedError(CheckpointError):
    """A checkpoint whose bytes are not those that were written, or whose values are no numbers."""


class NotFiniteError(CheckpointError):
    """A state that holds a NaN or an infinity: it is not saved."""


class _Checksums(ocp.CheckpointHandler):
    """The last item of a checkpoint: when it is finished, all others lie beside it, complete."""

    def save(self, directory: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def restore(self, directory: Any, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("checksums are compared by Checkpointer")

    def finalize(self, directory: Any) -> None:
        folder = Path(directory)
        items = [folder.parent / name for name in ("state", "position")]
        files.write_json(folder / "checksums.json", files.digests(folder.parent, items))


@ocp.args.register_with_handler(_Checksums, for_save=True, for_restore=True)
@dataclasses.dataclass
class _SaveChecksums(ocp.args.CheckpointArgs):
    pass


class Checkpointer:
    """Saves and restores training state in `workdir/checkpoints`; a context manager.

    Kept are the last `keep_last` checkpoints and the `keep_best` with the highest `best_metric`.
    `read_only` is for evaluation: it writes and deletes nothing, so a run that is still training can be read.
    All processes of a run must make the same calls.

    Args:
      note: takes a line about every checkpoint that is passed over because it is damaged.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, keep_last: int = 1, keep_best: int = 0,
                 best_metric: str = "", read_only: bool = False, note: Callable[[str], None] = distributed.complain):
        _quieten_orbax()
        self.folder = Path(workdir).absolute() / CHECKPOINTS
        self._keep_last, self._keep_best, self._best_metric = keep_last, keep_best, best_metric
        self._read_only, self._note = read_only, note
        self._unfinished: int | None = None  # the step that is being written
        if not read_only:
            self.folder.mkdir(parents=True, exist_ok=True)
            if distributed.is_primary():  # what a killed save has left
                for left in self.folder.iterdir():
                    if UNFINISHED in left.name:
                        shutil.rmtree(left, ignore_errors=True)
            distributed.barrier("checkpoints")
        self._steps = sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit() and p.is_dir()
                             ) if self.folder.is_dir() else []
        self._metrics = {step: found for step in self._steps if (found := self._read_metrics(step))}
        self._closing = contextlib.ExitStack()
        self._orbax_folder = self.folder
        if NOT_FOR_ORBAX & set(str(self.folder)):
            alias = Path(self._closing.enter_context(tempfile.TemporaryDirectory())) / CHECKPOINTS
            alias.symlink_to(self.folder, target_is_directory=True)
            self._orbax_folder = alias
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(
            state=ocp.PyTreeCheckpointHandler(), position=ocp.JsonCheckpointHandler(), checksums=_Checksums()))
        self._closing.callback(self._orbax.close)

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Writing.

    def save(self, step: int, state: PyTree, position: dict[str, Any]) -> bool:
        """Starts to write a checkpoint; False if there is one of this step already (nothing is written then).

        Args:
          step: number of optimiser steps done.
          state: pytree of jax arrays, any sharding, typed keys and Nones included. It is on the host when this
            returns, so the caller may donate it; the files are written in the background.
          position: JSON dict of where the run stands in its input and its time; the one of process 0 is kept.

        Raises:
          NotFiniteError: the state holds a NaN or an infinity.
          CheckpointError: this or an earlier save failed.
        """
        self.wait()
        if step in self._steps:
            return False
        if bad := _not_finite(state):
            raise NotFiniteError(f"the state after step {step} is not saved: it is not finite in {_few(bad)}")
        size, free = sum(leaf.nbytes for leaf in jax.tree.leaves(state)), shutil.disk_usage(self.folder).free
        if size > free:
            raise CheckpointError(f"no room for the checkpoint {self.folder / str(step)}: it takes up to "
                                  f"{human(size, 'B')} and {human(free, 'B')} are free. Earlier checkpoints are as "
                                  "they were; make room, then start the run again")
        self._unfinished = step
        try:
            self._orbax.save(self._orbax_folder / str(step), args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(state), position=ocp.args.JsonSave(position), checksums=_SaveChecksums()))
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unwritten(error) from error
        return True

    def wait(self) -> None:
        """Returns when the last save is complete on disk; raises CheckpointError if it failed."""
        if self._unfinished is None:
            return
        try:
            self._orbax.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unwritten(error) from error
        self._steps, self._unfinished = sorted({*self._steps, self._unfinished}), None
        self._prune()

    def record(self, step: int, metrics: dict[str, float]) -> None:
        """Writes down what the checkpoint of `step` was evaluated to: name -> number, with `best_metric` in it."""
        metrics = {name: float(value) for name, value in metrics.items()}
        if self._best_metric and self._best_metric not in metrics:
            raise CheckpointError(f"best_metric = {self._best_metric!r} is not measured; there are "
                                  f"{', '.join(sorted(metrics))}")
        self.wait()
        if distributed.is_primary():
            file = self._metrics_file(step)
            files.write_json(file, metrics)
            files.write_json(file.parent / "checksums.json", {file.name: files.digest(file)})
        self._metrics[step] = metrics
        self._prune()

    def close(self) -> None:
        """Waits as `wait` does, and stops the background threads."""
        with self._closing:
            self.wait()

    # Reading.

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending, the one in progress included."""
        return sorted({*self._steps, *([] if self._unfinished is None else [self._unfinished])})

    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the highest `best_metric`, the later one of equals; None if none was evaluated."""
        return max(self._metrics, key=lambda step: (self._goodness(step), step), default=None)

    def best_first(self) -> list[int]:
        """All steps: those that were evaluated, the best first, then the others, the latest first."""
        return sorted(self.steps(), key=lambda step: (step in self._metrics, self._goodness(step), step), reverse=True)

    def is_evaluated(self, step: int) -> bool:
        return step in self._metrics

    def restore(self, abstract_state: PyTree, step: int | None = None) -> tuple[PyTree, dict[str, Any], int] | None:
        """(state, position, step) of a checkpoint, by default of the latest that is sound; None if there is none.

        A damaged one that is newer is renamed to N.damaged (not with `read_only`), so that the run can write that
        step anew.

        Args:
          abstract_state: tree of jax.ShapeDtypeStruct (or arrays) with the structure, shapes, dtypes and shardings
            wanted; the number of devices need not be that of the save. Without a sharding: the first device.

        Raises:
          DamagedError: the checkpoint of `step`, or every one, is damaged.
          CheckpointError: no such step, or other leaves, shapes or dtypes.
        """
        self.wait()
        return self._first_sound(abstract_state, self.steps()[::-1] if step is None else [step], partial=False)

    def restore_fields(self, abstract_fields: dict[str, PyTree],
                       steps: Sequence[int] | None = None) -> tuple[dict[str, PyTree], dict[str, Any], int] | None:
        """As `restore`, but reads only the state's top-level fields named in the dict, e.g. {"params": ...}.

        Args:
          steps: the first sound one of these is read; by default the latest.
        """
        self.wait()
        return self._first_sound(abstract_fields, self.steps()[::-1] if steps is None else steps, partial=True)

    def _first_sound(self, abstract: PyTree, steps: Sequence[int],
                     partial: bool) -> tuple[PyTree, dict[str, Any], int] | None:
        faults: list[tuple[int, DamagedError]] = []
        for step in steps:
            try:
                found = self._restore(abstract, step, partial)
            except DamagedError as error:
                faults.append((step, error))
                continue
            for bad, error in faults:
                self._note(f"{error}. Step {step} is used instead" + self._put_aside(bad))
            return found
        if faults:
            raise DamagedError("\n".join(str(error) for _, error in faults) + ". No other checkpoint is there to use: "
                               "put a copy of it back, or give a new --workdir to start from the beginning")
        return None

    def _put_aside(self, step: int) -> str:
        if self._read_only:
            return ""
        aside = self.folder / f"{step}.damaged"
        while aside.exists():
            aside = aside.with_name(aside.name + "-")
        if distributed.is_primary():
            (self.folder / str(step)).rename(aside)
        self._steps.remove(step)
        self._metrics.pop(step, None)
        return f"; the other is kept as {aside}"

    def _restore(self, abstract: PyTree, step: int, partial: bool) -> tuple[PyTree, dict[str, Any], int]:
        if step not in self.steps():
            raise CheckpointError(f"{self.folder} has no checkpoint of step {step}; there are: "
                                  f"{self.steps() or 'none'}")
        abstract, folder = jax.tree.map(_struct, abstract), self._orbax_folder / str(step)
        wanted = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(abstract, partial_restore=partial,
                                         restore_args=ocp.checkpoint_utils.construct_restore_args(abstract)),
            position=ocp.args.JsonRestore())
        fault = None
        try:
            _verify(folder)
        except (OSError, ValueError) as error:
            fault = error
        if not distributed.all_agree(fault is None):  # so that all processes go on from the same step
            raise self._damaged(step, fault or OSError("another process cannot read it"))
        try:
            metadata: Any = self._orbax.metadata(folder).item_metadata
            self._compare(metadata.state.tree, abstract, step, partial)
            restored: Any = self._orbax.restore(folder, args=wanted)
        except CheckpointError:
            raise
        # The last three are what Orbax raises where its own JSON files are cut short or altered.
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(step, error) from error
        if not isinstance(restored.position, dict):
            raise self._damaged(step, ValueError("its position is no JSON object"))
        if bad := _not_finite(restored.state):
            raise self._damaged(step, ValueError(f"it is not finite in {_few(bad)}"))
        return restored.state, restored.position, step

    def _compare(self, saved: PyTree, abstract: PyTree, step: int, partial: bool) -> None:
        """Raises with every leaf that is only on one side, or differs in shape or dtype."""
        there, here = _leaves(saved), _leaves(abstract)
        if partial:
            there = {name: leaf for name, leaf in there.items() if name.split("/")[0] in abstract}
        lines = [f"only in the checkpoint: {name} {leaf}" for name, leaf in there.items() if name not in here]
        lines += [f"only in this state: {name} {leaf}" for name, leaf in here.items() if name not in there]
        lines += [f"differs: {name} is {leaf} in the checkpoint, {here[name]} in this state"
                  for name, leaf in there.items() if name in here and here[name] != leaf]
        if lines:
            raise CheckpointError(
                f"the checkpoint {self.folder / str(step)} does not fit this state:\n  " + "\n  ".join(lines) +
                "\nIt was saved with another config or version: use the run's own, or another --workdir")

    # What is kept.

    def _prune(self) -> None:
        """Removes the checkpoints that are neither among the last nor among the best. All but these are complete."""
        if self._read_only:
            return
        best = sorted(self._metrics, key=lambda step: (self._goodness(step), step))
        kept = {*self._steps[-self._keep_last:], *best[len(best) - self._keep_best:]}
        for step in set(self._steps) - kept:
            if distributed.is_primary():
                going = self.folder / f"{step}{UNFINISHED}-deleting"  # a kill leaves no half of one under its name
                (self.folder / str(step)).rename(going)
                shutil.rmtree(going, ignore_errors=True)
            self._metrics.pop(step, None)
        self._steps = [step for step in self._steps if step in kept]

    def _metrics_file(self, step: int) -> Path:
        return self.folder / str(step) / "metrics" / "metrics"

    def _read_metrics(self, step: int) -> dict[str, float]:
        """{} if there are none, or none that can be read: then the checkpoint counts as not evaluated."""
        try:
            file = self._metrics_file(step)
            sums = file.parent / "checksums.json"
            if sums.exists():  # older ones have none
                files.compare(file.parent, json.loads(sums.read_text(encoding="utf-8")))
            found = json.loads(file.read_text(encoding="utf-8"))
            return {str(name): float(value) for name, value in found.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            self._note(f"{self._metrics_file(step)} is damaged ({_reason(error)}): step {step} counts as not "
                       "evaluated")
            return {}

    def _goodness(self, step: int) -> float:
        value = self._metrics.get(step, {}).get(self._best_metric, -math.inf)
        return -math.inf if math.isnan(value) else value

    def _unwritten(self, error: Exception) -> CheckpointError:
        step, self._unfinished = self._unfinished, None
        free = human(shutil.disk_usage(self.folder).free, "B") if self.folder.exists() else "nothing"
        return CheckpointError(f"the checkpoint {self.folder / str(step)} was not written: {_reason(error)} ({free} "
                               "free). Earlier checkpoints are as they were; make room or make the folder writable, "
                               "then start the run again")

    def _damaged(self, step: int, error: Exception) -> DamagedError:
        return DamagedError(f"the checkpoint {self.folder / str(step)} is damaged: {_reason(error)}")


def _struct(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _name(path: Any) -> str:
    return "/".join(str(next(getattr(k, a) for a in ("name", "key", "idx") if hasattr(k, a))) for k in path)


def _leaves(tree: PyTree) -> dict[str, str]:
    """'params/dense/kernel' -> 'float32[512, 512]'; a typed key appears as the data in which it is stored."""
    def describe(leaf: Any) -> str:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return f"{leaf.dtype}{list(leaf.shape)}"
    return {_name(path): describe(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


@jax.jit
def _are_finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]


def _not_finite(tree: PyTree) -> list[str]:
    """Names of the floating leaves that hold a NaN or an infinity."""
    floats = {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
              if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    finite = jax.device_get(_are_finite(list(floats.values())))
    return [name for name, fine in zip(floats, finite) if not fine]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _verify(folder: Path) -> None:
    """Compares every file with its checksum. Raises OSError or ValueError at the first that differs or is missing."""
    sums = folder / CHECKSUMS / "checksums.json"
    if (folder / CHECKSUMS).exists():
        files.compare(folder, json.loads(sums.read_text(encoding="utf-8")))
        return
    # Written before there were checksums: what Orbax has of its own is compared, which is its index.
    state = {"driver": "file", "path": f"{folder / 'state'}/"}
    store = ts.KvStore.open({"driver": "ocdbt", "base": state}).result()
    keys = store.list().result()
    if not keys:  # also without its manifest
        raise FileNotFoundError(f"no arrays in {folder / 'state'}")
    for key in keys:
        store.read(key).result()


def _reason(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300].rstrip(". ")


def _quieten_orbax() -> None:
    """Drops what Orbax logs: failures arrive as exceptions. Others' absl records are left alone."""
    log = logging.getLogger("absl")
    if _is_not_from_orbax not in log.filters:
        log.addFilter(_is_not_from_orbax)


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.CRITICAL or f"{os.sep}orbax{os.sep}" not in record.pathname
