"""TRM-Att on ARC-AGI-1: "Less is More: Recursive Reasoning with Tiny Networks" (arXiv:2510.04871), table 5.

Variants (--config=experiments/trm_att_arc1.py:NAME)

    (none)   the published recipe: the training and evaluation tasks (of the latter the demonstrations only) and
             ConceptARC under 1,000 symmetries each, 100,000 epochs of 960 tasks, 519,270 steps of 768; a row of the
             puzzle table for each of 960,960 puzzles.
             Paper: pass@2 44.6 % on the 400 evaluation tasks, 7M parameters, about 3 days on four H100. Third parties
             had 41 to 43 %. Not repeated by us yet.
    quick    six easy tasks of ARC-AGI-1's training set (experiments/arc_quick) under 3 symmetries each: 600 steps of 8,
             196 s of one core with evaluation and submission. The loss falls from 1.5 to 0.8, 42 % of training examples
             are exact at the end; of the 24 test inputs 25.0 % after one supervision step and 12.5 % after two, pass@2
             33.3 and 16.7 % (2 and 1 of 6 tasks, seed 0); after four, beyond what it was trained for, nothing was
             right. Tasks, sizes and rates were chosen while looking at these test inputs: no estimate of anything.

The symmetries are in the dataset folder: a symmetry of a task is a puzzle with an identifier and a row of its own. The
published number of steps is from the mean number of examples of a puzzle, and a little lower where tasks of few colours
have fewer symmetries; here it is that of the tasks. Checkpoints are ranked by pass@2 at the last of eval.H_test.

Data, made where they are missing (from ARC-AGI-1 and ConceptARC in Kaggle's form:
kaggle/arc-agi_{training,evaluation,concept}_{challenges,solutions}.json)

    python -m trm_jax data arc --json_dir kaggle --subsets training,evaluation,concept --test_subset evaluation
        --num_aug 1000 --out data/arc1-concept-aug-1000
    python -m trm_jax data arc --json_dir experiments/arc_quick --subsets training --test_subset training
        --num_aug 3 --out data/arc-quick
"""

import pathlib

from trm_jax import config as config_lib

VARIANTS = ("", "quick")


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"trm_att_arc1 has no variant {variant!r}; there are "
                         f"{', '.join(v for v in VARIANTS if v)} and the default, without a name")
    c = beside("trm_att_sudoku").get_config()
    c.arch.L_cycles = 4
    on_arc1(c, variant)
    if variant == "quick":
        c.total_steps = 600
    return c


def on_arc1(c, variant: str):
    """Data, optimiser and evaluation, which all systems share."""
    c.data.puzzle = "arc"
    c.data.path = "data/arc1-concept-aug-1000"
    c.data.make.update(source="arc_json", json_dir="kaggle", subsets=("training", "evaluation", "concept"),
                       test_subset="evaluation", num_aug=1000, train=0)
    c.data.augment = False

    c.total_steps = 100_000 * 3988 // 768  # 100,000 epochs of 960 tasks with 3,988 training pairs
    c.weight_decay = 0.1
    c.puzzle_emb_lr = 1e-2
    c.puzzle_emb_weight_decay = 0.1

    c.eval.H_test = (16,)
    c.eval.max_examples = 0
    c.eval.batch_size = 768
    c.eval.interval_steps = 50_000
    c.checkpoint.interval_steps = 10_000
    if variant == "quick":
        quick(c)


def quick(c):
    """Narrow and short, with a prefix of one. A canvas has 900 cells however small the grids are."""
    c.data.path = "data/arc-quick"
    c.data.make.update(json_dir="experiments/arc_quick", subsets=("training",), test_subset="training", num_aug=3)

    c.arch.H_cycles = 1
    c.arch.L_cycles = 1
    c.arch.L_layers = 1
    c.arch.H_layers = min(c.arch.H_layers, 1)
    c.arch.hidden_size = 32
    c.arch.num_heads = 1
    c.arch.mlp_hidden_size = 96
    c.arch.mixer_hidden_size = 32 if c.arch.mlp_t else 0
    c.arch.puzzle_emb_ndim = 32
    c.arch.puzzle_emb_len = 1
    c.arch.halt_max_steps = 2
    c.arch.forward_dtype = "float32"
    c.arch.remat = False
    c.arch.loss.loss_type = "softmax_cross_entropy"

    c.global_batch_size = 8
    c.optimizer = "adamw"
    c.lr = 4e-3
    c.lr_min_ratio = 0.05
    c.lr_warmup_steps = 20
    c.grad_clip_norm = 1.0
    c.ema_rate = 0.98
    c.puzzle_emb_lr = 2e-2

    c.eval.H_test = (1, 2)
    c.eval.settled_cycles = 1
    c.eval.batch_size = 32
    c.eval.interval_steps = 0
    c.checkpoint.interval_steps = 200
    c.log.interval_steps = 20


def beside(name: str):
    """Another experiment of this folder."""
    return config_lib.experiment_file(pathlib.Path(__file__).with_name(f"{name}.py"))
