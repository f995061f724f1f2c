"""RSM (arXiv:2603.15641) on N-queens completion. Ours; there is no published figure.

A puzzle may have several right answers. The label is the first of them, row by row; `exact` counts answers that are the
label, `valid` all that are right.

Variants (--config=experiments/queens.py:NAME)

    (none)   12x12 boards with 6 queens given, at the size of the paper's RSM. Not trained by us yet.
    quick    10x10 boards with 4 queens given, at the size of a laptop CPU: 1,000 steps of 32, shorter than those of
             rsm_sudoku:quick. 200 of the 1,000 test puzzles, one seed: exact 24.0 %, valid 34.0 % after one try; with
             up to 8 tries that differ by a symmetry exact 81.0 %, valid 96.5 %.

Data, made where they are missing

    python -m trm_jax data queens --generate --train 200000 --test 1000 --size=12 --givens=6 --out data/queens-12
    python -m trm_jax data queens --generate --train 40000 --test 1000 --size=10 --givens=4 --out data/queens-10
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
    size, givens, train = (10, 4, 40_000) if variant == "quick" else (12, 6, 200_000)
    c.data.path = f"data/queens-{size}"
    c.data.make.update(source="generate", clues=0, train=train, test=1000, options=(f"size={size}", f"givens={givens}"))
    c.total_steps = 1000 if variant == "quick" else 15_000
    return c
