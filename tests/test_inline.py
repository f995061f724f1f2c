"""What a notebook shows of answers and traces: SVG that is well formed, plays, and says what is wrong."""

import xml.etree.ElementTree as ET

import numpy as np

from tests.scripted import DOMAIN, GRID, blanked
from trm_jax import puzzles
from trm_jax.inference import inline
from trm_jax.inference.solver import Answer, Trace

NS = "{http://www.w3.org/2000/svg}"


def trace_of(tokens) -> Trace:
    tokens = np.asarray(tokens, np.uint8)
    return Trace(blanked(3), tokens, np.ones(tokens.shape, np.float32), np.ones(len(tokens)), None, DOMAIN)


def texts(group: ET.Element) -> list[str | None]:
    return [text.text for text in group.iter(f"{NS}text")]


def test_a_trace_plays_from_the_puzzle_to_its_last_change():
    wrong = np.where(np.arange(16) == 0, 3, GRID)  # 2 where 1 is right
    film = ET.fromstring(trace_of([wrong, GRID, GRID, GRID])._repr_html_())
    groups = film.findall(f"{NS}g")
    assert [texts(group)[-1] for group in groups] == ["the puzzle", "1 outer cycles", "2 outer cycles"]
    assert len(texts(groups[0])) == 13 + 1 and len(texts(groups[1])) == 16 + 1
    times = [[float(t) for t in group.find(f"{NS}animate").get("keyTimes").split(";")] for group in groups]
    assert times[0][1] == 0 and times[-1][2] == 1
    assert all(a[2] == b[1] for a, b in zip(times, times[1:])), "one after the other"
    colours = [[text.get("fill") for text in group.iter(f"{NS}text")][:3] for group in groups]
    assert inline.WRONG in colours[1] and inline.WRONG not in colours[2]
    assert sum(rect.get("fill") == inline.CHANGED for rect in groups[2].iter(f"{NS}rect")) == 1


def test_a_long_trace_shows_some_of_its_frames():
    other = np.where(np.arange(16) == 0, 3, GRID)
    frames = [other if i % 2 else GRID for i in range(500)]
    groups = ET.fromstring(trace_of(frames)._repr_html_()).findall(f"{NS}g")
    assert len(groups) <= inline.MOST_FRAMES + 1 and texts(groups[-1])[-1] == "500 outer cycles"


def test_an_answer_is_drawn_over_its_status_and_a_refusal_is_text():
    answer = Answer("", GRID, False, "budget", 1, 1, "<b> & c", inputs=blanked(3), domain=DOMAIN)
    page = ET.fromstring(f"<html>{answer._repr_html_()}</html>")
    assert page.find("p").text == answer.status and len(page.findall(f"{NS}svg")) == 1
    assert Answer.refused(ValueError("no <grid>"))._repr_html_() == "<p>not answered: no &lt;grid&gt;</p>"


def test_of_a_canvas_only_what_is_used_is_drawn():
    arc = puzzles.get("arc")
    grid = puzzles.arc.to_canvas(np.array([[1, 2], [3, 4]]))
    rects = [rect.get("fill") for rect in ET.fromstring(inline.figure(arc, grid, grid[None], [""])).iter(f"{NS}rect")]
    assert rects == ["white", *(puzzles.arc.PALETTE[i] for i in (1, 2, 3, 4))]
