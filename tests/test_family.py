"""One network, one set of recursions: each is the papers' loop, and each configuration is what its paper counts."""

import dataclasses
import functools
import pathlib
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import stop_gradient

from tests import tiny
from trm_jax import config, recursion
from trm_jax.config import Arch, ConfigError
from trm_jax.data.shape import Shape
from trm_jax.models.network import Model
from trm_jax.recursion import RECURSIONS, Cores, Latents
from trm_jax.reports import describe

EXPERIMENTS = pathlib.Path(__file__).resolve().parents[1] / "experiments"
T, B, D, L = 3, 2, 4, 3
FAMILY = ["y_z", "two networks", "single_z", "multi_z", "direct"]


# The papers' pseudocode, call by call; `stop(i, state)` stands after call i of a cycle.


def plain_y_z(f_L, f_H, latents, x, stop):
    y, z = latents
    for i in range(L):
        z = stop(i, f_L(z + y + x))
    return Latents(f_H(y + z), z)


def plain_single_z(f_L, f_H, latents, x, stop):
    z = latents.y
    for i in range(L):
        z = stop(i, f_L(z + x))
    return Latents(f_H(z), ())


def plain_multi_z(f_L, f_H, latents, x, stop):
    y, z = latents.y, list(latents.z)
    for i in range(L):
        z[i] = f_L(sum(z) + y + x)
        z = [stop(i, latent) for latent in z]
    return Latents(f_H(y + sum(z)), tuple(z))


def plain_direct(f_L, f_H, latents, x, stop):
    return Latents(f_H(latents.y + x), ())


PLAIN = {"y_z": plain_y_z, "two networks": plain_y_z, "single_z": plain_single_z, "multi_z": plain_multi_z,
         "direct": plain_direct}


class Case(typing.NamedTuple):
    cycle: typing.Callable
    L: int
    core: typing.Callable  # params -> core
    plain: typing.Callable  # (params, latents, x, detached) -> latents
    params: dict
    latents: Latents
    x: jax.Array
    weights: jax.Array


def network(params):
    return lambda h: jnp.tanh(h @ params["w"] + params["b"][None, None])


@pytest.fixture(params=FAMILY)
def case(request) -> Case:
    name = request.param
    two = name == "two networks"
    keys = iter(jax.random.split(jax.random.key(0), 20))
    params = {which: {"w": 0.5 * jax.random.normal(next(keys), (D, D)), "b": jax.random.normal(next(keys), (D,))}
              for which in ("f_L", "f_H")}
    draw = functools.partial(jax.random.normal, shape=(T, B, D))
    inner = 0 if name == "direct" else L
    kind = RECURSIONS["y_z" if two else name]
    latents = jax.tree.map(lambda _: draw(next(keys)), kind.starts(inner))

    def core(params):
        f_L, f_H = network(params["f_L"]), network(params["f_H"])
        cores = Cores(lambda s, i: f_L(s + i), lambda s, i: f_H(s + i))
        return cores if two else cores.L

    def plain(params, latents, x, detached=0):
        f_L, f_H = network(params["f_L"]), network(params["f_H" if two else "f_L"])
        return PLAIN[name](f_L, f_H, latents, x, lambda i, s: stop_gradient(s) if i < detached else s)
    return Case(kind.cycle, inner, core, plain, params, latents, draw(next(keys)), draw(next(keys)))


def value_and_grads(case, step):
    """Of a weighted sum of the latents, by params, latents and x."""
    def loss(params, latents, x):
        out = step(params, latents, x)
        return sum(jnp.sum(case.weights * leaf * (i + 1)) for i, leaf in enumerate(jax.tree.leaves(out)))
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(case.params, case.latents, case.x)


def assert_close(ours, plain):
    assert jax.tree.structure(ours) == jax.tree.structure(plain)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), ours, plain)


@pytest.mark.parametrize("calls", ["all", "last two", "last one"])
def test_a_cycle_is_the_plain_loop_with_gradient_through_its_last_calls(case, calls):
    detached = {"all": 0, "last two": max(case.L - 1, 0), "last one": case.L}[calls]
    ours = value_and_grads(case, lambda p, s, x: case.cycle(case.core(p), s, x, case.L, detached))
    plain = value_and_grads(case, lambda p, s, x: case.plain(p, s, x, detached))
    assert_close(ours, plain)


