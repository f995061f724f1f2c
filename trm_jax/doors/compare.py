"""python -m trm_jax.compare: another name of python -m trm_jax compare."""

import sys

from trm_jax.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
