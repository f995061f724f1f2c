"""Test-time unrolls: the answer of every puzzle of a batch at several depths."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from trm_jax import config
from trm_jax.models.network import Bound
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


@functools.partial(jax.jit, static_argnames=("mesh", "stop_halted"))
def answers_at(bound: Bound, mesh: Mesh, inputs: Array, identifiers: Array, depths: Array,
               stop_halted: bool = False) -> Answers:
    """Answers after each of `depths` [K] test steps (ascending, see Model.test_step), all from one unroll.

    The batch is split over the mesh, and no device hears of another, but for their columns of a split puzzle table.
    """
    model = bound.model
    split = puzzle_table.is_split(model, mesh)

    def local(bound: Bound, inputs, identifiers, depths):
        x = bound.embed_rows(inputs, puzzle_table.rows_of(model, bound.weights.table, identifiers, split))

        def advance(watched, cycles):
            watched = bound.unroll_watched(watched, x, cycles, stop_halted)
            q_halt = bound.q_halt(watched.latents.y) if model.arch.halting_head else None
            return watched, Answers(watched.answer, watched.unchanged, watched.done, watched.residual, q_halt)

        start = bound.watch(bound.initial_latents(inputs))
        steps = jnp.diff(depths, prepend=jnp.zeros(1, depths.dtype))
        return lax.scan(advance, start, steps)[1]

    specs = model.bind(puzzle_table.weights_specs(model, mesh), bound.L)
    return jax.shard_map(local, mesh=mesh, in_specs=(specs, P(AXIS), P(AXIS), P()), out_specs=P(None, AXIS),
                         check_vma=False)(bound, inputs, identifiers, depths)


def unit(arch: config.Arch) -> str:
    """What H_test counts, and settled_cycles with it."""
    if arch.supervision == "terminal" or arch.halt_by == "residual":
        return "outer cycles"
    H = arch.test_H_cycles or arch.H_cycles
    return f"supervision steps of {H} outer cycle{'s' * (H > 1)} each"
