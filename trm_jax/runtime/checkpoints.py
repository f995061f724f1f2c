"""A run's folder: which config it belongs to, and its checkpoints (over Orbax's CheckpointManager).

    workdir/config.json       what the run is; a continuation with another config is refused (`claim`)
    workdir/checkpoints/N/    state, input position and metrics after step N (`Checkpointer`)

A checkpoint appears by a rename once it is complete, so a killed save is never taken for one.
"""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore as ts
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from trm_jax.runtime.errors import UserError

PyTree = Any
CHECKPOINTS = "checkpoints"


class CheckpointError(UserError):
    """A folder that is not the run that was asked for, or a checkpoint that cannot be written, read or used."""


class Checkpointer:
    """Saves and restores training state in `workdir/checkpoints`; a context manager.

    Kept are the last `keep_last` checkpoints and the `keep_best` with the highest `best_metric`.
    `read_only` is for evaluation: it writes and deletes nothing, so a run that is still training can be read.
    All processes of a run must make the same calls. Opening raises CheckpointError if a checkpoint's metrics
    are damaged.
    """

    def __init__(self, workdir: Path | str, *, keep_last: int = 1, keep_best: int = 0,
                 best_metric: str = "", read_only: bool = False):
        _quieten_orbax()
        self.folder = Path(workdir).absolute() / CHECKPOINTS
        self._best_metric = best_metric
        self._writing: int | None = None
        steps = [int(p.name) for p in self.folder.glob("*") if p.name.isdigit()]
        for step in steps:  # Orbax reads all of these at once, and on a broken one does not say which
            try:
                json.loads((self.folder / str(step) / "metrics" / "metrics").read_text(encoding="utf-8"))
            except FileNotFoundError:
                continue  # not evaluated, or deleted by the run that is writing here
            except ValueError as error:
                raise self._damaged(step, steps, error) from error
        # A killed save's leftovers go, but not from under a run that another process may be training.
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_handlers={"state": ocp.PyTreeCheckpointHandler(), "position": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                save_interval_steps=0 if read_only else 1, read_only=read_only, create=not read_only,
                cleanup_tmp_directories=not read_only,
                best_fn=self._goodness,  # without it Orbax does not write metrics, and a resume forgets the best
                preservation_policy=None if read_only else AnyPreservationPolicy([
                    LatestN(keep_last), BestN(get_metric_fn=self._goodness, n=keep_best,
                                              keep_checkpoints_without_metrics=False)])))

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def save(self, step: int, state: PyTree, position: dict[str, Any],
             metrics: dict[str, float] | None = None) -> bool:
        """Starts to write a checkpoint; False if there is one of this step already (nothing is written then).

        Args:
          step: number of optimiser steps done.
          state: pytree of jax arrays, any sharding, typed keys and Nones included. It is on the host when this
            returns, so the caller may donate it; the files are written in the background.
          position: JSON dict of where the run stands in its input and its time; the one of process 0 is kept.
          metrics: name -> float, with `best_metric` in it; None if the state has not been evaluated.

        Raises:
          CheckpointError: this or an earlier save failed, or `best_metric` is not in metrics.
        """
        metrics = metrics and {name: float(value) for name, value in metrics.items()}
        if metrics and self._best_metric and self._best_metric not in metrics:
            raise CheckpointError(f"best_metric = {self._best_metric!r} is not measured; there are "
                                  f"{', '.join(sorted(metrics))}")
        self.wait()
        if step in self._manager.all_steps():
            return False
        self._writing = step
        try:
            return self._manager.save(step, metrics=metrics or None, force=True, args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(state), position=ocp.args.JsonSave(position)))
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unwritten(error) from error

    def wait(self) -> None:
        """Returns when the last save is complete on disk; raises CheckpointError if it failed."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unwritten(error) from error

    def close(self) -> None:
        """Waits as `wait` does, and stops the background threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending, the one in progress included."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the highest `best_metric`, the later one of equals; None if none was evaluated."""
        return self._manager.best_step()

    def restore(self, abstract_state: PyTree, step: int | None = None) -> tuple[PyTree, dict, int] | None:
        """(state, position, step) of a checkpoint, the latest by default; None if there is none.

        Args:
          abstract_state: tree of jax.ShapeDtypeStruct (or arrays) with the structure, shapes, dtypes and shardings
            wanted; the number of devices need not be that of the save. Without a sharding: the first device.

        Raises:
          CheckpointError: no such step, a damaged checkpoint, or one with other leaves, shapes or dtypes.
        """
        return self._restore(abstract_state, step, partial=False)

    def restore_fields(self, abstract_fields: dict[str, PyTree],
                       step: int | None = None) -> tuple[dict[str, PyTree], dict, int] | None:
        """As `restore`, but reads only the state's top-level fields named in the dict, e.g. {"params": ...}."""
        return self._restore(abstract_fields, step, partial=True)

    def _restore(self, abstract: PyTree, step: int | None, partial: bool):
        self.wait()
        steps = self.steps()
        if step is None and not steps:
            return None
        step = steps[-1] if step is None else step
        if step not in steps:
            raise CheckpointError(f"{self.folder} has no checkpoint of step {step}; there are: {steps or 'none'}")
        abstract = jax.tree.map(_struct, abstract)
        wanted = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(abstract, partial_restore=partial,
                                         restore_args=ocp.checkpoint_utils.construct_restore_args(abstract)),
            position=ocp.args.JsonRestore())
        try:
            _verify(self.folder / str(step) / "state")
            self._compare(self._manager.item_metadata(step).state.tree, abstract, step, partial)
            restored = self._manager.restore(step, args=wanted)
        except CheckpointError:
            raise
        # The last three are what Orbax raises where its own JSON files are cut short or altered.
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(step, steps, error) from error
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

    def _goodness(self, metrics: dict[str, float]) -> float:
        value = metrics.get(self._best_metric, -math.inf)
        return -math.inf if math.isnan(value) else value

    def _unwritten(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"the checkpoint {self.folder / str(self._writing)} was not written: "
                               f"{_reason(error)}. Earlier checkpoints are as they were; make room or make the "
                               "folder writable, then start the run again")

    def _damaged(self, step: int, steps: list[int], error: Exception) -> CheckpointError:
        earlier = max((s for s in steps if s < step), default=None)
        then = "start from the beginning" if earlier is None else f"continue from step {earlier}"
        return CheckpointError(f"the checkpoint {self.folder / str(step)} is damaged: {_reason(error)}. "
                               f"Delete that folder to {then}")


def _struct(leaf) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _leaves(tree: PyTree) -> dict[str, str]:
    """'params/dense/kernel' -> 'float32[512, 512]'; a typed key appears as the data in which it is stored."""
    def name(path) -> str:
        return "/".join(str(next(getattr(k, a) for a in ("name", "key", "idx") if hasattr(k, a))) for k in path)

    def describe(leaf) -> str:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return f"{leaf.dtype}{list(leaf.shape)}"
    return {name(path): describe(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _verify(state_folder: Path) -> None:
    """Reads every array's bytes once against their checksums: Orbax, failing midway, leaves coroutines behind."""
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{state_folder}/"}).result()
    keys = store.list().result()
    if not keys:  # also without its manifest
        raise FileNotFoundError(f"no arrays in {state_folder}")
    for key in keys:
        store.read(key).result()


def _reason(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300].rstrip(". ")


def _quieten_orbax() -> None:
    """Drops what Orbax logs below ERROR: failures arrive as exceptions. Others' absl records are left alone."""
    log = logging.getLogger("absl")
    if _below_error_from_orbax not in log.filters:
        log.addFilter(_below_error_from_orbax)


def _below_error_from_orbax(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or f"{os.sep}orbax{os.sep}" not in record.pathname
