"""Answers puzzles over HTTP, those of all requests together.

    python -m trm_jax serve                                    http://127.0.0.1:8000: a page to type puzzles into
    python -m trm_jax serve --weights=rsm-sudoku-quick --port=9000
    curl --data "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4.." localhost:8000/solve
    curl --data-binary @puzzles.txt "localhost:8000/solve?seconds=5&stream=true"

POST /solve takes puzzles as `solve --file` does and returns {"answers": [...]}; /health and /metrics (Prometheus) say
how it is. On SIGTERM it takes no more requests, answers those that it has, and ends with status 0.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from collections.abc import Sequence

from trm_jax.inference import command
from trm_jax.inference.settings import Settings
from trm_jax.inference.solver import SolveError, Solver
from trm_jax.runtime import arguments
from trm_jax.runtime.errors import guarded
from trm_jax.runtime.progress import say


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments.Parser("python -m trm_jax serve", __doc__)
    command.add_source(parser, max_cycles=None)
    parser.add_argument("--host", type=arguments.text, default="127.0.0.1",
                        help="address to listen at; 0.0.0.0: reachable from other machines (%(default)s)")
    parser.add_argument("--port", type=arguments.integer(0, 65535), default=8000, help="0: any free one (%(default)s)")
    arguments.add_tries(parser, default=None, what="tries of a puzzle at most; 1: one")
    parser.add_argument("--seconds", type=arguments.number(above=True), default=20.0, metavar="N",
                        help="for a puzzle at most, its waiting included (%(default)s)")
    parser.add_argument("--puzzles", type=arguments.integer(1), default=256, metavar="N",
                        help="of one request at most (%(default)s)")
    parser.add_argument("--places", type=arguments.integer(1, 1 << 16), default=1024, metavar="N",
                        help="for puzzles that wait or are thought about; without one: status 503 (%(default)s)")
    parser.add_argument("--body", type=arguments.integer(1), default=1 << 20, metavar="BYTES",
                        help="of one request at most (%(default)s)")
    arguments.add_batch_size(parser, 8, "slots: jobs that are done at once, at most")
    parser.add_argument("--warm_up", type=arguments.boolean, default=True, metavar="BOOL",
                        help="compile everything before the first request (True)")
    arguments.add_seed(parser, "of the tries")
    args = parser.parse_args(argv)
    return guarded(lambda: _serve(args))


def _serve(args: argparse.Namespace) -> None:
    try:
        import uvicorn

        from trm_jax.service import web
    except ImportError as error:
        raise SolveError(f"serving needs {error.name}: pip install 'trm_jax[serve]'") from None
    from trm_jax.reports import page
    from trm_jax.service.worker import Worker
    with _listening(args.host, args.port) as listener:
        export = command.open_source(args)
        if export.domain.identifies_tasks:
            raise SolveError(f"{args.source} is for ARC tasks, which serve does not answer; solve does")
        solver = Solver.of(export)
        given = {name: getattr(args, name) for name in ("tries", "max_cycles") if getattr(args, name)}
        worker = Worker(solver, Settings(**solver.usual | given, settle=args.settle, batch_size=args.batch_size,
                                         seed=args.seed), args.places)
        if args.warm_up:
            worker.warm_up()
        about = {"weights": args.source, "puzzle": export.domain.title,
                 "parameters": export.model.parameter_count(), "seconds": args.seconds,
                 "tries": worker.settings.tries, "max_cycles": worker.settings.max_cycles}
        app = web.application(worker, web.Limits(args.seconds, args.puzzles, args.body), about,
                              page.live(export, "Watch it think", page.source_line(args.source, export)))
        # With a log_config it would set up the logging of the whole process anew, and absl's would close its stream.
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", log_config=None, access_log=False,
                                               server_header=False, timeout_graceful_shutdown=int(args.seconds) + 5))
        # uvicorn stops at this signal, and then raises it once more, for whoever had it before.
        before = signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            host, port = listener.getsockname()[:2]
            where = f"[{host}]" if ":" in host else host
            say(f"serving {export.domain.title} with {args.source}: http://{where}:{port}")
            server.run(sockets=[listener])
        finally:
            signal.signal(signal.SIGTERM, before)
            worker.close()


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family, backlog=2048)
    except OSError as error:
        raise SolveError(f"--host={host} --port={port}: {error.strerror or error}; another --port?") from None


if __name__ == "__main__":
    sys.exit(main())
