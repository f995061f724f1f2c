"""python -m trm_jax.bench: another name of python -m trm_jax bench."""

import sys

from trm_jax.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
