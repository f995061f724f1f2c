"""Sudoku: codec, verifier, symmetries, solver and generator, against plain-Python references written here."""

import itertools
import re

import numpy as np
import pytest

from trm_jax import puzzles
from trm_jax.puzzles import PuzzleError, sudoku
from trm_jax.puzzles.sudoku import Sudoku

SHAPES = [(2, 2), (2, 3), (3, 2), (3, 3), (4, 4)]
PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
ANSWER = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


def count_solutions(domain, tokens, limit):
    """Plain backtracking on the cell with the fewest candidates; shares nothing with the library."""
    n, grid = domain.side, [int(t) - 1 for t in tokens]

    def candidates(s):
        r, c = divmod(s, n)
        r0, c0 = r - r % domain.box_rows, c - c % domain.box_cols
        near = {grid[n * r + k] for k in range(n)} | {grid[n * k + c] for k in range(n)}
        near |= {grid[n * i + j] for i in range(r0, r0 + domain.box_rows) for j in range(c0, c0 + domain.box_cols)}
        return [d for d in range(1, n + 1) if d not in near]

    def count(limit):
        options = min(((candidates(s), s) for s in range(n * n) if grid[s] == 0),
                      key=lambda option: len(option[0]), default=None)
        if options is None:
            return 1
        found = 0
        digits, cell = options
        for digit in digits:
            grid[cell] = digit
            found += count(limit - found)
            if found >= limit:
                break
        grid[cell] = 0
        return found

    return count(limit)


