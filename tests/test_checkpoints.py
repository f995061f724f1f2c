"""Checkpoints: what is saved comes back bit for bit, and what cannot come back says why."""

import gc
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from trm_jax import config as config_lib
from trm_jax.runtime.checkpoints import Checkpointer, CheckpointError, DamagedError, NotFiniteError
from trm_jax.training.run_folder import claim, read_config

ROOT = Path(__file__).resolve().parents[1]


class State(NamedTuple):
    step: Any
    params: Any
    opt: Any
    ema: Any
    key: Any
    carry: Any


def make_state(seed: int = 0, width: int = 3) -> State:
    rng = np.random.default_rng(seed)
    params = {"dense": {"kernel": jnp.asarray(rng.normal(size=(40, width)), jnp.float32)},
              "half": jnp.asarray(rng.normal(size=5), jnp.bfloat16)}
    opt = optax.adamw(1e-3).init(params)
    return State(jnp.asarray(seed, jnp.int32), params, opt, None, jax.random.key(seed),
                 {"latents": jnp.asarray(rng.normal(size=(8, 2)), jnp.float32), "puzzle": None})


def abstract(tree, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), tree)


def raw(x) -> np.ndarray:
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert raw(x).tobytes() == raw(y).tobytes()


def writer(folder, **kwargs) -> Checkpointer:
    return Checkpointer(folder, **{"keep_last": 2, "keep_best": 1, "best_metric": "exact_accuracy", **kwargs})


def in_subprocess(code: str, *args, devices: int = 8) -> subprocess.CompletedProcess:
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
           "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    return subprocess.run([sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, args)], env=env,
                          capture_output=True, text=True, timeout=120)


def test_round_trip_is_bit_for_bit(tmp_path):
    state, position = make_state(3), {"epoch": 2, "grain": {"last_seen": [1, 2]}}
    with writer(tmp_path) as saver:
        assert saver.latest_step() is None
        assert saver.restore(abstract(state)) is None
        assert saver.save(7, state, position)
    with writer(tmp_path) as reader:
        restored, where, step = reader.restore(abstract(state))
    assert (where, step) == (position, 7)
    assert_same(restored, state)
    assert jax.random.bits(restored.key) == jax.random.bits(state.key)


def test_a_concrete_state_also_says_what_to_restore(tmp_path):
    with writer(tmp_path) as saver:
        saver.save(1, make_state(1), {})
        restored, _, _ = saver.restore(make_state(2))
    assert_same(restored, make_state(1))


def test_state_may_be_donated_right_after_save(tmp_path):
    state = {"x": jnp.arange(1 << 20, dtype=jnp.float32), "s": jnp.arange(3, dtype=jnp.float32)}
    expected = jax.tree.map(np.array, state)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    like = abstract(state)
    with writer(tmp_path) as saver:
        saver.save(1, state, {})
        for _ in range(3):
            state = overwrite(state)
        jax.block_until_ready(state)
        restored, _, _ = saver.restore(like)
    for name, value in expected.items():
        np.testing.assert_array_equal(np.asarray(restored[name]), value)


def save(saver: Checkpointer, step: int, state, position, score: float | None = None):
    saver.save(step, state, position)
    if score is not None:
        saver.record(step, {"exact_accuracy": score})


def test_keeps_the_last_and_the_best_across_a_resume(tmp_path):
    state = make_state()
    with writer(tmp_path) as saver:
        for step, score in ((1, 0.5), (2, 0.9), (3, None)):
            save(saver, step, state, {}, score)
    with writer(tmp_path) as saver:
        for step, score in ((4, float("nan")), (5, 0.1), (6, None)):
            save(saver, step, state, {}, score)
        saver.wait()
        assert saver.steps() == [2, 5, 6]
        assert (saver.latest_step(), saver.best_step()) == (6, 2)
        assert saver.best_first() == [2, 5, 6]
        assert [saver.is_evaluated(step) for step in (2, 5, 6)] == [True, True, False]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "5", "6"]


