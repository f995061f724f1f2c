"""python -m trm_jax.solve: another name of python -m trm_jax solve."""

import sys

from trm_jax.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["solve", *sys.argv[1:]]))
