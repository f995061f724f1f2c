"""The state that a checkpoint holds."""

from __future__ import annotations

from typing import Any, NamedTuple

from trm_jax.recursion import Leaf


class TrainState(NamedTuple):
    """Everything that the next step depends on, but for the batch."""

    step: Leaf  # int32 [], updates done
    params: Any  # trained by gradient descent
    fixed: Any  # H_init, L_init [D]
    table: Leaf  # [num_puzzle_identifiers, puzzle_emb_ndim]; None without a prefix
    opt_state: Any
    ema: Any  # like params, or () without EMA
    key: Leaf  # of the run; step t uses fold_in(key, t)
    carry: Any  # what the slots hold, see supervision.py
