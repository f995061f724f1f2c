"""The service as an ASGI application (Starlette).

    GET  /          the page: type or paste a puzzle, and see it solved
    POST /solve     puzzles as `solve --file` reads them (text, JSON, CSV) -> {"answers": [...]}, in their order;
                    ?stream=true: a line of JSON for every cycle of every try, then one for each answer
    GET  /health    what is served; 503 when it does not answer any more
    GET  /metrics   for Prometheus

Options of /solve are in the query: seconds, tries, max_cycles, stream. What is wrong with a request is said in one
line, {"error": ...}, with a status of 4xx. An answer has `verified` only where the rules accept it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from trm_jax.inference.engine import Frame
from trm_jax.inference.requests import read_requests
from trm_jax.inference.solver import Answer, SolveError, text_in
from trm_jax.service.worker import Ticket, Worker

OPTIONS = ("seconds", "tries", "max_cycles", "stream")
BODY_SECONDS = 30.0  # in which a body must have come


class Limits(NamedTuple):
    """What one request may ask for; a worker's settings bound tries and max_cycles."""

    seconds: float = 20.0  # for a puzzle, from its coming; what is given unless it asks for less
    puzzles: int = 256
    body: int = 1 << 20  # bytes


class Metrics:
    """What Prometheus is told."""

    def __init__(self, worker: Worker):
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("trm_jax_requests", "Requests to /solve", ["status"], registry=registry)
        self.puzzles = Counter("trm_jax_puzzles", "Puzzles answered", ["outcome"], registry=registry)
        self.seconds = Histogram("trm_jax_puzzle_seconds", "From a puzzle's coming to its answer", registry=registry,
                                 buckets=(.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 60))
        self.cycles = Counter("trm_jax_cycles", "Cycles of the tries that answers came from", registry=registry)
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "trm_jax_open_puzzles": ("Puzzles that wait or are thought about", lambda: worker.open),
            "trm_jax_slots": ("Slots of the batch", lambda: worker.load[2]),
            "trm_jax_slots_at_work": ("Slots that are at work", lambda: worker.load[1])}
        for name, (text, value) in gauges.items():
            Gauge(name, text, registry=registry).set_function(value)

    def count(self, answer: Answer, seconds: float) -> None:
        self.puzzles.labels("verified" if answer.verified else "not_verified").inc()
        self.seconds.observe(seconds)
        self.cycles.inc(answer.cycles)


