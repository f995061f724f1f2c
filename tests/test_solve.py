"""Solving stops where it says, answers do not depend on their neighbours, and the command line says what happened."""

import io
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trm_jax
from tests import tiny
from tests.scripted import DOMAIN, GRID, NEVER, Scripted, blanked, text
from trm_jax.inference import command, slots, text_film
from trm_jax.inference.settings import InferenceError
from trm_jax.inference.solver import SolveError, Solver, Trace
from trm_jax.weights import weights_file


@pytest.fixture(autouse=True)
def one_try(monkeypatch):
    """Unless a test says otherwise, a puzzle gets the plain try only; tests/test_guesses.py is about the usual ones."""
    monkeypatch.setattr(Solver, "usual", {"vary": "symmetry", "tries": 1, "max_cycles": 256})


@pytest.fixture(scope="module")
def solver():
    return Solver(Scripted().bind(), DOMAIN)


def test_every_puzzle_stops_when_its_own_answer_stands(solver):
    needed = [3, 9, 1, 6, 9, 2]
    answers = solver.solve([blanked(n) for n in needed], settle=4, verify=False)
    assert [(a.since, a.cycles, a.settled, a.verified, a.reason) for a in answers] == [
        (n, n + 4, True, True, "") for n in needed]
    for a in answers:
        np.testing.assert_array_equal(a.tokens, GRID)
        assert a.text == "1234341221434321" and a.status.startswith("verified; settled after")


@pytest.mark.parametrize("max_cycles, stop, verified", [
    (5, "budget", False), (8, "budget", True), (9, "settled", True), (99, "settled", True)])
def test_max_cycles_is_exact(solver, max_cycles, stop, verified):
    [a] = solver.solve([text(6)], max_cycles=max_cycles, settle=3, verify=False)
    assert (a.stop, a.verified, a.cycles) == (stop, verified, min(9, max_cycles))


def test_the_verifier_ends_it_at_once(solver):
    a, b = solver.solve([text(6), text(NEVER)], max_cycles=40, settle=0)
    assert (a.stop, a.verified, a.since) == ("verified", True, 6) and a.cycles < 40
    assert a.status == "verified; found after 6 outer cycles"
    assert (b.stop, b.cycles, b.attempt) == ("budget", 40, 1)


def test_tries_are_passed_on(solver):
    [a] = solver.solve([text(NEVER)], max_cycles=4, tries=3, vary="start")
    assert a.verified and a.attempt in (2, 3), "this network forgets how hard a puzzle is when its latents are shaken"
    assert a.status.endswith(f"of try {a.attempt}")
    with pytest.raises(InferenceError, match="vary = 'luck'"):
        solver.solve([text(3)], vary="luck")


def test_out_of_time_is_said(solver):
    answers = solver.solve([text(NEVER)] * 3, max_cycles=10**6, settle=0, max_seconds=1e-6, batch_size=1)
    assert [a.stop for a in answers] == ["budget"] * 3 and answers[0].tokens is not None
    assert answers[2].tokens is None and answers[2].status == "not answered: time was up before its turn came"


def test_a_batch_goes_on_for_the_slowest(solver):
    answers = solver.solve([text(2), text(NEVER), text(4)], max_cycles=40, settle=5)
    assert [(a.stop, a.since) for a in answers] == [("verified", 2), ("budget", 40), ("verified", 4)]
    assert answers[1].reason == "the puzzle has more than one solution, and this is none: a clue was changed"
    assert "NOT verified" in answers[1].status


def test_unreadable_puzzles_do_not_stop_the_others(solver):
    given = [text(1), "12", "z" + "." * 15, "11" + "." * 14, np.zeros(16, np.int64), np.ones(16), text(2)]
    answers = solver.solve(given)
    assert [a.verified for a in answers] == [True, *[False] * 5, True]
    for a, why in zip(answers[1:6], ("got 2 cells, expected 16", "unknown character 'z'", "row 1 has two 1s",
                                     r"tokens are 1 \(blank\) to 5", "tokens must be integers")):
        assert a.tokens is None and a.text == "" and re.search(why, a.reason) and "\n" not in a.reason
        assert a.status.startswith("not answered: ")


