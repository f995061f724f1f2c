"""RSM on Sudoku-Extreme: "Form Follows Function: Recursive Stem Model" (arXiv:2603.15641), MLP-T form.

Variants (--config=experiments/rsm_sudoku.py:NAME)

    (none)   the published recipe: all 3,831,994 training puzzles, two passes, 14,968 steps of 512.
             Paper: 97.5 % exact on Sudoku-Extreme at H_test 640, about 80 % at training depth; under one hour on
             one A100. Not repeated by us yet.
    1k       the setting of HRM and TRM: 1,000 training puzzles, a fresh symmetry of each every time, as many steps.
    steady   the published recipe with what at quick size keeps right answers right beyond the training depth (README,
             "Stability"): a quarter of the slots carry their latents on. Not trained at full size yet.
    quick    steady at the size of a laptop CPU: generated 9x9 puzzles with 40 blanks, two minutes on two cores.
    hard     hard puzzles on a laptop: 12,416 parameters that mix candidates through the units of the rules, trained on
             puzzles of every difficulty in 78 minutes of one core; with guesses at test time. The packaged weights
             `rsm-sudoku` are step 44,000 of it (of a mixture drawn by other random numbers). Figures: README.md here.
    quick_att  the attention form on 4x4 puzzles with 5 clues, made stable by its carry alone (half of the slots).

Data, made where they are missing

    python -m trm_jax data sudoku --hub --out data/sudoku-extreme
    python -m trm_jax data sudoku --hub --train 1000 --out data/sudoku-extreme-1k
    python -m trm_jax data sudoku --generate --blanks 40 --train 60000 --test 1000 --out data/sudoku-40
    python -m trm_jax data sudoku --generate --box 2x2 --clues 5 --train 20000 --test 1000 --out data/sudoku-4x4
    python -m trm_jax data sudoku --csv train.csv.gz --test_csv test.csv.gz --out data/sudoku-mixed \\
        --reveal random_minimal:0.5:25:4,puzzles2_17_clue:0.5:25:12,*:0.1:25:1
"""

from trm_jax import config as config_lib

VARIANTS = ("", "1k", "steady", "quick", "hard", "quick_att")


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"rsm_sudoku has no variant {variant!r}; there are {', '.join(v for v in VARIANTS if v)} "
                         "and the default, without a name")
    c = published()
    if variant == "1k":
        c.data.path = "data/sudoku-extreme-1k"
        c.data.make.update(source="hub", train=1000)
        c.data.augment = True
        c.total_steps = 14_968
    elif variant == "steady":
        steady(c)
    elif variant == "quick":
        steady(c)
        quick(c)
    elif variant == "hard":
        quick(c)
        hard(c)
    elif variant == "quick_att":
        quick(c)
        quick_att(c)
    return c


def published():
    c = config_lib.default()
    c.data.path = "data/sudoku-extreme"
    c.data.make.source = "hub"

    c.arch.mlp_t = True
    c.arch.pos_encodings = "none"
    c.arch.hidden_size = 512
    c.arch.L_layers = 1
    c.arch.H_cycles = 2
    c.arch.L_cycles = 2
    c.arch.prob_detach_prev_H = 0.99
    c.arch.puzzle_emb_ndim = 512
    c.arch.puzzle_emb_len = 16

    c.epochs = 2
    c.global_batch_size = 512
    c.optimizer = "adam_atan2"
    c.lr = 1e-3
    c.lr_min_ratio = 0.02
    c.lr_warmup_steps = 2000
    c.beta1, c.beta2 = 0.8, 0.9
    c.weight_decay = 0.1
    c.grad_clip_norm = 1.0
    c.puzzle_emb_lr = 1e-4
    c.puzzle_emb_weight_decay = 1.0
    c.ema_rate = 0.999

    c.curriculum_milestones = (20.1, 40.1, 55.1, 65.1, 75.1, 85.1)
    c.curriculum_heads_to_add = (1,) * 6
    c.curriculum_L_milestones = (30.1, 50.1, 70.1, 80.1, 84.1, 86.1, 88.1, 90.1, 92.1, 94.1)
    c.curriculum_L_to_add = (1,) * 10

    c.eval.H_test = (8, 16, 32, 64, 160, 640)
    c.eval.L_test = (8, 12)
    c.eval.max_examples = 10_000
    c.eval.interval_steps = 5000
    return c