def test_deep_recursion_detaches_all_cycles_but_the_last(case):
    @jax.jit
    def ours(H):
        def step(p, s, x):
            s = recursion.warm_up(case.core(p), s, x, H - 1, case.L, case.cycle)
            return case.cycle(case.core(p), s, x, case.L)
        return value_and_grads(case, step)

    def plain(p, s, x):
        for _ in range(2):
            s = stop_gradient(case.plain(p, s, x))
        return case.plain(p, stop_gradient(s), x)
    value, (by_params, by_latents, by_x) = ours(np.int32(3))
    assert_close((value, (by_params, by_latents, by_x)), value_and_grads(case, plain))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(by_latents))
    assert np.all(by_x) if case.cycle is not recursion.single_z_cycle else np.any(by_x)


def test_a_transition_keeps_the_outer_update_of_any_recursion(case):
    for keep in (True, False):
        def ours(p, s, x, keep=keep):
            return recursion.transition(case.core(p), s, x, case.L, jnp.bool_(keep), case.cycle)

        def plain(p, s, x, keep=keep):
            out = case.plain(p, stop_gradient(s), stop_gradient(x), case.L)
            return out if keep else stop_gradient(out)
        assert_close(value_and_grads(case, ours), value_and_grads(case, plain))


def test_test_time_is_the_plain_loop(case):
    states = [case.latents]
    for _ in range(6):
        states.append(case.plain(case.params, states[-1], case.x))
    core, step = case.core(case.params), recursion.several(case.cycle, 2)

    def decode(y):
        return (y[0] > 0).astype(jnp.int32)
    assert_close(recursion.unroll(core, case.latents, case.x, 6, case.L, case.cycle), states[6])
    start = recursion.watch(case.latents, decode)
    watched = recursion.unroll_watched(core, start, case.x, np.int32(3), case.L, decode, step)
    assert_close(watched.latents, states[6])
    assert watched.done.tolist() == [3] * B
    final, (kept, _) = recursion.trace(core, case.latents, case.x, 3, case.L, lambda y: y, step)
    assert_close(final, states[6])
    assert_close(kept, np.stack([s.y for s in states[2::2]]))


def test_an_unroll_leaves_alone_who_has_halted():
    """Whole numbers: y counts cycles; examples 1 and 2 want to halt after cycles 3 and 4, example 0 before any."""
    n = 4
    wishes = jnp.asarray([0.0, 3.0, 4.0, 99.0])

    def core(state, injection):
        return state + 1.0

    def decode(y):
        return y[0].astype(jnp.int32)
    zeros = jnp.zeros((1, n, 1))
    start = recursion.watch(Latents(zeros, ()), decode)
    run = jax.jit(lambda w, H: recursion.unroll_watched(core, w, zeros, H, 0, decode, recursion.direct_cycle,
                                                        lambda latents: latents.y[0, :, 0] >= wishes))
    watched = run(start, 6)
    assert watched.done.tolist() == [1, 3, 4, 6] and watched.answer[:, 0].tolist() == [1, 3, 4, 6]
    assert watched.unchanged.tolist() == [5, 3, 2, 0]
    jax.tree.map(np.testing.assert_array_equal, run(run(start, 2), 4), watched)


def test_every_recursion_has_its_config_value():
    assert set(typing.get_args(typing.get_type_hints(Arch)["recursion"])) == set(RECURSIONS)


# Configurations.


def experiment(name, variant="", **changes):
    raw = config.experiment_file(EXPERIMENTS / f"{name}.py").get_config(variant)
    return config.parse(tiny.merge(raw.to_dict(), changes))


COUNTS = {  # Sudoku, Maze, ARC: spec §1
    "trm_att_sudoku": (6_828_034, 6_822_914, 6_829_058), "trm_mlp_sudoku": (5_028_866, 18_795_522, 18_801_666),
    "hrm_sudoku": (27_275_266, 27_270_146, 27_276_290), "direct_sudoku": (27_275_266, 27_270_146, 27_276_290),
    "rsm_sudoku": (2_513_920, 9_397_248, 9_400_320)}
