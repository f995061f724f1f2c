"""A run that is stopped, by a signal, a fault of its numbers or a kill, loses nothing and says where it stands."""

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from trm_jax.evaluation.evaluator import Evaluator
from trm_jax.jobs import train
from trm_jax.runtime import checkpoints, errors
from trm_jax.training import step as step_lib
from trm_jax.weights import weights_file

ROOT = Path(__file__).resolve().parents[1]
LONG = {"total_steps": 100_000, "checkpoint": {"interval_steps": 90_000}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_dataset(tmp_path_factory.mktemp("data") / "sudoku4")


def records(workdir, name="loss"):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]


def complete_steps(workdir) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit())


# Signals.


@pytest.mark.parametrize("number, status, says", [(signal.SIGINT, 130, "interrupted; "),
                                                  (signal.SIGTERM, 75, "ended from outside; ")])
def test_a_signal_saves_the_next_step(data, tmp_path, number, status, says):
    e = tiny.experiment(data, **LONG, log={"interval_steps": 7})
    command = [sys.executable, "-m", "trm_jax.main", f"--config={tiny.config_file(tmp_path, e)}",
               f"--workdir={tmp_path / 'run'}", "--compilation_cache="]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith("step 14/"):
            process.send_signal(number)
    process.stderr.close()
    assert process.wait() == status, seen
    [step] = complete_steps(tmp_path / "run")
    assert step >= 14 and "stopping: the run is saved after this step; once more ends it at once\n" in seen
    assert seen[-1] == f"{says}saved at step {step:,}; the same command goes on from there\n"


def test_the_mean_of_a_window_that_was_cut_is_of_all_its_steps(data, tmp_path, monkeypatch):
    """Steps 15 to 21, saved and interrupted after 17."""
    how = {"total_steps": 24, "checkpoint": {"interval_steps": 17}}
    with tiny.interrupted_after(18):
        train.train(tiny.experiment(data, **how, log={"interval_steps": 1}), tmp_path / "run")
    whole = tmp_path / "whole"
    train.train(tiny.experiment(data, **how, log={"interval_steps": 7}), whole)
    parts, ask = tmp_path / "parts", train.Trainer.step

    def step(self):
        ask(self)
        if self.steps_done == 17:
            signal.raise_signal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "step", step)
        with pytest.raises(errors.Preempted, match="saved at step 17"):
            train.train(tiny.experiment(data, **how, log={"interval_steps": 7}), parts)
    train.train(tiny.experiment(data, **how, log={"interval_steps": 7}), parts)
    for name in ("loss", "grad_norm", "cell_accuracy"):
        assert records(parts, name) == records(whole, name)
    assert [step for step, _ in records(parts)] == [7, 14, 21, 24]
    every = dict(records(tmp_path / "run"))
    assert set(every) == set(range(1, 19))
    assert dict(records(whole))[14] == pytest.approx(np.mean([every[i] for i in range(8, 15)]), rel=1e-6)


def test_a_second_signal_ends_at_once():
    code = """
        import signal, time
        from trm_jax.runtime.errors import StopRequests
        with StopRequests(lambda line: print(line, flush=True)):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            time.sleep(60)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "\nended at once\n")
    assert done.stdout == "stopping: the run is saved after this step; once more ends it at once\n"


def test_training_is_saved_before_it_is_evaluated(data, tmp_path, monkeypatch):
    e, call, before = tiny.experiment(data, total_steps=4), Evaluator.__call__, signal.getsignal(signal.SIGINT)

    def interrupted(self, *args):
        signal.raise_signal(signal.SIGINT)
        return call(self, *args)
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt, match="not evaluated, but all training is saved"):
            train.train(e, tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    assert complete_steps(tmp_path) == [2, 4] and not (tmp_path / "eval").exists()
    train.train(e, tmp_path)
    assert [step for step, _ in records(tmp_path)] == [1, 2, 3, 4]
    assert [step for step, _ in records(tmp_path, "eval/exact_accuracy/H3_L2")] == [4]
    with checkpoints.Checkpointer(tmp_path, best_metric="exact_accuracy", read_only=True) as reader:
        assert reader.best_step() == 4


def test_an_evaluation_on_the_way_that_was_interrupted_is_made_up_for(data, tmp_path, monkeypatch):
    e = tiny.experiment(data, total_steps=6, eval={"interval_steps": 4})
    whole = train.train(e, tmp_path / "whole")
    record = checkpoints.Checkpointer.record

    def interrupted(self, step, values):
        if step == 4:
            raise tiny.Interruption
        record(self, step, values)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpointer, "record", interrupted)
        with pytest.raises(tiny.Interruption):
            train.train(e, tmp_path / "parts")
    parts = train.train(e, tmp_path / "parts")
    assert parts["figures"] == whole["figures"]
    name = "eval/exact_accuracy/H3_L2"
    assert records(tmp_path / "parts", name) == records(tmp_path / "whole", name)
    assert [step for step, _ in records(tmp_path / "parts", name)] == [4, 6]


def test_an_interruption_without_a_checkpoint_promises_nothing(capsys):
    def run():
        raise KeyboardInterrupt
    assert errors.guarded(run) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


# Numbers that are not finite.


def test_a_run_that_diverges_stops_and_keeps_its_last_finite_checkpoint(data, tmp_path, monkeypatch):
    make = step_lib.make_step

    def poisoned(system, mesh, L):
        step = make(system, mesh, L)

        def run(state, batch):
            state, sums, norm = step(state, batch)
            return state, sums._replace(loss=jnp.where(state.step == 7, jnp.nan, sums.loss)), norm
        return jax.jit(run)
    monkeypatch.setattr(step_lib, "make_step", poisoned)
    with pytest.raises(train.DivergedError) as caught:
        train.train(tiny.experiment(data, total_steps=20, log={"interval_steps": 4}), tmp_path)
    message = str(caught.value)
    assert message.startswith("step 7: the loss is nan and the norm of the gradient ")
    assert "its last checkpoint, of step 6, is finite" in message and "smaller lr (0.01 now)" in message
    assert len(message.splitlines()) == 1
    assert complete_steps(tmp_path) == [4, 6] and records(tmp_path)[-1] == (7, "nan")


def test_a_learning_rate_that_is_far_too_high_ends_the_run(data, tmp_path):
    e = tiny.experiment(data, lr=1e30, lr_warmup_steps=0, total_steps=40)
    with pytest.raises((train.DivergedError, checkpoints.NotFiniteError)) as caught:
        train.train(e, tmp_path)
    assert "step " in str(caught.value) and len(str(caught.value).splitlines()) == 1
    for step in complete_steps(tmp_path):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights_file.from_run(tmp_path).weights)), step
