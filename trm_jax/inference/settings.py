"""How much to think about a puzzle, and when to stop."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from trm_jax.inference.choice import CRITERIA, ORDER
from trm_jax.runtime.errors import UserError

VARY = ("symmetry", "guess", "start", "cycle", "draw")


class InferenceError(UserError):
    """Settings that cannot work; the message names them."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much to think, and when to stop. 0 switches a rule or a budget off."""

    max_cycles: int = 256  # of one try
    settle: int = 8  # stop when the answer has stood still for so many cycles
    tolerance: float = 0.0  # stop when |new - old| / |new| of the latents is at most this
    max_calls: int = 0  # core calls for one puzzle, all its tries together
    max_seconds: float = 0.0  # for all puzzles together, compiling included
    puzzle_seconds: float = 0.0  # for the guesses about one puzzle
    tries: int = 1  # of each puzzle; the first is the plain one
    # What tells them apart: noise at the start or in every cycle, a symmetry of the puzzle, guessed cells (see
    # guesses.py; the plain try comes first, and has max_cycles), or what the network draws itself.
    vary: Literal["start", "cycle", "symmetry", "guess", "draw"] = "symmetry"
    guess_cycles: int = 16  # of a try with guesses
    sigma: float = 0.3  # standard deviation of the noise (vary: start, cycle)
    choose: tuple[str, ...] = ORDER  # see `choose`
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self):
        def need(ok: bool, name: str, rule: str):
            if not ok:
                raise InferenceError(f"{name} = {getattr(self, name)!r}: {rule}")
        for name, (low, high) in RANGES.items():
            value, whole = getattr(self, name), isinstance(getattr(Settings, name), int)
            need(isinstance(value, (int, np.integer) if whole else (int, float, np.number))
                 and not isinstance(value, bool), name, f"must be {'an integer' if whole else 'a number'}")
            need(low <= value <= high, name,  # what is not a number is not
                 ("must not be negative" if low == 0 else f"must be at least {low}") if value < low
                 else f"must be at most {high:,}")
        need(self.vary in VARY, "vary", f"must be one of {', '.join(VARY)}")
        need(self.tries == 1 or self.vary in ("symmetry", "guess", "draw") or self.sigma > 0, "sigma",
             "tries that differ by noise need some of it")
        need(len(self.choose) > 0 and set(self.choose) <= set(CRITERIA), "choose",
             f"must be some of {', '.join(CRITERIA)}, the first one first")


# Smallest and largest value of each number. The device counts cycles in int32.
RANGES = {"max_cycles": (1, 2**31 - 1), "settle": (0, 2**31 - 1), "tolerance": (0, 1e9), "max_calls": (0, 2**62),
          "max_seconds": (0, 1e9), "puzzle_seconds": (0, 1e9),
          "guess_cycles": (1, 2**20), "tries": (1, 2**31 - 1), "sigma": (0, 1e9), "batch_size": (1, 2**20),
          "seed": (0, 2**63 - 1)}
