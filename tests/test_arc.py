"""ARC grids, canvases, symmetries and names; votes and submissions against the published evaluator's."""

import json
import math

import numpy as np
import pytest

from tests.golden import __main__ as golden
from tests.golden.check import FOLDER
from trm_jax import puzzles
from trm_jax.inference.arc_voting import NO_ANSWER, Votes, VotingError
from trm_jax.puzzles import PuzzleError, arc
from trm_jax.reports import pictures

GOLDEN = FOLDER / "arc_voting.json"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def published():
    return json.loads(GOLDEN.read_text())


def random_grid(rng, rows=None, cols=None):
    shape = [int(rng.integers(1, 31)) if side is None else side for side in (rows, cols)]
    return rng.integers(0, 10, shape).astype(np.uint8)


# Grids and canvases.


@pytest.mark.parametrize("grid, reason", [
    ([[1, 2], [3]], "ragged: row 1 has 2 cells, row 2 has 1"),
    ([[1, 11]], "11 in row 1, column 2"),
    ([[1], [-1]], "-1 in row 2, column 1"),
    ([[1.0]], "1.0 in row 1"),
    ([[True]], "True in row 1"),
    ([["1"]], "'1' in row 1"),
    ([[0] * 31], "1 rows and 31 columns"),
    ([[0]] * 31, "31 rows and 1 columns"),
    ([[]], "1 rows and 0 columns"),
    ([], "no grid"), ([1, 2], "no grid"), ({}, "no grid"), (None, "no grid"),
], ids=str)
def test_a_bad_grid_is_refused_with_its_reason(grid, reason):
    with pytest.raises(PuzzleError, match=reason):
        arc.read_grid(grid)


@pytest.mark.parametrize("grid", [np.zeros(3, int), np.zeros((2, 2)), np.full((2, 2), 10), np.full((2, 2), -1),
                                  np.zeros((31, 1), int), np.zeros((0, 1), int)], ids=lambda g: f"{g.shape} {g.dtype}")
def test_a_bad_array_is_refused(grid):
    with pytest.raises(PuzzleError):
        arc.to_canvas(grid)


def test_a_canvas_has_the_published_tokens(published):
    row = np.array(published["inputs"][0]).reshape(30, 30)
    assert np.array_equal(row[:3, :3], [[5, 4, 1], [9, 10, 1], [1, 1, 0]]) and row.sum() == 32
    assert arc.to_canvas([[3, 2], [7, 8]]).tolist() == published["inputs"][0]
    moved = arc.to_canvas([[3, 2], [7, 8]], 4, 28).reshape(30, 30)
    assert np.array_equal(moved[3:8, 27:], [[0, 0, 0], [0, 5, 4], [0, 9, 10], [0, 1, 1], [0, 0, 0]])
    assert np.array_equal(arc.to_canvas(np.full((30, 30), 9)), np.full(900, 11))  # no room for an end


@pytest.mark.parametrize("down, right", [(-1, 0), (0, -1), (29, 0), (0, 28)])
def test_a_grid_cannot_lie_beyond_the_canvas(down, right):
    with pytest.raises(PuzzleError, match="cannot lie"):
        arc.to_canvas(np.zeros((2, 3), int), down, right)


def test_a_canvas_is_cropped_to_its_grid(rng):
    for _ in range(50):
        grid = random_grid(rng)
        assert np.array_equal(arc.crop(arc.to_canvas(grid)), grid)


def largest_rectangle(tokens):
    """By trying all: of the largest the one with fewest rows."""
    canvas = np.asarray(tokens).reshape(30, 30)
    good = (canvas >= 2) & (canvas <= 11)
    areas = [(-r * c, r, c) for r in range(1, 31) for c in range(1, 31) if good[:r, :c].all()]
    return min(areas, default=(0, 0, 0))[1:]


def test_a_broken_prediction_is_cropped_to_its_largest_rectangle(rng, published):
    tokens = [arc.to_canvas(random_grid(rng)) for _ in range(40)]
    for canvas in tokens:
        canvas[rng.integers(0, 900, int(rng.integers(1, 40)))] = rng.integers(0, 2)
    tokens = np.concatenate([tokens, published["preds"][:20], np.zeros((1, 900), int), np.full((1, 900), 12)])
    rows, cols = arc.crop_sizes(tokens)
    assert list(zip(rows.tolist(), cols.tolist())) == [largest_rectangle(t) for t in tokens]
    assert (rows[-2:] == 0).all() and arc.crops(tokens)[-1].shape == (0, 0)
    stairs = np.zeros((30, 30), np.uint8)
    stairs[0, :4] = stairs[1, :2] = 2  # 1 x 4 and 2 x 2 are equally large
    assert arc.crop(stairs.reshape(-1)).shape == (1, 4)
    with pytest.raises(PuzzleError, match="expected tokens"):
        arc.crop_sizes(np.zeros((2, 81), int))


