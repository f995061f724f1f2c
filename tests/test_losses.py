"""Losses against numpy in float64, at extreme logits too; scores; labels that are not looked at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trm_jax.training import losses
from trm_jax.training.losses import IGNORE


def np_stablemax(a, label):
    """As published, in float64: s(a) = a + 1 or 1 / (1 - a + 1e-30); -log(s / sum s)."""
    a = np.asarray(a, np.float64)
    with np.errstate(divide="ignore"):
        s = np.where(a >= 0, a + 1, 1 / (1 - a + 1e-30))
    return -np.log(s[label] / s.sum())


def np_softmax(a, label):
    a = np.asarray(a, np.float64)
    return np.log(np.exp(a - a.max()).sum()) + a.max() - a[label]


PLAIN = {"stablemax_cross_entropy": np_stablemax, "softmax_cross_entropy": np_softmax}
ROWS = [[0.3, -1.2, 2.5, 0.0], [1e4, -1e4, 0.0, 3.0], [-1e4, -1e4, -1e4, -1e4], [1e4, 1e4, 1.0, -1.0],
        [1e-6, -1e-6, 1e-7, -1e-3], [-0.9999, 1.0, 1.0001, -1.0]]


@pytest.mark.parametrize("loss_type", PLAIN)
def test_token_losses_and_their_gradients(loss_type):
    loss = jax.jit(jax.value_and_grad(lambda a, label: losses.TOKEN_LOSSES[loss_type](a, label)))
    plain = PLAIN[loss_type]
    for row in ROWS:
        row = np.float32(row)
        for label in range(len(row)):
            value, grad = loss(row, label)
            # The softmax loss is a difference of two numbers as large as the logits; stablemax has no such loss.
            digits = np.spacing(np.abs(row).max()) if loss_type == "softmax_cross_entropy" else 0
            np.testing.assert_allclose(value, plain(row, label), rtol=2e-6, atol=1e-6 + digits)
            assert np.isfinite(grad).all()
            for i in range(len(row)):
                step = 1e-6 * max(1.0, abs(float(row[i])))
                up, down = np.float64(row), np.float64(row)
                up[i], down[i] = up[i] + step, down[i] - step
                finite = (plain(up, label) - plain(down, label)) / (2 * step)
                np.testing.assert_allclose(grad[i], finite, rtol=1e-3, atol=1e-6)


def test_stablemax_at_zero_has_one_gradient_from_both_sides():
    grad = jax.grad(lambda a: losses.stablemax_cross_entropy(a, jnp.int32(0)))
    at, near = grad(jnp.zeros(3)), grad(jnp.full(3, 1e-6))
    np.testing.assert_allclose(at, [-2 / 3, 1 / 3, 1 / 3], rtol=1e-6)  # s' = 1 on both sides of 0
    np.testing.assert_allclose(at, near, rtol=1e-4)


@pytest.mark.parametrize("loss_type", PLAIN)
def test_mean_over_labelled_tokens(loss_type):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 5, 4)).astype(np.float32) * 3
    labels = rng.integers(0, 4, (3, 5))
    labels[0, 1:3], labels[1, :] = IGNORE, IGNORE
    run = jax.jit(losses.per_example, static_argnums=0)
    per_example = run(loss_type, logits, labels)
    expected = [np.mean([PLAIN[loss_type](logits[b, s], labels[b, s]) for s in range(5) if labels[b, s] != IGNORE])
                if (labels[b] != IGNORE).any() else 0.0 for b in range(3)]
    np.testing.assert_allclose(per_example, expected, rtol=1e-6)
    assert per_example[1] == 0

    grad = jax.grad(lambda a: jnp.sum(run(loss_type, a, labels)))(logits)
    assert (np.asarray(grad)[labels == IGNORE] == 0).all()
    assert (np.abs(np.asarray(grad)[labels != IGNORE]).max(-1) > 0).all()


@pytest.mark.parametrize("loss_type", PLAIN)
def test_what_stands_at_ignored_tokens_does_not_matter(loss_type):
    labels = jnp.array([[1, IGNORE]])
    logits = jnp.array([[[0.0, 1.0], [0.5, 0.5]]])
    wild = logits.at[0, 1].set(jnp.array([jnp.inf, -1e30]))
    run = jax.jit(jax.value_and_grad(lambda a: jnp.sum(losses.per_example(loss_type, a, labels))))
    value, grad = run(logits)
    assert run(wild)[0] == value
    assert np.isfinite(grad).all()


def test_scores():
    labels = jnp.array([[1, 2, 3], [1, 2, 3], [1, IGNORE, 3], [IGNORE] * 3], jnp.int32)
    answer = jnp.array([[1, 2, 3], [1, 2, 0], [1, 9, 3], [0, 0, 0]], jnp.uint8)
    scores = losses.scores(answer, labels)
    assert scores.valid.tolist() == [True, True, True, False]
    np.testing.assert_allclose(scores.cell, [1, 2 / 3, 1, 0], rtol=1e-6)
    assert scores.exact.tolist() == [True, False, True, False]
