"""A config made concrete by the shape of its data: model, curriculum, optimiser, contract."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from trm_jax.config import Experiment
from trm_jax.data import dataset
from trm_jax.data.shape import Shape
from trm_jax.models.network import Model, Weights
from trm_jax.training import optimizers
from trm_jax.training.curriculum import Curriculum
from trm_jax.training.state import TrainState
from trm_jax.training.supervision import CONTRACTS, DeepSupervision, Terminal


def total_steps(experiment: Experiment, train: dataset.Metadata) -> int:
    """Optimiser steps of a run: given, or epochs * groups * mean_puzzle_examples / batch as in the published code."""
    if experiment.total_steps:
        return experiment.total_steps
    steps = int(experiment.epochs * train.total_groups * train.mean_puzzle_examples / experiment.global_batch_size)
    if steps < 1:
        raise dataset.DatasetError(
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

    def train_flops(self, first: int, last: int) -> int:
        """Those of the steps from `first` to `last`, of the whole batch."""
        return sum(max(0, min(b, last) - max(a, first) + 1) * self.train_flops_per_example(H, L)
                   for a, b, H, L in self.curriculum.stages()) * self.experiment.global_batch_size

    def test_flops_per_example(self, H: int, L: int) -> int:
        """Matrix products to the depth H of H_test, decoded at each."""
        return H * (self.model.test_cycles * self.model.calls_flops(L + 1) + self.model.head_flops())