def test_keys_and_hashes_tell_grids_apart(rng):
    a, b = np.arange(6, dtype=np.uint8).reshape(2, 3), np.arange(6, dtype=np.uint8).reshape(3, 2)
    assert arc.grid_key(a) != arc.grid_key(b) and arc.grid_hash(a) != arc.grid_hash(b)
    assert arc.grid_key(a) == arc.grid_key(np.asfortranarray(a).astype(np.int64))
    assert np.array_equal(arc.grid_of(arc.grid_key(a)), a)
    assert arc.grid_of(arc.grid_key(np.zeros((0, 0)))).shape == (0, 0)


# Symmetries and names.


def test_transforms_are_numbered_as_published(published):
    grid = np.arange(6).reshape(2, 3)
    assert len(published["dihedral_of_2x3_arange"]) == 8
    for k, expected in published["dihedral_of_2x3_arange"].items():
        assert arc.dihedral(grid, int(k)).tolist() == expected
        assert np.array_equal(arc.dihedral(arc.dihedral(grid, int(k)), arc.INVERSE_DIHEDRAL[int(k)]), grid)
    with pytest.raises(PuzzleError, match="0..7"):
        arc.dihedral(grid, 8)


def test_a_name_carries_its_inverse(rng):
    transforms, colours = arc.draw(rng, 200)
    assert set(transforms.tolist()) == set(range(8)) and (colours[:, 0] == 0).all()
    assert len({tuple(c) for c in colours.tolist()}) == 200
    for k, c in zip(transforms.tolist(), colours.tolist()):
        how = arc.Augmentation(k, tuple(c))
        assert arc.parse_name(how.name("007bbfb7")) == ("007bbfb7", how)
        grid = random_grid(rng)
        moved = how.apply(grid)
        assert np.array_equal(how.undo(moved), grid)
        assert np.array_equal(moved, arc.dihedral(np.array(c)[grid], k))
    assert arc.Augmentation(4, (0, 8, 3, 2, 5, 9, 7, 4, 1, 6)).name("00576224") == "00576224|||t4|||0832597416"
    assert arc.parse_name("00576224") == ("00576224", arc.IDENTITY)


@pytest.mark.parametrize("name", ["a|||t8|||0123456789", "a|||t1", "a|||t1|||1023456789", "a|||t1|||012345678",
                                  "a|||t1|||0123456788", "a|||1|||0123456789", "|||t1|||0123456789",
                                  "a|||t1|||0123456789|||x", "a|||t1|||01234567890"])
def test_a_bad_name_is_refused(name):
    with pytest.raises(PuzzleError, match="identifier"):
        arc.parse_name(name)


def test_the_domain_reads_and_writes_rows_of_digits():
    domain = puzzles.get("arc", seq_len=900)
    tokens = domain.encode("012\n 3 4 5 ")
    assert np.array_equal(tokens, arc.to_canvas([[0, 1, 2], [3, 4, 5]])) and domain.decode(tokens) == "012\n345"
    assert domain.decode(np.zeros(900, int)) == "" and puzzles.puzzle_of(domain) == {"name": "arc"}
    for text, reason in (("01\n2", "ragged"), ("0x", "'x'"), ("", "no grid")):
        with pytest.raises(PuzzleError, match=reason):
            domain.encode(text)
    with pytest.raises(PuzzleError, match="900 cells"):
        puzzles.get("arc", seq_len=81)


# Pictures.


def test_wrong_cells_are_marked_where_sizes_differ_too():
    grid, target = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[1, 0], [4, 5], [7, 8]])
    assert arc.wrong_cells(grid, target).tolist() == [[False, True, True], [False, False, True]]
    assert not arc.wrong_cells(grid, None).any()
    assert arc.render(grid, target) == " 1!2!3\n 4 5!6" and arc.render(grid) == " 1 2 3\n 4 5 6"
    painted = arc.render(grid, target, color=True)
    assert painted.count("\x1b[0m") == 6 and painted.count("!") == 3 and "48;2;30;147;255m  " in painted
    assert arc.render(np.zeros((0, 0), int)) == "(no grid)"
    assert puzzles.get("arc").encode(arc.render(grid)).tolist() == arc.to_canvas(grid).tolist()
    assert puzzles.get("arc").render(arc.to_canvas(grid)) == arc.render(grid)


