"""For tests: a model of 4x4 Sudokus that needs as many cycles as the puzzle has blanks, so that all can be counted."""

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax import puzzles, recursion
from trm_jax.config import Arch
from trm_jax.models.network import Bound, Weights
from trm_jax.recursion import Latents

DOMAIN = puzzles.get("sudoku", seq_len=16)
GRID = DOMAIN.encode("1234 3412 2143 4321")
NEVER = 15  # a puzzle with as many blanks is never answered


class Scripted:
    """A model whose answer changes in every cycle up to the number of the puzzle's blanks, and is right from then on.

    Latents [T, B, 2]: outer cycles done, blanks.
    """

    test_step = staticmethod(recursion.outer_cycle)
    test_cycles = 1
    arch = Arch()
    draws = False

    def bind(self, weights=None, L=2):
        return Bound(self, weights or Weights({}, {}, None), L)

    def rows(self, table, identifiers):
        return jnp.zeros((identifiers.shape[0], 0))

    def embed(self, params, inputs, rows):
        blanks = jnp.broadcast_to((inputs == 1).sum(1).astype(jnp.float32)[None], inputs.T.shape)
        return jnp.stack([jnp.zeros_like(blanks), blanks], axis=-1)

    def core(self, params):
        return lambda s, i: jnp.stack([s[..., 0] + 1, jnp.where(s[..., 1] == 0, i[..., 1], s[..., 1])], axis=-1)

    draws = False

    def keys(self, inputs):
        return None

    def initial_latents(self, fixed, B, keys=None):
        return Latents(*jnp.zeros((2, 16, B, 2)))

    def answer(self, params, y):
        H, blanks = y[..., 0].T.astype(jnp.int32), y[..., 1].T.astype(jnp.int32)  # [B, S]
        grid = jnp.broadcast_to(jnp.asarray(GRID, jnp.int32)[None], H.shape)
        right = (H >= blanks) & (blanks < NEVER) & (H > 0)
        return jnp.where(right, grid, 2 + (grid - 1 + H % 2) % 4).astype(jnp.uint8)

    def q_halt(self, params, y):
        return y[0, :, 0] - y[0, :, 1]

    def logits(self, params, y):
        return 3 * jax.nn.one_hot(self.answer(params, y), 6)


def blanked(blanks: int) -> np.ndarray:
    return np.where(np.arange(16) < blanks, 1, GRID).astype(np.uint8)


def text(blanks: int) -> str:
    return DOMAIN.decode(blanked(blanks))
