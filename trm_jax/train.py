"""Training: one compiled step over a device mesh, and the loop around it. Knows no particular system."""

from __future__ import annotations

import collections
import contextlib
import math
import os
import time
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trm_jax import checkpoints, config, distributed, evaluate, metrics, optimizers, puzzle_table
from trm_jax.data import pipeline
from trm_jax.distributed import AXIS
from trm_jax.state import Data, System, TrainState, total_steps
from trm_jax.supervision import Batch, DeepSums, SlotDraw, Sums


def state_specs(system: System, mesh: Mesh) -> TrainState:
    """How the state is split: everything on every device, but the slots' carry, which is split like the batch, and a
    large puzzle table (see puzzle_table.py)."""
    specs = jax.tree.map(lambda axis: P(*[None] * axis, AXIS), system.contract.batch_axes())
    return TrainState(P(), P(), P(), puzzle_table.spec(system.model, mesh), P(), P(), P(), specs)


def make_step(system: System, mesh: Mesh, L: int):
    """The jitted step (state, batch) -> (state, sums) for L inner cycles; its state is donated.

    Every device works on its part of the batch; gradients, the gradients of the puzzle table's rows and the sums
    meet in one all-reduce of one vector. (Left to the partitioner, each parameter's gradient would be reduced on
    its own, and those of a scan inside of it.) Those of a split table's rows do not: each device gets those of its
    columns by an all-to-all.
    """
    e, contract, optimizer = system.experiment, system.contract, system.optimizer
    split = puzzle_table.is_split(system.model, mesh)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums | DeepSums]:
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

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p + u, state.params, updates)
        ema = state.ema
        if e.ema:
            ema = jax.tree.map(lambda m, p: e.ema_rate * m + (1 - e.ema_rate) * p, state.ema, params)
        table = state.table
        if table is not None:
            lr = e.puzzle_emb_lr * system.curriculum.learning_rate_factor(t)
            table = optimizers.sign_sgd(table, distinct, row_sums, lr, e.puzzle_emb_weight_decay)
        return TrainState(t, params, state.fixed, table, opt_state, ema, state.key, carry), sums

    specs = state_specs(system, mesh)
    batch_specs = Batch(P(AXIS), P(AXIS), P(AXIS))
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(specs, batch_specs), out_specs=(specs, P()), check_vma=False)
    return jax.jit(mapped, donate_argnums=0)


def place(system: System, mesh: Mesh) -> TrainState:
    """A fresh state, made where it belongs."""
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), state_specs(system, mesh),
                             is_leaf=lambda x: isinstance(x, P))
    # A sharding stands for the whole subtree under it.
    abstract = jax.eval_shape(system.init_state)
    full = TrainState(*(jax.tree.map(lambda _, s=s: s, a) if isinstance(s, NamedSharding) else s
                        for a, s in zip(abstract, shardings)))
    return jax.jit(system.init_state, out_shardings=full)()


class Compiler:
    """Steps by L, compiled when they are first needed; says so, because the user waits for it."""

    def __init__(self, system: System, mesh: Mesh, note):
        self._system, self._mesh, self._note = system, mesh, note
        self._steps: dict[int, Any] = {}
        self.seconds = 0.0  # spent on it so far

    def __call__(self, L: int, state: TrainState, batch: Batch):
        if L not in self._steps:
            begun = time.perf_counter()
            self._steps[L] = make_step(self._system, self._mesh, L).lower(state, batch).compile()
            took = time.perf_counter() - begun
            self.seconds += took
            self._note(f"compiled the step for L = {L} in {took:.1f} s")
        return self._steps[L]


def stream(experiment: config.Experiment, data: Data):
    """The training batches of this process, from their beginning; to be closed."""
    return pipeline.train_batches(
        data.train, data.domain, global_batch_size=experiment.global_batch_size, seed=experiment.seed,
        augment=experiment.data.augment, labels=experiment.data.labels, process_index=jax.process_index(),
        process_count=jax.process_count())


