"""The page shows the trace, cell by cell, in a real browser; it needs no network and nothing in it can run."""

import base64
import builtins
import html.parser
import io
import json
import re
import sys

import numpy as np
import pytest

from tests import tiny
from tests.scripted import DOMAIN, GRID, NEVER, Scripted, text
from trm_jax import puzzles
from trm_jax.inference.solver import Answer, Solver, Trace
from trm_jax.puzzles import arc
from trm_jax.reports import page as page_module
from trm_jax.reports import pictures
from trm_jax.reports.page import Film
from trm_jax.weights import weights_file

EVIL = "</script><script>hacked = 1</script><!--<b id=evil>&amp;"


@pytest.fixture(scope="module")
def solver():
    return Solver(Scripted().bind(), DOMAIN)


def film(solver, puzzle: str, steps: int = 20, settle: int = 4, name: str = "puzzle 1") -> Film:
    trace = solver.trace(puzzle, steps, settle=settle)
    return Film(name, trace, solver.judge_trace(trace, settle))


def made(domain, inputs: np.ndarray, tokens: list[np.ndarray], solution: np.ndarray | None = None) -> Film:
    """A film of any answers."""
    n, rng = len(tokens), np.random.default_rng(3)
    trace = Trace(inputs, np.stack(tokens), rng.random((n, len(inputs)), np.float32), np.geomspace(1, 1e-3, n))
    solved = domain.has_rules and bool(domain.verify(inputs, tokens[-1]).solved)
    return Film("made", trace, Answer("", tokens[-1], solved, "budget", n, trace.stands_since, ""), solution)


def maze_film() -> tuple[puzzles.Domain, Film]:
    domain = puzzles.get("maze", rows=4, cols=5)
    grids = "S   G/ # ##/     /## # ", "So oG/ # ##/  o  /#### ", "SoooG/ # ##/     /## # "
    question, *answers = (domain.encode(grid.replace("/", "\n")) for grid in grids)
    return domain, made(domain, question, answers)


def arc_film() -> tuple[puzzles.Domain, Film]:
    question, target = arc.to_canvas(np.array([[1, 2], [0, 3]])), arc.to_canvas(np.array([[2, 1, 0], [3, 0, 9]]))
    wrong = target.copy()
    wrong[1] = arc.FIRST_COLOUR + 7
    return puzzles.get("arc"), made(puzzles.get("arc"), question, [wrong, target], target)


class Scripts(html.parser.HTMLParser):
    """The elements of a page and what its scripts hold."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.scripts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "script" and self.scripts:
            self.scripts[-1] += data


def data_of(page: str) -> dict:
    return json.loads(Scripts(page).scripts[0])


def unpacked(film: dict, S: int) -> tuple[np.ndarray, ...]:
    """(inputs [S], tokens [n, S], confidence [n, S], faults [n, S]) of the page's JSON."""
    inputs, tokens, sure, faults = (np.frombuffer(base64.b64decode(film[name]), np.uint8)
                                    for name in ("inputs", "tokens", "sure", "faults"))
    n = len(film["cycles"])
    return inputs, tokens.reshape(n, S), sure.reshape(n, S) / 255, np.unpackbits(faults)[:n * S].reshape(n, S) == 1


# The page.


def test_the_page_holds_the_trace(solver):
    shown = film(solver, text(6)), film(solver, text(NEVER), 7)
    data = data_of(page_module.page(DOMAIN, shown, "title"))
    assert data["unit"] == "outer cycles" and data["verified_as"] == "verified" and data["fault"] == "in conflict"
    assert data["drawing"] == {"rows": 4, "columns": 4, "box": [2, 2], "characters": ["?", "", *"1234"],
                               "shapes": [""] * 6}
    for (_, trace, answer, _), held in zip(shown, data["films"], strict=True):
        inputs, tokens, sure, faults = unpacked(held, 16)
        np.testing.assert_array_equal(inputs, trace.inputs)
        np.testing.assert_array_equal(tokens, trace.tokens)
        np.testing.assert_array_equal(faults, DOMAIN.faults(trace.inputs, trace.tokens))
        np.testing.assert_allclose(sure, trace.confidence, atol=1 / 255)
        np.testing.assert_allclose(held["residual"], trace.residual, rtol=1e-2)
        assert [held["words"][i] for i in held["says"]] == [DOMAIN.explain(inputs, t) for t in tokens]
        assert held["cycles"] == list(range(1, len(tokens) + 1)) and held["stands"] == trace.stands_since
        assert (held["settled"], held["status"]) == (answer.settled, answer.status)
        [again] = solver.solve([DOMAIN.decode(inputs)], max_cycles=len(tokens), settle=4, tries=1)
        np.testing.assert_array_equal(tokens[-1], again.tokens)


