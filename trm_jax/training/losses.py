"""Losses and scores per example. Labels of IGNORE are not looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

Array = jax.Array
IGNORE = -100


def log_stablemax(a: Array) -> Array:
    """log(s(a) / sum s(a)) over the last axis, with s(a) = a + 1 if a >= 0 else 1 / (1 - a).

    The published code computes s, the quotient and its logarithm in float64 (and adds 1e-30 to 1 - a, which
    changes nothing even there). Here log s is formed from log1p directly, which float32 holds to its last
    digits; no branch divides by zero, so that gradients need no guard.
    """
    above, below = jnp.maximum(a, 0), jnp.minimum(a, 0)
    s = (1 + above) / (1 - below)
    return jnp.log1p(above) - jnp.log1p(-below) - jnp.log(jnp.sum(s, axis=-1, keepdims=True))


def stablemax_cross_entropy(logits: Array, labels: Array) -> Array:
    """Per token: logits float32 [..., V], labels int [...] >= 0 -> [...]."""
    return -jnp.take_along_axis(log_stablemax(logits), labels[..., None], axis=-1)[..., 0]


TOKEN_LOSSES: dict[str, Callable[[Array, Array], Array]] = {
    "stablemax_cross_entropy": stablemax_cross_entropy,
    "softmax_cross_entropy": optax.softmax_cross_entropy_with_integer_labels,
}


def per_example(loss_type: str, logits: Array, labels: Array) -> Array:
    """Mean loss over the labelled tokens of each example: [B, S, V], [B, S] -> float32 [B]; 0 without any."""
    labelled = labels != IGNORE
    token = TOKEN_LOSSES[loss_type](logits, jnp.where(labelled, labels, 0))
    count = jnp.sum(labelled, axis=-1, dtype=token.dtype)
    return jnp.sum(jnp.where(labelled, token, 0), axis=-1) / jnp.maximum(count, 1)


def binary_cross_entropy(logits: Array, target: Array) -> Array:
    """Of a logit and a probability (or a bool), elementwise."""
    return optax.sigmoid_binary_cross_entropy(logits, target.astype(logits.dtype))


class Scores(NamedTuple):
    """Per example. An example without a label is not valid and right nowhere."""

    valid: Array  # bool [B]
    cell: Array  # float32 [B], share of labelled tokens that are right
    exact: Array  # bool [B], all of them are


def scores(answer: Array, labels: Array) -> Scores:
    """answer, labels int [B, S]."""
    labelled = labels != IGNORE
    count = jnp.sum(labelled, axis=-1, dtype=jnp.float32)
    right = jnp.sum(labelled & (answer.astype(labels.dtype) == labels), axis=-1, dtype=jnp.float32)
    return Scores(valid=count > 0, cell=right / jnp.maximum(count, 1), exact=(right == count) & (count > 0))
