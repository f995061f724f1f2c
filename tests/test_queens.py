"""N-queens completion: its rules against plain loops, and what several right answers mean for a figure."""

import itertools
import types

import numpy as np
import pytest

from trm_jax import puzzles
from trm_jax.evaluation import scores
from trm_jax.inference.solver import Solver
from trm_jax.puzzles import PuzzleError, queens

EIGHT = puzzles.get("queens")


def board(text: str, size: int = 8) -> np.ndarray:
    return puzzles.get("queens", size=size).encode(text)


@pytest.fixture(scope="module")
def several():
    """Puzzles with two answers or more: inputs, labels, and for each an answer that is not the label."""
    made = EIGHT.generate(100, 0)
    inputs, labels = (column[made.rating > 1] for column in made[:2])
    rng = np.random.default_rng(0)
    others = np.stack([next(drawn for _ in range(1000) if (drawn := EIGHT.draw_answers(puzzle[None], rng)[0]
                                                           ).tolist() != label.tolist())
                       for puzzle, label in zip(inputs, labels)])
    return inputs, labels, others


def test_the_boards_are_as_many_as_are_known_and_in_order():
    """OEIS A000170."""
    assert [len(queens.boards(n)) for n in range(4, 11)] == [2, 10, 4, 40, 92, 352, 724]
    columns = queens.boards(8).reshape(-1, 8, 8).argmax(axis=2).tolist()
    assert columns == sorted(columns)


@pytest.mark.parametrize("size", [4, 5])
def test_the_verifier_equals_plain_loops(size):
    domain, plain = puzzles.get("queens", size=size), np.ones((1, size * size), np.uint8)
    sets = itertools.chain(itertools.combinations(range(size * size), size), [(0,), tuple(range(size + 1))])
    for cells in itertools.islice(sets, 0, None, 41 if size == 5 else 7):
        answer = plain.copy()
        answer[0, list(cells)] = queens.QUEEN
        attacks = any(a // size == b // size or a % size == b % size or abs(a // size - b // size) == abs(
            a % size - b % size) for a, b in itertools.combinations(cells, 2))
        assert domain.verify(plain, answer).solved[0] == (not attacks and len(cells) == size)
        assert domain.faults(plain, answer).any() == attacks == bool(domain.conflicts(answer[0]))


def test_the_label_is_the_first_answer_and_every_answer_is_drawn_alike():
    made = EIGHT.generate(50, 1, givens=2)
    all_boards = queens.boards(8)
    for puzzle, label, rating, log2 in zip(*made):
        fits = [b for b in all_boards if b[puzzle == queens.QUEEN].all()]
        assert (label == fits[0] + 1).all() and rating == len(fits) and np.isclose(2 ** log2, len(fits))
    most = int(made.rating.argmax())
    drawn = EIGHT.draw_answers(np.repeat(made.inputs[most:most + 1], 4000, axis=0), np.random.default_rng(0))
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    expected = 4000 / made.rating[most]
    assert len(counts) == made.rating[most] and np.abs(counts - expected).max() < 5 * expected ** 0.5


def test_a_right_answer_that_is_not_the_label_is_valid_and_not_exact(several):
    inputs, labels, others = several
    marks = scores.mark(EIGHT, inputs, labels, others)
    assert not marks.right.any() and marks.solved.all()
    figures = scores.score(marks, np.ones(len(inputs), bool))
    assert (figures["exact_accuracy"], figures["verified"]) == (0.0, 1.0)
    solver = Solver(types.SimpleNamespace(unit="outer cycles"), EIGHT)
    answer = solver.judge(inputs[0], others[0], "settled", 4, 1)
    assert answer.verified and answer.status == "verified; settled after 1 outer cycles"
    attacked = others[0].copy()
    attacked[np.flatnonzero(attacked == queens.FREE)[0]] = queens.QUEEN
    answer = solver.judge(inputs[0], attacked, "settled", 4, 1)
    assert not answer.verified and "more than one solution" not in answer.reason and "attack" in answer.reason


def test_boards_are_read_as_people_write_them():
    rows = ["..Q.", "Q...", "...Q", ".Q.."]
    tokens = board("".join(rows), 4)
    four = puzzles.get("queens", size=4)
    chess = "\n".join(rows).replace("Q", "\u2655")
    for form in ("\n".join(rows), " ".join("".join(rows)).lower(), chess, "\n".join(rows).replace(".", "0")):
        np.testing.assert_array_equal(four.encode(form), tokens)
    for value in (rows, [list(row) for row in rows], [[int(c == "Q") for c in row] for row in rows]):
        np.testing.assert_array_equal(four.encode_value(value), tokens)
    assert puzzles.Domain.recognised("".join(rows)) == "" and queens.Queens.recognised(rows) == "4 queens"
    assert queens.Queens.recognised("1000" * 4) == ""  # a matrix, of a maze maybe


@pytest.mark.parametrize("text, message", [
    ("Q.......", "got 8 cells, expected 64"), ("x" + "." * 63, "unknown character 'x'"),
    ("Q" + "." * 8 + "Q" + "." * 54, "row 1, column 1 and row 2, column 2 attack each other"),
    ("Q" * 3 + "." * 61, "3 queens are attacked")])
def test_what_is_no_puzzle_is_refused(text, message):
    with pytest.raises(PuzzleError, match=message):
        EIGHT.check_clues(EIGHT.encode(text))


def test_sizes_and_numbers_that_will_not_do_are_refused():
    for refused in (lambda: puzzles.get("queens", size=3), lambda: puzzles.get("queens", seq_len=65),
                    lambda: EIGHT.generate(1, 0, givens=9), lambda: EIGHT.draw_answers(
                        board("Q" + "." * 15, 4)[None], np.random.default_rng(0))):
        with pytest.raises(PuzzleError):
            refused()
    assert EIGHT.solutions(board("Q" + "." * 63)[None]).counts.tolist() == [2]
    four = puzzles.get("queens", size=4)
    assert four.solutions(board("Q" + "." * 15, 4)[None]).counts.tolist() == [0]