STEPS = {"trm_att_sudoku": 65_104, "trm_mlp_sudoku": 65_104, "hrm_sudoku": 26_041, "direct_sudoku": 26_041,
         "rsm_sudoku": 14_968}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_those_of_the_papers(name):
    e = experiment(name, data={"path": "nowhere"})
    text = describe.describe(e)
    assert f"{COUNTS[name][0]:,} trained" in text and f"{STEPS[name]:,} steps of {e.global_batch_size}" in text
    models = [Model(e.arch, Shape(*s)) for s in ((81, 11), (900, 6), (900, 12))]
    assert tuple(model.parameter_count() for model in models) == COUNTS[name]


@pytest.mark.parametrize("name, changed, steps", [
    ("trm_att", {"arch.L_cycles": (6, 4)}, 65_104), ("trm_mlp", {"arch.L_cycles": (6, 4)}, 65_104),
    ("hrm", {}, 26_041)])
def test_on_mazes_it_is_the_sudoku_recipe_but_for_the_data(name, changed, steps):
    """Spec §1 and §4: n 4 for TRM, and no symmetries, which would turn the tie-break among shortest paths."""
    e = experiment(f"{name}_maze", data={"path": "nowhere"})
    sudoku = config.to_json(experiment(f"{name}_sudoku", data={"path": "nowhere"}))
    assert config.differences(sudoku, config.to_json(e)) == changed | {
        "data.puzzle": ("sudoku", "maze"), "data.augment": (True, False)}
    text = describe.describe(e)
    assert f"{COUNTS[f'{name}_sudoku'][1]:,} trained" in text and f"{steps:,} steps of 768" in text


@pytest.mark.parametrize("name, sudoku, steps", [
    ("trm_att_arc1", "trm_att_sudoku", 519_270), ("trm_mlp_arc1", "trm_mlp_sudoku", 519_270),
    ("hrm_arc1", "hrm_sudoku", 519_270), ("trm_att_arc2", "trm_att_sudoku", 725_651)])
def test_on_arc_it_is_the_sudoku_recipe_but_for_data_decay_and_length(name, sudoku, steps):
    """Spec §1, §4 and §6: weight decay 0.1, the table's learning rate 1e-2 and decay 0.1, n 4 for TRM."""
    e = experiment(name, data={"path": "nowhere"})
    changed = config.differences(config.to_json(experiment(sudoku, data={"path": "nowhere"})), config.to_json(e))
    n4 = {} if name == "hrm_arc1" else {"arch.L_cycles": (6, 4)}
    assert changed == n4 | {
        "data.puzzle": ("sudoku", "arc"), "data.augment": (True, False), "weight_decay": (1.0, 0.1),
        "puzzle_emb_lr": (1e-4, 1e-2), "puzzle_emb_weight_decay": (1.0, 0.1), "total_steps": (STEPS[sudoku], steps)}
    with jax.numpy_dtype_promotion("standard"):  # jax's attention in bfloat16
        text = describe.describe(e)
    assert f"{COUNTS[sudoku][2]:,} trained" in text and f"{steps:,} steps of 768" in text
    assert "puzzle table 492,012,032" in text and "H_test 16 supervision steps" in text


# Table 1's depth T (n + 1) layers and millions of parameters, table 3's depth.
ROWS = {"act": (42, 5), "separate": (42, 10), "no_ema": (42, 5), "layers4_n3": (48, 10), "attention": (42, 7),
        "T2_n2": (12, 5), "one_step": (42, 5), "multi_z": (42, 5), "single_z": (42, 5), "no_act": (42, 5),
        "tied_head": (42, 5), "last_4_calls": (42, 5),
        "trm_k1_T1": (6, 5), "trm_k2_T2": (20, 5), "trm_k3_T3": (42, 5), "trm_k4_T4": (72, 5), "trm_k6_T3": (78, 5),
        "trm_k3_T6": (84, 5), "trm_k6_T6": (156, 5),
        "hrm_k1_T1": (8, 27), "hrm_k2_T2": (24, 27), "hrm_k3_T3": (48, 27), "hrm_k4_T4": (80, 27),
        "hrm_k6_T3": (84, 27), "hrm_k3_T6": (96, 27), "hrm_k6_T6": (168, 27)}


