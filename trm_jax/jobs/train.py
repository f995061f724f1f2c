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
from jax.sharding import Mesh

from trm_jax import config
from trm_jax.data import pipeline
from trm_jax.data.loading import Dataset
from trm_jax.evaluation import tables
from trm_jax.evaluation.evaluator import Evaluator
from trm_jax.evaluation.scores import best, scalars
from trm_jax.jobs import evaluate
from trm_jax.runtime import checkpoints, distributed, metrics
from trm_jax.runtime.progress import Progress
from trm_jax.training import run_folder
from trm_jax.training.run_weights import best_metric
from trm_jax.training.step import Compiler, place
from trm_jax.training.supervision import Batch, DeepSums, Sums
from trm_jax.training.system import System, total_steps


def stream(experiment: config.Experiment, data: Dataset):
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
    data = Dataset.load(experiment)
    system = System(experiment, data.shape, total_steps(experiment, data.train.metadata))
    every, metric = experiment.checkpoint, best_metric(experiment)
    with contextlib.ExitStack() as stack:
        batches = stream(experiment, data)
        stack.callback(batches.close)
        run_folder.claim(workdir, config.to_json(experiment))  # not before all that can be refused has been
        checkpointer = stack.enter_context(checkpoints.Checkpointer(
            workdir, keep_last=every.keep_last, keep_best=every.keep_best, best_metric=metric))
        state, step, position = place(system, mesh), 0, {}
        if (restored := checkpointer.restore(state)) is not None:
            state, position, step = restored
            batches.set_state(position)
        writer = stack.enter_context(metrics.MetricWriter(workdir, step))
        progress = stack.enter_context(Progress(system.total_steps, step))
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
    evaluator, metric = Evaluator(system, data, mesh), best_metric(e)
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
                              {metric: best(result, metric)} if evaluates else None)
        if evaluates:  # shown when all is safe
            writer.write(step, scalars(result))
            progress.note(tables.table(result))
    if result is None:  # the run was complete already
        result = evaluator(system.weights(state), step, curriculum.L(step), progress.note) | clock.read()
        evaluate.save(result, workdir, votes=evaluator.votes)
        progress.note(tables.table(result))
    checkpointer.wait()
    return result


def _total(steps: list[Sums | DeepSums]) -> Sums | DeepSums:
    return jax.tree.map(lambda *xs: float(np.sum(xs)), *steps)