def keeps_rules(domain, answer):
    """Plain loops over rows, columns and boxes: no digit twice."""
    n = domain.side
    units = {}
    for s, token in enumerate(answer.tolist()):
        if 2 <= token < n + 2:
            r, c = divmod(s, n)
            for unit in (("row", r), ("column", c), ("box", r // domain.box_rows, c // domain.box_cols)):
                units.setdefault(unit, []).append(token)
    return all(len(set(tokens)) == len(tokens) for tokens in units.values())


def one(domain, puzzle, answer):
    """The verdict on one pair, as (complete, rules, clues)."""
    verdict = domain.verify(puzzle[None], answer[None])
    assert all(v.shape == (1,) and v.dtype == bool for v in verdict)
    assert verdict.solved == all(verdict)
    return tuple(bool(v[0]) for v in verdict)


# Domain and codec


@pytest.mark.parametrize("shape", SHAPES)
def test_codec_and_picture_round_trip(shape):
    domain = Sudoku(*shape)
    n = shape[0] * shape[1]
    assert (domain.side, domain.seq_len, domain.vocab_size) == (n, n * n, n + 2)
    tokens = np.arange(n * n, dtype=np.uint8) % (n + 1) + 1
    text = domain.decode(tokens)
    assert len(text) == n * n and text[:n + 1] == ".123456789ABCDEFG"[:n + 1]
    for form in (text, text.lower(), text.replace(".", "0"), domain.render(tokens), f"  {text}\n"):
        encoded = domain.encode(form)
        assert encoded.dtype == np.uint8
        np.testing.assert_array_equal(encoded, tokens)


def test_encode_reads_a_pasted_grid():
    grid = """
    +-----+-----+
    | 1 . | 3 4 |
    | 3 4 | . 2 |
    +-----+-----+
    | 2 1 | 4 3 |
    | 4 3 | 2 . |
    +-----+-----+
    """
    assert Sudoku(2, 2).decode(Sudoku(2, 2).encode(grid)) == "1.3434.22143432."


@pytest.mark.parametrize("text, message", [
    ("123", r"got 3 cells, expected 16 \(4x4\)"),
    ("", "got 0 cells, expected 16"),
    ("1234" * 5, "got 20 cells, expected 16"),
    ("1234" * 3 + "12z4", "'z' at position 15"),
    ("5234" * 4, "'5' at position 1: a cell is one of 1234"),
    ("1234\n34z2\n2143\n4321", "'z' at line 2, column 3"),
    ("----" * 4, "got 0 cells"),
])
def test_encode_refuses(text, message):
    with pytest.raises(PuzzleError, match=message) as caught:
        Sudoku(2, 2).encode(text)
    assert "\n" not in str(caught.value)


def test_decode_shows_what_is_no_cell():
    tokens = np.array([0, 1, 2, 5, 6, 255] + [3] * 10)
    assert Sudoku(2, 2).decode(tokens) == "?.14??" + "2" * 10
    with pytest.raises(PuzzleError, match=r"expected shape \[16\], got \[1, 16\]"):
        Sudoku(2, 2).decode(tokens[None])


def test_domains_by_name():
    assert puzzles.get("sudoku") == Sudoku(3, 3)
    assert puzzles.get("sudoku", box_rows=2) == Sudoku(2, 3)
    sizes = {16: (2, 2), 36: (2, 3), 64: (2, 4), 81: (3, 3), 144: (3, 4), 256: (4, 4)}
    assert {s: puzzles.get("sudoku", seq_len=s) for s in sizes} == {s: Sudoku(*b) for s, b in sizes.items()}
    assert puzzles.get("sudoku", seq_len=36, box_rows=3) == Sudoku(3, 2)
    for message, options in {
        "has no option rows; it takes box_rows, box_cols": {"rows": 3},
        "no Sudoku has 80 cells": {"seq_len": 80},
        "no Sudoku has 25 cells": {"seq_len": 25},
        "box_rows=2 will not do for 81 cells: 3 will": {"seq_len": 81, "box_rows": 2},
        "box_rows=0 will not do for 36 cells: 2, 3 will": {"seq_len": 36, "box_rows": 0},
        "boxes of 1x3 will not do": {"box_rows": 1},
        "product at most 16": {"box_rows": 5, "box_cols": 4},
    }.items():
        with pytest.raises(PuzzleError, match=message):
            puzzles.get("sudoku", **options)
    with pytest.raises(PuzzleError, match="unknown puzzle 'sudoko'; known are .*sudoku"):
        puzzles.get("sudoko")


def test_picture_colours():
    domain = Sudoku(2, 2)
    given, answer = domain.encode("1...34122143432."), domain.encode("1234341221434321")
    answer[15] = 1
    changed = np.arange(16) == 1
    picture = domain.render(answer, given, changed, color=True)
    plain = domain.render(answer, given, changed)
    assert "\x1b" not in plain and re.sub(r"\x1b\[[\d;]*m", "", picture) == plain
    assert plain.splitlines() == [" 1 2 \u2502 3 4", " 3 4 \u2502 1 2", "\u2500" * 5 + "\u253c" + "\u2500" * 5,
                                  " 2 1 \u2502 4 3", " 4 3 \u2502 2 ."]
    cells = picture.splitlines()[0].replace("\u2502 ", "").split()
    assert cells == ["\x1b[1m1\x1b[0m", "\x1b[36m\x1b[30;43m2\x1b[0m", "\x1b[36m3\x1b[0m", "\x1b[36m4\x1b[0m"]
    assert picture.endswith(" .")


# Rules


@pytest.mark.parametrize("shape", SHAPES)
def test_verifier_tells_which_rule_is_broken(shape):
    domain = Sudoku(*shape)
    (puzzle,), (answer,), _ = domain.generate(1, seed=3, blanks=domain.seq_len // 3)
    blank, n = np.ones_like(puzzle), domain.side
    assert one(domain, puzzle, answer) == (True, True, True)

    def swapped(a, b):
        grid = answer.reshape(n, n).copy()
        grid[a], grid[b] = grid[b].copy(), grid[a].copy()
        return grid.ravel()

    for row_only in (swapped((0, 0), (1, 0)), swapped((n - 1, n - 1), (n - 2, n - 1))):  # within column and box
        assert one(domain, blank, row_only) == (True, False, True)
    for column_only in (swapped((0, 0), (0, 1)), swapped((n - 1, n - 1), (n - 1, n - 2))):  # within row and box
        assert one(domain, blank, column_only) == (True, False, True)
    box_only = (np.add.outer(np.arange(n), np.arange(n)) % n + 2).ravel()  # a Latin square
    assert one(domain, blank, box_only) == (True, False, True)

    renamed = np.where(answer == 2, 3, np.where(answer == 3, 2, answer))  # a grid, but not of this puzzle
    assert one(domain, blank, renamed) == (True, True, True)
    assert one(domain, puzzle, renamed) == (True, True, False)
    assert one(domain, puzzle, puzzle) == (False, True, True)

    for token in (0, 1, n + 2, 255, -100):  # no digit: incomplete, and repeating it breaks no rule
        for cells, kept in ((np.flatnonzero(puzzle == 1)[:2], True), (np.flatnonzero(puzzle > 1)[:2], False)):
            damaged = answer.astype(np.int32)
            damaged[cells] = token
            assert one(domain, puzzle, damaged) == (False, True, kept)


def test_verifier_equals_plain_loops_on_damaged_grids():
    rng = np.random.default_rng(0)
    for domain in (Sudoku(2, 3), Sudoku()):
        inputs, labels, _ = domain.generate(100, seed=0, blanks=domain.seq_len // 2)
        answers = np.where(rng.random(labels.shape) < .02, rng.integers(0, domain.side + 4, labels.shape), labels)
        verdict = domain.verify(inputs, answers)
        rules = [keeps_rules(domain, a) for a in answers]
        assert 0 < sum(rules) < 100
        np.testing.assert_array_equal(verdict.rules, rules)
        np.testing.assert_array_equal(verdict.complete, [all(2 <= t < domain.vocab_size for t in a) for a in answers])
        np.testing.assert_array_equal(verdict.clues, [all(p in (1, a) for p, a in zip(*pair, strict=True))
                                                      for pair in zip(inputs, answers, strict=True)])
        several = domain.verify(inputs[:, None], np.stack([answers, labels], axis=1))  # [B, attempts, S]
        np.testing.assert_array_equal(several.solved, np.stack([verdict.solved, np.ones(100, bool)], axis=1))
        with pytest.raises(PuzzleError, match="expected shape"):
            domain.verify(inputs, answers[:, 1:])


def test_faults_are_the_cells_of_broken_rules():
    domain, rng = Sudoku(), np.random.default_rng(5)
    question, answer = domain.encode(PUZZLE), domain.encode(ANSWER)
    answers = np.repeat(answer[None], 50, axis=0)
    for row in answers[1:]:
        row[rng.integers(81, size=2)] = rng.integers(2, 11, size=2)
    faults, verdict = domain.faults(question, answers), domain.verify(question, answers)
    np.testing.assert_array_equal(faults.any(axis=1), ~(verdict.rules & verdict.clues))
    assert not faults[0].any() and faults[(answers != answer).any(axis=1)].any()
    one_wrong = answer.copy()
    one_wrong[2] = domain.symbols["6"]  # a second one in row, column and box, where it is a clue
    row, column = np.divmod(np.flatnonzero(domain.faults(question, one_wrong)), 9)
    assert list(zip(row.tolist(), column.tolist())) == [(0, 2), (0, 3), (4, 2)]
    changed_clue = np.where(np.arange(81) == 0, 1, answer)
    np.testing.assert_array_equal(np.flatnonzero(domain.faults(question, changed_clue)), [0])


def test_contradicting_clues_are_named():
    domain = Sudoku(2, 3)
    grid = domain.encode("." * 36)
    domain.check_clues(grid)
    assert domain.conflicts(grid) == []
    grid[[0, 5]] = 6  # row 1; different columns and boxes
    assert domain.conflicts(grid) == ["row 1 has two 5s"]
    grid[[3 * 6 + 5]] = 6
    assert domain.conflicts(grid) == ["row 1 has two 5s", "column 6 has two 5s"]
    with pytest.raises(PuzzleError, match="contradict each other: row 1 has two 5s; column 6 has two 5s"):
        domain.check_clues(grid)
    grid[:] = 1
    grid[[9, 16, 11]] = 2  # rows 2 and 3; row 2 columns 4 and 6 are in box 2
    assert domain.conflicts(grid) == ["row 2 has two 1s", "box 2 has two 1s"]
    for token in (0, 8):
        grid[:] = token
        with pytest.raises(PuzzleError, match=r"tokens are 1 \(blank\) to 7"):
            domain.check_clues(grid)


# Symmetries


@pytest.mark.parametrize("shape", SHAPES)
def test_augmentation_keeps_puzzles_and_can_be_undone(shape):
    domain, rng = Sudoku(*shape), np.random.default_rng(0)
    inputs, labels, _ = domain.generate(40, seed=1, blanks=domain.seq_len // 2)
    symmetry = domain.draw_symmetry(np.random.default_rng(0), 40)
    before = inputs.copy(), labels.copy()
    new_inputs, new_labels = domain.augment(inputs, labels, rng)
    np.testing.assert_array_equal(inputs, before[0])
    np.testing.assert_array_equal(labels, before[1])
    assert new_inputs.dtype == new_labels.dtype == np.uint8
    assert (new_inputs != inputs).any(axis=1).all()
    np.testing.assert_array_equal(new_inputs, symmetry.apply(inputs))  # a function of the generator's state alone
    np.testing.assert_array_equal(symmetry.inverse().apply(new_labels), labels)
    assert domain.verify(new_inputs, new_labels).solved.all()
    solutions = domain.solve(new_inputs)
    np.testing.assert_array_equal(solutions.counts, 1)
    np.testing.assert_array_equal(solutions.answers, new_labels)
    again, _ = domain.augment(inputs, labels, rng)
    assert (again != new_inputs).any()


def test_augmentation_leaves_meaningless_tokens_alone():
    domain = Sudoku(2, 3)
    inputs, labels, _ = domain.generate(50, seed=1, blanks=18)
    labels = np.where(inputs > 1, 0, labels).astype(np.int32)  # clues ignored in the loss
    new_inputs, new_labels = domain.augment(inputs, labels, np.random.default_rng(1))
    assert new_labels.dtype == np.int32
    np.testing.assert_array_equal(new_labels == 0, new_inputs > 1)
    pad_or_blank = np.random.default_rng(2).integers(0, 2, (50, 36), np.uint8)
    moved = domain.draw_symmetry(np.random.default_rng(3), 50).apply(pad_or_blank)
    np.testing.assert_array_equal(moved.sum(axis=1), pad_or_blank.sum(axis=1))
    for bad in (labels - 100, labels + 100):
        with pytest.raises(PuzzleError, match=r"must lie in 0..7"):
            domain.augment(inputs, bad, np.random.default_rng(1))
    with pytest.raises(PuzzleError, match="shape"):
        domain.draw_symmetry(np.random.default_rng(3), 1).apply(pad_or_blank)


@pytest.mark.parametrize("shape, cell_maps, digit_maps, draws", [
    ((2, 2), 2 * 8 * 8, 24, 5_000),  # transpose x (2! bands x 2!^2 rows) x the same for columns
    ((2, 3), (6 * 8) * (2 * 36), 720, 60_000),  # 3 bands of 2 rows, 2 stacks of 3 columns, no transpose
    ((3, 2), (2 * 36) * (6 * 8), 720, 60_000),
])
def test_symmetries_are_the_whole_group_evenly(shape, cell_maps, digit_maps, draws):
    domain = Sudoku(*shape)
    symmetry = domain.draw_symmetry(np.random.default_rng(0), draws)
    maps, counts = np.unique(symmetry.cells, axis=0, return_counts=True)
    assert len(maps) == cell_maps
    assert {maps[-1][other].tobytes() for other in maps} == {m.tobytes() for m in maps}  # a group
    mean = draws / cell_maps
    assert ((counts - mean) ** 2 / mean).sum() < cell_maps + 5 * np.sqrt(2 * cell_maps)  # chi squared, 5 sigma
    relabel, counts = np.unique(symmetry.relabel, axis=0, return_counts=True)
    assert len(relabel) == digit_maps and (relabel[:, :2] == [0, 1]).all()
    mean = draws / digit_maps
    assert ((counts - mean) ** 2 / mean).sum() < digit_maps + 5 * np.sqrt(2 * digit_maps)


@pytest.mark.parametrize("shape", [(3, 3), (4, 4)])
def test_symmetries_reach_every_kind(shape):
    domain, n = Sudoku(*shape), shape[0] * shape[1]
    cells = domain.draw_symmetry(np.random.default_rng(0), 2_000).cells.reshape(-1, n, n).astype(int)
    transposed = (cells[:, 0, :] % n == cells[:, :1, 0] % n).all(axis=1)
    assert 800 < transposed.sum() < 1_200
    upright = np.where(transposed[:, None, None], cells.transpose(0, 2, 1), cells)
    rows, cols = upright[:, :, 0] // n, upright[:, 0, :] % n
    np.testing.assert_array_equal(upright, rows[:, :, None] * n + cols[:, None, :])
    for lines in (rows, cols):
        box = shape[0]
        groups, within = lines.reshape(-1, box, box) // box, lines.reshape(-1, box, box) % box
        assert (groups == groups[:, :, :1]).all()
        orders = set(itertools.permutations(range(box)))
        assert set(map(tuple, groups[:, :, 0].tolist())) == orders
        for group in range(box):
            assert set(map(tuple, within[:, group].tolist())) == orders
        assert (within[:, 0] != within[:, 1]).any()  # each group has an order of its own


# Solver and generator


def test_solver_on_a_known_puzzle():
    domain = Sudoku()
    inputs = domain.encode(PUZZLE)[None]
    inputs.flags.writeable = False
    counts, answers, guesses = domain.solve(inputs)
    assert (counts.tolist(), domain.decode(answers[0]), guesses.tolist()) == ([1], ANSWER, [0])
    impossible = domain.encode("12345678." + "." * 8 + "9" + "." * 63)[None]  # nothing contradicts at sight
    assert domain.conflicts(impossible[0]) == []
    counts, answers, _ = domain.solve(impossible)
    assert counts[0] == 0 and not answers.any()
    clash = domain.encode("55" + "." * 79)[None]
    assert domain.solve(clash).counts[0] == 0
    assert domain.solve(domain.encode("." * 81)[None], max_guesses=3).counts[0] == -1
    with pytest.raises(PuzzleError, match=r"expected shape \[B, 81\]"):
        domain.solve(inputs[0])


def test_solver_counts_as_plain_backtracking_does():
    domain = Sudoku(2, 2)
    assert domain.solve(np.ones((1, 16), np.uint8), limit=1_000).counts[0] == 288  # all 4x4 grids
    rng = np.random.default_rng(0)
    inputs = np.where(rng.random((300, 16)) < .25, rng.integers(2, 6, (300, 16)), 1).astype(np.uint8)
    expected = [0 if domain.conflicts(p) else count_solutions(domain, p, 20) for p in inputs]
    assert {0, 1, 2, 20} <= set(expected)
    solutions = domain.solve(inputs, limit=20)
    np.testing.assert_array_equal(solutions.counts, expected)
    np.testing.assert_array_equal(domain.verify(inputs, solutions.answers).solved, np.array(expected) > 0)


@pytest.mark.parametrize("shape, how", [
    *((shape, {"blanks": shape[0] ** 2 * shape[1] ** 2 // 2}) for shape in SHAPES[:4]), ((4, 4), {"clues": 150}),
    *((shape, {}) for shape in SHAPES[:4]),
])
def test_generated_puzzles_have_one_solution(shape, how):
    domain = Sudoku(*shape)
    inputs, labels, rating = domain.generate(40, seed=5, **how)
    assert inputs.shape == labels.shape == (40, domain.seq_len) and rating.shape == (40,)
    assert (inputs.dtype, labels.dtype, rating.dtype) == (np.uint8, np.uint8, np.int32)
    assert domain.verify(inputs, labels).solved.all()
    assert len(np.unique(inputs, axis=0)) == 40
    counts, answers, guesses = domain.solve(inputs)
    assert (counts == 1).all() and (answers == labels).all() and (guesses == rating).all()
    clues = (inputs > 1).sum(axis=1)
    if how:
        assert (clues == how.get("clues", domain.seq_len - how.get("blanks", 0))).all()
    for puzzle in inputs[:3]:
        assert count_solutions(domain, puzzle, 2) == 1
        if not how:  # minimal: without any one clue there are several solutions
            for s in np.flatnonzero(puzzle > 1):
                fewer = puzzle.copy()
                fewer[s] = 1
                assert count_solutions(domain, fewer, 2) == 2


def test_same_seed_same_puzzles(monkeypatch):
    domain = Sudoku(2, 3)
    puzzles_300 = domain.generate(300, seed=7)
    for fewer in (0, 1, 50):
        for a, b in zip(domain.generate(fewer, seed=7), puzzles_300, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b[:fewer])
    assert (domain.generate(50, seed=8).inputs != puzzles_300.inputs[:50]).any(axis=1).all()
    monkeypatch.setattr(sudoku, "_in_threads", lambda work, count: work(slice(0, count)))
    for a, b in zip(domain.generate(300, seed=7), puzzles_300, strict=True):
        np.testing.assert_array_equal(a, b)
    # Pinned: a seed names a data set for good. Change the generator only together with the data sets' version.
    assert domain.decode(domain.generate(1, seed=0, clues=14).inputs[0]) == ".......5.2..51..3...4..2421...6..124"


def test_puzzles_never_repeat_and_running_dry_is_an_error():
    domain = Sudoku(2, 2)
    inputs, labels, _ = domain.generate(288, seed=0, blanks=0)  # every 4x4 grid there is
    np.testing.assert_array_equal(inputs, labels)
    assert len(np.unique(inputs, axis=0)) == 288
    np.testing.assert_array_equal(domain.generate(100, seed=0, blanks=0).inputs, inputs[:100])
    with pytest.raises(PuzzleError, match="found only 288 of 289 different 4x4 puzzles with 16 clues"):
        domain.generate(289, seed=0, blanks=0)


@pytest.mark.parametrize("how, message", [
    ({"clues": 10}, "10 clues are impossible: a 9x9 Sudoku with one solution has 17 to 81"),
    ({"blanks": 65}, "16 clues are impossible"), ({"clues": 82}, "17 to 81"), ({"blanks": -1}, "17 to 81"),
    ({"blanks": 40, "clues": 41}, "give one"), ({"seed": -1}, "seed=-1"),
])
def test_generator_refuses_the_impossible(how, message):
    with pytest.raises(PuzzleError, match=message):
        Sudoku().generate(1, **{"seed": 0, **how})
