"""Training: the loop around one compiled step. Knows no particular system."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from trm_jax import config, puzzles
from trm_jax.data import dataset, making, pipeline
from trm_jax.data.loading import Dataset
from trm_jax.evaluation import tables
from trm_jax.evaluation.evaluator import Evaluator
from trm_jax.evaluation.scores import best, scalars
from trm_jax.jobs import evaluate
from trm_jax.runtime import checkpoints, distributed, files, metrics, peaks, trackers
from trm_jax.runtime.errors import StopRequests, UserError
from trm_jax.runtime.progress import Progress
from trm_jax.training import run_folder
from trm_jax.training.run_folder import Run
from trm_jax.training.step import Compiler, place
from trm_jax.training.supervision import Batch, DeepSums, Sums
from trm_jax.training.system import System, total_steps
from trm_jax.weights import initial

PEAK_SECONDS = 0.1  # of measuring what a device could do
AHEAD = 2  # steps that the host may run ahead of the devices
Callback = Callable[[int, Mapping[str, Any]], Any]  # (step, {name: number}): `write` of a metrics.Writer is one


class DivergedError(UserError):
    """A loss or a gradient that is not finite."""


def stream(experiment: config.Experiment, data: Dataset):
    """The training batches of this process, from their beginning; to be closed."""
    return pipeline.train_batches(
        data.train, data.domain, global_batch_size=experiment.global_batch_size, seed=experiment.seed,
        augment=experiment.data.augment, labels=experiment.data.labels, process_index=jax.process_index(),
        process_count=jax.process_count())


@distributed.together()
def train(experiment: config.Experiment, workdir: str | os.PathLike[str], seconds: float = math.inf,
          callbacks: Sequence[Callback] = (), make_data: bool = False) -> dict[str, Any]:
    """Trains to the end of the schedule and evaluates; continues by itself where `workdir` holds a checkpoint.

    >>> import trm_jax
    >>> experiment = trm_jax.load_experiment("rsm_sudoku:quick", ["total_steps=4", "data.path=data/4x4",
    ...     "data.make.box=2,2", "data.make.clues=6", "data.make.train=64", "data.make.test=8", "eval.H_test=2",
    ...     "eval.restarts=0", "log.interval_steps=2"])
    >>> def watch(step, values):
    ...     if "loss" in values:
    ...         print(step, sorted(values)[:2])
    ...         return step == 2  # enough
    >>> result = trm_jax.train(experiment, "runs/short", callbacks=[watch], make_data=True)
    2 ['H', 'L']
    >>> result["step"], result["figures"][-1]["n"]
    (2, 8)
    >>> trm_jax.evaluate(experiment, "runs/short", note=lambda line: None)["figures"][-1]["n"]
    8

    Args:
      experiment: what to train: `trm_jax.load_experiment(NAME)`.
      workdir: the run's folder. What it is told of goes to the writers that `experiment.log.writers` names.
      seconds: a run that has trained for so many (without compiling, evaluating and saving; over all its
        continuations) ends where it stands. That is for a single process: others would end at other steps.
      callbacks: are called with every record: (step, values), once with the means since the last record every
        `log.interval_steps` and once with the figures of every evaluation ("eval/..."). One that returns True ends
        the run where it stands: it is saved, and evaluated; the same call goes on from there. In a run of several
        processes the first one's are called.
      make_data: a dataset that is missing is made first, as `experiment.data.make` says.

    Returns the last evaluation (see evaluate.py): {"step", "figures": [{"H_test", "L_test", "n", "exact_accuracy",
    ...}], ...}. Raises ConfigError, DatasetError, CheckpointError, LockedError, TrackerError or DivergedError, all of
    them UserErrors with a message for the user; KeyboardInterrupt (Ctrl-C) and Preempted (SIGTERM) once the run is
    saved.
    """
    trackers.require(experiment.log.writers)
    if make_data:
        distributed.agreed(lambda: making.ensure(experiment.data) if distributed.is_primary() else None)
    mesh = distributed.data_mesh()
    distributed.check_batch(experiment.global_batch_size, mesh)
    data = Dataset.load(experiment)
    steps = total_steps(experiment, data.train.metadata)
    start = None
    if experiment.init_from and not run_folder.has_checkpoint(workdir):  # a run that has one goes on from there
        start = initial.read(experiment.init_from, System(experiment, data.shape, steps), _identifiers(experiment))
    with contextlib.ExitStack() as stack:
        batches = stream(experiment, data)
        stack.callback(batches.close)
        distributed.require_shared(workdir)

        def claim() -> Run:
            run_folder.claim(workdir, config.to_json(experiment))  # not before all that can be refused has been
            stack.enter_context(run_folder.training(workdir))
            run_folder.claim(workdir, config.to_json(experiment))  # again: nobody else writes there now
            return run_folder.claim_data(workdir, experiment, data)
        run = distributed.agreed(claim)
        return stack.enter_context(Trainer(run, data, mesh, batches, seconds, start, callbacks)).run()


def _identifiers(experiment: config.Experiment) -> list[str] | None:
    """Names of the puzzle table's rows, where puzzles have any."""
    identifies = puzzles.domain_class(experiment.data.puzzle).identifies_tasks
    return dataset.load_identifiers(experiment.data.path) if identifies else None


