"""Training runs: they learn, continue bit for bit after any interruption, and do not depend on the devices."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import tiny
from trm_jax import config
from trm_jax.data import pipeline
from trm_jax.data.dataset import DatasetError
from trm_jax.data.loading import Dataset
from trm_jax.jobs import train
from trm_jax.reports import hlo
from trm_jax.runtime import distributed, metrics
from trm_jax.training import step as step_lib
from trm_jax.training.supervision import Batch

ROOT = Path(__file__).resolve().parents[1]
# All that a continued run has to take up again: carry, coins, symmetries, EMA, growth of H and of L, moments.
EVERYTHING = {
    "arch": {"L_cycles": 1}, "data": {"augment": True}, "eval": {"interval_steps": 8}, "total_steps": 16,
    "deepen": {"carry_share": 0.5, "carry_keep_prob": 0.8, "tail_prob": 0.3, "tail_max_H": 6},
    "curriculum_milestones": [30.0], "curriculum_heads_to_add": [1],
    "curriculum_L_milestones": [60.0], "curriculum_L_to_add": [1], "optimizer_reset_scale": 0.5,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_dataset(tmp_path_factory.mktemp("data") / "sudoku4")


@pytest.fixture(scope="module")
def everything(data):
    return tiny.experiment(data, **EVERYTHING)


@pytest.fixture(scope="module")
def uninterrupted(everything, tmp_path_factory):
    """(workdir, result) of a run of EVERYTHING."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    return workdir, train.train(everything, workdir)


def records(workdir, name="loss"):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]


# A run.


@pytest.mark.smoke
def test_a_run_learns_and_leaves_its_records(data, tmp_path):
    e = tiny.experiment(data, total_steps=60, checkpoint={"interval_steps": 1000}, lr=3e-2)
    result = train.train(e, tmp_path)
    curve = records(tmp_path)
    assert [step for step, _ in curve] == list(range(1, 61))
    assert np.mean([loss for _, loss in curve[-5:]]) < 0.7 * np.mean([loss for _, loss in curve[:3]])
    assert json.loads((tmp_path / "eval" / "step_60.json").read_text()) == result
    assert (result["step"], result["examples"], result["parameters"]) == (60, 13, "EMA")
    assert [(f["H_test"], f["L_test"]) for f in result["figures"]] == [(1, 2), (3, 2)]
    assert dict(records(tmp_path, "eval/cell_accuracy/H3_L2"))[60] == result["figures"][1]["cell_accuracy"] > 0.4
    assert config.parse(json.loads((tmp_path / "config.json").read_text())) == e
    assert tiny.final_state(e, tmp_path).step == 60
    speed, mfu = (np.array([value for _, value in records(tmp_path, name)]) for name in ("flops_per_second", "mfu"))
    np.testing.assert_allclose(speed / mfu, speed[0] / mfu[0])  # one peak for the whole run


def test_recorded_depths_are_the_curriculums(uninterrupted):
    H, L = dict(records(uninterrupted[0], "H")), dict(records(uninterrupted[0], "L"))
    assert [H[s] for s in (4, 5, 16)] == [2, 3, 3] and [L[s] for s in (9, 10, 16)] == [1, 2, 2]


def test_a_complete_run_is_only_evaluated_again(everything, uninterrupted):
    workdir, result = uninterrupted
    before = records(workdir)
    again = train.train(everything, workdir)
    assert again["figures"] == result["figures"]
    assert records(workdir) == before


# Interruptions.


class Interruption(Exception):
    pass


@pytest.mark.smoke
@pytest.mark.parametrize("stop", [3, 8, 11])  # between checkpoints; at one with an evaluation; after L has grown
def test_a_continued_run_ends_bit_for_bit_where_it_would_have(everything, uninterrupted, tmp_path, monkeypatch, stop):
    write = metrics.MetricWriter.write

    def interrupted(self, step, values):
        write(self, step, values)
        if step == stop:
            raise Interruption
    monkeypatch.setattr(metrics.MetricWriter, "write", interrupted)
    with pytest.raises(Interruption):
        train.train(everything, tmp_path)
    monkeypatch.undo()
    assert complete_steps(tmp_path)[-1] == (stop - 1) // 2 * 2
    result = train.train(everything, tmp_path)
    assert result["figures"] == uninterrupted[1]["figures"]
    assert records(tmp_path) == records(uninterrupted[0])
    tiny.assert_identical(tiny.final_state(everything, tmp_path), tiny.final_state(everything, uninterrupted[0]))


def test_callbacks_see_every_record_and_can_end_a_run_that_goes_on_later(everything, uninterrupted, tmp_path):
    seen = []

    def until_5(step, values):
        seen.append((step, values))
        return step == 5
    assert train.train(everything, tmp_path, callbacks=[until_5])["step"] == 5
    train.train(everything, tmp_path, callbacks=[lambda *record: seen.append(record)])
    assert [step for step, values in seen if "loss" in values] == list(range(1, 17))
    assert [step for step, values in seen if "eval/exact_accuracy/H3_L2" in values] == [16]
    assert [step for step, values in seen if any(name.startswith("eval/") for name in values)] == [5, 8, 16]
    tiny.assert_identical(tiny.final_state(everything, tmp_path), tiny.final_state(everything, uninterrupted[0]))


def command(folder, e, workdir, *more) -> list[str]:
    return [sys.executable, "-m", "trm_jax.main", f"--config={tiny.config_file(folder, e)}", f"--workdir={workdir}",
            "--compilation_cache=", *more]


def complete_steps(workdir) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit())


def is_saving(workdir) -> bool:
    return any(not p.name.isdigit() for p in (workdir / "checkpoints").glob("*"))


