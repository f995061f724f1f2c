"""Every experiment file, every variant: parses, describes itself, and shrunk trains, saves and continues."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import tiny
from trm_jax import config, main, puzzles
from trm_jax.jobs import train
from trm_jax.reports import describe
from trm_jax.runtime import checkpoints, peaks

ROOT = Path(__file__).resolve().parents[1]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILES = {path.stem: load(path) for path in sorted((ROOT / "experiments").glob("*.py"))}
# The many ablations are one change each of what is here; tests/test_family.py parses them all and trains their kinds.
ALL = [(name, variant) for name, module in FILES.items() if name != "trm_ablations_sudoku"
       for variant in module.VARIANTS]


def experiment(name, variant) -> config.Experiment:
    return config.parse(FILES[name].get_config(variant))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small dataset folder of every domain."""
    folder = tmp_path_factory.mktemp("data")
    domains = {"sudoku": tiny.SUDOKU4, "maze": puzzles.get("maze", rows=4, cols=4),
               "futoshiki": puzzles.get("futoshiki", size=3), "queens": puzzles.get("queens", size=5)}
    return {name: tiny.make_dataset(folder / name, 32, 8, domain) for name, domain in domains.items()} | {
        "arc": tiny.arc_dataset(folder / "arc", num_aug=1)}


def shrunk(e, path) -> config.Experiment:
    """The same recipe, tiny: fewer, narrower, shorter; of the curricula only the first growth of H.

    So tiny that those of a family are one program on Sudokus and on mazes of 4x4, which is compiled once.
    """
    arch = {"hidden_size": 8, "num_heads": 2, "mlp_hidden_size": 8, "mixer_hidden_size": 8 if e.arch.mlp_t else 0}
    arch |= {name: min(getattr(e.arch, name), most) for name, most in
             (("L_layers", 2), ("H_layers", 1), ("L_cycles", 2))}
    if e.arch.rope_columns:
        arch["rope_columns"] = 4
    if e.arch.puzzle_emb_ndim:
        arch |= {"puzzle_emb_ndim": 8, "puzzle_emb_len": 2}
    firsts = {name: getattr(e, name)[:1] for name in ("curriculum_milestones", "curriculum_heads_to_add")}
    firsts |= {"curriculum_L_milestones": [], "curriculum_L_to_add": []}  # each costs a compile
    return config.parse(tiny.merge(config.to_json(e), firsts | {
        "arch": arch, "data": {"path": str(path)}, "global_batch_size": 8, "total_steps": 6,
        "lr_warmup_steps": 2, "eval": {"H_test": [1, 2], "L_test": [], "interval_steps": 0, "batch_size": 8},
        "checkpoint": {"interval_steps": 2}, "log": {"interval_steps": 1}}))


def test_there_are_the_published_recipe_and_its_variants():
    assert {("rsm_sudoku", v) for v in ("", "1k", "steady", "quick")} <= set(ALL)


@pytest.mark.parametrize("name, variant", ALL)
def test_describes_itself(name, variant):
    e = experiment(name, variant)
    text = describe.describe(e)
    assert f"steps of {e.global_batch_size}" in text
    if (name, variant) in {("rsm_sudoku", v) for v in ("", "1k", "steady")}:
        assert "2,513,920 trained" in text and "14,968 steps of 512" in text


def test_unknown_variants_are_refused_by_name():
    for module in FILES.values():
        with pytest.raises(ValueError, match="no variant 'fast'.*there (are|is)"):
            module.get_config("fast")


def test_the_published_recipe_field_by_field():
    """Spec §4, and the paper's curriculum."""
    e = experiment("rsm_sudoku", "")
    assert (e.arch.H_cycles, e.arch.L_cycles, e.arch.L_layers, e.arch.prob_detach_prev_H) == (2, 2, 1, 0.99)
    assert (e.optimizer, e.lr, e.lr_min_ratio, e.lr_warmup_steps) == ("adam_atan2", 1e-3, 0.02, 2000)
    assert (e.beta1, e.beta2, e.weight_decay, e.grad_clip_norm) == (0.8, 0.9, 0.1, 1.0)
    assert (e.global_batch_size, e.epochs, e.total_steps, e.ema, e.ema_rate) == (512, 2, 0, True, 0.999)
    assert e.arch.tie_head and not e.arch.halting_head and e.arch.loss.loss_type == "stablemax_cross_entropy"
    assert (e.arch.mixer_norm_axis, e.arch.mlp_norm_axis) == ("feature", "feature")
    assert e.curriculum_milestones == (20.1, 40.1, 55.1, 65.1, 75.1, 85.1)
    assert e.curriculum_L_milestones == (30.1, 50.1, 70.1, 80.1, 84.1, 86.1, 88.1, 90.1, 92.1, 94.1)
    assert sum(e.curriculum_heads_to_add) == 6 and sum(e.curriculum_L_to_add) == 10
    assert e.deepen == config.Deepen() and not e.data.augment


