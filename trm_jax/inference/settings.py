"""How much to think about a puzzle, and when to stop."""

from __future__ import annotations

import dataclasses
from typing import Literal

from trm_jax.inference.choice import CRITERIA, ORDER
from trm_jax.runtime.errors import UserError


class InferenceError(UserError):
    """Settings that cannot work; the message names them."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much to think, and when to stop. 0 switches a rule or a budget off."""

    max_cycles: int = 256  # of one job
    settle: int = 8  # stop when the answer has stood still for so many cycles
    tolerance: float = 0.0  # stop when |new - old| / |new| of the latents is at most this
    max_calls: int = 0  # core calls for one puzzle, all its restarts together
    max_seconds: float = 0.0  # for all puzzles together, compiling included
    restarts: int = 1  # jobs per puzzle, the plain one included
    vary: Literal["start", "cycle", "symmetry"] = "symmetry"  # what tells them apart
    sigma: float = 0.3  # standard deviation of the noise (vary: start, cycle)
    choose: tuple[str, ...] = ORDER  # see `choose`
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self):
        def need(ok: bool, name: str, rule: str):
            if not ok:
                raise InferenceError(f"{name} = {getattr(self, name)!r}: {rule}")
        for name in ("max_cycles", "restarts", "batch_size"):
            need(getattr(self, name) >= 1, name, "must be at least 1")
        for name in ("settle", "tolerance", "max_calls", "max_seconds", "sigma", "seed"):
            need(getattr(self, name) >= 0, name, "must not be negative")
        need(self.vary in ("start", "cycle", "symmetry"), "vary", "must be one of start, cycle, symmetry")
        need(self.restarts == 1 or self.vary == "symmetry" or self.sigma > 0, "sigma",
             "restarts that differ by noise need some of it")
        need(len(self.choose) > 0 and set(self.choose) <= set(CRITERIA), "choose",
             f"must be some of {', '.join(CRITERIA)}, the first one first")
