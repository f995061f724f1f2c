"""Mazes: codec, verifier, shortest paths, symmetries and generator, against plain-Python searches written here."""

import collections
import math
import re

import numpy as np
import pytest

from trm_jax import puzzles
from trm_jax.puzzles import PuzzleError, maze
from trm_jax.puzzles.maze import Maze

WAYS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # down, right, up, left
OBLONG = Maze(4, 5)
ROWS = ["S o G",
        "o#o##",
        "ooo  ",
        "## # "]


def tokens(*rows):
    return Maze(len(rows), len(rows[0])).encode("\n".join(rows))


QUESTION = tokens("S   G", " # ##", "     ", "## # ")  # 4 x 5; S to G is 4 steps along the first row


def distances(domain, cells, source):
    """Steps from source to every cell that is no wall, by plain breadth-first search: {cell: steps}."""
    found, queue = {source: 0}, collections.deque([source])
    while queue:
        cell = queue.popleft()
        row, col = divmod(cell, domain.cols)
        for down, right in WAYS:
            r, c = row + down, col + right
            other = r * domain.cols + c
            if 0 <= r < domain.rows and 0 <= c < domain.cols and cells[other] != 1 and other not in found:
                found[other] = found[cell] + 1
                queue.append(other)
    return found


def neighbours(domain, cell):
    row, col = divmod(cell, domain.cols)
    return [(row + down) * domain.cols + col + right for down, right in WAYS
            if 0 <= row + down < domain.rows and 0 <= col + right < domain.cols]


def ends(cells):
    cells = list(cells)
    return cells.index(3), cells.index(4)


def all_shortest_paths(domain, cells):
    """Every shortest path of a small maze, as tuples of the cells between S and G."""
    start, goal = ends(cells)
    far = distances(domain, cells, goal)

    def onward(cell):
        if far[cell] == 1:
            return [()]
        return [(other, *rest) for other in neighbours(domain, cell) if far.get(other) == far[cell] - 1
                for rest in onward(other)]
    return onward(start) if start in far else []


def count_shortest_paths(domain, cells):
    """Exactly, with Python's integers."""
    start, goal = ends(cells)
    far = distances(domain, cells, goal)
    counts = {goal: 1}
    for cell in sorted(far, key=far.get)[1:]:
        counts[cell] = sum(counts[other] for other in neighbours(domain, cell) if far.get(other) == far[cell] - 1)
    return counts[start]


def drawn(cells, path):
    label = np.array(cells)
    label[list(path)] = 5
    return label


def one(question, answer, domain=OBLONG):
    """The verdict on one pair, as (kept, path, shortest)."""
    verdict = domain.verify(question[None], np.asarray(answer)[None])
    assert all(v.shape == (1,) and v.dtype == bool for v in verdict)
    assert verdict.solved == all(verdict)
    assert (domain.explain(question, np.asarray(answer)) == "") == bool(verdict.solved[0])
    return tuple(bool(v[0]) for v in verdict)


@pytest.fixture(scope="module")
def small():
    return Maze(8, 8).generate(300, seed=1)


@pytest.fixture(scope="module")
def hard():
    return Maze().generate(12, seed=0)


# Domain and codec


def test_domains_by_name():
    assert puzzles.get("maze") == puzzles.get("maze", seq_len=900) == Maze(30, 30)
    assert puzzles.get("maze", rows=4, cols=5) == puzzles.get("maze", seq_len=20, rows=4) == OBLONG
    assert (OBLONG.seq_len, OBLONG.vocab_size, OBLONG.grid, OBLONG.name) == (20, 6, (4, 5), "maze")
    for message, options in {
        "20 cells make no square maze; give rows too": {"seq_len": 20},
        "rows=3 will not do for 20 cells": {"seq_len": 20, "rows": 3},
        "a maze of 1x30 will not do: both sides must be 2 to 128": {"rows": 1},
        "a maze of 30x129 will not do": {"cols": 129},
        "maze has no option box_rows; it takes rows, cols": {"box_rows": 2},
    }.items():
        with pytest.raises(PuzzleError, match=message):
            puzzles.get("maze", **options)


