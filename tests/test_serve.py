"""The service answers as `solve` does, to many at once, within its limits; it says what is wrong, and ends in order."""

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests import browser, tiny
from tests.scripted import DOMAIN, NEVER, Scripted, text
from trm_jax import puzzles
from trm_jax.data.shape import Shape
from trm_jax.inference.settings import Settings
from trm_jax.inference.solver import Solver
from trm_jax.models.network import Model
from trm_jax.reports import page
from trm_jax.service import command
from trm_jax.service.worker import Ticket, Worker
from trm_jax.weights import weights_file

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")
web = pytest.importorskip("trm_jax.service.web")

SETTINGS = Settings(tries=3, max_cycles=10_000, settle=0, batch_size=4)


class Service:
    """A service on the loopback, in this process."""

    def __init__(self, solver, settings=SETTINGS, places=16, page="<h1>a page</h1>", **limits):
        self.worker = Worker(solver, settings, places)
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        app = web.application(self.worker, web.Limits(**limits), {"weights": "scripted"}, page)
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", log_config=None))
        self._thread = threading.Thread(target=self._server.run, args=([listener],))
        self._thread.start()

    def ask(self, method, path, body=None):
        """(status, text)"""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def solve(self, body, query=""):
        status, said = self.ask("POST", f"/solve{query}", body)
        return status, json.loads(said)

    def close(self):
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture(scope="module")
def solver():
    return Solver(Scripted().bind(), DOMAIN)


@pytest.fixture(scope="module")
def service(solver):
    made = Service(solver, seconds=20, puzzles=8, body=10_000)
    yield made
    made.close()


def test_answers_in_the_order_of_the_puzzles_as_solve_gives_them(service, solver):
    asked = [text(3), "12", text(9), text(1)]
    status, said = service.solve("\n".join(asked), "?max_cycles=40")
    alone = solver.solve(asked, tries=1, settle=0)
    assert status == 200 and [a["id"] for a in said["answers"]] == [f"puzzle {i}" for i in (1, 2, 3, 4)]
    assert [a["answer"] or "" for a in said["answers"]] == [a.text for a in alone]
    assert [a["since"] for a in said["answers"]] == [3, 0, 9, 1]
    assert [a["verified"] for a in said["answers"]] == [True, False, True, True]
    assert said["answers"][1]["reason"].startswith("got 2 cells")
    status, said = service.solve(json.dumps({"mine": text(2)}))
    assert status == 200 and said["answers"][0]["id"] == "mine" and said["answers"][0]["verified"]


