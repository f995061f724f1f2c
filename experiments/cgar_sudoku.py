"""CGAR on Sudoku-Extreme (arXiv:2511.08653): TRM-MLP that begins shallow, (H, L) = (1, 2) until 30 % of training,
(2, 4) until 60 %, then (3, 6); and the token loss of supervision step t weighs 0.7^(t - 1).

Variants (--config=experiments/cgar_sudoku.py:NAME)

    (none)   trm_mlp_sudoku with both. Claims of the authors, whose code was not to be had; not repeated by us: 86.02 %
             in 6.4 h of an A100 where TRM-MLP took 10.9 h for 86.65 % (n 423,168: the 422,786 test puzzles with the
             padding of the last batch). The model card says 87.32 for the same run.
    quick    at the size and on the puzzles of eqr_sudoku:quick, up to (3, 4). 90.5 % exact of 200 test puzzles at 16
             steps, 91.5 at 64, seed 0.

Data: as eqr_sudoku.
"""

import pathlib

from trm_jax import config as config_lib

VARIANTS = ("", "quick")


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"cgar_sudoku has no variant {variant!r}; there are "
                         f"{', '.join(v for v in VARIANTS if v)} and the default, without a name")
    c = config_lib.experiment_file(pathlib.Path(__file__).with_name("trm_mlp_sudoku.py")).get_config(variant)
    c.arch.H_cycles, c.arch.test_H_cycles = 1, 3
    c.arch.L_cycles = 2
    c.curriculum_milestones, c.curriculum_heads_to_add = (30.0, 60.0), (1, 1)
    c.curriculum_L_milestones, c.curriculum_L_to_add = (30.0, 60.0), (1, 1) if variant else (2, 2)
    c.arch.step_loss_decay = 0.7
    if variant == "quick":
        config_lib.experiment_file(pathlib.Path(__file__).with_name("eqr_sudoku.py")).small(c)
    return c
