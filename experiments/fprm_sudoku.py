"""FPRM on Sudoku-Extreme (arXiv:2606.18206; code nilskiKonjIzDunava/fprm): one latent, pre-norm blocks with learned
residual scales behind a 3x3 convolution, iterated to a fixed point; a puzzle is done when the residual is small.

Variants (--config=experiments/fprm_sudoku.py:NAME)

    (none)   the published recipe: 1,000 puzzles, 78,125 steps of 768, 6 iterations a step, all with gradient, at most
             12 steps on a puzzle. Claims, not repeated by us: 94.2 % (model card, n not given) at up to 35,000
             iterations with decay 0.997 and patience 10, not the repository's 1,000, 0.99 and 5, as here; third
             parties had 90.1. Hardware and hours are not given.
    quick    on the puzzles of eqr_sudoku:quick, D 48, 800 steps of 32, halting at a residual of 0.01: minutes on one
             core. 40.0 % exact of 200 test puzzles at 192 iterations, seed 0; at 0.1 and 500 steps 7.0 %.

H_test counts iterations. Deviation: each example halts by its own residual; the published evaluation compares the
largest residual of a batch, so that one example that has converged and one that is stuck keep each other running.

Data: as eqr_sudoku.
"""

import pathlib

from trm_jax import config as config_lib

VARIANTS = ("", "quick")


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"fprm_sudoku has no variant {variant!r}; there are "
                         f"{', '.join(v for v in VARIANTS if v)} and the default, without a name")
    c = config_lib.experiment_file(pathlib.Path(__file__).with_name("trm_att_sudoku.py")).get_config(variant)
    relative(c)
    c.arch.conv = "grid3"
    c.arch.halt_max_steps = 12
    c.eval.H_test = (6, 12, 24, 48, 96, 192) if variant else (16, 64, 250, 1000)
    if variant == "quick":
        config_lib.experiment_file(pathlib.Path(__file__).with_name("eqr_sudoku.py")).small(c)
        c.arch.rope_columns = 0
        c.arch.L_layers = 1
        c.total_steps = 800
        c.arch.halt_residual = 0.01
    if not variant:
        c.total_steps = 60_000 * 1000 // 768
        c.optimizer = "adamw"
        c.lr = 1e-3
        c.weight_decay = 1e-3
        c.puzzle_emb_lr = 1e-3
        c.puzzle_emb_weight_decay = 1e-3
    return c


def relative(c):
    """What makes an attention TRM an FPRM."""
    c.arch.recursion = "direct"
    c.arch.L_cycles = 0
    c.arch.H_cycles = 6
    c.arch.grad_cycles = 6
    c.arch.start = "random"
    c.arch.start_std = 6.0
    c.arch.update = "solver"
    c.arch.block = "pre_norm"
    c.arch.halt_by = "residual"
    c.arch.halt_exploration_prob = 0.0
    c.eval.stop_halted = True
