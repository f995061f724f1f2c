"""The network in the browser is the network: its logits are JAX's, and what it calls verified the rules accept."""

import json

import numpy as np
import pytest

from tests import tiny
from trm_jax.inference import slots
from trm_jax.reports import page as page_module
from trm_jax.runtime.errors import UserError
from trm_jax.weights import weights_file

NAMES = ("rsm-sudoku", "rsm-sudoku-quick")
CELLS = "return Array.from(document.querySelectorAll('.cell'), c => c.textContent)"


@pytest.fixture
def view(window, tmp_path):
    """name -> (the window with the page of these weights, the weights). Afterwards nothing has gone wrong."""
    window.log("performance"), window.log("browser")

    def show(name):
        export, path = weights_file.read(name), tmp_path / "play.html"
        path.write_text(page_module.play(export, "Play", page_module.source_line(name, export)), encoding="utf-8")
        assert path.stat().st_size < 1_000_000
        window.size(1280, 900)
        window.open(path.as_uri())
        return window, export
    yield show
    events = [json.loads(entry["message"])["message"] for entry in window.log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked and {url.split(":")[0] for url in asked} <= {"file", "data"}, asked
    assert window.log("browser") == []


def difference(window, export, n: int, cycles: int) -> float:
    """The largest difference of a logit, on n puzzles of several kinds after so many cycles."""
    halves = [export.domain.generate(part, seed=9, clues=clues)[0] for part, clues in ((n // 2, 41), (n - n // 2, 28))]
    inputs, bound = np.concatenate(halves), export.bound
    here = window.run("""return arguments[0].map(tokens => {
        let state = local.network.begin(tokens);
        for (let i = 0; i < arguments[1]; i++) state = local.network.cycle(state);
        return Array.from(local.network.logits(state)); })""", inputs.tolist(), cycles)
    x = bound.embed(inputs, np.zeros(n, np.int32))
    there = np.asarray(bound.logits(bound.unroll(bound.initial_latents(inputs), x, np.int32(cycles)).y))
    return float(np.abs(np.array(here).reshape(there.shape) - there).max())


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_jax(view, name):
    assert difference(*view(name), 4, 3) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_logits_of_50_puzzles_are_those_of_jax(view, name):
    window, export = view(name)
    differences = [difference(window, export, 50, cycles) for cycles in (1, 4)]
    print(name, differences)
    assert max(differences) < 1e-3


def solved(window, export, puzzle: np.ndarray, seconds: float = 60) -> int:
    """Solves a puzzle in the page; which try was verified, and the rules agree."""
    window.run("""const t = document.getElementById('text'); t.value = arguments[0];
        t.dispatchEvent(new Event('input'))""", export.domain.decode(puzzle))
    window.click("#solve")
    said = window.wait("const t = document.getElementById('told').textContent;"
                       "return t.startsWith('thinking') ? '' : t", seconds)
    assert said.startswith("verified in "), said
    answer = export.domain.encode("".join(window.run(CELLS)))
    assert export.domain.verify(puzzle[None], answer[None]).solved[0]
    assert window.run("return document.getElementById('verdict').textContent") == "verified"
    return int(said.rsplit(" ", 1)[1])


@pytest.mark.parametrize("name, cycles, clues", [("rsm-sudoku", 1, 36), ("rsm-sudoku-quick", 3, 46)])
def test_further_tries_find_what_the_plain_one_does_not(view, name, cycles, clues):
    """Guesses, or symmetries, after a plain try that has too few cycles."""
    window, export = view(name)
    window.run("local.max_cycles = arguments[0]; local.guess_cycles = 2", cycles)
    inputs = export.domain.generate(8, seed=2, clues=clues)[0]
    plain = slots.unrolled(export.bound, inputs, np.zeros(8, np.int32), np.int32(cycles))
    hard = inputs[~export.domain.verify(inputs, np.asarray(plain)).solved]
    assert solved(window, export, hard[0]) > 1
    assert window.run("return films.length") > 1
    guessed = window.run("return document.querySelectorAll('.cell.guess').length")
    assert (guessed > 0) == (name == "rsm-sudoku" and window.run("return film.attempt") > 2)


def test_a_puzzle_is_typed_into_the_grid_and_what_is_wrong_is_said(view):
    window, export = view("rsm-sudoku-quick")
    [puzzle], [answer] = (part for part in export.domain.generate(1, seed=4, clues=60)[:2])
    text = export.domain.decode(puzzle)
    window.run("const t = document.getElementById('text'); t.value = ''; t.dispatchEvent(new Event('input'))")
    assert window.run(CELLS) == [""] * 81
    assert "Solve" in window.run("return document.getElementById('solve').textContent")
    window.run("pick(0)")
    window.run("""for (const c of arguments[0]) for (const key of [c, 'ArrowRight'])
        document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}))""", text)
    assert window.run("return document.getElementById('text').value") == text
    for said, wrong in (("got 80 cells, expected 81", text[1:]), ("is no cell of a puzzle", "q" + text[1:]),
                        ("the clues contradict each other: row 1 has two 5s", "55" + "." * 79)):
        window.run("document.getElementById('text').value = arguments[0]; solve()", wrong)
        assert said in window.wait("const t = document.getElementById('told'); return t.className && t.textContent")
    drawn = export.domain.render(puzzle)
    window.run("document.getElementById('text').value = arguments[0]; solve()", drawn)
    window.wait("return document.getElementById('told').textContent.startsWith('verified')")
    np.testing.assert_array_equal(export.domain.encode("".join(window.run(CELLS))), answer)


def test_symmetries_keep_what_is_solved(view):
    window, export = view("rsm-sudoku-quick")
    [answer] = export.domain.generate(1, seed=6)[1]
    turned = window.run("""const random = generator(5);
        return Array.from({length: 20}, () => { const {cells, relabel} = symmetry(random, ask.box, ask.arch.V);
            return cells.map(s => relabel[arguments[0][s]]); })""", answer.tolist())
    assert export.domain.verify(np.array(turned), np.array(turned)).solved.all()
    assert len({tuple(t) for t in turned}) == 20


def test_the_page_fits_a_phone(view):
    window, _ = view("rsm-sudoku")
    for width, height in ((360, 740), (1280, 800)):
        window.size(width, height)
        assert window.run("return document.documentElement.scrollWidth") <= width


def test_other_networks_are_refused_by_name():
    for export, what in ((weights_file.read("rsm-maze-quick"), "6x6 maze"), (tiny.export(), "puzzle_emb_ndim = 16")):
        with pytest.raises(UserError, match=f"--play has no code .*{what}"):
            page_module.play(export, "t")
