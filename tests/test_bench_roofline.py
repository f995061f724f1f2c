"""What a program must do, counted in its kernels: loops as often as they run, the cheaper branch of a condition."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from trm_jax.reports import bench, bench_roofline, hlo, xla_profile


def test_kernels_are_counted_as_often_as_they_run():
    """Products x [64, 32] @ [32, 32]: 7 in a loop that XLA can count, 5 in one whose trips only the device knows;
    of a condition the branch without a product counts."""
    x, w = jnp.ones((64, 32)), jnp.full((32, 32), 1e-3)

    def program(x, w, n, flag):
        x = lax.fori_loop(0, 7, lambda _, x: jnp.tanh(x @ w), x)
        x = lax.fori_loop(0, n, lambda _, x: jnp.tanh(x @ w), x)
        return lax.cond(flag, lambda x: jnp.sin(x @ w), jnp.cos, x)
    module = hlo.of(jax.jit(program).lower(x, w, jnp.int32(3), True).compile())
    found = list(bench_roofline.executed(module.entry, warm_up=5))
    products = [e for e in found if xla_profile.operation(e.instruction).flops]
    assert sorted((e.times, len(e.loops)) for e in products) == [(5, 1), (7, 1)]
    assert {xla_profile.operation(e.instruction).kind for e in products} == {"product 64x32x32 f32"}
    assert {e.instruction.opcode for e in found}.isdisjoint({"while", "tuple", "parameter", "conditional"})


def test_without_a_compiler_for_the_device_a_line_says_what_to_install(capsys, monkeypatch):
    def none(**_):
        raise RuntimeError("no such plugin\nand so on")
    monkeypatch.setattr(bench_roofline.topologies, "get_topology_desc", none)
    assert bench.main(["roofline", "--config=rsm_sudoku:quick", "--set=data.path=no-dataset"]) == 2
    assert capsys.readouterr().err == ("error: no compiler for NVIDIA H100 80GB HBM3 (no such plugin): pip install "
                                       "'jax[cuda13]'\n")


def test_what_is_printed():
    row = {"kind": "product 8x8x8 bf16", "phase": "forward", "calls": 2, "flops": 4e9, "bytes": 1e6,
           "roof_seconds": .004}
    other = row | {"kind": "add [8]", "flops": 0.0, "roof_seconds": .001}
    text = bench_roofline.show({
        "config_batch": 4, "H": 2, "L": 3, "device": "D", "peak": 1e12, "bandwidth": 1e9, "model_flops": 2e9,
        "executed_flops": 4e9, "bytes": 2e6, "kernels": 4, "roof_seconds": .005, "most_mfu": .4, "groups": [row, other],
        "bodies": [{"loops": ["while.1"], "times": 2, "kernels": 1, "flops": 2e9, "bytes": 5e5, "roof_seconds": .002}]})
    assert "4 kernels: at least 5.0 ms, 20% of it in kernels without products; MFU at most 40.0%" in text
    assert text.splitlines()[-1].split() == ["while.1", "2", "1", "2.00", "GFLOP", "500", "kB", "4000", "2.000"]


@pytest.mark.parametrize("device", bench_roofline.MEMORY)
def test_a_device_has_a_data_sheet(device):
    assert device in bench_roofline.peaks.DATA_SHEET
