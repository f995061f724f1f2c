"""Devices and processes (over jax.distributed and jax.sharding): data parallelism, and what a run ran on.

Parameters are on every device, batches are split over the mesh's one axis, "data". One process or many: the
calls are the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import itertools
import os
import pickle
import platform
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax._src import distributed as jax_distributed  # for its store: jax has no public door to it
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import trm_jax
from trm_jax.runtime.errors import AGAIN, Preempted, UserError

AXIS = "data"
PIECE = 16 << 20  # bytes of each process that `everyones` sends at once
CLOCKS_APART = 30.0  # seconds
WAIT = "TRM_JAX_COORDINATOR_SECONDS"
LOST_SECONDS = 20.0  # a process that has given no sign of life for so long is lost
CLOSING_SECONDS = 90.0  # for so long process 0 waits for a port that is only not yet let go
_SIGN_SECONDS = 2.0  # between two signs of life
T = TypeVar("T")
COMPILED = os.path.join("~", ".cache", "trm_jax", "compiled")  # where programs are kept unless told otherwise
_OURS = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


class DeviceError(UserError):
    """Devices or processes that do not fit the run; the message says which numbers would."""


def initialize(seconds: int = 0) -> bool:
    """Joins the other processes of this run, if the environment says that there are any; True if it did.

    It says so by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (as our launch scripts set them), or
    by a job step of more than one task under Slurm, Open MPI or on a TPU pod, which jax detects itself. To be called
    before anything else of jax is.

    Args:
      seconds: how long to wait for process 0; 0: as TRM_JAX_COORDINATOR_SECONDS says, or else 300.
    Raises:
      DeviceError: only some of the three variables are set, they do not fit each other, or the port is in use.
      Preempted: process 0 cannot be reached.
    """
    if jax.distributed.is_initialized():
        return True
    env = os.environ
    if not (wait := env.get(WAIT, "300")).isdigit() or int(wait) < 1:
        raise DeviceError(f"{WAIT}={wait!r} must be a whole number of seconds of at least 1")
    seconds = seconds or int(wait)
    if given := [name for name in _OURS if env.get(name)]:
        if missing := [name for name in _OURS if name not in given]:
            raise DeviceError(f"{', '.join(given)} set but not {', '.join(missing)}: set all three, or none")
        count, process = env["JAX_NUM_PROCESSES"], env["JAX_PROCESS_ID"]
        if not (count.isdigit() and process.isdigit() and int(process) < int(count)):
            raise DeviceError(f"JAX_PROCESS_ID={process!r} must be a number from 0 to under "
                             f"JAX_NUM_PROCESSES={count!r}")
        if int(count) == 1:
            return False
        _require_coordinator(env["JAX_COORDINATOR_ADDRESS"], int(process), seconds)
        # Inside Slurm jax would otherwise still take one device per process, as if there were one for each.
        _join(env["JAX_COORDINATOR_ADDRESS"], int(count), int(process), seconds=seconds,
              cluster_detection_method="deactivate")
        return True
    tasks = max(_number(env.get("SLURM_STEP_NUM_TASKS")), _number(env.get("OMPI_COMM_WORLD_SIZE")),
                len(env.get("TPU_WORKER_HOSTNAMES", "").split(",")))
    if tasks > 1:
        _join(seconds=seconds)
    return tasks > 1


def _join(*where: Any, seconds: int, **how: Any) -> None:
    # What runs out in C++ ends the process there.
    _at_abort(f"error: not all processes of the run came within {seconds} s")
    jax.distributed.initialize(*where, initialization_timeout=seconds, shutdown_timeout_seconds=30, **how)
    if jax.distributed.is_initialized():
        _at_abort("error: process 0, which holds the run together, is lost; start all processes again")
    else:
        _at_abort("")


def _require_coordinator(address: str, process: int, seconds: float) -> None:
    """Requires that process 0 can listen at the address and the others reach it: jax would end with a crash."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit() and 0 < int(port) < 1 << 16):
        raise DeviceError(f"JAX_COORDINATOR_ADDRESS={address!r} must be HOST:PORT, of process 0")
    try:
        socket.getaddrinfo(host.strip("[]"), int(port))
    except OSError as error:
        raise DeviceError(f"JAX_COORDINATOR_ADDRESS={address!r}: there is no host {host} "
                          f"({error.strerror or error})") from None
    end = time.monotonic() + (min(seconds, CLOSING_SECONDS) if process == 0 else seconds)
    while process == 0:
        with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("", int(port)))
                return
            except OSError as error:
                if _listens(int(port)) or time.monotonic() > end:
                    raise DeviceError(f"JAX_COORDINATOR_ADDRESS={address}: process 0 cannot listen there "
                                      f"({error.strerror}); choose another port") from None
        time.sleep(1)
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise Preempted(f"process {process} has not reached process 0 at JAX_COORDINATOR_ADDRESS={address} "
                                f"in {seconds:g} s ({error.strerror or error}): is it started, is the port "
                                "open?") from None
        time.sleep(0.2)


