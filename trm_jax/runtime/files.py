"""Files that are never seen half-written, whose bytes are checked, and that one process at a time may write."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trm_jax.runtime.errors import UserError


class JsonError(UserError):
    """A file that cannot be read; the message says which and why."""


def write_json(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    """Writes a JSON file, as `write_file` does.

    Arrays become lists, and not-a-number and infinities strings, as in `MetricWriter.write`.
    """
    write_file(path, json.dumps(plain_json(value), indent=2, allow_nan=False) + "\n")


def give(args: Any, result: Mapping[str, Any], shown: str) -> None:
    """Prints a command's result as its --format says, and writes it to its --out (arguments.add_result)."""
    if args.out:
        write_json(args.out, result)
    print(json.dumps(result, indent=2) if args.format == "json" else shown)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Raises JsonError, in one line, for a file that cannot be read or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise JsonError(f"{os.fspath(path)} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise JsonError(f"{os.fspath(path)} is not JSON ({error})") from error


def write_file(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file that is never seen half-written (temporary name, fsync, rename); makes its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def plain_json(value: Any) -> Any:
    """The same with only what JSON has: lists for arrays and tuples, strings for what is not finite."""
    if isinstance(value, Mapping):
        return {str(name): plain_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if hasattr(value, "dtype"):
        return plain_json(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


# Checksums.


def digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(root: str | os.PathLike[str], folders: Sequence[str | os.PathLike[str]]) -> dict[str, str]:
    """Path from `root` -> `digest`, of every file in some of its folders."""
    found = sorted(path for folder in folders for path in Path(folder).rglob("*") if path.is_file())
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return dict(zip((path.relative_to(root).as_posix() for path in found), pool.map(digest, found)))


def compare(root: str | os.PathLike[str], sums: Any) -> None:
    """Reads the files that `digests` found once more.

    Raises:
      ValueError: one of them has changed, or `sums` is not what `digests` returns.
      OSError: one of them is missing, or cannot be read.
    """
    if not isinstance(sums, dict) or not sums:
        raise ValueError("its checksums are damaged")
    for name in sums:  # before the work of reading
        if not (Path(root) / name).is_file():
            raise FileNotFoundError(f"{name} is missing")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for name, found in zip(sums, pool.map(digest, [Path(root) / name for name in sums])):
            if found != sums[name]:
                raise ValueError(f"{name} is not as it was written (its checksum differs)")


# Locks.


class LockedError(UserError):
    """Another process writes there; the message says which."""


@contextlib.contextmanager
def lock(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Holds the lock of this name in the block: an operating-system lock, which ends with its process.

    Args:
      path: the file of the lock. It says who holds it, and is removed at the end; one that a kill has left locks
        nothing.
      what: is locked, for the message.

    Raises:
      LockedError: another process holds it.
    """
    path = Path(path)
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            file.close()
            raise LockedError(f"{what} is in use by {holder}. Wait until it has ended, or end it") from None
        except OSError:  # a file system without locks
            break
        try:
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                break
        except FileNotFoundError:
            pass
        file.close()  # its last holder has removed it since it was opened here
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
