"""A comparison trains each system for the same time on the same data, keeps what is finished, says what it found."""

import dataclasses
import json
import math
import os
import textwrap

import pytest

from tests import tiny
from trm_jax import config
from trm_jax.data.loading import Dataset
from trm_jax.data.shape import Shape
from trm_jax.jobs import train
from trm_jax.models.network import Model
from trm_jax.reports import compare, compare_tables
from trm_jax.reports.compare import CompareError, Entry, Terms
from trm_jax.runtime import checkpoints, metrics
from trm_jax.training.system import System

SETTINGS = Terms(minutes=0.2, flops=0.0, evaluations=2, calls=8, examples=0, examples_during=8, changes={})
DEEP = {"supervision": "deep", "halting_head": True, "tie_head": False, "prob_detach_prev_H": 1.0, "halt_max_steps": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_dataset(tmp_path_factory.mktemp("data") / "sudoku4")


@pytest.fixture(scope="module")
def files(data, tmp_path_factory):
    """Experiment files of two small systems, one whose H grows and one with deep supervision."""
    folder = tmp_path_factory.mktemp("experiments")
    for name, changes in (("grows", {"curriculum_milestones": [50.0], "curriculum_heads_to_add": [1]}),
                          ("deep", {"arch": DEEP})):
        raw = config.to_json(tiny.experiment(data, **changes))
        (folder / f"{name}.py").write_text(textwrap.dedent(f"""
            from trm_jax import config
            def get_config(variant=""):
                return config.to_config_dict(config.parse({raw!r}))
            """))
    return [str(folder / "grows.py"), str(folder / "deep.py:quick")]


def entry(data, **changes) -> Entry:
    return Entry("x", tiny.experiment(data, **changes), None)


# What is compared.


@pytest.mark.parametrize("changes, H, L, calls", [
    ({}, 4, 2, 12), ({"supervision": "deep", "H_cycles": 3}, 4, 2, 36), ({"recursion": "single_z"}, 2, 6, 14),
    ({"recursion": "direct", "supervision": "deep", "H_cycles": 1, "L_cycles": 0}, 1, 0, 1)])
def test_core_calls_are_what_the_recursion_does(changes, H, L, calls):
    arch = dataclasses.replace(config.Arch(hidden_size=8, puzzle_emb_ndim=0, puzzle_emb_len=0), **changes)
    assert compare.core_calls(arch, H, L) == calls
    model = Model(arch, Shape(16, 6))
    assert calls * model.core_flops() == H * model.test_cycles * model.calls_flops(L + 1)


def test_a_run_is_as_long_as_its_time_and_its_schedule_as_long_as_the_run(data):
    one = entry(data, total_steps=1000, lr_warmup_steps=100, transition_lr_warmup_steps=10,
                curriculum_milestones=[50.0], curriculum_heads_to_add=[1],
                curriculum_L_milestones=[60.0], curriculum_L_to_add=[1],
                eval={"H_test": [1, 2, 3, 4], "L_test": [7]})
    raw = compare.plan(one, 5, {"seconds_per_step": 0.05, "own_steps": 1000}, SETTINGS)
    assert (raw["total_steps"], raw["seed"]) == (240, 5)
    assert (raw["lr_warmup_steps"], raw["transition_lr_warmup_steps"]) == (24, 2)
    assert raw["curriculum_milestones"] == [50.0]
    assert raw["eval"]["H_test"] == [2] and raw["eval"]["L_test"] == [], "2 cycles of 3 + 1 calls are 8"
    assert raw["eval"]["interval_steps"] == 120 and 120 % raw["log"]["interval_steps"] == 0
    assert compare.plan(one, 0, {"seconds_per_step": 0.05, "own_steps": 1000},
                        dataclasses.replace(SETTINGS, calls=1))["eval"]["H_test"] == [1], "the least there is"
    with pytest.raises(CompareError, match="x does 2 steps in 0.2 minutes.*more --minutes"):
        compare.plan(one, 0, {"seconds_per_step": 5.0, "own_steps": 1000}, SETTINGS)


def test_a_run_is_as_long_as_its_operations_or_as_its_config_says(data):
    one = entry(data, total_steps=1000, lr_warmup_steps=100, curriculum_milestones=[50.0], curriculum_heads_to_add=[2])
    known = compare.measure_pace(config.to_json(one.experiment), 0.0)
    system = System(one.experiment, Dataset.load(one.experiment).shape, 1000)
    low, high = (system.train_flops_per_example(H, 2) for H in (2, 4))
    assert known == {"own_steps": 1000, "flops_per_step": pytest.approx(16 * (low + high) / 2, rel=1e-4)}
    by_flops = dataclasses.replace(SETTINGS, minutes=0.0, flops=50.5 * known["flops_per_step"])
    raw = compare.plan(one, 0, known, by_flops)
    assert (raw["total_steps"], raw["lr_warmup_steps"]) == (50, 5) and by_flops.seconds == math.inf
    own = dataclasses.replace(SETTINGS, minutes=0.0)
    assert own.own and not by_flops.own and compare.plan(one, 0, known, own)["total_steps"] == 1000
    with pytest.raises(CompareError, match="x does 1 steps in .* FLOP, too few for 2 evaluations"):
        compare.plan(one, 0, known, dataclasses.replace(by_flops, flops=1.5 * known["flops_per_step"]))


def test_what_cannot_be_compared_is_refused(files, tmp_path):
    with pytest.raises(CompareError, match="deep:quick more than once"):
        compare.entries([*files, files[1]], {}, tmp_path)
    with pytest.raises(config.ConfigError, match="batch_size: unknown field"):
        compare.entries(files, {"batch_size": 3}, tmp_path)
    same = compare.entries(files, {"data.path": "elsewhere", "lr": 0.5}, tmp_path)
    assert [(e.name, e.experiment.data.path, e.experiment.lr) for e in same] == [
        ("grows", "elsewhere", 0.5), ("deep:quick", "elsewhere", 0.5)]
    assert same[1].folder == tmp_path / "deep-quick"
    other = tmp_path / "other.py"
    other.write_text("from trm_jax import config\ndef get_config(variant=''):\n    return config.default()\n")
    with pytest.raises(CompareError, match="grows and other do not train on the same data: data.path"):
        compare.entries([files[0], str(other)], {}, tmp_path)
    assert len(compare.entries([files[0], str(other)], {}, tmp_path, own=True)) == 2
    compare.claim(tmp_path, SETTINGS)
    compare.claim(tmp_path, SETTINGS)
    with pytest.raises(CompareError, match="another comparison: minutes: 0.2, now 3"):
        compare.claim(tmp_path, dataclasses.replace(SETTINGS, minutes=3))


# Time.


def test_a_run_that_has_had_its_time_is_over(data, tmp_path):
    e = tiny.experiment(data)
    first = train.train(e, tmp_path / "run", seconds=1e-9)
    assert first["step"] == 1 and first["train_seconds"] > 1e-9
    again = train.train(e, tmp_path / "run", seconds=1e-9)
    assert again["figures"] == first["figures"] and again["train_seconds"] == first["train_seconds"]
    long = tiny.experiment(data, total_steps=100_000, checkpoint={"interval_steps": 1000})
    timed = train.train(long, tmp_path / "timed", seconds=0.5)
    assert 0.5 <= timed["train_seconds"] < 5 and 1 < timed["step"] < 100_000
    with checkpoints.Checkpointer(tmp_path / "timed", read_only=True) as reader:
        assert reader.latest_step() == timed["step"], "evaluated and saved where it stood"
    more = train.train(e, tmp_path / "run")  # without a limit it goes on to its end, and the clock with it
    assert more["step"] == e.total_steps and more["train_seconds"] > first["train_seconds"]
    assert more["compile_seconds"] > 0


def test_the_pace_is_measured_in_every_stage(data):
    e = tiny.experiment(data, curriculum_milestones=[25.0], curriculum_heads_to_add=[2])
    pace = compare.measure_pace(config.to_json(e), 0.01)
    assert [(s["H"], s["L"]) for s in pace["stages"]] == [(2, 2), (4, 2)]
    assert sum(s["share"] for s in pace["stages"]) == pytest.approx(1)
    assert pace["stages"][0]["share"] == pytest.approx(0.25, abs=1e-5)
    low, high = sorted(s["seconds_per_step"] for s in pace["stages"])
    assert 0 < low <= pace["seconds_per_step"] <= high
    assert pace["own_steps"] == e.total_steps


# A comparison.


class Interruption(Exception):
    pass


def test_a_comparison_continues_and_reports(files, tmp_path, monkeypatch, capsys):
    """Runs in this process, at a pace that is given, so that only the comparison itself is timed."""
    pace = {"seconds_per_step": 1.0, "own_steps": 8}
    monkeypatch.setattr(compare, "measure_pace", lambda raw, seconds: pace)
    monkeypatch.setattr(compare, "alone", lambda function, *args: function(*args))
    write, wrote = metrics.MetricWriter.write, []

    def interrupted(self, step, values):
        write(self, step, values)
        wrote.append(step)
        if len(wrote) > 12 and step == 8:  # in the second run, after its first evaluation
            raise Interruption
    command = ["--configs=" + ",".join(files), "--minutes=0.2", "--seeds=0", "--evaluations=2", "--calls=8",
               "--examples=0", "--examples_during=8", f"--out={tmp_path}"]
    monkeypatch.setattr(metrics.MetricWriter, "write", interrupted)
    with pytest.raises(Interruption):
        compare.main(command)
    monkeypatch.setattr(metrics.MetricWriter, "write", write)
    kept = tmp_path / "grows" / "seed0" / compare.MEASURED
    before = kept.stat().st_mtime_ns
    assert not (tmp_path / "deep-quick" / "seed0" / compare.MEASURED).exists()
    assert "| grows" in (tmp_path / "table.md").read_text()
    with checkpoints.Checkpointer(tmp_path / "deep-quick" / "seed0", read_only=True) as reader:
        assert reader.latest_step() == 6

    assert compare.main(command) == 0
    out, log = capsys.readouterr()
    assert kept.stat().st_mtime_ns == before, "what is finished is kept"
    assert "deep-quick/seed0: continues from step 6" in log
    assert out.startswith("| system") and "deep:quick" in out and out.strip() in (tmp_path / "table.md").read_text()
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")

    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["systems"]) == ["grows", "deep:quick"]
    for name, depths in (("grows", [(1, 3), (3, 9)]), ("deep:quick", [(1, 6), (3, 18)])):
        run = results["systems"][name]["0"]
        assert (run["steps"], run["planned_steps"], run["batch"]) == (12, 12, 16)
        assert [point["step"] for point in run["curve"]] == [6, 12]
        assert 0 < run["curve"][0]["train_seconds"] < run["curve"][1]["train_seconds"] == run["train_seconds"]
        assert [point["calls"] for point in run["curve"]] == [depths[0][1]] * 2 and run["curve"][0]["n"] == 8
        assert [(point["H_test"], point["calls"]) for point in run["depth"]] == depths
        assert run["depth"][0]["n"] == 13 and run["peak_memory"] > 0
        assert run["examples_per_second"] == pytest.approx(12 * 16 / run["train_seconds"])
    grows = results["systems"]["grows"]["0"]
    assert results["systems"]["deep:quick"]["0"]["parameters"] > grows["parameters"]
    assert grows["depth"][1]["flops_per_example"] == 3 * grows["depth"][0]["flops_per_example"]

    assert compare.main([*command[:1], "--minutes=0.3", *command[2:]]) == 2
    assert "holds another comparison: minutes: 0.2, now 0.3" in capsys.readouterr().err