def _listens(port: int) -> bool:
    """Whether somebody takes connections at a port of this machine; it may also be that of a connection that ended,
    which the system lets go after a minute."""
    try:
        socket.create_connection(("localhost", port), timeout=5).close()
    except OSError:
        return False
    return True


_handlers: list[Any] = []  # what C has a pointer to


def _at_abort(line: str) -> None:
    """Ends this process with a line and 75 where jax's C++ would abort it ("": let it): that is how it answers the loss
    of the coordinator, and it takes no function to call instead. It comes on a thread without Python's lock."""
    if not line:
        ctypes.CDLL(None).signal(signal.SIGABRT, int(signal.SIG_DFL))
        return

    def end(_: int) -> None:
        os.write(2, f"\n{line}\n".encode())
        os._exit(AGAIN)
    _handlers.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(end))
    ctypes.CDLL(None).signal(signal.SIGABRT, _handlers[-1])


@contextlib.contextmanager
def together() -> Iterator[None]:
    """In this block a process that loses another one ends, with a line that names it and 75, within 30 seconds.

    Every process gives a sign of life every two seconds (in the coordinator's store) and looks for those of the others.
    Whatever a collective does meanwhile: some hang, others raise an error, which waits for the verdict here. At the end
    all wait for each other.
    """
    if jax.process_count() == 1:
        yield
        return
    ended = threading.Event()
    threading.Thread(target=_watch, args=(ended,), daemon=True, name="signs of life").start()
    try:
        yield
        barrier("together")
    except jax.errors.JaxRuntimeError:
        ended.wait(1.5 * LOST_SECONDS)  # _watch ends the process if another one is the reason
        raise
    finally:
        ended.set()


def _watch(ended: threading.Event) -> None:
    client: Any = jax_distributed.global_state.client
    me, count = jax.process_index(), jax.process_count()
    seen = {i: ("", time.monotonic()) for i in range(count) if i != me}
    for turn in itertools.count():
        if ended.wait(_SIGN_SECONDS):
            return
        try:
            client.key_value_set(f"trm_jax/alive/{me}", f"{turn} {platform.node()}", allow_overwrite=True)
            signs = dict(client.key_value_dir_get("trm_jax/alive/"))
        except jax.errors.JaxRuntimeError:
            continue  # the coordinator's own end is seen by jax
        for i, (before, when) in seen.items():
            now = signs.get(f"trm_jax/alive/{i}", before)
            if now != before:
                seen[i] = now, time.monotonic()
            elif time.monotonic() - when > LOST_SECONDS and not ended.is_set():
                node = now.partition(" ")[2]
                os.write(2, f"\nerror: process {i} of {count}{node and f' (on {node})'} is lost: no sign of life for "
                            f"{LOST_SECONDS:.0f} seconds; start all processes again\n".encode())
                os._exit(AGAIN)


def enable_compilation_cache(folder: str | os.PathLike[str]) -> None:
    """Keeps every compiled program in `folder`, small ones too, so that a restart does not compile again.

    "", or a folder that cannot be written, keeps none.
    """
    folder = os.path.expanduser(folder)
    if not folder or folder.startswith("~"):  # a user without a home
        return
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        return
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


