"""Test-time unrolls: the answer of every puzzle of a batch at several depths."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from trm_jax import config, recursion
from trm_jax.models.network import Model, Weights
from trm_jax.runtime.distributed import AXIS
from trm_jax.training import puzzle_table

Array = jax.Array


class Answers(NamedTuple):
    """What a batch answers at each of K depths."""

    tokens: Array  # uint8 [K, B, S]
    unchanged: Array  # int32 [K, B], test steps since the answer last changed
    done: Array  # int32 [K, B], test steps done: all, unless slots stop when they have halted
    residual: Array  # float32 [K, B], of the last test step done
    halting_logit: Array | None  # float32 [K, B], q_halt; None without a halting head


@functools.partial(jax.jit, static_argnames=("model", "mesh", "L", "stop_halted"))
def answers_at(model: Model, mesh: Mesh, weights: Weights, inputs: Array, identifiers: Array, depths: Array,
               L: int, stop_halted: bool = False) -> Answers:
    """Answers after each of `depths` [K] test steps (ascending, see Model.test_step), all from one unroll.

    The batch is split over the mesh, and no device hears of another, but for their columns of a split puzzle table.
    """
    split = puzzle_table.is_split(model, mesh)

    def local(weights, inputs, identifiers, depths):
        halts = functools.partial(model.wants_to_halt, weights.params) if stop_halted else None
        core = model.core(weights.params)
        decode = functools.partial(model.answer, weights.params)
        x = model.embed(weights.params, inputs, puzzle_table.rows_of(model, weights.table, identifiers, split))

        def advance(watched, cycles):
            watched = recursion.unroll_watched(core, watched, x, cycles, L, decode, model.test_step, halts)
            q_halt = model.halting(weights.params, watched.latents.y)[:, 0] if model.arch.halting_head else None
            return watched, Answers(watched.answer, watched.unchanged, watched.done, watched.residual, q_halt)

        start = recursion.watch(model.initial_latents(weights.fixed, inputs.shape[0]), decode)
        steps = jnp.diff(depths, prepend=jnp.zeros(1, depths.dtype))
        return lax.scan(advance, start, steps)[1]

    return jax.shard_map(local, mesh=mesh, in_specs=(puzzle_table.weights_specs(model, mesh), P(AXIS), P(AXIS), P()),
                         out_specs=P(None, AXIS), check_vma=False)(weights, inputs, identifiers, depths)


def unit(arch: config.Arch) -> str:
    """What H_test counts, and settled_cycles with it."""
    if arch.supervision == "terminal":
        return "outer cycles"
    return f"supervision steps of {arch.H_cycles} outer cycle{'s' * (arch.H_cycles > 1)} each"
