"""A puzzle table whose columns are split over the devices does what a whole one does, and nothing has its size."""

import jax
import numpy as np
import pytest

from tests import tiny
from trm_jax.data.shape import Shape
from trm_jax.evaluation.unroll import answers_at
from trm_jax.models.network import Weights
from trm_jax.reports import hlo
from trm_jax.runtime import checkpoints, distributed
from trm_jax.training import puzzle_table
from trm_jax.training import step as step_lib
from trm_jax.training.run_folder import Run
from trm_jax.training.supervision import Batch
from trm_jax.training.system import System

ROWS, B, STEPS = 4099, 16, 3


@pytest.fixture(scope="module")
def system() -> System:
    e = tiny.experiment("none", arch={"puzzle_emb_ndim": 16}, global_batch_size=B, puzzle_emb_lr=0.1, ema=False,
                        lr=1e-4)  # the arc tangent makes whole steps of tiny gradients: not of what the order rounds
    return System(e, Shape(16, 6, ROWS), STEPS)


def batch(seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(ROWS, size=B).astype(np.int32)
    ids[[3, 9, 15]] = ids[0]  # on three of the devices, to be summed before the sign
    tokens = rng.integers(1, 6, (2, B, 16)).astype(np.int32)
    return {"inputs": tokens[0], "labels": tokens[1], "puzzle_identifiers": ids}


def trained(system, devices):
    mesh = distributed.data_mesh(jax.devices()[:devices])
    state = step_lib.place(system, mesh)
    state = state._replace(table=jax.device_put(start(), state.table.sharding))
    step = step_lib.make_step(system, mesh, 2)
    for seed in range(STEPS):
        state, sums, _ = step(state, Batch(**distributed.put_batch(mesh, batch(seed))))
    return state, sums


def start():
    return np.random.default_rng(7).normal(size=(ROWS, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def one(system):
    return trained(system, 1)


@pytest.fixture(scope="module")
def eight(system):
    return trained(system, 8)


def test_eight_devices_do_what_one_does(system, one, eight):
    table = eight[0].table
    assert {shard.data.shape for shard in table.addressable_shards} == {(ROWS, 2)}
    np.testing.assert_allclose(table, one[0].table, rtol=1e-6, atol=1e-7)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4), eight[0].params, one[0].params)
    np.testing.assert_allclose(eight[1].loss, one[1].loss, rtol=1e-5)
    touched = np.unique([batch(seed)["puzzle_identifiers"] for seed in range(STEPS)])
    assert np.array_equal(np.flatnonzero((np.asarray(table) != start()).any(1)), touched)


def test_a_whole_table_on_eight_devices_does_the_same(system, eight, monkeypatch):
    monkeypatch.setattr(puzzle_table, "SPLIT_ROWS", ROWS)
    state, _ = trained(system, 8)
    assert state.table.is_fully_replicated
    np.testing.assert_allclose(state.table, eight[0].table, rtol=1e-6, atol=1e-7)


def test_a_checkpoint_goes_from_eight_devices_to_one_and_back(system, eight, tmp_path):
    state = eight[0]
    with checkpoints.Checkpointer(tmp_path) as saver:
        saver.save(STEPS, state, {})
        saver.wait()
        alone = saver.restore(step_lib.place(system, distributed.data_mesh(jax.devices()[:1])))[0]
        again = saver.restore(step_lib.place(system, distributed.data_mesh()))[0]
    tiny.assert_identical(jax.device_get(alone._replace(key=())), jax.device_get(state._replace(key=())))
    tiny.assert_identical(again, state)
    assert again.table.sharding == state.table.sharding
    run = Run(tmp_path, system.experiment, {}, system.shape, system.total_steps)
    weights, step = run.weights(distributed.data_mesh())
    assert step == STEPS and weights.table.sharding == state.table.sharding
    np.testing.assert_array_equal(weights.table, state.table)


def test_answers_are_the_same_from_a_split_table(system, eight):
    tokens = batch(11)
    answers = []
    for devices in (1, 8):
        mesh = distributed.data_mesh(jax.devices()[:devices])
        places = puzzle_table.weights_shardings(system.model, mesh)
        weights = Weights(*(jax.device_put(a, place) for a, place in zip(system.weights(eight[0]), places)))
        placed = distributed.put_batch(mesh, tokens)
        answers.append(answers_at(system.model.bind(weights, 2), mesh, placed["inputs"],
                                  placed["puzzle_identifiers"], np.array([1, 3], np.int32)))
    assert answers[1].tokens.shape == (2, B, 16) and len(np.unique(answers[1].tokens)) > 1
    np.testing.assert_array_equal(answers[0].tokens, answers[1].tokens)


@pytest.mark.parametrize("devices", [1, 8])
def test_nothing_of_the_tables_size_is_made_or_sent(system, devices):
    """The compiled step has it as argument and result, which are one; memory for all else is far smaller."""
    mesh, rows = distributed.data_mesh(jax.devices()[:devices]), 131_101
    system = System(system.experiment, Shape(16, 6, rows), STEPS)
    compiled = step_lib.make_step(system, mesh, 2).lower(
        step_lib.place(system, mesh), Batch(**distributed.put_batch(mesh, batch(0)))).compile()
    memory, table = compiled.memory_analysis(), rows * 16 * 4 // devices
    assert memory.temp_size_in_bytes < table / 4
    assert memory.alias_size_in_bytes >= table
    instructions = list(hlo.of(compiled).instructions)
    made = {i.opcode for i in instructions if i.arrays == [hlo.Array("f32", (rows, 16 // devices))]}
    assert made <= {"parameter", "get-tuple-element", "scatter", "fusion", "call", "bitcast", "dynamic-update-slice",
                    "while", "conditional"}, made  # in place, all of them
    if devices > 1:
        assert not [i for i in instructions for a in i.arrays if a.dims == (rows, 16)]  # nowhere whole
        sent = [a for i in instructions if i.opcode.removesuffix("-start") in hlo.COLLECTIVES for a in i.arrays]
        assert sent and not [a for a in sent if rows in a.dims]


def test_small_tables_and_uneven_widths_are_whole(system):
    def spec(rows, width, devices):
        arch = tiny.experiment("none", arch={"puzzle_emb_ndim": width}).arch
        mesh = distributed.data_mesh(jax.devices()[:devices])
        return puzzle_table.spec(type(system.model)(arch, Shape(16, 6, rows)), mesh)
    whole, split = puzzle_table.P(), puzzle_table.P(None, "data")
    assert spec(1025, 16, 8) == spec(1025, 15, 3) == split
    assert spec(1024, 16, 8) == spec(5000, 12, 8) == spec(5000, 16, 1) == whole
