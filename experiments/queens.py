"""RSM (arXiv:2603.15641) on N-queens completion: 6 of 12 queens stand on the board. Ours; there is no published figure.

A quarter of these puzzles have several right answers. The label is the first of them, row by row; `exact` counts
answers that are the label, `valid` all that are right.

Variants (--config=experiments/queens.py:NAME)

    (none)   at the size of the paper's RSM. Not trained by us yet.
    quick    at the size of a laptop CPU. Figures: README.md here.

Data, made where they are missing

    python -m trm_jax data queens --generate --train 60000 --test 1000 --size=12 --givens=6 --out data/queens-12
"""

import pathlib

from trm_jax import config as config_lib

VARIANTS = ("", "quick")
RSM = config_lib.experiment_file(pathlib.Path(__file__).parent / "rsm_sudoku.py")


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"queens has no variant {variant!r}; there is quick and the default, without a name")
    c = RSM.published()
    RSM.steady(c)
    if variant == "quick":
        RSM.quick(c)
        c.eval.H_test = (4, 8, 16, 32)
    c.data.puzzle = "queens"
    c.data.path = "data/queens-12"
    c.data.make.update(source="generate", clues=0, train=60_000, test=1000, options=("size=12", "givens=6"))
    c.total_steps = 2000 if variant == "quick" else 15_000
    return c
