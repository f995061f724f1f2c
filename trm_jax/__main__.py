"""python -m trm_jax COMMAND (or: trm-jax COMMAND); every command has its --help.

train and evaluate
  train      a config; the same command continues a run
  evaluate   the best checkpoint of a run, or --weights
  describe   what a config amounts to, without training it
  pool       ARC: the votes of all checkpoints of a run together
  adapt      weights to ARC tasks that they have not seen, and answer these
answer and look
  solve      puzzles, with a run or with the weights that come with this package
  serve      the same over HTTP, with a page to type puzzles into
  watch      how answers come about, as a page, GIF or PNG
  plot       accuracy over depth, or a puzzle as it fills in
  report     runs in a table, and checks on them
measure
  compare    several configs, trained for the same time
  scaling    what thinking longer, and trying more often, buys
  bench      the time of a training step, and of thinking
files
  data       make a dataset folder: generated, from files, or official
  weights    pack a run into one file; push, pull: the Hugging Face hub
  published  weights of the published PyTorch code, in and out

examples
  python -m trm_jax train --config=rsm_sudoku:quick
  python -m trm_jax evaluate --config=rsm_sudoku:quick --config.eval.H_test=256
  python -m trm_jax solve --workdir=runs/rsm_sudoku-quick < puzzles.txt
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from trm_jax.runtime.pages import use_huge_pages

# Name -> the function that takes the words after it and returns the exit status; imported when it is called.
COMMANDS = {
    "train": "trm_jax.main:train", "evaluate": "trm_jax.main:evaluate", "describe": "trm_jax.main:describe",
    "adapt": "trm_jax.main:adapt",
    "pool": "trm_jax.main:pool", "solve": "trm_jax.inference.command:main", "watch": "trm_jax.reports.page:main",
    "serve": "trm_jax.service.command:main",
    "plot": "trm_jax.reports.pictures:main", "report": "trm_jax.reports.report:main",
    "compare": "trm_jax.reports.compare:main", "scaling": "trm_jax.reports.scaling:main",
    "bench": "trm_jax.reports.bench:main", "data": "trm_jax.data.__main__:main",
    "weights": "trm_jax.weights.command:main", "published": "trm_jax.weights.published:main",
}


def main(argv: Sequence[str] | None = None) -> int:
    name, *rest = [*(sys.argv[1:] if argv is None else argv), ""]
    if name in ("-h", "--help", "help", ""):
        print((__doc__ or "").strip(), file=sys.stdout if name else sys.stderr)
        return 0 if name else 2
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        print(f"error: there is no command {name!r:.60}" + (f"; did you mean {near[0]}?" if near else "")
              + " See python -m trm_jax --help", file=sys.stderr)
        return 2
    module, _, function = COMMANDS[name].partition(":")
    return getattr(importlib.import_module(module), function)(rest[:-1])


if __name__ == "__main__":
    use_huge_pages()
    sys.exit(main())