def everyones(value: Any) -> list[Any]:
    """The values of all processes, in their order, in every process (so all must call).

    A value is anything that pickle takes. Values travel in pieces, so that devices need little room for them.
    """
    if jax.process_count() == 1:
        return [value]
    mine = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(mine.size))
    pieces = []
    for start in range(0, int(sizes.max()), PIECE):
        piece = np.zeros(min(PIECE, int(sizes.max()) - start), np.uint8)
        share = mine[start:start + PIECE]
        piece[:share.size] = share
        pieces.append(np.asarray(multihost_utils.process_allgather(piece)))
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(np.concatenate(pieces, axis=1), sizes)]


def my_rows(n: int) -> range:
    """This process's share of n rows: every so many, so that hard and easy ones are shared alike."""
    return range(jax.process_index(), n, jax.process_count())


def in_order(values: Sequence[T]) -> list[T]:
    """What the processes have for their `my_rows` -> for all rows in their order, in every process (so all must call).
    """
    shares = everyones(list(values))
    whole: list[Any] = [None] * sum(map(len, shares))
    for process, share in enumerate(shares):
        whole[process::len(shares)] = share
    return whole


def agreed(call: Callable[[], T]) -> T:
    """What `call` returns in this process. What stops it in one process stops all of them, with the same message.

    Raises:
      UserError: raised by the call in this process, or else in another one.
    """
    error, result = None, None
    try:
        result = call()
    except (UserError, OSError) as raised:
        error = raised
    for process, message in enumerate(everyones(None if error is None else str(error))):
        if message is not None:
            raise error if error is not None else UserError(f"process {process}: {message}")
    return cast(T, result)


def require_shared(folder: str | os.PathLike[str], seconds: float = 60) -> None:
    """Makes the folder and requires it to be one folder for all processes; to be called by all of them.

    Each process writes a file and looks for those of the others, for so many seconds: shared disks take their time.
    Clocks that are far apart are a note on standard error.

    Raises:
      DeviceError: in all processes alike, names two of them that do not see each other's files.
    """
    if jax.process_count() == 1:
        return
    folder, host = Path(folder), platform.node()
    run = everyones(os.urandom(8).hex())[0]
    files = [folder / f".process-{run}-{i}" for i in range(jax.process_count())]
    mine = files[jax.process_index()]
    agreed(lambda: (folder.mkdir(parents=True, exist_ok=True), mine.touch()))
    clock = time.time()  # all have come to this line at about the same time
    end = time.monotonic() + seconds
    while (unseen := [i for i, file in enumerate(files) if not file.exists()]) and time.monotonic() < end:
        os.listdir(folder)  # makes NFS look again
        time.sleep(0.2)
    answers = everyones((host, unseen, clock))
    mine.unlink()
    clocks = [clock for _, _, clock in answers]
    early, late = clocks.index(min(clocks)), clocks.index(max(clocks))
    if is_primary() and clocks[late] - clocks[early] > CLOCKS_APART:
        print(f"note: the clocks of process {early} on {answers[early][0]} and process {late} on {answers[late][0]} "
              f"are {clocks[late] - clocks[early]:.0f} s apart; times in logs will not fit together", file=sys.stderr)
    for i, (name, unseen, _) in enumerate(answers):
        if unseen:
            raise DeviceError(f"{folder} is not the same folder for all processes: process {i} on {name} does not see "
                              f"what process {unseen[0]} on {answers[unseen[0]][0]} wrote there. Give a folder on a "
                              "disk that all machines share")


def gather_to_host(array: jax.Array) -> np.ndarray:
    """A global array [B, ...] of any sharding -> the whole of it as numpy, in every process (so all must call)."""
    if array.is_fully_addressable:
        return np.asarray(array)
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def my_share(array: jax.Array, axis: int = 0) -> np.ndarray:
    """A global array split over the mesh in `axis` -> this process's part, as `put_batch` took it."""
    if array.is_fully_addressable:
        return np.asarray(array)
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[axis].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards], axis)


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
