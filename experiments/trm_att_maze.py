"""TRM-Att on Maze-Hard: "Less is More: Recursive Reasoning with Tiny Networks" (arXiv:2510.04871), table 4.

Variants (--config=experiments/trm_att_maze.py:NAME)

    (none)   the published recipe: trm_att_sudoku with n 4 on 1,000 mazes of 30x30, 65,104 steps of 768.
             Paper: 85.3 % exact on the 1,000 test mazes, 7M parameters; the code's authors: under 24 hours on four
             L40S, or on one with --config.global_batch_size=128. Third parties had 75 to 85 %; one of them counted
             91.6 % shortest paths where 85.1 % were exact. Not repeated by us yet.
    quick    at the size, cost and mazes of rsm_maze:quick: minutes on two cores. 31.8 % of all 1,000 test mazes at 16
             supervision steps, seed 0.

The paper trains for 60,000 epochs, its code for 50,000, as here. The paper augments with the 8 symmetries of the
square, its build of the data set does not unless told to, and so neither does this: a symmetry turns the tie-break
among shortest paths with the maze, and a third party's exact match fell from 85.1 to 10.1 % with it.

Data: as rsm_maze.
"""

import pathlib

from trm_jax import config as config_lib

VARIANTS = ("", "quick")


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"trm_att_maze has no variant {variant!r}; there are "
                         f"{', '.join(v for v in VARIANTS if v)} and the default, without a name")
    c = beside("trm_att_sudoku").get_config(variant)
    on_mazes(c, variant)
    c.arch.L_cycles = 4
    if variant == "quick":
        c.total_steps = 1900
    return c


def on_mazes(c, variant: str):
    """Data and evaluation of rsm_maze; of its :quick also sizes, rate, and positions by row and column."""
    mazes = beside("rsm_maze").get_config(variant)
    c.data.update(mazes.data)
    c.eval.max_examples = mazes.eval.max_examples
    c.eval.batch_size = mazes.eval.batch_size
    if variant == "quick":
        for name in ("hidden_size", "mlp_hidden_size", "num_heads", "L_layers"):
            c.arch[name] = mazes.arch[name]
        c.arch.puzzle_emb_ndim = c.arch.hidden_size
        c.lr = mazes.lr
        c.eval.H_test = (1, 2, 4, 8, 16, 32)
        if not c.arch.mlp_t:
            c.arch.rope_theta, c.arch.rope_columns = mazes.arch.rope_theta, mazes.arch.rope_columns


def beside(name: str):
    """Another experiment of this folder."""
    return config_lib.experiment_file(pathlib.Path(__file__).with_name(f"{name}.py"))
