"""For tests: what every domain keeps, whoever registered it. A package of its own can call `check` on its domain."""

import numpy as np
import pytest

from trm_jax import puzzles
from trm_jax.puzzles import Domain, PuzzleError

SMALL = {"sudoku": [{"box_rows": 2, "box_cols": 2}, {"box_rows": 2, "box_cols": 3}, {}],
         "futoshiki": [{"size": 4}, {}], "maze": [{"rows": 5, "cols": 5}, {"rows": 4, "cols": 7},
                                                            {"rows": 6, "cols": 7, "smallest": 5}],
         "queens": [{"size": 5}, {}]}


def small(name: str) -> list[Domain]:
    """Domains of this name that tests can afford: as SMALL says, or the one without options."""
    return [puzzles.get(name, **options) for options in SMALL.get(name, [{}])]


def check(domain: Domain, n: int = 6, seed: int = 0) -> None:
    """All laws."""
    for law in (sizes_agree, round_trips, the_verifier_accepts_the_generator, symmetries_keep_verdicts,
                several_answers_are_right, what_is_not_offered_is_refused, answers_that_are_changed_are_explained):
        law(domain, n, seed)


def _made(domain: Domain, n: int, seed: int):
    return domain.generate(n, seed)[:2] if domain.generates else (np.zeros((0, domain.seq_len), np.uint8),) * 2


def sizes_agree(domain: Domain, n: int, seed: int) -> None:
    rows, columns = domain.grid
    assert rows * columns == domain.seq_len and domain.boxes[0] <= rows and domain.boxes[1] <= columns
    assert puzzles.get(**puzzles.puzzle_of(domain)) == domain and domain.title
    assert all(0 < token < domain.vocab_size for token in domain.symbols.values())


def round_trips(domain: Domain, n: int, seed: int) -> None:
    """What decode and render write, encode reads; so do rows of JSON and two puzzles in one text."""
    for tokens in np.concatenate(_made(domain, n, seed)):
        text = domain.decode(tokens)
        np.testing.assert_array_equal(domain.encode(text), tokens)
        np.testing.assert_array_equal(domain.encode_value({"puzzle": text}), tokens)
        np.testing.assert_array_equal(domain.encode(domain.render(tokens)), tokens)
        np.testing.assert_array_equal(domain.encode(domain.render(tokens, given=tokens, color=True)), tokens)
        for form in (text, domain.render(tokens)):
            pieces = domain.split(f"{form}\n\n{form}\n")
            assert len(pieces) == 2
            for piece in pieces:
                np.testing.assert_array_equal(domain.encode(piece.text), tokens)


def the_verifier_accepts_the_generator(domain: Domain, n: int, seed: int) -> None:
    if not (domain.generates and domain.has_rules):
        return
    inputs, labels = _made(domain, n, seed)
    assert domain.verify(inputs, labels).solved.all() and len({puzzle.tobytes() for puzzle in inputs}) == n
    assert [domain.explain(puzzle, label) for puzzle, label in zip(inputs, labels)] == [""] * n
    np.testing.assert_array_equal(_made(domain, n // 2, seed)[0], inputs[:n // 2])
    for puzzle in inputs:
        domain.check_clues(puzzle)
    if domain.solves:
        found = domain.solutions(inputs)
        assert domain.verify(inputs, found.answers).solved.all() and (found.counts >= 1).all()
    if domain.marks_faults:
        assert not domain.faults(inputs, labels).any()


def symmetries_keep_verdicts(domain: Domain, n: int, seed: int) -> None:
    if not (domain.has_symmetries and domain.generates):
        return
    inputs, labels = _made(domain, n, seed)
    rng = np.random.default_rng(seed)
    symmetry = domain.draw_symmetry(rng, n)
    moved = symmetry.apply(inputs), symmetry.apply(labels)
    np.testing.assert_array_equal(symmetry.inverse().apply(moved[0]), inputs)
    for puzzle in moved[0]:
        domain.check_clues(puzzle)
    if domain.has_rules:
        wrong = np.where(rng.random(labels.shape) < 0.2, np.roll(labels, 1, axis=1), labels)
        for answers in (labels, wrong):
            np.testing.assert_array_equal(domain.verify(inputs, answers).solved,
                                          domain.verify(moved[0], symmetry.apply(answers)).solved)


def several_answers_are_right(domain: Domain, n: int, seed: int) -> None:
    if not domain.has_several_answers:
        return
    inputs, _ = _made(domain, n, seed)
    assert domain.verify(inputs, domain.draw_answers(inputs, np.random.default_rng(seed))).solved.all()
    assert (domain.log2_answers(inputs) >= 0).all()


def what_is_not_offered_is_refused(domain: Domain, n: int, seed: int) -> None:
    nothing, rng = np.ones((1, domain.seq_len), np.uint8), np.random.default_rng(0)
    for offered, call in ((domain.has_symmetries, lambda: domain.draw_symmetry(rng, 1)),
                          (domain.generates, lambda: domain.generate(1, 0)),
                          (domain.has_rules, lambda: domain.verify(nothing, nothing)),
                          (domain.solves, lambda: domain.solutions(nothing)),
                          (domain.has_several_answers, lambda: domain.draw_answers(nothing, rng))):
        if not offered:
            with pytest.raises(PuzzleError):
                call()


def answers_that_are_changed_are_explained(domain: Domain, n: int, seed: int) -> None:
    if not (domain.has_rules and domain.generates):
        return
    inputs, labels = _made(domain, n, seed)
    rng = np.random.default_rng(seed)
    for puzzle, label in zip(inputs, labels):
        cell = rng.choice(np.flatnonzero(label > 1))
        answer = label.copy()
        answer[cell] = label[cell] % (domain.vocab_size - 1) + 1
        reason = domain.explain(puzzle, answer)
        assert bool(reason) == (not domain.verify(puzzle[None], answer[None]).solved[0]) and "\n" not in reason
