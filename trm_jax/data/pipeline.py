"""From a dataset folder to batches of numpy arrays: a Grain pipeline whose position can be saved.

A record is a whole batch. What batch k of epoch e holds is a function of (seed, e, k) alone: not of the number of
processes, of prefetching, or of what was read before. Hence every process draws the same global batch and reads only
its own rows of it, and a restored position continues bit for bit without replaying anything.

Epochs as in the published code: each group once, in random order; of each group one of its puzzles, at random; of that
puzzle its examples in random order, as many as the batch still holds. An incomplete last batch is dropped.

B global batch, b rows of it for this process, S tokens, E examples, P puzzles, G groups (see `store`).
"""

from __future__ import annotations

import atexit
import dataclasses
import weakref
from collections.abc import Iterator
from typing import Any

import grain
import grain.experimental
import numpy as np

from trm_jax.data.dataset import IGNORE_LABEL_ID, DatasetError, Split

Batch = dict[str, np.ndarray]

# Augmentation and fresh labels draw from one stream for each so many rows of the global batch. A process works only on
# the blocks that touch its rows, and still gets the rows that any other number of processes would get.
BLOCK_ROWS = 64
LABELS = ("fixed", "random_path")

_open: weakref.WeakSet[grain.DatasetIterator] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Grain's own clean-up of an iterator that is alive at the end comes too late and fails with a traceback."""
    for batches in list(_open):
        batches.close()


_ORDER, _EXAMPLES, _AUGMENT, _LABELS = range(4)  # independent random streams


def train_batches(split: Split, domain=None, *, global_batch_size: int, seed: int = 0, augment: bool = False,
                  labels: str = "fixed", process_index: int = 0, process_count: int = 1,
                  prefetch: int = 2) -> grain.DatasetIterator:
    """Endless iterator over {"inputs", "labels": [b, S], "puzzle_identifiers": [b]}, all int32, ignored labels -100.

    b = global_batch_size / process_count; process i gets rows [i*b, (i+1)*b) of the global batch.
    `get_state()` is a small dict for JSON: the position after the last batch handed out, whatever was prefetched.
    `set_state(state)` continues there, also with another process_count. `close()` stops the background thread.

    Args:
      domain: puzzle domain; needed for augmentation, and if given its sequence and vocabulary must be the split's.
      augment: a fresh symmetry of the domain for every example each time it is drawn.
      labels: "fixed": as stored. "random_path": one of the shortest paths of each maze, fresh each time it is drawn.
      prefetch: batches prepared ahead by a background thread; 0: no thread.
    """
    meta = split.metadata
    if seed < 0:
        raise DatasetError(f"{seed=} must not be negative")
    if domain is not None and (domain.seq_len, domain.vocab_size) != (meta.seq_len, meta.vocab_size):
        raise DatasetError(
            f"the dataset has seq_len {meta.seq_len} and vocab_size {meta.vocab_size}, the domain {domain.name} has "
            f"{domain.seq_len} and {domain.vocab_size}; choose the domain that the dataset was made for")
    if augment and domain is None:
        raise DatasetError("augment=True needs a domain")
    if labels not in LABELS:
        raise DatasetError(f"{labels=} is unknown; there are {', '.join(LABELS)}")
    if labels == "random_path" and not (domain and domain.has_several_answers):
        raise DatasetError(f"{labels=} is for mazes, not for {domain.name if domain else 'no domain'}")
    _slice_of(global_batch_size, process_index, process_count)
    most = int(np.maximum.reduceat(np.diff(split.puzzle_indices), split.group_indices[:-1]).sum())
    if most < global_batch_size:
        raise DatasetError(
            f"the training set has {split.num_groups} groups, which fill at most {most} rows in an epoch, but a batch "
            f"has {global_batch_size}: every epoch would be dropped. Set global_batch_size to {most} or less, or make "
            f"a larger training set")
    batches = _Prefetched(
        _TrainIterator(split, domain, augment, labels, global_batch_size, seed, process_index, process_count), prefetch)
    _open.add(batches)
    return batches