def test_many_clients_at_once_each_get_their_own(service):
    found = {}

    def client(blanks):
        found[blanks] = service.solve(text(blanks))[1]["answers"][0]
    threads = [threading.Thread(target=client, args=(blanks,)) for blanks in range(1, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {blanks: (a["verified"], a["since"], a["try"]) for blanks, a in found.items()} == {
        blanks: (True, blanks, 1) for blanks in range(1, 13)}


def test_what_is_never_right_is_called_so_and_keeps_its_budget(service):
    status, said = service.solve(text(NEVER), "?tries=2&max_cycles=30")
    [answer] = said["answers"]
    assert status == 200 and not answer["verified"] and answer["reason"] and answer["cycles"] == 30
    begun = time.perf_counter()
    [answer] = service.solve(text(NEVER), "?seconds=0.5")[1]["answers"]
    took = time.perf_counter() - begun  # the wrong answer may be right under one of so many symmetries
    assert answer["verified"] or answer["stop"] == "budget" and took >= 0.5
    assert took < 10


def test_a_stream_has_every_cycle(service, solver):
    status, said = service.ask("POST", "/solve?stream=true&tries=1", f"{text(5)}\n12")
    refused, *frames, answer = map(json.loads, said.splitlines())
    trace = solver.trace(text(5), 5)
    assert status == 200 and [f["cycle"] for f in frames] == [1, 2, 3, 4, 5] and refused["id"] == "puzzle 2"
    assert [f["answer"] for f in frames] == [DOMAIN.decode(tokens) for tokens in trace.tokens]
    assert frames[0]["says"] == DOMAIN.explain(trace.inputs, trace.tokens[0]) and frames[-1]["says"] == ""
    assert answer["verified"] and answer["answer"] == frames[-1]["answer"]


def test_who_has_gone_is_not_thought_for(service):
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    connection.request("POST", "/solve?stream=true", text(NEVER))
    assert json.loads(connection.getresponse().readline())["cycle"] == 1
    assert service.worker.open == 1
    connection.close()
    end = time.monotonic() + 10
    while service.worker.open:
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("path, body, status, said", [
    ("/solve", "", 400, "no puzzle in the body"), ("/solve", "12", 400, "puzzle 1: got 2 cells"),
    ("/solve", "1" * 16, 400, "the clues contradict each other"), ("/solve", "[" * 5000, 400, "no puzzle"),
    ("/solve", b"\xff\xfe\x00\xd8", 400, ""), ("/solve?tries=0", "x", 400, "tries = '0': must be a whole number"),
    ("/solve?tries=4", "x", 400, "from 1 to 3"), ("/solve?seconds=nan", "x", 400, "seconds = 'nan': must be"),
    ("/solve?seconds=21", "x", 400, "above 0 and to 20"), ("/solve?stream=1", "x", 400, "must be true or false"),
    ("/solve?try=1", "x", 400, "unknown option 'try'; there are seconds"), ("/x", "x", 404, "there is no such page"),
    ("/health", "x", 405, "POST puzzles to /solve"), ("/solve", "x" * 10_001, 413, "at most 10,000 bytes"),
    ("/solve", "\n".join([text(1)] * 9), 413, "9 puzzles in one request: at most 8")])
def test_what_is_wrong_with_a_request_is_one_line(service, path, body, status, said):
    found, answer = service.ask("POST", path, body)
    [(name, error)] = json.loads(answer).items()
    assert (found, name) == (status, "error") and said in error and "\n" not in error


def test_health_page_and_metrics(service):
    assert json.loads(service.ask("GET", "/health")[1]) == {"status": "ok", "weights": "scripted"}
    assert service.ask("GET", "/") == (200, "<h1>a page</h1>")
    def numbers():
        lines = service.ask("GET", "/metrics")[1].splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}
    before = numbers()
    service.solve(f"{text(2)}\n12")
    after = numbers()

    def more(name):
        return after[name] - before.get(name, 0)
    assert more('trm_jax_requests_total{status="200"}') == 1 and more("trm_jax_puzzle_seconds_count") == 1
    assert more('trm_jax_puzzles_total{outcome="verified"}') == more('trm_jax_puzzles_total{outcome="refused"}') == 1
    assert after["trm_jax_open_puzzles"] == 0 and after["trm_jax_slots"] == 1


def test_the_page_asks_the_service_and_shows_every_cycle(solver):
    """The page of a 4x4 network; who answers is the scripted one."""
    if not (browser.CHROMIUM and browser.DRIVER):
        pytest.skip("no Chromium: install the packages chromium and chromium-driver")
    service = Service(solver, page=page.live(tiny.export(), "Live"))
    with contextlib.closing(browser.Browser()) as window:
        window.open(f"http://127.0.0.1:{service.port}/")
        assert window.run("return document.querySelectorAll('.cell').length") == 16
        told = "const t = document.getElementById('told').textContent; return t.startsWith('thinking') ? '' : t"

        def ask(puzzle):
            window.run("document.getElementById('text').value = arguments[0]; solve()", puzzle)
            return window.wait(told)
        assert re.fullmatch(r"verified in [\d.]+ s, try 1", ask(text(6)))
        assert window.run("return film.frames.map(frame => frame.cycle)") == [1, 2, 3, 4, 5, 6]
        cells = window.run("return Array.from(document.querySelectorAll('.cell'), c => c.textContent)")
        assert "".join(cells) == DOMAIN.decode(solver.trace(text(6), 6).tokens[-1])
        assert window.run("return document.getElementById('verdict').textContent") == "verified"
        assert ask("12").startswith("puzzle 1: got 2 cells")
        assert [e for e in window.log("browser") if "400 (Bad Request)" not in e["message"]] == []
    service.close()


def test_a_full_house_says_so_and_stopping_answers_what_is_there(solver):
    service, found = Service(solver, places=2), []
    two = f"{text(NEVER)}\n{text(3)}"
    waiting = threading.Thread(target=lambda: found.append(service.solve(two, "?seconds=3&tries=1")))
    waiting.start()
    while not service.worker.open:
        time.sleep(0.01)
    status, said = service.solve(f"{text(1)}\n{text(2)}")
    assert status == 503 and said["error"].startswith("busy")
    service.close()
    waiting.join()
    assert [a["verified"] for a in found[0][1]["answers"]] == [False, True]
    assert not service.worker.take([]) or service.worker.closed


def test_searches_take_turns_and_find_what_each_would_alone():
    """The packaged weights know no size: on 6x6, plain tries of one cycle, then guesses."""
    domain, export = puzzles.get("sudoku", seq_len=36), weights_file.read("rsm-sudoku")
    shape = Shape(domain.seq_len, domain.vocab_size, units=domain.units)
    solver = Solver(Model(export.experiment.arch, shape).bind(export.weights, export.metadata["L"]), domain)
    budget = {"vary": "guess", "tries": 64, "max_cycles": 1, "guess_cycles": 4, "settle": 0}
    worker, found, frames = Worker(solver, Settings(**budget), 8), {}, []
    inputs = domain.generate(4, seed=3)[0]
    assert worker.take([Ticket(tokens, "", 64, 1, time.perf_counter() + 60,
                               lambda answer, i=i: found.update({i: answer}), frames.append if i == 0 else None)
                        for i, tokens in enumerate(inputs)])
    worker.close()
    for i, alone in enumerate(solver.solve(list(inputs), **budget)):
        assert (found[i].text, found[i].attempt, found[i].verified) == (alone.text, alone.attempt, True)
    assert max(answer.attempt for answer in found.values()) > 1
    assert np.array_equal(frames[-1].tokens, found[0].tokens) and frames[-1].attempt == found[0].attempt - 1


def test_a_fault_of_the_worker_is_told(solver, capsys, monkeypatch):
    service = Service(solver)
    monkeypatch.setattr(solver.domain.__class__, "verify", None)
    status, said = service.solve(text(3))
    monkeypatch.undo()
    assert status == 200 and said["answers"][0]["reason"] == "the service has failed"
    status, said = service.ask("GET", "/health")
    assert status == 503 and json.loads(said)["status"] == "failed" and "TypeError" in capsys.readouterr().err
    service.close()


def test_the_command_serves_until_it_is_told_to_stop(tmp_path):
    """What it was asked before SIGTERM is answered; then it ends, and with status 0."""
    weights_file.save(tmp_path / "w", tiny.export())
    process = subprocess.Popen(
        [sys.executable, "-m", "trm_jax", "serve", f"--weights={tmp_path / 'w'}", "--port=0", "--warm_up=False",
         "--compilation_cache=", "--tries=1", "--max_cycles=2000000", "--settle=0"], stderr=subprocess.PIPE, text=True)
    try:
        said = process.stderr.readline().strip()
        port = int(re.search(r"serving 4x4 Sudoku with .*http://127.0.0.1:(\d+)$", said)[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", "/solve?seconds=2&stream=true", text(NEVER))
            lines = connection.getresponse()
            assert json.loads(lines.readline())["cycle"] == 1
            process.send_signal(signal.SIGTERM)
            *_, answer = map(json.loads, lines)
        assert answer["stop"] == "budget" and not answer["verified"] and process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_what_cannot_be_served_is_status_2(tmp_path, capsys):
    weights_file.save(tmp_path / "w", tiny.export())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert command.main([f"--weights={tmp_path / 'w'}", f"--port={port}", "--compilation_cache="]) == 2
    assert re.fullmatch(r"error: --host=127.0.0.1 --port=\d+: .*\n", capsys.readouterr().err)
    with pytest.raises(SystemExit, match="2"):
        command.main(["--port=70000"])
