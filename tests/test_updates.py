"""Starts, update rules, blocks, convolutions and halting of the relatives: each by its formula, and all together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trm_jax import recursion
from trm_jax.config import Arch, ConfigError, Experiment
from trm_jax.data.shape import Shape
from trm_jax.inference import engine
from trm_jax.inference.settings import InferenceError, Settings
from trm_jax.models import updates
from trm_jax.models.network import Model, Weights
from trm_jax.training import optimizers
from trm_jax.training.curriculum import Curriculum
from trm_jax.training.supervision import CONTRACTS, Batch, SlotDraw

S, B, D = 16, 4, 8
SMALL = {"hidden_size": D, "mlp_hidden_size": 16, "mixer_hidden_size": 8, "puzzle_emb_ndim": 0, "puzzle_emb_len": 0,
         "forward_dtype": "float32", "prob_detach_prev_H": 1.0, "H_cycles": 2, "L_cycles": 2, "remat": False}
DEEP = {"supervision": "deep", "halting_head": True, "halt_max_steps": 3}
EQR = {"start": "random", "update": "damped", "update_noise": 0.1, "update_noise_test": 0.2}
FPRM = {"recursion": "direct", "L_cycles": 0, "grad_cycles": 2, "start": "random", "start_std": 6.0, "update": "solver",
        "halt_by": "residual", "block": "pre_norm", "output_norm": True, "conv": "causal4"}
GATE = {"update": "gate", "halt_by": "residual", "conv": "grid3", "H_layers": 1}


def model_of(**changes) -> Model:
    return Model(Arch(**(SMALL | changes)), Shape(S, 6, 1))


def batch(seed: int = 0) -> Batch:
    k = jax.random.split(jax.random.key(seed), 2)
    return Batch(jax.random.randint(k[0], (B, S), 1, 6, jnp.int32), jax.random.randint(k[1], (B, S), 2, 6, jnp.int32),
                 jnp.zeros(B, jnp.int32))


def trained(model: Model):
    """Parameters none of which is 0."""
    params, fixed, table = model.init(jax.random.key(1))
    keys = iter(jax.random.split(jax.random.key(2), 100))
    return jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), params), fixed, table


@pytest.mark.parametrize("supervision", [{}, DEEP], ids=["terminal", "deep"])
@pytest.mark.parametrize("switches", [EQR, FPRM, GATE, EQR | {"recursion": "single_z", "block": "pre_norm"},
                                      FPRM | {"update": "gate", "mlp_t": False, "mixer_hidden_size": 0, "num_heads": 2},
                                      {"update": "solver", "update_noise": 0.1, "conv": "grid3"}], ids=str)
def test_switches_compose_with_each_other_and_with_both_contracts(switches, supervision):
    model = model_of(**switches, **supervision)
    params, fixed, _ = trained(model)
    contract = CONTRACTS[model.arch.supervision](model, Experiment(arch=model.arch))
    rows, key = jnp.zeros((B, 0)), jax.random.key(3)
    carry = contract.initial_carry(B)
    whole = contract.begin(fixed, carry, batch(), key, SlotDraw(B, 0))
    of = jax.jit(jax.value_and_grad(contract.loss, has_aux=True), static_argnums=4)
    (loss, (carry, _)), grads = of(params, rows, whole, np.int32(2), model.arch.L_cycles, key)
    assert np.isfinite(loss)
    unread = ("q_head", "q_head_bias") if supervision == {} else ()
    assert [path for path, g in jax.tree_util.tree_leaves_with_path(grads)
            if not (np.isfinite(g).all() and np.any(g)) and path[0].key not in unread] == []
    if supervision:
        # A slot that goes on does so where it was; half of the batch on a device of its own begins like the whole.
        again = contract.begin(fixed, carry._replace(halted=jnp.zeros(B, bool)), batch(1), key, SlotDraw(B, 0))
        jax.tree.map(np.testing.assert_array_equal, again.latents, carry.latents)
        half = contract.begin(fixed, contract.initial_carry(2), jax.tree.map(lambda a: a[2:], batch()), key,
                              SlotDraw(B, 2))
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:, 2:]), half.latents, whole.latents)


def test_a_start_is_drawn_for_the_puzzle_wherever_it_stands():
    model = model_of(start="random", start_std=3.0)
    tokens = batch().inputs
    ours, turned = (model.initial_latents({}, B, model.keys(t)) for t in (tokens, tokens[::-1]))
    np.testing.assert_array_equal(ours.y, turned.y[:, ::-1])
    assert not np.array_equal(ours.y, ours.z) and not np.array_equal(ours.y[:, 0], ours.y[:, 1])
    many = model.initial_latents({}, 200)
    assert np.std(many.y) == pytest.approx(3.0, rel=0.02)
    assert np.abs(many.y).max() <= 2 * 3.0 / updates.TRUNCATED_STD + 1e-5  # cut at two sigma before it is rescaled


def proposals(n: int):
    """n states as a core's answers, whatever it is asked."""
    return jax.random.normal(jax.random.key(5), (n, S, B, D))


