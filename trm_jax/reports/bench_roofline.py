"""What a training step must do on a GPU that is not at hand: kernels, products, bytes, and the time of that at least.

    python -m trm_jax bench roofline --config=rsm_sudoku --device="NVIDIA H100 80GB HBM3"

The step is compiled for the device by its toolchain, which comes with pip install 'jax[cuda13]' and needs no GPU.
Kernels are XLA's choice without trying them out, which would need one. Peaks are the data sheet's. The roof of a kernel
is the larger of its products over the peak and its bytes over the bandwidth, as in a profile (xla_profile.py); the sum
of the roofs is what no execution of this program can beat, kernel by kernel.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trm_jax import config
from trm_jax.reports import bench_step, hlo, xla_profile
from trm_jax.runtime import arguments, distributed, files, peaks
from trm_jax.runtime.errors import UserError, guarded
from trm_jax.runtime.text import human, table
from trm_jax.training import step as step_lib
from trm_jax.training.supervision import Batch
from trm_jax.training.system import System

# Compute capability 9.0: what XLA's compiler asks of a GPU, by the data sheet and NVIDIA's tables of occupancy.
HOPPER = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth:.0f} l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: {memory} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 }} registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }} device_description_str: "{name}"
"""
MEMORY = {"NVIDIA H100 80GB HBM3": 84_942_979_072, "NVIDIA H200": 150_754_820_096}
# Dense products by operand type, as shares of the bfloat16 peak: float32 as TF32.
SHARES = {"bf16": 1.0, "f16": 1.0, "f32": 0.5}
NO_KERNEL = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call",
             "after-all", "partition-id", "replica-id")


class RooflineError(UserError):
    """A program that cannot be compiled for the device."""


def compiled(experiment: config.Experiment, device: str) -> tuple[System, int, int, hlo.Module]:
    """(system, H, L, program of its last stage), for one such GPU."""
    steps, shape = max(experiment.total_steps, 1000), bench_step.shape_of(experiment)
    system = System(experiment, shape, steps)
    *_, (_, _, H, L) = system.curriculum.stages()
    target = HOPPER.format(name=device, memory=MEMORY[device], bandwidth=peaks.DATA_SHEET[device][1])
    try:
        [gpu] = topologies.get_topology_desc(platform="cuda", target_config=target, topology="1x1x1").devices
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise RooflineError(f"no compiler for {device} ({str(error).splitlines()[0]:.200}): "
                            "pip install 'jax[cuda13]'") from None
    mesh = Mesh(np.array([gpu]), (distributed.AXIS,))

    def placed(tree: Any, specs: Any) -> Any:
        return jax.tree.map(lambda a, spec: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec)),
                            tree, specs)
    specs, B, S = step_lib.state_specs(system, mesh), experiment.global_batch_size, shape.seq_len
    state = jax.eval_shape(system.init_state)
    state = type(state)(*(placed(part, jax.tree.map(lambda _, s=spec: s, part) if isinstance(spec, P) else spec)
                          for part, spec in zip(state, specs)))
    row = jax.ShapeDtypeStruct((B,), jnp.int32)
    tokens = jax.ShapeDtypeStruct((B, S), jnp.int32)
    batch = placed(Batch(tokens, tokens, row), Batch(*[P(distributed.AXIS)] * 3))
    with mock.patch.object(jax, "default_backend", lambda: "gpu"):  # what the network asks when it chooses a form
        program = step_lib.make_step(system, mesh, L).trace(state, batch).lower(lowering_platforms=("cuda",)).compile()
    return system, H, L, hlo.of(program)


class Executed(NamedTuple):
    instruction: hlo.Instruction
    times: int
    loops: tuple[str, ...]  # in which it is


def executed(instructions: Sequence[hlo.Instruction], warm_up: int, times: int = 1,
             loops: tuple[str, ...] = ()) -> Iterator[Executed]:
    """The kernels of a computation, with how often they run. Of the branches of a condition the one with the fewest
    products counts (a step whose history is detached: 99 of 100 of the published recipe).

    Args:
      warm_up: trips of a loop whose number only the device knows.
    """
    for i in instructions:
        if i.opcode == "while":
            trips = warm_up if i.trips is None else i.trips
            yield from executed(i.body, warm_up, times * trips, (*loops, i.name))
        elif i.opcode == "conditional":
            branches = [list(executed(branch, warm_up, times, loops)) for branch in i.called]
            yield from min(branches, key=lambda branch: sum(_flops(e) for e in branch))
        elif i.opcode == "call":
            yield from executed(i.body, warm_up, times, loops)
        elif i.opcode not in NO_KERNEL and not i.opcode.endswith("-done"):
            yield Executed(i, times, loops)


def _flops(e: Executed) -> float:
    return e.times * xla_profile.operation(e.instruction).flops