def test_saving_a_step_twice_changes_nothing(tmp_path):
    with writer(tmp_path) as saver:
        assert saver.save(4, make_state(4), {"n": 1})
        assert not saver.save(4, make_state(5), {"n": 2})
        restored, position, _ = saver.restore(make_state())
    assert position == {"n": 1}
    assert_same(restored, make_state(4))


def test_best_metric_that_is_not_measured_is_refused(tmp_path):
    with writer(tmp_path, best_metric="exact_acuracy") as saver:
        saver.save(1, make_state(), {})
        with pytest.raises(CheckpointError, match=r"'exact_acuracy' is not measured; there are exact_accuracy, loss"):
            saver.record(1, {"loss": 1.0, "exact_accuracy": 0.5})


def test_what_is_not_finite_is_neither_saved_nor_read(tmp_path):
    state = make_state()
    broken = state._replace(params={"dense": {"kernel": state.params["dense"]["kernel"].at[3, 1].set(jnp.nan)},
                                    "half": state.params["half"].at[0].set(jnp.inf)})
    with writer(tmp_path) as saver:
        saver.save(1, state, {})
        with pytest.raises(NotFiniteError, match=r"after step 2 is not saved: it is not finite in params/dense/kernel, "
                                                 r"params/half$"):
            saver.save(2, broken, {})
        saver.wait()
        assert saver.steps() == [1]
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as older:  # versions saved it, and without checksums
        older.save(tmp_path / "checkpoints" / "2", ocp.args.Composite(state=ocp.args.PyTreeSave(broken),
                                                                      position=ocp.args.JsonSave({})))
    said = []
    with writer(tmp_path, read_only=True, note=said.append) as reader:
        assert reader.restore_fields(abstract({"params": state.params}))[2] == 1
    [line] = said
    assert line.startswith(f"the checkpoint {tmp_path / 'checkpoints' / '2'} is damaged: it is not finite in params/")


def test_only_some_fields(tmp_path):
    state = make_state(1)
    with writer(tmp_path) as saver:
        saver.save(1, state, {"n": 1})
    with Checkpointer(tmp_path, read_only=True) as reader:
        fields, position, step = reader.restore_fields(abstract({"params": state.params, "key": state.key}))
        with pytest.raises(CheckpointError, match=r"only in this state: params/bias float32\[2\]"):
            reader.restore_fields({"params": {**state.params, "bias": jnp.zeros(2)}})
    assert (position, step) == ({"n": 1}, 1)
    assert_same(fields, {"params": state.params, "key": state.key})


def test_reading_leaves_the_folder_alone(tmp_path):
    with writer(tmp_path) as saver:
        saver.save(1, make_state(), {})
    unfinished = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    with Checkpointer(tmp_path, read_only=True) as reader:
        assert reader.steps() == [1]
    assert unfinished.exists()
    with Checkpointer(tmp_path / "none", read_only=True) as reader:
        assert reader.restore(make_state()) is None
    assert not (tmp_path / "none").exists()


def test_mismatch_lists_every_leaf_of_both_sides(tmp_path):
    state = make_state()
    with writer(tmp_path) as saver:
        saver.save(1, state, {})
        other = state._replace(ema={"w": jnp.zeros(4)}, key=jax.random.key(0, impl="rbg"),
                               step=jnp.zeros((), jnp.float32),
                               params={"dense": {"kernel": jnp.zeros((40, 4))}})
        with pytest.raises(CheckpointError) as caught:
            saver.restore(other)
    message = str(caught.value)
    for line in ("only in the checkpoint: params/half bfloat16[5]",
                 "only in this state: ema/w float32[4]",
                 "differs: step is int32[] in the checkpoint, float32[] in this state",
                 "differs: key is uint32[2] in the checkpoint, uint32[4] in this state",
                 "differs: params/dense/kernel is float32[40, 3] in the checkpoint, float32[40, 4] in this state"):
        assert line in message
    assert str(tmp_path / "checkpoints" / "1") in message
    assert len(message.splitlines()) == 7


