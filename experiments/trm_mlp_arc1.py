"""TRM-MLP on ARC-AGI-1: "Less is More: Recursive Reasoning with Tiny Networks" (arXiv:2510.04871), table 5.

Variants (--config=experiments/trm_mlp_arc1.py:NAME)

    (none)   trm_att_arc1 with a SwiGLU over the 916 tokens instead of attention, 519,270 steps of 768.
             Paper: pass@2 29.6 % on the 400 evaluation tasks, 19M parameters; hardware and hours are not given, nor is
             a command of its own (n 4 as for TRM-Att is our reading). Not repeated by us yet.
    quick    at the size and on the tasks of trm_att_arc1:quick: 1,500 steps of 8, 77 s of one core. It learns the
             training examples by heart (99.9 % exact) and nothing of their tasks: 0 of 24 test inputs, pass@2 0
             (seed 0).

Data: as trm_att_arc1.
"""

import pathlib

from trm_jax import config as config_lib

VARIANTS = ("", "quick")


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"trm_mlp_arc1 has no variant {variant!r}; there are "
                         f"{', '.join(v for v in VARIANTS if v)} and the default, without a name")
    attention = config_lib.experiment_file(pathlib.Path(__file__).with_name("trm_att_arc1.py"))
    c = attention.beside("trm_mlp_sudoku").get_config()
    c.arch.L_cycles = 4
    attention.on_arc1(c, variant)
    if variant == "quick":
        c.total_steps = 1500
    return c
