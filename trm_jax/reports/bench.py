"""What things cost on this machine, measured.

    python -m trm_jax bench step --config=experiments/rsm_sudoku.py:quick      a training step, variants of it in turns
    python -m trm_jax bench inference speed                                    cycles per second, batching, tries
    python -m trm_jax bench serve                                              requests per second, and the waiting
    python -m trm_jax bench suite --against=COMMIT                             a fixed list, against another commit
    python -m trm_jax bench peaks                                              what the machine can do at most
    python -m trm_jax bench peers --rsm=CLONE --trm=CLONE                      beside the published PyTorch code
    python -m trm_jax bench roofline --config=rsm_sudoku                       what a step must do on a GPU, without one

`python -m trm_jax bench JOB --help` says what each can do.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

JOBS = {"step": "bench_step", "inference": "bench_inference", "serve": "bench_serve", "suite": "bench_suite",
        "peaks": "bench_peaks", "peers": "bench_peers", "roofline": "bench_roofline"}


def main(argv: Sequence[str] | None = None) -> int:
    job, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if job.startswith("--") and job != "--help":  # as it was before there were jobs
        job, rest = "step", [job, *rest]
    if job in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0
    if job not in JOBS:
        print(f"error: bench {job[:60]!r}? There are {', '.join(JOBS)}; see python -m trm_jax bench --help",
              file=sys.stderr)
        return 2
    return importlib.import_module(f"trm_jax.reports.{JOBS[job]}").main(rest)


if __name__ == "__main__":
    sys.exit(main())