def test_published_vocabulary():
    assert OBLONG.symbols == {"#": 1, " ": 2, "S": 3, "G": 4, "o": 5}
    assert tokens("# ", "SG").tolist() == [1, 2, 3, 4] and tokens("oo", "##").dtype == np.uint8


@pytest.mark.parametrize("form", ["one line", "rows", "rows with ends", "crlf", "picture"])
def test_codec_round_trip(form):
    cells = tokens(*ROWS)
    text = {"one line": "".join(ROWS), "rows": "\n".join(ROWS), "rows with ends": "\n" + "\n".join(ROWS) + "\n\n",
            "crlf": "\r\n".join(ROWS), "picture": "  " + OBLONG.render(cells).replace("\n", "\n  ") + "\n"}[form]
    np.testing.assert_array_equal(OBLONG.encode(text), cells)
    assert OBLONG.decode(cells) == "".join(ROWS)


def test_free_cells_at_the_ends_are_cells():
    text = "   S ## G           "
    assert OBLONG.decode(OBLONG.encode(text)) == text


@pytest.mark.parametrize("text, message", [
    ("", r"got 0 cells, expected 20 \(4x5\)"),
    ("S" * 19, "got 19 cells, expected 20"),
    ("S  G" + " " * 17, "got 21 cells, expected 20"),
    ("S   G" + "z" * 15, "unknown character 'z' at position 6: a cell is '#' wall"),
    ("S   G\n     \n  z  \n     ", "unknown character 'z' at row 3, column 3"),
    ("S\t  G" + " " * 15, r"unknown character '\\t' at position 2"),
    ("S   G\n     \n     ", "got 3 rows, expected 4"),
    ("S   G \n     \n     \n     ", "row 1 has 6 cells, expected 5"),
    ("S   G\n    \n     \n     ", "row 2 has 4 cells, expected 5"),
])
def test_encode_refuses(text, message):
    with pytest.raises(PuzzleError, match=message) as caught:
        OBLONG.encode(text)
    assert "\n" not in str(caught.value)


def test_a_grid_31_wide_is_refused():
    for text in ("\n".join(["#" * 31] * 30), "\n".join(["#" * 31] * 31), "#" * 31 * 30, "#" * 31 * 31):
        with pytest.raises(PuzzleError, match="31 cells, expected 30|31 rows, expected 30|9.. cells, expected 900"):
            Maze().encode(text)


@pytest.mark.parametrize("rows, message", [
    (["    G", "     ", "     ", "     "], "the maze has no start S; it must have one"),
    (["S   G", "     ", "S    ", "     "], "the maze has 2 start Ss; it must have one"),
    (["S    ", "     ", "     ", "     "], "the maze has no goal G"),
    (["S   G", "G    ", "     ", "    G"], "the maze has 3 goal Gs"),
    (["S#  G", "##   ", "     ", "     "], "no way leads from S to G"),
    (["S o G", "     ", "     ", "     "], "row 1, column 3 is marked 'o': a question holds no path"),
])
def test_questions_that_are_no_mazes(rows, message):
    with pytest.raises(PuzzleError, match=message) as caught:
        OBLONG.check_clues(tokens(*rows))
    assert "\n" not in str(caught.value)
    OBLONG.check_clues(QUESTION)
    for token in (0, 6, 255):
        with pytest.raises(PuzzleError, match=rf"tokens are 1 \(wall\) to 4 \(goal\), got {token}"):
            OBLONG.check_clues(np.where(np.arange(20) == 7, token, QUESTION))


def test_decode_shows_what_is_no_cell():
    assert Maze(2, 3).decode(np.array([0, 1, 2, 5, 6, -100])) == "?# o??"
    with pytest.raises(PuzzleError, match=r"expected shape \[20\], got \[1, 20\]"):
        OBLONG.decode(QUESTION[None])


