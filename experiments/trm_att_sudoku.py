"""TRM-Att on Sudoku-Extreme: "Less is More: Recursive Reasoning with Tiny Networks" (arXiv:2510.04871), tables 1 and 4.

Variants (--config=experiments/trm_att_sudoku.py:NAME)

    (none)   the published recipe: trm_mlp_sudoku with self-attention and rotary positions.
             Paper: 74.7 % exact on the 422,786 test puzzles, T 3, n 6, 7M parameters, under 36 hours on one L40S (the
             code's authors: under 20). Third parties had 73 to 78 %. Not repeated by us yet.
    quick    on the puzzles of eqr_sudoku:quick (4x4), D 48, two layers, rotary positions by row and column, 400 steps
             of 32: minutes of one core. 96.5 % exact of 200 test puzzles at 16 steps, seed 0; with learned positions
             and one layer 0 % (500 steps at 1e-3).

Data: as trm_mlp_sudoku; for quick as eqr_sudoku.
"""

import pathlib

from trm_jax import config as config_lib

VARIANTS = ("", "quick")


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"trm_att_sudoku has no variant {variant!r}; there are "
                         f"{', '.join(v for v in VARIANTS if v)} and the default, without a name")
    c = config_lib.experiment_file(pathlib.Path(__file__).with_name("trm_mlp_sudoku.py")).get_config(variant)
    c.arch.mlp_t = False
    c.arch.num_heads = 8
    c.arch.pos_encodings = "rope"
    c.arch.mixer_norm_axis = "feature"
    if variant == "quick":
        c.arch.num_heads = 4
        c.arch.mixer_hidden_size = 0
        config_lib.experiment_file(pathlib.Path(__file__).with_name("eqr_sudoku.py")).small(c)
        c.arch.rope_columns = 4
        c.arch.L_layers = 2
        c.total_steps = 400
    return c
