"""Curricula against the published rule in plain Python, at every step of the published run."""

import math

import jax
import numpy as np
import pytest

from trm_jax.config import Arch, Experiment
from trm_jax.training.curriculum import Curriculum

TOTAL = 14_968
PUBLISHED = Experiment(
    arch=Arch(H_cycles=2, L_cycles=2),
    curriculum_milestones=(20.1, 40.1, 55.1, 65.1, 75.1, 85.1), curriculum_heads_to_add=(1,) * 6,
    curriculum_L_milestones=(30.1, 50.1, 70.1, 80.1, 84.1, 86.1, 88.1, 90.1, 92.1, 94.1), curriculum_L_to_add=(1,) * 10)


def published_target(base, milestones, amounts, step, total):
    """get_target_H of the published trainer; `step` counts from 1."""
    percent = step / max(1, total) * 100.0
    return base + sum(amount for milestone, amount in zip(milestones, amounts) if percent >= milestone)


def plain_depths(e, total):
    return [(published_target(e.arch.H_cycles, e.curriculum_milestones, e.curriculum_heads_to_add, s, total),
             published_target(e.arch.L_cycles, e.curriculum_L_milestones, e.curriculum_L_to_add, s, total))
            for s in range(1, total + 1)]


def plain_factor(e, total, step):
    """Warm-up, cosine and ramp, one step at a time."""
    if step < e.lr_warmup_steps:
        factor = step / max(1, e.lr_warmup_steps)
    else:
        progress = (step - e.lr_warmup_steps) / max(1, total - e.lr_warmup_steps)
        factor = e.lr_min_ratio + (1 - e.lr_min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
    if e.transition_lr_warmup_steps:
        depths = [None, *plain_depths(e, total)]
        grown = [s for s in range(2, step + 1) if depths[s] != depths[s - 1]]
        if grown:
            factor *= min(1.0, (step - grown[-1]) / e.transition_lr_warmup_steps)
    return factor


@pytest.mark.parametrize("total", [TOTAL, 1000, 97, 7, 1])
def test_depths_follow_the_published_rule(total):
    curriculum, plain = Curriculum(PUBLISHED, total), plain_depths(PUBLISHED, total)
    assert [(curriculum.H(s), curriculum.L(s)) for s in range(1, total + 1)] == plain
    traced = jax.jit(jax.vmap(curriculum.H))(np.arange(1, total + 1, dtype=np.int32))
    np.testing.assert_array_equal(traced, [H for H, _ in plain])
    assert traced.dtype == np.int32


def test_the_published_run_ends_at_H8_L12():
    curriculum = Curriculum(PUBLISHED, TOTAL)
    assert (curriculum.H(1), curriculum.L(1), curriculum.H(TOTAL), curriculum.L(TOTAL)) == (2, 2, 8, 12)
    assert curriculum.H_growth.steps[0] == 3009  # 20.1 % of 14,968 is 3,008.6
    assert curriculum.H(3008) == 2 and curriculum.H(3009) == 3


@pytest.mark.parametrize("total", [TOTAL, 50, 3])
def test_stages_tile_the_run(total):
    stages = Curriculum(PUBLISHED, total).stages()
    assert [(H, L) for first, last, H, L in stages for _ in range(first, last + 1)] == plain_depths(PUBLISHED, total)
    assert stages[0][0] == 1 and stages[-1][1] == total
    assert all(a[1] + 1 == b[0] for a, b in zip(stages, stages[1:]))
    assert all(a[2:] != b[2:] for a, b in zip(stages, stages[1:]))


def test_growth_by_several_and_by_none():
    e = Experiment(curriculum_milestones=(10.0, 50.0, 90.0), curriculum_heads_to_add=(3, 0, 2))
    curriculum = Curriculum(e, 10)
    assert [curriculum.H(s) for s in range(1, 11)] == [5] * 8 + [7] * 2
    assert curriculum.growth_steps == (9,)  # not step 1, which starts so; not the growth by 0


@pytest.mark.parametrize("change", [
    {}, {"transition_lr_warmup_steps": 7}, {"lr_warmup_steps": 0}, {"lr_min_ratio": 1.0, "lr_warmup_steps": 300},
], ids=str)
def test_learning_rate_is_the_plain_one(change):
    e = Experiment(lr_warmup_steps=20, lr_min_ratio=0.02, curriculum_milestones=(20.1, 60.0),
                   curriculum_heads_to_add=(1, 1), curriculum_L_milestones=(62.0,), curriculum_L_to_add=(2,))
    e = Experiment(**{**e.__dict__, **change})
    curriculum = Curriculum(e, 200)
    factors = jax.jit(jax.vmap(curriculum.learning_rate_factor))(np.arange(1, 201, dtype=np.int32))
    np.testing.assert_allclose(factors, [plain_factor(e, 200, s) for s in range(1, 201)], rtol=1e-5, atol=1e-6)
    if change == {}:
        assert factors[19] == 1 and factors[-1] == pytest.approx(0.02)


def test_ramp_is_0_at_the_growth_and_over_k_steps_later():
    e = Experiment(lr_warmup_steps=0, lr_min_ratio=1.0, transition_lr_warmup_steps=4,
                   curriculum_milestones=(50.0,), curriculum_heads_to_add=(1,))
    curriculum = Curriculum(e, 20)
    assert curriculum.growth_steps == (10,)
    factors = [float(curriculum.learning_rate_factor(np.int32(s))) for s in range(8, 17)]
    assert factors == [1, 1, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert [bool(curriculum.grows(np.int32(s))) for s in (9, 10, 11)] == [False, True, False]
