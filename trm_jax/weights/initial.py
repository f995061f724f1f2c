"""Training that starts from weights: --init_from=FILE|NAME|RUN, for any config whose tensors fit."""

from __future__ import annotations

import hashlib
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax.models.network import Weights
from trm_jax.training.state import TrainState
from trm_jax.training.system import System
from trm_jax.weights import weights_file
from trm_jax.weights.weights_file import WeightsError

RECORD = "init_from.json"  # in the run's folder: what `Start.record` says


class Start(NamedTuple):
    """Leaves to begin with, by name: params/..., fixed/... and the rows of the table."""

    leaves: dict[str, np.ndarray]
    # (rows here, rows there, the table there), None: no table. Rows that are not there begin at the mean of the tasks'.
    rows: tuple[np.ndarray, np.ndarray, np.ndarray] | None
    record: dict[str, Any]

    def __str__(self) -> str:
        r = self.record
        parts = [f"starts from {r['source']}: {len(self.leaves)} tensors"]
        parts += [f"new here: {', '.join(r['new'])}"] if r["new"] else []
        parts += [f"left over there: {', '.join(r['left_over'])}"] if r["left_over"] else []
        if r["of_rows"]:
            parts += [f"{r['rows']:,} of {r['of_rows']:,} rows of the puzzle table by name, the others at their mean"]
        return "; ".join(parts)


def read(source: str | os.PathLike[str], system: System, identifiers: list[str] | None) -> Start:
    """What weights give a new run. A tensor that only one side has is listed; one of another shape is refused.

    Args:
      identifiers: names of the rows of this run's table (ARC); None: row 0 is the only one.

    Raises WeightsError, listing every tensor whose shape differs, or what weights_file.read raises.
    """
    export = weights_file.read(source)
    there = weights_file.by_name(export.weights)
    here = weights_file.by_name(Weights(*jax.eval_shape(system.model.init, jax.random.key(0))))
    faults = [f"{name} is {list(there[name].shape)} there, {list(leaf.shape)} here" for name, leaf in here.items()
              if name in there and name != "table" and leaf.shape != there[name].shape]
    if "table" in here and "table" in there and here["table"].shape[1] != there["table"].shape[1]:
        faults.append(f"rows of the puzzle table are {there['table'].shape[1]} wide there, "
                      f"{here['table'].shape[1]} here")
    if faults:
        raise WeightsError(f"--init_from={source} does not fit this config: " + "; ".join(faults))
    leaves = {name: np.asarray(there[name]) for name in here if name in there and name != "table"}
    if not any(name.startswith("params/") for name in leaves):
        raise WeightsError(f"--init_from={source} has no tensor of this network")
    rows = None
    if "table" in here and "table" in there:
        old = {name: i for i, name in enumerate(export.identifiers or ["<blank>"])}
        pairs = [(i, old[name]) for i, name in enumerate(identifiers or ["<blank>"]) if name in old]
        ours, theirs = np.array(pairs, int).reshape(-1, 2).T
        rows = ours, theirs, np.asarray(there["table"])
    digest = hashlib.sha256()
    for name, value in sorted(there.items()):
        digest.update(name.encode() + np.ascontiguousarray(value).tobytes())
    return Start(leaves, rows, {
        "source": os.fspath(source), "sha256": digest.hexdigest(), "step": export.metadata["step"],
        "new": sorted(set(here) - set(there)), "left_over": sorted(set(there) - set(here)),
        "rows": len(rows[0]) if rows else 0, "of_rows": here["table"].shape[0] if "table" in here else 0})


def begun(state: TrainState, start: Start) -> TrainState:
    """A fresh state with these weights: parameters, their EMA, starts of the latents and rows of the table."""
    def replaced(kind: str, tree: Any) -> Any:
        def leaf(path, old):
            name = "/".join([kind, *(str(key.key) for key in path)])
            return jax.device_put(start.leaves[name], old.sharding) if name in start.leaves else old
        return jax.tree_util.tree_map_with_path(leaf, tree)
    table = state.table
    if start.rows is not None:
        ours, theirs, old = start.rows
        mean = old[1:].mean(axis=0) if len(old) > 1 else old[0]  # the first row is of no task
        table = jax.jit(lambda t, m, i, v: jnp.broadcast_to(m, t.shape).at[i].set(v), out_shardings=table.sharding)(
            table, mean, ours, old[theirs])
    params = replaced("params", state.params)
    ema = replaced("params", state.ema) if state.ema != () else ()
    return state._replace(params=params, ema=ema, fixed=replaced("fixed", state.fixed), table=table)