def test_picture():
    cells = tokens(*ROWS)
    given = np.where(cells == 5, 2, cells)
    plain = OBLONG.render(cells, given, np.arange(20) == 2)
    assert plain.splitlines() == ["┌──────────┐", "│ S   o   G│", "│ o██ o████│", "│ o o o    │", "│████  ██  │",
                                  "└──────────┘"]
    cells[[19, 7]] = 1, 2  # a new wall, and a path cell that is open now
    coloured = OBLONG.render(cells, given, np.arange(20) == 2, color=True)
    assert "\x1b[1;32m\x1b[30;43mo\x1b[0m" in coloured and "\x1b[1mS\x1b[0m" in coloured
    assert "█\x1b[31m█\x1b[0m" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == OBLONG.render(cells)
    moved = OBLONG.render(cells, given, np.arange(20) == 19, color=True)
    assert " \x1b[31m\x1b[30;43m█\x1b[0m" in moved, "a changed wall leaves room for a mark"


# Rules


def test_every_broken_rule_has_its_reason():
    right = tokens("SoooG", " # ##", "     ", "## # ")
    assert one(QUESTION, right) == (True, True, True) and OBLONG.explain(QUESTION, right) == ""
    cases = {  # answer -> (kept, path, shortest), reason
        ("SoooG", " # ##", "    #", "## # "): ((False, True, True), "a free cell at row 3, column 5 became a wall"),
        ("SoooG", "   ##", "     ", "     "): (
            (False, True, True), "a wall at row 2, column 2 became a free cell and 3 cells more were changed"),
        ("oooSG", " # ##", "     ", "## # "): (
            (False, False, False), "the start S at row 1, column 1 became a path cell and 1 cells more were changed; "
                                   "the path goes through the start S at row 1, column 1"),
        ("S   G", " # ##", "     ", "## # "): ((True, False, False), "no path is marked"),
        ("So oG", " # ##", "     ", "## # "): (
            (True, False, False), "the path ends at row 1, column 2, before it reaches G"),
        ("SoooG", " # ##", "    o", "## # "): ((True, False, False), "row 3, column 5 marked beside the path"),
        ("SoooG", " # ##", "   oo", "## # "): (
            (True, False, False), "row 3, column 4 and 1 cells more marked beside the path"),
        ("SoooG", " #o##", "     ", "## # "): ((True, False, False), "the path branches at row 1, column 3"),
        ("SoooG", "o# ##", "     ", "## # "): ((True, False, False), "the path branches at row 1, column 1"),
        tuple(ROWS): ((True, False, False), "the path ends at row 1, column 3, before it reaches G"),
    }
    for rows, expected in cases.items():
        answer = tokens(*rows)
        assert (one(QUESTION, answer), OBLONG.explain(QUESTION, answer)) == expected, rows
    longer = tokens("S ooG", "o#o##", "ooo  ", "## # ")
    assert one(QUESTION, longer) == (True, True, False)
    assert OBLONG.explain(QUESTION, longer) == "the path has 8 steps, a shortest one has 4"


def test_faults_are_changed_cells_loose_ends_and_branches():
    cases = {("SoooG", " # ##", "     ", "## # "): [], ("SoooG", " # ##", "    #", "## # "): [(2, 4)],
             ("So oG", " # ##", "     ", "## # "): [(0, 1), (0, 3)],
             ("SoooG", " # ##", "   oo", "## # "): [(2, 3), (2, 4)],
             ("SoooG", " #o##", "     ", "## # "): [(0, 2), (1, 2)], tuple(ROWS): [(0, 2)],
             ("SoooG", " # ##", "G    ", "## # "): [(2, 0)], ("S ooG", "o#o##", "ooo  ", "## # "): []}
    for rows, expected in cases.items():
        row, column = np.divmod(np.flatnonzero(OBLONG.faults(QUESTION, tokens(*rows))), 5)
        assert list(zip(row.tolist(), column.tolist())) == expected, rows
    both = OBLONG.faults(QUESTION, np.stack([tokens(*rows) for rows in cases]))
    assert both.shape == (8, 20) and both.sum(axis=1).tolist() == [len(cells) for cells in cases.values()]