@pytest.mark.parametrize("n, stands", [(1, 1), (256, 7), (257, 3), (300, 299), (20_000, 12_345)])
def test_long_traces_are_thinned_out(n, stands):
    tokens = np.full((n, 16), 2, np.uint8)
    tokens[:stands - 1] = 3
    cycles = page_module.shown_cycles(Trace(GRID, tokens, np.ones((n, 16)), np.ones(n))).tolist()
    assert len(cycles) == min(n, len(cycles)) <= page_module.MOST_FRAMES and cycles == sorted(set(cycles))
    assert cycles[0] == 1 and cycles[-1] == n and stands in cycles
    assert cycles[:128] == list(range(1, min(n, 128) + 1)) and (n > 256 or len(cycles) == n)


def test_a_page_is_small_and_whole():
    domain, rng = puzzles.get("sudoku"), np.random.default_rng(0)
    shown = [made(domain, np.ones(81, np.uint8), list(rng.integers(2, 11, (64, 81), np.uint8)))]
    page = page_module.page(domain, shown, "t")
    assert len(page) < 60_000
    linked = [value for name, value in Scripts(page).attributes if name in ("src", "href")]
    assert linked == ["data:,"] and set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}
    assert "{{" not in page


def test_nothing_that_is_not_finite_gets_in(solver):
    shown = film(solver, text(3))
    trace = shown.trace._replace(residual=np.array([np.nan, np.inf, 0, *shown.trace.residual[3:]]),
                                 confidence=np.full_like(shown.trace.confidence, np.nan))
    held = data_of(page_module.page(DOMAIN, [shown._replace(trace=trace)], "t"))["films"][0]
    assert held["residual"][:3] == [None, None, 0] and not unpacked(held, 16)[2].any()


def test_names_and_titles_are_only_text(solver):
    page = page_module.page(DOMAIN, [film(solver, text(2), name=EVIL)], EVIL, EVIL + "{{data}}")
    found = Scripts(page)
    assert found.tags.count("script") == 2 and found.tags.count("b") == 2 and data_of(page)["films"][0]["name"] == EVIL


def test_domains_without_rules_are_compared_with_the_solution():
    domain, shown = arc_film()
    data = data_of(page_module.page(domain, [shown], "t"))
    assert data["fault"] == "unlike the solution" and data["films"][0]["words"] == ["not the solution", ""]
    assert data["drawing"]["shapes"][:4] == ["empty", "end", arc.PALETTE[0], arc.PALETTE[1]]
    assert (data["drawing"]["rows"], data["drawing"]["columns"]) == (3, 4), "of 30 x 30 only what is used"
    inputs, tokens, _, faults = unpacked(data["films"][0], 12)
    assert inputs.tolist() == [3, 4, 1, 0, 2, 5, 1, 0, 1, 1, 0, 0] and tokens[1].tolist() == [
        4, 3, 2, 1, 5, 2, 11, 1, 1, 1, 1, 0]
    assert np.flatnonzero(faults[0]).tolist() == [1] and not faults[1].any()
    unknown = data_of(page_module.page(domain, [shown._replace(solution=None)], "t"))
    assert unknown["fault"] == "" and unknown["films"][0]["words"] == [None]


# GIF and PNG.


def test_animation_has_a_frame_per_cycle(solver):
    image = pytest.importorskip("PIL.Image")
    for shown, frames in ((film(solver, text(2), 9), 1 + 2 + pictures.AFTER), (film(solver, text(2), 1), 2)):
        gif = image.open(io.BytesIO(pictures.animation(DOMAIN, shown.trace, "a title")))
        assert gif.format == "GIF" and gif.n_frames == frames
    for domain, shown in (maze_film(), arc_film()):
        assert pictures.animation(domain, shown.trace, "t").startswith(b"GIF89a")


# The command line.


@pytest.fixture(scope="module")
def export():
    return tiny.export()


