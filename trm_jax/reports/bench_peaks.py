"""What one device of this machine can do, measured: matrix products by type of their operands, and bytes moved.

    python -m trm_jax bench peaks --out=peaks.json
"""

from __future__ import annotations

from collections.abc import Sequence

from trm_jax.runtime import arguments, distributed, files, peaks
from trm_jax.runtime.errors import guarded


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments.Parser("python -m trm_jax bench peaks", __doc__)
    parser.add_argument("--seconds", type=arguments.number(0, 100, above=True), default=0.3,
                        help="of each of the four measurements, the best of which counts (%(default)s)")
    arguments.add_result(parser)
    args = parser.parse_args(argv)

    def run() -> None:
        result = peaks.peaks(args.seconds) | {"versions": distributed.versions()}
        files.give(args, result, peaks.show(result))
    return guarded(run)
