"""Devices and processes (over jax.distributed and jax.sharding): data parallelism, and what a run ran on.

Parameters are on every device, batches are split over the mesh's one axis, "data". One process or many: the
calls are the same.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import trm_jax
from trm_jax.runtime.errors import UserError

AXIS = "data"
COMPILED = os.path.join("~", ".cache", "trm_jax", "compiled")  # where programs are kept unless told otherwise
_OURS = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


class DeviceError(UserError):
    """Devices or processes that do not fit the run; the message says which numbers would."""


def initialize() -> bool:
    """Joins the other processes of this run, if the environment says that there are any; True if it did.

    It says so by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (as our launch scripts set them), or
    by a job step of more than one task under Slurm, Open MPI or on a TPU pod, which jax detects itself. To be called
    before anything else of jax is.

    Raises:
      DeviceError: only some of the three variables are set, or they are not numbers that fit each other.
    """
    if jax.distributed.is_initialized():
        return True
    env = os.environ
    if given := [name for name in _OURS if env.get(name)]:
        if missing := [name for name in _OURS if name not in given]:
            raise DeviceError(f"{', '.join(given)} set but not {', '.join(missing)}: set all three, or none")
        count, process = env["JAX_NUM_PROCESSES"], env["JAX_PROCESS_ID"]
        if not (count.isdigit() and process.isdigit() and int(process) < int(count)):
            raise DeviceError(f"JAX_PROCESS_ID={process!r} must be a number from 0 to under "
                             f"JAX_NUM_PROCESSES={count!r}")
        if int(count) == 1:
            return False
        # Inside Slurm jax would otherwise still take one device per process, as if there were one for each.
        jax.distributed.initialize(env["JAX_COORDINATOR_ADDRESS"], int(count), int(process),
                                   cluster_detection_method="deactivate")
        return True
    tasks = max(_number(env.get("SLURM_STEP_NUM_TASKS")), _number(env.get("OMPI_COMM_WORLD_SIZE")),
                len(env.get("TPU_WORKER_HOSTNAMES", "").split(",")))
    if tasks > 1:
        jax.distributed.initialize()
    return tasks > 1


def enable_compilation_cache(folder: str | os.PathLike[str]) -> None:
    """Keeps every compiled program in `folder`, small ones too, so that a restart does not compile again; "" does not.
    """
    if not folder:
        return
    folder = os.path.expanduser(folder)
    jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.reset_cache()  # whatever was compiled before has fixed the cache as it was then


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """All devices (or those given) in one axis, "data"."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device: parameters, optimiser, keys."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """`axis` of the array split over the devices: batches, latents."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray], axis: int = 0) -> dict[str, jax.Array]:
    """This process's share of a batch -> the batch over all devices.

    Args:
      batch: name -> numpy [b, ...], b = B / processes (in `axis`); the shares lie in the order of the processes.

    Returns:
      name -> jax.Array [B, ...], split over the mesh in `axis`.
    """
    sharding = batch_sharding(mesh, axis)
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), sharding)
    return {name: jax.make_array_from_process_local_data(sharding, share) for name, share in batch.items()}


def check_batch(global_batch_size: int, mesh: Mesh, process_count: int | None = None) -> int:
    """The share of the batch of each process, B / processes.

    Raises:
      DeviceError: the batch cannot be split evenly; names the nearest sizes that can.
    """
    devices, processes = mesh.size, jax.process_count() if process_count is None else process_count
    if devices % processes:
        raise DeviceError(f"{devices} devices cannot be shared out among {processes} processes")
    if global_batch_size < 1 or global_batch_size % devices:
        under = max(0, global_batch_size // devices * devices)
        near = [str(size) for size in (under, under + devices) if size > 0]
        raise DeviceError(f"{global_batch_size=} must be a multiple of the number of devices, {devices}; "
                         f"the nearest that work: {' and '.join(near)}")
    return global_batch_size // processes


def is_primary() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints, once in a run of several processes."""
    if is_primary():
        print(text, flush=True)


def complain(text: str) -> None:
    """Prints on standard error, once in a run of several processes."""
    if is_primary():
        print(text, file=sys.stderr, flush=True)


def all_agree(fine: bool) -> bool:
    """Whether every process says so; all must call."""
    return fine if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(fine)).all())


def barrier(name: str) -> None:
    """Waits until every process has come to the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gather_to_host(array: jax.Array) -> np.ndarray:
    """A global array [B, ...] of any sharding -> the whole of it as numpy, in every process (so all must call)."""
    if array.is_fully_addressable:
        return np.asarray(array)
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def device_description() -> str:
    """For results: '1 x NVIDIA H200', '8 x cpu'."""
    kinds = sorted({device.device_kind for device in jax.devices()})
    return f"{jax.device_count()} x {' + '.join(kinds)}"


def versions() -> dict[str, str]:
    """For results: what the figures were computed with."""
    packages = {"jax": "jax", "jaxlib": "jaxlib", "flax": "flax", "orbax": "orbax-checkpoint", "numpy": "numpy"}
    return {"trm_jax": trm_jax.__version__, "python": platform.python_version(),
            **{name: importlib.metadata.version(package) for name, package in packages.items()}}


def peak_memory() -> tuple[int, str]:
    """(bytes, "device"): the most that one local device has held; (bytes, "process") where jax does not count it."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peak = max(s.get("peak_bytes_in_use", 0) for s in stats)
    if peak:
        return peak, "device"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "process"


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0