@pytest.fixture
def cli(solver, export, monkeypatch, capsys, tmp_path):
    """(arguments, standard input) -> (status, out, err), with the scripted model, in an empty folder."""
    weights_file.save(tmp_path / "w", export)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Solver, "of", lambda export: solver)

    def run(*args, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        try:
            status = page_module.main(["--weights=w", "--compilation_cache=", *args])
        except SystemExit as refused:
            status = refused.code
        return status, *capsys.readouterr()
    return run


def test_page_by_command(cli, tmp_path):
    status, out, err = cli(text(3), "12", text(2))
    assert (status, out) == (1, "think.html\n") and err.splitlines() == [
        "puzzle 1: verified; settled after 3 outer cycles",
        "puzzle 2: not answered: got 2 cells, expected 16 (4x4): write them on one line, or as 4 lines of 4",
        "puzzle 3: verified; settled after 2 outer cycles"]
    page = (tmp_path / "think.html").read_text()
    assert [f["name"] for f in data_of(page)["films"]] == ["puzzle 1", "puzzle 3"] and "w: " in page
    assert cli("--out=new/p.html", "--title=A & B", stdin=text(4))[:2] == (0, "new/p.html\n")
    assert "<h1>A &amp; B</h1>" in (tmp_path / "new" / "p.html").read_text()
    (tmp_path / "p.json").write_text(json.dumps({EVIL: text(3)}))
    assert cli("--file=p.json")[0] == 0
    assert data_of((tmp_path / "think.html").read_text())["films"][0]["name"] == EVIL
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "p.json", "think.html", "w"], "nothing is left over"


def test_pictures_by_command(cli, tmp_path):
    assert cli("--gif=t.gif", "--png=t.png", text(3))[:2] == (0, "t.gif\nt.png\n")
    assert cli("--png=t.png", text(3), text(2))[1] == "t-1.png\nt-2.png\n"
    assert (tmp_path / "t-2.png").read_bytes().startswith(b"\x89PNG") and not (tmp_path / "think.html").exists()


def test_without_matplotlib_it_says_so_at_once(cli, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, "__import__", missing)
    status, out, err = cli("--gif=t.gif", text(3))
    assert status == 2 and "pip install 'trm_jax[plot]'" in err and cli(text(3))[0] == 0


@pytest.mark.parametrize("args, message", [
    ([], "no puzzle given"), (["12"], "none of the puzzles could be shown; nothing was written"),
    (["--max_cycles=0", text(2)], "--max_cycles: '0' must be"), (["--out=w/x.html", text(2)], "w"),
    (["--file=none.txt"], "none.txt: No such file"), (["--example=0"], "no dataset folder nowhere")])
def test_bad_usage_is_status_2(cli, tmp_path, args, message):
    status, out, err = cli(*args)
    assert status == 2 and out == "" and message in err.splitlines()[-1] and err.splitlines()[-1].startswith("error: ")
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


# In a browser.


