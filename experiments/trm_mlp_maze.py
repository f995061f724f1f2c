"""TRM-MLP on Maze-Hard: "Less is More: Recursive Reasoning with Tiny Networks" (arXiv:2510.04871), table 4.

Variants (--config=experiments/trm_mlp_maze.py:NAME)

    (none)   trm_att_maze with a SwiGLU over the 916 tokens instead of attention, 65,104 steps of 768.
             Paper: 0.0 % exact on the 1,000 test mazes, 19M parameters; hardware and hours are not given, nor is a
             command of its own (n 4 as for TRM-Att is our reading). Not repeated by us yet.
    quick    at the size and on the mazes of rsm_maze:quick: minutes on two cores.

Data: as rsm_maze.
"""

import pathlib

from trm_jax import config as config_lib

VARIANTS = ("", "quick")


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"trm_mlp_maze has no variant {variant!r}; there are "
                         f"{', '.join(v for v in VARIANTS if v)} and the default, without a name")
    attention = config_lib.experiment_file(pathlib.Path(__file__).with_name("trm_att_maze.py"))
    c = attention.beside("trm_mlp_sudoku").get_config(variant)
    attention.on_mazes(c, variant)
    c.arch.L_cycles = 4
    return c
