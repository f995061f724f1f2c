"""Optimisers: AdamATan2 and AdamW for the network, sign-SGD for the rows of the puzzle table that a batch touches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from trm_jax.config import Experiment
from trm_jax.training.curriculum import Curriculum

Array = jax.Array


def scale_by_adam_atan2(b1: float, b2: float) -> optax.GradientTransformation:
    """Adam with the quotient replaced by an arc tangent: no epsilon, bounded, invariant to the gradients' scale.

        update = atan2(m, sqrt(v) / sqrt(1 - b2^t)) / (1 - b1^t)

    Source: Everett et al., "Scaling Exponents Across Parameterizations and Optimizers" (2024), in the form of
    the adam-atan2 package: the first moment's correction stands outside of the arc tangent, and neither
    argument is scaled.
    """
    def init(params):
        zeros = optax.tree.zeros_like(params)
        return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=zeros, nu=zeros)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, updates)
        count = state.count + 1
        c1 = 1 - b1 ** count.astype(jnp.float32)
        c2 = 1 - b2 ** count.astype(jnp.float32)
        updates = jax.tree.map(lambda m, v: jnp.arctan2(m, jnp.sqrt(v / c2)) / c1, mu, nu)
        return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def rescale_moments(inner: optax.GradientTransformation,
                    factor: Callable[[Array], Array]) -> optax.GradientTransformation:
    """Multiplies an Adam's moments by factor(step) before its update; step counts from 1."""
    def update(updates: Any, state: Any, params: Any = None) -> Any:
        by = factor(state.count + 1)
        state = state._replace(mu=jax.tree.map(lambda m: m * by, state.mu), nu=jax.tree.map(lambda v: v * by, state.nu))
        return inner.update(updates, state, params)
    return optax.GradientTransformation(inner.init, update)


def decays(params):
    """Like the parameters: does each of them decay?"""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in ("alpha_1", "alpha_2"), params)


def make(experiment: Experiment, curriculum: Curriculum) -> optax.GradientTransformation:
    """The network's optimiser: clip, Adam in either form, decoupled decay of every parameter, learning rate.

    Learned residual scales (alpha_1, alpha_2 of pre-norm blocks) do not decay, as in FPRM's published code.
    Clipping divides by the norm where PyTorch divides by the norm + 1e-6.
    """
    e = experiment
    if e.optimizer == "adam_atan2":
        adam = scale_by_adam_atan2(e.beta1, e.beta2)
    else:
        adam = optax.scale_by_adam(e.beta1, e.beta2, e.adam_eps)
    if e.optimizer_reset_scale != 1 and curriculum.growth_steps:
        adam = rescale_moments(adam, lambda step: jnp.where(curriculum.grows(step), e.optimizer_reset_scale, 1.0))
    return optax.chain(
        optax.clip_by_global_norm(e.grad_clip_norm) if e.grad_clip_norm else optax.identity(),
        adam,
        optax.add_decayed_weights(e.weight_decay, decays if e.arch.block == "pre_norm" else None),
        optax.scale_by_learning_rate(lambda count: e.lr * curriculum.learning_rate_factor(count + 1)
                                     * curriculum.trains_network(count + 1)),
    )


def touched_rows(ids: Array, rows: int) -> tuple[Array, Array]:
    """The distinct ids of a batch, padded: (distinct [K], slot of each id [B]), K = min(B, rows).

    Padding has the id `rows`, one past the table.
    """
    distinct, slots = jnp.unique(ids, size=min(ids.shape[0], rows), fill_value=rows, return_inverse=True)
    return distinct, slots


def sign_sgd(table: Array, distinct: Array, sums: Array, lr: Array, weight_decay: float) -> Array:
    """row = row * (1 - lr * wd) - lr * sign(summed gradient), for the rows of the batch and no others.

    Args:
      table: [rows, width].
      distinct: int [K] from `touched_rows`.
      sums: [K, width], gradients of equal ids added up. A dense gradient of the table is never formed.

    Source: models/sparse_embedding.py of the published code.
    """
    old = jnp.take(table, distinct, axis=0, mode="clip")
    new = old * (1 - lr * weight_decay) - lr * jnp.sign(sums)
    return table.at[distinct].set(new, mode="drop", unique_indices=True)
