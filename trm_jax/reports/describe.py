"""What a config amounts to, without training it: parameters, FLOPs, memory, curriculum."""

from __future__ import annotations

import math

import jax

from trm_jax.config import Experiment
from trm_jax.data import dataset
from trm_jax.data.loading import Dataset
from trm_jax.data.published import expected
from trm_jax.evaluation.unroll import unit
from trm_jax.models.layers import swiglu_hidden
from trm_jax.models.network import prefix_len
from trm_jax.models.units import Units
from trm_jax.runtime import peaks
from trm_jax.runtime.text import human
from trm_jax.training.puzzle_table import SPLIT_ROWS
from trm_jax.training.supervision import detached_calls
from trm_jax.training.system import System, total_steps


def describe(experiment: Experiment, flops_per_second: float | None = None, mfu: float | None = None) -> str:
    """Text for a terminal. Without the dataset folder, it is taken to be as its recipe makes it, or as published.

    Args:
      flops_per_second: for which the length of the run is said; with `mfu` a peak, of which it is that share. None: 1
        TFLOP/s, or with `mfu` the peak of one device of this machine, which is measured.
    """
    e = experiment
    speed, of = flops_per_second or 1e12, ""
    if mfu is not None:
        speed = mfu * (flops_per_second or peaks.products(e.arch.product_kind))
        of = f" ({mfu:.0%} of {human(speed / mfu, 'FLOP/s')}{'' if flops_per_second else ', measured here'})"
    try:
        data = Dataset.load(e)
        shape, steps = data.shape, total_steps(e, data.train.metadata)
        where = f"{e.data.path}: {data.train.num_groups:,} training groups, {data.test.num_examples:,} test examples"
    except dataset.DatasetError as error:
        shape, groups = expected(e.data)
        steps = e.total_steps or int(e.epochs * groups / e.global_batch_size)
        assumed = "" if e.total_steps else f"; {groups:,} training groups are assumed"
        where = f"not there{assumed} ({error})"
    system = System(e, shape, steps)
    model, curriculum, B = system.model, system.curriculum, e.global_batch_size
    stages = curriculum.stages()
    flops = system.train_flops(1, steps)
    state = jax.eval_shape(system.init_state)
    state_bytes = sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(state._replace(key=())))
    deepest = max(L for _, _, _, L in stages)
    lines = [
        f"data           {where}",
        f"shape          S {shape.seq_len} + P {prefix_len(e.arch)} = T {model.T}, D {e.arch.hidden_size}, "
        f"V {shape.vocab_size}, {shape.num_puzzle_identifiers:,} puzzle identifiers",
        f"parameters     {model.parameter_count():,} trained; puzzle table "
        f"{shape.num_puzzle_identifiers * e.arch.puzzle_emb_ndim:,}",
        f"system         {system_line(e)}",
        f"one core call  {human(model.core_flops(), 'FLOP')} per example"
        + (f"; of f_H {human(model.calls_flops(1), 'FLOP')}" if e.arch.H_layers else ""),
        f"whole run      {steps:,} steps of {B} = {steps * B:,} examples, {human(flops, 'FLOP')}; "
        f"{flops / speed / 3600:.2g} h at {human(speed, 'FLOP/s')}{of} (training shows its own)",
        f"state          {human(state_bytes, 'B')} (parameters, moments, EMA, table, carry) on every device"
        + (", but a table of so many rows is shared out" if shape.num_puzzle_identifiers > SPLIT_ROWS else ""),
        f"activations    about {human(activation_bytes(system, deepest) * B, 'B')} for a batch of {B} at L {deepest}, "
        "shared by the devices",
        f"evaluation     H_test {', '.join(map(str, e.eval.H_test))} {unit(e.arch)}; one example to "
        f"H {e.eval.H_test[-1]}: {human(system.test_flops_per_example(e.eval.H_test[-1], stages[-1][3]), 'FLOP')}",
        "",
        "    from step    to step    H    L   FLOP per example and step",
    ]
    for a, b, H, L in stages:
        lines.append(f"{a:>13,}{b:>11,}{H:>5}{L:>5}   {human(system.train_flops_per_example(H, L), 'FLOP')}")
    return "\n".join(lines)


def system_line(e: Experiment) -> str:
    a = e.arch
    networks = f"networks of {a.L_layers} and {a.H_layers} layers" if a.H_layers else f"{a.L_layers} layers"
    calls = f"the last {a.grad_calls} calls" if a.grad_calls else "all calls of the last cycle"
    if a.grad_cycles > 1:
        calls += f", {a.grad_cycles} cycles"
    parts = [a.recursion, networks, f"gradient through {calls}", f"{a.supervision} supervision"]
    if a.supervision == "deep":
        parts.append(f"at most {a.halt_max_steps} step{'s' * (a.halt_max_steps > 1)}")
    switches = {"start": "fixed", "update": "replace", "block": "post_norm", "conv": "none"}
    parts += [f"{name} {getattr(a, name)}" for name, usual in switches.items() if getattr(a, name) != usual]
    if a.halt_by == "residual":
        parts.append(f"halts if the residual < {a.halt_residual:g}")
    elif a.halting_head:
        parts.append(f"halts if q_halt > {0 if a.no_ACT_continue else 'q_continue'}")
    return ", ".join(parts)


def activation_bytes(system: System, L: int) -> int:
    """Estimate, per example: what the calls with gradient keep for the backward pass.

    With remat that is the state and the injection of each call, and the inside of the one that is computed anew.
    """
    a, model = system.experiment.arch, system.model
    width = 2 if a.forward_dtype == "bfloat16" else 4
    T, D = model.T, a.hidden_size
    mlp = 3 * T * (a.mlp_hidden_size or swiglu_hidden(D, a.expansion))
    mixer = 3 * D * (a.mixer_hidden_size or swiglu_hidden(T, a.expansion)) if a.mlp_t else 5 * T * D
    if units := Units.read(a, system.shape):
        mixer = 3 * T * units.kinds * a.mixer_hidden_size
    calls = L + 1 - detached_calls(model, L)
    inside = mlp + mixer + 6 * T * D  # of a layer
    last = a.H_layers or a.L_layers
    if a.remat:
        return (calls * 2 * T * D + max(a.L_layers, last) * inside) * width
    return ((calls - 1) * a.L_layers + last) * inside * width


