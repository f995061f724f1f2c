"""HRM on Sudoku-Extreme: "Hierarchical Reasoning Model" (arXiv:2506.21734), figure 1; table 4 of arXiv:2510.04871.

Variants (--config=experiments/hrm_sudoku.py:NAME)

    (none)   the published recipe: 1,000 training puzzles, 26,041 steps of 768; two networks of four layers, gradient
             through the last call of each, ACT with a learned q_continue.
             Paper: 55.0 % exact on the 422,786 test puzzles, 27M parameters; the code's authors: about 10 minutes on
             8 GPUs. Third parties had 45.8 to 57.5 %. Not repeated by us yet.
    quick    on the puzzles of eqr_sudoku:quick (4x4), D 48, two and two layers, rotary positions by row and column,
             300 steps of 32: minutes of one core. 94.5 % exact of 200 test puzzles at 16 steps, seed 0; with learned
             positions 0 % (500 steps at 1e-3).

Deviation: the published data set has 1,000 shuffles of every puzzle, drawn beforehand; here every draw of a puzzle is
a fresh one.

Data, made where they are missing

    python -m trm_jax data sudoku --hub --train 1000 --out data/sudoku-extreme-1k
    python -m trm_jax data sudoku --generate --box 2x2 --clues 6 --train 4000 --test 500 --out data/sudoku4-6
"""

import pathlib

from trm_jax import config as config_lib

VARIANTS = ("", "quick")


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"hrm_sudoku has no variant {variant!r}; there are "
                         f"{', '.join(v for v in VARIANTS if v)} and the default, without a name")
    c = published()
    if variant == "quick":
        config_lib.experiment_file(pathlib.Path(__file__).with_name("trm_mlp_sudoku.py")).quick(c)
        config_lib.experiment_file(pathlib.Path(__file__).with_name("eqr_sudoku.py")).small(c)
        c.arch.rope_columns = 4
        c.total_steps = 300
    return c


def published():
    c = config_lib.default()
    c.data.path = "data/sudoku-extreme-1k"
    c.data.make.update(source="hub", train=1000)
    c.data.augment = True

    c.arch.recursion = "y_z"
    c.arch.H_cycles = 2
    c.arch.L_cycles = 2
    c.arch.H_layers = 4
    c.arch.L_layers = 4
    c.arch.grad_calls = 2
    c.arch.hidden_size = 512
    c.arch.num_heads = 8
    c.arch.mlp_t = False
    c.arch.pos_encodings = "rope"
    c.arch.tie_head = False
    c.arch.halting_head = True
    c.arch.puzzle_emb_ndim = 512
    c.arch.puzzle_emb_len = 0
    c.arch.supervision = "deep"
    c.arch.halt_max_steps = 16
    c.arch.halt_exploration_prob = 0.1
    c.arch.no_ACT_continue = False
    c.arch.prob_detach_prev_H = 1.0

    c.total_steps = 20_000 * 1000 // 768  # 20,000 epochs of 1,000 puzzles
    c.global_batch_size = 768
    c.optimizer = "adam_atan2"
    c.lr = 1e-4
    c.lr_min_ratio = 1.0
    c.lr_warmup_steps = 2000
    c.beta1, c.beta2 = 0.9, 0.95
    c.weight_decay = 1.0
    c.grad_clip_norm = 0.0
    c.puzzle_emb_lr = 1e-4
    c.puzzle_emb_weight_decay = 1.0
    c.ema = False

    c.eval.H_test = (1, 2, 4, 8, 16, 32, 64)
    c.eval.max_examples = 10_000
    c.eval.interval_steps = 2000
    return c