def run(arch: Arch, given, gate=None, training=False, draw=updates.normal):
    """(states after each call, memories) of one latent that begins at 0."""
    rule = updates.Update(arch, training, draw)
    memory, state, seen = rule.begin(S, B, updates.keys_of(batch().inputs)), jnp.zeros((S, B, D)), []
    for g in given:
        core = rule.of(lambda s, i, g=g: g, gate)
        state, memory = recursion.apply(core, state, jnp.zeros_like(state), memory)
        seen.append((state, memory))
    return seen


def test_damped_with_noise():
    given = proposals(2)
    arch = model_of(**EQR).arch
    eps = jnp.full((S, B, D), 2.0)
    (one, _), (two, _) = run(arch, given, draw=lambda key, shape: (eps, key))
    np.testing.assert_allclose(one, 0.95 * given[0] + 0.2 * 2, rtol=1e-5)
    np.testing.assert_allclose(two, 0.05 * one + 0.95 * given[1] + 0.2 * 2, rtol=1e-5, atol=1e-6)
    (drawn, a), (_, b) = run(arch, given, training=True)
    assert np.std(drawn - 0.95 * given[0]) == pytest.approx(0.1, rel=0.1)
    assert not np.array_equal(a.key, b.key), "drawn anew for every call"


def test_the_gate_is_a_running_mean_weighted_by_content():
    given, q, decay = proposals(4), jnp.linspace(-1, 1, D), jnp.float32(0.3)
    n = d = 0.0
    for g, (state, _) in zip(np.asarray(given, np.float64), run(model_of(update="gate").arch, given, (q, decay))):
        e = np.exp((g / np.sqrt((g * g).mean(-1, keepdims=True) + 1e-5)) @ np.asarray(q, np.float64))[..., None]
        beta = 1 / (1 + np.exp(-0.3))
        n, d = beta * n + e * g, beta * d + e
        np.testing.assert_allclose(state, n / d, rtol=1e-4, atol=1e-5)


def test_the_solver_shrinks_the_step_of_an_example_that_gets_no_closer_and_of_no_other():
    """Example 0 alternates between two answers, example 1 stands still."""
    arch = model_of(**(FPRM | {"solver_patience": 2, "solver_decay_test": 0.5})).arch
    given = jnp.stack([jnp.ones((S, B, D)) * jnp.asarray([(-1.0) ** k, 1.0, 1.0, 1.0])[None, :, None]
                       for k in range(7)])
    sizes = np.stack([m.size[0, :2, 0] for _, m in run(arch, given)])
    assert (sizes[:, 1] == 1).all()
    assert sizes[0, 0] == 1 and sizes[-1, 0] < 1 and (np.diff(sizes[:, 0]) <= 0).all()
    latents = recursion.LatentsAndMemory(None, (), (run(arch, given)[-1][1], ()))
    assert updates.has_converged(arch, latents).tolist() == [False, True, True, True]


