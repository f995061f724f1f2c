"""Tables by hand, AUROC against a count over all pairs, and what is said where nothing is defined."""

import json

import numpy as np
import pytest

from trm_jax.evaluation import calibration, tables


def of(text: str) -> np.ndarray:
    return np.array([c == "x" for c in text], bool)


RIGHT, SETTLED, VERIFIED = of("xxx...x."), of("xx.x..xx"), of("xxxx....")


def test_every_answer_is_in_one_cell_of_the_table():
    cells = calibration.table(RIGHT, SETTLED, VERIFIED)
    assert {name: cell["n"] for name, cell in cells.items()} == {
        "settled_right_verified": 2, "settled_right_refused": 1, "settled_wrong_verified": 1,
        "settled_wrong_refused": 1, "unsettled_right_verified": 1, "unsettled_right_refused": 0,
        "unsettled_wrong_verified": 0, "unsettled_wrong_refused": 2}
    assert cells["settled_right_verified"]["share"] == 0.25 and sum(c["share"] for c in cells.values()) == 1
    assert {name: cell["n"] for name, cell in calibration.table(RIGHT, SETTLED).items()} == {
        "settled_right": 3, "settled_wrong": 2, "unsettled_right": 1, "unsettled_wrong": 2}


def test_precision_and_recall_of_settled():
    worth = calibration.worth(RIGHT, SETTLED, None, {})
    assert worth["precision"] == {"n": 3, "of": 5, "share": 0.6}
    assert worth["recall"] == {"n": 3, "of": 4, "share": 0.75}
    assert (worth["right"], worth["wrong"], worth["auroc"]) == (4, 4, {})


@pytest.mark.parametrize("score, right, expected", [
    ([3, 2, 1, 0], "xx..", 1.0),
    ([0, 1, 2, 3], "xx..", 0.0),
    ([7, 7, 7, 7], "xx..", 0.5),
    ([3, 1, 2, 0], "xx..", 0.75),
    ([2, 1, 1, 0], "xx..", 0.875),  # one pair of four is a tie
    ([-np.inf, 1, -np.inf, 0], "xx..", 0.625),  # two that never settled are a tie
    ([1, np.nan, -np.inf, 0], "xx..", 0.625),  # not a number is as bad as it gets
])
def test_auroc_by_hand(score, right, expected):
    assert calibration.auroc(np.array(score, float), of(right))[0] == expected


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_auroc_is_the_count_over_all_pairs(levels):
    rng = np.random.default_rng(levels)
    right = rng.random(150) < 0.8
    score = rng.integers(levels, size=150) + right * levels * 0.4
    pairs = [(a > b) + (a == b) / 2 for a in score[right] for b in score[~right]]
    assert calibration.auroc(score, right)[0] == sum(pairs) / len(pairs)
    shuffled = rng.permutation(150)
    assert calibration.auroc(np.exp(score[shuffled] / 100), right[shuffled]) == calibration.auroc(score, right)
    assert calibration.auroc(-score, right)[0] == pytest.approx(1 - sum(pairs) / len(pairs))


def test_the_standard_error_is_how_far_other_draws_lie_apart():
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(400):
        right = np.arange(120) < 90
        draws.append(calibration.auroc(rng.normal(size=120) + right, right))
    values, errors = np.array(draws).T
    assert errors.mean() == pytest.approx(values.std(), rel=0.1)
    assert calibration.auroc(np.array([2.0, 1, 0]), of("xx."))[1] is None, "one wrong answer does not tell"


@pytest.mark.parametrize("right, why", [("xxx", "no wrong answers"), ("...", "no right answers"),
                                        ("", "no right and no wrong answers")])
def test_what_is_not_defined_is_null_with_its_reason(right, why):
    right = of(right)
    n = len(right)
    worth = calibration.worth(right, np.zeros(n, bool), np.ones(n, bool), {"residual": np.zeros(n)})
    assert worth["auroc"] == worth["auroc_standard_error"] == {"residual": None} and worth["auroc_undefined"] == why
    assert worth["precision"] == {"n": 0, "of": 0, "share": None}
    assert json.loads(json.dumps(worth, allow_nan=False)) == worth


def test_predictors_are_higher_for_the_likelier_right():
    unchanged, settled = np.array([5, 3, 1], np.int32), np.array([True, True, False])
    found = calibration.predictors(6, unchanged, settled, np.array([0.1, 0.2, 0.0], np.float32))
    assert found["cycles_to_settle"].tolist() == [-1, -3, -np.inf]
    assert np.argsort(found["residual"]).tolist() == [1, 0, 2] and "halting_logit" not in found
    assert calibration.predictors(6, unchanged, settled, np.zeros(3), np.array([1.0, 2, 3]))["halting_logit"][2] == 3


def test_the_terminal_shows_counts_with_shares_and_never_rounds_up():
    scores = {"residual": np.array([8, 7, 6, 1, 2, 5, 4, 3.0]), "cycles_to_settle": np.zeros(8)}
    figure = {"H_test": 16, "L_test": 4, "n": 8, "signals": calibration.worth(RIGHT, SETTLED, VERIFIED, scores)}
    lines = tables.signal_lines(figure, "verified")
    assert lines[0] == "  signals at H_test 16, L_test 4: puzzles (% of 8)"
    assert [head.strip() for head in lines[1].split("  ")[-4:]] == [
        "right, verified", "right, not verified", "wrong, verified", "wrong, not verified"]
    assert lines[2].split() == ["settled", "2", "(25.00)", "1", "(12.50)", "1", "(12.50)", "1", "(12.50)"]
    assert len({len(line) for line in lines[1:4]}) == 1
    assert lines[4] == "  settled as a claim of right: precision 60.00 (3 of 5), recall 75.00 (3 of 4)"
    assert lines[5].startswith("  AUROC of right (4) over wrong (4): residual 0.9") and "settle 0.500" in lines[5]
    figure["signals"] = calibration.worth(of("xx"), of("xx"), None, {"residual": np.zeros(2)})
    figure["n"] = 2
    lines = tables.signal_lines(figure, "verified")
    assert lines[1].split() == ["right", "wrong"]
    assert lines[-1] == "  AUROC of right (2) over wrong (0): not defined, no wrong answers"