def test_unknown_step(tmp_path):
    with writer(tmp_path) as saver:
        saver.save(1, make_state(), {})
        with pytest.raises(CheckpointError, match=r"no checkpoint of step 9; there are: \[1\]"):
            saver.restore(make_state(), step=9)


HARMED = [(pattern, harm) for harm in ("remove", "truncate", "flip")
          for pattern in ("state/d/*", "state/manifest.ocdbt", "state/_METADATA", "position/metadata",
                          "state/array_metadatas/*", "checksums/checksums.json")]


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    with writer(folder) as saver:
        for step in (5, 6):
            save(saver, step, make_state(step), {"n": step}, 0.5)
    return folder


@pytest.mark.parametrize("pattern, harm", HARMED)
def test_a_damaged_checkpoint_is_named_and_an_older_one_is_used(tmp_path, sound, pattern, harm):
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    for path in list((tmp_path / "checkpoints" / "6").glob(pattern)):
        damage(path, harm)
    bad, said = tmp_path / "checkpoints" / "6", []
    with writer(tmp_path, read_only=True, note=said.append) as reader:
        restored, position, step = reader.restore(make_state())
        assert (position, step) == ({"n": 5}, 5)
        assert_same(restored, make_state(5))
        with pytest.raises(DamagedError, match="is damaged: "):
            reader.restore(make_state(), step=6)
    gc.collect()  # nothing is left behind that fails in a later test
    assert len(said) == 1 and said[0].startswith(f"the checkpoint {bad} is damaged: ")
    assert said[0].endswith("Step 5 is used instead") and bad.is_dir()


def test_a_run_that_goes_on_from_an_older_one_keeps_the_damaged(tmp_path, sound):
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    [file] = (tmp_path / "checkpoints" / "6" / "state" / "d").iterdir()
    damage(file, "flip")
    said = []
    with writer(tmp_path, note=said.append) as saver:
        assert saver.restore(make_state())[2] == 5
        save(saver, 6, make_state(7), {"n": 7}, 0.5)
    assert f"the other is kept as {tmp_path / 'checkpoints' / '6.damaged'}" in said[0]
    with writer(tmp_path) as reader:
        restored, position, step = reader.restore(make_state())
    assert (position, step) == ({"n": 7}, 6)
    assert_same(restored, make_state(7))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["5", "6", "6.damaged"]


def test_when_all_are_damaged_each_is_named(tmp_path, sound):
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    for step in (5, 6):
        damage(tmp_path / "checkpoints" / str(step) / "state" / "_METADATA", "truncate")
    with writer(tmp_path) as reader, pytest.raises(DamagedError) as caught:
        reader.restore(make_state())
    lines = str(caught.value).splitlines()
    assert [str(tmp_path / "checkpoints" / step) in line for step, line in zip("65", lines)] == [True, True]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["5", "6"]


@pytest.mark.parametrize("content", [b'{"exact_acc', b"", b"[1]", b'{"exact_accuracy": "high"}', b"\xff", b"[" * 3000])
def test_damaged_metrics_block_nothing(tmp_path, sound, content):
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints" / "6" / "metrics" / "metrics").write_bytes(content)
    said = []
    with writer(tmp_path, note=said.append) as reader:
        assert reader.restore(make_state())[2] == 6
        assert reader.best_step() == 5 and not reader.is_evaluated(6)
    assert len(said) == 1 and "step 6 counts as not evaluated" in said[0]


@pytest.mark.parametrize("name", ["a#b", "a?b", "100%", "a%20b", "[glob]*", "back\\slash", "a b", "ü", "a{b},c",
                                  "$HOME", "a:b", "-x"])
