"""One compiled training step over a device mesh. Knows no particular system."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trm_jax.runtime.distributed import AXIS
from trm_jax.training import optimizers, puzzle_table
from trm_jax.training.state import TrainState
from trm_jax.training.supervision import Batch, DeepSums, SlotDraw, Sums
from trm_jax.training.system import System


def state_specs(system: System, mesh: Mesh) -> TrainState:
    """How the state is split: everything on every device, but the slots' carry, which is split like the batch, and a
    large puzzle table (see puzzle_table.py)."""
    specs = jax.tree.map(lambda axis: P(*[None] * axis, AXIS), system.contract.batch_axes())
    return TrainState(P(), P(), P(), puzzle_table.spec(system.model, mesh), P(), P(), P(), specs)


def make_step(system: System, mesh: Mesh, L: int):
    """The jitted step (state, batch) -> (state, sums, gradient norm) for L inner cycles; its state is donated.

    The norm is that of the whole batch's gradient before it is clipped, float32 [].

    Every device works on its part of the batch; gradients, the gradients of the puzzle table's rows and the sums
    meet in one all-reduce of one vector. (Left to the partitioner, each parameter's gradient would be reduced on
    its own, and those of a scan inside of it.) Those of a split table's rows do not: each device gets those of its
    columns by an all-to-all.
    """
    e, contract, optimizer = system.experiment, system.contract, system.optimizer
    split = puzzle_table.is_split(system.model, mesh)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums | DeepSums, jax.Array]:
        t = state.step + 1
        k_begin, k_loss = jax.random.split(jax.random.fold_in(state.key, t))
        b = batch.inputs.shape[0]
        first = lax.axis_index(AXIS) * b
        start = contract.begin(state.fixed, state.carry, batch, k_begin, SlotDraw(e.global_batch_size, first))
        ids = start.batch.puzzle_identifiers
        rows = puzzle_table.rows_of(system.model, state.table, ids, split)

        grad = jax.value_and_grad(contract.loss, argnums=(0, 1), has_aux=True)
        (_, (carry, sums)), (grads, row_grads) = grad(state.params, rows, start, system.curriculum.H(t), L, k_loss)

        distinct, slots = optimizers.touched_rows(lax.all_gather(ids, AXIS, tiled=True),
                                                  system.shape.num_puzzle_identifiers)
        if split:
            row_sums, to_sum = jax.ops.segment_sum(puzzle_table.columns_of(row_grads), slots, distinct.shape[0]), ()
        else:
            to_sum = jax.ops.segment_sum(row_grads, lax.dynamic_slice(slots, (first,), (b,)), distinct.shape[0])
        flat, unravel = ravel_pytree((grads, to_sum, sums))
        grads, summed, sums = unravel(lax.psum(flat, AXIS))
        row_sums = row_sums if split else summed
        grads = jax.tree.map(lambda g: g / e.global_batch_size, grads)
        norm = optax.tree.norm(grads)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p + u, state.params, updates)
        ema = state.ema
        if e.ema:
            ema = jax.tree.map(lambda m, p: e.ema_rate * m + (1 - e.ema_rate) * p, state.ema, params)
        table = state.table
        if table is not None:
            lr = e.puzzle_emb_lr * system.curriculum.learning_rate_factor(t)
            table = optimizers.sign_sgd(table, distinct, row_sums, lr, e.puzzle_emb_weight_decay)
        return TrainState(t, params, state.fixed, table, opt_state, ema, state.key, carry), sums, norm

    specs = state_specs(system, mesh)
    batch_specs = Batch(P(AXIS), P(AXIS), P(AXIS))
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(specs, batch_specs), out_specs=(specs, P(), P()), check_vma=False)
    return jax.jit(mapped, donate_argnums=0)


def place(system: System, mesh: Mesh) -> TrainState:
    """A fresh state, made where it belongs."""
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), state_specs(system, mesh),
                             is_leaf=lambda x: isinstance(x, P))
    return jax.jit(system.init_state, out_shardings=shardings)()



class Compiler:
    """Steps by L, compiled when they are first needed, which the user is told because he waits for it.

    With `ahead`, the step for the next L of the curriculum is compiled by a thread while the one before it trains, so
    that growing does not stop the devices. A context manager: leaving it waits for that thread.
    """

    def __init__(self, system: System, mesh: Mesh, note: Callable[[str], None], ahead: bool = False):
        self._system, self._mesh, self._note = system, mesh, note
        self._steps: dict[int, Any] = {}
        self._ahead = concurrent.futures.ThreadPoolExecutor(1) if ahead else None
        self._coming: dict[int, concurrent.futures.Future] = {}
        self.seconds = 0.0  # that training has waited for it so far

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *_) -> None:
        if self._ahead is not None:
            self._ahead.shutdown(cancel_futures=True)

    def __call__(self, L: int, state: TrainState, batch: Batch):
        if L not in self._steps:
            begun = time.perf_counter()
            coming = self._coming.pop(L, None)
            self._steps[L], took = self._compile(L, (state, batch)) if coming is None else coming.result()
            waited = time.perf_counter() - begun
            self.seconds += waited
            self._note(f"compiled the step for L = {L} in {took:.1f} s"
                       + ("" if coming is None else f", of which training waited {waited:.1f} s"))
            self._begin_next(L, state, batch)
        return self._steps[L]

    def _compile(self, L: int, arguments) -> tuple[Any, float]:
        begun = time.perf_counter()
        return make_step(self._system, self._mesh, L).lower(*arguments).compile(), time.perf_counter() - begun

    def _begin_next(self, L: int, state: TrainState, batch: Batch) -> None:
        deeper = [later for *_, later in self._system.curriculum.stages() if later > L and later not in self._steps]
        if self._ahead is not None and deeper and deeper[0] not in self._coming:
            shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), (state, batch))
            self._coming[deeper[0]] = self._ahead.submit(self._compile, deeper[0], shapes)