def test_nothing_and_nonsense(solver):
    assert solver.solve([]) == []
    with pytest.raises(SolveError, match="must be a list"):
        solver.solve(text(1))
    with pytest.raises(InferenceError, match="settle = -1: must not be negative"):
        solver.solve([text(1)], settle=-1)
    with pytest.raises(SolveError, match="steps = 0"):
        solver.trace(text(1), 0)


def test_trace_is_the_same_answer(solver):
    trace = solver.trace(text(9), 200, settle=4)
    assert (len(trace.tokens), trace.stands_since) == (13, 9), "9 cycles and 4 of standing still"
    ours, theirs = solver.judge_trace(trace, 4), solver.solve([text(9)], settle=4, verify=False)[0]
    assert (ours.text, ours.status, ours.cycles, ours.since) == (theirs.text, theirs.status, 13, 9)
    assert not solver.judge_trace(solver.trace(text(9), 12, settle=4), 4).settled
    assert solver.trace(text(1), 3).stands_since == 1 and len(solver.trace(text(1), 40).tokens) == 40
    np.testing.assert_allclose(trace.confidence, np.exp(3) / (np.exp(3) + 5), rtol=1e-5)


def test_a_real_network_equals_the_plain_loop():
    export = tiny.export()
    given = DOMAIN.draw_symmetry(np.random.default_rng(1), 7).apply(np.tile(blanked(8), (7, 1)))
    model, w = export.model, export.weights

    @jax.jit
    def plain(inputs):
        core = model.core(w.params)
        x = model.embed(w.params, inputs, model.rows(w.table, jnp.zeros(7, jnp.int32)))
        (y, z), answers = model.initial_latents(w.fixed, 7), []
        for _ in range(6):
            for _ in range(3):
                z = core(z, y + x)
            y = core(y, z)
            answers.append(model.answer(w.params, y))
        return answers
    expected = plain(jnp.asarray(given))
    solver = Solver.of(export)
    answers = solver.solve(list(given), max_cycles=6, settle=7, batch_size=4)
    np.testing.assert_array_equal([a.tokens for a in answers], expected[-1])
    assert not any(a.settled for a in answers)
    np.testing.assert_array_equal(solver.trace(given[3], 6).tokens, np.array(expected)[:, 3])


def test_later_calls_compile_nothing():
    solver = Solver.of(tiny.export())
    solver.solve([text(3)] * 5, max_cycles=4)
    programs = slots.begin, slots.advanced, slots.refill
    sizes = [program._cache_size() for program in programs]
    solver.solve([text(n) for n in (1, 2, 3, 4, 5, 6, 7)], max_cycles=4, settle=2)
    solver.solve([text(8)] * 8, max_cycles=3)
    assert [program._cache_size() for program in programs] == sizes


def test_after_a_warm_up_the_first_call_compiles_nothing(tmp_path):
    weights_file.save(tmp_path / "w", tiny.export())
    solver = Solver.load(tmp_path / "w")
    solver.warm_up(2)
    programs = slots.begin, slots.advanced
    sizes = [program._cache_size() for program in programs]
    solver.solve([text(3)], max_cycles=4, tries=1)
    solver.solve([text(3), text(4)], max_cycles=4, tries=1)
    assert [program._cache_size() for program in programs] == sizes


@pytest.mark.parametrize("last, cycles", [
    (1, [1]), (2, [1, 2]), (5, [1, 2, 3, 4, 5]), (9, [1, 2, 3, 4, 6, 8, 9]), (16, [1, 2, 3, 4, 6, 8, 16])])
def test_shown_cycles(last, cycles):
    assert text_film.shown_cycles(last) == cycles


def test_shown_cycles_are_few():
    for last in (100, 256, 20_000):
        shown = text_film.shown_cycles(last)
        assert len(shown) <= text_film.MAX_FRAMES and shown[0] == 1 and shown[-1] == last
        assert shown == sorted(set(shown))


