"""RSM on Sudoku."""

from trm_jax import config as config_lib


def get_config(variant: str = ""):
    """variant: "" (published), "1k", "steady" or "quick"."""
    c = config_lib.default()
    c.arch.hidden_size = 96
    c.arch.mlp_hidden_size = 192
    c.arch.mixer_hidden_size = 96
    c.arch.puzzle_emb_ndim = 0
    c.arch.puzzle_emb_len = 0
    c.arch.forward_dtype = "float32"
    c.arch.loss.loss_type = "softmax_cross_entropy"
    c.arch.mixer_norm_axis = "token"
    c.arch.prob_detach_prev_H = 1.0
    c.data.path = "data/sudoku-9x9-40"
    c.global_batch_size = 32
    c.total_steps = 1000
    c.optimizer = "adamw"
    c.lr = 2e-3
    c.beta1, c.beta2 = 0.9, 0.95
    c.lr_warmup_steps = 50
    c.lr_min_ratio = 0.05
    c.ema_rate = 0.99
    c.curriculum_milestones = (20., 40.)
    c.curriculum_heads_to_add = (1, 1)
    c.curriculum_L_milestones = (30., 60.)
    c.curriculum_L_to_add = (1, 1)
    c.eval.H_test = (2, 4, 8, 16, 32, 64, 128, 256)
    c.eval.max_examples = 256
    c.eval.batch_size = 256
    c.checkpoint.interval_steps = 200
    return c
