"""python -m trm_jax.bench_inference: another name of python -m trm_jax bench inference."""

import sys

from trm_jax.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["bench", "inference", *sys.argv[1:]]))