def train(experiment: config.Experiment, workdir: str | os.PathLike, seconds: float = math.inf) -> dict[str, Any]:
    """Trains to the end of the schedule and evaluates; continues by itself where `workdir` holds a checkpoint.

    A run that has trained for so many `seconds` (without compiling, evaluating and saving; over all its
    continuations) ends where it stands. That is for a single process: others would end at other steps.

    Returns the last evaluation (see evaluate.py). Raises ConfigError, DatasetError or CheckpointError, all of them
    ValueErrors with a message for the user.
    """
    mesh = distributed.data_mesh()
    distributed.check_batch(experiment.global_batch_size, mesh)
    data = Data.load(experiment)
    system = System(experiment, data.shape, total_steps(experiment, data.train.metadata))
    every, metric = experiment.checkpoint, evaluate.best_metric(experiment)
    with contextlib.ExitStack() as stack:
        batches = stream(experiment, data)
        stack.callback(batches.close)
        checkpoints.claim(workdir, config.to_json(experiment))  # not before all that can be refused has been
        checkpointer = stack.enter_context(checkpoints.Checkpointer(
            workdir, keep_last=every.keep_last, keep_best=every.keep_best, best_metric=metric))
        state, step, position = place(system, mesh), 0, {}
        if (restored := checkpointer.restore(state)) is not None:
            state, position, step = restored
            batches.set_state(position)
        writer = stack.enter_context(metrics.MetricWriter(workdir, step))
        progress = stack.enter_context(metrics.Progress(system.total_steps, step))
        progress.note(headline(system, mesh, workdir, step))
        return _loop(system, data, mesh, workdir, state, step, batches, checkpointer, writer, progress,
                     _Clock(position, seconds))


def headline(system: System, mesh: Mesh, workdir, step: int) -> str:
    e = system.experiment
    begun = f"continues from step {step:,}" if step else "starts"
    return (f"{os.fspath(workdir)}: {begun}; {system.total_steps:,} steps of {e.global_batch_size}, "
            f"{system.model.parameter_count():,} parameters, {distributed.device_description()}")


class _Clock:
    """What a run has spent, over all its continuations: checkpoints keep it beside the position of the stream."""

    def __init__(self, position: dict[str, Any], limit: float):
        self.train, self.compile = (position.get(f"{what}_seconds", 0.0) for what in ("train", "compile"))
        self._limit = limit

    def is_over(self, more: float = 0.0) -> bool:
        """Whether the run has had its time, with so many more seconds of training."""
        return self.train + more >= self._limit

    def read(self) -> dict[str, float]:
        return {"train_seconds": self.train, "compile_seconds": self.compile}


def _loop(system, data, mesh, workdir, state, step, batches, checkpointer, writer, progress, clock) -> dict[str, Any]:
    e, curriculum = system.experiment, system.curriculum
    compiled = Compiler(system, mesh, progress.note)
    evaluator, metric = evaluate.Evaluator(system, data, mesh), evaluate.best_metric(e)
    pending: collections.deque[Sums | DeepSums] = collections.deque()  # of the steps since the last report
    reported, flops, result = clock.train, 0.0, None  # clock.train at the last report

    last = step == system.total_steps or clock.is_over()
    while not last:
        begun = time.perf_counter()
        batch = Batch(**distributed.put_batch(mesh, next(batches)))
        clock.train += time.perf_counter() - begun
        before = compiled.seconds
        run = compiled(curriculum.L(step + 1), state, batch)
        clock.compile += compiled.seconds - before
        begun = time.perf_counter()
        state, sums = run(state, batch)
        step += 1
        pending.append(sums)
        H, L = curriculum.H(step), curriculum.L(step)
        flops += e.global_batch_size * system.train_flops_per_example(H, L)
        if len(pending) > 2:  # let the host run ahead of the devices by no more than this
            jax.block_until_ready(pending[-3])
        last = step == system.total_steps or clock.is_over(time.perf_counter() - begun)
        if step % e.log.interval_steps == 0 or last:
            values = _total(jax.device_get(list(pending))).means()
            values |= {"lr": e.lr * float(curriculum.learning_rate_factor(np.int32(step))), "H": H, "L": L}
            clock.train += time.perf_counter() - begun
            spent, examples = clock.train - reported, len(pending) * e.global_batch_size
            progress.update(step, values, seconds=spent, examples=examples, flops=flops)
            writer.write(step, values | {"examples_per_second": examples / spent, "flops_per_second": flops / spent})
            pending.clear()
            reported, flops = clock.train, 0.0
        else:
            clock.train += time.perf_counter() - begun

        evaluates = last or (e.eval.interval_steps and step % e.eval.interval_steps == 0)
        if evaluates:
            result = evaluator(system.weights(state), step, curriculum.L(step), progress.note) | clock.read()
            evaluate.save(result, workdir, votes=evaluator.votes)
        if evaluates or step % e.checkpoint.interval_steps == 0:
            checkpointer.save(step, state, batches.get_state() | clock.read(),
                              {metric: evaluate.best(result, metric)} if evaluates else None)
        if evaluates:  # shown when all is safe
            writer.write(step, evaluate.scalars(result))
            progress.note(evaluate.table(result))
    if result is None:  # the run was complete already
        result = evaluator(system.weights(state), step, curriculum.L(step), progress.note) | clock.read()
        evaluate.save(result, workdir, votes=evaluator.votes)
        progress.note(evaluate.table(result))
    checkpointer.wait()
    return result


def _total(steps: list[Sums | DeepSums]) -> Sums | DeepSums:
    return jax.tree.map(lambda *xs: float(np.sum(xs)), *steps)