def test_a_run_killed_at_any_moment_ends_bit_for_bit_where_it_would_have(data, uninterrupted, tmp_path):
    """SIGKILL in the middle of a save, then at a random moment; every time the same command goes on."""
    e = tiny.experiment(data, **EVERYTHING)
    workdir, rng, killed = tmp_path / "run", random.Random(0), []
    for moment in ("save", "random"):
        before = max(complete_steps(workdir), default=0)
        process = subprocess.Popen(command(tmp_path, e, workdir), cwd=ROOT, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        while process.poll() is None:
            time.sleep(0.001)
            if max(complete_steps(workdir), default=0) >= before + 2:
                if moment == "random":
                    time.sleep(rng.uniform(0, 0.2))
                if moment == "random" or is_saving(workdir):
                    process.send_signal(signal.SIGKILL)
                    break
        killed.append(process.wait())
    assert killed == [-signal.SIGKILL] * 2
    assert max(complete_steps(workdir)) >= 4
    done = subprocess.run(command(tmp_path, e, workdir), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "continues from step" in done.stderr
    assert records(workdir) == records(uninterrupted[0])
    tiny.assert_identical(tiny.final_state(e, workdir), tiny.final_state(e, uninterrupted[0]))


# Devices.


def steps_on(devices: int, e, count: int):
    """(losses of `count` steps, final parameters, carried latents) on the first `devices` devices."""
    system, mesh = tiny.system_of(e), distributed.data_mesh(jax.devices()[:devices])
    step, state = step_lib.make_step(system, mesh, e.arch.L_cycles), step_lib.place(system, mesh)
    batches = pipeline.train_batches(Dataset.load(e).train, global_batch_size=e.global_batch_size, prefetch=0)
    curve = []
    for _ in range(count):
        state, sums, _ = step(state, Batch(**distributed.put_batch(mesh, next(batches))))
        curve.append(float(sums.loss) / float(sums.count))
    return curve, jax.device_get(state.params), jax.device_get(state.carry), jax.device_get(state.table)


@pytest.mark.parametrize("deepen", [{}, EVERYTHING["deepen"]], ids=["published", "carry-and-tail"])
def test_one_device_and_eight_give_the_same_numbers(data, deepen):
    """Up to the order in which gradients are added up."""
    e = tiny.experiment(data, deepen=deepen, global_batch_size=8)
    (one, *state1), (eight, *state8) = steps_on(1, e, 6), steps_on(8, e, 6)
    np.testing.assert_allclose(one, eight, rtol=1e-4)
    assert one[-1] != one[0]
    if deepen:  # the very same slots are kept, whatever the number of devices
        jax.tree.map(np.testing.assert_array_equal, state1[1].batch, state8[1].batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=2e-3), state1, state8)


@pytest.mark.parametrize("deepen", [{}, EVERYTHING["deepen"]], ids=["published", "carry-and-tail"])
def test_gradients_meet_in_one_all_reduce(data, deepen):
    e = tiny.experiment(data, deepen=deepen, global_batch_size=8)
    system, mesh = tiny.system_of(e), distributed.data_mesh()
    batch = Batch(**distributed.put_batch(mesh, {"inputs": np.zeros((8, 16), np.int32),
                                                 "labels": np.zeros((8, 16), np.int32),
                                                 "puzzle_identifiers": np.zeros(8, np.int32)}))
    module = hlo.of(step_lib.make_step(system, mesh, 2).lower(step_lib.place(system, mesh), batch).compile())
    sent = [i for i in module.instructions if i.opcode.removesuffix("-start") in hlo.COLLECTIVES]
    [reduced] = [i for i in sent if i.opcode.startswith("all-reduce")]
    assert max(array.bytes for array in reduced.arrays) >= 4 * system.model.parameter_count()
    others = [i for i in sent if i is not reduced]
    assert all(i.opcode.startswith("all-gather") for i in others)
    assert {a.dtype for i in others for a in i.arrays} <= {"s32"}  # puzzle identifiers


def test_the_loop_transfers_nothing_by_accident(data):
    e = tiny.experiment(data, deepen=EVERYTHING["deepen"], global_batch_size=8)
    system, mesh = tiny.system_of(e), distributed.data_mesh()
    step, state = step_lib.make_step(system, mesh, 2), step_lib.place(system, mesh)
    batches = pipeline.train_batches(Dataset.load(e).train, global_batch_size=8, prefetch=0)
    with jax.transfer_guard("disallow"):
        for _ in range(3):
            state, sums, _ = step(state, Batch(**distributed.put_batch(mesh, next(batches))))
        assert jax.device_get(state.step) == 3 and jax.device_get(sums.count) == 8


def test_ema_follows_its_definition(data):
    e = tiny.experiment(data, ema_rate=0.75, global_batch_size=8)
    system, mesh = tiny.system_of(e), distributed.data_mesh(jax.devices()[:1])
    step, state = step_lib.make_step(system, mesh, 2), step_lib.place(system, mesh)
    batches = pipeline.train_batches(Dataset.load(e).train, global_batch_size=8, prefetch=0)
    expected = jax.device_get(state.params)
    for _ in range(3):
        state, *_ = step(state, Batch(**distributed.put_batch(mesh, next(batches))))
        expected = jax.tree.map(lambda m, p: np.float32(0.75) * m + np.float32(0.25) * p, expected,
                                jax.device_get(state.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), jax.device_get(state.ema),
                 expected)


def test_what_is_refused_leaves_no_folder_behind(tmp_path):
    """The corrected command must be able to use the same folder."""
    folder = tiny.make_dataset(tmp_path / "data", train=16)
    with pytest.raises(DatasetError, match="Set global_batch_size to 16 or less"):
        train.train(tiny.experiment(folder, global_batch_size=64), tmp_path / "run")
    assert not (tmp_path / "run").exists()