def roofline(experiment: config.Experiment, device: str) -> dict[str, Any]:
    """As JSON, like a profile: of one step."""
    system, H, L, module = compiled(experiment, device)
    peak, bandwidth = peaks.DATA_SHEET[device]
    machine = {"products": {kind: share * peak for kind, share in SHARES.items()}, "bandwidth": {"memory": bandwidth}}
    groups: dict[tuple[str, str], dict[str, float]] = collections.defaultdict(
        lambda: dict.fromkeys(("calls", "flops", "bytes", "roof_seconds"), 0.0))
    bodies: dict[tuple[str, ...], dict[str, float]] = collections.defaultdict(
        lambda: dict.fromkeys(("times", "kernels", "flops", "bytes", "roof_seconds"), 0.0))
    for e in executed(module.entry, H - 1):
        op = xla_profile.operation(e.instruction)
        values = {"flops": op.flops, "bytes": op.bytes, "roof_seconds": xla_profile.roof(op, machine)}
        body, group = bodies[e.loops], groups[op.kind, op.phase]
        body["times"], body["kernels"] = e.times, body["kernels"] + 1
        group["calls"] += e.times
        for name, value in values.items():
            body[name] += value
            group[name] += e.times * value
    rows = [{"kind": kind, "phase": phase, **values} for (kind, phase), values in groups.items()]
    total = sum(row["roof_seconds"] for row in rows)
    model = experiment.global_batch_size * system.train_flops_per_example(H, L)
    return {"config_batch": experiment.global_batch_size, "H": H, "L": L, "device": device, "peak": peak,
            "bandwidth": bandwidth, "model_flops": model, "executed_flops": sum(row["flops"] for row in rows),
            "bytes": sum(row["bytes"] for row in rows), "kernels": sum(row["calls"] for row in rows),
            "roof_seconds": total, "most_mfu": model / total / peak,
            "bodies": [{"loops": list(loops), **values} for loops, values in bodies.items()],
            "groups": sorted(rows, key=lambda row: -row["roof_seconds"]), "versions": distributed.versions()}


def show(r: dict[str, Any]) -> str:
    def row(v: dict[str, Any]) -> list[str]:
        return [human(v["flops"], "FLOP") if v["flops"] else "", human(v["bytes"], "B"),
                f"{v['flops'] / v['bytes']:.0f}" if v["flops"] and v["bytes"] else "", f"{1e3 * v['roof_seconds']:.3f}"]
    top, rest = r["groups"][:xla_profile.SHOWN], r["groups"][xla_profile.SHOWN:]
    rows = [[g["kind"], g["phase"], f"{g['calls']:,.0f}", *row(g), f"{g['roof_seconds'] / r['roof_seconds']:.1%}"]
            for g in top]
    if rest:
        s = {name: sum(g[name] for g in rest) for name in ("calls", "flops", "bytes", "roof_seconds")}
        rows.append([f"{len(rest)} other groups", "", f"{s['calls']:,.0f}", *row(s),
                     f"{s['roof_seconds'] / r['roof_seconds']:.1%}"])
    bodies = sorted(r["bodies"], key=lambda b: -b["times"] * b["roof_seconds"])
    memory = sum(g["roof_seconds"] for g in r["groups"] if not g["flops"])
    return "\n".join([
        f"one training step, batch {r['config_batch']}, H {r['H']}, L {r['L']}, compiled for one {r['device']} "
        f"({human(r['peak'], 'FLOP/s')} of bfloat16, {human(r['bandwidth'], 'B/s')}, by its data sheet)",
        f"{human(r['model_flops'], 'FLOP')} of the model, {human(r['executed_flops'], 'FLOP')} executed, "
        f"{human(r['bytes'], 'B')} moved, {r['kernels']:,.0f} kernels: at least {1e3 * r['roof_seconds']:.1f} ms, "
        f"{memory / r['roof_seconds']:.0%} of it in kernels without products; MFU at most {r['most_mfu']:.1%}",
        table(["kernels", "phase", "calls", "products", "moved", "FLOP/B", "roof ms", "share"], rows, left=(0, 1)),
        "a run of one body of a loop:",
        table(["in loops", "runs", "kernels", "products", "moved", "FLOP/B", "roof ms"],
              [[" > ".join(b["loops"]) or "none", f"{b['times']:,.0f}", f"{b['kernels']:,.0f}", *row(b)]
               for b in bodies])])


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments.Parser("python -m trm_jax bench roofline", __doc__)
    parser.add_argument("--config", required=True, type=arguments.text, help="experiment, by name or file")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="in the config; repeatable")
    parser.add_argument("--device", choices=sorted(MEMORY), default="NVIDIA H100 80GB HBM3", help="(%(default)s)")
    arguments.add_result(parser)
    args = parser.parse_args(argv)

    def run() -> None:
        result = roofline(config.load(args.config, args.set), args.device)
        files.give(args, result, show(result))
    return guarded(run)