def test_convolution_is_over_the_grid_and_leaves_the_prefix_alone():
    model = model_of(conv="grid3", puzzle_emb_ndim=D, puzzle_emb_len=1, block="pre_norm")
    params, _, _ = trained(model)
    state = jax.random.normal(jax.random.key(0), (S + 1, B, D))

    def conv(h):
        return model.network.apply({"params": params}, h, method=lambda net, h: net.conv(h))
    kernel, grid = np.asarray(params["conv"]["kernel"])[:, :, 0], np.asarray(state[1:]).reshape(4, 4, B, D)
    expected = np.zeros_like(grid)
    for r, c, i, j in np.ndindex(4, 4, 3, 3):
        if 0 <= r + i - 1 < 4 and 0 <= c + j - 1 < 4:
            expected[r, c] += kernel[j, i] * grid[r + i - 1, c + j - 1]  # stored transposed
    np.testing.assert_allclose(conv(state[1:]), expected.reshape(S, B, D), rtol=1e-4, atol=1e-5)
    moved = model.core(params)(state.at[0].add(1.0), jnp.zeros_like(state))
    assert not np.allclose(moved, model.core(params)(state, jnp.zeros_like(state)))
    with pytest.raises(ConfigError, match="needs a square grid, not 18 cells"):
        Model(Arch(**(SMALL | {"conv": "grid3"})), Shape(18, 6, 1)).init(jax.random.key(0))


def test_learned_scales_do_not_decay():
    model = model_of(**FPRM)
    params, _, _ = trained(model)
    e = Experiment(arch=model.arch, weight_decay=1.0, lr_warmup_steps=0, grad_clip_norm=0.0)
    optimizer = optimizers.make(e, Curriculum(e, 10))
    moved, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    still = {"/".join(k.key for k in path) for path, u in jax.tree_util.tree_leaves_with_path(moved) if not np.any(u)}
    assert still == {"scales/alpha_1", "scales/alpha_2"}


def test_steps_weigh_their_token_loss():
    plain, weighted = (model_of(**DEEP, step_loss_decay=decay) for decay in (1.0, 0.7))
    params, fixed, _ = trained(plain)
    losses = []
    for model in (plain, weighted):
        contract = CONTRACTS["deep"](model, Experiment(arch=model.arch))
        start = contract.begin(fixed, contract.initial_carry(B), batch(), jax.random.key(0), SlotDraw(B, 0))
        start = start._replace(steps=jnp.full(B, 3))
        losses.append(contract.loss(params, jnp.zeros((B, 0)), start, 2, 2, jax.random.key(0))[1][1].token_loss)
    np.testing.assert_allclose(losses[1], 0.49 * losses[0], rtol=1e-5)


def test_of_tries_that_the_network_draws_the_one_whose_logits_move_least_is_chosen():
    model = model_of(**EQR, **DEEP)
    bound = model.bind(Weights(*trained(model)), 2)
    settings = Settings(max_cycles=5, settle=0, tries=3, vary="draw", choose=("logits",), batch_size=4)
    r = engine.solve(bound, np.asarray(batch().inputs, np.uint8), settings)
    assert len(r.jobs.attempt) == 3 * B and len(set(r.jobs.logit_change)) == 3 * B
    for p in range(B):
        mine = r.jobs.take(r.jobs.puzzle == p)
        assert r.answers.attempt[p] == mine.attempt[np.argmin(mine.logit_change)]
    # The number is that of its definition.
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), 2)[None]
    latents = bound.initial_latents(batch().inputs[1:2], key)
    x, logits = bound.embed(batch().inputs[1:2], jnp.zeros(1, jnp.int32)), []
    for _ in range(5):
        latents = bound.unroll(latents, x, 1)
        logits.append(np.asarray(bound.logits(latents.y))[0])
    expected = np.mean([np.linalg.norm(b - a, axis=-1).mean() for a, b in zip(logits[-4:], logits[-3:])])
    [job] = np.flatnonzero((r.jobs.puzzle == 1) & (r.jobs.attempt == 2))
    assert r.jobs.logit_change[job] == pytest.approx(expected, rel=1e-3)
    still = dataclasses.replace(bound, model=model_of(**DEEP))
    with pytest.raises(InferenceError, match="this network draws neither starts nor noise"):
        engine.solve(still, np.asarray(batch().inputs, np.uint8), settings)
