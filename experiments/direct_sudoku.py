"""Direct prediction on Sudoku-Extreme: one pass through a transformer of HRM's size (arXiv:2506.21734, figure 1;
table 4 of arXiv:2510.04871).

Variants (--config=experiments/direct_sudoku.py:NAME)

    (none)   eight layers of attention, applied once, with HRM's data and optimiser: 26,041 steps of 768.
             Paper: 0.0 % exact on the 422,786 test puzzles, 27M parameters; hardware and hours are not given. Not
             repeated by us yet.
    quick    on the puzzles of eqr_sudoku:quick (4x4), D 48, four layers, learned positions, 1,500 steps of 32 at 1e-3:
             minutes of one core. 54.0 % exact of 200 test puzzles, seed 0: 40 points behind hrm_sudoku:quick, which
             has as many layers and took a fifth of the steps.

The published config of this system goes on from its last state for 16 supervised steps; "direct" means one step, as
here (arch.halt_max_steps = 16 gives the other). The halting head is there because the published count has it.

Data: as hrm_sudoku.
"""

import pathlib

from trm_jax import config as config_lib

VARIANTS = ("", "quick")


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"direct_sudoku has no variant {variant!r}; there are "
                         f"{', '.join(v for v in VARIANTS if v)} and the default, without a name")
    c = config_lib.experiment_file(pathlib.Path(__file__).with_name("hrm_sudoku.py")).get_config(variant)
    c.arch.recursion = "direct"
    c.arch.H_cycles = 1
    c.arch.L_cycles = 0
    c.arch.H_layers = 0
    c.arch.L_layers *= 2
    c.arch.grad_calls = 0
    c.arch.halt_max_steps = 1
    c.arch.halt_exploration_prob = 0.0
    c.arch.no_ACT_continue = True
    c.eval.H_test = (1,)
    if variant == "quick":
        c.arch.pos_encodings, c.arch.rope_columns = "learned", 0
        c.lr = 1e-3
        c.total_steps = 1500
    return c
