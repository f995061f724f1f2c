"""The pictures show the figures that they claim to show, and files appear; how they look is judged by eye."""

import builtins
import json

import numpy as np
import pytest

from tests import tiny
from trm_jax import puzzles
from trm_jax.inference import solver
from trm_jax.reports import pictures, report

DOMAIN = puzzles.get("sudoku", seq_len=16)
GRID = DOMAIN.encode("1234 3412 2143 4321")


def colours(ax) -> list[str]:
    return [text.get_color() for text in ax.texts]


def test_accuracy_lines(tmp_path):
    runs = [tiny.write_evaluation(tmp_path / name, {2: 0.5, 16: 0.75}, sample="all of the split", settled_cycles=4)
            for name in "ab"]
    figure = pictures.accuracy([r for run in runs for r in report.newest(run)], ["first", "second"])
    [ax] = figure.axes
    solid = {line.get_label(): line for line in ax.lines if line.get_label() in ("first", "second")}
    assert list(solid) == ["first", "second"]
    for line in solid.values():
        np.testing.assert_allclose(line.get_xydata(), [[2, 50], [16, 75]])
    assert sum(line.get_linestyle() == "--" for line in ax.lines) == 3, "one each, and one for the legend"
    assert ax.get_xscale() == "log" and ax.get_xaxis().get_transform().base == 2
    caption = figure.get_supxlabel()
    assert caption == "n = 200 (all of the split) of data/x.  settled: unchanged for 4 cycles"
    pictures.save(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_shares_of_nothing_are_gaps(tmp_path):
    run = tiny.write_evaluation(tmp_path, {2: 0.5, 4: None})
    figure = pictures.accuracy(report.newest(run), ["a"])
    np.testing.assert_array_equal(figure.axes[0].lines[1].get_ydata(), [50, np.nan])
    pictures.save(figure, tmp_path / "a.svg")


def test_strip_marks_clues_wrong_and_changed(tmp_path):
    inputs = np.where(np.arange(16) < 4, GRID, 1).astype(np.uint8)
    first, second = GRID.copy(), GRID.copy()
    first[0], first[9] = 3, 5  # a clue that was changed, and a cell
    trace = solver.Trace(inputs, np.stack([first, second, second]), np.full((3, 16), 0.9, np.float32), np.ones(3))
    figure = pictures.strip(DOMAIN, trace, "title", solution=GRID)
    one, two = figure.axes[:2]
    assert [ax.get_title() for ax in figure.axes] == ["cycle 1", "cycle 2"]
    assert "".join(text.get_text() for text in two.texts) == "1234341221434321"
    red, black = colours(one)[0], colours(one)[1]
    assert colours(one).count(red) == 2 and colours(one)[9] == red and red not in colours(two)
    assert colours(two)[:4] == [black] * 4 and black not in colours(two)[4:]
    assert len(one.patches) == 13 and len(two.patches) == 2, "against the puzzle, then against the first answer"
    assert "red" in figure.get_supxlabel()
    pictures.save(figure, tmp_path / "s.png")
    unknown = pictures.strip(DOMAIN, trace, "title")
    assert red not in colours(unknown.axes[0]) and "red" not in unknown.get_supxlabel()
    pictures.save(unknown, tmp_path / "s.png")


def test_the_surer_the_darker(tmp_path):
    sure = np.linspace(0.2, 1, 16, dtype=np.float32)[None]
    figure = pictures.strip(DOMAIN, solver.Trace(np.ones(16, np.uint8), GRID[None], sure, np.ones(1)), "title")
    light = [sum(colour[:3]) for colour in colours(figure.axes[0])]
    assert light == sorted(light, reverse=True) and light[0] > light[-1] + 0.5
    pictures.save(figure, tmp_path / "s.png")


def test_command_line(tmp_path, capsys):
    run = tiny.write_evaluation(tmp_path / "a", {2: 0.5, 16: 0.75})
    out = str(tmp_path / "out.png")
    assert pictures.main(["accuracy", f"--out={out}", run, f"{run}/eval/step_10.json", "--labels", "x", "y"]) == 0
    assert capsys.readouterr().out == out + "\n" and (tmp_path / "out.png").exists()


@pytest.mark.parametrize("args, message", [
    (["--labels", "x", "y"], "--labels gives 2 for 1 lines"), (["--labels=x,y"], "--labels gives 2 for 1 lines"),
    (["--out=/dev/null/out.png"], "was not written"), (["--out=out.doc"], "was not written")])
def test_command_line_refuses(tmp_path, capsys, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    run = tiny.write_evaluation(tmp_path / "a", {2: 0.5})
    assert pictures.main(["accuracy", "--out=out.png", run, *args]) == 2
    assert message in capsys.readouterr().err


def test_without_matplotlib_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    run, real = tiny.write_evaluation(tmp_path / "a", {2: 0.5}), builtins.__import__

    def missing(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, "__import__", missing)
    assert pictures.main(["accuracy", f"--out={tmp_path / 'o.png'}", run]) == 2
    assert "pip install 'trm_jax[plot]'" in capsys.readouterr().err


def test_an_evaluation_outside_of_a_run_is_named_by_its_file(tmp_path):
    source = tiny.write_evaluation(tmp_path / "a", {2: 0.5})
    (tmp_path / "mine.json").write_text((tmp_path / "a" / "eval" / "step_10.json").read_text())
    assert json.loads((tmp_path / "mine.json").read_text())["step"] == 10
    names = [pictures.label(r) for path in (source, tmp_path / "mine.json") for r in report.newest(path)]
    assert names == ["a", "mine"]
