"""RSM (arXiv:2603.15641) on Futoshiki: Latin squares with signs between neighbours. Ours; there is no published figure.

What a puzzle of one's own takes: `trm_jax/puzzles/futoshiki.py`, and this file.

Variants (--config=experiments/futoshiki.py:NAME)

    (none)   5x5 puzzles of which nothing can be spared, at the size of the paper's RSM. Not trained by us yet.
    quick    the same with six digits more than they need, at the size of a laptop CPU: 200 s of training on two cores
             (one seed, a busy machine). 200 of the 1,000 test puzzles: exact 92.5 % at H_test 8, 90.5 % at 256; with
             up to 8 tries that differ by a symmetry all 200 are verified.

Data, made where they are missing

    python -m trm_jax data futoshiki --generate --train 200000 --test 1000 --size=5 --out data/futoshiki-5
    python -m trm_jax data futoshiki --generate --train 20000 --test 1000 --size=5 --givens=6 --out data/futoshiki-easy
"""

import pathlib

from trm_jax import config as config_lib

VARIANTS = ("", "quick")
RSM = config_lib.experiment_file(pathlib.Path(__file__).parent / "rsm_sudoku.py")


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"futoshiki has no variant {variant!r}; there is quick and the default, without a name")
    c = RSM.published()
    RSM.steady(c)
    if variant == "quick":
        RSM.quick(c)
    c.data.puzzle = "futoshiki"
    c.data.augment = True
    small = variant == "quick"
    c.data.path = "data/futoshiki-easy" if small else "data/futoshiki-5"
    c.data.make.update(source="generate", clues=0, train=20_000 if small else 200_000, test=1000,
                       options=("size=5", "givens=6") if small else ("size=5",))
    if not small:
        c.total_steps = 15_000
    return c
