"""Step -> (H, L, learning-rate factor). Steps count from 1, as in the published code: step 1 is the first update."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from trm_jax.config import Experiment

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Growth:
    """From `steps[i]` on, `amounts[i]` more."""

    steps: tuple[int, ...]
    amounts: tuple[int, ...]

    def at(self, step: Any) -> Any:
        """int for an int, traced int32 for a traced step."""
        if isinstance(step, int):
            return sum(a for s, a in zip(self.steps, self.amounts) if step >= s)
        return sum((jnp.where(step >= s, a, 0) for s, a in zip(self.steps, self.amounts)), jnp.int32(0))


def first_step(percent: float, total_steps: int) -> int:
    """The first step s with s / total_steps * 100 >= percent, in the published code's float arithmetic."""
    s = max(0, int(percent * total_steps / 100) - 2)
    while s / max(1, total_steps) * 100.0 < percent:
        s += 1
    return s


@dataclasses.dataclass(frozen=True)
class Curriculum:
    experiment: Experiment
    total_steps: int

    @functools.cached_property
    def H_growth(self) -> Growth:
        e = self.experiment
        return Growth(tuple(first_step(p, self.total_steps) for p in e.curriculum_milestones),
                      e.curriculum_heads_to_add)

    @functools.cached_property
    def L_growth(self) -> Growth:
        e = self.experiment
        return Growth(tuple(first_step(p, self.total_steps) for p in e.curriculum_L_milestones),
                      e.curriculum_L_to_add)

    @functools.cached_property
    def growth_steps(self) -> tuple[int, ...]:
        """Steps at which H or L changes (step 1, with what it starts from, is none)."""
        changes = {s for g in (self.H_growth, self.L_growth) for s, a in zip(g.steps, g.amounts) if a}
        return tuple(sorted(s for s in changes if s > 1))

    def H(self, step: Any) -> Any:
        """Outer cycles at `step`; traced if the step is, so that growing costs no compile."""
        return self.experiment.arch.H_cycles + self.H_growth.at(step)

    def L(self, step: int) -> int:
        """Inner cycles at `step`; static, because their calls carry gradients. Each value costs a compile."""
        return self.experiment.arch.L_cycles + self.L_growth.at(step)

    def stages(self) -> list[tuple[int, int, int, int]]:
        """(first step, last step, H, L) of every stretch with the same H and L."""
        starts = [1, *self.growth_steps]
        ends = [s - 1 for s in starts[1:]] + [self.total_steps]
        return [(a, b, self.H(a), self.L(a)) for a, b in zip(starts, ends) if b >= a]

    def learning_rate_factor(self, step: Any) -> Array:
        """Warm-up from 0, cosine to lr_min_ratio, and the ramp from 0 after each growth. float32 []."""
        e = self.experiment
        step = jnp.asarray(step, jnp.float32)
        warmup = step / max(1, e.lr_warmup_steps)
        progress = (step - e.lr_warmup_steps) / max(1, self.total_steps - e.lr_warmup_steps)
        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        factor = jnp.where(step < e.lr_warmup_steps, warmup, e.lr_min_ratio + (1.0 - e.lr_min_ratio) * cosine)
        if e.transition_lr_warmup_steps and self.growth_steps:
            last = jnp.float32(-1e9)
            for s in self.growth_steps:
                last = jnp.where(step >= s, jnp.float32(s), last)
            factor = factor * jnp.clip((step - last) / e.transition_lr_warmup_steps, 0.0, 1.0)
        return factor

    def trains_network(self, step: Any) -> Any:
        """0.0 in the steps that train rows of the puzzle table alone, 1.0 in the others."""
        rows_only = self.experiment.rows_only
        return jnp.where(jnp.asarray(step, jnp.float32) <= rows_only * self.total_steps, 0.0, 1.0) if rows_only else 1.0

    def grows(self, step: Array) -> Array:
        """bool []: does H or L change at `step`?"""
        if not self.growth_steps:
            return jnp.bool_(False)
        return jnp.any(step == jnp.asarray(self.growth_steps))