def test_every_legal_path_works(tmp_path, name):
    with writer(tmp_path / name) as saver:
        for step in (1, 2, 3):
            save(saver, step, make_state(step), {"n": step}, 0.5)
    with writer(tmp_path / name) as reader:
        assert reader.steps() == [2, 3]
        restored, position, step = reader.restore(make_state())
    assert (position, step) == ({"n": 3}, 3)
    assert_same(restored, make_state(3))
    assert [p.name for p in tmp_path.iterdir()] == [name]
    damage(next((tmp_path / name / "checkpoints" / "3" / "state" / "ocdbt.process_0" / "d").iterdir()), "flip")
    with writer(tmp_path / name, read_only=True, note=lambda line: None) as reader:
        assert reader.restore(make_state())[2] == 2


def test_a_disk_without_room_is_one_line_with_sizes(tmp_path, monkeypatch):
    with writer(tmp_path) as saver:
        saver.save(1, make_state(), {})
        saver.wait()
        monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10))
        with pytest.raises(CheckpointError) as caught:
            saver.save(2, make_state(), {})
        assert re.fullmatch(rf"no room for the checkpoint {tmp_path}/checkpoints/2: it takes up to [\d.]+ kB and 10 B "
                            r"are free\. .*", str(caught.value))
        assert saver.steps() == [1]


def damage(path: Path, harm: str):
    content = path.read_bytes()
    path.unlink()
    if harm == "truncate":
        path.write_bytes(content[:len(content) // 2])
    if harm == "flip":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + b"\x00" + content[middle + 1:])


def test_kill_during_a_save_leaves_the_previous_checkpoint(tmp_path):
    code = """
        import os, sys, time, jax.numpy as jnp, numpy as np
        from trm_jax.runtime.checkpoints import Checkpointer
        saver = Checkpointer(sys.argv[1], keep_last=2)
        noise = jnp.asarray(np.random.default_rng(0).normal(size=(64 << 20) // 4).astype(np.float32))
        saver.save(1, {"x": jnp.ones(8)}, {"n": 1})
        saver.wait()
        print("first", flush=True)
        saver.save(2, {"x": noise}, {"n": 2})
        while not any("tmp" in name for name in os.listdir(saver.folder)):
            time.sleep(0.001)
        print("second", flush=True)
        time.sleep(60)
    """
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], env=env,
                               stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "first\n"
        assert process.stdout.readline() == "second\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    folder = tmp_path / "checkpoints"
    assert not (folder / "2").exists(), "the save was too quick to be killed; make it larger"
    assert any("tmp" in p.name for p in folder.iterdir())
    with writer(tmp_path) as saver:
        assert saver.steps() == [1]
        restored, position, step = saver.restore({"x": jnp.zeros(8)})
        assert (position, step) == ({"n": 1}, 1)
        np.testing.assert_array_equal(restored["x"], np.ones(8))
        saver.save(2, {"x": jnp.zeros(8)}, {"n": 2})
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2"]


