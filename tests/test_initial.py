"""Training that starts from weights, and what it refuses."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from trm_jax.data.shape import Shape
from trm_jax.jobs.train import train
from trm_jax.runtime import distributed
from trm_jax.training.step import place
from trm_jax.training.system import System
from trm_jax.weights import initial, weights_file
from trm_jax.weights.weights_file import WeightsError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_dataset(tmp_path_factory.mktemp("data") / "sudoku")


@pytest.fixture(scope="module")
def old_run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "old"
    train(tiny.experiment(data, total_steps=3), folder)
    return folder


def system_of(experiment, rows: int = 1) -> System:
    return System(experiment, Shape(16, 6, rows), 8)


def test_parameters_their_average_starts_and_rows_are_those_of_the_file(data, old_run, tmp_path):
    old = weights_file.read(old_run)
    file = tmp_path / "old.safetensors"
    weights_file.save(file, old, "float32")
    system = system_of(tiny.experiment(data, seed=7))
    fresh = place(system, distributed.data_mesh(jax.devices()[:1]))
    starts = [initial.read(source, system, None) for source in (old_run, file)]
    for start in starts:
        state = initial.begun(fresh, start)
        tiny.assert_identical(state.params, old.weights.params)
        tiny.assert_identical(state.ema, old.weights.params)
        tiny.assert_identical(state.fixed, old.weights.fixed)
        tiny.assert_identical(state.table, old.weights.table)
        tiny.assert_identical(state.opt_state, fresh.opt_state)
    assert starts[0].record["sha256"] == starts[1].record["sha256"]
    assert starts[0].record["new"] == starts[0].record["left_over"] == []


def test_what_is_new_and_what_is_left_over_is_listed(data, old_run):
    system = system_of(tiny.experiment(data, arch={"tie_head": False, "recursion": "single_z"}))
    start = initial.read(old_run, system, None)
    assert start.record["new"] == ["params/lm_head"] and start.record["left_over"] == ["fixed/H_init"]
    assert "new here: params/lm_head; left over there: fixed/H_init" in str(start)


def test_a_tensor_of_another_shape_is_refused_before_there_is_a_run(data, old_run, tmp_path):
    wide = tiny.experiment(data, arch={"mlp_hidden_size": 24}, init_from=str(old_run))
    with pytest.raises(WeightsError, match=r"params/layers_0/mlp/down is \[16, 8\] there, \[24, 8\] here"):
        train(wide, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(WeightsError, match="there is no run, file or trained network called nothing"):
        train(dataclasses.replace(wide, init_from="nothing"), tmp_path / "run")


def test_a_run_remembers_what_it_started_from_and_goes_on_without_it(data, old_run, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(old_run, source)
    new = tiny.experiment(data, total_steps=4, init_from=str(source))
    whole = train(new, tmp_path / "whole")
    record = json.loads((tmp_path / "whole" / initial.RECORD).read_text())
    assert record["source"] == str(source) and record["step"] == 3 and len(record["sha256"]) == 64
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["init_from"] == str(source)
    with tiny.interrupted_after(3):  # a checkpoint of step 2 is there
        train(new, tmp_path / "cut")
    shutil.rmtree(source)
    again = train(new, tmp_path / "cut")
    assert again["figures"] == whole["figures"]
    tiny.assert_identical(*(weights_file.read(tmp_path / name).weights for name in ("whole", "cut")))


def test_rows_of_the_table_go_by_name_and_new_ones_begin_at_the_mean(data, old_run, monkeypatch):
    old = weights_file.read(old_run)
    table = jnp.arange(24, dtype=jnp.float32).reshape(3, 8)
    named = old._replace(weights=old.weights._replace(table=table), identifiers=["<blank>", "a", "b"])
    monkeypatch.setattr(weights_file, "read", lambda source: named)
    system = system_of(tiny.experiment(data), rows=4)
    start = initial.read("arc", system, ["<blank>", "b", "new", "a"])
    state = initial.begun(place(system, distributed.data_mesh(jax.devices()[:1])), start)
    np.testing.assert_array_equal(state.table, np.stack([table[0], table[2], (table[1] + table[2]) / 2, table[1]]))
    assert (start.record["rows"], start.record["of_rows"]) == (3, 4)
