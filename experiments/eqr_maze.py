"""EqR on Maze-Unique (arXiv:2605.21488; code locuslab/EqR at 4d45856), mazes of 30x30 with one shortest path only.

Variants (--config=experiments/eqr_maze.py:NAME)

    (none)   the published recipe: one layer of attention, D 128, n 4, 100,000 steps of 768. Claims of the authors, none
             repeated by us: 82.2 % of 1,000 mazes at 16 steps, 93.0 at 64 steps x 128 tries; hardware and hours are
             not given. Later: 98.6 peak, 95.2 final with 39.9 K core parameters (D 44, 2 heads, lr 1e-3, weight decay
             0.1, a prefix of 16), where a TRM of that size had 89.4.
    quick    at the size and on the mazes of trm_att_maze:quick. Not measured by us yet.

Deviation: the published data set is drawn by its own generator; here our generator makes mazes with a single path.

Data

    python -m trm_jax data maze --generate --single_path --train 1000 --test 1000 --out data/maze-unique
"""

import pathlib

from trm_jax import config as config_lib

VARIANTS = ("", "quick")


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"eqr_maze has no variant {variant!r}; there are "
                         f"{', '.join(v for v in VARIANTS if v)} and the default, without a name")
    c = beside("trm_att_maze").get_config(variant)
    beside("eqr_sudoku").relative(c)
    if not variant:
        c.data.path = "data/maze-unique"
        c.data.make.update(source="generate", train=1000, test=1000, single_path=True)
        c.arch.L_layers = 1
        c.arch.hidden_size = 128
        c.total_steps = 100_000
    return c


def beside(name: str):
    """Another experiment of this folder."""
    return config_lib.experiment_file(pathlib.Path(__file__).with_name(f"{name}.py"))