def steady(c):
    """A quarter of the slots think on about the same puzzle, so that states deeper than H are trained on."""
    c.deepen.carry_share = 0.25
    c.deepen.carry_keep_prob = 0.9


def quick(c):
    """Sizes and rates from trials on two cores: large learning rate, short EMA, no prefix, hidden sizes as they are."""
    c.data.path = "data/sudoku-40"
    c.data.make.update(source="generate", clues=41, train=60_000, test=1000)  # 40 blanks

    c.arch.hidden_size = 96
    c.arch.mlp_hidden_size = 192
    c.arch.mixer_hidden_size = 96
    c.arch.puzzle_emb_ndim = 0
    c.arch.puzzle_emb_len = 0
    c.arch.forward_dtype = "float32"
    c.arch.loss.loss_type = "softmax_cross_entropy"
    c.arch.prob_detach_prev_H = 1.0

    c.total_steps = 1800
    c.global_batch_size = 32
    c.optimizer = "adamw"
    c.lr = 2e-3
    c.lr_min_ratio = 0.05
    c.lr_warmup_steps = 50
    c.beta1, c.beta2 = 0.9, 0.95
    c.ema_rate = 0.99
    c.curriculum_milestones = (20.0, 40.0)
    c.curriculum_heads_to_add = (1, 1)
    c.curriculum_L_milestones = (30.0, 60.0)
    c.curriculum_L_to_add = (1, 1)

    c.eval.H_test = (2, 4, 8, 16, 32, 64, 128, 256)
    c.eval.L_test = ()
    c.eval.restarts = 8
    c.eval.max_examples = 200
    c.eval.batch_size = 50  # on a CPU the state of a batch should fit into its caches
    c.eval.interval_steps = 0
    c.checkpoint.interval_steps = 400


def hard(c):
    """The network knows the game's units, and so learns from few puzzles; small batches stay in a core's caches.

    The puzzles are your own: CSV files with hard ones among them, of which easier copies are made (data.make.reveal).
    """
    c.data.path = "data/sudoku-mixed"
    c.data.make.update(source="csv", csv="train.csv.gz", test_csv="test.csv.gz", clues=0, train=0, test=0, reveal=(
        "random_minimal:0.5:25:4", "puzzles2_17_clue:0.5:25:12", "*:0.1:25:1"))
    c.deepen.carry_share = 0.5
    c.deepen.carry_keep_prob = 0.9

    c.arch.units = True
    c.arch.candidates = True
    c.arch.tie_head = False
    c.arch.hidden_size = 32
    c.arch.mixer_hidden_size = 16
    c.arch.mlp_hidden_size = 64
    c.arch.L_cycles = 4
    c.curriculum_milestones = c.curriculum_heads_to_add = ()
    c.curriculum_L_milestones = c.curriculum_L_to_add = ()

    c.global_batch_size = 8
    c.total_steps = 45_000
    c.lr = 1.5e-3
    c.lr_warmup_steps = 200
    c.ema_rate = 0.999

    c.eval.H_test = (8, 16, 32, 64)
    c.eval.restarts = 0
    c.eval.batch_size = 8
    c.checkpoint.interval_steps = 500
    c.log.interval_steps = 200


def quick_att(c):
    """Attention needs a lower rate, and positions that tell where a row ends: rotary ones are only relative."""
    c.data.path = "data/sudoku-4x4"
    c.data.make.update(source="generate", box=(2, 2), clues=5, train=20_000, test=1000)
    c.deepen.carry_share = 0.5

    c.arch.mlp_t = False
    c.arch.pos_encodings = "learned"
    c.arch.hidden_size = 64
    c.arch.num_heads = 4
    c.arch.mlp_hidden_size = 128
    c.arch.mixer_hidden_size = 0

    c.total_steps = 800
    c.global_batch_size = 64
    c.lr = 1e-3
    c.eval.H_test = (4, 8, 16, 64)
    c.eval.max_examples = 0
    c.eval.batch_size = 250