def test_every_row_of_the_ablations_has_its_config():
    """Depths as printed, but for k = 1, T = 1: the paper prints 7 and 9, its formula gives 6 and 8."""
    module = config.experiment_file(EXPERIMENTS / "trm_ablations_sudoku.py")
    assert set(module.VARIANTS) == {*ROWS, *(f"{row}:quick" for row in ROWS)}
    base = config.to_json(experiment("trm_mlp_sudoku"))
    for row, (depth, millions) in ROWS.items():
        e = experiment("trm_ablations_sudoku", row)
        a = e.arch
        assert a.H_cycles * (a.L_cycles + 1) * a.L_layers == depth, row
        assert round(Model(a, Shape(81, 11)).parameter_count() / 1e6) == millions, row
        if row not in ("trm_k3_T3", *(r for r in ROWS if r.startswith("hrm"))):
            assert 1 <= len(config.differences(base, config.to_json(e))) <= 4, row
        experiment("trm_ablations_sudoku", f"{row}:quick")
    assert experiment("trm_ablations_sudoku", "trm_k3_T3") == experiment("trm_mlp_sudoku")
    assert experiment("trm_ablations_sudoku", "hrm_k2_T2") == experiment("hrm_sudoku")
    assert experiment("trm_ablations_sudoku", "attention") == experiment("trm_att_sudoku")


DEEP = {"supervision": "deep", "prob_detach_prev_H": 1.0, "halting_head": True}
IMPOSSIBLE = [
    ({"recursion": "single_z", "H_layers": 1}, {}, "arch.H_layers = 1: must be 0 with arch.recursion = 'single_z'"),
    ({"recursion": "direct"}, {}, "arch.L_cycles = 2: must be 0 with arch.recursion = 'direct'"),
    ({"recursion": "direct", "L_cycles": 0, "H_layers": 2}, {}, "arch.H_layers = 2: must be 0"),
    ({"recursion": "multi_z"}, {"curriculum_L_milestones": [50.0], "curriculum_L_to_add": [1]},
     "curriculum_L_milestones = (50.0,): must be empty"),
    ({"recursion": "multi_z"}, {"eval": {"L_test": [2, 3]}}, "eval.L_test = (2, 3): must be empty"),
    ({"recursion": "triple_z"}, {}, "arch.recursion = 'triple_z': must be one of 'y_z', 'single_z'"),
    ({"grad_calls": 4}, {}, "arch.grad_calls = 4: must be at most L_cycles + 1 = 3"),
    ({"grad_calls": -1}, {}, "arch.grad_calls = -1: must not be negative"),
    ({"H_layers": -1}, {}, "arch.H_layers = -1: must not be negative"),
    ({"halting_head": True}, {}, "arch.halting_head = True: is trained by arch.supervision = 'deep' only"),
    ({"no_ACT_continue": False}, {}, "arch.no_ACT_continue = False: needs arch.supervision = 'deep'"),
    (DEEP | {"halting_head": False, "no_ACT_continue": False, "halt_exploration_prob": 0.0}, {},
     "arch.no_ACT_continue = False: ACT needs arch.halting_head = True"),
    (DEEP | {"halting_head": False}, {}, "arch.halt_exploration_prob = 0.1: must be 0 without a halting head"),
    (DEEP | {"halt_exploration_prob": 10.0}, {}, "arch.halt_exploration_prob = 10.0: is a share"),
    (DEEP | {"halt_max_steps": 0}, {}, "arch.halt_max_steps = 0: must be at least 1"),
    (DEEP | {"prob_detach_prev_H": 0.99}, {},
     "arch.prob_detach_prev_H = 0.99: must be 1 with arch.supervision = 'deep'"),
    (DEEP, {"curriculum_milestones": [50.0], "curriculum_heads_to_add": [1]},
     "arch.test_H_cycles = 0: must be given where H grows with arch.supervision = 'deep'"),
    ({"recursion": "multi_z", "update": "damped"}, {}, "arch.update = 'damped': must be 'replace' with arch.recursion"),
    ({"recursion": "multi_z", "update_noise": 0.1}, {}, "arch.update_noise = 0.1: and update_noise_test must be 0"),
    ({"recursion": "multi_z", "halt_by": "residual"}, {}, "arch.halt_by = 'residual': must be 'head'"),
    ({"output_norm": True}, {}, "arch.output_norm = True: needs arch.block = 'pre_norm'"),
    (DEEP | {"no_ACT_continue": False, "halt_by": "residual"}, {}, "arch.no_ACT_continue = False: must be True with"),
    ({"grad_cycles": 3}, {}, "arch.grad_cycles = 3: must be at most H_cycles = 2, less one for the transition"),
    ({"grad_cycles": 0}, {}, "arch.grad_cycles = 0: must be at least 1"),
    ({"update_share": 0.0}, {}, "arch.update_share = 0.0: must be over 0 and at most 1"),
    ({"solver_patience": 0}, {}, "arch.solver_patience = 0: must be at least 1"),
    ({"start_std": 0.0}, {}, "arch.start_std = 0.0: must be positive"),
    ({"step_loss_decay": 0.7}, {}, "arch.step_loss_decay = 0.7: needs arch.supervision = 'deep'"),
    ({"test_H_cycles": 3}, {}, "arch.test_H_cycles = 3: needs arch.supervision = 'deep'"),
    ({}, {"eval": {"restarts": 4, "vary": "draw"}}, "eval.vary = 'draw': needs a network that draws"),
    (DEEP, {"deepen": {"carry_share": 0.5}}, "deepen.carry_share = 0.5: needs arch.supervision = 'terminal'"),
    (DEEP, {"deepen": {"tail_prob": 0.5}}, "deepen.tail_prob = 0.5: needs arch.supervision = 'terminal'"),
    ({}, {"eval": {"stop_halted": True}}, "eval.stop_halted = True: needs arch.halting_head = True"),
]


