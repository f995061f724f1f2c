"""The three measurements on a scripted network, whose right answers and costs are known."""

import json

import numpy as np
import pytest

from tests import scripted, tiny
from tests.scripted import NEVER, blanked
from trm_jax import puzzles
from trm_jax.inference.settings import Settings
from trm_jax.models.network import Weights
from trm_jax.reports import bench_inference
from trm_jax.reports.bench_inference import BenchError, Contestant
from trm_jax.weights import weights_file


class Counted(scripted.Scripted):
    """Knows what it would cost."""

    def calls_flops(self, calls):
        return 100 * calls


class Scripted(weights_file.Export):
    model = Counted()
    domain = scripted.DOMAIN


@pytest.fixture
def subject():
    blanks = [3, 9, 1, NEVER, 6, 2, 4]
    inputs = np.stack([blanked(b) for b in blanks])
    labels = np.tile(scripted.GRID, (len(blanks), 1))
    return Contestant(Scripted(None, None, {}, Weights({}, {}, None), {"L": 2}), inputs, labels,
                   {"dataset": "here", "examples": len(blanks), "L": 2, "device": "this"})


def test_batching_counts_what_both_did(subject, tmp_path):
    out = tmp_path / "b.json"
    r = bench_inference.batching(subject, Settings(max_cycles=200, settle=4, batch_size=4), 4, out)
    assert r["fixed"]["core_calls"] == 8 * 200 * 3 and r["fixed"]["right"] == 6
    settled, asked = r["settling"], r["settling_or_verified"]
    assert settled["finished"] == settled["finished_and_same"] == settled["right"] == 6
    assert settled["stops"]["settled"] == 6 and settled["stops"]["budget"] == 1 and settled["verified"] == 0
    assert asked["verified"] == 6 and asked["mean_cycles"] <= settled["mean_cycles"]
    assert settled["fewer_core_calls"] == r["fixed"]["core_calls"] / settled["core_calls"] > 3
    text = bench_inference.show_batching(subject.facts | r)
    assert text.startswith("7 puzzles of here, at most 200 cycles of 3 calls, this") and "settling or verified" in text
    kept = bench_inference.fixed_unroll(subject, 200, 4, out)
    assert kept[1] == r["fixed"]["seconds"], "finished batches are not done again"
    with pytest.raises(BenchError, match="of another measurement"):
        bench_inference.fixed_unroll(subject, 300, 4, out)


def test_speed(subject):
    r = bench_inference.speed(subject, (1, 4), 0.01)["speed"]
    assert [s["batch_size"] for s in r] == [1, 4]
    for s in r:
        assert 0 < s["lowest"] <= s["cycles_per_second"] <= s["highest"]
        np.testing.assert_allclose(s["flops_per_second"], s["puzzle_cycles_per_second"] * 300)


def test_spend_gives_every_way_the_same(subject):
    r = bench_inference.spend(subject, 12, (1, 3), ("symmetry", "start"), Settings(batch_size=4))
    assert [(s["vary"], s["restarts"], s["cycles_each"]) for s in r["spend"]] == [
        ("", 1, 12), ("symmetry", 3, 4), ("start", 3, 4)]
    deep, broad, _ = r["spend"]
    assert set(deep["chosen_by"].values()) == {deep["right_at_the_end_of_any"]} == {deep["with_verifier"]} == {6}
    assert broad["with_verifier"] >= 4, "restart 0 is the plain one: puzzles of up to 4 blanks are solved"
    assert deep["mean_cycles_with_verifier"] <= 12
    assert "symmetry" in bench_inference.show_spend(subject.facts | r)


def test_commands(tmp_path, capsys):
    tiny.make_dataset(tmp_path / "data", test=9)
    weights_file.save(tmp_path / "w", tiny.export())
    source = [f"--weights={tmp_path / 'w'}", "--compilation_cache=", f"--data={tmp_path / 'data'}"]
    out = tmp_path / "r.json"
    assert bench_inference.main(["spend", *source, "--cycles=2", "--restarts=1,2", "--vary=start", "--examples=4",
                                 f"--out={out}"]) == 0
    result = json.loads(out.read_text())
    assert result["examples"] == 4 and result["sample"] == "a seeded sample of 9" and len(result["spend"]) == 2
    assert "right, in %" in capsys.readouterr().out
    assert bench_inference.main(["spend", *source, "--max_cycles=3", "--tries=2"]) == 2
    assert "--max_cycles=3 cannot be shared out among 2 tries" in capsys.readouterr().err
    profiled = ["--max_cycles=4", f"--profile={tmp_path / 'p'}", f"--out={out}"]
    assert bench_inference.main(["engine", *source, *profiled]) == 0
    assert "the device waits for the engine in" in capsys.readouterr().out and (tmp_path / "p/profile.json").exists()
    result = json.loads(out.read_text())
    assert 0 < result["cycles"] <= result["slot_cycles"] and {"fill", "collect"} <= set(result["idle_while"])
    assert {"jit_advanced", "jit_begin"} <= set(result["programs"])
    other = tiny.make_dataset(tmp_path / "six", domain=puzzles.get("sudoku", box_rows=2, box_cols=3))
    assert bench_inference.main(["speed", *source[:2], f"--data={other}"]) == 2
    assert "puzzles of another size" in capsys.readouterr().err