def test_grids_stand_side_by_side():
    grids = {"input": np.array([[1]]), "prediction": np.zeros((0, 0), int), "target": np.array([[1, 2], [3, 4]])}
    assert arc.render_row(grids, grids["target"]).split("\n") == [
        "input   prediction   target", " 1      (no grid)     1 2", "                      3 4"]
    grids["prediction"] = np.array([[1, 3], [3, 4]])
    assert "1!3" in arc.render_row(grids, grids["target"]) and "!" not in arc.render_row(grids)


def test_a_task_as_a_picture(tmp_path):
    right, wrong = np.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, 9]])
    figure = pictures.arc_task("007bbfb7", [{"input": right, "prediction": wrong, "target": right},
                                            {"input": right, "prediction": np.zeros((0, 0), int), "target": right}])
    axes = figure.axes
    assert [ax.get_title() for ax in axes] == ["input", "prediction", "target", "input", "prediction: no grid",
                                               "target"]
    assert [[line.get_xydata().tolist() for line in ax.lines] for ax in axes[:3]] == [[], [[[1.5, 1.5]]], []]
    assert axes[1].collections[0].get_array().reshape(2, 2).tolist() == wrong.tolist()
    assert axes[0].yaxis_inverted() and not axes[4].collections
    pictures.save(figure, tmp_path / "task.png")
    assert (tmp_path / "task.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(pictures.PictureError, match="no grids"):
        pictures.arc_task("none", [])


# Votes.


def cast(published, votes=None, order=slice(None)):
    votes = votes or Votes(published["identifiers"], published["test_puzzles"])
    votes.add(*(np.array(published[name])[order] for name in ("puzzle_identifiers", "inputs", "preds",
                                                              "q_halt_logits")))
    return votes


def test_score_and_submission_are_the_published_ones(published):
    votes = cast(published)
    score = votes.score()
    assert {f"ARC/{k}": v for k, v in score.items() if f"ARC/{k}" in published["expected"]} == published["expected"]
    assert votes.submission() == published["submission"]
    assert score["pass@100"] == score["pass@1000"] == 1 and score["unanswered"] == 0
    assert (score["predictions"], score["tasks"], score["pooled_evaluations"]) == (72, 6, 1)


def test_the_golden_command_takes_the_file_and_sees_a_fault(tmp_path, capsys, published):
    assert golden.main([str(GOLDEN)]) == 0
    assert "ok: scores" in capsys.readouterr().out
    altered = published | {"expected": published["expected"] | {"ARC/pass@1": 0.25}}
    (tmp_path / "altered.json").write_text(json.dumps(altered))
    (tmp_path / "foreign.json").write_text("[1]")
    assert golden.main([str(tmp_path / name) for name in ("altered.json", "foreign.json", "none.json")]) == 1
    err = capsys.readouterr().err
    assert "FAULT" in err and "ARC/pass@1" in err and err.count("not a readable file") == 2


def test_votes_do_not_depend_on_the_batches(published):
    votes = None
    for start in range(0, 72, 7):
        votes = cast(published, votes, slice(start, start + 7))
    assert votes.score() == cast(published).score() and votes.submission() == published["submission"]


TASKS = {"one": {"test": [{"input": [[1, 2]], "output": [[1]]}, {"input": [[3]], "output": [[2]]}]},
         "two": {"test": [{"input": [[4], [5]], "output": [[3, 3]]}]}}
NAMES = ["<blank>", "one", "two", "one|||t1|||0213456789"]


def vote(votes, number, asked, answer, q=0.0):
    how = arc.parse_name(NAMES[number])[1]
    canvases = [arc.to_canvas(how.apply(np.array(grid))) for grid in (asked, answer)]
    votes.add([number], [canvases[0]], [canvases[1]], [q])


def test_more_votes_win_then_the_surer_then_the_first():
    votes = Votes(NAMES, TASKS)
    for answer, q in (([[7]], -5), ([[7]], -5), ([[1]], 5), ([[2]], -1), ([[3]], -1)):
        vote(votes, 1, [[1, 2]], answer, q)
    votes.add([2], [arc.to_canvas([[4], [5]])], [np.zeros(900, int)], [math.inf])
    first, second = votes.submission()["one"]
    assert first == {"attempt_1": [[7]], "attempt_2": [[1]]}
    assert second == {"attempt_1": NO_ANSWER, "attempt_2": NO_ANSWER}
    assert votes.submission()["two"] == [{"attempt_1": NO_ANSWER, "attempt_2": NO_ANSWER}]
    score = votes.score()
    assert score["pass@1"] == 0 and score["pass@2"] == 0.25 and score["unanswered"] == 1
    vote(votes, 3, [[1, 2]], [[3]], -1)  # mapped back, it joins the last
    vote(votes, 3, [[1, 2]], [[3]], -1)
    assert votes.submission()["one"][0] == {"attempt_1": [[3]], "attempt_2": [[7]]}


def test_a_task_scores_the_mean_over_its_test_inputs_and_padding_counts_nowhere():
    votes = Votes(NAMES, TASKS)
    vote(votes, 1, [[3]], [[2]])
    vote(votes, 3, [[1, 2]], [[1]])
    vote(votes, 2, [[4], [5]], [[3]])
    votes.add([0, 0], np.ones((2, 900), int), np.ones((2, 900), int), [0, 0])
    score = votes.score((1, 2))
    assert score == {"pass@1": 0.5, "pass@2": 0.5, "tasks": 2, "test_inputs": 3, "unanswered": 0, "predictions": 3,
                     "pooled_evaluations": 1}


def test_votes_belong_to_one_evaluation_unless_pooled_by_name(published):
    early, late = Votes(NAMES, TASKS), Votes(NAMES, TASKS)
    vote(early, 2, [[4], [5]], [[3, 3]])
    vote(early, 2, [[4], [5]], [[3, 3]])
    vote(late, 2, [[4], [5]], [[9]])
    assert (early.score()["pass@1"], late.score()["pass@1"]) == (0.5, 0)
    pooled = Votes.pool([early, late])
    assert pooled.score() == early.score() | {"predictions": 3, "pooled_evaluations": 2}
    assert pooled.submission()["two"] == [{"attempt_1": [[3, 3]], "attempt_2": [[9]]}]
    assert late.score()["pass@1"] == 0 and late.score()["predictions"] == 1
    with pytest.raises(VotingError, match="same test puzzles"):
        Votes.pool([early, cast(published)])


@pytest.mark.parametrize("number, asked, reason", [
    (1, [[4], [5]], "'one'.*no test input of one; a wrong puzzle identifier"),
    (4, [[3]], "there are 4 identifiers"), (-1, [[3]], "there are 4 identifiers")])
def test_a_prediction_of_no_test_input_is_refused(number, asked, reason):
    with pytest.raises(VotingError, match=reason):
        Votes(NAMES, TASKS).add([number], [arc.to_canvas(asked)], [arc.to_canvas(asked)], [0.0])


def test_other_bad_votes_are_refused():
    canvas = arc.to_canvas([[3]])
    for arguments, reason in ((([1], [canvas], [canvas], [np.nan]), "not a number"),
                              (([1, 1], [canvas], [canvas], [0.0]), "shapes differ")):
        with pytest.raises(VotingError, match=reason):
            Votes(NAMES, TASKS).add(*arguments)
    with pytest.raises(VotingError, match="no task three"):
        Votes(["<blank>", "three"], TASKS).add([1], [canvas], [canvas], [0.0])
    for tasks, reason in (({"x": {"test": [{"input": [[1]]}, {"input": [[2]], "output": [[2]]}]}},
                           "task x, test 1: has no output"),
                          ({"x": {"test": [{"input": [[11]], "output": [[1]]}]}}, "task x, test 1: has 11"),
                          ({"x": {"test": []}}, "no test input")):
        with pytest.raises(VotingError, match=reason):
            Votes(NAMES, tasks)
    with pytest.raises(VotingError, match="no test puzzles"):
        Votes(NAMES, {}).score()


def test_a_submission_is_written_whole(tmp_path, published):
    path = cast(published).write_submission(tmp_path / "eval" / "submission.json")
    assert json.loads(path.read_text()) == published["submission"]
    assert [p.name for p in path.parent.iterdir()] == ["submission.json"]
