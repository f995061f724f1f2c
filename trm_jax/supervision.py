"""Training contracts: what a batch is asked for, and what a slot takes along to the next step.

A contract answers three questions, with pure functions of arrays:

    initial_carry(batch_size)                         what the slots hold before the first step
    begin(fixed, carry, batch, key)                   which puzzle and which latents each slot starts from
    loss(params, rows, start, H, L, key)              the loss, and what the slots hold afterwards

The trainer knows no more than that. Terminal supervision (RSM) is here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from trm_jax import losses, recursion
from trm_jax.config import Experiment
from trm_jax.models.network import Model
from trm_jax.recursion import Latents

Array = jax.Array


class Batch(NamedTuple):
    inputs: Array  # int32 [B, S]
    labels: Array  # int32 [B, S], losses.IGNORE where unlabelled
    puzzle_identifiers: Array  # int32 [B]


class Slots(NamedTuple):
    """A puzzle and the latents with which work on it goes on."""

    batch: Batch
    latents: Latents


class Sums(NamedTuple):
    """Over a batch; divide by count."""

    count: Array  # float32 [], examples with a label
    loss: Array
    cell_accuracy: Array
    exact_accuracy: Array


@dataclasses.dataclass(frozen=True)
class SlotDraw:
    """Draws per slot that do not depend on how the batch is split over devices: every device draws for the
    whole batch and keeps its own part."""

    global_batch_size: int
    first: int | Array  # this device's first slot

    def bernoulli(self, key: Array, probability: float, b: int) -> Array:
        coins = jax.random.bernoulli(key, probability, (self.global_batch_size,))
        return lax.dynamic_slice(coins, (self.first,), (b,))

    def indices(self, b: int) -> Array:
        return self.first + jnp.arange(b, dtype=jnp.int32)


@dataclasses.dataclass(frozen=True)
class Terminal:
    """RSM: H outer cycles within one step, loss on the last one only, no carry between steps.

    Ours, off by default (`deepen` in the config), because states deeper than H are otherwise never trained on
    and right answers need not stay right there:
    - a share of the slots keeps its puzzle and its detached latents for the next step with some probability;
    - a share of the steps draws H log-uniformly from the curriculum's H up to tail_max_H.
    """

    model: Model
    experiment: Experiment

    def initial_carry(self, batch_size: int) -> Any:
        """Slots of empty puzzles, or () where nothing is ever kept."""
        if not self.experiment.deepen.carry_share:
            return ()
        S, D = self.model.shape.seq_len, self.model.arch.hidden_size
        empty = jnp.zeros((self.model.T, batch_size, D), self.model.arch.forward_dtype)
        batch = Batch(jnp.zeros((batch_size, S), jnp.int32), jnp.full((batch_size, S), losses.IGNORE, jnp.int32),
                      jnp.zeros((batch_size,), jnp.int32))
        return Slots(batch, Latents(empty, empty))

    def begin(self, fixed, carry, batch: Batch, key: Array, draw: SlotDraw) -> Slots:
        b = batch.inputs.shape[0]
        fresh = Slots(batch, self.model.initial_latents(fixed, b))
        if carry == ():
            return fresh
        deepen = self.experiment.deepen
        may = draw.indices(b) < round(deepen.carry_share * draw.global_batch_size)
        held = jnp.any(carry.batch.labels != losses.IGNORE, axis=1)  # nothing is held before the first step
        keep = may & held & draw.bernoulli(key, deepen.carry_keep_prob, b)

        def choose(axis, old, new):
            return jnp.where(jnp.expand_dims(keep, [i for i in range(new.ndim) if i != axis]), old, new)
        return Slots(jax.tree.map(lambda o, n: choose(0, o, n), carry.batch, batch),
                     jax.tree.map(lambda o, n: choose(1, o, n), carry.latents, fresh.latents))

    def depth(self, H: Array, key: Array) -> Array:
        """H of this step: the curriculum's, or with tail_prob log-uniform from there to tail_max_H."""
        deepen = self.experiment.deepen
        if not deepen.tail_prob:
            return H
        k_coin, k_depth = jax.random.split(key)
        low = jnp.asarray(H, jnp.float32)
        deep = low * (deepen.tail_max_H / low) ** jax.random.uniform(k_depth, dtype=jnp.float32)
        return jnp.where(jax.random.bernoulli(k_coin, deepen.tail_prob), jnp.round(deep).astype(jnp.int32), H)

    def loss(self, params, rows: Array, start: Slots, H: Array, L: int, key: Array) -> tuple[Array, tuple[Any, Sums]]:
        """Sum over the batch of the per-example losses, and (carry, sums)."""
        k_depth, k_coin = jax.random.split(key)
        core = self.model.core(params)
        x = self.model.embed(params, start.batch.inputs, rows)
        H = self.depth(H, k_depth)

        keep_transition_prob = 1.0 - self.model.arch.prob_detach_prev_H
        if keep_transition_prob > 0:
            latents = recursion.warm_up(core, start.latents, x, H - 2, L)
            keep = jax.random.bernoulli(k_coin, keep_transition_prob)
            latents = recursion.transition(core, latents, x, L, keep)
        else:
            latents = recursion.warm_up(core, start.latents, x, H - 1, L)
        latents = recursion.outer_cycle(core, latents, x, L)

        logits = self.model.logits(params, latents.y)
        loss = jnp.sum(losses.per_example(self.model.arch.loss.loss_type, logits, start.batch.labels))
        scores = losses.scores(jnp.argmax(logits, axis=-1), start.batch.labels)
        sums = Sums(count=jnp.sum(scores.valid, dtype=jnp.float32), loss=loss,
                    cell_accuracy=jnp.sum(scores.cell), exact_accuracy=jnp.sum(scores.exact, dtype=jnp.float32))
        carry = () if not self.experiment.deepen.carry_share else Slots(start.batch, lax.stop_gradient(latents))
        return loss, (carry, lax.stop_gradient(sums))
