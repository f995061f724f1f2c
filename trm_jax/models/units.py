"""Mixing through the units of a puzzle's rules (rows, columns, boxes), the same for all of them.

A network that mixes tokens by their positions has to learn every row anew. Here a token sends what it has to say to its
groups, and hears what they hold, whichever they are; so each puzzle teaches as much as all of its cells. Nothing says
where a token is: the network treats alike whatever stands in the same relation to others, and with `candidates` all
values too, exactly.

What is new is the combination with the papers' recursions; the ideas are those of recurrent relational networks
(arXiv:1711.08028: cells that share a unit send messages), deep sets (arXiv:1703.06114: a group is a sum over its
members) and SE-RRM (arXiv:2603.02193: a token for each value of a cell).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from trm_jax import config
from trm_jax.data.shape import Shape
from trm_jax.models.initialisers import truncated_normal

FIRST_VALUE = 2  # tokens of a domain with units: 0 pad, 1 blank, then the values that an answer may hold
NO_VALUE = -1e9  # logit of those that are none
STATES = 3  # of a candidate: open, given, or ruled out because another value is given


class Units(NamedTuple):
    """How tokens are grouped: the domain's units (Domain.units, [K, S]), and how many candidates a cell has.

    `values` 0: a token is a cell. Otherwise it is a candidate, one of so many values in one cell, cell by cell; a
    cell's group is then the candidates of one value in it, and a cell with all of its candidates is a group as well.
    """

    of: tuple[tuple[int, ...], ...]
    values: int = 0

    @classmethod
    def read(cls, arch: config.Arch, shape: Shape) -> Units | None:
        """None where the network does not mix through units. Raises ConfigError where the puzzle has none."""
        if not arch.units:
            return None
        if not shape.units:
            raise config.ConfigError("arch.units = True: the rules of this puzzle have no units (rows, columns, boxes) "
                                     "to mix through; set it to False")
        return cls(shape.units, shape.vocab_size - FIRST_VALUE if arch.candidates else 0)

    @property
    def kinds(self) -> int:
        """Kinds of groups."""
        return len(self.of) + bool(self.values)

    @property
    def tokens(self) -> int:
        return len(self.of[0]) * max(1, self.values)

    def flops(self, width: int, hidden: int) -> int:
        """Floating-point operations of `UnitMixer` on one example: matrix products, 2 per multiply-add."""
        groups, each = sum(max(of) + 1 for of in self.of), max(1, self.values)
        sums = groups * each + (len(self.of[0]) if self.values else 0)
        return (4 * self.tokens * width * self.kinds * hidden + 2 * sums * hidden * width
                + 2 * groups * self.tokens * (hidden + width))


class UnitMixer(nn.Module):
    """A SwiGLU over features, h [T, B, D] -> [T, B, D], whose hidden values are summed over each token's groups, one
    share of them for each kind of group, before they are projected down."""

    hidden_size: int  # of one kind of group
    units: Units

    @nn.compact
    def __call__(self, h):
        (T, B, D), m, kinds = h.shape, self.hidden_size, self.units.kinds
        gate_up = self.param("gate_up", truncated_normal(D ** -0.5), (D, 2 * kinds * m)).astype(h.dtype)
        down = self.param("down", truncated_normal((kinds * m) ** -0.5), (kinds, m, D)).astype(h.dtype)
        both = h.reshape(T * B, D) @ gate_up
        # A third: the sum of nine terms that do not depend on each other has three times the spread of one.
        hidden = nn.silu(both[:, :kinds * m]) * both[:, kinds * m:] * jnp.asarray(1 / 3, h.dtype)
        hidden = hidden.reshape(T * B, kinds, m)
        S = T // max(self.units.values, 1)
        belongs, sent = [], []
        for k, groups in enumerate(self.units.of):
            belongs.append(jnp.asarray(np.eye(max(groups) + 1)[:, np.array(groups)], h.dtype))  # [groups, S]
            sums = belongs[k] @ hidden[:, k].reshape(S, -1)
            sent.append((sums.reshape(-1, m) @ down[k]).reshape(len(sums), -1))
        mixed = (jnp.concatenate(belongs).T @ jnp.concatenate(sent)).reshape(T, B, D)
        if self.units.values:
            sums = hidden[:, -1].reshape(S, -1, B, m).sum(axis=1, keepdims=True)
            mixed = (mixed.reshape(S, -1, B, D) + sums @ down[-1]).reshape(T, B, D)
        return mixed


def standing(tokens: jax.Array, values: int) -> jax.Array:
    """Cells int [B, S] -> candidates [B, S * values]: 0 open, 1 given, 2 ruled out because another value is given."""
    given = tokens[:, :, None]
    here = given == jnp.arange(FIRST_VALUE, FIRST_VALUE + values, dtype=tokens.dtype)[None, None]
    return jnp.where(given < FIRST_VALUE, 0, jnp.where(here, 1, 2)).reshape(len(tokens), -1)


def logits_of_candidates(scores: jax.Array, S: int) -> jax.Array:
    """float32 [T, B], a score for each candidate -> [B, S, V]; tokens that are no values get NO_VALUE."""
    values = scores.reshape(S, -1, scores.shape[1]).transpose(2, 0, 1)
    return jnp.pad(values, ((0, 0), (0, 0), (FIRST_VALUE, 0)), constant_values=NO_VALUE)
