"""The profile of an artificial program whose products and bytes are known, and of a training step."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from tests import tiny
from trm_jax import main
from trm_jax.reports import bench_step, xla_profile
from trm_jax.reports.xla_profile import Operation, ProfileError, Span, Timeline, Window
from trm_jax.runtime import peaks

MACHINE = {"device": "this", "products": {"f32": 1e9, "bf16": 2e9}, "bandwidth": {"cache": 1e9, "memory": 1e8},
           "data_sheet": None}


def test_flops_and_bytes_of_a_loop_are_counted_as_often_as_it_runs(tmp_path):
    """7 times x [256, 128] @ w [128, 128] in a loop, whose body is in the program once."""
    x, w = jnp.ones((256, 128)), jnp.full((128, 128), 1e-3)
    compiled = jax.jit(lambda x, w: lax.fori_loop(0, 7, lambda _, x: jnp.tanh(x @ w), x)).lower(x, w).compile()
    result = xla_profile.profile(lambda: jax.block_until_ready(compiled(x, w)), tmp_path, 1e6, steps=3)
    [product] = [row for row in result["groups"] if row["flops"]]
    assert product["kind"] == "product 256x128x128 f32" and product["calls"] == 7
    assert product["flops"] == result["executed_flops"] == 7 * 2 * 256 * 128 * 128
    assert product["bytes"] == 7 * 4 * (2 * 256 * 128 + 128 * 128)
    assert all(row["seconds"] >= 0 for row in result["groups"])
    assert 0 < result["accounted_share"] <= 1 and 0 <= result["idle_share"] < 1
    assert {name for name, value in result["machine"]["products"].items() if value > 1e8} == {"f32", "bf16"}
    assert "limited by" in xla_profile.show(result).splitlines()[-1]
    xla_profile.keep(result, tmp_path)
    assert json.loads((tmp_path / "profile.json").read_text())["executed_flops"] == result["executed_flops"]
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb")), "what XProf opens"


def test_the_fastest_step_is_accounted_for():
    """Two steps of 100 and of 60 ms; in the second: a loop of 50 ms around a product of 30 ms."""
    program = {"while.1": Operation("while []", "forward", 0, 0, ""),
               "dot.1": Operation("product 10x10x10 bf16", "backward", 1.8e7, 1e3, "bf16")}
    found = [Span("dot.1", "step", 10e6, 90e6, 90e6), Span("while.1", "step", 105e6, 20e6, 50e6),
             Span("dot.1", "step", 110e6, 30e6, 30e6), Span("copy.9", "other", 156e6, 3e6, 3e6)]
    trace = Timeline(found, [Window(0, 100e6), Window(100e6, 60e6)], [Window(150e6, 8e6, "input")])
    r = xla_profile.account({("step", 0): program}, trace, MACHINE, 1e7)
    assert [(g["kind"], g["calls"], round(g["seconds"], 6)) for g in r["groups"]] == [
        ("product 10x10x10 bf16", 1, 0.03), ("loops and branches", 1, 0.02)]
    assert r["groups"][0]["roof_seconds"] == 0.009 and r["peak_of"] == "bf16"
    assert r["step_seconds"]["fastest"] == 0.06 and r["step_seconds"]["median"] == 0.08
    assert r["mfu"] == pytest.approx(1e7 / 0.06 / 2e9) and r["hfu"] == pytest.approx(1.8 * r["mfu"])
    assert r["accounted_share"] == pytest.approx(50 / 60) and r["idle_share"] == pytest.approx(7 / 60)
    text = xla_profile.show(r)
    assert r["idle_while"] == {"input": pytest.approx(1 / 60)}
    assert r["programs"] == {"other": pytest.approx(3 / 60), "step": pytest.approx(50 / 60)}
    assert "between those of a program 5.0%; idle 11.67% (input 1.67%, other 10.00%)" in text
    assert text.endswith("limited by matrix products: 50% of the step; products run at 30% of their roof; most is lost "
                         "in product 10x10x10 bf16, backward: 21.0 of 60.0 ms")
    with pytest.raises(ProfileError, match="xla_gpu_enable_command_buffer"):
        xla_profile.account({("another", 0): program}, trace, MACHINE, 1e7)


def test_a_roof_is_of_products_or_of_bytes():
    assert xla_profile.roof(Operation("", "", 4e9, 1e6, "bf16"), MACHINE) == 2
    assert xla_profile.roof(Operation("", "", 4e9, 1e6, "s8"), MACHINE) == 4, "an unknown type counts as float32"
    assert xla_profile.roof(Operation("", "", 0, 2e6, ""), MACHINE) == 0.002
    assert xla_profile.roof(Operation("", "", 0, 1e9, ""), MACHINE) == 10


def test_of_a_training_step(tmp_path, monkeypatch):
    monkeypatch.setattr(peaks, "peaks", lambda: MACHINE)
    e = tiny.experiment(tmp_path / "no-dataset")
    result = bench_step.profile(e, tmp_path / "profile", 2)
    phases = {row["phase"] for row in result["groups"] if row["flops"]}
    assert phases == {"forward", "rematerialised", "backward"}
    # The model's own, one more pass through the calls with gradient, and never less: rematerialisation.
    assert result["model_flops"] < result["executed_flops"] < 2 * result["model_flops"]
    assert bench_step.show_profile(result).startswith("one training step, batch 16, H 2, L 2, ")


def test_idle_is_told_by_executions_and_by_what_the_host_did():
    """Two executions with a gap inside of the first, which is not idle, and one between them of 10."""
    def op(start, length, run):
        return Span("dot.1", "step", start, length, length, 3, run)
    spans = [op(0, 10, 1), op(20, 10, 1), op(40, 20, 2)]
    assert xla_profile.busy(spans) == [(0, 30), (40, 60)]
    assert xla_profile.busy(span._replace(run=0) for span in spans) == [(0, 10), (20, 30), (40, 60)]
    assert xla_profile.overlap([(0, 30), (40, 60)], [(5, 10), (25, 45), (59, 99)]) == 5 + 5 + 5 + 1


def test_steps_of_a_training_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peaks, "peaks", lambda: MACHINE)
    e = tiny.experiment(tiny.make_dataset(tmp_path / "data"))
    file = tiny.config_file(tmp_path, e)
    words = [f"--config={file}", f"--workdir={tmp_path / 'run'}", "--compilation_cache="]
    assert main.train([*words, "--profile_steps=3-6"]) == 0
    text = capsys.readouterr().err
    assert f"steps 3 to 6, traced into {tmp_path / 'run' / 'profile' / 'steps_3-6'}" in text
    result = json.loads((tmp_path / "run" / "profile" / "steps_3-6" / "profile.json").read_text())
    assert result["model_flops"] == tiny.system_of(e).train_flops(3, 6) / 8 < result["executed_flops"]
    assert {"checkpoint", "input", "report"} <= set(result["idle_while"]) and "jit_step" in result["programs"]
    assert main.evaluate([*words, f"--profile={tmp_path / 'evaluated'}"]) == 0
    out = capsys.readouterr().out
    assert "s in all" in out and "limited by" in out
    result = json.loads((tmp_path / "evaluated" / "profile.json").read_text())
    assert 0 < result["model_flops"] <= result["executed_flops"]
    with pytest.raises(SystemExit):
        main.train([*words, "--profile_steps=6-3"])
    assert "'6-3' must be two steps" in capsys.readouterr().err
