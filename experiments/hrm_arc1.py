"""HRM on ARC-AGI-1: "Hierarchical Reasoning Model" (arXiv:2506.21734), figure 1; table 5 of arXiv:2510.04871.

Variants (--config=experiments/hrm_arc1.py:NAME)

    (none)   the published recipe: the data, length and optimiser of trm_att_arc1; two networks of four layers, gradient
             through the last call of each, ACT with a learned q_continue.
             Paper: pass@2 40.3 % on the 400 evaluation tasks, 27M parameters; the code's authors: about 24 hours on 8
             GPUs. Not repeated by us yet.
    quick    at the size and on the tasks of trm_att_arc1:quick, 600 steps of 8. Not measured yet.

Data: as trm_att_arc1.
"""

import pathlib

from trm_jax import config as config_lib

VARIANTS = ("", "quick")


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"hrm_arc1 has no variant {variant!r}; there are "
                         f"{', '.join(v for v in VARIANTS if v)} and the default, without a name")
    shared = config_lib.experiment_file(pathlib.Path(__file__).with_name("trm_att_arc1.py"))
    c = shared.beside("hrm_sudoku").get_config()
    shared.on_arc1(c, variant)
    if variant == "quick":
        c.total_steps = 600
    return c
