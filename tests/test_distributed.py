"""Batches over devices, processes from the environment, and what results say about the machine."""

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests import tiny
from trm_jax.runtime import distributed
from trm_jax.runtime.errors import Preempted

ROOT = Path(__file__).resolve().parents[1]
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_STEP_NUM_TASKS",
             "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES")


def environment(devices: int, **extra) -> dict:
    return {**{k: v for k, v in os.environ.items() if k not in VARIABLES}, "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "PYTHONPATH": str(ROOT), **extra}


@pytest.fixture
def started(monkeypatch):
    """The arguments with which jax.distributed was started, without starting it."""
    calls = []
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **more: calls.append((args, more)))
    return calls


def test_initialize_does_nothing_for_one_process(started, monkeypatch):
    assert not distributed.initialize()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    assert not distributed.initialize()
    for name, value in zip(VARIABLES, ("localhost:1234", "1", "0"), strict=False):
        monkeypatch.setenv(name, value)
    assert not distributed.initialize()
    assert started == []


@pytest.mark.parametrize("name, value", [("SLURM_STEP_NUM_TASKS", "4"), ("OMPI_COMM_WORLD_SIZE", "2"),
                                         ("TPU_WORKER_HOSTNAMES", "a,b")])
def test_initialize_leaves_clusters_to_jax(started, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert distributed.initialize()
    [(where, how)] = started
    assert where == () and how == {"initialization_timeout": 300, "shutdown_timeout_seconds": 30}


def test_initialize_by_our_variables(started, monkeypatch):
    address = f"localhost:{free_port()}"
    for name, value in zip(VARIABLES, (address, "4", "0"), strict=False):
        monkeypatch.setenv(name, value)
    assert distributed.initialize()
    [(where, how)] = started
    assert where == (address, 4, 0) and how["cluster_detection_method"] == "deactivate"
    monkeypatch.setenv("JAX_PROCESS_ID", "4")
    with pytest.raises(ValueError, match="JAX_PROCESS_ID='4' must be a number from 0 to under JAX_NUM_PROCESSES='4'"):
        distributed.initialize()
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(ValueError, match="JAX_COORDINATOR_ADDRESS='localhost' must be HOST:PORT, of process 0"):
        distributed.initialize()
    monkeypatch.delenv("JAX_PROCESS_ID")
    with pytest.raises(ValueError, match="set but not JAX_PROCESS_ID: set all three, or none"):
        distributed.initialize()


def test_a_port_that_is_in_use_and_a_process_0_that_is_not_there(started, monkeypatch):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        address = f"localhost:{other.getsockname()[1]}"
        for name, value in zip(VARIABLES, (address, "4", "0"), strict=False):
            monkeypatch.setenv(name, value)
        with pytest.raises(distributed.DeviceError, match=f"{address}: process 0 cannot listen there .*; choose anoth"):
            distributed.initialize()
        monkeypatch.setenv("JAX_PROCESS_ID", "3")
        assert distributed.initialize() and len(started) == 1
    with pytest.raises(Preempted, match=f"process 3 has not reached process 0 at JAX_COORDINATOR_ADDRESS={address} in"):
        distributed.initialize(seconds=1)
    monkeypatch.setenv("TRM_JAX_COORDINATOR_SECONDS", "soon")
    with pytest.raises(distributed.DeviceError, match="TRM_JAX_COORDINATOR_SECONDS='soon' must be a whole number of s"):
        distributed.initialize()


def test_a_port_that_is_not_yet_let_go_is_waited_for(started, monkeypatch):
    """Slurm's own connections leave from any port, and keep it for a minute after they ended."""
    with socket.socket() as other:
        other.bind(("", 0))
        for name, value in zip(VARIABLES, (f"localhost:{other.getsockname()[1]}", "4", "0"), strict=False):
            monkeypatch.setenv(name, value)
        closing = threading.Timer(1.5, other.close)
        closing.start()
        assert distributed.initialize() and len(started) == 1
        closing.join()


@pytest.mark.parametrize("address, says", [
    ("nonsense", "must be HOST:PORT, of process 0"), ("host:", "must be HOST:PORT"), (":12", "must be HOST:PORT"),
    ("localhost:99999", "must be HOST:PORT"), ("localhost:0", "must be HOST:PORT"),
    ("no.such.host.invalid:1234", "there is no host no.such.host.invalid")])
def test_an_address_that_is_none(started, monkeypatch, address, says):
    for name, value in zip(VARIABLES, (address, "4", "0"), strict=False):
        monkeypatch.setenv(name, value)
    with pytest.raises(distributed.DeviceError, match=says) as caught:
        distributed.initialize()
    assert f"JAX_COORDINATOR_ADDRESS={address!r}" in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert started == []


def test_one_process_agrees_with_itself(tmp_path):
    assert distributed.everyones({"a": 1}) == [{"a": 1}]
    assert distributed.agreed(lambda: 3) == 3
    distributed.require_shared(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def test_put_batch_splits_over_the_devices():
    mesh = distributed.data_mesh()
    n = jax.device_count()
    batch = {"inputs": np.arange(n * 2 * 3, dtype=np.int32).reshape(n * 2, 3), "index": np.arange(n * 2)[:, None]}
    placed = distributed.put_batch(mesh, batch)
    assert placed.keys() == batch.keys()
    for shard in placed["inputs"].addressable_shards:
        assert shard.data.shape == (2, 3)
    assert placed["inputs"].sharding == distributed.batch_sharding(mesh)
    np.testing.assert_array_equal(distributed.gather_to_host(placed["inputs"]), batch["inputs"])
    stacked = distributed.put_batch(mesh, {"x": np.zeros((5, n))}, axis=1)["x"]
    assert stacked.sharding.spec == PartitionSpec(None, "data")


def test_mesh_is_for_the_compiler_to_split():
    mesh = distributed.data_mesh()
    assert mesh.axis_names == ("data",) and mesh.size == jax.device_count()
    assert distributed.data_mesh(jax.devices()[:1]).size == 1
    x = jax.device_put(np.ones((mesh.size, 2), np.float32), distributed.batch_sharding(mesh))
    w = jax.device_put(np.ones((2, 2), np.float32), distributed.replicated(mesh))
    out = jax.jit(lambda x, w: (x @ w).mean(), out_shardings=distributed.replicated(mesh))(x, w)
    assert out.is_fully_replicated and distributed.gather_to_host(out) == 2


class Mesh4:
    size = 4


@pytest.mark.parametrize("size, near", [(6, "4 and 8"), (3, "4"), (0, "4"), (-1, "4")])
def test_check_batch_names_the_field_and_what_would_do(size, near):
    with pytest.raises(ValueError) as caught:
        distributed.check_batch(size, Mesh4, 2)
    assert f"global_batch_size={size} must be a multiple of the number of devices, 4" in str(caught.value)
    assert str(caught.value).endswith(f"the nearest that work: {near}")


def test_check_batch_gives_the_share_of_a_process():
    assert distributed.check_batch(8, Mesh4, 2) == 4
    assert distributed.check_batch(8, Mesh4) == 8
    with pytest.raises(ValueError, match="4 devices cannot be shared out among 3 processes"):
        distributed.check_batch(8, Mesh4, 3)


def test_one_process_is_primary_and_waits_for_nobody():
    assert distributed.is_primary()
    distributed.barrier("test")


def test_what_results_say():
    assert distributed.device_description() == f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    assert set(distributed.versions()) == {"python", "jax", "jaxlib", "flax", "orbax", "numpy", "trm_jax"}
    assert distributed.versions()["jax"] == jax.__version__
    size, where = distributed.peak_memory()
    assert 10 << 20 < size < 1 << 40
    assert where in ("device", "process")


def test_compilation_cache_holds_small_programs(tmp_path):
    """In a process of its own, as the cache's place is global; something was compiled before it was set."""
    code = """
        import sys, jax
        from trm_jax.runtime.distributed import enable_compilation_cache
        jax.jit(lambda x: x + 1)(1)
        enable_compilation_cache(sys.argv[1])
        jax.jit(lambda x: x * 3)(1)
    """
    done = subprocess.run([sys.executable, "-W", "error", "-c", textwrap.dedent(code), str(tmp_path / "cache")],
                          env=environment(1), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert any((tmp_path / "cache").iterdir())


PROCESS = """
    import pickle, sys, time, jax, numpy as np
    from pathlib import Path
    from trm_jax.runtime.errors import UserError
    from trm_jax.runtime import distributed as d
    from trm_jax.runtime.checkpoints import Checkpointer
    from trm_jax.training.run_folder import claim, read_config
    from trm_jax.runtime.metrics import MetricWriter
    def fail(error):
        raise error
    assert d.initialize() and d.initialize()
    me, work = jax.process_index(), Path(sys.argv[1])
    assert (jax.process_count(), jax.device_count(), d.is_primary()) == (2, 4, me == 0)
    mesh = d.data_mesh()
    share = d.check_batch(8, mesh)
    assert share == 4
    batch = d.put_batch(mesh, {"x": np.arange(share, dtype=np.float32) + 4 * me})
    assert batch["x"].shape == (8,)
    np.testing.assert_array_equal(d.gather_to_host(batch["x"]), np.arange(8))
    total = jax.jit(lambda x: x.sum(), out_shardings=d.replicated(mesh))(batch["x"])
    assert d.gather_to_host(total) == 28
    claim(work, {"seed": 1})
    with MetricWriter(work) as writer:
        writer.write(1, {"process": me})
    state = {"split": batch["x"], "same": total}
    with Checkpointer(work, keep_last=1) as saver:
        saver.save(1, state, {"n": 5})
        saver.record(1, {"a": 1.0})
        saver.save(2, state, {"n": 6})
    with Checkpointer(work, read_only=True) as reader:
        restored, position, step = reader.restore(state)
    assert (position, step) == ({"n": 6}, 2)
    np.testing.assert_array_equal(d.gather_to_host(restored["split"]), np.arange(8))
    assert restored["split"].sharding == batch["x"].sharding
    for value in (me, {"rows": np.arange(3 + me, dtype=np.int64) << 40}, b"x" * (d.PIECE + me)):
        assert pickle.dumps(d.everyones(value)[me]) == pickle.dumps(value)
    assert d.everyones(me) == [0, 1] and d.agreed(lambda: me) == me
    for raised in (UserError("no"), OSError("no")):
        try:
            d.agreed(lambda: me or fail(raised))
        except (UserError, OSError) as error:
            assert str(error) == ("process 0: no" if me else "no")
        else:
            raise AssertionError
    now = time.time
    time.time = lambda: now() + 100 * me
    d.require_shared(work / "all")
    time.time = now
    d.barrier("files are gone")
    assert list((work / "all").iterdir()) == []
    try:
        d.require_shared(work / f"own-{me}", seconds=0.5)
    except d.DeviceError as error:
        assert "own-" in str(error) and "process 0 on " in str(error) and "what process 1 on " in str(error)
    else:
        raise AssertionError
    d.barrier("end")
    print("passed", me)
"""


def test_two_processes_feed_save_and_restore_together(tmp_path):
    port = free_port()
    processes = [subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROCESS), str(tmp_path)], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
        env=environment(2, JAX_COORDINATOR_ADDRESS=f"localhost:{port}", JAX_NUM_PROCESSES="2",
                        JAX_PROCESS_ID=str(i))) for i in range(2)]
    try:
        for i, process in enumerate(processes):
            out, err = process.communicate(timeout=60)
            assert out.endswith(f"passed {i}\n"), err
            said = re.search(r"clocks of process 0 on .* and process 1 on .* are (99|10\d) s apart", err)
            assert bool(said) == (i == 0), err
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "process": 0}\n'


