"""python -m trm_jax.watch: another name of python -m trm_jax watch."""

import sys

from trm_jax.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["watch", *sys.argv[1:]]))
