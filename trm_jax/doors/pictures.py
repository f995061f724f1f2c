"""python -m trm_jax.pictures: another name of python -m trm_jax plot."""

import sys

from trm_jax.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["plot", *sys.argv[1:]]))