def application(worker: Worker, limits: Limits, about: Mapping[str, Any], page: str = "") -> Starlette:
    """about: what /health says besides its status."""
    metrics = Metrics(worker)

    async def solve(request: Request) -> Response:
        response: Response = refusal(500, "a fault of the service")
        try:
            response = await _solve(request, worker, limits, metrics)
        except HTTPException as error:
            response = refusal(error.status_code, error.detail)
        except ClientDisconnect:
            response = refusal(400, "the connection was closed before the body had come")
        finally:
            metrics.requests.labels(response.status_code).inc()
        return response

    async def health(_: Request) -> Response:
        state = "failed" if worker.failure else "stopping" if worker.closed else "ok"
        return JSONResponse({"status": state, **about}, 200 if state == "ok" else 503)

    async def told(_: Request) -> Response:
        return PlainTextResponse(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    async def show(_: Request) -> Response:
        return HTMLResponse(page)

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        hint = {404: "there is no such page; there are /, /solve, /health and /metrics",
                405: "POST puzzles to /solve; the others take GET"}
        return refusal(error.status_code, hint.get(error.status_code, error.detail))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(worker.close)
    return Starlette(routes=[Route("/", show), Route("/solve", solve, methods=["POST"]), Route("/health", health),
                             Route("/metrics", told)],
                     exception_handlers={HTTPException: refused}, lifespan=lifespan)


def refusal(status: int, message: str) -> JSONResponse:
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse({"error": " ".join(message.split())}, status, headers)


class Asked(NamedTuple):
    """The options of a request."""

    seconds: float
    tries: int
    max_cycles: int
    stream: bool

    @classmethod
    def of(cls, query: Mapping[str, str], worker: Worker, limits: Limits) -> Asked:
        """Raises HTTPException for what is out of bounds."""
        def number(name: str, most: float, whole: bool = True) -> Any:
            text = query.get(name)
            try:
                value = most if text is None else (int if whole else float)(text)
            except ValueError:
                value = math.nan
            if not (1 if whole else 0) <= value <= most or value == 0:
                raise HTTPException(400, f"{name} = {text!r:.40}: must be a{' whole' * whole} number "
                                    f"{'from 1' if whole else 'above 0 and'} to {most:g}")
            return value
        if unknown := sorted(set(query) - set(OPTIONS)):
            raise HTTPException(400, f"unknown option {unknown[0]!r:.40}; there are {', '.join(OPTIONS)}")
        if query.get("stream", "false") not in ("true", "false"):
            raise HTTPException(400, f"stream = {query['stream']!r:.40}: must be true or false")
        return cls(number("seconds", limits.seconds, False), number("tries", worker.settings.tries),
                   number("max_cycles", worker.settings.max_cycles), query.get("stream") == "true")


async def _body(request: Request, most: int) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise HTTPException(413, f"the body is too large: at most {most:,} bytes")
    except TimeoutError:
        raise HTTPException(408, f"the body did not come within {BODY_SECONDS:g} seconds") from None
    return bytes(body)


async def _solve(request: Request, worker: Worker, limits: Limits, metrics: Metrics) -> Response:
    asked, solver = Asked.of(request.query_params, worker, limits), worker.solver
    body = await _body(request, limits.body)
    try:
        puzzles = await run_in_threadpool(read_requests, body, solver.domain)
    except SolveError as error:
        raise HTTPException(400, str(error)) from None
    if not puzzles:
        raise HTTPException(400, "no puzzle in the body: one a line, a grid of lines, JSON or CSV")
    if len(puzzles) > limits.puzzles:
        raise HTTPException(413, f"{len(puzzles):,} puzzles in one request: at most {limits.puzzles:,}")

    loop, events, begun = asyncio.get_running_loop(), asyncio.Queue(), time.perf_counter()
    answers: list[Any] = [None] * len(puzzles)  # Answer, once it is there
    tickets: list[Ticket] = []
    first = ""  # reason why a puzzle cannot be read

    def told(*event: Any) -> None:  # by the worker's thread
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(events.put_nowait, event)
    for i, (_, puzzle, _) in enumerate(puzzles):
        try:
            tickets.append(Ticket(solver.read(puzzle), text_in(puzzle), asked.tries, asked.max_cycles,
                                  begun + asked.seconds, lambda answer, i=i: told(i, answer),
                                  (lambda frame, i=i: told(i, frame)) if asked.stream else None))
        except ValueError as error:
            answers[i] = refused = Answer.refused(error)
            first = first or f"{puzzles[i].name}: {refused.reason}"
            metrics.puzzles.labels("refused").inc()
    if not tickets:
        raise HTTPException(400, first)
    if not worker.take(tickets):
        raise HTTPException(503, "busy: as many puzzles are waiting as there is room for; try again in a moment"
                            if not worker.closed else "the service is stopping")
    inputs = iter(tickets)
    of = {i: next(inputs).inputs for i, answer in enumerate(answers) if answer is None}

    async def lines() -> AsyncIterator[dict[str, Any]]:
        """Frames as they come, and answers."""
        for i, answer in enumerate(answers):
            if answer is not None:
                yield {"id": puzzles[i].name, **answer.to_json()}
        left = len(tickets)
        try:
            while left:
                try:
                    i, event = await asyncio.wait_for(events.get(), 1.0)
                except TimeoutError:
                    if await request.is_disconnected():
                        return
                    continue
                if isinstance(event, Frame):
                    yield {"id": puzzles[i].name, **shown(worker, of[i], event)}
                    continue
                answers[i], left = event, left - 1
                metrics.count(event, time.perf_counter() - begun)
                yield {"id": puzzles[i].name, **event.to_json()}
        finally:
            for ticket in tickets:
                ticket.cancelled = True
    if asked.stream:
        return StreamingResponse((json.dumps(line) + "\n" async for line in lines()),
                                 media_type="application/x-ndjson", headers={"Cache-Control": "no-store"})
    async for _ in lines():
        pass
    if None in answers:
        raise ClientDisconnect
    return JSONResponse({"answers": [{"id": puzzle.name, **answer.to_json()} for puzzle, answer in zip(puzzles, answers)
                                     if answer is not None]})


def shown(worker: Worker, inputs: np.ndarray, frame: Frame) -> dict[str, Any]:
    """JSON of a frame: "says" is why the rules do not accept the answer; `sure` and what follows are bytes as the page
    takes them (see reports/page.py)."""
    domain, bits = worker.solver.domain, np.zeros(frame.tokens.shape, bool)
    if domain.marks_faults:
        bits = domain.faults(inputs, frame.tokens)

    def packed(array: np.ndarray) -> str:
        return base64.b64encode(array.tobytes()).decode()
    return {"try": frame.attempt + 1, "cycle": frame.cycle, "answer": domain.decode(frame.tokens),
            "says": domain.explain(inputs, frame.tokens) if domain.has_rules else None,
            "residual": float(f"{frame.residual:.3g}") if math.isfinite(frame.residual) else None,
            "inputs": packed(inputs), "tokens": packed(frame.tokens.astype(np.uint8)),
            "asked": packed(inputs if frame.asked is None else frame.asked),
            "sure": packed((255 * np.nan_to_num(frame.sure).clip(0, 1)).round().astype(np.uint8)),
            "faults": packed(np.packbits(bits))}