def headline(system: System, workdir, step: int) -> str:
    e = system.experiment
    begun = f"continues from step {step:,}" if step else "starts"
    return (f"{os.fspath(workdir)}: {begun}; {system.total_steps:,} steps of {e.global_batch_size}, "
            f"{system.model.parameter_count():,} parameters, {distributed.device_description()}")


@functools.cache
def _product_peak(kind: str) -> float:
    return peaks.products(kind, PEAK_SECONDS)


def peak(experiment: config.Experiment, mesh: Mesh) -> float:
    """FLOP/s of products, of the config's type, that the mesh could do: measured once in a process."""
    return _product_peak(experiment.arch.product_kind) * mesh.size


class Trainer:
    """A run in training; a context manager. It begins at the newest sound checkpoint of the run.

        while not over:
            step                        the devices are at work, the host runs ahead of them a little
            report                      every log.interval_steps
            save, then evaluate         every checkpoint.interval_steps, eval.interval_steps, and at the end

    A step whose loss or gradient is not finite ends the run at the next report or save: nothing that came of it is
    saved. The devices compute what tells; the host reads it only when it waits for them anyway.
    """

    def __init__(self, run: Run, data: Dataset, mesh: Mesh, batches, seconds: float = math.inf,
                 start: initial.Start | None = None, callbacks: Sequence[Callback] = ()):
        e, system = run.experiment, run.system
        self._callbacks, self._is_enough = callbacks, False
        self.state, self.steps_done = place(system, mesh), 0
        self._run, self._system, self._mesh, self._batches = run, system, mesh, batches
        with contextlib.ExitStack() as stack:
            self._checkpoints = stack.enter_context(checkpoints.Checkpointer(
                run.workdir, keep_last=e.checkpoint.keep_last, keep_best=e.checkpoint.keep_best,
                best_metric=run_folder.best_metric(e)))
            position = self._restore()
            if start is not None and not self.steps_done:
                self.state = initial.begun(self.state, start)
                if distributed.is_primary():
                    files.write_json(os.path.join(run.workdir, initial.RECORD), start.record)
            self._clock = _Clock(position.get("clock", position), seconds)
            self._window = _Window(SUMS[e.arch.supervision], position.get("window"))
            self._writer = stack.enter_context(metrics.MetricWriter(
                run.workdir, self.steps_done, self._checkpoints.is_evaluated(self.steps_done),
                trackers.writers(e.log.writers, config.to_json(e))))
            self._progress = stack.enter_context(Progress(run.total_steps, self.steps_done))
            self._stop = stack.enter_context(StopRequests(
                self._progress.note, take_signals=jax.process_count() == 1))
            # Ahead: only where the seconds of training are not measured, and one process decides alone.
            ahead = math.isinf(seconds) and jax.process_count() == 1
            self._compiled = stack.enter_context(Compiler(system, mesh, self._progress.note, ahead))
            self._evaluator = Evaluator(system, data, mesh)
            self._progress.note(headline(system, run.workdir, self.steps_done))
            self._peak = peak(e, mesh)
            if start is not None and not self.steps_done:
                self._progress.note(str(start))
            self._closing = stack.pop_all()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *error) -> None:
        self._closing.__exit__(*error)

    def run(self) -> dict[str, Any]:
        """Trains to the end. Returns the last evaluation."""
        e, result = self._run.experiment, None
        if self._evaluates() and not self._checkpoints.is_evaluated(self.steps_done) and self.steps_done:
            result = self.evaluate()  # a kill came between the two
        if e.eval.at_start and not self.steps_done and not self._checkpoints.is_evaluated(0):
            self.save()
            self.evaluate()
        while not self._is_over():
            self.step()
            if self.steps_done % e.log.interval_steps == 0 or self._is_over():
                self.report()
            stops = self._stops()
            if stops or self._evaluates() or self.steps_done % e.checkpoint.interval_steps == 0:
                self.save()
            if stops:
                self._checkpoints.wait()
                raise self._stop.exception(f"saved at step {self.steps_done:,}; the same command goes on from there")
            if self._evaluates():
                result = self.evaluate()
        if result is None:  # the run was complete already
            result = self.evaluate()
        self._checkpoints.wait()
        return result

    def step(self) -> None:
        """Hands one batch to the devices."""
        begun = time.perf_counter()
        with jax.profiler.TraceAnnotation("host: input"):
            batch = Batch(**distributed.put_batch(self._mesh, next(self._batches)))
        H, L = (grown(self.steps_done + 1) for grown in (self._system.curriculum.H, self._system.curriculum.L))
        compiling = self._compiled.seconds
        run = self._compiled(L, self.state, batch)
        compiling = self._compiled.seconds - compiling
        self.state, *seen = run(self.state, batch)
        self.steps_done += 1
        self._window.add(seen)
        self._clock.compile += compiling
        self._clock.train += time.perf_counter() - begun - compiling
        self._window.flops += self._run.experiment.global_batch_size * self._system.train_flops_per_example(H, L)

    @functools.partial(jax.profiler.annotate_function, name="host: report")
    def report(self) -> None:
        """Writes down and shows the means over the steps since the last report."""
        e, curriculum, step = self._run.experiment, self._system.curriculum, self.steps_done
        self._require_finite()
        values = self._window.means() | {"lr": e.lr * float(curriculum.learning_rate_factor(np.int32(step))),
                                         "H": curriculum.H(step), "L": curriculum.L(step)}
        spent, examples = self._clock.train - self._window.since, len(self._window) * e.global_batch_size
        speed = self._window.flops / spent
        self._progress.update(step, values, seconds=spent, examples=examples, flops=self._window.flops, peak=self._peak)
        self._tell(values | {"examples_per_second": examples / spent, "flops_per_second": speed,
                             "mfu": speed / self._peak})
        self._window.clear(since=self._clock.train)

    @functools.partial(jax.profiler.annotate_function, name="host: checkpoint")
    def save(self) -> None:
        """Begins to write a checkpoint; it is complete when the next one begins, at the latest."""
        self._require_finite()
        self._writer.flush()
        self._checkpoints.save(self.steps_done, self.state, {
            "stream": self._batches.get_state(), "clock": self._clock.read(), "window": self._window.to_json()})

    def evaluate(self) -> dict[str, Any]:
        """Evaluates the weights as they are, and writes down what it finds."""
        step = self.steps_done
        with self._stop.at_once("not evaluated, but all training is saved; the same command evaluates"):
            result = self._evaluator(self._system.weights(self.state), step, self._run.L(step), self._progress.note)
        result |= self._clock.read()
        evaluate.save(result, self._run.workdir, votes=self._evaluator.votes)
        if not self._checkpoints.is_evaluated(step):
            self._tell(scalars(result))
            self._writer.flush()
            metric = run_folder.best_metric(self._run.experiment)
            self._checkpoints.record(step, {metric: best(result, metric)})
        self._progress.note(tables.table(result))
        return result

    def _tell(self, values: dict[str, Any]) -> None:
        """Hands a record to the writers and the callbacks."""
        self._writer.write(self.steps_done, values)
        if self._callbacks:
            enough = distributed.is_primary() and [callback(self.steps_done, values) for callback in self._callbacks]
            self._is_enough |= any(distributed.everyones(enough)[0])

    def _restore(self) -> dict[str, Any]:
        """Takes up the newest sound checkpoint; what it says of where the run stands, {} if there is none."""
        restored = self._checkpoints.restore(self.state)
        if restored is None:
            return {}
        self.state, position, step = restored
        self._run.require_step(step)
        if (held := int(self.state.step)) != step:
            raise checkpoints.CheckpointError(f"{self._checkpoints.folder / str(step)} holds the state after step "
                                              f"{held}: give the folder its name back")
        self.steps_done = step
        # Older runs keep it all in one level.
        self._batches.set_state(position.get("stream") or {
            name: value for name, value in position.items() if not name.endswith("_seconds")})
        return position

    def _is_over(self) -> bool:
        return self.steps_done >= self._run.total_steps or self._clock.is_over() or self._is_enough

    def _evaluates(self) -> bool:
        every = self._run.experiment.eval.interval_steps
        return self._is_over() or bool(every and self.steps_done % every == 0)

    def _stops(self) -> bool:
        """Whether the system, or the user, has asked the run to end; the same in all processes."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(self.steps_done):
            self._stop.ask()
        return self._stop.asked

    def _require_finite(self) -> None:
        """Raises DivergedError for the first step since the last report that is not finite."""
        e, begun = self._run.experiment, time.perf_counter()
        steps = self._window.fetch()
        self._clock.train += time.perf_counter() - begun
        for step, values in enumerate(steps, self.steps_done - len(steps) + 1):
            if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
                self._writer.write(step, values)
                last = self._checkpoints.latest_step()
                raise DivergedError(
                    f"step {step}: the loss is {values['loss']:.4g} and the norm of the gradient "
                    f"{values['grad_norm']:.4g}, which nothing can be learned from. The run stops; "
                    + (f"its last checkpoint, of step {last}, is finite. " if last else "it has no checkpoint yet. ")
                    + f"Try a smaller lr ({e.lr:g} now), more lr_warmup_steps ({e.lr_warmup_steps} now), a smaller "
                    f"grad_clip_norm ({e.grad_clip_norm:g} now, 0 is none) or arch.forward_dtype = 'float32' "
                    f"({e.arch.forward_dtype!r} now), with another --workdir")


class _Clock:
    """Seconds that a run has spent, over all its continuations: checkpoints keep them."""

    def __init__(self, kept: dict[str, Any], limit: float):
        self.train, self.compile = (_seconds(kept, f"{what}_seconds") for what in ("train", "compile"))
        self._limit = limit

    def is_over(self) -> bool:
        """Whether the run has had its time."""
        return self.train >= self._limit

    def read(self) -> dict[str, float]:
        return {"train_seconds": self.train, "compile_seconds": self.compile}


class _Window:
    """What was seen of the steps since the last report; a checkpoint keeps it, so that a mean is always of all of them.

    Args:
      kept: of `to_json`.
    """

    def __init__(self, sums: type[Sums | DeepSums], kept: dict[str, Any] | None):
        self._sums, self._steps = sums, []  # (sums, norm of the gradient) of each step, on the devices or here
        self.since = self.flops = 0.0  # seconds of training before it; work of the model in it
        if kept:
            self.since, self.flops = _seconds(kept, "since"), _seconds(kept, "flops")
            self._steps = [(sums._make(map(np.float32, values)), np.float32(norm)) for *values, norm in kept["steps"]]

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, seen) -> None:
        self._steps.append(tuple(seen))
        if len(self._steps) > AHEAD:
            jax.block_until_ready(self._steps[-1 - AHEAD])

    def fetch(self) -> list[dict[str, float]]:
        """Means of each step."""
        self._steps = jax.device_get(self._steps)
        return [sums.means() | {"grad_norm": norm} for sums, norm in self._steps]

    def means(self) -> dict[str, float]:
        """Over all steps."""
        sums, norm = jax.tree.map(lambda *xs: float(np.sum(xs)), *jax.device_get(self._steps))
        return sums.means() | {"grad_norm": norm / len(self._steps)}

    def clear(self, since: float) -> None:
        self._steps, self.since, self.flops = [], since, 0.0

    def to_json(self) -> dict[str, Any]:
        return {"since": self.since, "flops": self.flops,
                "steps": [[float(x) for x in (*sums, norm)] for sums, norm in jax.device_get(self._steps)]}


def _seconds(kept: dict[str, Any], name: str) -> float:
    value = kept.get(name, 0.0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise checkpoints.CheckpointError(f"the position in the checkpoint has {name} = {value!r}: it must be a number "
                                          "of at least 0")
    return float(value)


SUMS: dict[str, type[Sums | DeepSums]] = {"terminal": Sums, "deep": DeepSums}