def test_the_published_maze_recipe():
    e, sudoku = experiment("rsm_maze", ""), experiment("rsm_sudoku", "")
    assert (e.arch.mlp_t, e.arch.pos_encodings, e.arch.L_layers, e.arch.prob_detach_prev_H) == (False, "rope", 2, 1.0)
    assert (e.epochs, e.global_batch_size, e.weight_decay, e.transition_lr_warmup_steps) == (500, 128, 1.0, 200)
    assert e.curriculum_milestones == (20.1, 40.1, 55.1, 65.1, 75.1, 85.1, 95.1)
    assert e.curriculum_L_milestones == (30.1, 50.1, 70.1)
    for name in ("optimizer", "lr", "lr_min_ratio", "lr_warmup_steps", "beta1", "beta2", "grad_clip_norm", "ema_rate"):
        assert getattr(e, name) == getattr(sudoku, name)
    text = describe.describe(e)
    assert "6,818,816 trained" in text and "3,906 steps of 128" in text
    assert (e.data.puzzle, e.data.augment, e.data.labels) == ("maze", False, "fixed")


@pytest.mark.parametrize("name, variant", [  # an ARC canvas has 900 cells, however tiny the network; test_arc_runs.py
    pytest.param(*case, marks=pytest.mark.slow) if "_arc" in case[0] or case[0] == "side_by_side" or (
        case[0].partition("_")[0] in ("eqr", "fprm", "cgar", "futoshiki", "queens") and case[1] != "quick") else case
    for case in ALL])
def test_shrunk_it_trains_saves_and_continues(name, variant, data, tmp_path):
    e = experiment(name, variant)
    e = shrunk(e, data[e.data.puzzle])
    with jax.numpy_dtype_promotion("standard" if e.optimizer == "adamw" else "strict"):  # optax's Adam: 0.9 ** count
        with tiny.interrupted_after(3):
            train.train(e, tmp_path)
        result = train.train(e, tmp_path)
    losses = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in losses if "loss" in line]
    assert len(losses) == 6 and np.isfinite(losses).all() and len(set(losses)) == 6
    assert [f["n"] for f in result["figures"]] == [8, 8] and result["step"] == 6
    with checkpoints.Checkpointer(tmp_path, read_only=True) as reader:
        assert reader.latest_step() == 6 and reader.best_step() == 6


def test_describe_from_the_command_line():
    done = subprocess.run([sys.executable, "-m", "trm_jax.main", "--config=experiments/rsm_sudoku.py",
                           "--mode=describe"], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2,513,920 trained" in done.stdout


def test_describe_says_the_hours_at_a_speed(capsys, monkeypatch):
    config_name, measured = "--config=rsm_sudoku", []
    monkeypatch.setattr(peaks, "products", lambda kind: measured.append(kind) or 5e14)
    for words, hours in (([], "53 h at 1.00 TFLOP/s ("), (["--flops=4e14"], "0.13 h at 400 TFLOP/s ("),
                         (["--flops=8e14", "--mfu=0.5"], "0.13 h at 400 TFLOP/s (50% of 800 TFLOP/s) "),
                         (["--mfu=0.8"], "0.13 h at 400 TFLOP/s (80% of 500 TFLOP/s, measured here) ")):
        assert main.describe([config_name, *words]) == 0
        assert f"190 PFLOP; {hours}" in capsys.readouterr().out
    assert measured == ["bf16"], "measured once, in the config's type"
    with pytest.raises(SystemExit):
        main.train([config_name, "--mfu=0.8"])
