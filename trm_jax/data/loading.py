"""A dataset folder together with the domain that it belongs to."""

from __future__ import annotations

import dataclasses
import pathlib

import jax

from trm_jax import puzzles
from trm_jax.config import Experiment
from trm_jax.data import dataset
from trm_jax.data.shape import Shape
from trm_jax.runtime import distributed

TEST_PUZZLES = "test_puzzles.json"  # ARC: the tasks that are tested, with their answers


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset folder and the domain it belongs to."""

    train: dataset.Split
    test: dataset.Split
    domain: puzzles.Domain

    @classmethod
    def load(cls, experiment: Experiment) -> Dataset:
        """Raises DatasetError, in all processes of a run alike, with the command that makes a missing folder."""
        d, share = experiment.data, (jax.process_index(), jax.process_count())
        train, test = distributed.agreed(lambda: [dataset.load(d.path, split, make=d.how_to_make, share=share)
                                                  for split in ("train", "test")])
        for field in ("seq_len", "vocab_size", "num_puzzle_identifiers"):
            a, b = getattr(train.metadata, field), getattr(test.metadata, field)
            if a != b:
                raise dataset.DatasetError(f"{d.path}: {field} is {a} in train but {b} in test")
        domain = dataset.load_domain(d.path, d.puzzle, train.metadata.seq_len)
        if domain.name != d.puzzle:
            raise dataset.DatasetError(f"{d.path} is a {domain.name} dataset, but data.puzzle = {d.puzzle!r}")
        if (columns := experiment.arch.rope_columns) not in (0, domain.grid[1]):
            raise dataset.DatasetError(f"arch.rope_columns = {columns}, but the grids of {d.path} have "
                                       f"{domain.grid[1]} "
                                     "columns")
        if domain.identifies_tasks and not (pathlib.Path(d.path) / TEST_PUZZLES).is_file():
            raise dataset.DatasetError(f"{d.path} has no {TEST_PUZZLES} (HRM's build writes none), without which no "
                                       f"answer can be scored; take another data.path, made with {d.how_to_make}")
        return cls(train, test, domain)

    @property
    def shape(self) -> Shape:
        m = self.train.metadata
        return Shape(m.seq_len, m.vocab_size, m.num_puzzle_identifiers, self.domain.units)
