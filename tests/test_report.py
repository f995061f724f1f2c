"""The table shows what the evaluations say, cut off; the checks fail what they should and nothing else."""


import pytest

from tests import tiny
from trm_jax.reports import report


def test_table_rows_columns_mean(tmp_path, capsys):
    a = tiny.write_evaluation(tmp_path / "a", {16: 0.99996, 64: 0.5})
    b = tiny.write_evaluation(tmp_path / "b", {16: 0.98, 32: 0.97})
    assert report.main([a, b]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["exact", "%", "at", "H", "=", "16", "32", "64", "n", "step", "dataset"]
    assert rows[1] == [a, "99.99", "50.00", "200", "10", "data/x"], "cut, not rounded"
    assert rows[2] == [b, "98.00", "97.00", "200", "10", "data/x"]
    assert rows[3] == ["mean", "98.99"], "only where every run has a figure"


def test_the_newest_evaluation_counts(tmp_path):
    tiny.write_evaluation(tmp_path, {16: 0.1}, "step_9.json", "2026-01-02T00:00:00")
    tiny.write_evaluation(tmp_path, {16: 0.2}, "step_10.json", "2026-01-01T00:00:00")
    [result] = report.newest(tmp_path)
    assert result.exact(16) == 0.1 and result.path.name == "step_9.json"
    [named] = report.newest(tmp_path / "eval" / "step_10.json")
    assert named.exact(16) == 0.2


def test_inner_cycles_are_rows_of_their_own(tmp_path):
    tiny.write_evaluation(tmp_path, {16: 0.5}, inner=(4, 8))
    assert [r.label for r in report.newest(tmp_path)] == [f"{tmp_path} L 4", f"{tmp_path} L 8"]


@pytest.mark.parametrize("exact, fails", [
    ({16: 0.975, 64: 0.975, 256: 0.975}, None),
    ({16: 0.98, 64: 0.9749, 256: 0.975}, "97.49 at H 64, under 97.5"),
    ({16: 0.985, 64: 0.975, 256: 0.98}, None),  # a drop of exactly one point
    ({16: 0.986, 64: 0.975, 256: 0.98}, "98.60 at H 16 fell to 97.50 at H 64, 1.10 points, more than 1"),
    ({16: 0.5, 64: 0.99, 256: 0.985}, None),  # gaining is no drop
    ({4: 1.0, 16: 0.98, 64: 0.98, 256: 0.98, 512: 0.1}, None),  # outside of the depths asked for
])
def test_checks(tmp_path, capsys, exact, fails):
    run = tiny.write_evaluation(tmp_path, exact)
    status = report.main([run, "--min_exact=97.5", "--at=64", "--max_drop=1", "--between", "16", "256"])
    out = capsys.readouterr().out
    assert status == (1 if fails else 0)
    assert f"{run}: FAIL: {fails}" in out if fails else f"{run}: pass" in out


def test_one_failure_among_many_fails(tmp_path, capsys):
    runs = [tiny.write_evaluation(tmp_path / str(i), {64: value}) for i, value in enumerate((0.99, 0.2, 0.98))]
    assert report.main([*runs, "--min_exact=97.5", "--at=64"]) == 1
    assert "2 of 3 pass" in capsys.readouterr().out


@pytest.mark.parametrize("content, message", [
    (None, "has not been evaluated"), ("{", "is not JSON"), ("{}", "is not an evaluation"), ("[]", "is not an")])
def test_what_cannot_be_read(tmp_path, capsys, content, message):
    if content is not None:
        tiny.write_evaluation(tmp_path, {16: 0.5})
        (tmp_path / "eval" / "step_10.json").write_text(content)
    assert report.main([str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_depth_that_was_not_measured(tmp_path, capsys):
    assert report.main([tiny.write_evaluation(tmp_path, {16: 0.5}), "--min_exact=1", "--at=64"]) == 2
    assert "has no figure at H_test 64; it has 16" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--at=64"], ["--max_drop=1"], ["--max_drop=1", "--between", "64", "16"]])
def test_half_a_check_is_refused(tmp_path, flags):
    with pytest.raises(SystemExit) as caught:
        report.main([str(tmp_path), *flags])
    assert caught.value.code == 2
