"""The weights of a run: of its best checkpoint, or of a given step."""

from __future__ import annotations

import os

import jax
from jax.sharding import Mesh

from trm_jax import config, puzzles
from trm_jax.models.network import Weights
from trm_jax.runtime import checkpoints
from trm_jax.training import puzzle_table
from trm_jax.training.system import System

BEST = "exact_accuracy"  # at the last of H_test and L_test: what "the best checkpoint" means


def best_metric(experiment: config.Experiment) -> str:
    """The figure by which checkpoints are ranked: BEST, but for labels that one answer in many can match, and ARC's
    score."""
    return puzzles.domain_class(experiment.data.puzzle).best_metric if experiment.data.labels == "fixed" else "verified"


def load_weights(system: System, workdir: str | os.PathLike, mesh: Mesh,
                 step: int | None = None) -> tuple[Weights, int]:
    """The evaluated parameters of a run's best checkpoint (else its last one), or of `step`, where they belong; and its
    step."""
    name = "ema" if system.experiment.ema else "params"
    places = puzzle_table.weights_shardings(system.model, mesh)
    wanted = {field: jax.tree.map(lambda a, place=place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), tree)
              for field, tree, place in zip((name, "fixed", "table"),
                                            jax.eval_shape(system.model.init, jax.random.key(0)), places)}
    with checkpoints.Checkpointer(workdir, best_metric=best_metric(system.experiment), read_only=True) as checkpointer:
        restored = checkpointer.restore_fields(wanted, checkpointer.best_step() if step is None else step)
    if restored is None:
        raise checkpoints.CheckpointError(f"{os.fspath(workdir)} holds no checkpoint yet; train it first")
    fields, _, step = restored
    return Weights(fields[name], fields["fixed"], fields["table"]), step