def test_through_a_wall_is_no_path():
    question = tokens("S#G", "   ")
    domain = Maze(2, 3)
    assert one(question, tokens("SoG", "   "), domain) == (False, False, False)
    assert domain.explain(question, tokens("SoG", "   ")) == (
        "a wall at row 1, column 2 became a path cell; the path goes through a wall at row 1, column 2")
    assert one(question, tokens("S#G", "ooo"), domain) == (True, True, True)
    for token in (0, 6, 255, -100):  # no cell: not kept, and a gap
        answer = tokens("S#G", "ooo").astype(int)
        answer[4] = token
        assert one(question, answer, domain) == (False, False, False)
        assert "became no cell" in domain.explain(question, answer)


def test_neighbours_need_no_path():
    domain, question = Maze(2, 2), tokens("SG", "  ")
    assert one(question, question, domain) == (True, True, True)
    assert one(question, tokens("SG", "oo"), domain) == (True, False, False), "S touches two"


def test_of_what_is_no_maze_nothing_is_right():
    for rows in (["SSo", "  G"], ["o  ", "  G"], ["   ", "   "], ["###", "###"]):
        assert one(tokens(*rows), tokens(*rows), Maze(2, 3))[1:] == (False, False)


def plain_verdict(domain, question, answer):
    """The rules as sentences, cell by cell."""
    kept = all(a == q or (a == 5 and q == 2) for q, a in zip(question, answer, strict=True))
    marked = {s for s, a in enumerate(answer) if a == 5}
    if any(question[s] != 2 for s in marked):
        return kept, False, False
    start, goal = ends(question)
    path = marked | {start, goal}
    touched = {s: sum(n in path for n in neighbours(domain, s)) for s in path}
    walls = np.array([2 if s in path else 1 for s in range(domain.seq_len)])
    joined = set(distances(domain, walls, start)) == path
    ok = joined and touched[start] == touched[goal] == 1 and all(touched[s] == 2 for s in marked)
    return kept, ok, ok and len(marked) + 1 == distances(domain, question, start)[goal]


def test_verifier_equals_plain_rules_on_damaged_answers(small):
    domain, rng = Maze(8, 8), np.random.default_rng(0)
    answers = np.where(rng.random(small.labels.shape) < .01, rng.integers(0, 7, small.labels.shape), small.labels)
    answers[::3] = np.where(rng.random((100, 64)) < .03, 5, small.labels[::3])
    answers[::7] = np.where(rng.random((43, 64)) < .05, small.inputs[::7], small.labels[::7])
    verdict = domain.verify(small.inputs, answers)
    expected = np.array([plain_verdict(domain, q, a) for q, a in zip(small.inputs.tolist(), answers.tolist())])
    np.testing.assert_array_equal(np.stack(verdict, axis=1), expected)
    assert (20 < expected.sum(axis=0)).all() and (expected.sum(axis=0) < 280).all()
    np.testing.assert_array_equal(verdict.solved, [not domain.explain(q, a) for q, a in zip(small.inputs, answers)])
    several = domain.verify(small.inputs[:, None], np.stack([answers, small.labels], axis=1))  # [B, attempts, S]
    np.testing.assert_array_equal(several.solved, np.stack([verdict.solved, np.ones(300, bool)], axis=1))
    frozen = small.inputs.copy()
    frozen.flags.writeable = False
    assert domain.verify(frozen, small.labels.astype(np.int64)).solved.all()
    with pytest.raises(PuzzleError, match="expected shape"):
        domain.verify(small.inputs, answers[:, 1:])