def test_a_failed_background_save_raises(tmp_path):
    """A full disk, as a limit on the size of files."""
    code = """
        import resource, signal, sys, jax.numpy as jnp, numpy as np
        from trm_jax.runtime.checkpoints import Checkpointer, CheckpointError, DamagedError, NotFiniteError
        saver = Checkpointer(sys.argv[1], keep_last=2)
        saver.save(1, {"x": jnp.ones(8)}, {})
        saver.wait()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
        noise = np.random.default_rng(0).normal(size=1 << 18).astype(np.float32)
        try:
            saver.save(2, {"x": jnp.asarray(noise)}, {})
            print("saving")
            saver.wait()
        except CheckpointError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(saver.steps())
        saver.close()
    """
    done = in_subprocess(code, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "saving"
    assert f"{tmp_path / 'checkpoints' / '2'} was not written" in lines[1]
    assert lines[-1] == "[1]"


def test_another_number_of_devices(tmp_path):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    spread, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    state = jax.device_put(make_state(1), everywhere)
    state = state._replace(carry=jax.device_put(state.carry, spread))
    with writer(tmp_path) as saver:
        saver.save(1, state, {})
        again, _, _ = saver.restore(abstract(state))
        assert again.carry["latents"].sharding == spread
        assert again.params["half"].sharding == everywhere
        assert_same(again, state)
    code = """
        import sys, jax, numpy as np
        from jax.sharding import Mesh, NamedSharding, PartitionSpec
        from test_checkpoints import Checkpointer, abstract, assert_same, make_state
        assert jax.device_count() == 4
        spread = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec())
        with Checkpointer(sys.argv[1], read_only=True) as reader:
            state, _, _ = reader.restore(abstract(make_state(), spread))
        assert state.key.sharding == spread
        assert_same(state, make_state(1))
    """
    done = in_subprocess(code, tmp_path, devices=4)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_orbax_is_quiet_and_others_are_not(tmp_path, caplog):
    with writer(tmp_path) as saver, caplog.at_level(logging.INFO):
        saver.save(1, make_state(), {})
        saver.wait()
        logging.getLogger("absl").warning("of the program itself")
    assert [r.message for r in caplog.records if r.name == "absl"] == ["of the program itself"]


def config(**changes) -> dict:
    value = config_lib.to_json(config_lib.Experiment())
    for name, new in changes.items():
        section, _, field = name.rpartition("__")
        (value[section] if section else value)[field] = new
    return value


def test_claim_writes_once_and_takes_its_own_back(tmp_path):
    claim(tmp_path / "a" / "b", config())
    path = tmp_path / "a" / "b" / "config.json"
    before = path.stat().st_mtime_ns
    claim(tmp_path / "a" / "b", config_lib.to_json(config_lib.Experiment()))
    assert path.stat().st_mtime_ns == before
    assert read_config(tmp_path / "a" / "b") == config()
    assert [p.name for p in path.parent.iterdir()] == ["config.json"]
    config_lib.parse(read_config(tmp_path / "a" / "b"))


def test_claim_refuses_another_run_field_by_field(tmp_path):
    claim(tmp_path, config())
    with pytest.raises(CheckpointError) as caught:
        claim(tmp_path, config(lr=0.5, arch__hidden_size=64, log__interval_steps=7))
    message = str(caught.value)
    assert "arch.hidden_size: the run has 512, now 64" in message
    assert "lr: the run has 0.001, now 0.5" in message
    assert "log" not in message
    assert "another --workdir" in message and "run's own values" in message
    assert read_config(tmp_path) == config()


def test_claim_writes_down_what_may_change(tmp_path):
    claim(tmp_path, config())
    claim(tmp_path, config(log__interval_steps=7))
    assert read_config(tmp_path)["log"]["interval_steps"] == 7


def test_claim_of_a_folder_that_is_not_a_run(tmp_path):
    (tmp_path / ".config.json.12.tmp").write_text("{")  # left by a kill
    (tmp_path / "slurm-1.out").write_text("starting")
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(CheckpointError, match=r"is not empty and has no config.json.*thesis.tex"):
        claim(tmp_path, config())
    (tmp_path / "thesis.tex").unlink()
    claim(tmp_path, config())
    with pytest.raises(CheckpointError, match="is a file"):
        claim(tmp_path / "config.json", config())


@pytest.mark.parametrize("content, why", [('{"lr": ', "is not JSON"), ('{"compilerOptions": {}}', "not a config of"),
                                          ("[1]", "not a config of")])
def test_a_config_that_is_not_ours(tmp_path, content, why):
    (tmp_path / "config.json").write_text(content)
    for call in (lambda: claim(tmp_path, config()), lambda: read_config(tmp_path)):
        with pytest.raises(CheckpointError, match=why):
            call()
    assert (tmp_path / "config.json").read_text() == content


def test_read_config_of_no_run(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_config(tmp_path / "none")
    with pytest.raises(CheckpointError, match="has no config.json"):
        read_config(tmp_path)
    assert json.dumps(config())  # the dict of to_json is JSON as it stands
