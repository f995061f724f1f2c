"""python -m trm_jax.report: another name of python -m trm_jax report."""

import sys

from trm_jax.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