def test_longer_ways_are_paths_but_not_shortest(small):
    """Block a cell of the answer, solve what is left, and offer that as an answer to the whole maze."""
    domain, longer = Maze(8, 8), 0
    for question, label in zip(small.inputs, small.labels):
        blocked = np.where(np.arange(64) == np.flatnonzero(label == 5)[3], 1, question)
        paths = domain.solve(blocked[None])
        if (steps := paths.steps[0]) < 0:
            np.testing.assert_array_equal(paths.labels[0], blocked)
            continue
        detour = np.where(paths.labels[0] == 5, 5, question)
        shortest = len(all_shortest_paths(domain, question)[0]) + 1
        _, path, is_shortest = one(question, detour, domain)
        assert is_shortest == (steps == shortest) and (path or steps > shortest)
        longer += path and not is_shortest
    assert longer > 10


# Shortest paths


def test_solve_equals_a_plain_search(small, hard):
    for domain, some in ((Maze(8, 8), small), (Maze(), hard)):
        paths = domain.solve(some.inputs)
        assert domain.verify(some.inputs, paths.labels).solved.all()
        for question, label, steps, log2_paths in zip(some.inputs.tolist(), *paths, strict=True):
            start, goal = ends(question)
            assert steps == distances(domain, question, start)[goal] == (label == 5).sum() + 1
            assert log2_paths == pytest.approx(math.log2(count_shortest_paths(domain, question)), abs=1e-5)
        for a, b in zip(paths, (some.labels, some.rating, some.log2_paths), strict=True):
            np.testing.assert_array_equal(a, b, strict=True)
        np.testing.assert_array_equal(domain.log2_answers(some.inputs), some.log2_paths)


