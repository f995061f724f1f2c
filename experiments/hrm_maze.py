"""HRM on Maze-Hard: "Hierarchical Reasoning Model" (arXiv:2506.21734), figure 1; table 4 of arXiv:2510.04871.

Variants (--config=experiments/hrm_maze.py:NAME)

    (none)   the published recipe: hrm_sudoku on 1,000 mazes of 30x30, 26,041 steps of 768.
             Paper: 74.5 % exact on the 1,000 test mazes, 27M parameters; the code's authors: about an hour on 8 GPUs.
             Not repeated by us yet.
    quick    at the size and on the mazes of rsm_maze:quick: minutes on two cores.

Data: as rsm_maze.
"""

import pathlib

from trm_jax import config as config_lib

VARIANTS = ("", "quick")


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"hrm_maze has no variant {variant!r}; there are "
                         f"{', '.join(v for v in VARIANTS if v)} and the default, without a name")
    attention = config_lib.experiment_file(pathlib.Path(__file__).with_name("trm_att_maze.py"))
    c = attention.beside("hrm_sudoku").get_config(variant)
    attention.on_mazes(c, variant)
    if variant == "quick":
        c.total_steps = 2900
    return c
