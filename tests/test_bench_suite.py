"""The speed ledger: what it reads from commands, and how it compares."""

import json
import subprocess

import pytest

from trm_jax.reports import bench_suite
from trm_jax.reports.bench_suite import Measurement, SuiteError


def test_what_is_read(tmp_path):
    printed = "one training step, ...\n              median ms   min\nas configured   1,064.0   63.1\n"
    assert bench_suite.read("step", printed, tmp_path) == 1.064
    assert bench_suite.read("step", "  median ms\n1,000 rows  336.7  300.1", tmp_path) == pytest.approx(0.3367)
    assert bench_suite.read("pipeline", "with augmentation: 200,000 puzzles/s on one core", tmp_path) == 5e-6
    (tmp_path / "speed.json").write_text(json.dumps({"speed": [{"cycles_per_second": 4.0}]}))
    assert bench_suite.read("speed", "", tmp_path) == 0.25
    with pytest.raises(SuiteError, match="no figure in"):
        bench_suite.read("step", "nothing", tmp_path)


def test_two_trees_in_turns_and_an_earlier_run(tmp_path):
    text = bench_suite.show({"a": {"this": [1.0, 2.0, 1.0], "old": [2.0, 3.0, 4.0]}, "b": {"this": [0.01]}}, "old", {})
    assert text.splitlines()[1].split()[-4:] == ["2.00", "1.50", "to", "4.00"]
    text = bench_suite.show({"b": {"this": [0.01, 0.02]}}, "", {"b": [0.03]})
    assert text.splitlines()[1].split() == ["b", "15", "ms", "10", "ms", "20", "ms", "30", "ms", "2.25", "1.50", "to",
                                            "3.00"]


def test_a_worktree_comes_and_goes(tmp_path):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", *words], check=True,
                       capture_output=True)
    git("init")
    (tmp_path / "file").write_text("old")
    git("add", "file")
    git("commit", "-m", "first")
    (tmp_path / "file").write_text("new")
    with bench_suite.worktree("HEAD", tmp_path) as tree:
        assert (tree / "file").read_text() == "old"
    assert not tree.exists() and (tmp_path / "file").read_text() == "new"
    with pytest.raises(SuiteError, match="--against=nothing"), bench_suite.worktree("nothing", tmp_path):
        pass


def test_a_command_that_fails_is_named(tmp_path):
    with pytest.raises(SuiteError, match="broken in .*No module named trm_nothing"):
        bench_suite.run(Measurement("broken", ("trm_nothing",), "wall"), tmp_path, tmp_path)
    assert bench_suite.run(Measurement("fine", ("json.tool", "--help"), "wall"), tmp_path, tmp_path) > 0


def test_what_the_command_refuses(capsys):
    assert bench_suite.main(["--only=nothing of the kind"]) == 2
    assert "no measurement has such a name" in capsys.readouterr().err
