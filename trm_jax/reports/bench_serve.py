"""What the service gives: requests per second, and how long one waits, with 1, 16 and 256 clients at once.

    python -m trm_jax bench serve --weights=rsm-sudoku-quick --clients=1,16,256

Starts `serve` on the loopback, and sends one puzzle a request, generated as those were that the network was trained
on. Each client sends its next request when it has the answer to the last. Measured against one request at a time: the
same puzzles answered by Solver.solve, one after another, in this process.
"""

from __future__ import annotations

import argparse
import http.client
import json
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trm_jax.data import making
from trm_jax.inference import command
from trm_jax.inference.solver import Solver
from trm_jax.reports.bench_inference import BenchError
from trm_jax.runtime import arguments, distributed, files
from trm_jax.runtime.errors import guarded
from trm_jax.runtime.progress import say
from trm_jax.runtime.text import table
from trm_jax.weights import weights_file


def measured(seconds: Sequence[float], total: float, verified: int) -> dict[str, Any]:
    return {"requests": len(seconds), "requests_per_second": len(seconds) / total,
            "p50": float(np.quantile(seconds, 0.5)), "p99": float(np.quantile(seconds, 0.99)), "verified": verified}


def alone(solver: Solver, puzzles: Sequence[str], budget: dict[str, Any]) -> dict[str, Any]:
    """One request at a time, without a service."""
    solver.solve(puzzles[:1], **budget)
    times, verified, begun = [], 0, time.perf_counter()
    for puzzle in puzzles:
        before = time.perf_counter()
        verified += solver.solve([puzzle], **budget)[0].verified
        times.append(time.perf_counter() - before)
    return measured(times, time.perf_counter() - begun, verified)


def load(port: int, puzzles: Sequence[str], clients: int) -> dict[str, Any]:
    """So many clients, who share the puzzles out among themselves; what they were answered."""
    work: queue.SimpleQueue[str] = queue.SimpleQueue()
    for puzzle in puzzles:
        work.put(puzzle)
    times, failures, verified = [], [], []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        while not work.empty():
            try:
                puzzle = work.get_nowait()
            except queue.Empty:
                break
            before = time.perf_counter()
            connection.request("POST", "/solve", puzzle)
            answer = connection.getresponse()
            body = json.load(answer)
            times.append(time.perf_counter() - before)
            if answer.status != 200:
                failures.append(body["error"])
                break
            verified.append(body["answers"][0]["verified"])
        connection.close()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise BenchError(f"a request was answered by an error: {failures[0]}")
    return measured(times, time.perf_counter() - begun, sum(verified))


def serving(args: argparse.Namespace) -> tuple[subprocess.Popen[str], int]:
    """The service, and its port."""
    process = subprocess.Popen([sys.executable, "-m", "trm_jax", "serve", f"--weights={args.source}", "--port=0",
                                f"--seconds={args.seconds}", f"--batch_size={args.batch_size}",
                                f"--compilation_cache={args.compilation_cache}"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"http://.*:(\d+)$", line.strip()):
            return process, int(found[1])
        say(line.rstrip())
    raise BenchError("the service did not start")


def shown(result: dict[str, Any]) -> str:
    rows = [[name, f"{r['requests']:,}", f"{r['requests_per_second']:.1f}", f"{r['p50']:.3f}", f"{r['p99']:.3f}",
             f"{r['verified']:,}"] for name, r in result["rows"].items()]
    return (f"{result['weights']}, {result['puzzles']}, batch of {result['batch_size']}, {result['device']}\n"
            + table(["", "requests", "requests/s", "p50 s", "p99 s", "verified"], rows))


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments.Parser("python -m trm_jax bench serve", __doc__)
    arguments.add_source(parser, weights_file.named(), weights_file.DEFAULT)
    arguments.add_cache(parser, distributed.COMPILED)
    parser.add_argument("--clients", type=arguments.listed(arguments.integer(1, 1024)), default=(1, 16, 256),
                        help="at once (1,16,256)")
    parser.add_argument("--examples", type=arguments.integer(1, 100_000), default=512, help="puzzles, each of which "
                        "every number of clients asks once (%(default)s)")
    parser.add_argument("--seconds", type=arguments.number(above=True), default=60.0, help="for a puzzle, its waiting "
                        "included (%(default)s)")
    arguments.add_batch_size(parser, 8, "slots of the service")
    arguments.add_seed(parser, "of the puzzles")
    parser.add_argument("--out", type=lambda path: Path(arguments.text(path)), help="JSON file of the result")
    arguments.add_format(parser, "text", "json")
    args = parser.parse_args(argv)
    return guarded(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    export = command.open_source(args)
    data, solver, domain = export.experiment.data, Solver.of(export), export.domain
    made = domain.generate(args.examples, seed=args.seed, **making.generator_options(data, domain))
    texts = [domain.decode(tokens) for tokens in made[0]]
    result: dict[str, Any] = {
        "weights": args.source, "puzzles": f"{len(texts):,} generated puzzles of {domain.title}",
        "seconds": args.seconds,
        "batch_size": args.batch_size, "rows": {},
        "device": distributed.device_description()}
    result["rows"]["one at a time"] = alone(solver, texts, {"seconds": args.seconds, "batch_size": 1})
    process, port = serving(args)
    try:
        for clients in args.clients:
            name = f"{clients} client{'s' * (clients > 1)}"
            result["rows"][name] = load(port, texts, clients)
            say(f"{name}: {result['rows'][name]['requests_per_second']:.1f} requests/s")
    finally:
        process.terminate()
        process.wait(args.seconds + 30)
    print(json.dumps(result, indent=2) if args.format == "json" else shown(result))
    if args.out:
        files.write_json(args.out, result)


if __name__ == "__main__":
    sys.exit(main())