def test_frames_mark_what_changed(solver):
    trace = solver.trace(text(3), 20, settle=4)
    plain, coloured = (text_film.frames(DOMAIN, trace, color=color) for color in (False, True))
    assert [frame.splitlines()[0] for frame in plain] == [" the puzzle", " cycle 1", " cycle 2", " cycle 3"]
    titles = [frame.splitlines()[1] for frame in plain]
    assert titles[1].startswith(" 16 changed, ") and titles[3] == " 16 changed, verified"
    assert "\x1b" not in "".join(plain) and plain[3].count("*") == 16 and plain[0].count("*") == 0
    assert [re.sub(r"\x1b\[[\d;]*m", "", frame) for frame in coloured] == [frame.replace("*", " ") for frame in plain]
    assert "\x1b[30;43m" in coloured[3] and "\x1b[1m" in coloured[0]


def test_only_changed_cells_are_marked():
    previous, now = GRID.copy(), GRID.copy()
    previous[5] = 2
    trace = Trace(blanked(16), np.stack([previous, now]), np.ones((2, 16), np.float32), np.ones(2))
    last = text_film.frames(DOMAIN, trace, color=False)[-1].splitlines()
    assert last[1] == " 1 changed, verified" and last[3] == " 3*4 \u2502 1 2"


def test_side_by_side_fits_the_columns():
    shown = text_film.side_by_side(["ab\ncd", "efgh", "i\nj", "k"], columns=18)
    assert shown == "ab     efgh   i\ncd            j\n\nk"
    assert text_film.side_by_side(["abc", "d"], columns=1) == "abc\n\nd"
    assert text_film.side_by_side(["\x1b[1ma\x1b[0m\nbc", "d"], columns=80) == "\x1b[1ma\x1b[0m    d\nbc"


# The command line.