def test_tie_break(small, hard):
    """From S to the neighbour on a shortest path with the least |row - row of G| + |column - column of G|; among
    equals down, right, up, left."""
    for domain, some in ((Maze(8, 8), small), (Maze(), hard)):
        for question, label in zip(some.inputs.tolist(), some.labels):
            cell, goal = ends(question)
            far, path = distances(domain, question, goal), []
            while far[cell] > 1:
                options = [c for c in neighbours(domain, cell) if far.get(c) == far[cell] - 1]
                between = [abs(c // domain.cols - goal // domain.cols) + abs(c % domain.cols - goal % domain.cols)
                           for c in options]
                cell = options[between.index(min(between))]
                path.append(cell)
            np.testing.assert_array_equal(label, drawn(question, path))


@pytest.mark.parametrize("rows, answer", [
    (["S  ", "   ", "  G"], "S  o  ooG"),  # down first, then right
    (["G  ", "   ", "  S"], "Goo  o  S"),  # up before left
    (["  S", "   ", "G  "], "  S  oGoo"),
    (["  G", "   ", "S  "], "  G  oSoo"),  # right before up
])
def test_tie_break_in_an_open_square(rows, answer):
    domain = Maze(3, 3)
    paths = domain.solve(tokens(*rows)[None])
    assert domain.decode(paths.labels[0]) == answer and paths.steps[0] == 4
    assert paths.log2_paths[0] == pytest.approx(math.log2(6))


def test_very_many_shortest_paths():
    domain = Maze(128, 128)
    open_field = np.full(128 * 128, 2, np.uint8)
    open_field[[0, -1]] = 3, 4
    paths = domain.solve(open_field[None])
    assert paths.steps[0] == 254 and paths.log2_paths[0] == pytest.approx(math.log2(math.comb(254, 127)), rel=1e-6)


def test_counts_beyond_what_a_float_holds():
    """14 x 14 open rooms of 8 x 8, visited like a snake, from corner to corner wherever the door is there."""
    domain, cells = Maze(128, 128), np.full((128, 128), 1, np.uint8)
    tops = range(0, 126, 9)
    for i, top in enumerate(tops):
        for j, left in enumerate(tops):
            cells[top:top + 8, left:left + 8] = 2
            if j < 13:
                cells[top + 7 * (j % 2 == 0), left + 8] = 2
        if i < 13:
            cells[top + 8, 0 if i % 2 else 124] = 2
    cells[0, 0], cells[124, 0] = 3, 4
    flat = cells.ravel()
    exact = count_shortest_paths(domain, flat.tolist())
    assert exact.bit_length() > 1024
    paths = domain.solve(flat[None])
    assert paths.log2_paths[0] == pytest.approx(math.log2(exact), rel=1e-6)
    assert domain.verify(flat, domain.draw_answers(flat[None], np.random.default_rng(0))).solved.all()


def test_random_paths_are_always_shortest_and_fresh(small, hard):
    rng = np.random.default_rng(0)
    for domain, some in ((Maze(8, 8), small), (Maze(), hard)):
        first, second = (domain.draw_answers(some.inputs, rng) for _ in range(2))
        for labels in (first, second):
            assert labels.dtype == np.uint8 and domain.verify(some.inputs, labels).solved.all()
        tied = some.log2_paths > 4
        assert tied.any() and (first != second).any(axis=1)[tied].mean() > .8
    np.testing.assert_array_equal(domain.draw_answers(some.inputs, np.random.default_rng(0)),
                                  domain.draw_answers(some.inputs, np.random.default_rng(0)))
    assert Maze().draw_answers(np.zeros((0, 900), np.uint8), rng).shape == (0, 900)


@pytest.mark.parametrize("rows", [
    ["S   ", "    ", "    ", "   G"],  # 20 paths, every step a choice
    ["S    ", " ##  ", " #   ", "    G"],  # unequal branches: choosing each way by halves would show
])
def test_random_paths_are_uniform(rows):
    question, draws = tokens(*rows), 8_000
    domain = Maze(len(rows), len(rows[0]))
    paths = all_shortest_paths(domain, question.tolist())
    assert len(paths) >= 2
    labels = domain.draw_answers(np.repeat(question[None], draws, axis=0), np.random.default_rng(5))
    counts = collections.Counter(label.tobytes() for label in labels)
    expected = {drawn(question, path).tobytes() for path in paths}
    assert set(counts) == expected
    mean = draws / len(paths)
    chi2 = sum((counts[key] - mean) ** 2 / mean for key in expected)
    assert chi2 < len(paths) + 5 * math.sqrt(2 * len(paths))


def test_random_paths_need_a_way():
    good, bad = tokens("S G", "   "), tokens("S#G", "###")
    with pytest.raises(PuzzleError, match="maze 1 of 2 has no way from one S to one G"):
        Maze(2, 3).draw_answers(np.stack([good, bad]), np.random.default_rng(0))


# Symmetries


@pytest.mark.parametrize("shape, size", [((6, 6), 8), ((4, 7), 4), ((2, 2), 8)])
def test_symmetries_are_the_whole_group_evenly(shape, size):
    domain, draws = Maze(*shape), 4_000
    symmetry = domain.draw_symmetry(np.random.default_rng(0), draws)
    maps, counts = np.unique(symmetry.cells, axis=0, return_counts=True)
    assert len(maps) == size and {maps[-1][other].tobytes() for other in maps} == {m.tobytes() for m in maps}
    assert (np.abs(counts - draws / size) < 5 * math.sqrt(draws / size)).all()
    assert (symmetry.relabel == np.arange(6)).all()
    near = {frozenset((s, n)) for s in range(domain.seq_len) for n in neighbours(domain, s)}
    for cells in maps:  # neighbours stay neighbours
        assert {frozenset((int(cells[a]), int(cells[b]))) for a, b in map(tuple, near)} == near


@pytest.mark.parametrize("shape", [(8, 8), (5, 9)])
def test_augmentation_keeps_mazes_and_can_be_undone(shape):
    domain = Maze(*shape)
    inputs, labels, rating, log2_paths = domain.generate(60, seed=2)
    before = inputs.copy(), labels.copy()
    symmetry = domain.draw_symmetry(np.random.default_rng(0), 60)
    new_inputs, new_labels = domain.augment(inputs, labels, np.random.default_rng(0))
    np.testing.assert_array_equal(inputs, before[0])
    np.testing.assert_array_equal(labels, before[1])
    np.testing.assert_array_equal(new_inputs, symmetry.apply(inputs))
    np.testing.assert_array_equal(symmetry.inverse().apply(new_labels), labels)
    assert new_inputs.dtype == np.uint8 and (new_inputs != inputs).any(axis=1).sum() > 30
    assert domain.verify(new_inputs, new_labels).solved.all()
    np.testing.assert_allclose(domain.log2_answers(new_inputs), log2_paths, rtol=1e-6)
    np.testing.assert_array_equal(domain.solve(new_inputs).steps, rating)
    assert (domain.solve(new_inputs).labels != new_labels).any(), "the tie-break turns with the maze"


# Generator


def test_maze_hard(hard):
    inputs, labels, rating, log2_paths = hard
    assert [a.dtype for a in hard] == [np.uint8, np.uint8, np.int32, np.float32]
    domain = Maze()
    assert domain.default_min_length() == 110 and (rating > 110).all()
    assert domain.verify(inputs, labels).solved.all()
    walls = (inputs == 1).mean(axis=1)
    assert (walls >= .3).all() and (walls <= .5).all() and np.ptp(walls) > .02
    assert 12 < log2_paths.mean() < 32 and (log2_paths > 0).all()
    assert ((inputs == 3).sum(axis=1) == 1).all() and ((inputs == 4).sum(axis=1) == 1).all()


@pytest.mark.parametrize("shape, how, least", [
    ((8, 8), {}, 7), ((5, 12), {}, 7), ((6, 6), {"min_length": 0}, 0), ((10, 10), {"min_length": 25}, 25)])
def test_generated_mazes_are_as_asked(shape, how, least):
    domain = Maze(*shape)
    made = domain.generate(50, seed=4, **how)
    assert (made.rating > least).all() and len(np.unique(made.inputs, axis=0)) == 50
    assert domain.verify(made.inputs, made.labels).solved.all()
    for question in made.inputs:
        domain.check_clues(question)
    walls = (made.inputs == 1).mean(axis=1)
    assert walls.min() >= .3 and walls.max() <= .5


def test_goals_are_drawn_among_all_that_are_far_enough():
    domain = Maze(8, 8)
    made = domain.generate(400, seed=9, min_length=0)
    shares = []
    for question, steps in zip(made.inputs.tolist(), made.rating):
        far = sorted(distances(domain, question, ends(question)[0]).values())[1:]
        shares.append((np.searchsorted(far, steps) + np.searchsorted(far, steps, "right")) / 2 / len(far))
    assert abs(np.mean(shares) - .5) < .05, "uniform: the middle on average"


@pytest.mark.parametrize("shape", [(8, 8), (30, 30)])
def test_single_path(shape):
    domain, n = Maze(*shape), 60 if shape == (8, 8) else 3
    made = domain.generate(n, seed=3, single_path=True)
    assert not made.log2_paths.any() and (made.rating > domain.default_min_length()).all()
    for question, label in zip(made.inputs.tolist(), made.labels):
        assert count_shortest_paths(domain, question) == 1
        np.testing.assert_array_equal(label, domain.solve(np.array([question])).labels[0])
    many = domain.generate(n, seed=3)  # the same mazes, before walls were added
    assert ((made.inputs == 1) >= (many.inputs == 1)).all() and (made.inputs != many.inputs).any()
    np.testing.assert_array_equal(made.rating, many.rating)


def test_same_seed_same_mazes(monkeypatch):
    domain = Maze(7, 9)
    whole = domain.generate(200, seed=7)
    for fewer in (1, 60):
        for a, b in zip(domain.generate(fewer, seed=7), whole, strict=True):
            np.testing.assert_array_equal(a, b[:fewer], strict=True)
    assert (domain.generate(50, seed=8).inputs != whole.inputs[:50]).any(axis=1).all()
    monkeypatch.setattr(maze, "in_threads", lambda work, count: work(slice(0, count)))
    for a, b in zip(domain.generate(200, seed=7), whole, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    # A maze that must not change without notice:
    assert Maze(5, 5).decode(Maze(5, 5).generate(1, seed=0).labels[0]) == "  ## oooooG# #S ### # # #"
    assert [a.shape for a in domain.generate(0, seed=0)] == [(0, 63), (0, 63), (0,), (0,)]


@pytest.mark.parametrize("how, message", [
    ({"n": -1}, "must not be negative"), ({"seed": -1}, "must not be negative"),
    ({"min_length": -1}, "min_length=-1 will not do: it must be 0 to 24"),
    ({"min_length": 25}, "min_length=25 will not do"),
    ({"n": 400, "rows": 2, "cols": 2, "min_length": 0}, "found only .* of 400 different mazes of 2x2"),
])
def test_generator_refuses(how, message):
    domain = Maze(how.pop("rows", 5), how.pop("cols", 5))
    with pytest.raises(PuzzleError, match=message):
        domain.generate(**{"n": 1, "seed": 0, **how})


def test_mazes_that_are_too_rare(monkeypatch):
    monkeypatch.setattr(maze, "_TRIES", 2_000)
    with pytest.raises(PuzzleError, match="mazes of 5x5 with a shortest path over 23 are too rare: 2,000 draws"):
        Maze(5, 5).generate(40, seed=0, min_length=23)


@pytest.fixture(scope="module")
def any_size():
    return Maze(12, 12, smallest=5)


def test_mazes_of_all_sizes(any_size):
    mazes = any_size.generate(300, 1)
    shapes = {any_size.decode(puzzle).count("/") for puzzle in mazes.inputs}
    assert shapes >= set(range(4, 12)) and any_size.verify(mazes.inputs, mazes.labels).solved.all()
    for puzzle, label in zip(mazes.inputs, mazes.labels):
        lines = [line[1:-1][1::2].replace("\u2588", "#") for line in any_size.render(puzzle).split("\n")[1:-1]]
        own = Maze(len(lines), len(lines[0]))  # the maze of that size alone
        np.testing.assert_array_equal(any_size.encode("\n".join(lines)), puzzle)
        np.testing.assert_array_equal(own.solve(own.encode("\n".join(lines))[None]).labels[0],
                                      label[label > 0])


def test_an_answer_repeats_the_padding(any_size):
    puzzle = any_size.encode("S    \n#### \n     \n ####\n    G")
    answer = np.where(puzzle == 0, 5, any_size.solve(puzzle[None]).labels[0])
    assert any_size.verify(puzzle, answer).solved and any_size.explain(puzzle, answer) == ""
    assert not any_size.faults(puzzle, answer).any()
    assert any_size.decode(any_size.within(puzzle, answer)) == "Soooo####ooooooo####ooooG"


@pytest.mark.parametrize("text, message", [
    ("S   \n    \n    \n   G", r"this is a 4x4 maze; mazes of 5x5 to 12x12 will do"),
    ("S" + " " * 28 + "G", "got 30 cells on one line, which make no square; write its rows as lines, or with /"),
    ("\n".join(["S    "] * 3 + ["    "]), "row 4 has 4 cells, expected 5"),
    ("", "got 0 cells"), ("/", "got 0 cells"),
])
def test_what_is_no_maze_of_any_size(any_size, text, message):
    with pytest.raises(PuzzleError, match=message):
        any_size.encode(text)


def test_texts_of_mazes_of_any_size(any_size):
    mazes = any_size.generate(20, 2).inputs
    lines = [any_size.decode(puzzle) for puzzle in mazes]
    rows = [any_size.render(puzzle) for puzzle in mazes]
    for text in ("\n".join(lines), "\n\n".join(rows), "\n\n".join(line.replace("/", "\n") for line in lines)):
        pieces = any_size.split(text)
        assert len(pieces) == 20
        np.testing.assert_array_equal([any_size.encode(piece.text) for piece in pieces], mazes)
    assert any_size.is_one(["S    "] * 6) and any_size.is_one([["S"] * 7] * 5) and not any_size.is_one(lines[:3])
    assert any_size.title == "maze of 5x5 to 12x12"


def test_sides_that_cannot_be():
    with pytest.raises(PuzzleError, match="smallest = 13 will not do for mazes of up to 12x14: it must be 2 to 12"):
        Maze(12, 14, smallest=13)
