"""python -m trm_jax COMMAND"""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "data": "trm_jax.data.__main__", "solve": "trm_jax.inference.command", "watch": "trm_jax.reports.page",
    "weights": "trm_jax.weights.weights_file", "published": "trm_jax.weights.published",
    "report": "trm_jax.reports.report", "plot": "trm_jax.reports.pictures", "compare": "trm_jax.reports.compare",
    "scaling": "trm_jax.reports.scaling", "bench": "trm_jax.reports.bench",
}


def main(argv: list[str] | None = None) -> int:
    name, *rest = sys.argv[1:] if argv is None else argv
    return importlib.import_module(COMMANDS[name]).main(rest)


if __name__ == "__main__":
    sys.exit(main())
