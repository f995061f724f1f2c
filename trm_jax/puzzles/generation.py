"""What generators share: threads over a kernel, and the distinct puzzles of an endless stream of candidates."""

import concurrent.futures
import os
from collections.abc import Callable

import numpy as np

from trm_jax.puzzles import PuzzleError

_CHUNK = 32  # puzzles per call of a kernel, at most
_BLOCK = 16_384  # candidates at once, at most


def in_threads(work: Callable[[slice], None], count: int) -> None:
    """work on slices of range(count), on every core that this process may use; the kernels release the GIL."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    chunk = min(-(-count // cores), _CHUNK) or 1
    parts = [slice(i, min(i + chunk, count)) for i in range(0, count, chunk)]
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        list(pool.map(work, parts))


def distinct(n: int, candidates: Callable[[int, int], tuple[np.ndarray, ...]], patience: int,
             what: str) -> tuple[np.ndarray, ...]:
    """The first n good candidates whose inputs differ: their columns.

    Args:
      candidates: (first, count) -> (good bool [count], inputs [count, S], further columns [count, ...]) of the
        candidates number first, first + 1, ..., each a function of its number alone.
      patience: so many candidates in a row that bring nothing new are the end: PuzzleError.
      what: the puzzles, for that message.
    """
    seen, kept, first, barren = set(), [], 0, 0
    while not kept or len(seen) < n:
        count = min(max(n - len(seen), first), _BLOCK)  # the rarer the good ones, the larger the next block
        good, *columns = candidates(first, count)
        fresh = []
        for i, puzzle in enumerate(columns[0]):
            if good[i] and (key := puzzle.tobytes()) not in seen:
                seen.add(key)
                fresh.append(i)
                barren = 0
            else:
                barren += 1
            if len(seen) == n:
                break
            if barren > patience:
                raise PuzzleError(f"found only {len(seen)} of {n} different {what}: the last {barren} tries brought "
                                  "nothing new")
        kept.append([column[fresh] for column in columns])
        first += count
    return tuple(map(np.concatenate, zip(*kept, strict=True)))