@pytest.mark.parametrize("arch, rest, message", IMPOSSIBLE, ids=[m.split(":")[0] for _, _, m in IMPOSSIBLE])
def test_what_cannot_work_is_refused_by_name(arch, rest, message):
    with pytest.raises(ConfigError) as caught:
        config.parse(tiny.merge(config.to_json(config.Experiment()), {"arch": arch} | rest))
    assert message in str(caught.value)


@pytest.mark.parametrize("arch", [
    DEEP, DEEP | {"H_cycles": 1}, {"H_cycles": 1, "prob_detach_prev_H": 1.0}, {"recursion": "single_z", "H_cycles": 3},
    {"recursion": "direct", "L_cycles": 0}, {"H_layers": 2}, DEEP | {"recursion": "multi_z", "H_layers": 2},
    DEEP | {"halting_head": False, "halt_exploration_prob": 0.0}, {"grad_calls": 3},
    DEEP | {"puzzle_emb_ndim": 0, "puzzle_emb_len": 0}, DEEP | {"halt_max_steps": 1},
    DEEP | {"halt_by": "residual", "halting_head": False}, DEEP | {"update": "gate", "start": "random"},
    {"recursion": "direct", "L_cycles": 0, "H_cycles": 6, "grad_cycles": 5, "update": "solver", "block": "pre_norm"}],
    ids=str)
def test_what_can_work_is_not(arch):
    config.parse(tiny.merge(config.to_json(config.Experiment()), {"arch": arch}))


def test_a_run_from_before_a_field_existed_continues():
    new = config.to_json(config.Experiment())
    old = tiny.merge(new, {})
    old["arch"] = {k: v for k, v in new["arch"].items() if k not in ("recursion", "H_layers", "supervision")}
    assert config.differences(old, new) == {}
    assert config.differences(old, tiny.merge(new, {"arch": {"H_layers": 3}})) == {"arch.H_layers": (0, 3)}


def test_flops_count_each_network_for_itself():
    arch = Arch(hidden_size=16, mlp_hidden_size=32, mixer_hidden_size=16, puzzle_emb_ndim=0, puzzle_emb_len=0)
    one, two = (Model(dataclasses.replace(arch, L_layers=2, H_layers=H), Shape(9, 11)) for H in (0, 3))
    block = one.core_flops() // 2
    assert two.core_flops() == one.core_flops()
    assert one.calls_flops(4) == 8 * block and two.calls_flops(4) == 9 * block and two.calls_flops(1) == 3 * block