@pytest.mark.parametrize("victim, number, says", [
    (0, signal.SIGKILL, "error: process 0, which holds the run together, is lost; start all processes again"),
    pytest.param(1, signal.SIGKILL, "error: process 1 of 2 (on ", marks=pytest.mark.slow),
    (1, signal.SIGTERM, "ended from outside; saved at step ")])
def test_a_process_that_is_lost_or_told_to_end_ends_the_others(tmp_path, victim, number, says):
    e = tiny.experiment(tiny.make_dataset(tmp_path / "data"), total_steps=100_000, log={"interval_steps": 20},
                        checkpoint={"interval_steps": 90_000})
    port = free_port()
    said = [tmp_path / f"said{i}" for i in range(2)]
    command = [sys.executable, "-m", "trm_jax.main", f"--config={tiny.config_file(tmp_path, e)}",
               f"--workdir={tmp_path / 'run'}", "--compilation_cache="]
    processes = []
    for i in range(2):
        with said[i].open("w") as file:
            processes.append(subprocess.Popen(command, stderr=file, cwd=ROOT, env=environment(
                1, JAX_COORDINATOR_ADDRESS=f"localhost:{port}", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(i))))
    try:
        end = time.monotonic() + 120
        while "step 20/" not in said[0].read_text() and time.monotonic() < end:
            time.sleep(0.1)
        processes[victim].send_signal(number)
        other = processes[1 - victim]
        assert other.wait(45) == 75, said[1 - victim].read_text()  # 30 seconds, and a slow machine
        assert processes[victim].wait(45) == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    lines = said[1 - victim].read_text().splitlines()
    assert lines[-1].startswith(says), lines
    if number == signal.SIGTERM:
        assert said[victim].read_text().splitlines()[-1] == lines[-1]
        [step] = (p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
        assert f"saved at step {step};" in lines[-1]
