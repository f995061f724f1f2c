"""What parameters start from."""

from __future__ import annotations

import jax
import jax.numpy as jnp

TRUNCATED_STD = 0.87962566103423978  # std of a standard normal that is cut at 2 sigma


def truncated_normal(std: float):
    """Initialiser: normal cut at 2 sigma, rescaled so that `std` is the std after the cut."""
    def init(key, shape, dtype=jnp.float32):
        return jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype) * jnp.asarray(std / TRUNCATED_STD, dtype)
    return init
