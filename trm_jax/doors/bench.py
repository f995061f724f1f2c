"""python -m trm_jax.bench: another name of python -m trm_jax bench."""

import sys

from trm_jax.__main__ import main
from trm_jax.runtime.pages import use_huge_pages

if __name__ == "__main__":
    use_huge_pages()
    sys.exit(main(["bench", *sys.argv[1:]]))