def die():
    os._exit(9)


def test_a_run_has_a_process_of_its_own():
    assert compare.alone(os.getpid) != os.getpid()
    with pytest.raises(ValueError, match="math domain error|nonnegative"):
        compare.alone(math.sqrt, -1.0)
    with pytest.raises(CompareError, match="was ended from outside"):
        compare.alone(die)


def test_the_table_gives_mean_and_range_and_names_what_was_cut():
    def run(exact, steps):
        point = {"H_test": 4, "L_test": 2, "calls": 12, "n": 10, "exact_accuracy": exact, "flops_per_example": 2.5e9,
                 "verified": 0.75}
        return {"parameters": 1234, "batch": 32, "steps": steps, "planned_steps": 100, "train_seconds": 60.2,
                "compile_seconds": 3.0, "evaluation_seconds": 2.0, "examples_per_second": 10.0,
                "train_flops_per_example": 3e9, "peak_memory": 2**30, "peak_memory_of": "process",
                "curve": [], "depth": [point, point | {"calls": 24, "H_test": 8, "exact_accuracy": None}],
                "dataset": "data/x", "examples": 10, "device": "1 x cpu", "versions": {"jax": "1"}, "finished": "now"}
    other = run(0.5, 100)
    text = compare_tables.table({"settings": {"minutes": 1.0, "calls": 16},
                             "systems": {"a": {"0": run(0.5, 100), "1": run(0.25, 90)},
                                         "b": {"0": other | {"depth": other["depth"][:1]}}}})
    row = [cell.strip() for cell in text.splitlines()[2].strip("|").split("|")]
    assert row[:9] == ["a", "37.50 (25.00 to 50.00)", "12 calls (H_test 4, L 2)", "0.00", "24 calls (H_test 8, L 2)",
                       "1,234", "3.00 G", "2.50 G", "10"]
    assert row[10] == "95 (90 to 100) of 100" and row[14] == "1,024 MiB of the process"
    assert "short of the end of their schedules:** a seed 1 at 90%." in text
    assert "seeds 0, 1: mean (lowest to highest)" in text and "Exact: share of 10 test puzzles" in text

    alike = {"0": other | {"solved": {"restarts": 8, "verified": 0.875}}}
    settings = {"minutes": 0.0, "flops": 2e9, "own": False, "calls": 16, "changes": {"lr": 0.5}}
    text = compare_tables.table({"settings": settings, "systems": {"a": alike, "b": alike}})
    head, _, row, *_ = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    assert head[:5] == ["system", "exact %, H 4", "H 8", "verified %, at most 8 tries", "parameters"]
    assert row[:5] == ["a", "50.00", "0.00", "87.50", "1,234"], "a column for every depth that all have"
    assert "2.00 GFLOP of matrix products" in text and "Set in every config: lr = 0.5." in text
    text = compare_tables.table({"settings": settings | {"flops": 0.0, "own": True}, "systems": {"a": alike}})
    head, _, row, *_ = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    assert (head[4:6], row[4:6]) == (["data", "exact of"], ["data/x", "10"]) and "each config as it is" in text

    mazes = {"settings": {"minutes": 1.0, "calls": 16},
             "systems": {"a": {"0": run(0.5, 100) | {"verified_as": "shortest path"}}}}
    head, _, row, *_ = ([cell.strip() for cell in line.strip("|").split("|")]
                        for line in compare_tables.table(mazes).splitlines())
    assert (head[2], head[5]) == ("shortest path %",) * 2
    assert [*row[1:3], *row[4:6]] == ["50.00", "75.00", "0.00", "75.00"]
    last = compare_tables.figure(mazes).axes[-1]
    assert [line.get_ydata().tolist() for line in last.lines if line.get_linestyle() == ":"] == [[75, 75]]