@pytest.fixture
def cli(solver, monkeypatch, capsys, tmp_path):
    """(arguments, standard input) -> (status, out, err), with the scripted model."""
    weights_file.save(tmp_path / "w", tiny.export())
    monkeypatch.setattr(Solver, "of", lambda export: solver)

    def run(*args, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        try:
            status = command.main([f"--weights={tmp_path / 'w'}", "--compilation_cache=", *args])
        except SystemExit as refused:
            status = refused.code
        return status, *capsys.readouterr()
    return run


def test_answers_out_status_err(cli):
    status, out, err = cli(text(3), text(5))
    assert (status, out) == (0, "1234341221434321\n" * 2)
    assert err.startswith("puzzle 1: verified; found after 3 outer cycles\n"
                          "puzzle 2: verified; found after 5 outer cycles\n2 of 2 verified in ")


def test_standard_input_keeps_its_order(cli):
    status, out, err = cli("--max_cycles=20", stdin=f"{text(3)}\n\n12\n{text(2)}\n")
    assert status == 1 and out.split("\n") == ["1234341221434321", "", "1234341221434321", ""]
    assert "puzzle 2: not answered: got 2 cells, expected 16 (4x4): write them on one line, or as 4 lines of 4" in err


def test_an_unverified_answer_is_status_1(cli):
    status, out, err = cli("--max_cycles=6", text(NEVER))
    assert status == 1 and len(out) == 17 and "NOT verified" in err and "not settled after 6" in err


def test_watch(cli):
    status, out, err = cli("--watch", text(4), "12")
    assert status == 1 and "cycle 4" in out and "verified" in out and "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80
    assert err.splitlines() == ["puzzle 1: verified; settled after 4 outer cycles",
                                "puzzle 2: not answered: got 2 cells, expected 16 (4x4): write them on one line, "
                                "or as 4 lines of 4"]


def test_json_in_and_out(cli, tmp_path):
    lines = f'{{"id": "a", "puzzle": "{text(3)}"}}\n"{text(2)}"\n{{"id": 7}}\n{{"no json\n{text(NEVER)}\n'
    status, out, err = cli("--format=json", "--max_cycles=6", "--file=-", stdin=lines)
    found = [json.loads(line) for line in out.splitlines()]
    assert status == 1 and [f["id"] for f in found] == ["a", "puzzle 2", "7", "puzzle 4", "puzzle 5"]
    assert [f["verified"] for f in found] == [True, True, False, False, False]
    assert found[0]["answer"] == "1234341221434321" and found[0]["since"] == 3 and found[0]["stop"] == "verified"
    assert found[2]["reason"] == 'has no "puzzle"' and "is no JSON" in found[3]["reason"]
    assert found[4]["answer"] is not None and found[4]["stop"] == "budget" and found[4]["cycles"] == 6
    (tmp_path / "p.json").write_text(json.dumps({"x": text(1), "y": {"puzzle": text(4)}, "z": 3}))
    status, out, err = cli(f"--file={tmp_path / 'p.json'}")
    assert status == 1 and out.splitlines() == ["1234341221434321"] * 2 + [""]
    assert err.splitlines()[0].startswith("x: verified")
    assert "z: not answered: a puzzle is a text or a list of rows, got int" in err
    (tmp_path / "p.json").write_text("[1,")
    status, out, err = cli(f"--file={tmp_path / 'p.json'}")
    assert status == 2 and "p.json: cannot be read as JSON" in err


def test_answers_are_told_as_they_come(solver):
    told = []
    answers = solver.solve([text(9), "12", text(1), text(3)], settle=4, verify=False, batch_size=1,
                           each=lambda i, answer: told.append((i, answer)))
    assert sorted(i for i, _ in told) == [0, 1, 2, 3] and all(answers[i] is answer for i, answer in told)
    assert told[0][0] == 1, "what cannot be read is told at once"
    soon = []
    solver.solve([text(NEVER), text(1)], settle=0, max_cycles=64, each=lambda i, answer: soon.append(i))
    assert soon == [1, 0]


def test_what_is_done_is_printed_when_interrupted(cli, solver, monkeypatch):
    def interrupted(puzzles, each, **settings):
        for i in (2, 0):
            each(i, solver.judge(solver.read(puzzles[i]), GRID, "settled", 3, 2))
        raise KeyboardInterrupt
    monkeypatch.setattr(solver, "solve", interrupted)
    status, out, err = cli(text(1), text(2), text(3), text(4))
    assert status == 130 and out.splitlines() == ["1234341221434321", "", "1234341221434321"]
    assert "puzzle 2: not answered: interrupted" in err and "\ninterrupted" in err and "puzzle 4" not in err


def test_a_closed_pipe_ends_it_quietly(tmp_path):
    weights_file.save(tmp_path / "w", tiny.export())
    (tmp_path / "p.txt").write_text("".join(text(i % 12) + "\n" for i in range(3000)))
    command_line = (f"{sys.executable} -m trm_jax.solve --weights={tmp_path / 'w'} --compilation_cache= --max_cycles=2 "
                    f"--tries=1 --file={tmp_path / 'p.txt'} 2>{tmp_path / 'err'} | head -3")
    done = subprocess.run(command_line, shell=True, capture_output=True, text=True, timeout=300)
    assert len(done.stdout.splitlines()) == 3 and done.stderr == ""
    assert len((tmp_path / "err").read_text().splitlines()) < 1000, "soon"
    assert "Traceback" not in (tmp_path / "err").read_text()


def test_control_characters_never_reach_the_terminal(cli):
    status, out, err = cli(stdin=json.dumps({"id": "a\x1b[31m\x07", "puzzle": text(2)}) + "\n\x1b]0;title\x07\n")
    assert status == 1 and "\x1b" not in out + err and "\x07" not in out + err and "a\\x1b[31m\\x07: verified" in err


def test_an_unsolved_puzzle_names_the_next_command(cli):
    _, _, err = cli("--max_cycles=6", "--vary=start", text(NEVER))
    assert "1 of 1 not verified; more tries and more time find more: python -m trm_jax solve --seconds=80" in err
    assert "--max_cycles=6" in err and "--vary=start" in err and err.strip().endswith(text(NEVER))


def test_a_puzzle_without_a_solution_is_told_so(cli):
    _, _, err = cli("--max_cycles=6", "12.." + "..34" + "." * 8)
    assert "puzzle 1: NOT verified: the puzzle has no solution" in err and "more tries" not in err


def test_watched_tries_are_those_that_solve_makes():
    """A real network, untrained: what matters is that each try thinks about the same turned puzzle."""
    solver = Solver.of(tiny.export())
    puzzles = [blanked(5), blanked(9)]
    for number, puzzle in enumerate(puzzles):
        watched = list(solver.traces(puzzle, 3, tries=3, seed=7, number=number))
        assert [answer.attempt for _, answer in watched] == [1, 2, 3]
        for tries in (1, 2, 3):
            solved = solver.solve(puzzles, max_cycles=3, settle=0, tries=tries, seed=7, choose=("settled",))[number]
            assert any(np.array_equal(solved.tokens, trace.tokens[-1]) for trace, _ in watched[:tries])
        assert watched[0][0].confidence.shape == watched[1][0].confidence.shape == (3, 16)
    assert len(list(solver.traces(DOMAIN.encode("1234341221434321"), 1, tries=1))) == 1


def test_watch_shows_every_try_until_one_is_verified(cli, solver, monkeypatch):
    traced = solver.trace
    monkeypatch.setattr(solver, "trace", lambda puzzle, steps, settle, symmetry=None: traced(
        blanked(2) if symmetry is not None else puzzle, steps, settle=settle))
    status, out, err = cli("--watch", "--tries=4", "--max_cycles=5", text(NEVER))
    assert status == 0 and "puzzle 1, try 1 of 4" in out and "puzzle 1, try 2 of 4" in out and "try 3" not in out
    assert err.splitlines()[0].startswith("puzzle 1, try 1 of 4 is given up: ")
    assert err.splitlines()[1].startswith("puzzle 1: verified; ") and err.endswith("of try 2\n")
    assert cli("--watch", "--tries=2", "--vary=start", text(2))[0] == 2


def test_a_puzzle_that_begins_with_a_dash_is_no_option(cli):
    assert cli(text(3).replace(".", "-"), text(2))[:2] == (0, "1234341221434321\n" * 2)


FORKED = """
import os, sys, warnings
warnings.simplefilter("ignore")
from trm_jax import Solver
solver = Solver.load(sys.argv[1])
solver.solve(["." * 15 + "1"], max_cycles=1)
if os.fork() == 0:
    for call in (lambda: solver.solve(["." * 16]), lambda: solver.trace("." * 16, 1), lambda: Solver.load(sys.argv[1])):
        try:
            call()
            os._exit(1)
        except ValueError as error:
            assert "forked" in str(error) and "spawn" in str(error)
    os._exit(0)
sys.exit(os.wait()[1] != 0)
"""


def test_a_forked_child_is_told_that_it_would_hang(tmp_path):
    weights_file.save(tmp_path / "w", tiny.export())
    assert subprocess.run([sys.executable, "-c", FORKED, str(tmp_path / "w")], timeout=300).returncode == 0


def test_pictures_out(cli):
    status, out, err = cli("--format=picture", text(3), "12")
    assert status == 1 and out.count("\u2502") == 4 and "puzzle 2: not answered" in err


def test_without_a_source_the_packaged_weights_answer(capsys):
    puzzle = "6.1..4.2883...2....5.1834..1832..57....917863......2.471.42..3..4.361..73..87..4."
    assert command.main([puzzle]) == 0
    assert len(capsys.readouterr().out.strip()) == 81
    assert Solver.load("rsm-sudoku-quick").domain.seq_len == 81
    with pytest.raises(weights_file.WeightsError, match="called rsm-chess; trained: .*rsm-sudoku-quick"):
        Solver.load("rsm-chess")


@pytest.mark.parametrize("args, message", [
    ([], "no puzzle given"), (["--settle=-1", "1"], "--settle: '-1' must be a whole number of at least 0"),
    (["--file=nowhere.txt"], "nowhere.txt: No such file"), (["--tries=0", "1"], "--tries: '0' must be"),
    (["--example=0"], "no dataset folder nowhere")])
def test_bad_usage_is_status_2(cli, args, message):
    status, out, err = cli(*args)
    assert status == 2 and out == "" and message in err and err.startswith("error: ")


def test_a_missing_run_is_status_2(tmp_path, capsys):
    assert command.main([f"--workdir={tmp_path / 'none'}", "--compilation_cache=", text(1)]) == 2
    assert "there is no run, file or trained network called" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        command.main(["--workdir=a", "--weights=b", text(1)])
    assert caught.value.code == 2


def test_solver_is_exported_and_import_stays_light(tmp_path):
    assert trm_jax.Solver is Solver
    with pytest.raises(AttributeError, match="no attribute 'Solvers'"):
        trm_jax.Solvers  # noqa: B018
    code = "import sys, trm_jax; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    weights_file.save(tmp_path / "w", tiny.export())
    assert len(Solver.load(tmp_path / "w").solve([text(2)], max_cycles=2)) == 1
