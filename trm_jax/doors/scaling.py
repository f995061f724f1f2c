"""python -m trm_jax.scaling: another name of python -m trm_jax scaling."""

import sys

from trm_jax.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["scaling", *sys.argv[1:]]))
