"""What a run is made of: its data, its model, and the state that a checkpoint holds. Shared by the three jobs."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from trm_jax import optimizers, puzzles
from trm_jax.config import Experiment
from trm_jax.curriculum import Curriculum
from trm_jax.data import store
from trm_jax.models.network import Model, Shape
from trm_jax.supervision import CONTRACTS, DeepSupervision, Terminal

Array = jax.Array


class TrainState(NamedTuple):
    """Everything that the next step depends on, but for the batch."""

    step: Array  # int32 [], updates done
    params: Any  # trained by gradient descent
    fixed: Any  # H_init, L_init [D]
    table: Array | None  # [num_puzzle_identifiers, puzzle_emb_ndim]; None without a prefix
    opt_state: Any
    ema: Any  # like params, or () without EMA
    key: Array  # of the run; step t uses fold_in(key, t)
    carry: Any  # what the slots hold, see supervision.py


class Weights(NamedTuple):
    """What answering takes: the evaluated parameters (EMA if the run keeps one), latents and puzzle table."""

    params: Any
    fixed: Any
    table: Array | None


@dataclasses.dataclass(frozen=True)
class Data:
    """A dataset folder and the domain it belongs to."""

    train: store.Split
    test: store.Split
    domain: puzzles.Domain

    @classmethod
    def load(cls, experiment: Experiment) -> Data:
        """Raises store.DatasetError, with the command that makes the folder if it is missing."""
        d = experiment.data
        train, test = (store.load(d.path, split, make=d.how_to_make) for split in ("train", "test"))
        for field in ("seq_len", "vocab_size", "num_puzzle_identifiers"):
            a, b = getattr(train.metadata, field), getattr(test.metadata, field)
            if a != b:
                raise store.DatasetError(f"{d.path}: {field} is {a} in train but {b} in test")
        domain = store.load_domain(d.path, d.puzzle, train.metadata.seq_len)
        if domain.name != d.puzzle:
            raise store.DatasetError(f"{d.path} is a {domain.name} dataset, but data.puzzle = {d.puzzle!r}")
        if (columns := experiment.arch.rope_columns) not in (0, domain.grid[1]):
            raise store.DatasetError(f"arch.rope_columns = {columns}, but the grids of {d.path} have {domain.grid[1]} "
                                     "columns")
        return cls(train, test, domain)

    @property
    def shape(self) -> Shape:
        m = self.train.metadata
        return Shape(m.seq_len, m.vocab_size, m.num_puzzle_identifiers)


def total_steps(experiment: Experiment, train: store.Metadata) -> int:
    """Optimiser steps of a run: given, or epochs * groups * mean_puzzle_examples / batch as in the published code."""
    if experiment.total_steps:
        return experiment.total_steps
    steps = int(experiment.epochs * train.total_groups * train.mean_puzzle_examples / experiment.global_batch_size)
    if steps < 1:
        raise store.DatasetError(
            f"epochs = {experiment.epochs} over {train.total_groups} groups make no step of global_batch_size = "
            f"{experiment.global_batch_size}; set more epochs, total_steps, or a smaller batch")
    return steps


@dataclasses.dataclass(frozen=True)
class System:
    """A config made concrete by the shape of its data."""

    experiment: Experiment
    shape: Shape
    total_steps: int

    @functools.cached_property
    def model(self) -> Model:
        return Model(self.experiment.arch, self.shape)

    @functools.cached_property
    def curriculum(self) -> Curriculum:
        return Curriculum(self.experiment, self.total_steps)

    @functools.cached_property
    def optimizer(self):
        return optimizers.make(self.experiment, self.curriculum)

    @functools.cached_property
    def contract(self) -> Terminal | DeepSupervision:
        return CONTRACTS[self.experiment.arch.supervision](self.model, self.experiment)

    def init_state(self) -> TrainState:
        """The state before the first step, a function of the seed alone."""
        k_init, k_run = jax.random.split(jax.random.key(self.experiment.seed))
        params, fixed, table = self.model.init(k_init)
        return TrainState(
            step=jnp.zeros((), jnp.int32), params=params, fixed=fixed, table=table,
            opt_state=self.optimizer.init(params),
            ema=jax.tree.map(jnp.copy, params) if self.experiment.ema else (),
            key=k_run, carry=self.contract.initial_carry(self.experiment.global_batch_size))

    def weights(self, state: TrainState) -> Weights:
        return Weights(state.ema if self.experiment.ema else state.params, state.fixed, state.table)

    def train_flops_per_example(self, H: int, L: int) -> int:
        """Matrix products of one training step."""
        return self.contract.train_flops(H, L)

    def test_flops_per_example(self, H: int, L: int) -> int:
        """Matrix products to the depth H of H_test, decoded at each."""
        return H * (self.model.test_cycles * self.model.calls_flops(L + 1) + self.model.head_flops())