@pytest.fixture
def view(window, tmp_path):
    """(domain, films) -> the window with their page. Afterwards nothing may have gone wrong, nor to a network."""
    window.log("performance"), window.log("browser")

    def show(domain, films, title="Watch it think"):
        page = tmp_path / "page.html"
        page_module.write_file(page, page_module.page(domain, films, title, "source"))
        window.prefer(color_scheme="light", reduced_motion="no-preference")
        window.size(1280, 800)
        window.open(page.as_uri())
        return window
    yield show
    events = [json.loads(entry["message"])["message"] for entry in window.log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked and {url.split(":")[0] for url in asked} <= {"file", "data"}, asked
    assert window.log("browser") == []


CELLS = """return Array.from(document.querySelectorAll(".cell"), c => [c.textContent, c.className.split(" ")])"""


def cells(window, *marks: str) -> tuple[list[str], list[np.ndarray]]:
    """Texts of the cells, and where each of the marks is."""
    found = window.run(CELLS)
    return [c for c, _ in found], [np.array([mark in classes for _, classes in found]) for mark in marks]


def at(window) -> int:
    return int(window.run("return document.getElementById('cycle').textContent"))


def verdict(window) -> str:
    return window.run("return document.getElementById('verdict').textContent")


def test_every_frame_is_the_trace(view, solver):
    shown = film(solver, text(6))
    window = view(DOMAIN, [shown])
    texts, (given, changed) = cells(window, "given", "changed")
    assert at(window) == 0 and texts == ["" if t == 1 else str(t - 1) for t in shown.trace.inputs.tolist()]
    np.testing.assert_array_equal(given, shown.trace.inputs > 1)
    assert not changed.any() and verdict(window) == "the puzzle, before the first cycle"
    before, faults = shown.trace.inputs, DOMAIN.faults(shown.trace.inputs, shown.trace.tokens)
    for cycle, tokens in enumerate(shown.trace.tokens, 1):
        window.press("right")
        texts, (given, changed, fault) = cells(window, "given", "changed", "fault")
        assert at(window) == cycle and "".join(texts) == DOMAIN.decode(tokens)
        np.testing.assert_array_equal(given, tokens == shown.trace.inputs)
        np.testing.assert_array_equal(changed, tokens != before)
        np.testing.assert_array_equal(fault, faults[cycle - 1])
        said = verdict(window)
        assert said.startswith("verified") if cycle >= 6 else said == DOMAIN.explain(shown.trace.inputs, tokens)
        assert ("; settled since cycle 6" in said) == (cycle >= 6)
        before = tokens


def test_the_last_frame_is_the_answer_of_a_trained_model(view):
    solver = Solver.load(weights_file.DEFAULT)
    puzzle = "6.1..4.2883...2....5.1834..1832..57....917863......2.471.42..3..4.361..73..87..4."
    [answer] = solver.solve([puzzle])
    window = view(solver.domain, [film(solver, puzzle, 64, 8)])
    window.press("end")
    texts, (given,) = cells(window, "given")
    assert answer.verified and "".join(texts) == answer.text and verdict(window).startswith("verified; settled since")
    assert given.sum() == 81 - puzzle.count(".")


def test_keys_slider_and_chart(view, solver):
    shown = film(solver, text(9), 30)
    last, window = len(shown.trace.tokens), view(DOMAIN, [shown])
    for keys, cycle in ((["end"], last), (["right"], last), (["left"], last - 1), (["shift", "left"], last - 11),
                        (["home"], 0), (["left"], 0), (["shift", "right"], 10)):
        window.press(*keys)
        assert at(window) == cycle, keys
    slider = "const s = document.getElementById('slider'); "
    window.run(slider + "s.focus(); s.value = 5; s.dispatchEvent(new Event('input'))")
    assert at(window) == 5
    window.press("right")  # one cycle, not two, though the slider would move by itself
    assert at(window) == 6 and window.run(slider + "return [s.value, s.max, s.getAttribute('aria-valuetext')]") == [
        "6", str(last), f"cycle 6: {DOMAIN.explain(shown.trace.inputs, shown.trace.tokens[5])}"]
    window.click("#chart")
    assert at(window) == pytest.approx(last / 2, abs=1)
    middle = window.run("""const box = e => e.getBoundingClientRect(), chart = document.getElementById('chart');
        return [...chart.querySelectorAll('.now, .dot')].map(e => box(e).left + box(e).width / 2 - box(chart).left)""")
    assert middle[0] == pytest.approx(middle[1], abs=1.5), "the dot is on the line"
    window.press("home")
    focused = []
    for _ in range(8):  # once around
        window.press("tab")
        focused.append(window.run("""const e = document.activeElement, style = getComputedStyle(e);
            return [e.id, style.outlineStyle, e.labels?.length > 0 || !!(e.ariaLabel || e.textContent.trim())]"""))
    assert [(e[1], e[2]) for e in focused if e[0]] == [("solid", True)] * sum(bool(e[0]) for e in focused)
    assert {"play", "back", "on", "speed", "slider"} <= {e[0] for e in focused}


def test_play_pause_and_replay(view, solver):
    window, last = view(DOMAIN, [film(solver, text(9), 30)]), 13
    name = "return document.getElementById('play').textContent.trim()"
    assert window.run(name) == "Play"
    window.run("""document.getElementById('speed').value = 2;
        window.seen = [];
        const cycle = document.getElementById('cycle'), see = () => seen.push(Number(cycle.textContent));
        new MutationObserver(see).observe(cycle, {childList: true})""")
    window.click("#play")
    assert window.run(name) == "Pause"
    window.wait("return seen.length >= 1")
    window.press("space")  # on the button that has the focus
    assert window.run(name) == "Play"
    stopped = at(window)
    assert window.run("return seen") == list(range(1, stopped + 1)) and stopped < last
    window.run("document.activeElement.blur(); document.getElementById('speed').value = 32")
    window.press("space")
    window.wait(f"return seen.length === {last}")
    assert window.run(name) == "Replay"
    window.click("#play")
    window.wait(f"return seen.length === {2 * last + 1}")
    assert window.run("return seen") == [*range(1, last + 1), *range(last + 1)]
    window.press("home")
    assert (at(window), window.run(name)) == (0, "Play")


def test_several_puzzles_and_hostile_names(view, solver):
    window = view(DOMAIN, [film(solver, text(3)), film(solver, text(NEVER), 9, name=EVIL)], EVIL)
    assert window.run("return [document.title, document.querySelector('h1').textContent]") == [EVIL, EVIL]
    assert window.run("return [window.hacked === undefined, document.getElementById('evil')]") == [True, None]
    choose = "const p = document.getElementById('pick'); p.selectedIndex = 1; p.dispatchEvent(new Event('change'));"
    told = window.run(choose + "return p.options[1].text")
    assert told.startswith(EVIL) and "NOT verified" in told
    window.press("end")
    assert at(window) == 9 and not verdict(window).startswith("verified")
    assert window.run("return document.querySelectorAll('#chart .good').length") == 0


def test_a_long_trace_says_what_it_leaves_out(view):
    n = 300
    trace = Trace(GRID, np.repeat(GRID[None], n, axis=0), np.ones((n, 16), np.float32), np.geomspace(2, 1.24e-6, n))
    window = view(DOMAIN, [Film("long", trace, Answer("", GRID, True, "settled", n, 1, ""))])
    window.press("end")
    frames = len(page_module.shown_cycles(trace))
    assert window.run("return ['cycle', 'of', 'residual'].map(id => document.getElementById(id).textContent)") == [
        "300", f"of 300 outer cycles, {frames} of them shown", "1.2 \u00d7 10\u207b\u2076"]
    window.press("home")
    window.press("right")
    assert window.run("return document.getElementById('residual').textContent") == "2"


@pytest.mark.parametrize("which", ["sudoku", "wide", "maze", "arc"])
def test_it_fits_a_phone_in_light_and_dark(view, solver, which):
    match which:
        case "sudoku":
            domain, shown = DOMAIN, film(solver, text(3), name="a rather long name of a puzzle, " * 4)
        case "wide":
            domain = puzzles.get("sudoku", box_rows=4, box_cols=4)
            shown = made(domain, np.ones(256, np.uint8), [np.full(256, 17, np.uint8)] * 2)
        case "maze":
            domain, shown = maze_film()
        case "arc":
            domain, shown = arc_film()
    window = view(domain, [shown, shown])
    window.press("right")
    colours = """return ["body", "#grid", "#verdict", "#play"].map(s => document.querySelector(s)).map(e => {
        const style = getComputedStyle(e); return style.backgroundColor + style.color})"""
    light = window.run(colours)
    window.prefer(color_scheme="dark", reduced_motion="reduce")
    assert all(one != other for one, other in zip(light, window.run(colours)))
    moving = "return getComputedStyle(document.querySelector('.changed'), '::after').animationName"
    assert window.run(moving) == "none"
    for width, height in ((360, 740), (740, 360), (1280, 800)):
        window.size(width, height)
        assert window.run("return document.documentElement.scrollWidth") <= width
        across, down = window.run("const {width, height} = document.querySelector('.cell').getBoundingClientRect();"
                                  "return [width, height]")
        assert across == pytest.approx(down, rel=0.1) and across > 8
    window.prefer(color_scheme="dark", reduced_motion="no-preference")
    assert window.run(moving) == "ring"


def test_walls_paths_and_colours_are_drawn(view):
    domain, shown = maze_film()
    window = view(domain, [shown])
    window.press("right")
    texts, (wall, path, fault, changed) = cells(window, "wall", "path", "fault", "changed")
    inputs, tokens = shown.trace.inputs, shown.trace.tokens[0]
    assert "".join(texts) == "SG" and (wall == (tokens == 1)).all() and (path == (tokens == 5)).all()
    assert (fault == domain.faults(inputs, tokens)).all() and (changed == (tokens != inputs)).all()
    window.press("right")
    assert verdict(window) == "shortest path"
    domain, shown = arc_film()
    window = view(domain, [shown])
    window.press("end")
    hues = window.run("return Array.from(document.querySelectorAll('.hue'), c => c.style.getPropertyValue('--hue'))")
    assert hues == [arc.PALETTE[c] for c in (2, 1, 0, 3, 0, 9)] and verdict(window) == "the solution"
    window = view(domain, [shown._replace(solution=None)])
    window.press("end")
    assert verdict(window) == "no rules to judge by"