def test_batches(split: Split, batch_size: int, *, process_index: int = 0, process_count: int = 1,
                 rows: np.ndarray | None = None) -> Iterator[Batch]:
    """Every example once, in order; as `train_batches` plus "valid" [b] bool. All processes get equally many batches.

    Rows without an example (of the last batch) have pad inputs, ignored labels, the blank identifier and valid False.

    Args:
      batch_size: B, over all processes.
      rows: [n] the examples to read, in this order, instead of all.
    """
    meta = split.metadata
    local = _slice_of(batch_size, process_index, process_count)
    rows = np.arange(split.num_examples) if rows is None else np.asarray(rows)

    def batches():
        for start in range(0, len(rows), batch_size):
            examples = rows[start:start + batch_size][local]
            puzzles = np.searchsorted(split.puzzle_indices, examples, side="right") - 1
            batch = _to_batch(split, split.inputs[examples], split.labels[examples], puzzles)
            pad = local.stop - local.start - len(examples)
            fill = {"inputs": meta.pad_id, "labels": IGNORE_LABEL_ID, "puzzle_identifiers": meta.blank_identifier_id}
            batch = {name: np.concatenate([array, np.full((pad, *array.shape[1:]), fill[name], array.dtype)])
                     for name, array in batch.items()}
            yield batch | {"valid": np.arange(pad + len(examples)) < len(examples)}

    return batches()


test_batches.__test__ = False  # not a test, whatever its name says to pytest


@dataclasses.dataclass(frozen=True)
class EpochPlan:
    """One epoch: which puzzles, in which order, and where its batches begin."""

    puzzles: np.ndarray  # [G] one puzzle of each group, in the order of the epoch
    bounds: np.ndarray  # [n+1] batch k takes puzzles[bounds[k]:bounds[k+1]], the last one perhaps only in part

    @property
    def num_batches(self) -> int:
        return len(self.bounds) - 1


def plan_epoch(split: Split, global_batch_size: int, seed: int, epoch: int) -> EpochPlan:
    rng = _rng(seed, _ORDER, epoch)
    order = rng.permutation(split.num_groups)
    first = split.group_indices[order]
    puzzles = first + (rng.random(len(order)) * (split.group_indices[order + 1] - first)).astype(first.dtype)
    rows = np.cumsum(split.puzzle_indices[puzzles + 1] - split.puzzle_indices[puzzles])  # [G] rows up to and with it
    bounds, done = [0], 0  # a batch begins with a whole puzzle: what did not fit into the last one is left out
    while rows[-1] - done >= global_batch_size:
        bounds.append(int(np.searchsorted(rows, done + global_batch_size)) + 1)
        done = rows[bounds[-1] - 1]
    return EpochPlan(puzzles, np.array(bounds))


class _Prefetched(grain.experimental.ThreadPrefetchDatasetIterator):
    """Grain's: state after the batch handed out. Closes once only, so never while the interpreter is taken apart."""

    def close(self) -> None:
        if not self._closed:
            super().close()


