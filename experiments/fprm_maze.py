"""FPRM on Maze-Hard (arXiv:2606.18206; code nilskiKonjIzDunava/fprm): fprm_sudoku with a causal convolution over the
flattened grid and a norm at the end.

Variants (--config=experiments/fprm_maze.py:NAME)

    (none)   the published recipe: 1,000 mazes of 30x30 without symmetries, 78,125 steps of 768, at most 24 steps of 6
             iterations on a maze. Claim, not repeated by us: 87.0 % of the 1,000 test mazes at up to 35,000 iterations
             with decay 0.996 and patience 10; SFPRM reports 83.9 for it. Its config asks for four 80 GB or eight 40 GB
             A100; hours are not given.
    quick    at the size and on the mazes of trm_att_maze:quick. Not measured by us yet.

The authors say that training with the 8 symmetries "collapses to ~5 %".

Data: as rsm_maze.
"""

import pathlib

from trm_jax import config as config_lib

VARIANTS = ("", "quick")


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"fprm_maze has no variant {variant!r}; there are "
                         f"{', '.join(v for v in VARIANTS if v)} and the default, without a name")
    c = beside("trm_att_maze").get_config(variant)
    sudoku = beside("fprm_sudoku")
    sudoku.relative(c)
    c.arch.conv = "causal4"
    c.arch.output_norm = True
    c.arch.halt_max_steps = 24
    c.eval.H_test = sudoku.get_config(variant).eval.H_test
    if not variant:
        c.total_steps = 60_000 * 1000 // 768
        c.optimizer = "adamw"
        c.puzzle_emb_lr = 1e-2
    return c


def beside(name: str):
    """Another experiment of this folder."""
    return config_lib.experiment_file(pathlib.Path(__file__).with_name(f"{name}.py"))
