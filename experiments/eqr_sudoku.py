"""EqR on Sudoku-Extreme (arXiv:2605.21488; code locuslab/EqR at 4d45856): TRM-MLP that starts at random and moves with
damping and noise, so that it can think from many starts; the try whose logits move least is the answer.

Variants (--config=experiments/eqr_sudoku.py:NAME)

    (none)   the published recipe: trm_mlp_sudoku without a prefix, 50,000 steps of 768 on 1,000 puzzles, constant
             learning rate. Claims of the authors, none repeated by us: 86.4 % exact at 16 steps, 93.0 at 64, 99.8 at
             64 steps x 128 tries, 33.6 h of eight 80 GB GPUs for the last. Its n, 423,168, is that of the 422,786
             test puzzles with the padding of the last batch.
    quick    trm_mlp_sudoku:quick on 4x4 with 6 clues, D 48, 500 steps of 32: a minute or two on one core. 96.5 % exact
             of 200 test puzzles at 16 steps, 97.0 at 64, seed 0.

The 99.8 needs noise of 0.5 when answering, fifty times that of training; the published evaluation config leaves it at
0.01, as here: --config.arch.update_noise_test=0.5. Tries:
python -m trm_jax solve --tries=128 --vary=draw --choose=logits.
The code's 50,000 steps are its own count; TRM's formula gives 65,104 for as many epochs. In the published training the
paper's sigma is cut at two standard deviations, as here.

Data: as trm_mlp_sudoku; for quick

    python -m trm_jax data sudoku --generate --box 2x2 --clues 6 --train 4000 --test 500 --out data/sudoku4-6
"""

import pathlib

from trm_jax import config as config_lib

VARIANTS = ("", "quick")


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"eqr_sudoku has no variant {variant!r}; there are "
                         f"{', '.join(v for v in VARIANTS if v)} and the default, without a name")
    c = config_lib.experiment_file(pathlib.Path(__file__).with_name("trm_mlp_sudoku.py")).get_config(variant)
    relative(c)
    if variant == "quick":
        small(c)
    else:
        c.total_steps = 50_000
    return c


def small(c):
    """On 4x4, at half of trm_mlp_sudoku:quick's width."""
    c.data.path = "data/sudoku4-6"
    c.data.make.update(source="generate", box=(2, 2), clues=6, train=4000, test=500)
    c.arch.hidden_size = 48
    c.arch.mlp_hidden_size = 96
    if c.arch.puzzle_emb_ndim:
        c.arch.puzzle_emb_ndim = 48
    c.total_steps = 500


def relative(c):
    """What makes a TRM an EqR."""
    c.arch.puzzle_emb_ndim = 0
    c.arch.puzzle_emb_len = 0
    c.arch.start = "random"
    c.arch.start_std = 1.0
    c.arch.update = "damped"
    c.arch.update_share = 0.95
    c.arch.update_noise = 0.01
    c.arch.update_noise_test = 0.01
