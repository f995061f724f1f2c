"""The benchmark command: variants side by side, and what it refuses."""

import pytest

from tests import tiny
from trm_jax import config
from trm_jax.reports import bench, bench_step
from trm_jax.runtime import distributed


def test_variants_take_turns(tmp_path):
    e = tiny.experiment(tmp_path / "no-dataset", arch={"puzzle_emb_ndim": 0, "puzzle_emb_len": 0})
    lines = bench_step.show(bench_step.compare(e, ["arch.remat=False,global_batch_size=8"], repeats=2)).splitlines()
    assert "batch 16, H 2, L 2" in lines[0] and "median of 2" in lines[0]
    (name, *first), (changes, *second) = (line.rsplit(maxsplit=11) for line in lines[2:4])
    assert name.strip() == "as configured" and changes.strip() == "arch.remat=False,global_batch_size=8"
    assert "most memory" in lines[4] and 10**8 < distributed.peak_memory()[0] < 10**11
    assert first[3] == "1.00" and all(float(x) > 0 for x in (*first[:3], *second[:3]))


def test_puzzle_tables_of_several_sizes(tmp_path):
    """Compiled only: no time, but the memory."""
    made = bench_step.compare(tiny.experiment(tmp_path / "no-dataset"), [], repeats=0, rows=[10, 2000])
    lines = bench_step.show(made).splitlines()
    assert lines[0].endswith("compiled only")
    assert [line.split(" rows")[0] for line in lines[2:4]] == ["10", "2,000"]
    assert all(line.split()[2:6] == ["-"] * 4 and "B" in line for line in lines[2:4])


@pytest.mark.parametrize("change, message", [
    ("arch.remat", "is not FIELD=VALUE"), ("arch.remta=False", "arch.remta"),
    ("arch.remat=perhaps", "arch.remat = 'perhaps': must be of type bool"),
    ("arch.L_cycles=0", "arch.L_cycles = 0: must be at least 1")])
def test_a_bad_variant_is_named(tmp_path, change, message):
    with pytest.raises(config.ConfigError, match=message):
        bench_step.contender(tiny.experiment(tmp_path), change, 1)


def test_the_command_has_jobs_and_its_old_form(capsys):
    assert bench.main(["step", "--config=no.py"]) == bench.main(["--config=no.py"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == second and "no.py" in first
    assert bench.main(["everything"]) == 2
    assert "step, inference" in capsys.readouterr().err
