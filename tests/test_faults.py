"""Random faults: nothing rotten is read, nothing that was saved is lost. With more of them: python -m tests.faults."""

import pytest

from tests import faults


@pytest.mark.parametrize("name", list(faults.SUBJECTS))
@pytest.mark.parametrize("tries", [25, pytest.param(170, marks=pytest.mark.slow)])
def test_flipped_bits_and_cut_files_are_refused(tmp_path, capsys, name, tries):
    said = []
    counts = faults.flips(faults.SUBJECTS[name](tmp_path), tries, seed=tries, say=said.append)
    assert counts["silent"] == counts["traceback"] == 0, said
    assert sum(counts.values()) == tries and counts["refused"] > tries / 2


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_ends_as_if_it_had_not_been(tmp_path, kills):
    said = []
    seen = faults.kill(tmp_path, kills, seed=kills, steps=40 if kills < 5 else 160, say=said.append)
    assert seen.kills == kills and seen.finished >= 1
    assert seen.different == seen.tracebacks == seen.failed == 0, said


def test_how_long_a_save_takes(tmp_path, capsys):
    assert faults.main(["save", "--rows=1000", "--times=2", f"--in={tmp_path}"]) == 0
    assert capsys.readouterr().out.startswith("0.00 GB: saved in ") and not list(tmp_path.iterdir())