class _TrainIterator(grain.DatasetIterator):
    """Computes batches where it is asked; knows no threads."""

    def __init__(self, split: Split, domain, augment: bool, labels: str, global_batch_size: int, seed: int,
                 process_index: int, process_count: int):
        super().__init__()
        self._split, self._domain, self._seed, self._size = split, domain, seed, global_batch_size
        self._augment, self._labels = augment, labels
        self._local = _slice_of(global_batch_size, process_index, process_count)
        self._epoch, self._batch = 0, 0  # the batch to come
        self._plan: EpochPlan | None = None  # of self._epoch
        self._one_example_per_puzzle = bool(np.all(np.diff(split.puzzle_indices) == 1))

    def get_state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "batch": self._batch} | self._identity()

    def set_state(self, state: dict[str, Any]) -> None:
        """Raises DatasetError if it is not a position of this pipeline."""
        state = {"labels": "fixed"} | state  # positions of older runs do not say
        for name, here in self._identity().items():
            if state.get(name) != here or isinstance(state[name], bool) != isinstance(here, bool):
                raise DatasetError(f"the saved position of the input pipeline has {name} = {state.get(name)!r}, "
                                   f"but here it is {here!r}: it cannot be continued")
        if unknown := sorted(set(state) - {"epoch", "batch", *self._identity()}):
            raise DatasetError(f"the saved position of the input pipeline has {', '.join(unknown)}: unknown here")
        for name in ("epoch", "batch"):
            if type(value := state.get(name)) is not int or not 0 <= value < 2**31:
                raise DatasetError(f"the saved position of the input pipeline has {name} = {value!r}: it must be a "
                                   "whole number of at least 0")
        plan = plan_epoch(self._split, self._size, self._seed, state["epoch"])
        if state["batch"] > plan.num_batches:
            raise DatasetError(f"the saved position of the input pipeline has batch = {state['batch']}, but there are "
                               f"{plan.num_batches} batches in epoch {state['epoch']}")
        self._epoch, self._batch, self._plan = state["epoch"], state["batch"], plan

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a position to mean the same batch."""
        return {"seed": self._seed, "global_batch_size": self._size, "augment": self._augment,
                "labels": self._labels, "examples": self._split.num_examples, "groups": self._split.num_groups}

    def __next__(self) -> Batch:
        if self._closed:
            raise ValueError("this input pipeline is closed")
        if self._plan is None:
            self._plan = plan_epoch(self._split, self._size, self._seed, self._epoch)
        while self._batch >= self._plan.num_batches:
            self._epoch, self._batch = self._epoch + 1, 0
            self._plan = plan_epoch(self._split, self._size, self._seed, self._epoch)
        examples, puzzles = self._rows(self._plan, self._batch)  # [B]
        low, high = self._local.start, self._local.stop
        if not self._augment and self._labels == "fixed":
            inputs, labels = self._split.inputs[examples[low:high]], self._split.labels[examples[low:high]]
        else:
            inputs, labels = self._fresh(examples)
        self._batch += 1
        return _to_batch(self._split, inputs, labels, puzzles[low:high])

    def _rows(self, plan: EpochPlan, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Examples [B] and their puzzles [B] of one global batch."""
        indices = self._split.puzzle_indices
        puzzles = plan.puzzles[plan.bounds[batch]:plan.bounds[batch + 1]]
        if self._one_example_per_puzzle:
            return indices[puzzles], puzzles
        sizes = indices[puzzles + 1] - indices[puzzles]
        place = np.repeat(np.arange(len(puzzles)), sizes)  # which puzzle of the batch a row belongs to
        start = np.cumsum(sizes) - sizes
        examples = np.arange(len(place)) - start[place] + indices[puzzles][place]
        keys = _rng(self._seed, _EXAMPLES, self._epoch, batch).random(len(place))
        shuffled = np.lexsort((keys, place))[:self._size]  # within each puzzle; only the last one can be cut
        return examples[shuffled], puzzles[place[:self._size]]

    def _fresh(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low, high = self._local.start, self._local.stop
        blocks = []
        for block in range(low // BLOCK_ROWS, -(-high // BLOCK_ROWS)):
            rows = examples[block * BLOCK_ROWS:(block + 1) * BLOCK_ROWS]
            inputs, labels = self._split.inputs[rows], self._split.labels[rows]
            place = self._epoch, self._batch, block
            if self._labels == "random_path":  # before the symmetry, which could turn a path but not a rule
                labels = self._domain.draw_answers(inputs, _rng(self._seed, _LABELS, *place))
            if self._augment:
                inputs, labels = self._domain.augment(inputs, labels, _rng(self._seed, _AUGMENT, *place))
            blocks.append((inputs, labels))
        skip = low % BLOCK_ROWS
        inputs, labels = (np.concatenate(parts)[skip:skip + high - low] for parts in zip(*blocks, strict=True))
        return inputs, labels


def _rng(seed: int, stream: int, epoch: int, batch: int = 0, block: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream, epoch, batch, block))))


def _slice_of(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size < 1 or process_count < 1 or batch_size % process_count:
        raise DatasetError(f"a global batch of {batch_size} cannot be shared by {process_count} processes; "
                           f"it must be a multiple of {process_count}")
    if not 0 <= process_index < process_count:
        raise DatasetError(f"{process_index=} must be from 0 to {process_count - 1}")
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


def _to_batch(split: Split, inputs: np.ndarray, labels: np.ndarray, puzzles: np.ndarray) -> Batch:
    labels = labels.astype(np.int32)
    if split.metadata.ignore_label_id is not None:
        np.putmask(labels, labels == split.metadata.ignore_label_id, IGNORE_LABEL_ID)
    return {"inputs": inputs.astype(np.int32), "labels": labels,
            "puzzle_identifiers": split.puzzle_identifiers[puzzles].astype(np.int32)}
